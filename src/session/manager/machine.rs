//! The state machine of the session manager: which config is verified when, and what follows from the outcome.
//!
//! [`ManagerState::step`] is pure. It does not wait, call Vault or read a clock: it gets an [`Event`] and the
//! [`Moment`], changes the state, and returns the [`Action`]s to perform. The runner in the parent module
//! performs them, and turns their results into further events.
//!
//! A config that is not in use is a *candidate*. There is at most one, because a newer config supersedes it.
//! The config in use becomes a candidate too when its token ends and only a login brings another one. If there
//! are both, they are verified in turn, so that a bad config does not prevent the login that the session in use
//! needs. A candidate is being verified, or it waits for the next attempt:
//!
//! ```text
//!                     newer config                          RetryDue, TokenInvalid
//!                    +------------+                      +--------------------------+
//!                    v            |                      v                          |
//! ConfigObserved -> Verifying ----+--- CandidateFailed, VerificationOutdated ---> Waiting
//!       LoginDue     |
//!                    +--- CandidateVerified: Publish --- Published ---> in use
//! ```

use std::{collections::VecDeque, time::Duration};

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
    /// A config that was read, with the contents of the files of its login.
    type Config: Clone;
    /// Differs between configs that differ.
    type Fingerprint: Eq;
    /// A session that is published.
    type Published;
    /// A session that was verified.
    type Verified;

    /// The fingerprint of `config`, without the files of its login.
    fn fingerprint(config: &Self::Config) -> Self::Fingerprint;
    /// The fingerprint of the files of its login.
    fn material(config: &Self::Config) -> Self::Fingerprint;
    /// Whether the daemon gets the token of the config by a login.
    fn logs_in(config: &Self::Config) -> bool;
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
    /// The token of the session in use ends, and only a login brings another one.
    LoginDue,
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
        purpose: CandidatePurpose,
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

/// Why a candidate is verified.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum CandidatePurpose {
    /// It is a config that is not in use.
    NewConfig,
    /// It is the config in use, and its token ends.
    NewLogin,
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
    /// At most one for each [`CandidatePurpose`]. The first one is verified next, or is being verified.
    candidates: VecDeque<Candidate<P>>,
    /// The config in use, with the newest files of its login.
    in_use: Option<P::Config>,
}

/// A config of which a session is to be made.
struct Candidate<P: Payload> {
    config: P::Config,
    /// The result of the last attempt.
    last_result: Option<ReloadResult>,
    older_versions: OlderVersions,
    /// The pause after the next attempt that fails.
    pause: Duration,
    purpose: CandidatePurpose,
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
        Self { candidates: VecDeque::new(), in_use: None }
    }
}

impl<P: Payload> ManagerState<P> {
    /// Changes the state, and returns what is to be done, in this order.
    pub(super) fn step(&mut self, event: Event<P>, moment: Moment) -> Vec<Action<P>> {
        match event {
            Event::ConfigObserved(config) => self.observed(config, moment),
            Event::ConfigInvalid(error) => {
                let mut actions = self.drop_new_config();
                actions.push(Action::ReportInvalidConfig(error));
                actions.extend(self.hurry_if_idle());
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
                self.failed(error, moment)
            }
            Event::Published(session) => self.published(session),
            Event::VerificationOutdated(error) => self.failed(error, moment),
            Event::LoginDue => self.log_in(),
            Event::RetryDue => match self.candidates.front_mut() {
                Some(candidate) if candidate.stage == Stage::Waiting => vec![candidate.verify()],
                _ => Vec::new(),
            },
            Event::TokenInvalid => {
                let mut actions = vec![Action::ReloadConfig];
                let login = self.log_in();
                match self.candidates.front_mut() {
                    Some(candidate) if login.is_empty() => actions.extend(candidate.hurry()),
                    _ => actions.extend(login),
                }
                actions
            }
        }
    }

    fn observed(&mut self, config: P::Config, moment: Moment) -> Vec<Action<P>> {
        let mut actions = self.drop_new_config();
        let Some(in_use) = self.in_use.as_mut().filter(|it| P::fingerprint(it) == P::fingerprint(&config))
        else {
            if let Some(candidate) = self.verifying() {
                // A login that is under way ends in the background, and the new config uses its token.
                candidate.stage = Stage::Waiting;
                actions.push(Action::CancelVerification);
            }
            let mut candidate = Candidate::new(config, CandidatePurpose::NewConfig);
            actions.push(candidate.verify());
            self.candidates.push_front(candidate);
            return actions;
        };
        let material_changed = P::material(in_use) != P::material(&config);
        *in_use = config.clone();
        actions.push(Action::ReportConfigInUse);
        match self.candidates.front_mut() {
            Some(login) if material_changed => {
                login.config = config;
                actions.extend(login.hurry());
            }
            Some(_) => actions.extend(self.hurry_if_idle()),
            // While the session works, the new files are for the next login.
            None if material_changed && !moment.session_is_healthy => actions.extend(self.log_in()),
            None => {}
        }
        actions
    }

