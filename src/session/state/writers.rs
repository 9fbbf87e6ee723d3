//! The writers of the published state: one handle for each kind.

use std::{collections::HashSet, sync::Arc};

use tokio::time::Instant;
use tracing::warn;
use transit_client::{ErrorKind, Transit, TransitError, vault::Pool};

use super::{
    StateStore,
    published::{Current, Snapshot},
};
use crate::{
    config::Encryption,
    session::{
        coalescer::Coalescer, health::Health, kek_store::KekStore, keyring::KeyEntry, local_kek::LocalKek,
        verification::Verification,
    },
};

/// The handles of all writers.
pub struct Writers {
    /// For KMS calls and the KEK refresher.
    pub calls: CallReporter,
    /// For the health checker.
    pub health: HealthReporter,
    /// For the session manager.
    pub sessions: SessionPublisher,
}

impl Writers {
    pub(super) fn new(store: &Arc<StateStore>) -> Self {
        Self {
            calls: CallReporter { store: Arc::clone(store) },
            health: HealthReporter { store: Arc::clone(store) },
            sessions: SessionPublisher { store: Arc::clone(store) },
        }
    }
}

/// A verified session that is to be published.
pub struct NewSession {
    /// What wraps seeds.
    pub encryption: Encryption,
    /// Its nodes; `None` if its Transit engine has none.
    pub nodes: Option<Arc<Pool>>,
    /// The session.
    pub transit: Arc<dyn Transit>,
}

/// Another key_id was published while this one was being verified.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("another key version was published meanwhile")]
pub struct Outdated;

/// Publishes sessions, and why the newest config is not in use or the next login fails. The session manager holds the only one.
pub struct SessionPublisher {
    store: Arc<StateStore>,
}

impl SessionPublisher {
    /// The store, for reading.
    #[must_use]
    pub fn store(&self) -> &Arc<StateStore> {
        &self.store
    }

    /// Publishes a verified session. Calls that hold an earlier snapshot finish on it.
    ///
    /// # Errors
    /// [`Outdated`] if another key_id was published since the verification began: verify the session again.
    pub fn publish(
        &self,
        session: NewSession,
        verification: Verification,
    ) -> Result<Arc<Snapshot>, Outdated> {
        let NewSession { encryption, nodes, transit } = session;
        let store = &self.store;
        let coalescer = Coalescer::new(Arc::clone(&transit), store.coalescing, Arc::clone(&store.metrics));
        let mut published = None;
        store.state.send_if_modified(|state| {
            let before = state.current.as_ref().map(|current| &*current.snapshot);
            if before.map(|before| &before.keyring.current().key_id) != verification.against.as_ref() {
                return false;
            }
            let generation = before.map_or(1, |before| before.generation + 1);
            let limits = match encryption {
                Encryption::LocalKek(limits) => Some(limits),
                Encryption::Transit => None,
            };
            store.keks.configure(generation, limits);
            let parts =
                SessionParts { coalescer: Arc::new(coalescer), encryption, generation, nodes, transit };
            let snapshot = store.verified_snapshot(parts, verification, before);
            published = Some(Arc::clone(&snapshot));
            state.config_error = None;
            state.login_error = None;
            state.current = Some(Current::healthy(snapshot));
            true
        });
        store.log_health();
        published.ok_or(Outdated)
    }

    /// Publishes why the newest config is not in use; `None` if it is.
    pub fn set_config_error(&self, config_error: Option<String>) {
        self.store.state.send_modify(|state| {
            state.config_error = config_error.map(Into::into);
            state.has_outcome = true;
        });
    }

    /// Publishes why no login has brought the next token of the session in use. The next session that is published
    /// clears it.
    pub fn set_login_error(&self, login_error: String) {
        self.store.state.send_modify(|state| state.login_error = Some(login_error.into()));
    }

    /// Publishes what the verification of the newest config waits for. Calls that arrive before the first
    /// session keep waiting for it, because it is usually verified within a moment.
    pub fn set_progress(&self, progress: String) {
        self.store.state.send_modify(|state| state.config_error = Some(progress.into()));
    }
}

/// Reports the results of health checks. The health checker holds the only one.
pub struct HealthReporter {
    store: Arc<StateStore>,
}

impl HealthReporter {
    /// The store, for reading.
    #[must_use]
    pub fn store(&self) -> &Arc<StateStore> {
        &self.store
    }

    /// A health check of the session of `generation` has passed. Ignored if another session is in use, or
    /// another key_id than the one that the verification was compared with.
    pub fn check_passed(&self, generation: u64, verification: Verification) {
        let store = &self.store;
        store.state.send_if_modified(|state| {
            let Some(current) = state.session(generation).filter(|current| {
                Some(&current.snapshot.keyring.current().key_id) == verification.against.as_ref()
            }) else {
                return false;
            };
            let before = Arc::clone(&current.snapshot);
            let parts = SessionParts {
                coalescer: Arc::clone(&before.coalescer),
                encryption: before.encryption,
                generation,
                nodes: before.nodes.clone(),
                transit: Arc::clone(&before.transit),
            };
            *current = Current::healthy(store.verified_snapshot(parts, verification, Some(&before)));
            true
        });
        store.log_health();
    }

    /// A health check of the session of `generation` has failed. Ignored if another session is in use.
    pub fn check_failed(&self, generation: u64, error: &TransitError) {
        self.store.failed(generation, error, Source::HealthCheck);
    }

    /// Sets the health metric to the answer to Status, and logs a change of it. The time alone can change it.
    pub fn log_health(&self) {
        self.store.log_health();
    }
}

/// Reports requests to Vault that failed. KMS calls and the KEK refresher hold one each.
#[derive(Clone)]
pub struct CallReporter {
    store: Arc<StateStore>,
}

