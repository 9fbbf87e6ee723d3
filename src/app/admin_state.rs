//! What `/livez`, `/readyz` and `/metrics` report.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use transit_client::key_id::key_id_hash;

use super::background::BackgroundTask;
use crate::{
    observe::{heartbeat::Heartbeat, metrics::Metrics},
    server::{admin::AdminReport, takeover::SocketState},
    session::{StateStore, health::StatusAnswer},
};

/// The runtime is stuck if its heartbeat is older than this.
const RUNTIME_STUCK_AFTER: Duration = Duration::from_secs(10);
/// The health checker is stuck if its heartbeat is older than the interval plus this time, which is
/// longer than the longest health check.
const HEALTH_CHECKER_MARGIN: Duration = Duration::from_secs(30);

/// The state of the daemon, as the admin endpoints report it. The admin thread reads it, so that it can
/// report that the runtime is stuck.
pub(super) struct AdminState {
    /// Returns the current warnings about the config file.
    pub(super) config_warnings: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// The current warnings about the sockets' directories.
    pub(super) directory_warnings: watch::Receiver<Vec<String>>,
    /// The first background task that has ended.
    pub(super) ended_task: Arc<OnceLock<BackgroundTask>>,
    pub(super) health_checker: Heartbeat,
    pub(super) metrics: Arc<Metrics>,
    pub(super) runtime: Heartbeat,
    pub(super) sockets: Vec<watch::Receiver<SocketState>>,
    /// Cancelled at SIGTERM.
    pub(super) stopping: CancellationToken,
    pub(super) store: Arc<StateStore>,
}

impl AdminState {
    /// Returns the worst state of a socket, or `None` if all serve.
    fn not_serving(&self) -> Option<SocketState> {
        let states = self.sockets.iter().map(|state| state.borrow().clone());
        states.filter(|state| *state != SocketState::Serving).max_by_key(|state| match state {
            SocketState::Serving => 0,
            SocketState::Superseded(_) => 1,
            SocketState::Unreachable(_) => 2,
            SocketState::Waiting => 3,
        })
    }

    /// Returns why new connections reach neither this process nor a successor.
    ///
    /// A rollout stops the predecessor once the new pod is ready, so a pod must not be ready before it
    /// has the path. A superseded process stays ready: clients that connect reach its successor.
    fn receives_no_connections(&self) -> Option<String> {
        let state = self.not_serving().filter(|state| !matches!(state, SocketState::Superseded(_)))?;
        Some(state.to_string())
    }

    /// Appends the warnings for the operator.
    fn with_warnings(&self, mut text: String) -> String {
        let mut warnings = (self.config_warnings)();
        warnings.extend(self.directory_warnings.borrow().iter().cloned());
        for warning in warnings {
            text.push_str("; warning: ");
            text.push_str(&warning);
        }
        text
    }

    fn readiness(&self) -> Result<String, String> {
        if self.stopping.is_cancelled() {
            return Err("stopping: finishing calls in flight, accepting no new connections".into());
        }
        let (answer, snapshot) = self.store.status();
        match (answer.reason(), snapshot, self.receives_no_connections()) {
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
                    text.push_str("; Vault does not answer right now; Status stays ok ");
                    text.push_str(match snapshot.local_kek {
                        Some(_) => "while the local KEK is usable",
                        None => "during the outage grace",
                    });
                }
                for obstacle in self.store.obstacles() {
                    text.push_str(&format!("; {obstacle}"));
                }
                if let Some(state) = self.not_serving() {
                    text.push_str(&format!("; {state}"));
                }
                Ok(text)
            }
        }
    }
}

impl AdminReport for AdminState {
    fn live(&self) -> Result<(), String> {
        let stuck = |what: &str, age: Duration| Err(format!("{what} has been stuck for {} s", age.as_secs()));
        if let Some(task) = self.ended_task.get() {
            return Err(format!("the background task {task} has ended, which is a bug"));
        }
        let runtime = self.runtime.age();
        if runtime > RUNTIME_STUCK_AFTER {
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
        let superseded = matches!(self.not_serving(), Some(SocketState::Superseded(_)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{
        health::HealthSettings,
        testing::{Model, SessionBench},
    };

    /// A state whose heartbeats have these ages.
    fn state(runtime: Duration, health_checker: Duration) -> AdminState {
        let metrics = Arc::new(Metrics::new().unwrap());
        let health = HealthSettings {
            outage_grace: Duration::from_secs(60),
            health_check_interval: Duration::from_secs(30),
        };
        AdminState {
            config_warnings: Box::new(Vec::new),
            directory_warnings: watch::channel(Vec::new()).1,
            ended_task: Arc::default(),
            health_checker: Heartbeat::aged(health_checker),
            metrics: Arc::clone(&metrics),
            runtime: Heartbeat::aged(runtime),
            sockets: Vec::new(),
            stopping: CancellationToken::new(),
            store: StateStore::new(health, metrics).share().0,
        }
    }

    #[test]
    fn livez_fails_only_if_this_process_does_not_work() {
        let seconds = Duration::from_secs;
        // It does not fail although nothing is known about Vault.
        assert_eq!(state(seconds(5), seconds(55)).live(), Ok(()));
        assert!(state(seconds(12), seconds(0)).live().unwrap_err().contains("runtime"));
        let ended = state(seconds(0), seconds(0));
        ended.ended_task.set(BackgroundTask::SessionManager).unwrap();
        assert!(ended.live().unwrap_err().contains("task session_manager has ended"));
        assert!(state(seconds(0), seconds(62)).live().unwrap_err().contains("health checker"));
    }

    #[test]
    fn readyz_reports_the_reason() {
        let state = state(Duration::ZERO, Duration::ZERO);
        state
            .store
            .writers()
            .sessions
            .set_config_error(Some("config.yaml:3: vault.token: must not be empty".into()));
        assert!(state.ready().unwrap_err().contains("must not be empty"));
    }

    #[tokio::test(start_paused = true)]
    async fn readyz_reports_a_login_that_fails_while_the_session_works() {
        let bench = SessionBench::ready(Model::new(), &["kms"]).await;
        let store = Arc::clone(&bench.store);
        let state = AdminState { store, ..state(Duration::ZERO, Duration::ZERO) };
        bench.writers.sessions.set_login_error("deliver a new secret_id".into());
        let text = state.ready().unwrap();
        assert!(text.starts_with("ok: session 1, "), "{text}");
        assert!(text.ends_with("; the next login fails: deliver a new secret_id"), "{text}");
        bench.writers.sessions.set_config_error(Some("line 3".into()));
        let text = state.ready().unwrap();
        assert!(text.contains("deliver a new secret_id; the newest config is not in use: line 3"), "{text}");
    }
}
