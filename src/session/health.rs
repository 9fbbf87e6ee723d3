//! What Status says, as a function of what is known and of the time.
//!
//! | situation | Status |
//! | --- | --- |
//! | last probe good and fresh | `ok` |
//! | Vault merely unreachable, and a probe was good before | `ok` for the outage grace, then a reason; with a usable local KEK (the store knows) it stays `ok` |
//! | token dead, policy refuses | a reason at once |
//! | key missing, soft-deleted or made anew | a gRPC error |
//! | nothing known yet | gRPC `Unavailable` |
//!
//! A reason and an error differ to kube-apiserver: it extends the life of its seed on
//! any answered Status, and would go on writing what nobody can read. Only an error
//! stops its writes, within three minutes.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use transit_client::ErrorKind;

/// How long to be patient, and how often to look.
#[derive(Clone, Copy, Debug)]
pub struct HealthSettings {
    /// How long Status stays `ok` while Vault is merely unreachable.
    pub outage_grace: Duration,
    /// The time between probes while all is well.
    pub health_check_interval: Duration,
}

/// What the last probe, or a call since then, has shown.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Encrypt and decrypt were proven.
    Good,
    /// What this key wrapped, nobody can read any more.
    Lost {
        /// In words.
        reason: Arc<str>,
    },
    /// Vault answers, and says no.
    Refused {
        /// Since when.
        since: Instant,
        /// In words.
        reason: Arc<str>,
        /// It is the token, rather than its policy or the kind of key.
        token_dead: bool,
    },
    /// Vault does not answer, or not sensibly.
    Unreachable {
        /// Since when.
        since: Instant,
        /// In words.
        reason: Arc<str>,
    },
}

impl Verdict {
    /// What a failure makes of this verdict at `now`.
    ///
    /// A refusal or a loss outlives an outage: silence heals neither.
    #[must_use]
    pub fn after(&self, kind: ErrorKind, message: &str, now: Instant) -> Self {
        let reason: Arc<str> = message.into();
        match kind {
            ErrorKind::KeyNotFound => Self::Lost { reason },
            ErrorKind::Config
            | ErrorKind::Denied
            | ErrorKind::TokenInvalid
            | ErrorKind::VersionTooOld
            | ErrorKind::BadCiphertext => {
                let dead = kind == ErrorKind::TokenInvalid;
                // A token that dies after its policy has refused for long is only just dead.
                let since = match self {
                    Self::Refused { since, token_dead, .. } if *token_dead == dead => *since,
                    _ => now,
                };
                Self::Refused { since, reason, token_dead: dead }
            }
            ErrorKind::DeadlineExceeded
            | ErrorKind::VersionUnavailable
            | ErrorKind::InvalidResponse
            | ErrorKind::Throttled
            | ErrorKind::BatchTooLarge
            | ErrorKind::Unreachable => match self {
                Self::Lost { .. } | Self::Refused { .. } => self.clone(),
                Self::Unreachable { since, .. } => Self::Unreachable { since: *since, reason },
                Self::Good => Self::Unreachable { since: now, reason },
            },
        }
    }

    /// The answer to Status at `now`, if the last probe ended at `checked`.
    #[must_use]
    pub fn answer(&self, checked: Instant, now: Instant, settings: HealthSettings) -> Answer {
        let age = now.saturating_duration_since(checked);
        let stale = age > settings.health_check_interval * 3;
        match self {
            Self::Lost { reason } => Answer::Lost(reason.to_string()),
            Self::Refused { reason, .. } => Answer::Unwell { state: "refused", reason: reason.to_string() },
            _ if stale => Answer::Unwell {
                state: "stale",
                reason: format!(
                    "the last probe of Vault ended {} s ago, more than three intervals",
                    age.as_secs()
                ),
            },
            Self::Unreachable { since, reason } => {
                let outage = now.saturating_duration_since(*since);
                if outage < settings.outage_grace {
                    Answer::Well { in_grace: true }
                } else {
                    Answer::Unwell {
                        state: "unreachable",
                        reason: format!("Vault has not been usable for {} s: {reason}", outage.as_secs()),
                    }
                }
            }
            Self::Good => Answer::Well { in_grace: false },
        }
    }
}

/// The answer to Status.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// A gRPC error, `FailedPrecondition`.
    Lost(String),
    /// A gRPC error, `Unavailable`.
    Unknown(String),
    /// `healthz` is the reason.
    Unwell {
        /// The word for it in metrics.
        state: &'static str,
        /// In words.
        reason: String,
    },
    /// `healthz` is `ok`.
    Well {
        /// Vault does not answer right now.
        in_grace: bool,
    },
}

impl Answer {
    /// The word for it in metrics, one of `observe::metrics::HEALTH_STATES`.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self {
            Self::Lost(_) => "lost",
            Self::Unknown(_) => "unknown",
            Self::Unwell { state, .. } => state,
            Self::Well { .. } => "ok",
        }
    }

    /// Why not, or `None` if all is well.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Lost(reason) | Self::Unknown(reason) | Self::Unwell { reason, .. } => Some(reason),
            Self::Well { .. } => None,
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

    /// Every row of the table that concerns a known key; the last row is the store's.
    #[test]
    fn each_row_of_the_table() {
        let start = Instant::now();
        let at = |verdict: &Verdict, checked: u64, now: u64| {
            verdict.answer(start + seconds(checked), start + seconds(now), SETTINGS)
        };

        let good = Verdict::Good;
        assert_eq!(at(&good, 0, 90), Answer::Well { in_grace: false });
        assert_eq!(at(&good, 0, 91).state(), "stale");

        let outage = good.after(ErrorKind::Unreachable, "connection refused", start);
        assert_eq!(at(&outage, 55, 59), Answer::Well { in_grace: true });
        assert_eq!(at(&outage, 55, 60).state(), "unreachable");
        assert!(at(&outage, 55, 61).reason().unwrap().contains("connection refused"));

        for kind in [ErrorKind::TokenInvalid, ErrorKind::Denied] {
            let refused = good.after(kind, "permission denied", start);
            assert_eq!(at(&refused, 0, 0).state(), "refused");
            assert_eq!(at(&refused, 0, 0).reason(), Some("permission denied"));
        }

        let lost = good.after(ErrorKind::KeyNotFound, "the key is gone", start);
        assert_eq!(at(&lost, 0, 0), Answer::Lost("the key is gone".into()));
    }

    #[test]
    fn an_outage_counts_from_its_beginning() {
        let start = Instant::now();
        let first = Verdict::Good.after(ErrorKind::Unreachable, "a", start);
        let second = first.after(ErrorKind::DeadlineExceeded, "b", start + seconds(50));
        let answer = second.answer(start + seconds(61), start + seconds(61), SETTINGS);
        assert_eq!(answer.state(), "unreachable");
    }

    #[test]
    fn silence_heals_neither_refusal_nor_loss() {
        let start = Instant::now();
        for kind in [ErrorKind::KeyNotFound, ErrorKind::TokenInvalid] {
            let bad = Verdict::Good.after(kind, "no", start);
            let then = bad.after(ErrorKind::Unreachable, "silence", start);
            assert_eq!(
                then.answer(start, start, SETTINGS).reason(),
                Some("no"),
                "{kind:?} must survive an outage"
            );
        }
    }
}
