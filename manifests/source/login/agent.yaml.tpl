{{ include "manifests.login" (list . "Through the listener of an agent or proxy on this node." `{method: agent}`) }}
