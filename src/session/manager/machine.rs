//! The state machine of the session manager: which config is verified when, and what follows from the outcome.
//!
//! [`ManagerState::step`] is pure. It does not wait, call Vault or read a clock: it gets an [`Event`] and the
//! [`Moment`], changes the state, and returns the [`Action`]s to perform. The runner in the parent module
//! performs them, and turns their results into further events.
//!
//! A config that is not in use is a *candidate*. There is at most one, because a newer config supersedes it.
//! It is being verified, or it waits for the next attempt:
//!
//! ```text
//!                     newer config                          RetryDue, TokenInvalid
//!                    +------------+                      +--------------------------+
//!                    v            |                      v                          |
//! ConfigObserved -> Verifying ----+--- CandidateFailed, VerificationOutdated ---> Waiting
//!                    |
//!                    +--- CandidateVerified: Publish --- Published ---> in use
//! ```

use std::time::Duration;

use tokio::time::Instant;
use transit_client::{ErrorKind, TransitError};

use crate::{observe::labels::ReloadResult, session::older_versions::OlderVersions};

/// The pause after the first failed attempt. It is short, because a token that was just issued may not have
/// reached every node yet. It doubles with each further attempt.
pub(super) const INITIAL_PAUSE: Duration = Duration::from_millis(500);
/// Limits the pause while Vault does not answer, so that the end of an outage is noticed soon.
pub(super) const MAX_PAUSE_PENDING: Duration = Duration::from_secs(5);
/// Limits the pause while Vault refuses. A person has to correct that, and each attempt adds a line to Vault's
/// audit log. It holds only while another session is healthy.
pub(super) const MAX_PAUSE_REFUSED: Duration = Duration::from_secs(30);

/// What the machine passes on without using it.
pub(super) trait Payload {
    /// A config that was read.
    type Config: Clone;
    /// Differs between configs that differ.
    type Fingerprint: Eq;
    /// A session that is published.
    type Published;
    /// A session that was verified.
    type Verified;

    /// The fingerprint of `config`.
    fn fingerprint(config: &Self::Config) -> Self::Fingerprint;
}

/// What has happened.
pub(super) enum Event<P: Payload> {
    /// The config file was read and is valid.
    ConfigObserved(P::Config),
    /// The config file cannot be read, or breaks a rule.
    ConfigInvalid(String),
    /// The candidate was verified.
    CandidateVerified(P::Verified),
    /// The candidate could not be verified.
    CandidateFailed {
        error: TransitError,
        /// As [`Action::Verify`] gave it out, with this attempt counted.
        older_versions: OlderVersions,
    },
    /// The candidate's session is published.
    Published(P::Published),
    /// Another key version was published while the candidate was verified, so the verification does not count.
    VerificationOutdated(TransitError),
    /// The time of [`Action::RetryAt`] has come.
    RetryDue,
    /// The token of the session in use was found invalid.
    TokenInvalid,
}

/// What is to be done.
pub(super) enum Action<P: Payload> {
    /// End the verification under way.
    CancelVerification,
    /// Publish the session, and return [`Event::Published`] or [`Event::VerificationOutdated`].
    Publish(P::Verified),
    /// Read the config file again now: the agent may have just written a new token.
    ReloadConfig,
    /// The config file has the content that is in use.
    ReportConfigInUse,
    /// Say why the candidate is not in use.
    ReportFailedCandidate {
        error: TransitError,
        /// The result differs from that of the attempt before.
        is_new: bool,
        result: ReloadResult,
    },
    /// Say why the config file cannot be used.
    ReportInvalidConfig(String),
    /// Return [`Event::RetryDue`] at this time, and not at an earlier one.
    RetryAt(Instant),
    /// Look up and renew the token of this session from now on, and not that of an earlier one.
    StartLease(P::Published),
    /// Verify the candidate, and return [`Event::CandidateVerified`] or [`Event::CandidateFailed`].
    Verify {
        config: P::Config,
        older_versions: OlderVersions,
        /// Publish what the verification waits for. Later attempts do not, because that would hide why the
        /// first one failed.
        reports_progress: bool,
    },
}

/// What a step depends on beside the event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// A factor for pauses, so that nodes that started together do not stay in step.
    pub(super) jitter: f64,
    pub(super) now: Instant,
    /// Whether the session in use is healthy.
    pub(super) session_is_healthy: bool,
}

/// The state of the machine.
pub(super) struct ManagerState<P: Payload> {
    candidate: Option<Candidate<P>>,
    /// The fingerprint of the config in use.
    in_use: Option<P::Fingerprint>,
}

/// The newest config, which is not in use.
struct Candidate<P: Payload> {
    config: P::Config,
    /// The result of the last attempt.
    last_result: Option<ReloadResult>,
    older_versions: OlderVersions,
    /// The pause after the next attempt that fails.
    pause: Duration,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Verifying {
        /// The token in use was found invalid meanwhile: if this attempt fails, the next one follows at once.
        retry_at_once: bool,
    },
    Waiting,
}

impl<P: Payload> Default for ManagerState<P> {
    fn default() -> Self {
        Self { candidate: None, in_use: None }
    }
}

