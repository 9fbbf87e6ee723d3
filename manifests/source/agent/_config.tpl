{{/* What stands in for the values of an installation: a Vault, and where on a node things are. */}}
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
  {{- /* Only a pod has a service account's token, and this is where the chart puts it. */}}
  tokenFile: {{ eq .method "kubernetes" | ternary "/run/transit-kms-credentials/token" "/etc/transit-kms/token" }}
{{- /* In a directory of its own: the daemon is given that, and not the credentials. */}}
caFile: /etc/transit-kms/ca/ca.pem
templateFile: /etc/transit-kms/config.yaml.ctmpl
destination: /run/transit-kms-config/config.yaml
{{- end -}}

{{/* Of a dict with kind and method. */}}
{{- define "manifests.agent.hcl" -}}
{{- include "transit-kms.agent.hcl" (merge (dict "kind" .kind) (include "manifests.agent.facts" . | fromYaml)) -}}
{{- end -}}
