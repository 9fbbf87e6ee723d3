{{/* A stub with the interface of the real one. */}}

{{- define "transit-kms.agent.hcl" -}}
{{- $auth := .auth -}}
vault {
  address = {{ first .vault.addresses | quote }}
  {{- with .caFile }}
  ca_cert = {{ . | quote }}
  {{- end }}
  {{- with .vault.tls.serverName }}
  tls_server_name = {{ . | quote }}
  {{- end }}
}

auto_auth {
  method {
    type = {{ $auth.method | quote }}
    mount_path = {{ printf "auth/%s" ($auth.mount | default $auth.method) | quote }}
    {{- with .vault.namespace }}
    namespace = {{ . | quote }}
    {{- end }}
    config = {
      {{- if eq $auth.method "approle" }}
      role_id_file_path = {{ $auth.roleIdFile | quote }}
      secret_id_file_path = {{ $auth.secretIdFile | quote }}
      remove_secret_id_file_after_reading = false
      {{- else if eq $auth.method "kubernetes" }}
      role = {{ $auth.role | quote }}
      token_path = {{ $auth.tokenFile | quote }}
      {{- else if eq $auth.method "jwt" }}
      role = {{ $auth.role | quote }}
      path = {{ $auth.tokenFile | quote }}
      remove_jwt_after_reading = false
      {{- else if eq $auth.method "cert" }}
      {{- with $auth.role }}
      name = {{ . | quote }}
      {{- end }}
      client_cert = {{ $auth.certFile | quote }}
      client_key = {{ $auth.keyFile | quote }}
      {{- with $.caFile }}
      ca_cert = {{ . | quote }}
      {{- end }}
      {{- end }}
    }
  }
}

template {
  source = {{ .templateFile | quote }}
  destination = {{ .destination | quote }}
  perms = "0600"
}
{{- end -}}

{{- define "transit-kms.agent.template" -}}
vault:
  addresses: {{ toJson .vault.addresses }}
  {{- with .vault.namespace }}
  namespace: {{ . | quote }}
  {{- end }}
  transitpath: {{ .vault.transitPath | quote }}
  keynames: {{ toJson .vault.keyNames }}
  {{- if or .caFile .vault.tls.serverName }}
  tls:
    {{- with .caFile }}
    ca_file: {{ . | quote }}
    {{- end }}
    {{- with .vault.tls.serverName }}
    server_name: {{ . | quote }}
    {{- end }}
  {{- end }}
  token: {{ `{{ with secret "auth/token/lookup-self" }}{{ .Data.id }}{{ end }}` }}
encryption:
  mode: {{ .encryption.mode }}
  {{- with .encryption.maxAge }}
  max_age: {{ . }}
  {{- end }}
  {{- with .encryption.maxAgeInOutage }}
  max_age_in_outage: {{ . }}
  {{- end }}
  {{- with .encryption.renewAfter }}
  renew_after: {{ . }}
  {{- end }}
  {{- with .encryption.renewAfterUses }}
  renew_after_uses: {{ int . }}
  {{- end }}
{{- end -}}
