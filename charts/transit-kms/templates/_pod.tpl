{{/* The pod without its metadata. */}}
{{- define "transit-kms.podSpec" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- include "transit-kms.pullSecrets" . }}
hostNetwork: {{ .Values.hostNetwork }}
dnsPolicy: {{ .Values.dnsPolicy }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
terminationGracePeriodSeconds: {{ add (int .Values.shutdownGraceSeconds) 20 }}
securityContext:
  {{- include "transit-kms.podSecurityContext" . | nindent 2 }}
{{- include "transit-kms.placement" . }}
{{- if .Values.agent.enabled }}
initContainers:
  - {{ include "transit-kms.container.agent" . | indent 4 | trim }}
{{- else if include "transit-kms.login.sealed" . }}
initContainers:
  - {{ include "transit-kms.container.keygen" . | indent 4 | trim }}
{{- end }}
containers:
  - {{ include "transit-kms.container.daemon" . | indent 4 | trim }}
  {{- with .Values.extraContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumes:
  - {{ include "transit-kms.volume.socket" . | indent 4 | trim }}
  {{- include "transit-kms.volumes" . | nindent 2 }}
{{- end -}}

{{/* Root without capabilities: the directory of the socket on the host belongs to root. */}}
{{- define "transit-kms.podSecurityContext" -}}
runAsUser: 0
runAsGroup: 0
runAsNonRoot: false
seccompProfile: {type: RuntimeDefault}
{{- with .Values.socket.group }}
# Without capabilities, a process can give a file only to a group that it is a member of.
supplementalGroups: [{{ int64 . }}]
{{- end }}
{{- with .Values.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The nodes that the pod can run on. */}}
{{- define "transit-kms.placement" -}}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "transit-kms.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}
