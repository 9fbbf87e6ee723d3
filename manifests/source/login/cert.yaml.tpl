{{ include "manifests.login" (list . "A client certificate in files." `{method: cert, role: transit-kms}`) }}
