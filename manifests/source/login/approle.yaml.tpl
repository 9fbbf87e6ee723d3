{{ include "manifests.login" (list . "AppRole: the files have the role_id and the secret_id." `{method: approle}`) }}
