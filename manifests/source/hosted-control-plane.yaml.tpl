{{- $context := include "manifests.context" (list . (printf "%s\n%s" (include "manifests.vault" .) `
agent: {auth: {method: jwt, role: transit-kms}}
metrics: {bindAddress: podIP}
readinessProbe: null
`)) | fromJson -}}
{{- $_ := set $context.Release "Namespace" "tenant" -}}
{{- $_ := set $context.Values.vault.tls "caHostPath" "" -}}
{{- $_ := set $context.Values.vault.tls "ca" "(the CA certificate of Vault)" -}}
# Example for a hosted control plane: its API server is a Deployment in the managing cluster, and transit-kms and the
# agent run as sidecars. Copy these parts into your own Deployment: the two init containers, the volumes, and the
# settings of the kube-apiserver container.
#
# The agent logs in with a service account token of the managing cluster. That cluster's API server does not wait for
# this transit-kms, so the advice for nodes that boot does not apply. Create a role for the login method `jwt` in Vault:
#   bound_audiences=transit-kms  bound_subject=system:serviceaccount:tenant:kube-apiserver
apiVersion: v1
kind: ConfigMap
metadata:
  name: kube-apiserver-encryption
  namespace: tenant
data:
  encryption.yaml: |
    apiVersion: apiserver.config.k8s.io/v1
    kind: EncryptionConfiguration
    resources:
      - resources: [secrets]
        providers:
          - kms: {apiVersion: v2, name: transit, endpoint: "unix:///run/transit-kms/kms.sock", timeout: 3s}
          - identity: {}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: kube-apiserver
  namespace: tenant
automountServiceAccountToken: false
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: kube-apiserver
  namespace: tenant
spec:
  replicas: 2
  selector:
    matchLabels: {app: kube-apiserver}
  template:
    metadata:
      labels: {app: kube-apiserver}
      annotations:
        # Files of the pod, which the sidecars mount.
        {{- regexReplaceAll "(?m)^ +$" (include "transit-kms.files" $context | trim | nindent 8) "" }}
    spec:
      serviceAccountName: kube-apiserver
      automountServiceAccountToken: false
      securityContext:
        # All three containers use the same uid, which owns the token and the socket.
        runAsUser: 65532
        runAsGroup: 65532
        runAsNonRoot: true
        seccompProfile: {type: RuntimeDefault}
      terminationGracePeriodSeconds: 60
      initContainers:
        - {{ include "transit-kms.container.agent" $context | indent 10 | trim }}
        # A sidecar, too: it starts before kube-apiserver and stops after it. It has no readiness probe, because the pod
        # would not be ready while Vault is unavailable, although most requests to the API server still succeed.
        - {{ include "transit-kms.container.daemon" $context | indent 10 | trim }}
          restartPolicy: Always
      containers:
        - name: kube-apiserver
          image: registry.k8s.io/kube-apiserver:v1.37.0
          command:
            - kube-apiserver
            - --encryption-provider-config=/etc/kubernetes/encryption/encryption.yaml
            # ... and your other flags
          readinessProbe:
            httpGet: {path: "/readyz?exclude=kms-providers", port: 6443, scheme: HTTPS}
          resources:
            requests: {cpu: 250m, memory: 512Mi}
          securityContext:
            {{- include "transit-kms.containerSecurityContext" $context | nindent 12 }}
          volumeMounts:
            - {name: socket, mountPath: /run/transit-kms}
            - {name: encryption, mountPath: /etc/kubernetes/encryption, readOnly: true}
      volumes:
        - name: socket
          emptyDir: {medium: Memory, sizeLimit: 1Mi}
        - name: encryption
          configMap: {name: kube-apiserver-encryption}
        {{- include "transit-kms.volumes" $context | nindent 8 }}
