{{ include "manifests.agent.hcl" (dict "kind" "openbao" "method" "approle") }}
