//! Derives the answer to Status from the health of the session in use and from the time.
//!
//! | situation | Status |
//! | --- | --- |
//! | the last health check passed and is recent | `ok` |
//! | Vault is unreachable, and a health check passed before | `ok` for the outage grace, then a reason; with a usable local KEK it stays `ok` (the state store decides that) |
//! | the token is invalid, or the policy refuses | a reason at once |
//! | the key is missing, soft-deleted or recreated | a gRPC error |
//! | no session was published yet | gRPC `Unavailable` |
//!
//! kube-apiserver treats a reason and an error differently: any answer to Status, even one with a reason,
//! extends the life of its DEK seed, so it would continue to write data that cannot be read again. After an
//! error it stops writing within three minutes.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use transit_client::ErrorKind;

use crate::observe::labels::HealthState;

/// Status is not `ok` if the last health check ended more than this many intervals ago.
const MAX_AGE_IN_INTERVALS: u32 = 3;

/// How health is judged, and how often it is checked.
#[derive(Clone, Copy, Debug)]
pub struct HealthSettings {
    /// How long Status stays `ok` while Vault is unreachable.
    pub outage_grace: Duration,
    /// The time between two health checks of a healthy session.
    pub health_check_interval: Duration,
}

/// The health of the session in use: the result of its last health check, or of a later call.
#[derive(Clone, Debug)]
pub enum Health {
    /// Encrypt and Decrypt work.
    Good,
    /// What this key has encrypted cannot be decrypted any more.
    KeyLost {
        /// The cause and the remedy.
        reason: Arc<str>,
    },
    /// Vault answers and refuses.
    Refused {
        /// When this began.
        since: Instant,
        /// The cause and the remedy.
        reason: Arc<str>,
        /// The token is invalid. Otherwise the policy or the type of the key is the cause.
        token_invalid: bool,
    },
    /// Vault does not answer, or its answers cannot be used.
    Unreachable {
        /// When this began.
        since: Instant,
        /// The cause and the remedy.
        reason: Arc<str>,
    },
}

impl Health {
    /// Returns the health after a failure of this `kind` at `now`.
    ///
    /// Unreachability does not replace a refusal or a lost key, because it does not show that they are over.
    #[must_use]
    pub fn after(&self, kind: ErrorKind, message: &str, now: Instant) -> Self {
        let reason: Arc<str> = message.into();
        match kind {
            ErrorKind::KeyNotFound => Self::KeyLost { reason },
            ErrorKind::Config
            | ErrorKind::Denied
            | ErrorKind::TokenInvalid
            | ErrorKind::VersionTooOld
            | ErrorKind::BadCiphertext => {
                let invalid = kind == ErrorKind::TokenInvalid;
                // Calls wait a limited time for a new token. That time starts when the token becomes invalid,
                // even if the policy had refused before.
                let since = match self {
                    Self::Refused { since, token_invalid, .. } if *token_invalid == invalid => *since,
                    _ => now,
                };
                Self::Refused { since, reason, token_invalid: invalid }
            }
            ErrorKind::DeadlineExceeded
            | ErrorKind::VersionUnavailable
            | ErrorKind::InvalidResponse
            | ErrorKind::Throttled
            | ErrorKind::BatchTooLarge
            | ErrorKind::Unreachable => match self {
                Self::KeyLost { .. } | Self::Refused { .. } => self.clone(),
                Self::Unreachable { since, .. } => Self::Unreachable { since: *since, reason },
                Self::Good => Self::Unreachable { since: now, reason },
            },
        }
    }

    /// Returns the answer to Status at `now`, if the last health check ended at `checked`.
    #[must_use]
    pub fn answer(&self, checked: Instant, now: Instant, settings: HealthSettings) -> StatusAnswer {
        let age = now.saturating_duration_since(checked);
        let stale = age > settings.health_check_interval * MAX_AGE_IN_INTERVALS;
        match self {
            Self::KeyLost { reason } => StatusAnswer::KeyLost(reason.to_string()),
            Self::Refused { reason, .. } => {
                StatusAnswer::NotOk { state: HealthState::Refused, reason: reason.to_string() }
            }
            _ if stale => StatusAnswer::NotOk {
                state: HealthState::Stale,
                reason: format!(
                    "the last health check of the session ended {} s ago, more than three intervals",
                    age.as_secs()
                ),
            },
            Self::Unreachable { since, reason } => {
                let outage = now.saturating_duration_since(*since);
                if outage < settings.outage_grace {
                    StatusAnswer::Ok { in_grace: true }
                } else {
                    StatusAnswer::NotOk {
                        state: HealthState::Unreachable,
                        reason: format!("Vault has not been usable for {} s: {reason}", outage.as_secs()),
                    }
                }
            }
            Self::Good => StatusAnswer::Ok { in_grace: false },
        }
    }
}

