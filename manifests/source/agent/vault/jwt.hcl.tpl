{{ include "manifests.agent.hcl" (dict "kind" "vault" "method" "jwt") }}
