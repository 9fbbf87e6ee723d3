{{ include "manifests.login" (list . "A user name, and a file with the password." `{method: userpass, username: transit-kms}`) }}
