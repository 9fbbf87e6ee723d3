//! `transit-kms serve`: the daemon.

use std::{io, path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;
use http::uri::Authority;
use kms_plugin::address::{AddressError, ListenAddress, UnixAddress};
use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::Mutex,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    exit::{Exit, after_help},
    vault_kube_kms,
};
use crate::{
    app::{self, ReloadSignal, Settings},
    config::ConfigSource,
    hardening,
    observe::telemetry::{self, LogFormat, LogLevel},
    server::{
        group::Group,
        inherited::Inherited,
        peer::AllowedPeers,
        socket::{BoundSocket, SocketOptions},
    },
    session::health::HealthSettings,
};

/// Serves the KMS v2 API to kube-apiserver on a unix socket.
///
/// The socket exists as soon as the process starts. Vault and the config file may be missing at that time: until
/// they work, calls get an answer that says what is missing.
///
/// transit-kms reads the config file again whenever it changes, and at SIGHUP. A change of a flag or of an environment
/// variable needs a restart. At SIGTERM and SIGINT, transit-kms finishes the calls in flight and exits.
///
/// Each flag can also be set by the environment variable in brackets. A flag has precedence over its variable.
/// Durations have a unit, such as 500ms, 30s or 2m.
#[derive(Args, Debug)]
#[command(after_help = after_help(
    &[Exit::Success, Exit::Usage, Exit::System, Exit::CannotCreate],
    "Examples:\n  \
     transit-kms serve --config /etc/transit-kms/config.yaml\n  \
     transit-kms serve --config /etc/transit-kms/config.yaml --allow-uid 1000\n\n\
     To check a running daemon: transit-kms probe roundtrip",
))]
pub struct ServeArgs {
    /// The unix socket for kube-apiserver: unix:///path, or unix:///@name for an abstract socket.
    ///
    /// This is the `endpoint` in kube-apiserver's encryption configuration.
    #[arg(
        long,
        env = "TRANSIT_KMS_LISTEN",
        value_name = "ADDRESS",
        default_value = "unix:///run/transit-kms/kms.sock"
    )]
    listen: UnixAddress,

    /// A second unix socket, for data that was encrypted under KMS v1, as by Trousseau. Off by default.
    ///
    /// It is for a migration only: rewrite the data under KMS v2, then remove this flag.
    ///
    /// kube-apiserver's KMS v1 client sends the name of the socket as HTTP/2 authority, so the name needs an @: write
    /// unix:///@name, or unix:///path with an @ in the name of the file, such as
    /// unix:///run/transit-kms/kms-v1@localhost.
    #[arg(long, env = "TRANSIT_KMS_KMS_V1_LISTEN", value_name = "ADDRESS", value_parser = v1_address)]
    kms_v1_listen: Option<UnixAddress>,

    /// The YAML file with the addresses of Vault, the names of the keys and the token, as an agent renders it.
    ///
    /// In a container, mount the directory of the file. A mount of the single file does not show changes.
    #[arg(long, env = "TRANSIT_KMS_CONFIG", value_name = "PATH")]
    config: PathBuf,

    /// The address for /livez, /readyz and /metrics: IP:PORT or unix:///path, or none. May be repeated.
    #[arg(
        long,
        env = "TRANSIT_KMS_ADMIN_LISTEN",
        value_name = "ADDRESS",
        value_delimiter = ',',
        default_value = "127.0.0.1:9797",
        value_parser = admin_listen
    )]
    admin_listen: Vec<AdminListen>,

    /// The format of log lines.
    #[arg(long, env = "TRANSIT_KMS_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,

    /// The lowest level that is logged. `debug` logs a line for each call.
    #[arg(long, env = "TRANSIT_KMS_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    log_level: LogLevel,

    /// The permission bits of the socket, in octal [default: 0600]. No effect on an inherited socket.
    #[arg(long, env = "TRANSIT_KMS_SOCKET_MODE", value_name = "MODE", value_parser = octal)]
    socket_mode: Option<u32>,

    /// The group of the socket, by name or number [default: that of the process]. No effect on an inherited socket.
    #[arg(long, env = "TRANSIT_KMS_SOCKET_GROUP", value_name = "GROUP")]
    socket_group: Option<Group>,

    /// If another transit-kms listens on the socket, take over from it after the first successful verification.
    ///
    /// For a DaemonSet that surges. The new process waits beside the socket, without a time limit, and the old one
    /// serves until the takeover. After that, new connections reach the new process, and the old one serves its existing
    /// connections until it is stopped. Without an old process, this flag changes nothing. The sockets must have a path;
    /// abstract sockets (unix:///@name) do not work.
    #[arg(
        long, env = "TRANSIT_KMS_TAKEOVER", value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", hide_default_value = true, hide_possible_values = true
    )]
    takeover: bool,

    /// A uid that may call. May be repeated [default: 0 and the uid of the process].
    #[arg(long, env = "TRANSIT_KMS_ALLOW_UID", value_name = "UID", value_delimiter = ',')]
    allow_uid: Vec<u32>,

    /// How long calls in flight may take after SIGTERM.
    #[arg(long, env = "TRANSIT_KMS_SHUTDOWN_GRACE", value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    shutdown_grace: Duration,

    /// How long Status stays `ok` while Vault does not answer.
    #[arg(long, env = "TRANSIT_KMS_OUTAGE_GRACE", value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    outage_grace: Duration,

    /// The time between health checks of token, key, Encrypt and Decrypt, from 1s to 10m.
    #[arg(long, env = "TRANSIT_KMS_HEALTH_CHECK_INTERVAL", value_name = "DURATION", default_value = "30s", value_parser = health_check_interval)]
    health_check_interval: Duration,

    /// Send a request to Vault for each Decrypt. By default, concurrent Decrypts share requests.
    #[arg(
        long, env = "TRANSIT_KMS_NO_COALESCING", value_name = "true|false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", default_value = "false", hide_default_value = true,
        hide_possible_values = true
    )]
    no_coalescing: bool,

    /// Allow http:// addresses of Vault. The token and the seeds then cross the network unencrypted.
    #[arg(
        long, env = "TRANSIT_KMS_ALLOW_HTTP", value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", hide_default_value = true, hide_possible_values = true
    )]
    allow_http: bool,
}

