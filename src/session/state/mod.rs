//! Publishes the state from which Status, Encrypt and Decrypt are answered.
//!
//! A [`Snapshot`] is immutable: session, key version and key_id. Its health is stored beside it, and
//! [`StateStore::read`] returns both at once, so that no reader sees the key_id of one moment with the key
//! version of another.
//!
//! There are three kinds of writers, and each has a handle with its own methods only:
//!
//! - [`SessionPublisher`]: the session manager publishes sessions, and why the newest config is not in use
//!   or the next login fails.
//! - [`HealthReporter`]: the health checker reports whether a health check passed, with new keys if it did.
//! - [`CallReporter`]: KMS calls and the KEK refresher report requests that failed.
//!
//! Two rules make every interleaving of these writers safe. A report names the generation of the session that
//! it is about, and is dropped if another session is in use: a refusal of a replaced token says nothing
//! about the new one. A [`Verification`](super::verification::Verification) names the key_id that it was
//! compared with, and is dropped if another one has been published since. Therefore a slow health check or a
//! new session does not move the key version back.

mod announce;
mod published;
mod writers;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tracing::{info, warn};
use transit_client::key_id::Scope;

use self::published::State;
pub use self::{
    published::{Published, Snapshot},
    writers::{CallReporter, HealthReporter, NewSession, Outdated, SessionPublisher, Writers},
};
use super::{
    health::{HealthSettings, StatusAnswer},
    kek_store::KekStore,
};
use crate::observe::{labels::HealthState, metrics::Metrics};

/// Holds the published state.
pub struct StateStore {
    check_request: Notify,
    coalescing: bool,
    /// The additional keys that a Decrypt was denied for, in the session of this generation. Each is logged
    /// once.
    denied: Mutex<(Option<u64>, HashSet<Scope>)>,
    /// The local KEKs in memory.
    pub keks: KekStore,
    /// The health that was logged last.
    last_logged: Mutex<LoggedHealth>,
    metrics: Arc<Metrics>,
    settings: HealthSettings,
    state: watch::Sender<State>,
}

/// Health, as far as a change of it is logged.
#[derive(Clone, Copy, Eq, PartialEq)]
enum LoggedHealth {
    /// Status is `ok` only for a grace.
    Outage,
    State(HealthState),
}

impl LoggedHealth {
    fn of(answer: &StatusAnswer) -> Self {
        match answer {
            StatusAnswer::Ok { in_grace: true } => Self::Outage,
            other => Self::State(other.state()),
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Outage => "outage",
            Self::State(state) => state.label(),
        }
    }
}

impl StateStore {
    /// Creates a store without a session.
    #[must_use]
    pub fn new(settings: HealthSettings, metrics: Arc<Metrics>) -> Self {
        Self {
            check_request: Notify::new(),
            coalescing: true,
            denied: Mutex::default(),
            keks: KekStore::new(Arc::clone(&metrics)),
            last_logged: Mutex::new(LoggedHealth::State(HealthState::Unknown)),
            metrics,
            settings,
            state: watch::Sender::new(State::starting()),
        }
    }

    /// Sends every Decrypt to Vault in a request of its own.
    #[must_use]
    pub fn without_coalescing(self) -> Self {
        Self { coalescing: false, ..self }
    }

    /// Returns the store for readers, and the handles of its writers.
    #[must_use]
    pub fn share(self) -> (Arc<Self>, Writers) {
        let store = Arc::new(self);
        let writers = Writers::new(&store);
        (store, writers)
    }

