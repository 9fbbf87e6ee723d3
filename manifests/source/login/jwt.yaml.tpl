{{ include "manifests.login" (list . "A JWT in a file that another program renews." `{method: jwt, role: transit-kms, jwtFile: jwt}`) }}