/// Runs the daemon until SIGTERM or SIGINT. `config` replaces the file of `--config`.
#[must_use]
pub fn main(args: ServeArgs, config: Option<ConfigSource>) -> ExitCode {
    telemetry::start(args.log_format, args.log_level);
    hardening::harden();
    warn_about_ignored_variables(config.is_some());
    // This must happen before the process starts threads.
    let inherited = match Inherited::take() {
        Ok(inherited) => inherited,
        Err(error) => {
            error!(%error, "cannot start");
            return Exit::CannotCreate.into();
        }
    };
    if let Err(error) = args.check(&inherited) {
        error!("cannot start: {error}");
        return Exit::Usage.into();
    }

    // One thread serves all calls: kube-apiserver has few seeds to wrap, and the tail latency of a
    // single-threaded runtime is better.
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "cannot set up the async runtime");
            return Exit::System.into();
        }
    };
    let code = runtime.block_on(run(args.into_settings(config), inherited));
    // A file system that hangs must not prevent the exit.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

async fn run(settings: Settings, inherited: Inherited) -> ExitCode {
    // The handlers must exist before the socket does: without a handler, a signal would end the process
    // at once and leave the socket behind.
    let mut signals = match Signals::register() {
        Ok(signals) => signals,
        Err(error) => {
            error!(%error, "cannot register signal handlers");
            return Exit::System.into();
        }
    };
    let app = match app::build(settings, inherited).await {
        Ok(app) => app,
        Err(error) => {
            error!(%error, "cannot start");
            return Exit::CannotCreate.into();
        }
    };
    for address in app.admin_addresses() {
        info!(%address, "listening for probes and scrapes");
    }

    let shutdown = CancellationToken::new();
    let running = app.run(shutdown.clone(), signals.hangup);
    tokio::pin!(running);
    let ended = tokio::select! {
        ended = &mut running => ended,
        name = async {
            tokio::select! {
                _ = signals.interrupt.recv() => "SIGINT",
                _ = signals.terminate.recv() => "SIGTERM",
            }
        } => {
            info!("{name}: shutting down");
            shutdown.cancel();
            running.await
        }
    };
    match ended {
        Ok(_cut_off) => Exit::Success.into(),
        Err(error) => {
            error!(error = format!("{error:#}"), "cannot run");
            Exit::System.into()
        }
    }
}

