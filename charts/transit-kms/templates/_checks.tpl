{{/* Checks that the schema cannot express, or not with an error message that says what to do. */}}
{{- define "transit-kms.checks" -}}
{{- $values := .Values -}}
{{- $auth := $values.agent.auth -}}
{{- if and $values.agent.enabled $auth.secret.name (not $auth.secret.acceptDeadlock) -}}
{{- fail "agent.auth.secret.name: kube-apiserver encrypts Secrets through transit-kms, so a node that boots could not start the pod. Put the files into agent.auth.hostDirectory on each node. If this Secret can be read without transit-kms, set agent.auth.secret.acceptDeadlock=true" -}}
{{- end -}}
{{- if and $values.vault.tls.ca $values.vault.tls.caHostPath -}}
{{- fail "vault.tls.ca and vault.tls.caHostPath: set only one of them" -}}
{{- end -}}
{{- $sensitive := list $auth.hostDirectory $values.agent.config.hostDirectory "/etc/kubernetes/pki" -}}
{{- if and $values.vault.tls.caHostPath (has (dir $values.vault.tls.caHostPath) $sensitive) -}}
{{- fail (printf "vault.tls.caHostPath: the chart would mount the whole directory %s, which contains more than certificates; use a separate directory, such as /etc/transit-kms/ca/ca.pem" (dir $values.vault.tls.caHostPath)) -}}
{{- end -}}
{{- if contains "PRIVATE KEY" ($values.vault.tls.ca | default "") -}}
{{- fail "vault.tls.ca contains a private key, and the DaemonSet would contain it too: remove everything except the certificates" -}}
{{- end -}}
{{- if and $values.podMonitor.enabled (or (hasPrefix "127." $values.metrics.bindAddress) (eq $values.metrics.bindAddress "::1")) -}}
{{- fail (printf "podMonitor.enabled: Prometheus cannot reach metrics.bindAddress %s from outside the node; set it to podIP, or to an address that Prometheus can reach" $values.metrics.bindAddress) -}}
{{- end -}}
{{- $flags := dict "config" "config" "listen" "socket.hostDirectory" "takeover" "updateStrategy" "socket-mode" "socket.mode"
  "socket-group" "socket.group" "allow-uid" "socket.allowUids" "shutdown-grace" "shutdownGraceSeconds"
  "log-level" "log.level" "log-format" "log.format" "allow-http" "vault.allowHttp" -}}
{{- range $values.extraArgs -}}
{{- $flag := . | trimPrefix "--" | splitList "=" | first -}}
{{- with get $flags $flag -}}
{{- fail (printf "extraArgs: do not set --%s here; use the value %s" $flag .) -}}
{{- end -}}
{{- end -}}
{{- range concat ($values.extraEnv | default list) ($values.agent.extraEnv | default list) -}}
{{- if has .name (list "VAULT_TOKEN" "BAO_TOKEN") -}}
{{- fail (printf "%s: values must not contain a token; configure the agent's login with agent.auth" .name) -}}
{{- end -}}
{{- end -}}
{{- range $label := list "name" "instance" "component" -}}
{{- $key := printf "app.kubernetes.io/%s" $label -}}
{{- if or (hasKey ($values.podLabels | default dict) $key) (hasKey ($values.commonLabels | default dict) $key) -}}
{{- fail (printf "podLabels, commonLabels: the DaemonSet's selector uses %s; to change it for a new release, set nameOverride" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
