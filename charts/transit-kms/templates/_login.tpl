{{/*
The login of the daemon itself, without an agent. Each template takes the root context. The names of settings are those
of docs/auth.
*/}}

{{- define "transit-kms.login" -}}
{{- if and (not .Values.agent.enabled) .Values.auth.method -}}yes{{- end -}}
{{- end -}}

{{/* The config file of the daemon. It contains paths, but no secrets. */}}
{{- define "transit-kms.login.config" -}}
{{- $auth := include "transit-kms.login.settings" . | fromYaml -}}
{{- $facts := dict "vault" .Values.vault "caFile" (include "transit-kms.caFile" .) -}}
{{- if eq $auth.method "agent" -}}
{{- /* The agent makes the TLS connection to Vault. */ -}}
{{- $vault := merge (dict "addresses" (list (printf "unix://%s" .Values.auth.agentSocket)) "tls" dict) (omit .Values.vault "tls") -}}
{{- $facts = dict "vault" $vault "caFile" "" -}}
{{- end -}}
{{ include "transit-kms.config.vault" $facts }}
  auth:
    method: {{ $auth.method }}
    {{- with omit $auth "method" }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- with .Values.encryption }}
{{ include "transit-kms.config.encryption" . }}
{{- end }}
{{- end -}}

{{/* The section `auth` of the config file. With inline authentication, the settings are in a section of their own. */}}
{{- define "transit-kms.login.settings" -}}
{{- $settings := include "transit-kms.login.methodSettings" . | fromYaml -}}
{{- if .Values.auth.inline -}}
{{- $settings = dict "method" "inline" "login" $settings -}}
{{- end -}}
{{ toYaml $settings }}
{{- end -}}

{{- define "transit-kms.login.methodSettings" -}}
{{- $auth := .Values.auth -}}
{{- $directory := include "transit-kms.login.directory" . -}}
method: {{ $auth.method }}
{{- if $auth.trustDomains }}
trust_domains:
  {{- toYaml $auth.trustDomains | nindent 2 }}
{{- else }}
{{- with $auth.mount }}
mount: {{ . | quote }}
{{- end }}
{{- end }}
{{- with $auth.namespace }}
namespace: {{ . | quote }}
{{- end }}
{{- if has $auth.method (list "approle" "aws" "cert" "jwt" "kubernetes" "spiffe") }}
{{- if and $auth.role (not (and $auth.inline (eq $auth.method "approle"))) }}
role: {{ $auth.role | quote }}
{{- end }}
{{- end }}
{{- if eq $auth.method "approle" }}
role_id_file: {{ printf "%s/%s" $directory $auth.roleIdFile | quote }}
secret_id_file: {{ printf "%s/%s" $directory $auth.secretIdFile | quote }}
{{- if eq $auth.delivery "sealed" }}
private_key_file: {{ include "transit-kms.login.privateKeyFile" . | quote }}
{{- end }}
{{- else if eq $auth.method "aws" }}
type: {{ $auth.aws.type }}
{{- with $auth.aws.region }}
region: {{ . | quote }}
{{- end }}
{{- with $auth.aws.iamServerIdHeaderValue }}
iam_server_id_header_value: {{ . | quote }}
{{- end }}
{{- else if eq $auth.method "token_file" }}
token_file: {{ printf "%s/%s" $directory $auth.tokenFile | quote }}
{{- else if eq $auth.method "userpass" }}
username: {{ $auth.username | quote }}
password_file: {{ printf "%s/%s" $directory $auth.passwordFile | quote }}
{{- else if eq $auth.method "spiffe" }}
svid: {{ $auth.svid }}
{{- end }}
{{- if and (ne $auth.delivery "plain") (has $auth.method (list "approle" "token_file")) }}
delivery: {{ $auth.delivery }}
{{- end }}
{{- $svid := include "transit-kms.login.svid" . }}
{{- if $auth.workloadApi.source }}
workload_api:
  address: {{ printf "unix://%s/%s" (include "transit-kms.login.workloadApiDirectory" .) $auth.workloadApi.socketFile | quote }}
  {{- if eq $svid "jwt" }}
  audience: {{ $auth.workloadApi.audience | quote }}
  {{- end }}
  {{- with $auth.workloadApi.spiffeId }}
  spiffe_id: {{ . | quote }}
  {{- end }}
{{- else if eq $svid "jwt" }}
jwt_file: {{ printf "%s/%s" $directory ($auth.jwtFile | default "token") | quote }}
{{- else if eq $svid "x509" }}
cert_file: {{ printf "%s/%s" $directory $auth.certFile | quote }}
key_file: {{ printf "%s/%s" $directory $auth.keyFile | quote }}
{{- end }}
{{- end -}}

{{/* What the method presents to Vault: `jwt`, `x509`, or nothing of both. */}}
{{- define "transit-kms.login.svid" -}}
{{- $auth := .Values.auth -}}
{{- if has $auth.method (list "jwt" "kubernetes") -}}jwt
{{- else if eq $auth.method "cert" -}}x509
{{- else if eq $auth.method "spiffe" -}}{{ $auth.svid }}
{{- end -}}
{{- end -}}