struct Signals {
    hangup: Hangup,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn register() -> io::Result<Self> {
        Ok(Self {
            hangup: Hangup(Mutex::new(signal(SignalKind::hangup())?)),
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }
}

struct Hangup(Mutex<Signal>);

impl ReloadSignal for Hangup {
    async fn received(&self) -> bool {
        let received = self.0.lock().await.recv().await;
        info!("SIGHUP: reading the config");
        received.is_some()
    }
}

impl ServeArgs {
    /// Checks what no flag shows alone: combinations of flags, and inherited listeners.
    fn check(&self, inherited: &Inherited) -> Result<(), String> {
        let bound = Some(&self.listen).filter(|_| inherited.kms.is_none());
        let bound_v1 = self.kms_v1_listen.as_ref().filter(|_| inherited.kms_v1.is_none());
        let mut bound = bound.into_iter().chain(bound_v1);
        if self.takeover
            && let Some(address) = bound.find(|address| address.path().is_none())
        {
            return Err(format!(
                "--takeover does not work with {address}: an abstract socket has no file that a successor could \
                 replace; listen on unix:///path, or omit --takeover"
            ));
        }
        if let Some(socket) = &inherited.kms_v1 {
            check_v1_name(socket.address())?;
        }
        let sockets = inherited.kms.iter().chain(&inherited.kms_v1).map(BoundSocket::address);
        for socket in sockets {
            info!(%socket, "inherited a listener; its socket unit defines its address, mode and owner");
            if self.takeover || self.socket_group.is_some() || self.socket_mode.is_some() {
                warn!(%socket, "--socket-mode, --socket-group and --takeover have no effect on an inherited listener");
            }
        }
        Ok(())
    }

    fn into_settings(self, config: Option<ConfigSource>) -> Settings {
        Settings {
            admin_listen: self.admin_listen.into_iter().filter_map(|listen| listen.0).collect(),
            allow_http: self.allow_http,
            allowed_peers: AllowedPeers::new(self.allow_uid),
            coalescing: !self.no_coalescing,
            config: config.unwrap_or_else(|| self.config.into()),
            health: HealthSettings {
                outage_grace: self.outage_grace,
                health_check_interval: self.health_check_interval,
            },
            listen: self.listen,
            listen_v1: self.kms_v1_listen,
            shutdown_grace: self.shutdown_grace,
            socket: SocketOptions {
                group: self.socket_group,
                mode: self.socket_mode.unwrap_or(SocketOptions::default().mode),
                takeover: self.takeover,
            },
        }
    }
}

/// Logs variables that only Vault's own tools use. Without the warning, an operator may expect them to
/// work here. The variables of vault-kube-kms work if its flags do.
fn warn_about_ignored_variables(as_vault_kube_kms: bool) {
    for (name, _) in std::env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let is_used = as_vault_kube_kms && name.starts_with(vault_kube_kms::VARIABLE_PREFIX);
        if is_vault_setting(name) && !is_used {
            warn!(
                variable = name,
                "ignored the variable: transit-kms reads this setting from its config file only"
            );
        }
    }
}

/// Returns true for a variable of Vault's or OpenBao's tools.
///
/// Kubernetes sets variables such as `VAULT_PORT_8200_TCP` for a Service with that name; they are no settings.
fn is_vault_setting(variable: &str) -> bool {
    let Some(rest) = variable.strip_prefix("VAULT_").or_else(|| variable.strip_prefix("BAO_")) else {
        return false;
    };
    !(rest.contains("SERVICE_HOST")
        || rest.contains("SERVICE_PORT")
        || rest == "PORT"
        || rest.starts_with("PORT_"))
}

/// A value of `--admin-listen`: an address, or `none`.
#[derive(Clone, Debug)]
struct AdminListen(Option<ListenAddress>);

fn admin_listen(text: &str) -> Result<AdminListen, AddressError> {
    if text == "none" {
        Ok(AdminListen(None))
    } else {
        text.parse().map(|address| AdminListen(Some(address)))
    }
}

/// Parses an address that the KMS v1 client of kube-apiserver can use.
fn v1_address(text: &str) -> Result<UnixAddress, String> {
    let address: UnixAddress = text.parse().map_err(|error: AddressError| error.to_string())?;
    check_v1_name(&address)?;
    Ok(address)
}

fn check_v1_name(address: &UnixAddress) -> Result<(), String> {
    if Authority::try_from(address.grpc_authority()).is_ok() {
        return Ok(());
    }
    Err("kube-apiserver's KMS v1 client sends the name of the socket as HTTP/2 authority, and this name is not a \
         valid authority: write unix:///@name, or a path that has an @ in the file's name and only letters, \
         digits and - . _ ~ after it, such as unix:///run/transit-kms/kms-v1@localhost"
        .into())
}

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text.trim_start_matches("0o"), 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("write permission bits in octal, 0000 to 0777".into()),
    }
}

fn health_check_interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (Duration::from_secs(1)..=Duration::from_secs(600)).contains(&interval) {
        Ok(interval)
    } else {
        Err("it must be between 1s and 10m".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_kms_v1_socket_must_be_a_valid_authority() {
        for good in ["unix:///@kms-v1", "unix:///run/kms/v1@localhost", "unix:///var/lib/vault kms/v1@1"] {
            assert!(v1_address(good).is_ok(), "{good}");
        }
        for bad in
            ["unix:///run/kms.sock", "unix:///run/a@b/kms.sock", "unix:///@vault kms", "unix:///run/v1@"]
        {
            assert!(v1_address(bad).unwrap_err().contains("unix:///@name"), "{bad}");
        }
        assert!(v1_address("unix://kms").unwrap_err().contains("three slashes"));
    }

    #[test]
    fn variables_that_kubernetes_sets_for_a_service_are_no_settings() {
        for setting in ["VAULT_ADDR", "VAULT_TOKEN", "VAULT_SKIP_VERIFY", "BAO_NAMESPACE"] {
            assert!(is_vault_setting(setting), "{setting}");
        }
        for other in
            ["VAULT_SERVICE_HOST", "VAULT_SERVICE_PORT_HTTP", "VAULT_PORT", "VAULT_PORT_8200_TCP", "VAULTED"]
        {
            assert!(!is_vault_setting(other), "{other}");
        }
    }
}
