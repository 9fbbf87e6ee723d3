{{ include "manifests.login" (list . "AppRole: the second file has the secret_id, encrypted to the key of this node." `{method: approle, secretIdFile: sealed_secret_id, delivery: sealed}`) }}
