{{- $context := include "manifests.context" (list . (include "manifests.vault" .)) | fromJson -}}
# The chart's DaemonSet, for an installation without Helm: kubectl apply -f daemonset.yaml
#
# First set Vault's address in the two files, which are annotations of the pod. On each control-plane node, put role_id
# and secret_id into /etc/transit-kms (owner root, mode 0600), and Vault's CA certificate into
# /etc/transit-kms/ca/ca.pem. If you change the two files and apply this file again, the DaemonSet replaces the pods.
#
# When a node boots, its kubelet must reach a working API server before it can start the pod. static-pod.yaml does not
# have this limitation.
{{ tpl (.Files.Get "chart/serviceaccount.yaml") $context | trim }}
---
{{ tpl (.Files.Get "chart/daemonset.yaml") $context | trim }}
