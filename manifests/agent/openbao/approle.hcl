# Run with: bao agent -config=agent.hcl
# Do not use exit_after_auth: the agent must keep running to renew the token and to render new ones.
# OpenBao's agent notices a revoked token at the next renewal, after two thirds of the TTL. Set a short
# token_ttl in the role.

vault {
  # The agent supports only one address. To survive the loss of that node, use a load balancer or a DNS name
  # that resolves to all nodes.
  address = "https://vault.example.com:8200"
  ca_cert = "/etc/transit-kms/ca/ca.pem"
}

auto_auth {
  method {
    type = "approle"
    mount_path = "auth/approle"
    # The agent retries logins without limit. By default, the pause between them grows to five minutes.
    exit_on_err = false
    min_backoff = "1s"
    max_backoff = "30s"

    config = {
      role_id_file_path = "/etc/transit-kms/role_id"
      secret_id_file_path = "/etc/transit-kms/secret_id"
      # By default, the agent removes the file, and cannot log in again after a restart. Also set
      # secret_id_num_uses=0 in the role.
      remove_secret_id_file_after_reading = false
    }
  }
}

template_config {
  # The agent retries a failed rendering without limit.
  exit_on_retry_failure = false
}

template {
  source = "/etc/transit-kms/config.yaml.ctmpl"
  destination = "/run/transit-kms-config/config.yaml"
  perms = "0600"
  error_on_missing_key = true
}
