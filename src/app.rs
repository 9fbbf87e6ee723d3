//! Composes the daemon; the only place that knows all parts.
//!
//! The order is the first invariant: the socket is bound before anything that could
//! need a network, a file or a token, so that kube-apiserver always finds somebody who
//! answers, if only with a reason.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use kms_plugin::address::{ListenAddress, UnixAddress};
use rustix::process::{Resource, getrlimit};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use transit_client::key_id::key_id_hash;

use crate::{
    config::{self, ParseOptions, WatchOptions},
    exposure,
    kms::{v1::KmsV1, v2::KmsV2},
    observe::{heartbeat::Heartbeat, metrics::Metrics},
    server::{
        accept::{self, CutOff, GrpcService, Limits},
        admin::{self, AdminHandle, BoundAdmin, Inspect},
        inherited::Inherited,
        peer::AllowedPeers,
        socket::{self, BindError, BoundSocket, SocketFile, SocketOptions},
        takeover::{self, Listeners, Stand, Watched},
    },
    session::{
        HealthChecker, KekRefresher, SessionManager, StateStore,
        health::{HealthSettings, StatusAnswer},
    },
    supervisor,
};

/// How long the end waits for systemd to be told of it.
const STOPPING_TOLD_WITHIN: Duration = Duration::from_secs(1);
/// How often the data plane's runtime shows that it turns.
const RUNTIME_BEAT: Duration = Duration::from_secs(1);
/// A runtime that has not turned for so long is stuck.
const RUNTIME_STUCK: Duration = Duration::from_secs(10);
/// How often the directories of the sockets are looked at.
const LOOK_AT_DIRECTORIES: Duration = Duration::from_secs(5);
/// Longer than the longest probe and the keeper's patience with it.
const HEALTH_CHECKER_MARGIN: Duration = Duration::from_secs(30);

/// How long connections wait for us to know anything: a session, or why there is none. An answer that
/// all is unknown would cost kube-apiserver ten seconds until it asks again, and a caller gives up
/// after three, of which a predecessor's drain may have taken some.
const FIRST_NEWS_WITHIN: Duration = Duration::from_secs(2);

/// Everything that needs a restart to change.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where probes and scrapes are answered.
    pub admin_listen: Vec<ListenAddress>,
    /// Whether Vault may be spoken to without TLS.
    pub allow_http: bool,
    /// Who may call.
    pub allowed_peers: AllowedPeers,
    /// Whether Decrypts that come at the same time are asked of Vault together.
    pub coalescing: bool,
    /// The rendered file.
    pub config: PathBuf,
    /// How health is judged.
    pub health: HealthSettings,
    /// Where kube-apiserver calls.
    pub listen: UnixAddress,
    /// Where it calls for what was written under KMS v1.
    pub listen_v1: Option<UnixAddress>,
    /// How long calls in flight may take at the end.
    pub shutdown_grace: Duration,
    /// Mode and group of the sockets, and whether a live predecessor is succeeded.
    pub socket: SocketOptions,
}

/// The daemon, bound but not yet running.
pub struct App {
    admin: Vec<BoundAdmin>,
    kms: BoundSocket,
    kms_v1: Option<BoundSocket>,
    metrics: Arc<Metrics>,
    settings: Settings,
}

/// Binds everything that is not `inherited`; nothing is served before [`App::run`].
///
/// # Errors
/// If an address is taken or cannot be made.
pub async fn build(settings: Settings, inherited: Inherited) -> Result<App, BindError> {
    // In an upgrade the predecessor may still hold the admin port.
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
                        forget(kms_v1).await;
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
            forget(&kms).await;
            return Err(error);
        }
    };
    #[expect(clippy::expect_used, reason = "fails only if two metrics share a name, which a test rules out")]
    let metrics = Arc::new(Metrics::new().expect("the names of metrics are distinct"));
    Ok(App { admin, kms, kms_v1, metrics, settings })
}

/// Takes a socket away again; else kube-apiserver would find one that no process serves.
async fn forget(socket: &BoundSocket) {
    drop(socket.remove_if_ours().await);
}

