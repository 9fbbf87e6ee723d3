{{/* What the agent's ConfigMap holds. */}}
{{- define "transit-kms.agentFiles" -}}
{{- $auth := .Values.agent.auth -}}
{{- $directory := include "transit-kms.credentialsDirectory" . -}}
{{- $files := dict "tokenFile" (printf "%s/token" $directory) -}}
{{- range list "roleIdFile" "secretIdFile" "certFile" "keyFile" -}}
{{- $_ := set $files . (printf "%s/%s" $directory (get $auth .)) -}}
{{- end -}}
{{- $facts := dict
  "kind" .Values.agent.kind
  "vault" .Values.vault
  "encryption" .Values.encryption
  "auth" (merge $files $auth)
  "templateFile" "/etc/transit-kms-agent/config.yaml.ctmpl"
  "destination" "/run/transit-kms-config/config.yaml"
  "caFile" (include "transit-kms.caFile" .)
-}}
agent.hcl: |
  {{- include "transit-kms.agent.hcl" $facts | trim | nindent 2 }}
config.yaml.ctmpl: |
  {{- include "transit-kms.agent.template" $facts | trim | nindent 2 }}
{{- end -}}

{{- define "transit-kms.generatesAgentFiles" -}}
{{- if and .Values.agent.enabled (eq .Values.agent.config.source "generated") -}}yes{{- end -}}
{{- end -}}
