{{/* What the schema cannot say so that the next step is clear. */}}
{{- define "transit-kms.checks" -}}
{{- $values := .Values -}}
{{- $auth := $values.agent.auth -}}
{{- if and $values.agent.enabled $auth.secret.name (not $auth.secret.acceptDeadlock) -}}
{{- fail "agent.auth.secret.name: kube-apiserver encrypts Secrets through this daemon, so a node that boots could not start it. Put the files into agent.auth.hostDirectory on each node; or, if this Secret can be read without this daemon, set agent.auth.secret.acceptDeadlock=true" -}}
{{- end -}}
{{- if and $values.vault.tls.ca $values.vault.tls.caHostPath -}}
{{- fail "vault.tls.ca and vault.tls.caHostPath: set one of them" -}}
{{- end -}}
{{- $ours := list $auth.hostDirectory $values.agent.config.hostDirectory "/etc/kubernetes/pki" -}}
{{- if and $values.vault.tls.caHostPath (has (dir $values.vault.tls.caHostPath) $ours) -}}
{{- fail (printf "vault.tls.caHostPath: the daemon would be given all of %s, which holds more than certificates; use a directory of its own, such as /etc/transit-kms/ca/ca.pem" (dir $values.vault.tls.caHostPath)) -}}
{{- end -}}
{{- if contains "PRIVATE KEY" ($values.vault.tls.ca | default "") -}}
{{- fail "vault.tls.ca has a private key in it, and would stand in the DaemonSet: leave nothing but certificates" -}}
{{- end -}}
{{- if and $values.podMonitor.enabled (or (hasPrefix "127." $values.metrics.bindAddress) (eq $values.metrics.bindAddress "::1")) -}}
{{- fail (printf "podMonitor.enabled: nobody reaches metrics.bindAddress %s from outside of the node; set it to podIP, or to an address that Prometheus reaches" $values.metrics.bindAddress) -}}
{{- end -}}
{{- $flags := dict "config" "config" "listen" "socket.hostDirectory" "takeover" "updateStrategy" "socket-mode" "socket.mode"
  "socket-group" "socket.group" "allow-uid" "socket.allowUids" "shutdown-grace" "shutdownGraceSeconds"
  "log-level" "log.level" "log-format" "log.format" "allow-http" "vault.allowHttp" -}}
{{- range $values.extraArgs -}}
{{- $flag := . | trimPrefix "--" | splitList "=" | first -}}
{{- with get $flags $flag -}}
{{- fail (printf "extraArgs: --%s is what %s is for" $flag .) -}}
{{- end -}}
{{- end -}}
{{- range concat ($values.extraEnv | default list) ($values.agent.extraEnv | default list) -}}
{{- if has .name (list "VAULT_TOKEN" "BAO_TOKEN") -}}
{{- fail (printf "%s: no token in values; the agent logs in by agent.auth" .name) -}}
{{- end -}}
{{- end -}}
{{- range $label := list "name" "instance" "component" -}}
{{- $key := printf "app.kubernetes.io/%s" $label -}}
{{- if or (hasKey ($values.podLabels | default dict) $key) (hasKey ($values.commonLabels | default dict) $key) -}}
{{- fail (printf "podLabels, commonLabels: %s is what the DaemonSet finds its pods by; nameOverride changes it for a new release" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
