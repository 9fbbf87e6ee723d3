{{/* Example values for an installation: the address of Vault, and paths on a node. */}}
{{- define "manifests.agent.facts" -}}
vault:
  addresses: [https://vault.example.com:8200]
  transitPath: transit
  keyNames: [kms]
  namespace: ""
  tls: {serverName: ""}
auth:
  method: {{ .method }}
  role: transit-kms
  roleIdFile: /etc/transit-kms/role_id
  secretIdFile: /etc/transit-kms/secret_id
  certFile: /etc/transit-kms/client.pem
  keyFile: /etc/transit-kms/client-key.pem
  {{- /* Only a pod has a service account token. The chart mounts it at this path. */}}
  tokenFile: {{ eq .method "kubernetes" | ternary "/run/transit-kms-credentials/token" "/etc/transit-kms/token" }}
{{- /* In a separate directory, because the daemon mounts it and must not see the credentials. */}}
caFile: /etc/transit-kms/ca/ca.pem
templateFile: /etc/transit-kms/config.yaml.ctmpl
destination: /run/transit-kms-config/config.yaml
{{- end -}}

{{/* Takes a dict: kind, method. */}}
{{- define "manifests.agent.hcl" -}}
{{- include "transit-kms.agent.hcl" (merge (dict "kind" .kind) (include "manifests.agent.facts" . | fromYaml)) -}}
{{- end -}}
