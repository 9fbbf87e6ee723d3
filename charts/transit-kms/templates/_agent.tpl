{{/*
The agent's two files. Both take one dict: kind, vault, encryption, auth, templateFile, destination, caFile.
`auth` has method, mount, role, and the paths that the method needs: roleIdFile and secretIdFile, certFile and keyFile,
or tokenFile.
*/}}

{{- define "transit-kms.agent.hcl" -}}
{{- $auth := .auth -}}
{{- $openbao := eq .kind "openbao" -}}
{{- /* A client certificate in the method's own block is read anew at each login, but that block knows no server name. */ -}}
{{- $reload := and (eq $auth.method "cert") (not .vault.tls.serverName) -}}
# Run with: {{ $openbao | ternary "bao" "vault" }} agent -config=agent.hcl
# Never with exit_after_auth: the token must be renewed and rendered anew.
{{- if $openbao }}
# A token that is revoked is noticed at its next renewal, after two thirds of its life: give the role a short
# token_ttl.
{{- end }}

vault {
  # An agent knows one address only. Where it may be the one that is away, name a load balancer, or a DNS name of
  # all nodes.
  address = {{ first .vault.addresses | quote }}
  {{- with .caFile }}
  ca_cert = {{ . | quote }}
  {{- end }}
  {{- with .vault.tls.serverName }}
  tls_server_name = {{ . | quote }}
  {{- end }}
  {{- if and (eq $auth.method "cert") (not $reload) }}
  # Here and not below, because only here a server name can be said. They are read once: restart the agent for new ones.
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
    # A login is tried for ever; by default with up to five minutes in between.
    exit_on_err = false
    min_backoff = "1s"
    max_backoff = "30s"

    config = {
      {{- if eq $auth.method "approle" }}
      role_id_file_path = {{ $auth.roleIdFile | quote }}
      secret_id_file_path = {{ $auth.secretIdFile | quote }}
      # By default it would work once, and not after a restart. Give it secret_id_num_uses=0, too.
      remove_secret_id_file_after_reading = false
      {{- else if eq $auth.method "kubernetes" }}
      # Vault has the API server review this token: while that one waits for us, nobody gets in. For another
      # cluster's.
      role = {{ $auth.role | quote }}
      token_path = {{ $auth.tokenFile | quote }}
      {{- else if eq $auth.method "jwt" }}
      role = {{ $auth.role | quote }}
      path = {{ $auth.tokenFile | quote }}
      # By default it would work once, and not after a restart.
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
      # Read at each login, so that a new certificate needs no restart.
      reload = true
      {{- end }}
      {{- else }}
      {{- fail (printf "agent.auth.method %q is not approle, cert, jwt or kubernetes" $auth.method) }}
      {{- end }}
    }
  }
}

template_config {
  # What cannot be rendered is tried for ever.
  exit_on_retry_failure = false
  {{- if not $openbao }}
  # How often the token is looked at. If it has been revoked, the agent logs in again: from Vault 1.17 on.
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
  # The agent's own token.
  token: '{{ `{{ with secret "auth/token/lookup-self" }}{{ .Data.id }}{{ end }}` }}'
{{- with .encryption }}
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
{{- end }}
{{- end -}}
