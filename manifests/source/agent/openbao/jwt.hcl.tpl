{{ include "manifests.agent.hcl" (dict "kind" "openbao" "method" "jwt") }}