impl App {
    /// Where it listens for KMS calls.
    #[must_use]
    pub fn kms_address(&self) -> &UnixAddress {
        self.kms.address()
    }

    /// Where it listens for probes and scrapes, with the ports that the kernel chose.
    pub fn admin_addresses(&self) -> impl Iterator<Item = &ListenAddress> {
        self.admin.iter().map(BoundAdmin::address)
    }

    /// Serves until `shutdown`, then drains; `reread` is called for a look at the config.
    ///
    /// # Errors
    /// If the runtime cannot be set up; never because of Vault or the config.
    pub async fn run(self, shutdown: CancellationToken, reread: impl AsyncReread) -> anyhow::Result<CutOff> {
        let Self { admin, kms, kms_v1, metrics, settings } = self;
        let store = StateStore::new(settings.health, Arc::clone(&metrics));
        let store = if settings.coalescing { store } else { store.without_coalescing() };
        let (store, writers) = store.share();
        let sockets = [Some(&kms), kms_v1.as_ref()];
        let sockets: Vec<PathBuf> =
            sockets.into_iter().flatten().filter_map(|kms| Some(kms.address().path()?.to_owned())).collect();
        let (kms, stand) = Front::new(kms, "listening");
        let (kms_v1, stand_v1) = kms_v1.map(|kms| Front::new(kms, "listening for KMS v1 too")).unzip();
        let watcher = config::watch(
            settings.config.clone(),
            WatchOptions {
                parse: ParseOptions { allow_http: settings.allow_http },
                ..WatchOptions::default()
            },
        );
        let (directories, directory_warnings) = watch::channel(Vec::new());
        let inspector = Inspector {
            store: Arc::clone(&store),
            config_warnings: Box::new(watcher.warnings()),
            directory_warnings,
            ended: Arc::default(),
            metrics: Arc::clone(&metrics),
            health_checker: Heartbeat::new(),
            runtime: Heartbeat::new(),
            stands: std::iter::once(stand).chain(stand_v1).collect(),
            stopping: shutdown.clone(),
        };
        let inspector = Arc::new(inspector);

        // Dropped at the end of this function, whatever ends it; sessions and keys go with them.
        let mut background = JoinSet::new();
        background.spawn(beat(inspector.runtime.clone()));
        let health_checker = HealthChecker {
            heartbeat: inspector.health_checker.clone(),
            metrics: Arc::clone(&metrics),
            reporter: writers.health,
        };
        background.spawn(health_checker.run());
        background.spawn(KekRefresher { reporter: writers.calls.clone() }.run());
        background.spawn(watch_directories(sockets, directories));
        let reload = watcher.reload_handle();
        let watching = watcher.reload_handle();
        background.spawn(async move { watching.ended().await });
        background.spawn(async move {
            while reread.wanted().await {
                reload.reload().await;
            }
            std::future::pending::<()>().await;
        });
        background.spawn(SessionManager::new(watcher, writers.sessions, Arc::clone(&metrics)).run());

        let ended = Arc::clone(&inspector.ended);
        let stands = inspector.stands.clone();
        background.spawn(async move {
            for mut stand in stands {
                // Fails only if the socket is served no more.
                drop(stand.wait_for(|stand| *stand != Stand::Waiting).await);
            }
            supervisor::ready().await;
            std::future::pending().await
        });
        let stopping = shutdown.clone();
        let stopping_told = tokio::spawn(async move {
            stopping.cancelled().await;
            supervisor::stopping().await;
        });
        let inspected = Arc::clone(&inspector);
        background.spawn(async move { match supervisor::watchdog(|| inspected.live().is_ok()).await {} });
        let admin: AdminHandle =
            admin::spawn(admin, inspector).await.context("cannot start the admin thread")?;
        // The two share what the limits are made of.
        let sockets = 1 + u64::from(kms_v1.is_some());
        let open_files = getrlimit(Resource::Nofile).current.map(|most| most / sockets);
        let backstage = Backstage {
            accepting: accept::Settings {
                grace: settings.shutdown_grace,
                limits: Limits::default().within(open_files),
                metrics: Arc::clone(&metrics),
                peers: settings.allowed_peers,
            },
            store,
            shutdown,
            socket: settings.socket,
        };
        let v2 = KmsV2::new(writers.calls.clone(), Arc::clone(&metrics)).into_server();
        let v1 = KmsV1::new(writers.calls, metrics).into_server();
        let serving = async {
            let v2 = kms.serve(v2, &backstage);
            let Some(kms_v1) = kms_v1 else { return v2.await };
            let (v2, v1) = tokio::try_join!(v2, kms_v1.serve(v1, &backstage))?;
            Ok(v2.and(v1))
        };
        tokio::pin!(serving);
        let cut_off = loop {
            tokio::select! {
                cut_off = &mut serving => break cut_off?,
                Some(_) = background.join_next() => {
                    // Calls go on with what there is, but nothing follows what changes any more.
                    error!("a background task has ended: this is a bug; /livez fails, so that we are restarted");
                    ended.store(true, Ordering::Relaxed);
                }
            }
        };
        if backstage.shutdown.is_cancelled() {
            // A drain may be quicker than the message, and systemd must not take the end for a crash.
            drop(timeout(STOPPING_TOLD_WITHIN, stopping_told).await);
        }
        admin.stop().await;
        background.shutdown().await;
        info!(
            calls = cut_off.calls,
            connections = cut_off.connections,
            "stopped; calls and connections cut off"
        );
        Ok(cut_off)
    }
}

