{{- $context := include "manifests.context" (list . (include "manifests.vault" .)) | fromJson -}}
{{- $applied := include "manifests.context" (list . (printf "%s\n%s" (include "manifests.vault" .) `
agent: {config: {source: configMap, configMapName: transit-kms-agent}}
`)) | fromJson -}}
# The chart's DaemonSet, for those who do without Helm: kubectl apply -f daemonset.yaml
#
# Put Vault's address into the ConfigMap; on each control-plane node have role_id and secret_id in /etc/transit-kms, of
# root and with mode 0600, and the authority of Vault's certificate in /etc/transit-kms/ca/ca.pem.
# The agent reads its ConfigMap at its start only: kubectl -n kube-system rollout restart daemonset/transit-kms
#
# A node that boots has no pod of it until kubelet has reached an API server that serves: see static-pod.yaml.
{{ tpl (.Files.Get "chart/serviceaccount.yaml") $context | trim }}
---
{{ tpl (.Files.Get "chart/configmap.yaml") $context | trim }}
---
{{ tpl (.Files.Get "chart/daemonset.yaml") $applied | trim }}
