# The requestor: issues, lists and destroys the secret_ids of one node with `transit-kmsctl secret-id`. For more nodes,
# repeat the three paths for the role of each. If a mount has the roles of one cluster only, you can write + instead of
# the name of the role.
#
#   vault policy write transit-kms-requestor requestor.hcl
#
# It cannot read the role_id, so its secret_ids alone are not enough for a login. It cannot change the role.

path "auth/approle/role/transit-kms-east-cp1/secret-id" {
  capabilities = ["update", "list"]

  # To refuse every secret_id that is not wrapped, and thereby plain and sealed delivery without --wrap:
  # min_wrapping_ttl = "1m"
  # max_wrapping_ttl = "24h"
}

path "auth/approle/role/transit-kms-east-cp1/secret-id-accessor/lookup" {
  capabilities = ["update"]
}

path "auth/approle/role/transit-kms-east-cp1/secret-id-accessor/destroy" {
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