/// What both KMS sockets are served with.
struct Backstage {
    accepting: accept::Settings,
    store: Arc<StateStore>,
    shutdown: CancellationToken,
    socket: SocketOptions,
}

/// One KMS socket, from its turn at the path to the end of its drain.
struct Front {
    listening: &'static str,
    socket: BoundSocket,
    stand: watch::Sender<Stand>,
}

impl Front {
    /// And how it stands; `listening` is logged once it serves.
    fn new(socket: BoundSocket, listening: &'static str) -> (Self, watch::Receiver<Stand>) {
        let (stand, seen) = watch::channel(Stand::Waiting);
        (Self { listening, socket, stand }, seen)
    }

    async fn serve(mut self, service: impl GrpcService, backstage: &Backstage) -> anyhow::Result<CutOff> {
        let Backstage { accepting, store, shutdown, socket: options } = backstage;
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {
                // The predecessor serves on.
                forget(&self.socket).await;
                return Ok(CutOff::default());
            }
            () = takeover::take_over(&mut self.socket, *options, store.healthy()) => {}
        }
        let (listener, mut file) = self.socket.into_listener().context("cannot serve the KMS socket")?;
        let (listeners, to_listeners) = Listeners::new(listener);
        let watched =
            Watched { options: *options, listeners: to_listeners, stand: &self.stand, stopping: shutdown };
        info!(socket = %file.address(), "{}", self.listening);
        self.stand.send_replace(Stand::Serving);
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = knows_anything(store) => {}
        }
        let cut_off = tokio::select! {
            cut_off = accept::serve(listeners, service, accepting.clone(), shutdown.clone()) => cut_off,
            never = takeover::watch(&mut file, &watched) => match never {},
        };
        remove(&file).await;
        Ok(cut_off)
    }
}

async fn remove(file: &SocketFile) {
    let socket = file.address();
    match file.remove_if_ours().await {
        Ok(true) => {}
        Ok(false) if file.has_file() => {
            info!(%socket, "the socket's path is left as it is: {} listens there", takeover::whose(file));
        }
        Ok(false) => {}
        Err(error) => {
            warn!(%socket, %error, "the socket could not be removed; the next start replaces it");
        }
    }
}

/// Tells when somebody wants the config read at once, as SIGHUP does.
pub trait AsyncReread: Send + 'static {
    /// Resolves with true each time, with false if that can never be again.
    fn wanted(&self) -> impl Future<Output = bool> + Send;
}

