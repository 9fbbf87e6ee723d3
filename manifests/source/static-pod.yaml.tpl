{{- $values := printf "%s\n%s" (include "manifests.vault" .) `
agent: {config: {source: host}}
affinity: null
tolerations: null
` -}}
{{- $context := include "manifests.context" (list . $values) | fromJson -}}
# A static pod for each control-plane node: kubelet starts it without an API server, so a node boots by itself.
# It needs nothing of the cluster; it could not even have it: no Secret, ConfigMap or service account.
#
# On the node, first:
#   /etc/transit-kms/agent.hcl            one of agent/openbao/ or agent/vault/
#   /etc/transit-kms/config.yaml.ctmpl    agent/config.yaml.ctmpl
#   /etc/transit-kms/role_id, secret_id   or what else agent.hcl names; all of root, mode 0600
#   /etc/transit-kms/ca/ca.pem            the authority of Vault's certificate
# then this file, last, as /etc/kubernetes/manifests/transit-kms.yaml.
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
  # As a number, too: no API server has looked the name up when this starts.
  priority: 2000001000
  {{- include "transit-kms.podSpec" $context | nindent 2 }}
