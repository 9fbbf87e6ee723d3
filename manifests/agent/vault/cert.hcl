# Run with: vault agent -config=agent.hcl
# Do not use exit_after_auth: the agent must keep running to renew the token and to render new ones.

vault {
  # The agent supports only one address. To survive the loss of that node, use a load balancer or a DNS name
  # that resolves to all nodes.
  address = "https://vault.example.com:8200"
  ca_cert = "/etc/transit-kms/ca/ca.pem"
}

auto_auth {
  method {
    type = "cert"
    mount_path = "auth/cert"
    # The agent retries logins without limit. By default, the pause between them grows to five minutes.
    exit_on_err = false
    min_backoff = "1s"
    max_backoff = "30s"

    config = {
      name = "transit-kms"
      ca_cert = "/etc/transit-kms/ca/ca.pem"
      client_cert = "/etc/transit-kms/client.pem"
      client_key = "/etc/transit-kms/client-key.pem"
      # The agent reads the files at each login, so a new certificate needs no restart.
      reload = true
    }
  }
}

template_config {
  # The agent retries a failed rendering without limit.
  exit_on_retry_failure = false
  # Interval at which the agent looks up the token. Since Vault 1.17, the agent logs in again if the token is
  # revoked.
  static_secret_render_interval = "1m"
}

template {
  source = "/etc/transit-kms/config.yaml.ctmpl"
  destination = "/run/transit-kms-config/config.yaml"
  perms = "0600"
  error_on_missing_key = true
}