/// Waits for the first news, but no longer than callers would.
async fn knows_anything(store: &StateStore) {
    drop(timeout(FIRST_NEWS_WITHIN, store.session_or_config_error()).await);
}

async fn beat(heart: Heartbeat) {
    let mut ticks = interval(RUNTIME_BEAT);
    loop {
        ticks.tick().await;
        heart.beat();
    }
}

/// Looks for ever who else may write to the directories of `sockets`.
async fn watch_directories(sockets: Vec<PathBuf>, known: watch::Sender<Vec<String>>) {
    let sockets = Arc::new(sockets);
    let mut ticks = interval(LOOK_AT_DIRECTORIES);
    loop {
        ticks.tick().await;
        let looked_at = Arc::clone(&sockets);
        let look = move || {
            let mut warnings: Vec<String> =
                looked_at.iter().flat_map(|socket| exposure::of_socket(socket)).collect();
            warnings.sort();
            warnings.dedup();
            warnings
        };
        // Only a panic or the end of the runtime leaves no answer.
        let Ok(found) = tokio::task::spawn_blocking(look).await else { continue };
        known.send_if_modified(|known| {
            for warning in found.iter().filter(|warning| !known.contains(warning)) {
                warn!(%warning, "socket");
            }
            let news = *known != found;
            if news && found.is_empty() {
                info!("no other user can write to the socket's directory any more");
            }
            *known = found;
            news
        });
    }
}

/// What the admin listeners are told; asked on their thread, not on ours.
struct Inspector {
    store: Arc<StateStore>,
    /// Of the file as it is now.
    config_warnings: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    directory_warnings: watch::Receiver<Vec<String>>,
    /// A task that runs for ever has ended.
    ended: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
    health_checker: Heartbeat,
    runtime: Heartbeat,
    stands: Vec<watch::Receiver<Stand>>,
    /// From SIGTERM on.
    stopping: CancellationToken,
}

impl Inspector {
    /// How the socket stands that stands worst, unless all serve.
    fn not_serving(&self) -> Option<Stand> {
        let stands = self.stands.iter().map(|stand| stand.borrow().clone());
        stands.filter(|stand| *stand != Stand::Serving).max_by_key(|stand| match stand {
            Stand::Serving => 0,
            Stand::Superseded(_) => 1,
            Stand::Unreachable(_) => 2,
            Stand::Waiting => 3,
        })
    }

    /// What the operator should know, behind whatever `/readyz` says.
    fn with_warnings(&self, mut text: String) -> String {
        let mut warnings = (self.config_warnings)();
        warnings.extend(self.directory_warnings.borrow().iter().cloned());
        for warning in warnings {
            text.push_str("; warning: ");
            text.push_str(&warning);
        }
        text
    }

    /// Why no new connection gets an answer, of this process or a successor, whatever Status says.
    fn takes_no_connections(&self) -> Option<String> {
        // A rollout stops the predecessor of a pod that is ready: by then the path must be its own. A
        // superseded process stays ready: a client that connects is answered.
        let stand = self.not_serving().filter(|stand| !matches!(stand, Stand::Superseded(_)))?;
        Some(stand.to_string())
    }
}

impl Inspect for Inspector {
    fn live(&self) -> Result<(), String> {
        let stuck = |what: &str, age: Duration| Err(format!("{what} has been stuck for {} s", age.as_secs()));
        if self.ended.load(Ordering::Relaxed) {
            return Err("a background task has ended, which is a bug".into());
        }
        let runtime = self.runtime.age();
        if runtime > RUNTIME_STUCK {
            return stuck("the runtime", runtime);
        }
        let health_checker = self.health_checker.age();
        if health_checker > self.store.settings().health_check_interval + HEALTH_CHECKER_MARGIN {
            return stuck("the health checker", health_checker);
        }
        Ok(())
    }

    fn metrics(&self) -> Result<String, String> {
        self.store.update_metrics();
        let superseded = matches!(self.not_serving(), Some(Stand::Superseded(_)));
        self.metrics.server.set_superseded(superseded);
        self.metrics.render().map_err(|error| error.to_string())
    }

