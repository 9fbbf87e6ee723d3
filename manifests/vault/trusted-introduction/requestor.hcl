# The requestor: issues, lists and destroys the secret_ids of one role with `transit-kmsctl secret-id`.
#
#   vault policy write transit-kms-requestor requestor.hcl
#
# It cannot read the role_id, so its secret_ids alone are not enough for a login. It cannot change the role.

path "auth/approle/role/transit-kms-east/secret-id" {
  capabilities = ["update", "list"]

  # To refuse every secret_id that is not wrapped, and thereby plain and sealed delivery without --wrap:
  # min_wrapping_ttl = "1m"
  # max_wrapping_ttl = "24h"
}

path "auth/approle/role/transit-kms-east/secret-id-accessor/lookup" {
  capabilities = ["update"]
}

path "auth/approle/role/transit-kms-east/secret-id-accessor/destroy" {
  capabilities = ["update"]
}

# For --cubbyhole only. The token role limits the token to the policy of cubbyhole.hcl.
path "auth/token/create/transit-kms-cubbyhole" {
  capabilities = ["update"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}
