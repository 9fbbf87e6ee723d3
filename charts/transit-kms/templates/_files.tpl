{{/*
The files that are made of values. They travel as annotations of the pod, not as ConfigMaps: so a rollout takes all of a
pod's config along, `kubectl rollout undo` brings all of it back, and a node that boots needs the pod and nothing else.
*/}}
{{- define "transit-kms.files" -}}
{{- if include "transit-kms.generatesAgentFiles" . -}}
{{ include "transit-kms.agentFiles" . }}
{{ end -}}
{{- with .Values.vault.tls.ca -}}
transit-kms/ca.pem: |
  {{- trim . | nindent 2 }}
{{ end -}}
{{- end -}}

{{/* A volume with one of them. */}}
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
