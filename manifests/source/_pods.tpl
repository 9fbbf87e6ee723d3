{{/*
The root context with changed values, as JSON for `fromJson`. Takes a list: the root context, and the values in YAML.
Release.Service is empty, because Helm does not install these manifests.
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

{{/* Example values for an installation. */}}
{{- define "manifests.vault" -}}
vault:
  addresses: [https://vault.example.com:8200]
  tls: {caHostPath: /etc/transit-kms/ca/ca.pem}
{{- end -}}
