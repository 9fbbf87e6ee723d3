# A static pod without an agent, for sealed secret_ids: its init container makes the key of the node. kubelet starts it
# without an API server, so a node can boot alone. A static pod cannot use a Secret, a ConfigMap or a service account,
# and this one does not need them.
#
# First put these files on the node, with owner root and mode 0600:
#   /etc/transit-kms/config.yaml    approle-sealed.yaml
#   /etc/transit-kms/role_id, sealed_secret_id
#   /etc/transit-kms/ca/ca.pem      the CA certificate of Vault
# Then copy this file to /etc/kubernetes/manifests/transit-kms.yaml. transit-kms uses changed files without a restart.
#
# kubelet stops the old pod before it starts a new one: change this file on one node at a time.
#
# The public key is in the log of the container `keygen`, and on the node: crictl logs, or transit-kms keygen.
{{ include "manifests.loginPod" (list . (include "manifests.loginPod.volumes" .) true) }}
