//! The published state: what readers see at one moment.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use transit_client::{Transit, vault::Pool};

use crate::{
    config::Encryption,
    observe::labels::HealthState,
    session::{
        coalescer::Coalescer,
        health::{Health, HealthSettings, StatusAnswer},
        kek_store::KekStore,
        keyring::Keyring,
        local_kek::LocalKek,
        verification::{Canary, PreviousState},
    },
};

/// The `config_error` before the config was read.
const STARTING: &str = "starting: the config has not been read yet";

/// A verified session with its keys; immutable.
pub struct Snapshot {
    /// What a successor must be able to decrypt.
    pub canary: Arc<Canary>,
    /// Decrypts for calls, over `transit`; it lives as long as the session.
    pub coalescer: Arc<Coalescer>,
    /// What wraps seeds.
    pub encryption: Encryption,
    /// The number of the session; the first session of a process has number 1.
    pub generation: u64,
    /// The keys, as Vault described them when this was published.
    pub keyring: Keyring,
    /// In mode `local-kek`, the KEK that encrypts. The current key version of `keyring` has wrapped it.
    pub local_kek: Option<Arc<LocalKek>>,
    /// The nodes of the session; `None` if its Transit engine has none.
    pub nodes: Option<Arc<Pool>>,
    /// The session. Calls that hold this snapshot finish on it.
    pub transit: Arc<dyn Transit>,
}

/// The published state at one moment.
///
/// A call reads it once and uses only that, so that all parts of its answer are of the same moment.
pub struct Published {
    /// The answer to Status.
    pub answer: StatusAnswer,
    /// Why the newest config is not in use, if it is not.
    pub config_error: Option<Arc<str>>,
    /// Why nothing may be encrypted with the published key, if that is so.
    pub key_lost: Option<Arc<str>>,
    /// Why Vault cannot be used, if that is so.
    pub outage: Option<Arc<str>>,
    /// The session and its keys; `None` before the first session.
    pub snapshot: Option<Arc<Snapshot>>,
    /// How long the session's token has been known to be invalid.
    pub token_invalid_for: Option<Duration>,
}

impl Published {
    /// The generation of the session in use; `None` before the first session.
    #[must_use]
    pub fn generation(&self) -> Option<u64> {
        self.snapshot.as_ref().map(|snapshot| snapshot.generation)
    }

    /// Whether Status is `ok`, and not only for a grace.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.answer == StatusAnswer::Ok { in_grace: false }
    }
}

/// The session in use, with its health.
pub(super) struct Current {
    /// When the last health check ended.
    pub(super) checked: Instant,
    pub(super) health: Health,
    /// Why what the key has encrypted cannot be read. Only a passed health check clears it: an invalid token
    /// or a policy that refuses does not show that the key exists again.
    pub(super) key_lost: Option<Arc<str>>,
    pub(super) snapshot: Arc<Snapshot>,
}

/// All that is published.
pub(super) struct State {
    /// Why the newest config is not in use, or what its verification waits for.
    pub(super) config_error: Option<Arc<str>>,
    pub(super) current: Option<Current>,
    /// `config_error` is the outcome of a config, and not the progress of a verification.
    pub(super) has_outcome: bool,
    /// Why no login has brought the next token of the session in use, if one is due.
    pub(super) login_error: Option<Arc<str>>,
}

impl State {
    /// The state before the config was read.
    pub(super) fn starting() -> Self {
        Self { config_error: Some(STARTING.into()), current: None, has_outcome: false, login_error: None }
    }

    /// Returns what readers see at `now`.
    pub(super) fn published(&self, now: Instant, settings: HealthSettings, keks: &KekStore) -> Published {
        let config_error = self.config_error.clone();
        let Some(current) = &self.current else {
            let reason = config_error.as_deref().unwrap_or("nothing is known yet").to_owned();
            return Published {
                answer: StatusAnswer::Unknown(reason),
                config_error,
                key_lost: None,
                outage: None,
                snapshot: None,
                token_invalid_for: None,
            };
        };
        let mut answer = match &current.key_lost {
            Some(reason) => StatusAnswer::KeyLost(reason.to_string()),
            None => current.health.answer(current.checked, now, settings),
        };
        if answer.state() == HealthState::Unreachable && current.snapshot.has_usable_kek(keks) {
            answer = StatusAnswer::Ok { in_grace: true };
        }
        if let StatusAnswer::NotOk { reason, .. } | StatusAnswer::KeyLost(reason) = &mut answer {
            // What would replace the session may be the remedy, so the operator must see why it does not.
            for obstacle in self.obstacles() {
                *reason = format!("{reason}; {obstacle}");
            }
        }
        let (outage, token_invalid_for) = match &current.health {
            Health::Unreachable { reason, .. } => (Some(Arc::clone(reason)), None),
            Health::Refused { since, token_invalid: true, .. } => {
                (None, Some(now.saturating_duration_since(*since)))
            }
            _ => (None, None),
        };
        Published {
            answer,
            config_error,
            key_lost: current.key_lost.clone(),
            outage,
            snapshot: Some(Arc::clone(&current.snapshot)),
            token_invalid_for,
        }
    }

    /// Why neither the next login nor the newest config replaces the session in use. The login is first, because
    /// the session needs it.
    pub(super) fn obstacles(&self) -> impl Iterator<Item = String> + use<> {
        let login = self.login_error.as_ref().map(|error| format!("the next login fails: {error}"));
        let config =
            self.config_error.as_ref().map(|error| format!("the newest config is not in use: {error}"));
        login.into_iter().chain(config)
    }

    /// The session in use, if it is the one of `generation`.
    pub(super) fn session(&mut self, generation: u64) -> Option<&mut Current> {
        self.current.as_mut().filter(|current| current.snapshot.generation == generation)
    }
}

impl Current {
    /// A session whose verification or health check has just passed.
    pub(super) fn healthy(snapshot: Arc<Snapshot>) -> Self {
        Self { checked: Instant::now(), health: Health::Good, key_lost: None, snapshot }
    }
}

impl Snapshot {
    /// What a session is verified against: nothing is known of the health of this one.
    #[must_use]
    pub fn as_previous_state(&self) -> PreviousState<'_> {
        PreviousState {
            canary: &self.canary,
            is_healthy: false,
            key_lost: false,
            keyring: &self.keyring,
            same_session: false,
        }
    }

    /// Whether the local KEK that encrypts may be used now.
    pub(super) fn has_usable_kek(&self, keks: &KekStore) -> bool {
        self.local_kek.as_ref().is_some_and(|kek| keks.is_usable(kek))
    }
}
