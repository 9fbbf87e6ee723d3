# The token of a cubbyhole: the requestor writes one value with it, and the node reads this value.
#
#   vault policy write transit-kms-cubbyhole cubbyhole.hcl
#   vault write auth/token/roles/transit-kms-cubbyhole allowed_policies=transit-kms-cubbyhole \
#     orphan=true renewable=false token_no_default_policy=true token_num_uses=2 token_type=service

path "cubbyhole/transit-kms" {
  capabilities = ["create", "update", "read"]
}
