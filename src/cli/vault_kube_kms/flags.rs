//! The flags and environment variables of vault-kube-kms.
//!
//! Source: `content/vault/v2.x/content/docs/deploy/kubernetes/kms/configuration.mdx` in hashicorp/web-unified-docs, and
//! its older revisions for the flags that it had before.

use std::ffi::OsString;

use clap::{CommandFactory, Parser, error::ErrorKind};

use super::{FlagsError, arguments};

/// Serves the KMS v2 API with the flags of HashiCorp's vault-kube-kms, on Vault and OpenBao of any edition.
///
/// Flags have one or two dashes. Their values follow after = or a space. Each flag can also be set by the environment
/// variable in brackets. A flag has precedence over its variable, and an empty value counts as not set.
///
/// transit-kms reads the files of -approle-secret-id-path and -tls-ca-file again whenever they change. The variables of
/// `transit-kms serve` set what these flags do not set, such as TRANSIT_KMS_ALLOW_UID.
#[derive(Default, Parser)]
#[command(
    name = "transit-kms",
    args_override_self = true,
    disable_version_flag = true,
    max_term_width = 110,
    no_binary_name = true,
    override_usage = "transit-kms -vault-address=URL -vault-key-path=MOUNT/keys/NAME -approle-role-id=ID \
                      -approle-secret-id-path=PATH [FLAGS]"
)]
pub(super) struct Flags {
    /// The unix socket for kube-apiserver: unix:///path [default: unix:///tmp/vault-kube-kms.socket].
    #[arg(long, env = "VAULT_KUBE_KMS_LISTEN_ADDRESS", value_name = "ADDRESS")]
    pub(super) listen_address: Option<String>,

    /// The URL of Vault.
    #[arg(long, env = "VAULT_KUBE_KMS_VAULT_ADDRESS", value_name = "URL")]
    pub(super) vault_address: Option<String>,

    /// The namespace of the Transit engine.
    #[arg(long, env = "VAULT_KUBE_KMS_VAULT_NAMESPACE", value_name = "NAMESPACE")]
    pub(super) vault_namespace: Option<String>,

    /// The namespace of the login [default: -vault-namespace].
    #[arg(long, env = "VAULT_KUBE_KMS_VAULT_AUTH_NAMESPACE", value_name = "NAMESPACE")]
    pub(super) vault_auth_namespace: Option<String>,

    /// The Transit key: MOUNT/keys/NAME.
    #[arg(long, env = "VAULT_KUBE_KMS_VAULT_KEY_PATH", value_name = "PATH")]
    pub(super) vault_key_path: Option<String>,

    /// The mount of the Transit engine, as older versions call it [default: transit].
    #[arg(long, env = "VAULT_KUBE_KMS_TRANSIT_MOUNT", value_name = "PATH")]
    pub(super) transit_mount: Option<String>,

    /// The name of the Transit key, as older versions call it.
    #[arg(long, env = "VAULT_KUBE_KMS_TRANSIT_KEY", value_name = "NAME", alias = "transit-key-name")]
    pub(super) transit_key: Option<String>,

    /// The PEM file of the authorities that sign Vault's certificate [default: the system's].
    #[arg(long, env = "VAULT_KUBE_KMS_TLS_CA_FILE", value_name = "PATH")]
    pub(super) tls_ca_file: Option<String>,

    /// The name in Vault's certificate [default: the host of -vault-address].
    #[arg(long, env = "VAULT_KUBE_KMS_TLS_SNI", value_name = "NAME")]
    pub(super) tls_sni: Option<String>,

    /// Only false is accepted: transit-kms always verifies Vault's certificate.
    #[arg(long, env = "VAULT_KUBE_KMS_TLS_SKIP_VERIFY", value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) tls_skip_verify: Option<String>,

    /// The maximum time to connect to Vault [default: 3s; at most 30s].
    #[arg(long, env = "VAULT_KUBE_KMS_VAULT_CONNECTION_TIMEOUT", value_name = "DURATION")]
    pub(super) vault_connection_timeout: Option<String>,

    /// The login method. Only approle is accepted.
    #[arg(long, env = "VAULT_KUBE_KMS_AUTH_METHOD", value_name = "METHOD")]
    pub(super) auth_method: Option<String>,

    /// The mount of the AppRole method, without auth/ [default: approle].
    #[arg(long, env = "VAULT_KUBE_KMS_AUTH_MOUNT", value_name = "PATH")]
    pub(super) auth_mount: Option<String>,

    /// The role_id.
    #[arg(long, env = "VAULT_KUBE_KMS_APPROLE_ROLE_ID", value_name = "ID")]
    pub(super) approle_role_id: Option<String>,

    /// The file that contains the secret_id.
    #[arg(long, env = "VAULT_KUBE_KMS_APPROLE_SECRET_ID_PATH", value_name = "PATH")]
    pub(super) approle_secret_id_path: Option<String>,

    /// The port on 127.0.0.1 for /metrics, /livez and /readyz; 0 or less for none [default: 9090].
    #[arg(long, env = "VAULT_KUBE_KMS_METRICS_PORT", value_name = "PORT")]
    pub(super) metrics_port: Option<String>,

    /// The port on all interfaces for /healthz, /livez, /readyz and /metrics; 0 or less for none [default: none].
    #[arg(long, env = "VAULT_KUBE_KMS_HEALTH_PORT", value_name = "PORT")]
    pub(super) health_port: Option<String>,

    /// Has no effect.
    #[arg(long, env = "VAULT_KUBE_KMS_DISABLE_RUNTIME_METRICS", value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) disable_runtime_metrics: Option<String>,

    /// The lowest level that is logged: debug, info, error, panic, or a number.
    #[arg(long, value_name = "LEVEL")]
    pub(super) zap_log_level: Option<String>,

    /// The same, as older versions call it: debug, info, warn or error.
    #[arg(long, env = "VAULT_KUBE_KMS_LOG_LEVEL", value_name = "LEVEL")]
    pub(super) log_level: Option<String>,
}

impl Flags {
    /// Parses arguments as Go's `flag` package does, and reads the environment.
    pub(super) fn parse_from_go(arguments: &[OsString]) -> Result<Self, FlagsError> {
        let normal = arguments::normalize(arguments)?;
        Self::try_parse_from(normal).map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp => FlagsError::Help(error.render().to_string()),
            _ => FlagsError::Invalid(error.render().to_string()),
        })
    }
}

/// A flag of vault-kube-kms.
pub(super) struct KnownFlag {
    /// Without dashes.
    pub(super) name: String,
    /// A value can only follow after `=`, as of all boolean flags in Go.
    pub(super) boolean: bool,
}

/// Returns all flags, in the order of the help.
pub(super) fn known() -> Vec<KnownFlag> {
    let mut command = Flags::command();
    command.build();
    let arguments = command.get_arguments().filter(|argument| argument.get_id() != "help");
    arguments
        .flat_map(|argument| {
            let boolean = argument.get_num_args().is_some_and(|values| values.min_values() == 0);
            let names = argument.get_long_and_visible_aliases().unwrap_or_default();
            let hidden = argument.get_all_aliases().unwrap_or_default();
            let names = names.into_iter().chain(hidden);
            names.map(move |name| KnownFlag { name: name.to_owned(), boolean }).collect::<Vec<_>>()
        })
        .collect()
}
