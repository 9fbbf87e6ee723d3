{{ include "manifests.login" (list . "AppRole with credentials of systemd, for transit-kms.service.d/login.conf." `{method: approle, hostDirectory: /run/credentials/transit-kms.service}`) }}
