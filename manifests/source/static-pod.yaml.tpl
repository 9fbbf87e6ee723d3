{{- $values := printf "%s\n%s" (include "manifests.vault" .) `
agent: {config: {source: host}}
affinity: null
tolerations: null
` -}}
{{- $context := include "manifests.context" (list . $values) | fromJson -}}
# A static pod for each control-plane node. kubelet starts it without an API server, so a node can boot alone.
# A static pod cannot use a Secret, a ConfigMap or a service account, and this one does not need them.
#
# First put these files on the node:
#   /etc/transit-kms/agent.hcl            a file from agent/openbao/ or agent/vault/
#   /etc/transit-kms/config.yaml.ctmpl    agent/config.yaml.ctmpl
#   /etc/transit-kms/role_id, secret_id   or other credentials that your agent.hcl names; owner root, mode 0600
#   /etc/transit-kms/ca/ca.pem            the CA certificate of Vault
# Then copy this file to /etc/kubernetes/manifests/transit-kms.yaml.
#
# kubelet stops the old pod before it starts a new one: change this file on one node at a time.
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
  {{- include "transit-kms.podSpec" $context | nindent 2 }}
