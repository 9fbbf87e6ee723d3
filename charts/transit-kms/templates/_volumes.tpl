{{/* The volumes, and their mount paths in the containers. */}}

{{- define "transit-kms.volume.socket" -}}
name: socket
hostPath: {path: {{ .Values.socket.hostDirectory }}, type: DirectoryOrCreate}
{{- end -}}

{{/* All volumes except for the socket's. */}}
{{- define "transit-kms.volumes" -}}
{{- $agent := .Values.agent -}}
- name: admin
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{- if $agent.enabled }}
# In memory, so that the token is never written to a disk.
- name: config
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
- name: agent
  {{- if eq $agent.config.source "generated" }}
  downwardAPI:
    items:
      - {{ include "transit-kms.file" "agent.hcl" }}
      - {{ include "transit-kms.file" "config.yaml.ctmpl" }}
  {{- else if eq $agent.config.source "configMap" }}
  configMap: {name: {{ $agent.config.configMapName }}}
  {{- else }}
  hostPath: {path: {{ $agent.config.hostDirectory }}, type: Directory}
  {{- end }}
{{- $credentials := include "transit-kms.credentialsDirectory" . }}
{{- if and $credentials (ne $credentials (include "transit-kms.agentConfigDirectory" .)) }}
- name: credentials
  {{- if has $agent.auth.method (list "jwt" "kubernetes") }}
  {{- include "transit-kms.volume.serviceAccountToken" $agent.auth.serviceAccountToken | nindent 2 }}
  {{- else if $agent.auth.secret.name }}
  secret: {secretName: {{ $agent.auth.secret.name }}, defaultMode: 0400}
  {{- else }}
  hostPath: {path: {{ $agent.auth.hostDirectory }}, type: Directory}
  {{- end }}
{{- end }}
{{- else if include "transit-kms.login" . }}
{{ include "transit-kms.login.volumes" . }}
{{- else }}
- name: config
  {{- if .Values.config.volume }}
  {{- toYaml .Values.config.volume | nindent 2 }}
  {{- else }}
  hostPath: {path: {{ .Values.config.hostDirectory }}, type: Directory}
  {{- end }}
{{- end }}
{{- if .Values.vault.tls.caHostPath }}
- name: ca
  hostPath: {path: {{ dir .Values.vault.tls.caHostPath }}, type: Directory}
{{- else if .Values.vault.tls.ca }}
- name: ca
  downwardAPI:
    items:
      - {{ include "transit-kms.file" "ca.pem" }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Takes the value `serviceAccountToken`. */}}
{{- define "transit-kms.volume.serviceAccountToken" -}}
projected:
  defaultMode: 0400
  sources:
    - serviceAccountToken:
        audience: {{ .audience | quote }}
        expirationSeconds: {{ int .expirationSeconds }}
        path: token
{{- end -}}

{{/* The path of the file with CA certificates; empty if there is none. */}}
{{- define "transit-kms.caFile" -}}
{{- .Values.vault.tls.caHostPath | default (empty .Values.vault.tls.ca | ternary "" "/etc/transit-kms-ca/ca.pem") -}}
{{- end -}}

{{- define "transit-kms.caMount" -}}
{{- with include "transit-kms.caFile" . -}}
- {name: ca, mountPath: {{ dir . }}, readOnly: true}
{{- end -}}
{{- end -}}

{{- define "transit-kms.agentConfigDirectory" -}}
{{- if eq .Values.agent.config.source "host" -}}
{{ .Values.agent.config.hostDirectory }}
{{- else -}}
/etc/transit-kms-agent
{{- end -}}
{{- end -}}

{{/* A directory of the host keeps its path: links in it can be absolute, such as kubelet's link to its certificate. */}}
{{- define "transit-kms.credentialsDirectory" -}}
{{- $auth := .Values.agent.auth -}}
{{- if eq $auth.method "none" -}}
{{- else if or (has $auth.method (list "jwt" "kubernetes")) $auth.secret.name -}}
/run/transit-kms-credentials
{{- else -}}
{{ $auth.hostDirectory }}
{{- end -}}
{{- end -}}
