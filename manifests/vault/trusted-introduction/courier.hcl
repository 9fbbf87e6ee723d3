# The courier: carries what the requestor gives it, and needs nothing of Vault for this. If you can, give it no token at
# all. If it has one for its other work, attach this policy too. It takes away what the policy `default` allows.
#
#   vault policy write transit-kms-courier courier.hcl
#
# A deny counts for its own path only: a more specific path of another policy has precedence. Therefore, the wraps have
# one entry for each path of `default`, and no other policy of the courier may name these paths.
#
# This policy limits the courier's own token. The courier can still use a token that it carries. Only sealed delivery
# makes that useless.

path "cubbyhole/*" {
  capabilities = ["deny"]
}

path "sys/wrapping/rewrap" {
  capabilities = ["deny"]
}

path "sys/wrapping/unwrap" {
  capabilities = ["deny"]
}

path "sys/wrapping/wrap" {
  capabilities = ["deny"]
}

path "auth/approle/*" {
  capabilities = ["deny"]
}
