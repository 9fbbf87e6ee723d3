# A static pod without an agent: transit-kms logs in itself. kubelet starts it without an API server, so a node can
# boot alone. A static pod cannot use a Secret, a ConfigMap or a service account, and this one does not need them.
#
# First put these files on the node, with owner root and mode 0600:
#   /etc/transit-kms/config.yaml    a file of this directory, such as approle.yaml
#   /etc/transit-kms/role_id, ...   the credentials that config.yaml names
#   /etc/transit-kms/ca/ca.pem      the CA certificate of Vault
# Then copy this file to /etc/kubernetes/manifests/transit-kms.yaml. transit-kms uses changed files without a restart.
#
# kubelet stops the old pod before it starts a new one: change this file on one node at a time.
{{ include "manifests.loginPod" (list . (include "manifests.loginPod.volumes" .) false) }}
