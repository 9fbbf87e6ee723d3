{{ include "manifests.login" (list . "The IAM identity of an AWS instance or container." `{method: aws, role: transit-kms}`) }}
