# What the agent renders, in Vault's as in OpenBao's own words. All settings: docs/config.md.
{{ include "transit-kms.agent.template" (include "manifests.agent.facts" (dict "method" "approle") | fromYaml) }}
