{{/* The containers of the daemon and of the agent. Each template takes the root context. */}}

{{/* No capabilities: all files that the daemon and the agent use belong to the uid that they run as. */}}
{{- define "transit-kms.containerSecurityContext" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
privileged: false
readOnlyRootFilesystem: true
{{- end -}}

{{- define "transit-kms.container.daemon" -}}
name: transit-kms
image: {{ include "transit-kms.daemonImage" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args:
  - serve
  - --config=/run/transit-kms-config/{{ or .Values.agent.enabled (eq (include "transit-kms.login" .) "yes") | ternary "config.yaml" .Values.config.file }}
  - --listen=unix:///run/transit-kms/kms.sock
  - --takeover
  # For kubelet's probes, in a directory of this pod: on the TCP port, the pod's predecessor may answer.
  - --admin-listen=unix:///run/transit-kms-admin/admin.sock
  - --admin-listen={{ include "transit-kms.metricsAddress" . }}
  - --socket-mode={{ .Values.socket.mode }}
  {{- with .Values.socket.group }}
  - --socket-group={{ int64 . }}
  {{- end }}
  {{- if .Values.socket.allowUids }}
  - --allow-uid=0
  {{- range .Values.socket.allowUids }}
  - --allow-uid={{ int64 . }}
  {{- end }}
  {{- end }}
  - --shutdown-grace={{ int .Values.shutdownGraceSeconds }}s
  - --log-level={{ .Values.log.level }}
  - --log-format={{ .Values.log.format }}
  {{- if .Values.vault.allowHttp }}
  - --allow-http
  {{- end }}
  {{- with .Values.extraArgs }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $podIP := eq .Values.metrics.bindAddress "podIP" }}
{{- if or $podIP .Values.extraEnv }}
env:
  {{- if $podIP }}
  - name: POD_IP
    valueFrom: {fieldRef: {fieldPath: status.podIP}}
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
livenessProbe:
  exec: {command: [/transit-kms, probe, live, --admin, unix:///run/transit-kms-admin/admin.sock]}
  {{- toYaml .Values.livenessProbe | nindent 2 }}
{{- with .Values.readinessProbe }}
readinessProbe:
  exec: {command: [/transit-kms, probe, ready, --admin, unix:///run/transit-kms-admin/admin.sock]}
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "transit-kms.containerSecurityContext" . | nindent 2 }}
terminationMessagePolicy: FallbackToLogsOnError
volumeMounts:
  - {name: socket, mountPath: /run/transit-kms}
  - {name: config, mountPath: /run/transit-kms-config, readOnly: true}
  - {name: admin, mountPath: /run/transit-kms-admin}
  {{- if include "transit-kms.login" . }}
  {{- with include "transit-kms.login.mounts" . | trim }}
  {{- nindent 2 . }}
  {{- end }}
  {{- end }}
  {{- with include "transit-kms.caMount" . }}
  {{- nindent 2 . }}
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/*
A sidecar container, that is, an init container with restartPolicy Always: it starts before the daemon, can restart
alone, and stops after the daemon.
*/}}
{{- define "transit-kms.container.agent" -}}
{{- $agent := .Values.agent -}}
{{- $openbao := eq $agent.kind "openbao" -}}
name: agent
restartPolicy: Always
{{- $repository := $agent.image.repository | default ($openbao | ternary "quay.io/openbao/openbao" "docker.io/hashicorp/vault") }}
{{- $tag := $agent.image.tag | default "2.7.2" }}
image: {{ include "transit-kms.image" (dict "repository" $repository "tag" $tag "digest" $agent.image.digest) | quote }}
imagePullPolicy: {{ $agent.image.pullPolicy }}
command: {{ $agent.command | default (list ($openbao | ternary "bao" "vault")) | toJson }}
args:
  - agent
  - -config={{ include "transit-kms.agentConfigDirectory" . }}/agent.hcl
  {{- with $agent.extraArgs }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $agent.extraEnv }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $agent.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "transit-kms.containerSecurityContext" . | nindent 2 }}
terminationMessagePolicy: FallbackToLogsOnError
volumeMounts:
  - {name: config, mountPath: /run/transit-kms-config}
  {{- $directory := include "transit-kms.agentConfigDirectory" . }}
  - {name: agent, mountPath: {{ $directory }}, readOnly: true}
  {{- $credentials := include "transit-kms.credentialsDirectory" . }}
  {{- if and $credentials (ne $credentials $directory) }}
  - {name: credentials, mountPath: {{ $credentials }}, readOnly: true}
  {{- end }}
  {{- with include "transit-kms.caMount" . }}
  {{- nindent 2 . }}
  {{- end }}
  {{- with $agent.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* The TCP address of the daemon's admin endpoints, for operators and Prometheus. */}}
{{- define "transit-kms.metricsAddress" -}}
{{- $address := .Values.metrics.bindAddress -}}
{{- if eq $address "podIP" -}}
$(POD_IP):{{ int .Values.metrics.port }}
{{- else if contains ":" $address -}}
[{{ $address }}]:{{ int .Values.metrics.port }}
{{- else -}}
{{ $address }}:{{ int .Values.metrics.port }}
{{- end -}}
{{- end -}}