    fn published(&mut self, session: P::Published) -> Vec<Action<P>> {
        if let Some(candidate) = self.candidates.pop_front() {
            if candidate.purpose == CandidatePurpose::NewConfig {
                // The login that the config before it needed.
                self.candidates.clear();
            }
            self.in_use = Some(candidate.config);
        }
        let mut actions = vec![Action::StartLease(session)];
        actions.extend(self.hurry_if_idle());
        actions
    }

    /// Makes a candidate of the config in use, if that logs in.
    fn log_in(&mut self) -> Vec<Action<P>> {
        let Some(config) = self.in_use.as_ref().filter(|config| P::logs_in(config)) else {
            return Vec::new();
        };
        if self.candidates.iter().any(|candidate| candidate.purpose == CandidatePurpose::NewLogin) {
            return Vec::new();
        }
        let mut candidate = Candidate::new(config.clone(), CandidatePurpose::NewLogin);
        if self.verifying().is_some() {
            self.candidates.push_back(candidate);
            return Vec::new();
        }
        let verify = candidate.verify();
        self.candidates.push_front(candidate);
        vec![verify]
    }

    /// The attempt has failed: reports that, and plans the next one. The other candidate has its turn first.
    fn failed(&mut self, error: TransitError, moment: Moment) -> Vec<Action<P>> {
        let Some(candidate) = self.verifying() else { return Vec::new() };
        let retry_at_once = candidate.stage == (Stage::Verifying { retry_at_once: true });
        let (report, pause) = candidate.failed(error, moment);
        self.candidates.rotate_left(1);
        let next = match self.candidates.front_mut() {
            Some(next) if retry_at_once => {
                next.pause = INITIAL_PAUSE;
                next.verify()
            }
            _ => Action::RetryAt(moment.now + pause),
        };
        vec![report, next]
    }

    /// Verifies the first candidate now, unless one is being verified.
    fn hurry_if_idle(&mut self) -> Option<Action<P>> {
        self.candidates.front_mut().filter(|candidate| candidate.stage == Stage::Waiting)?.hurry()
    }

    fn drop_new_config(&mut self) -> Vec<Action<P>> {
        let was_verifying = self.verifying().is_some_and(|it| it.purpose == CandidatePurpose::NewConfig);
        self.candidates.retain(|candidate| candidate.purpose != CandidatePurpose::NewConfig);
        if was_verifying { vec![Action::CancelVerification] } else { Vec::new() }
    }

    /// The candidate that is being verified.
    fn verifying(&mut self) -> Option<&mut Candidate<P>> {
        self.candidates.front_mut().filter(|candidate| candidate.stage != Stage::Waiting)
    }
}

impl<P: Payload> Candidate<P> {
    fn new(config: P::Config, purpose: CandidatePurpose) -> Self {
        Self {
            config,
            last_result: None,
            older_versions: OlderVersions::default(),
            pause: INITIAL_PAUSE,
            purpose,
            stage: Stage::Waiting,
        }
    }

    fn verify(&mut self) -> Action<P> {
        self.stage = Stage::Verifying { retry_at_once: false };
        Action::Verify {
            config: self.config.clone(),
            older_versions: self.older_versions,
            reports_progress: self.last_result.is_none() && self.purpose == CandidatePurpose::NewConfig,
        }
    }

    /// The attempt has failed. Returns the report, and the pause before the next attempt.
    fn failed(&mut self, error: TransitError, moment: Moment) -> (Action<P>, Duration) {
        let result = result_of(error.kind);
        let is_new = self.last_result.replace(result) != Some(result);
        let report = Action::ReportFailedCandidate { error, is_new, purpose: self.purpose, result };
        let pause = self.pause.mul_f64(moment.jitter);
        let max = if result == ReloadResult::Refused && moment.session_is_healthy {
            MAX_PAUSE_REFUSED
        } else {
            MAX_PAUSE_PENDING
        };
        self.pause = (self.pause * 2).min(max);
        self.stage = Stage::Waiting;
        (report, pause)
    }

    /// The candidate is needed now: the token in use is invalid, or the files of its login have changed.
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
