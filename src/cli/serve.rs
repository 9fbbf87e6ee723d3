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

use super::EXIT_USAGE;
use crate::{
    app::{self, AsyncReread, Settings},
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

/// A socket or port cannot be had; `EX_CANTCREAT` of sysexits.h.
const EXIT_CANNOT_BIND: u8 = 73;
/// Something else of the operating system is missing; `EX_OSERR` of sysexits.h.
pub(super) const EXIT_SYSTEM: u8 = 71;

/// Serves the KMS v2 API on a unix socket.
///
/// The socket is there at once, whatever the state of Vault or of the config file; both may come later and
/// change at any time. Everything in the config file is reloaded while running, flags need a restart.
/// SIGTERM and SIGINT drain and end it, SIGHUP has the config file read at once.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes: 0 after SIGTERM or SIGINT, 64 a flag cannot be used, 71 the system refuses something, 73 the socket or \
port cannot be had.\n\n\
Example:\n  transit-kms serve --config /etc/transit-kms/config.yaml\n  transit-kms probe roundtrip")]
pub struct ServeArgs {
    /// Where kube-apiserver calls: unix:///path, or unix:///@name for an abstract socket.
    #[arg(
        long,
        env = "TRANSIT_KMS_LISTEN",
        value_name = "ADDRESS",
        default_value = "unix:///run/transit-kms/kms.sock"
    )]
    listen: UnixAddress,

    /// Where kube-apiserver calls for what was written under KMS v1, as Trousseau did: unix:///@name, or
    /// unix:///path with an @ in the file's name, such as kms-v1@localhost. Off unless given.
    ///
    /// Only to move in: rewrite what is there under KMS v2, then drop this flag. kube-apiserver's KMS v1 client
    /// sends the socket's name as the HTTP/2 authority, which no name without an @ is fit for.
    #[arg(long, env = "TRANSIT_KMS_KMS_V1_LISTEN", value_name = "ADDRESS", value_parser = v1_address)]
    kms_v1_listen: Option<UnixAddress>,

    /// The YAML file with Vault's addresses, the key and the token, as an agent renders it.
    ///
    /// Mount its directory, not the file alone: a file mounted alone never changes.
    #[arg(long, env = "TRANSIT_KMS_CONFIG", value_name = "PATH")]
    config: PathBuf,

    /// Where /livez, /readyz and /metrics are answered: IP:PORT or unix:///path; may be repeated.
    #[arg(
        long,
        env = "TRANSIT_KMS_ADMIN_LISTEN",
        value_name = "ADDRESS",
        value_delimiter = ',',
        default_value = "127.0.0.1:9797"
    )]
    admin_listen: Vec<ListenAddress>,

    /// How log lines look.
    #[arg(long, env = "TRANSIT_KMS_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,

    /// How much is logged; `debug` has a line for each call.
    #[arg(long, env = "TRANSIT_KMS_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    log_level: LogLevel,

    /// The socket's permission bits, octal [default: 0600]. An inherited socket has those of its unit.
    #[arg(long, env = "TRANSIT_KMS_SOCKET_MODE", value_name = "MODE", value_parser = octal)]
    socket_mode: Option<u32>,

    /// The socket's group, by name or number [default: our own]. An inherited socket has that of its unit.
    #[arg(long, env = "TRANSIT_KMS_SOCKET_GROUP", value_name = "GROUP")]
    socket_group: Option<Group>,

    /// Take the place of a live predecessor: wait beside its socket, and have the path once a first probe is good.
    ///
    /// For a DaemonSet that surges. Until then, for ever if need be, the predecessor serves; then new connections come
    /// here and it keeps those that it has until it is stopped. Without a predecessor this changes nothing. Sockets
    /// need a path for it, not @name.
    #[arg(
        long, env = "TRANSIT_KMS_TAKEOVER", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", hide_default_value = true, hide_possible_values = true
    )]
    takeover: bool,

    /// A uid that may call; may be repeated [default: 0 and our own].
    #[arg(long, env = "TRANSIT_KMS_ALLOW_UID", value_name = "UID", value_delimiter = ',')]
    allow_uid: Vec<u32>,

    /// How long calls in flight may take once SIGTERM has come.
    #[arg(long, env = "TRANSIT_KMS_SHUTDOWN_GRACE", value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    shutdown_grace: Duration,

    /// How long Status stays `ok` while Vault merely does not answer.
    #[arg(long, env = "TRANSIT_KMS_OUTAGE_GRACE", value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    outage_grace: Duration,

    /// The time between probes of token, key, Encrypt and Decrypt, 1s to 10m.
    #[arg(long, env = "TRANSIT_KMS_HEALTH_CHECK_INTERVAL", value_name = "DURATION", default_value = "30s", value_parser = health_check_interval)]
    health_check_interval: Duration,

    /// Ask Vault once for each Decrypt, instead of once for those that come at the same time.
    #[arg(
        long, env = "TRANSIT_KMS_NO_COALESCING", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", default_value = "false", hide_default_value = true,
        hide_possible_values = true
    )]
    no_coalescing: bool,

    /// Speak to Vault without TLS if the address says so: token and seeds then cross the network in the open.
    #[arg(
        long, env = "TRANSIT_KMS_ALLOW_HTTP", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", hide_default_value = true, hide_possible_values = true
    )]
    allow_http: bool,
}

