{{/* Names and labels. */}}

{{- define "transit-kms.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 52 characters, because other names append a suffix to it. */}}
{{- define "transit-kms.fullname" -}}
{{- $name := include "transit-kms.name" . -}}
{{- $made := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- .Values.fullnameOverride | default $made | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/* Do not change these labels: the selector of a DaemonSet is immutable. */}}
{{- define "transit-kms.selectorLabels" -}}
app.kubernetes.io/name: {{ include "transit-kms.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: kms-provider
{{- end -}}

{{- define "transit-kms.labels" -}}
{{- with .Values.commonLabels }}{{ toYaml . }}{{ "\n" }}{{ end -}}
{{ include "transit-kms.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- if eq .Release.Service "Helm" }}
app.kubernetes.io/managed-by: Helm
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end -}}

{{- define "transit-kms.serviceAccountName" -}}
{{- $made := .Values.serviceAccount.create | ternary (include "transit-kms.fullname" .) "default" -}}
{{- .Values.serviceAccount.name | default $made -}}
{{- end -}}

{{- define "transit-kms.daemonImage" -}}
{{- $image := .Values.image -}}
{{- $tag := $image.tag | default .Chart.AppVersion -}}
{{- include "transit-kms.image" (dict "repository" $image.repository "tag" $tag "digest" $image.digest) -}}
{{- end -}}

{{/* Takes a dict: repository, tag, digest. */}}
{{- define "transit-kms.image" -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag }}
{{- end -}}
{{- end -}}

{{/*
Takes the weight of the hook. Helm deletes a successful hook when all hooks have succeeded or a later one has failed.
Therefore, only a failed Job remains.
*/}}
{{- define "transit-kms.guardAnnotations" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
