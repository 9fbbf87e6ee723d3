# A static pod without an agent, for SVIDs of the SPIFFE Workload API. kubelet starts it without an API server, so a
# node can boot alone. A static pod cannot use a Secret, a ConfigMap or a service account, and this one does not need
# them.
#
# First put these files on the node, with owner root and mode 0600:
#   /etc/transit-kms/config.yaml    jwt-workload-api.yaml or cert-workload-api.yaml
#   /etc/transit-kms/ca/ca.pem      the CA certificate of Vault
# Then copy this file to /etc/kubernetes/manifests/transit-kms.yaml. transit-kms uses changed files without a restart.
#
# kubelet stops the old pod before it starts a new one: change this file on one node at a time.
#
# The SPIFFE agent must not need this cluster to start. Its directory must stay the same when it restarts, because the pod
# mounts it (systemd: RuntimeDirectoryPreserve=yes).
{{ include "manifests.loginPod" (list . `
extraVolumes:
  - name: workload-api
    hostPath: {path: /run/spire/agent/public, type: DirectoryOrCreate}
extraVolumeMounts:
  # The paths in the config file are those of the node.
  - {name: config, mountPath: /etc/transit-kms, readOnly: true}
  - {name: workload-api, mountPath: /run/spire/agent/public, readOnly: true}
` false) }}