/// Runs the daemon until a signal ends it.
#[must_use]
pub fn main(args: ServeArgs) -> ExitCode {
    telemetry::start(args.log_format, args.log_level);
    hardening::harden();
    warn_of_ignored_environment();
    // Before there are threads.
    let inherited = match Inherited::take() {
        Ok(inherited) => inherited,
        Err(error) => {
            error!(%error, "cannot start");
            return ExitCode::from(EXIT_CANNOT_BIND);
        }
    };
    if let Err(unfit) = args.check(&inherited) {
        error!("cannot start: {unfit}");
        return ExitCode::from(EXIT_USAGE);
    }

    // One thread serves all calls: seeds are few, and a single thread has the better tail.
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "no runtime can be set up");
            return ExitCode::from(EXIT_SYSTEM);
        }
    };
    let code = runtime.block_on(run(args.into_settings(), inherited));
    // A file system that hangs must not keep us from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

async fn run(settings: Settings, inherited: Inherited) -> ExitCode {
    // Before the socket can be seen: a signal that nobody waits for would end us where we stand,
    // and leave the socket behind.
    let mut signals = match Signals::caught() {
        Ok(signals) => signals,
        Err(error) => {
            error!(%error, "signals cannot be caught");
            return ExitCode::from(EXIT_SYSTEM);
        }
    };
    let app = match app::build(settings, inherited).await {
        Ok(app) => app,
        Err(error) => {
            error!(%error, "cannot start");
            return ExitCode::from(EXIT_CANNOT_BIND);
        }
    };
    for address in app.admin_addresses() {
        info!(%address, "answering /livez, /readyz and /metrics");
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
        Ok(_cut_off) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = format!("{error:#}"), "cannot run");
            ExitCode::from(EXIT_SYSTEM)
        }
    }
}

struct Signals {
    hangup: Hangup,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn caught() -> io::Result<Self> {
        Ok(Self {
            hangup: Hangup(Mutex::new(signal(SignalKind::hangup())?)),
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }
}

struct Hangup(Mutex<Signal>);

impl AsyncReread for Hangup {
    async fn wanted(&self) -> bool {
        let received = self.0.lock().await.recv().await;
        info!("SIGHUP: reading the config");
        received.is_some()
    }
}

impl ServeArgs {
    /// What no flag alone is wrong about.
    fn check(&self, inherited: &Inherited) -> Result<(), String> {
        let bound = Some(&self.listen).filter(|_| inherited.kms.is_none());
        let bound_v1 = self.kms_v1_listen.as_ref().filter(|_| inherited.kms_v1.is_none());
        let mut bound = bound.into_iter().chain(bound_v1);
        if self.takeover
            && let Some(address) = bound.find(|address| address.path().is_none())
        {
            return Err(format!(
                "--takeover cannot be had with {address}: an abstract name has no file that could be replaced in \
                 one step; listen on unix:///path, or leave --takeover out"
            ));
        }
        if let Some(socket) = &inherited.kms_v1 {
            fit_for_v1(socket.address())?;
        }
        let sockets = inherited.kms.iter().chain(&inherited.kms_v1).map(BoundSocket::address);
        for socket in sockets {
            info!(%socket, "inherited a listener; where it is, its mode and its owner are its unit's to say");
            if self.takeover || self.socket_group.is_some() || self.socket_mode.is_some() {
                warn!(%socket, "--socket-mode, --socket-group and --takeover have no effect on an inherited listener");
            }
        }
        Ok(())
    }

    fn into_settings(self) -> Settings {
        Settings {
            admin_listen: self.admin_listen,
            allow_http: self.allow_http,
            allowed_peers: AllowedPeers::new(self.allow_uid),
            coalescing: !self.no_coalescing,
            config: self.config,
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

/// The config file is the only source of what it holds; a variable that Vault's own tools
/// heed would otherwise seem to work, and not reload.
fn warn_of_ignored_environment() {
    for (name, _) in std::env::vars_os() {
        if let Some(name) = name.to_str().filter(|name| is_a_setting(name)) {
            warn!(variable = name, "ignored: transit-kms takes this from its config file only");
        }
    }
}

/// Kubernetes itself sets variables such as `VAULT_PORT_8200_TCP` beside a Service of that name.
fn is_a_setting(variable: &str) -> bool {
    let Some(rest) = variable.strip_prefix("VAULT_").or_else(|| variable.strip_prefix("BAO_")) else {
        return false;
    };
    !(rest.contains("SERVICE_HOST")
        || rest.contains("SERVICE_PORT")
        || rest == "PORT"
        || rest.starts_with("PORT_"))
}

/// An address that the KMS v1 client of kube-apiserver can use, not just reach.
fn v1_address(text: &str) -> Result<UnixAddress, String> {
    let address: UnixAddress = text.parse().map_err(|error: AddressError| error.to_string())?;
    fit_for_v1(&address)?;
    Ok(address)
}

fn fit_for_v1(address: &UnixAddress) -> Result<(), String> {
    if Authority::try_from(address.grpc_authority()).is_ok() {
        return Ok(());
    }
    Err("kube-apiserver's KMS v1 client sends the socket's name as the HTTP/2 authority, which this one is \
         not fit for: write unix:///@name, or a path that has an @ in the file's name and none but letters, \
         digits, - . _ ~ after it, such as unix:///run/transit-kms/kms-v1@localhost"
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
    fn a_kms_v1_socket_has_a_name_that_its_client_can_send() {
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
    fn what_kubernetes_sets_for_a_service_is_no_setting() {
        for setting in ["VAULT_ADDR", "VAULT_TOKEN", "VAULT_SKIP_VERIFY", "BAO_NAMESPACE"] {
            assert!(is_a_setting(setting), "{setting}");
        }
        for other in
            ["VAULT_SERVICE_HOST", "VAULT_SERVICE_PORT_HTTP", "VAULT_PORT", "VAULT_PORT_8200_TCP", "VAULTED"]
        {
            assert!(!is_a_setting(other), "{other}");
        }
    }
}
