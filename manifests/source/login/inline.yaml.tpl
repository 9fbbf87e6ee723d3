{{ include "manifests.login" (list . "Inline authentication of OpenBao, with the credentials of an AppRole." `{method: approle, inline: true}`) }}
