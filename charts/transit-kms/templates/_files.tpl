{{/*
The files that the chart generates from values. They are annotations of the pod, not ConfigMaps. A rollout therefore
includes the pod's config, `kubectl rollout undo` restores it, and a node that boots needs no other object.
*/}}
{{- define "transit-kms.files" -}}
{{- if include "transit-kms.generatesAgentFiles" . -}}
{{ include "transit-kms.agentFiles" . }}
{{ end -}}
{{- if include "transit-kms.login" . -}}
transit-kms/config.yaml: |
  {{- include "transit-kms.login.config" . | trim | nindent 2 }}
{{ end -}}
{{- with .Values.vault.tls.ca -}}
transit-kms/ca.pem: |
  {{- trim . | nindent 2 }}
{{ end -}}
{{- end -}}

{{/* An item of a downwardAPI volume: one of these files, by name. */}}
{{- define "transit-kms.file" -}}
{path: {{ . }}, fieldRef: {fieldPath: "metadata.annotations['transit-kms/{{ . }}']"}}
{{- end -}}

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
transit-kms/agent.hcl: |
  {{- include "transit-kms.agent.hcl" $facts | trim | nindent 2 }}
transit-kms/config.yaml.ctmpl: |
  {{- include "transit-kms.agent.template" $facts | trim | nindent 2 }}
{{- end -}}

{{- define "transit-kms.generatesAgentFiles" -}}
{{- if and .Values.agent.enabled (eq .Values.agent.config.source "generated") -}}yes{{- end -}}
{{- end -}}
