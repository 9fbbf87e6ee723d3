{{/*
The agent's two files. Both templates take one dict: kind, vault, encryption, auth, templateFile, destination, caFile.
`auth` holds method, mount, role, and the paths for the method: roleIdFile and secretIdFile, certFile and keyFile, or
tokenFile.
*/}}

{{- define "transit-kms.agent.hcl" -}}
{{- $auth := .auth -}}
{{- $openbao := eq .kind "openbao" -}}
{{- /* Only the method's own block can reload a client certificate at each login, but it has no server name. */ -}}
{{- $reload := and (eq $auth.method "cert") (not .vault.tls.serverName) -}}
# Run with: {{ $openbao | ternary "bao" "vault" }} agent -config=agent.hcl
# Do not use exit_after_auth: the agent must keep running to renew the token and to render new ones.
{{- if $openbao }}
# OpenBao's agent notices a revoked token at the next renewal, after two thirds of the TTL. Set a short
# token_ttl in the role.
{{- end }}

vault {
  # The agent supports only one address. To survive the loss of that node, use a load balancer or a DNS name
  # that resolves to all nodes.
  address = {{ first .vault.addresses | quote }}
  {{- with .caFile }}
  ca_cert = {{ . | quote }}
  {{- end }}
  {{- with .vault.tls.serverName }}
  tls_server_name = {{ . | quote }}
  {{- end }}
  {{- if and (eq $auth.method "cert") (not $reload) }}
  # These are set here because auto_auth cannot set a server name. The agent reads them only at its start:
  # restart it when they change.
  client_cert = {{ $auth.certFile | quote }}
  client_key = {{ $auth.keyFile | quote }}
  {{- end }}
}

auto_auth {
  method {
    type = {{ $auth.method | quote }}
    mount_path = {{ printf "auth/%s" ($auth.mount | default $auth.method) | quote }}
    {{- with .vault.namespace }}
    namespace = {{ . | quote }}
    {{- end }}
    # The agent retries logins without limit. By default, the pause between them grows to five minutes.
    exit_on_err = false
    min_backoff = "1s"
    max_backoff = "30s"

    config = {
      {{- if eq $auth.method "approle" }}
      role_id_file_path = {{ $auth.roleIdFile | quote }}
      secret_id_file_path = {{ $auth.secretIdFile | quote }}
      # By default, the agent removes the file, and cannot log in again after a restart. Also set
      # secret_id_num_uses=0 in the role.
      remove_secret_id_file_after_reading = false
      {{- else if eq $auth.method "kubernetes" }}
      # Vault asks an API server to review this token. If that API server waits for transit-kms, the login
      # fails. Use this method only if another cluster issues and reviews the token.
      role = {{ $auth.role | quote }}
      token_path = {{ $auth.tokenFile | quote }}
      {{- else if eq $auth.method "jwt" }}
      role = {{ $auth.role | quote }}
      path = {{ $auth.tokenFile | quote }}
      # By default, the agent removes the file, and cannot log in again after a restart.
      remove_jwt_after_reading = false
      {{- else if eq $auth.method "cert" }}
      {{- with $auth.role }}
      name = {{ . | quote }}
      {{- end }}
      {{- if $reload }}
      {{- with $.caFile }}
      ca_cert = {{ . | quote }}
      {{- end }}
      client_cert = {{ $auth.certFile | quote }}
      client_key = {{ $auth.keyFile | quote }}
      # The agent reads the files at each login, so a new certificate needs no restart.
      reload = true
      {{- end }}
      {{- else }}
      {{- fail (printf "agent.auth.method %q is not approle, cert, jwt or kubernetes" $auth.method) }}
      {{- end }}
    }
  }
}

template_config {
  # The agent retries a failed rendering without limit.
  exit_on_retry_failure = false
  {{- if not $openbao }}
  # Interval at which the agent looks up the token. Since Vault 1.17, the agent logs in again if the token is
  # revoked.
  static_secret_render_interval = "1m"
  {{- end }}
}

template {
  source = {{ .templateFile | quote }}
  destination = {{ .destination | quote }}
  perms = "0600"
  error_on_missing_key = true
}
{{- end -}}

{{- define "transit-kms.agent.template" -}}
{{ include "transit-kms.config.vault" . }}
  # This inserts the agent's own token.
  token: '{{ `{{ with secret "auth/token/lookup-self" }}{{ .Data.id }}{{ end }}` }}'
{{- with .encryption }}
{{ include "transit-kms.config.encryption" . }}
{{- end }}
{{- end -}}

{{/* The settings of the daemon's config file that do not depend on the login. Takes a dict: vault, caFile. */}}
{{- define "transit-kms.config.vault" -}}
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
{{- end -}}

{{/* Takes the value `encryption`. */}}
{{- define "transit-kms.config.encryption" -}}
encryption:
  mode: {{ .mode }}
  {{- with .maxAge }}
  max_age: {{ . }}
  {{- end }}
  {{- with .maxAgeInOutage }}
  max_age_in_outage: {{ . }}
  {{- end }}
  {{- with .renewAfter }}
  renew_after: {{ . }}
  {{- end }}
  {{- with .renewAfterUses }}
  renew_after_uses: {{ int64 . }}
  {{- end }}
{{- end -}}
