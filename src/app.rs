//! Composes the daemon. This is the only module that knows all parts.
//!
//! The order is the first invariant: [`build`] binds the socket before anything needs a network, a file
//! or a token. So kube-apiserver always reaches a process that answers, at least with a reason.

mod admin_state;
mod background;
mod kms_endpoint;
mod socket_directories;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use kms_plugin::address::{ListenAddress, UnixAddress};
use rustix::process::{Resource, getrlimit};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use transit_client::vault::lease::revocations;

pub use self::background::ReloadSignal;
use self::{
    admin_state::AdminState,
    background::{BackgroundTask, BackgroundTasks},
    kms_endpoint::{KmsEndpoint, ServeContext},
};
use crate::{
    config::{self, ConfigSource, ParseOptions, WatchOptions},
    kms::{v1::KmsV1, v2::KmsV2},
    observe::{heartbeat::Heartbeat, metrics::Metrics},
    server::{
        accept::{CutOff, ServeOptions},
        admin::{self, BoundAdmin},
        inherited::Inherited,
        limits::Limits,
        peer::AllowedPeers,
        socket::{self, BindError, BoundSocket, SocketOptions},
    },
    session::{HealthChecker, KekRefresher, SessionManager, StateStore, health::HealthSettings},
    supervisor,
};

/// How long the exit waits until systemd has the notification that the process stops.
const STOPPING_NOTIFICATION_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the exit waits until the token of an own login is revoked. It is short: kubelet kills the process a while
/// after the shutdown grace.
const REVOCATION_TIMEOUT: Duration = Duration::from_secs(3);

/// The settings that need a restart to change.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The addresses for probes and scrapes.
    pub admin_listen: Vec<ListenAddress>,
    /// Allows connections to Vault without TLS.
    pub allow_http: bool,
    /// The uids that may call.
    pub allowed_peers: AllowedPeers,
    /// Sends concurrent Decrypts to Vault in few requests.
    pub coalescing: bool,
    /// The rendered config file, or a fixed text.
    pub config: ConfigSource,
    /// How health is judged.
    pub health: HealthSettings,
    /// The socket for KMS v2.
    pub listen: UnixAddress,
    /// The socket for KMS v1, if any.
    pub listen_v1: Option<UnixAddress>,
    /// How long calls in flight may take at shutdown.
    pub shutdown_grace: Duration,
    /// Mode and group of the sockets, and whether to take over from a live predecessor.
    pub socket: SocketOptions,
}

/// The daemon: bound, but not yet running.
pub struct App {
    admin: Vec<BoundAdmin>,
    kms: BoundSocket,
    kms_v1: Option<BoundSocket>,
    metrics: Arc<Metrics>,
    settings: Settings,
}

/// Binds all sockets that are not `inherited`. They are served from [`App::run`] on.
///
/// # Errors
/// Fails if an address is in use or cannot be bound. Sockets that were created are removed again.
pub async fn build(settings: Settings, inherited: Inherited) -> Result<App, BindError> {
    // During an upgrade, the predecessor may still hold the admin port.
    let overlap = settings.socket.takeover || inherited.any();
    let kms = match inherited.kms {
        Some(socket) => socket,
        None => socket::bind(&settings.listen, settings.socket).await?,
    };
    let others = async {
        let kms_v1 = match (inherited.kms_v1, &settings.listen_v1) {
            (None, None) => None,
            (None, Some(address)) => Some(socket::bind(address, settings.socket).await?),
            (inherited, _) => inherited,
        };
        let mut admin = Vec::new();
        for address in &settings.admin_listen {
            match admin::bind(address, overlap).await {
                Ok(bound) => admin.push(bound),
                Err(error) => {
                    if let Some(kms_v1) = &kms_v1 {
                        kms_endpoint::remove_unserved(kms_v1).await;
                    }
                    return Err(error);
                }
            }
        }
        Ok((kms_v1, admin))
    };
    let (kms_v1, admin) = match others.await {
        Ok(others) => others,
        Err(error) => {
            kms_endpoint::remove_unserved(&kms).await;
            return Err(error);
        }
    };
    #[expect(
        clippy::expect_used,
        reason = "fails only if two metrics have the same name; a test rules that out"
    )]
    let metrics = Arc::new(Metrics::new().expect("the names of metrics are distinct"));
    Ok(App { admin, kms, kms_v1, metrics, settings })
}

impl App {
    /// Returns the address for KMS calls.
    #[must_use]
    pub fn kms_address(&self) -> &UnixAddress {
        self.kms.address()
    }

    /// Returns the addresses for probes and scrapes, with the ports that the kernel chose.
    pub fn admin_addresses(&self) -> impl Iterator<Item = &ListenAddress> {
        self.admin.iter().map(BoundAdmin::address)
    }