impl CallReporter {
    /// The store, for reading.
    #[must_use]
    pub fn store(&self) -> &Arc<StateStore> {
        &self.store
    }

    /// The local KEKs in memory.
    #[must_use]
    pub fn keks(&self) -> &KekStore {
        &self.store.keks
    }

    /// Asks for a health check now.
    pub fn request_health_check(&self) {
        self.store.request_health_check();
    }

    /// A request on the session of `generation` has failed. A refusal changes the health at once. A
    /// failure that may be an outage or a rotation requests a health check. One that concerns only this request
    /// is ignored.
    pub fn call_failed(&self, generation: u64, error: &TransitError) {
        let needs_check = match error.kind {
            ErrorKind::Config | ErrorKind::Denied | ErrorKind::TokenInvalid => {
                self.store.failed(generation, error, Source::Call)
            }
            ErrorKind::DeadlineExceeded
            | ErrorKind::KeyNotFound
            | ErrorKind::VersionUnavailable
            | ErrorKind::InvalidResponse
            | ErrorKind::BatchTooLarge
            | ErrorKind::VersionTooOld
            | ErrorKind::Unreachable => self.store.snapshot().is_some_and(|now| now.generation == generation),
            // With `Throttled`, a health check would only add to the requests that are too many.
            ErrorKind::BadCiphertext | ErrorKind::Throttled => false,
        };
        if needs_check {
            self.request_health_check();
        }
    }

    /// A Decrypt with the key of `entry` has failed on the session of `snapshot`. Only a failure of the key
    /// that encrypts says something about the health of the session. Returns the error for the caller.
    pub fn decrypt_failed(&self, snapshot: &Snapshot, entry: &KeyEntry, error: TransitError) -> TransitError {
        let current = &snapshot.keyring.current().key;
        match error.kind {
            // Vault gives the same answer to an invalid token and to a token of another namespace.
            ErrorKind::TokenInvalid if entry.key.namespace() != current.namespace() => {
                self.request_health_check();
                let message =
                    format!("the token is not accepted in the namespace of the key: {}", error.message);
                return TransitError::new(ErrorKind::Denied, message);
            }
            ErrorKind::TokenInvalid => self.call_failed(snapshot.generation, &error),
            _ if entry.key == *current => self.call_failed(snapshot.generation, &error),
            ErrorKind::Denied => self.log_denied(snapshot.generation, entry, &error),
            _ => {}
        }
        error
    }

    /// Logs once for each session and key: each Decrypt of another provider's value may try the key.
    fn log_denied(&self, generation: u64, entry: &KeyEntry, error: &TransitError) {
        let Ok(mut denied) = self.store.denied.lock() else { return };
        if denied.0 != Some(generation) {
            *denied = (Some(generation), HashSet::new());
        }
        if denied.1.insert(entry.scope) {
            warn!(key = %entry.key, %error, "an additional key may not be used to decrypt; the other keys are still used");
        }
    }
}

/// What a failure was found by.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Source {
    Call,
    HealthCheck,
}

/// The parts of a snapshot that stay as long as its session.
struct SessionParts {
    coalescer: Arc<Coalescer>,
    encryption: Encryption,
    generation: u64,
    nodes: Option<Arc<Pool>>,
    transit: Arc<dyn Transit>,
}

impl StateStore {
    /// Makes the snapshot of a session that was just verified, and announces its keys.
    fn verified_snapshot(
        &self,
        parts: SessionParts,
        verification: Verification,
        before: Option<&Snapshot>,
    ) -> Arc<Snapshot> {
        let SessionParts { coalescer, encryption, generation, nodes, transit } = parts;
        let snapshot = Snapshot {
            coalescer,
            encryption,
            generation,
            local_kek: self.encrypting_kek(encryption, &verification, before, generation),
            canary: Arc::new(verification.canary),
            keyring: verification.keyring,
            nodes,
            transit,
        };
        self.announce(before, &snapshot);
        Arc::new(snapshot)
    }

    /// Returns the KEK that encrypts from now on: the one in use, if it may be used and the current key
    /// version has wrapped it, otherwise the one that the verification has made.
    fn encrypting_kek(
        &self,
        encryption: Encryption,
        verification: &Verification,
        before: Option<&Snapshot>,
        generation: u64,
    ) -> Option<Arc<LocalKek>> {
        let Encryption::LocalKek(limits) = encryption else { return None };
        let current = verification.keyring.current();
        let in_use = before
            .filter(|before| before.keyring.current().key_id == current.key_id)
            .and_then(|before| before.local_kek.as_ref())
            .filter(|kek| !kek.is_worn(limits) && self.keks.is_usable(kek));
        if let Some(kek) = in_use {
            return Some(Arc::clone(kek));
        }
        let kek = Arc::new(verification.canary.local_kek(verification.keyring.entries().first()?.scope)?);
        self.keks.insert_encrypting(Arc::clone(&kek), self.keks.stamp(generation));
        Some(kek)
    }

    /// Changes the health of the session of `generation`. Returns false if that session is not in use.
    fn failed(&self, generation: u64, error: &TransitError, source: Source) -> bool {
        let in_use = self.state.send_if_modified(|state| {
            let Some(current) = state.session(generation) else { return false };
            let now = Instant::now();
            if error.kind == ErrorKind::KeyNotFound {
                current.key_lost = Some(error.message.as_str().into());
            }
            current.health = current.health.after(error.kind, &error.message, now);
            if current.key_lost.is_some() || matches!(current.health, Health::Refused { .. }) {
                self.keks.refused(generation, None);
            }
            if source == Source::HealthCheck {
                current.checked = now;
            }
            true
        });
        self.log_health();
        in_use
    }
}