    /// Returns further handles of the writers.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn writers(self: &Arc<Self>) -> Writers {
        Writers::new(self)
    }

    /// How health is judged.
    #[must_use]
    pub fn settings(&self) -> HealthSettings {
        self.settings
    }

    /// The session in use and its keys; `None` before the first session.
    #[must_use]
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.state.borrow().current.as_ref().map(|current| Arc::clone(&current.snapshot))
    }

    /// The published state. Costs no I/O.
    #[must_use]
    pub fn read(&self) -> Published {
        self.state.borrow().published(Instant::now(), self.settings, &self.keks)
    }

    /// The answer to Status, and the snapshot whose key_id belongs to it. Costs no I/O.
    #[must_use]
    pub fn status(&self) -> (StatusAnswer, Option<Arc<Snapshot>>) {
        let now = self.read();
        (now.answer, now.snapshot)
    }

    /// Why neither the next login nor the newest config replaces the session in use; empty if none is to do so.
    #[must_use]
    pub fn obstacles(&self) -> Vec<String> {
        self.state.borrow().obstacles().collect()
    }

    /// Asks for a health check now.
    pub fn request_health_check(&self) {
        self.check_request.notify_one();
    }

    /// Waits until a health check is requested.
    pub async fn health_check_requested(&self) {
        self.check_request.notified().await;
    }

    /// Waits until a session is published and its last health check has passed.
    pub async fn healthy(&self) {
        self.published_when(Published::is_healthy).await;
    }

    /// Waits until a session is published, or it is known why the config cannot be used.
    pub async fn session_or_config_error(&self) {
        self.published_when(|now| now.snapshot.is_some() || self.state.borrow().has_outcome).await;
    }

    /// Waits for a session newer than that of `generation`, or until a health check shows that the token of
    /// that session is valid after all.
    pub async fn valid_token_after(&self, generation: Option<u64>) -> Published {
        self.published_when(|now| now.generation() > generation || now.token_invalid_for.is_none()).await
    }

    /// Waits until the session in use is newer than that of `generation`.
    pub async fn session_after(&self, generation: u64) {
        self.published_when(|now| now.generation() > Some(generation)).await;
    }

    /// Waits until Encrypt need not wait for a local KEK any longer: a KEK may be used, or none is needed, or
    /// the session is not healthy, so that no new KEK is to be expected.
    pub async fn usable_kek_or_reason(&self) -> Published {
        let is_decided = |now: &Published| match &now.snapshot {
            Some(snapshot) if now.is_healthy() => {
                snapshot.local_kek.is_none() || snapshot.has_usable_kek(&self.keks)
            }
            _ => true,
        };
        // That a KEK can be used again does not change the state.
        let mut added = self.keks.additions();
        loop {
            tokio::select! {
                now = self.published_when(is_decided) => return now,
                () = changed(&mut added) => {}
            }
        }
    }

    /// Waits until the token in use is found invalid; returns once for each time that happens. `last` is the
    /// generation of the last return.
    pub async fn token_invalidated(&self, last: &mut Option<u64>) {
        let mut state = self.state.subscribe();
        loop {
            let now = self.read();
            let invalid = now.token_invalid_for.and_then(|_| now.generation());
            if invalid != std::mem::replace(last, invalid) && invalid.is_some() {
                return;
            }
            changed(&mut state).await;
        }
    }

    /// Waits until `holds`, which is checked after each change of the state.
    async fn published_when(&self, holds: impl Fn(&Published) -> bool) -> Published {
        let mut state = self.state.subscribe();
        loop {
            let now = self.read();
            if holds(&now) {
                return now;
            }
            changed(&mut state).await;
        }
    }

    /// Updates the metrics that change with time alone.
    pub fn update_metrics(&self) {
        self.log_health();
        let snapshot = self.snapshot();
        let kek = snapshot.as_ref().and_then(|snapshot| snapshot.local_kek.as_ref());
        self.metrics.local_kek.set_times(kek.and_then(|kek| self.keks.life(kek)));
        let nodes = snapshot.as_ref().and_then(|snapshot| snapshot.nodes.as_ref());
        for (node, up) in nodes.into_iter().flat_map(|nodes| nodes.health()) {
            self.metrics.client.set_node_up(&node, up);
        }
    }

    /// Sets the health metric to the answer to Status, and logs a change of it.
    fn log_health(&self) {
        let Published { answer, outage, .. } = self.read();
        self.metrics.health.set_state(answer.state());
        let health = LoggedHealth::of(&answer);
        let Ok(mut last_logged) = self.last_logged.lock() else { return };
        let before = std::mem::replace(&mut *last_logged, health);
        if before == health {
            return;
        }
        let before = before.label();
        match &answer {
            StatusAnswer::Ok { in_grace: false } => info!(before, "healthy"),
            StatusAnswer::Ok { in_grace: true } => warn!(
                reason = outage.as_deref(),
                grace_seconds = self.settings.outage_grace.as_secs(),
                "Vault cannot be used; Status stays ok for the outage grace"
            ),
            _ => warn!(before, state = health.label(), reason = answer.reason(), "Status is not ok"),
        }
    }
}

/// Waits for the next change. Never returns if there can be none, so that no caller loops without a pause.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
