//! The background tasks of the daemon. All of them run until the process exits.

use std::{collections::HashMap, fmt, time::Duration};

use tokio::{
    sync::watch,
    task::{Id, JoinSet},
    time::interval,
};

use crate::{config::ReloadHandle, observe::heartbeat::Heartbeat, server::takeover::SocketState, supervisor};

/// How often the runtime proves that it is not stuck.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// The background tasks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum BackgroundTask {
    /// Reads the config at SIGHUP.
    ConfigReload,
    /// Watches the config file, on a thread of its own.
    ConfigWatcher,
    /// Checks that Transit still works.
    HealthChecker,
    /// Unwraps local KEKs again before their time ends.
    KekRefresher,
    /// Tells systemd once that the sockets are served.
    ReadyNotification,
    /// Proves that the runtime is not stuck.
    RuntimeHeartbeat,
    /// Turns configs into sessions.
    SessionManager,
    /// Checks who can write to the sockets' directories.
    SocketDirectories,
    /// Notifies the watchdog of systemd.
    Watchdog,
}

impl fmt::Display for BackgroundTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConfigReload => "config_reload",
            Self::ConfigWatcher => "config_watcher",
            Self::HealthChecker => "health_checker",
            Self::KekRefresher => "kek_refresher",
            Self::ReadyNotification => "ready_notification",
            Self::RuntimeHeartbeat => "runtime_heartbeat",
            Self::SessionManager => "session_manager",
            Self::SocketDirectories => "socket_directories",
            Self::Watchdog => "watchdog",
        })
    }
}

/// Runs background tasks, and knows which one has ended. Aborts them when it is dropped.
#[derive(Debug, Default)]
pub(super) struct BackgroundTasks {
    ids: HashMap<Id, BackgroundTask>,
    running: JoinSet<()>,
}

impl BackgroundTasks {
    pub(super) fn spawn(&mut self, task: BackgroundTask, future: impl Future<Output = ()> + Send + 'static) {
        let id = self.running.spawn(future).id();
        self.ids.insert(id, task);
    }

    /// Waits until a task ends or panics, which is a bug. Returns `None` if none is running.
    pub(super) async fn ended(&mut self) -> Option<BackgroundTask> {
        loop {
            let id = match self.running.join_next_with_id().await? {
                Ok((id, ())) => id,
                Err(error) => error.id(),
            };
            if let Some(task) = self.ids.remove(&id) {
                return Some(task);
            }
        }
    }

    /// Aborts all tasks and waits until they have been dropped.
    pub(super) async fn shutdown(&mut self) {
        self.running.shutdown().await;
    }
}

/// A signal to read the config now, such as SIGHUP.
pub trait ReloadSignal: Send + 'static {
    /// Waits for the next signal. Returns false if there can be no further one.
    fn received(&self) -> impl Future<Output = bool> + Send;
}

/// Reads the config at each signal.
pub(super) async fn reload_config(signal: impl ReloadSignal, config: ReloadHandle) {
    while signal.received().await {
        config.reload().await;
    }
    std::future::pending().await
}

/// Proves that the runtime is not stuck.
pub(super) async fn runtime_heartbeat(heartbeat: Heartbeat) {
    let mut ticks = interval(HEARTBEAT_INTERVAL);
    loop {
        ticks.tick().await;
        heartbeat.beat();
    }
}

/// Tells systemd that the process is ready, once no socket waits for a predecessor.
pub(super) async fn notify_ready(sockets: Vec<watch::Receiver<SocketState>>) {
    for mut state in sockets {
        // Fails only if the socket is no longer served.
        drop(state.wait_for(|state| *state != SocketState::Waiting).await);
    }
    supervisor::ready().await;
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_or_panics_is_named() {
        let mut background = BackgroundTasks::default();
        assert_eq!(background.ended().await, None);
        background.spawn(BackgroundTask::Watchdog, std::future::pending());
        background.spawn(BackgroundTask::ConfigReload, async { panic!("a test panics on purpose") });
        assert_eq!(background.ended().await, Some(BackgroundTask::ConfigReload));
        background.spawn(BackgroundTask::HealthChecker, async {});
        let ended = background.ended().await.unwrap();
        assert_eq!(ended.to_string(), "health_checker");
        background.shutdown().await;
        assert_eq!(background.ended().await, None);
    }
}
