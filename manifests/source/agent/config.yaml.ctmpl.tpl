# The template of the config file, for both OpenBao's and Vault's agent. docs/config.md describes all settings.
{{ include "transit-kms.agent.template" (include "manifests.agent.facts" (dict "method" "approle") | fromYaml) }}
