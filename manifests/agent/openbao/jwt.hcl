# Run with: bao agent -config=agent.hcl
# Never with exit_after_auth: the token must be renewed and rendered anew.
# A token that is revoked is noticed at its next renewal, after two thirds of its life: give the role a short
# token_ttl.

vault {
  # An agent knows one address only. Where it may be the one that is away, name a load balancer, or a DNS name of
  # all nodes.
  address = "https://vault.example.com:8200"
  ca_cert = "/etc/transit-kms/ca/ca.pem"
}

auto_auth {
  method {
    type = "jwt"
    mount_path = "auth/jwt"
    # A login is tried for ever; by default with up to five minutes in between.
    exit_on_err = false
    min_backoff = "1s"
    max_backoff = "30s"

    config = {
      role = "transit-kms"
      path = "/etc/transit-kms/token"
      # By default it would work once, and not after a restart.
      remove_jwt_after_reading = false
    }
  }
}

template_config {
  # What cannot be rendered is tried for ever.
  exit_on_retry_failure = false
}

template {
  source = "/etc/transit-kms/config.yaml.ctmpl"
  destination = "/run/transit-kms-config/config.yaml"
  perms = "0600"
  error_on_missing_key = true
}
