{{/* The config file for a login without an agent. Takes a list: the root context, a comment, and the value `auth`. */}}
{{- define "manifests.login" -}}
{{- $values := printf "%s\nagent: {enabled: false}\nencryption: null\nauth: %s" (include "manifests.vault" (first .)) (last .) -}}
{{- $context := include "manifests.context" (list (first .) $values) | fromJson -}}
# {{ index . 1 }}
# Install it as /etc/transit-kms/config.yaml. It contains no secret. docs/auth describes the settings.
{{ include "transit-kms.login.config" $context }}
{{- end -}}

{{/*
A static pod without an agent. Takes a list: the root context, more volumes and mounts in YAML, and whether the pod makes
the key of the node.
*/}}
{{- define "manifests.loginPod" -}}
{{- $values := printf "%s\n%s" `
agent: {enabled: false}
config: {hostDirectory: /etc/transit-kms}
affinity: null
tolerations: null
auth: {method: "", delivery: sealed}
` (index . 1) -}}
{{- $context := include "manifests.context" (list (first .) $values) | fromJson -}}
{{- $spec := include "transit-kms.podSpec" $context -}}
{{- if last . -}}
{{- $keygen := include "transit-kms.container.keygen" $context | indent 4 | trim -}}
{{- $spec = $spec | replace "\ncontainers:\n" (printf "\ninitContainers:\n  - %s\ncontainers:\n" $keygen) -}}
{{- end -}}
apiVersion: v1
kind: Pod
metadata:
  name: transit-kms
  namespace: kube-system
  labels:
    {{- include "transit-kms.labels" $context | nindent 4 }}
spec:
  # The numeric priority is required too, because no API server resolves priorityClassName for a static pod.
  priority: 2000001000
  {{- $spec | nindent 2 }}
{{- end -}}

{{- define "manifests.loginPod.volumes" -}}
extraVolumes:
  - name: state
    hostPath: {path: /var/lib/transit-kms, type: DirectoryOrCreate}
extraVolumeMounts:
  # The paths in the config file are those of the node.
  - {name: config, mountPath: /etc/transit-kms, readOnly: true}
  - {name: state, mountPath: /var/lib/transit-kms}
{{- end -}}
