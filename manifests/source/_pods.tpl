{{/*
The root context with other values, as JSON, for `fromJson`. Takes a list: the root context, and the values in YAML. Helm
is not who installs what is made of it.
*/}}
{{- define "manifests.context" -}}
{{- $root := first . -}}
{{- $values := mergeOverwrite (deepCopy $root.Values) (last . | fromYaml) -}}
{{- dict
  "Values" $values
  "Chart" (dict "Name" $root.Chart.Name "Version" $root.Chart.Version "AppVersion" $root.Chart.AppVersion)
  "Release" (dict "Name" "transit-kms" "Namespace" "kube-system" "Service" "")
  | toJson -}}
{{- end -}}

{{/* What stands in for an installation's values. */}}
{{- define "manifests.vault" -}}
vault:
  addresses: [https://vault.example.com:8200]
  tls: {caHostPath: /etc/transit-kms/ca/ca.pem}
{{- end -}}
