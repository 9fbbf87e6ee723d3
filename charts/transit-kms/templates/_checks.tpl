{{/* Checks that the schema cannot express, or not with an error message that says what to do. */}}
{{- define "transit-kms.checks" -}}
{{- $values := .Values -}}
{{- $auth := $values.agent.auth -}}
{{- if and $values.agent.enabled $auth.secret.name (not $auth.secret.acceptDeadlock) -}}
{{- fail "agent.auth.secret.name: kube-apiserver encrypts Secrets through transit-kms, so a node that boots could not start the pod. Put the files into agent.auth.hostDirectory on each node. If this Secret can be read without transit-kms, set agent.auth.secret.acceptDeadlock=true" -}}
{{- end -}}
{{- include "transit-kms.checks.login" . -}}
{{- if and $values.vault.tls.ca $values.vault.tls.caHostPath -}}
{{- fail "vault.tls.ca and vault.tls.caHostPath: set only one of them" -}}
{{- end -}}
{{- $sensitive := list $auth.hostDirectory $values.agent.config.hostDirectory $values.auth.hostDirectory $values.auth.stateHostDirectory "/etc/kubernetes/pki" -}}
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
{{- fail (printf "%s: values must not contain a token; configure the agent's login with agent.auth, or a login of transit-kms with auth" .name) -}}
{{- end -}}
{{- end -}}
{{- range $label := list "name" "instance" "component" -}}
{{- $key := printf "app.kubernetes.io/%s" $label -}}
{{- if or (hasKey ($values.podLabels | default dict) $key) (hasKey ($values.commonLabels | default dict) $key) -}}
{{- fail (printf "podLabels, commonLabels: the DaemonSet's selector uses %s; to change it for a new release, set nameOverride" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Checks of the daemon's own login. */}}
{{- define "transit-kms.checks.login" -}}
{{- $auth := .Values.auth -}}
{{- if and .Values.agent.enabled $auth.method -}}
{{- fail "auth.method: transit-kms logs in itself only without the agent. Set agent.enabled=false, or set the agent's login method with agent.auth.method and leave auth.method empty" -}}
{{- end -}}
{{- if and $auth.method .Values.config.volume -}}
{{- fail "config.volume: with auth.method, the chart generates the config file. Leave one of them empty" -}}
{{- end -}}
{{- if include "transit-kms.login" . -}}
{{- if and $auth.secret.name (not $auth.secret.acceptDeadlock) -}}
{{- fail "auth.secret.name: kube-apiserver encrypts Secrets through transit-kms, so a node that boots could not start the pod. Put the files into auth.hostDirectory on each node. If this Secret can be read without transit-kms, set auth.secret.acceptDeadlock=true" -}}
{{- end -}}
{{- if and $auth.secret.name (not (has $auth.method (list "approle" "cert" "userpass"))) -}}
{{- fail (printf "auth.secret.name: the method %s has no files that a Secret could contain" $auth.method) -}}
{{- end -}}
{{- if and (eq $auth.method "agent") .Values.vault.addresses -}}
{{- fail "vault.addresses: with auth.method=agent, transit-kms sends its requests to auth.agentSocket only. Leave vault.addresses empty, and set the address in the agent's own configuration" -}}
{{- end -}}
{{- if and $auth.mount (has $auth.method (list "agent" "token_file")) -}}
{{- fail (printf "auth.mount: the method %s does not log in, so it has no mount; leave it empty" $auth.method) -}}
{{- end -}}
{{- if and $auth.namespace (eq $auth.method "agent") -}}
{{- fail "auth.namespace: with auth.method=agent, the agent logs in; set the namespace in its own configuration" -}}
{{- end -}}
{{- if and $auth.inline (not (has $auth.method (list "approle" "jwt" "kubernetes" "userpass"))) -}}
{{- fail (printf "auth.inline: not possible with auth.method=%s, only with approle, jwt, kubernetes or userpass" $auth.method) -}}
{{- end -}}
{{- if and $auth.inline (ne $auth.delivery "plain") -}}
{{- fail (printf "auth.inline: each request contains the credentials, and auth.delivery=%s works only once. Use plain" $auth.delivery) -}}
{{- end -}}
{{- $svid := has $auth.method (list "cert" "jwt" "spiffe") -}}
{{- if and $auth.workloadApi.source (not $svid) -}}
{{- fail (printf "auth.workloadApi.source: only for the methods cert, jwt and spiffe, not for %s" $auth.method) -}}
{{- end -}}
{{- if and $auth.workloadApi.source $auth.jwtFile -}}
{{- fail "auth.jwtFile and auth.workloadApi.source: set only one of them" -}}
{{- end -}}
{{- if and $auth.trustDomains (or (not $svid) $auth.mount) -}}
{{- fail "auth.trustDomains: only for the methods cert, jwt and spiffe, and instead of auth.mount" -}}
{{- end -}}
{{- if and (ne $auth.delivery "plain") (not (has $auth.method (list "approle" "token_file"))) -}}
{{- fail (printf "auth.delivery: the method %s has only plain files; leave it at plain" $auth.method) -}}
{{- end -}}
{{- if and (eq $auth.method "aws") (eq $auth.aws.type "ec2") (or $auth.aws.region $auth.aws.iamServerIdHeaderValue) -}}
{{- fail "auth.aws.region, auth.aws.iamServerIdHeaderValue: only for auth.aws.type=iam" -}}
{{- end -}}
{{- if hasPrefix (printf "%s/" $auth.hostDirectory) (printf "%s/" $auth.stateHostDirectory) -}}
{{- fail "auth.stateHostDirectory: must not be in auth.hostDirectory, which is mounted read-only" -}}
{{- end -}}
{{- end -}}
{{- end -}}
