{{ include "manifests.login" (list . "A JWT-SVID from the SPIFFE Workload API." `{method: jwt, role: transit-kms, workloadApi: {source: hostPath}, trustDomains: {prod.acme.net: auth/jwt-prod}}`) }}