{{/* Whether the JWT is a projected service account token. */}}
{{- define "transit-kms.login.usesServiceAccount" -}}
{{- if and (include "transit-kms.login" .) (eq (include "transit-kms.login.svid" .) "jwt") (not .Values.auth.jwtFile) (not .Values.auth.workloadApi.source) -}}yes{{- end -}}
{{- end -}}

{{/*
Whether the method must remember what it has used up. The directory of the host is always mounted at the default of
`state_dir`.
*/}}
{{- define "transit-kms.login.usesState" -}}
{{- $auth := .Values.auth -}}
{{- if and (include "transit-kms.login" .) (not $auth.inline) -}}
{{- if or (has $auth.method (list "approle" "aws")) (and (eq $auth.method "token_file") (eq $auth.delivery "wrapped")) -}}yes{{- end -}}
{{- end -}}
{{- end -}}

{{- define "transit-kms.login.stateMount" -}}
{name: state, mountPath: /var/lib/transit-kms}
{{- end -}}

{{- define "transit-kms.login.sealed" -}}
{{- if and (include "transit-kms.login" .) (eq .Values.auth.method "approle") (eq .Values.auth.delivery "sealed") -}}yes{{- end -}}
{{- end -}}

{{/* In the directory for the state, because the directory with the credentials is read-only. */}}
{{- define "transit-kms.login.privateKeyFile" -}}
/var/lib/transit-kms/{{ .Values.auth.privateKeyFile }}
{{- end -}}

{{/* The directory with the credentials; empty if the method needs none. A directory of the host keeps its path. */}}
{{- define "transit-kms.login.directory" -}}
{{- $auth := .Values.auth -}}
{{- if has $auth.method (list "agent" "aws") -}}
{{- else if $auth.workloadApi.source -}}
{{- else if or (include "transit-kms.login.usesServiceAccount" .) $auth.secret.name -}}
/run/transit-kms-credentials
{{- else -}}
{{ $auth.hostDirectory }}
{{- end -}}
{{- end -}}

{{- define "transit-kms.login.workloadApiDirectory" -}}
{{- $api := .Values.auth.workloadApi -}}
{{- eq $api.source "csi" | ternary "/run/transit-kms-workload-api" $api.hostDirectory -}}
{{- end -}}

{{- define "transit-kms.login.volumes" -}}
{{- $auth := .Values.auth -}}
- name: config
  downwardAPI:
    defaultMode: 0400
    items:
      - {{ include "transit-kms.file" "config.yaml" }}
{{- if include "transit-kms.login.directory" . }}
- name: credentials
  {{- if include "transit-kms.login.usesServiceAccount" . }}
  {{- include "transit-kms.volume.serviceAccountToken" $auth.serviceAccountToken | nindent 2 }}
  {{- else if $auth.secret.name }}
  secret: {secretName: {{ $auth.secret.name }}, defaultMode: 0400}
  {{- else }}
  hostPath: {path: {{ $auth.hostDirectory }}, type: Directory}
  {{- end }}
{{- end }}
{{- if include "transit-kms.login.usesState" . }}
- name: state
  hostPath: {path: {{ $auth.stateHostDirectory }}, type: DirectoryOrCreate}
{{- end }}
{{- /* If another program makes the socket, transit-kms must be able to start before it. */ -}}
{{- if eq $auth.workloadApi.source "csi" }}
- name: workload-api
  csi: {driver: {{ $auth.workloadApi.csiDriver }}, readOnly: true}
{{- else if eq $auth.workloadApi.source "hostPath" }}
- name: workload-api
  hostPath: {path: {{ $auth.workloadApi.hostDirectory }}, type: DirectoryOrCreate}
{{- end }}
{{- if eq $auth.method "agent" }}
- name: agent-socket
  hostPath: {path: {{ dir $auth.agentSocket }}, type: DirectoryOrCreate}
{{- end }}
{{- end -}}

{{/* The mounts of the daemon, except for the config file. */}}
{{- define "transit-kms.login.mounts" -}}
{{- $auth := .Values.auth -}}
{{- with include "transit-kms.login.directory" . }}
- {name: credentials, mountPath: {{ . }}, readOnly: true}
{{- end }}
{{- if include "transit-kms.login.usesState" . }}
- {{ include "transit-kms.login.stateMount" . }}
{{- end }}
{{- if $auth.workloadApi.source }}
- {name: workload-api, mountPath: {{ include "transit-kms.login.workloadApiDirectory" . }}, readOnly: true}
{{- end }}
{{- if eq $auth.method "agent" }}
- {name: agent-socket, mountPath: {{ dir $auth.agentSocket }}, readOnly: true}
{{- end }}
{{- end -}}

{{/* Makes the key of the node at its first boot, and prints the public key. A key that exists is not replaced. */}}
{{- define "transit-kms.container.keygen" -}}
name: keygen
image: {{ include "transit-kms.daemonImage" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [keygen, "--out={{ include "transit-kms.login.privateKeyFile" . }}"]
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "transit-kms.containerSecurityContext" . | nindent 2 }}
terminationMessagePolicy: FallbackToLogsOnError
volumeMounts:
  - {{ include "transit-kms.login.stateMount" . }}
{{- end -}}
