# Run with: vault agent -config=agent.hcl
# Never with exit_after_auth: the token must be renewed and rendered anew.

vault {
  # An agent knows one address only. Where it may be the one that is away, name a load balancer, or a DNS name of
  # all nodes.
  address = "https://vault.example.com:8200"
  ca_cert = "/etc/transit-kms/ca/ca.pem"
}

auto_auth {
  method {
    type = "cert"
    mount_path = "auth/cert"
    # A login is tried for ever; by default with up to five minutes in between.
    exit_on_err = false
    min_backoff = "1s"
    max_backoff = "30s"

    config = {
      name = "transit-kms"
      ca_cert = "/etc/transit-kms/ca/ca.pem"
      client_cert = "/etc/transit-kms/client.pem"
      client_key = "/etc/transit-kms/client-key.pem"
      # Read at each login, so that a new certificate needs no restart.
      reload = true
    }
  }
}

template_config {
  # What cannot be rendered is tried for ever.
  exit_on_retry_failure = false
  # How often the token is looked at. If it has been revoked, the agent logs in again: from Vault 1.17 on.
  static_secret_render_interval = "1m"
}

template {
  source = "/etc/transit-kms/config.yaml.ctmpl"
  destination = "/run/transit-kms-config/config.yaml"
  perms = "0600"
  error_on_missing_key = true
}
