//! The arguments of `transit-kms probe`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use kms_plugin::{
    address::{ListenAddress, UnixAddress},
    cli::{OutputFormat, PluginCommand, Target, parse_timeout},
};
use url::Url;

use crate::cli::exit::{Exit, after_help};

/// The exit codes of all checks.
const EXITS: &[Exit] = &[Exit::Success, Exit::CheckFailed, Exit::NoAnswer, Exit::Usage];

/// The time that kube-apiserver waits for a KMS plugin by default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3);
/// The metrics of several API servers can be large.
const DEFAULT_TIMEOUT_UNUSED: Duration = Duration::from_secs(30);

/// Checks a running transit-kms, as kube-apiserver or an exec probe does
///
/// `status`, `encrypt`, `decrypt` and `roundtrip` send KMS v2 calls to --socket. `live` and `ready` send requests to
/// --admin. `unused` sends requests to --socket and to the API servers.
#[derive(Args, Clone, Debug)]
#[command(after_help = after_help(
    EXITS,
    "Examples:\n\
     \x20 transit-kms probe roundtrip\n\
     \x20 transit-kms probe status --socket unix:///run/transit-kms/kms.sock\n\
     \x20 transit-kms probe ready --admin unix:///run/transit-kms/admin.sock -o json",
))]
pub struct ProbeArgs {
    #[command(subcommand)]
    pub(super) command: ProbeCommand,

    /// The admin address for `live` and `ready`: host:port or unix:///path
    #[arg(
        long,
        global = true,
        env = "TRANSIT_KMS_ADMIN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9797"
    )]
    pub(super) admin: ListenAddress,

    /// The format of standard output
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value_t = OutputFormat::Text)]
    pub(super) output: OutputFormat,

    /// The KMS socket for all other checks: unix:///path or unix:///@name
    #[arg(
        long,
        global = true,
        env = "TRANSIT_KMS_SOCKET",
        value_name = "ADDRESS",
        default_value = "unix:///run/transit-kms/kms.sock"
    )]
    pub(super) socket: UnixAddress,

    /// The maximum duration of the whole check [default: 3s, as in kube-apiserver; 30s for `unused`]
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse_timeout)]
    timeout: Option<Duration>,
}

impl ProbeArgs {
    /// The plugin to call.
    pub(super) fn target(&self) -> Target<'_> {
        Target {
            command: "transit-kms probe",
            hint: "; does `transit-kms serve` run with this --listen?",
            socket: &self.socket,
            timeout: self.timeout(),
            uid_prefix: "transit-kms-probe-",
        }
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(match self.command {
            ProbeCommand::Unused(_) => DEFAULT_TIMEOUT_UNUSED,
            _ => DEFAULT_TIMEOUT,
        })
    }
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum ProbeCommand {
    /// Checks that the process works (/livez)
    #[command(after_help = after_help(EXITS, ""))]
    Live,

    /// Checks that the plugin is ready, and prints the reason if it is not (/readyz)
    #[command(after_help = after_help(EXITS, ""))]
    Ready,

    #[command(flatten)]
    Plugin(PluginCommand),

    /// Checks that no kube-apiserver uses this plugin any more, before you remove it
    ///
    /// The metrics of each API server show when a KMS v2 plugin last answered its Status call. The check reads these
    /// metrics with the rights of a service account: `get` on the nonResourceURL /metrics and, to find all API servers,
    /// `list` on EndpointSlices in the namespace `default`.
    ///
    /// The check fails in every case of doubt: if the list of API servers is refused or incomplete, if an API server
    /// does not answer, or if a provider may be this plugin. It finds neither API servers that use KMS v1 nor API
    /// servers that are stopped: look for this plugin in their EncryptionConfiguration yourself.
    #[command(after_help = after_help(
        EXITS,
        "Examples:\n\
         \x20 transit-kms probe unused\n\
         \x20 transit-kms probe unused --other-provider old-kms\n\
         \x20 transit-kms probe unused --no-discovery --api-server https://10.0.0.1:6443",
    ))]
    Unused(UnusedArgs),
}

impl ProbeCommand {
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Plugin(command) => command.name(),
            Self::Ready => "ready",
            Self::Unused(_) => "unused",
        }
    }
}

#[derive(Args, Clone, Debug)]
pub(super) struct UnusedArgs {
    /// An API server, https://host:port, in addition to those in the cluster's list. The list is requested from the first
    /// one. Can be given several times [default: the API server in the environment of a pod]
    #[arg(long, value_name = "URL")]
    pub(super) api_server: Vec<Url>,

    /// Check only the API servers in --api-server, and do not request the cluster's list
    #[arg(long, requires = "api_server")]
    pub(super) no_discovery: bool,

    /// The name of a KMS v2 provider in the EncryptionConfiguration that is another plugin. Can be given several times
    #[arg(long, value_name = "NAME")]
    pub(super) other_provider: Vec<String>,

    /// The directory with the `ca.crt` and the `token` of the service account
    #[arg(long, value_name = "PATH", default_value = "/var/run/secrets/kubernetes.io/serviceaccount")]
    pub(super) service_account: PathBuf,
}
