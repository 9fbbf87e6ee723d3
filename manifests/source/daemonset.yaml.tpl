{{- $context := include "manifests.context" (list . (include "manifests.vault" .)) | fromJson -}}
# The chart's DaemonSet, for those who do without Helm: kubectl apply -f daemonset.yaml
#
# Put Vault's address into the two files, which are annotations of the pod; on each control-plane node have role_id and
# secret_id in /etc/transit-kms, of root and with mode 0600, and the authority of Vault's certificate in
# /etc/transit-kms/ca/ca.pem. Applied again with another file, the pods are rolled.
#
# A node that boots has no pod of it until kubelet has reached an API server that serves: see static-pod.yaml.
{{ tpl (.Files.Get "chart/serviceaccount.yaml") $context | trim }}
---
{{ tpl (.Files.Get "chart/daemonset.yaml") $context | trim }}
