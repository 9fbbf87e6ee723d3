# The node: the policy of the AppRole. It is used after the login. The login, the unwrap and the read of a cubbyhole need
# no policy: each is allowed by what was delivered.
#
#   vault policy write transit-kms-east node.hcl

path "transit/encrypt/kms-east" {
  capabilities = ["update"]
}

path "transit/decrypt/kms-east" {
  capabilities = ["update"]
}

path "transit/keys/kms-east" {
  capabilities = ["read"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}