    fn ready(&self) -> Result<String, String> {
        match self.readiness() {
            Ok(text) => Ok(self.with_warnings(text)),
            Err(reason) => Err(self.with_warnings(reason)),
        }
    }
}

impl Inspector {
    fn readiness(&self) -> Result<String, String> {
        if self.stopping.is_cancelled() {
            return Err("stopping: calls in flight are finished, and no new connection is taken".into());
        }
        let (answer, snapshot) = self.store.status();
        match (answer.reason(), snapshot, self.takes_no_connections()) {
            (Some(reason), ..) => Err(reason.to_owned()),
            (None, None, _) => Err("nothing is known yet".into()),
            (None, Some(_), Some(why)) => Err(why),
            (None, Some(snapshot), None) => {
                let current = snapshot.keyring.current();
                let mut text = format!(
                    "ok: session {}, key {} version {}, key_id {} ({})",
                    snapshot.generation,
                    current.key,
                    current.version,
                    current.key_id,
                    key_id_hash(&current.key_id)
                );
                if answer == (StatusAnswer::Ok { in_grace: true }) {
                    text.push_str("; Vault does not answer right now, within ");
                    text.push_str(match snapshot.local_kek {
                        Some(_) => "the time of the local KEK",
                        None => "the outage grace",
                    });
                }
                if let Some(config_error) = self.store.config_error() {
                    text.push_str("; the newest config is not in use: ");
                    text.push_str(&config_error);
                }
                if let Some(stand) = self.not_serving() {
                    text.push_str(&format!("; {stand}"));
                }
                Ok(text)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspector(runtime: Duration, health_checker: Duration) -> Inspector {
        let metrics = Arc::new(Metrics::new().unwrap());
        let health = HealthSettings {
            outage_grace: Duration::from_secs(60),
            health_check_interval: Duration::from_secs(30),
        };
        Inspector {
            store: StateStore::new(health, Arc::clone(&metrics)).share().0,
            config_warnings: Box::new(Vec::new),
            directory_warnings: watch::channel(Vec::new()).1,
            ended: Arc::default(),
            metrics,
            health_checker: Heartbeat::aged(health_checker),
            runtime: Heartbeat::aged(runtime),
            stands: Vec::new(),
            stopping: CancellationToken::new(),
        }
    }

    #[test]
    fn livez_fails_only_if_something_of_ours_is_stuck() {
        let seconds = Duration::from_secs;
        // Nothing is known of Vault at all, and yet:
        assert_eq!(inspector(seconds(5), seconds(55)).live(), Ok(()));
        assert!(inspector(seconds(12), seconds(0)).live().unwrap_err().contains("runtime"));
        let ended = inspector(seconds(0), seconds(0));
        ended.ended.store(true, Ordering::Relaxed);
        assert!(ended.live().unwrap_err().contains("has ended"));
        assert!(inspector(seconds(0), seconds(62)).live().unwrap_err().contains("health checker"));
    }

    #[tokio::test(start_paused = true)]
    async fn who_calls_at_the_start_waits_for_news_and_not_for_ever() {
        let store = inspector(Duration::ZERO, Duration::ZERO).store;
        let callers_patience = Duration::from_secs(3);
        timeout(callers_patience, knows_anything(&store)).await.unwrap();
        // What is being waited for may be there in a moment.
        let sessions = store.writers().sessions;
        sessions.set_progress("waiting for Vault".into());
        assert!(timeout(Duration::from_secs(1), knows_anything(&store)).await.is_err());
        sessions.set_config_error(Some("no config".into()));
        timeout(Duration::from_millis(1), knows_anything(&store)).await.unwrap();
    }

    #[test]
    fn readyz_says_why_not() {
        let inspector = inspector(Duration::ZERO, Duration::ZERO);
        inspector
            .store
            .writers()
            .sessions
            .set_config_error(Some("config.yaml:3: vault.token: must not be empty".into()));
        assert!(inspector.ready().unwrap_err().contains("must not be empty"));
    }
}