    /// Serves until `shutdown`, then drains. Reads the config again at each `reload`.
    ///
    /// # Errors
    /// Fails if the runtime cannot be set up. Vault and the config never cause an error.
    pub async fn run(self, shutdown: CancellationToken, reload: impl ReloadSignal) -> anyhow::Result<CutOff> {
        let Self { admin, kms, kms_v1, metrics, settings } = self;
        let store = StateStore::new(settings.health, Arc::clone(&metrics));
        let store = if settings.coalescing { store } else { store.without_coalescing() };
        let (store, writers) = store.share();
        let watcher = config::watch(
            settings.config.clone(),
            WatchOptions {
                parse: ParseOptions { allow_http: settings.allow_http },
                ..WatchOptions::default()
            },
        );

        // 1. The endpoints, and the state that the admin thread reports.
        let socket_paths: Vec<PathBuf> =
            [Some(&kms), kms_v1.as_ref()].into_iter().flatten().filter_map(path_of).collect();
        let (kms, kms_state) = KmsEndpoint::new(kms, "listening");
        let (kms_v1, kms_v1_state) =
            kms_v1.map(|kms_v1| KmsEndpoint::new(kms_v1, "listening for KMS v1 too")).unzip();
        let (directory_warnings, received_directory_warnings) = watch::channel(Vec::new());
        let state = Arc::new(AdminState {
            config_warnings: Box::new(watcher.warnings()),
            directory_warnings: received_directory_warnings,
            ended_task: Arc::default(),
            health_checker: Heartbeat::new(),
            metrics: Arc::clone(&metrics),
            runtime: Heartbeat::new(),
            sockets: std::iter::once(kms_state).chain(kms_v1_state).collect(),
            stopping: shutdown.clone(),
            store: Arc::clone(&store),
        });

        // 2. The background tasks. They are dropped when this function returns for any reason; sessions
        // and keys are dropped with them.
        let mut background = BackgroundTasks::default();
        background
            .spawn(BackgroundTask::RuntimeHeartbeat, background::runtime_heartbeat(state.runtime.clone()));
        let health_checker = HealthChecker {
            heartbeat: state.health_checker.clone(),
            metrics: Arc::clone(&metrics),
            reporter: writers.health,
        };
        background.spawn(BackgroundTask::HealthChecker, health_checker.run());
        let kek_refresher = KekRefresher { reporter: writers.calls.clone() };
        background.spawn(BackgroundTask::KekRefresher, kek_refresher.run());
        background.spawn(
            BackgroundTask::SocketDirectories,
            socket_directories::watch(socket_paths, directory_warnings),
        );
        background
            .spawn(BackgroundTask::ConfigReload, background::reload_config(reload, watcher.reload_handle()));
        let watch_thread = watcher.reload_handle();
        background.spawn(BackgroundTask::ConfigWatcher, async move { watch_thread.ended().await });
        // It is no background task: it ends when the last session is gone, and must outlive them.
        let (revoker, revocations) = revocations();
        let revocations = tokio::spawn(revocations.run());
        background.spawn(
            BackgroundTask::SessionManager,
            SessionManager::new(watcher, writers.sessions, revoker, Arc::clone(&metrics)).run(),
        );
        background.spawn(BackgroundTask::ReadyNotification, background::notify_ready(state.sockets.clone()));
        let watched = Arc::clone(&state);
        background.spawn(BackgroundTask::Watchdog, async move {
            match supervisor::watchdog(|| admin::AdminReport::live(&*watched).is_ok()).await {}
        });
        let stopping = shutdown.clone();
        let stopping_notified = tokio::spawn(async move {
            stopping.cancelled().await;
            supervisor::stopping().await;
        });

        // 3. The admin thread, then the KMS sockets.
        let ended_task = Arc::clone(&state.ended_task);
        let admin = admin::spawn(admin, state).await.context("cannot start the admin thread")?;
        // The two KMS sockets share the file descriptors.
        let sockets = 1 + u64::from(kms_v1.is_some());
        let open_files = getrlimit(Resource::Nofile).current.map(|files| files / sockets);
        let context = ServeContext {
            options: ServeOptions {
                grace: settings.shutdown_grace,
                limits: Limits::default().for_open_files(open_files),
                metrics: Arc::clone(&metrics),
                peers: settings.allowed_peers,
            },
            shutdown,
            socket: settings.socket,
            store,
        };
        let v2 = KmsV2::new(writers.calls.clone(), Arc::clone(&metrics)).into_server();
        let v1 = KmsV1::new(writers.calls, metrics).into_server();
        let mut serving = Box::pin(async {
            let v2 = kms.serve(v2, &context);
            let Some(kms_v1) = kms_v1 else { return v2.await };
            let (v2, v1) = tokio::try_join!(v2, kms_v1.serve(v1, &context))?;
            Ok(v2.and(v1))
        });
        let cut_off = loop {
            tokio::select! {
                cut_off = &mut serving => break cut_off?,
                Some(task) = background.ended() => {
                    // Calls are still served with the published state, but nothing updates it any more.
                    error!(%task, "a background task has ended: this is a bug; /livez fails, to have the process restarted");
                    // The first one is reported: others may end because of it.
                    let _ = ended_task.set(task);
                }
            }
        };

        // 4. The end.
        // The services hold the published session.
        drop(serving);
        if context.shutdown.is_cancelled() {
            // A drain may be faster than the notification. Without it, systemd takes the exit for a crash.
            drop(timeout(STOPPING_NOTIFICATION_TIMEOUT, stopping_notified).await);
        }
        admin.stop().await;
        background.shutdown().await;
        // The last users of the session are gone, so a token of an own login is revoked.
        drop(context);
        if timeout(REVOCATION_TIMEOUT, revocations).await.is_err() {
            info!("a token was not revoked in time; it stays valid until its TTL ends");
        }
        info!("stopped ({} calls and {} connections were cut off)", cut_off.calls, cut_off.connections);
        Ok(cut_off)
    }
}

/// Returns the path of a socket, unless it is an abstract one.
fn path_of(socket: &BoundSocket) -> Option<PathBuf> {
    Some(socket.address().path()?.to_owned())
}