/// The answer to Status.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum StatusAnswer {
    /// The gRPC error `FailedPrecondition`: the key is lost.
    KeyLost(String),
    /// The gRPC error `Unavailable`: no session was published yet.
    Unknown(String),
    /// `healthz` is the reason.
    NotOk {
        /// The state in metrics.
        state: HealthState,
        /// The cause and the remedy.
        reason: String,
    },
    /// `healthz` is `ok`.
    Ok {
        /// Vault is unreachable, and the outage grace or a local KEK covers that.
        in_grace: bool,
    },
}

impl StatusAnswer {
    /// The state in metrics.
    #[must_use]
    pub fn state(&self) -> HealthState {
        match self {
            Self::KeyLost(_) => HealthState::KeyLost,
            Self::Unknown(_) => HealthState::Unknown,
            Self::NotOk { state, .. } => *state,
            Self::Ok { .. } => HealthState::Ok,
        }
    }

    /// Why Status is not `ok`, or `None` if it is.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::KeyLost(reason) | Self::Unknown(reason) | Self::NotOk { reason, .. } => Some(reason),
            Self::Ok { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: HealthSettings = HealthSettings {
        outage_grace: Duration::from_secs(60),
        health_check_interval: Duration::from_secs(30),
    };

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// Covers each row about a session in use. The last row is tested with the state store.
    #[test]
    fn each_row_of_the_table() {
        let start = Instant::now();
        let at = |health: &Health, checked: u64, now: u64| {
            health.answer(start + seconds(checked), start + seconds(now), SETTINGS)
        };

        let good = Health::Good;
        assert_eq!(at(&good, 0, 90), StatusAnswer::Ok { in_grace: false });
        assert_eq!(at(&good, 0, 91).state(), HealthState::Stale);

        let outage = good.after(ErrorKind::Unreachable, "connection refused", start);
        assert_eq!(at(&outage, 55, 59), StatusAnswer::Ok { in_grace: true });
        assert_eq!(at(&outage, 55, 60).state(), HealthState::Unreachable);
        assert!(at(&outage, 55, 61).reason().unwrap().contains("connection refused"));

        for kind in [ErrorKind::TokenInvalid, ErrorKind::Denied] {
            let refused = good.after(kind, "permission denied", start);
            assert_eq!(at(&refused, 0, 0).state(), HealthState::Refused);
            assert_eq!(at(&refused, 0, 0).reason(), Some("permission denied"));
        }

        let lost = good.after(ErrorKind::KeyNotFound, "the key is gone", start);
        assert_eq!(at(&lost, 0, 0), StatusAnswer::KeyLost("the key is gone".into()));
    }

    #[test]
    fn an_outage_counts_from_its_beginning() {
        let start = Instant::now();
        let first = Health::Good.after(ErrorKind::Unreachable, "a", start);
        let second = first.after(ErrorKind::DeadlineExceeded, "b", start + seconds(50));
        let answer = second.answer(start + seconds(61), start + seconds(61), SETTINGS);
        assert_eq!(answer.state(), HealthState::Unreachable);
    }

    #[test]
    fn an_outage_ends_neither_a_refusal_nor_a_loss() {
        let start = Instant::now();
        for kind in [ErrorKind::KeyNotFound, ErrorKind::TokenInvalid] {
            let bad = Health::Good.after(kind, "no", start);
            let then = bad.after(ErrorKind::Unreachable, "unreachable", start);
            assert_eq!(
                then.answer(start, start, SETTINGS).reason(),
                Some("no"),
                "{kind:?} must survive an outage"
            );
        }
    }
}
