{{ include "manifests.login" (list . "A token in a file that another program writes." `{method: token_file, hostDirectory: /run/transit-kms-token}`) }}