impl<P: Payload> ManagerState<P> {
    /// Changes the state, and returns what is to be done, in this order.
    pub(super) fn step(&mut self, event: Event<P>, moment: Moment) -> Vec<Action<P>> {
        match event {
            Event::ConfigObserved(config) => self.observed(config),
            Event::ConfigInvalid(error) => {
                let mut actions = self.drop_candidate();
                actions.push(Action::ReportInvalidConfig(error));
                actions
            }
            Event::CandidateVerified(session) => {
                let Some(candidate) = self.verifying() else { return Vec::new() };
                candidate.older_versions = OlderVersions::default();
                vec![Action::Publish(session)]
            }
            Event::CandidateFailed { error, older_versions } => {
                let Some(candidate) = self.verifying() else { return Vec::new() };
                candidate.older_versions = older_versions;
                candidate.failed(error, moment)
            }
            Event::Published(session) => {
                if let Some(candidate) = self.candidate.take() {
                    self.in_use = Some(P::fingerprint(&candidate.config));
                }
                vec![Action::StartLease(session)]
            }
            Event::VerificationOutdated(error) => {
                self.verifying().map(|candidate| candidate.failed(error, moment)).unwrap_or_default()
            }
            Event::RetryDue => match &mut self.candidate {
                Some(candidate) if candidate.stage == Stage::Waiting => vec![candidate.verify()],
                _ => Vec::new(),
            },
            Event::TokenInvalid => {
                let mut actions = vec![Action::ReloadConfig];
                actions.extend(self.candidate.as_mut().and_then(Candidate::hurry));
                actions
            }
        }
    }

    fn observed(&mut self, config: P::Config) -> Vec<Action<P>> {
        let mut actions = self.drop_candidate();
        if self.in_use.as_ref() == Some(&P::fingerprint(&config)) {
            actions.push(Action::ReportConfigInUse);
        } else {
            actions.push(self.candidate.insert(Candidate::new(config)).verify());
        }
        actions
    }

    fn drop_candidate(&mut self) -> Vec<Action<P>> {
        match self.candidate.take().map(|candidate| candidate.stage) {
            Some(Stage::Verifying { .. }) => vec![Action::CancelVerification],
            Some(Stage::Waiting) | None => Vec::new(),
        }
    }

    /// The candidate, if it is being verified.
    fn verifying(&mut self) -> Option<&mut Candidate<P>> {
        self.candidate.as_mut().filter(|candidate| candidate.stage != Stage::Waiting)
    }
}

impl<P: Payload> Candidate<P> {
    fn new(config: P::Config) -> Self {
        Self {
            config,
            last_result: None,
            older_versions: OlderVersions::default(),
            pause: INITIAL_PAUSE,
            stage: Stage::Waiting,
        }
    }

    fn verify(&mut self) -> Action<P> {
        self.stage = Stage::Verifying { retry_at_once: false };
        Action::Verify {
            config: self.config.clone(),
            older_versions: self.older_versions,
            reports_progress: self.last_result.is_none(),
        }
    }

    /// The attempt has failed: reports that, and plans the next one.
    fn failed(&mut self, error: TransitError, moment: Moment) -> Vec<Action<P>> {
        let result = result_of(error.kind);
        let is_new = self.last_result.replace(result) != Some(result);
        let report = Action::ReportFailedCandidate { error, is_new, result };
        if self.stage == (Stage::Verifying { retry_at_once: true }) {
            self.pause = INITIAL_PAUSE;
            return vec![report, self.verify()];
        }
        let retry_at = moment.now + self.pause.mul_f64(moment.jitter);
        let max = if result == ReloadResult::Refused && moment.session_is_healthy {
            MAX_PAUSE_REFUSED
        } else {
            MAX_PAUSE_PENDING
        };
        self.pause = (self.pause * 2).min(max);
        self.stage = Stage::Waiting;
        vec![report, Action::RetryAt(retry_at)]
    }

    /// The token in use is invalid, so this candidate is needed now.
    fn hurry(&mut self) -> Option<Action<P>> {
        match &mut self.stage {
            Stage::Verifying { retry_at_once } => {
                *retry_at_once = true;
                None
            }
            Stage::Waiting => {
                self.pause = INITIAL_PAUSE;
                Some(self.verify())
            }
        }
    }
}

/// Whether a candidate that failed like this may work soon, or needs a person who corrects something.
fn result_of(kind: ErrorKind) -> ReloadResult {
    match kind {
        ErrorKind::DeadlineExceeded
        | ErrorKind::InvalidResponse
        | ErrorKind::Throttled
        | ErrorKind::Unreachable
        | ErrorKind::VersionUnavailable => ReloadResult::Pending,
        ErrorKind::BadCiphertext
        | ErrorKind::BatchTooLarge
        | ErrorKind::Config
        | ErrorKind::Denied
        | ErrorKind::KeyNotFound
        | ErrorKind::TokenInvalid
        | ErrorKind::VersionTooOld => ReloadResult::Refused,
    }
}

#[cfg(test)]
mod tests;
