//! The session manager: makes sessions of configs.
//!
//! A new config is a *candidate*. It is verified with Vault while the session in use continues to work, and
//! replaces that session only when the verification succeeds. If Vault does not answer or refuses, the
//! candidate is verified again after growing pauses, until a newer config supersedes it.
//!
//! `machine` decides all this and does nothing else. This module runs it: it performs the actions and turns
//! their results into events. Waiting for Vault never blocks the machine, because a verification is a future
//! beside it, and the lease of the session in use is a task of its own.

mod candidate;
mod machine;

pub(in crate::session) use self::candidate::SessionToken;

use std::{collections::VecDeque, pin::Pin, sync::Arc};

use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};
use transit_client::{
    ErrorKind, TransitError,
    vault::{Pool, Session, lease::Revoker},
};

use self::{
    candidate::{VerificationAttempt, VerifiedSession},
    machine::{Action, CandidatePurpose, Event, ManagerState, Moment, Payload},
};
use super::{
    lease::{Lease, RunningLease},
    login::Authenticator,
    older_versions::OlderVersions,
    progress::Progress,
    state::{NewSession, Outdated, SessionPublisher},
};
use crate::{
    config::{Credentials, Fingerprint, LoadedConfig, Observation, Watcher, settings::auth::AuthMethod},
    observe::{
        labels::{ConfigState, ReloadResult},
        metrics::Metrics,
    },
};

/// Owns the sessions of the daemon.
pub struct SessionManager {
    authenticator: Arc<Authenticator>,
    connections: Option<Connections>,
    lease: Option<RunningLease>,
    metrics: Arc<Metrics>,
    publisher: Arc<SessionPublisher>,
    retry_at: Option<Instant>,
    /// The verification under way. Dropping it cancels it.
    verification: Option<Pin<Box<dyn Future<Output = Event<Sessions>> + Send>>>,
    watcher: Watcher,
}

/// The connections of the session in use.
struct Connections {
    fingerprint: Fingerprint,
    pool: Arc<Pool>,
}

/// What the state machine passes on.
struct Sessions;

impl Payload for Sessions {
    type Config = Arc<LoadedConfig>;
    type Fingerprint = Fingerprint;
    type Published = PublishedSession;
    type Verified = VerifiedSession;

    fn fingerprint(config: &Arc<LoadedConfig>) -> Fingerprint {
        config.fingerprint
    }

    fn logs_in(config: &Arc<LoadedConfig>) -> bool {
        matches!(&config.config.credentials, Credentials::Login(auth) if !auth.session_needs_files())
    }

    fn material(config: &Arc<LoadedConfig>) -> Fingerprint {
        config.material_fingerprint
    }
}

/// A session that is in use.
struct PublishedSession {
    generation: u64,
    session: Arc<Session>,
    token: Option<SessionToken>,
}

impl SessionManager {
    /// Creates a manager that makes sessions of the configs that `watcher` finds. `revoker` revokes the tokens of
    /// its own logins.
    #[must_use]
    pub fn new(
        watcher: Watcher,
        publisher: SessionPublisher,
        revoker: Revoker,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            authenticator: Arc::new(Authenticator::new(revoker, Arc::clone(&metrics))),
            connections: None,
            lease: None,
            metrics,
            publisher: Arc::new(publisher),
            retry_at: None,
            verification: None,
            watcher,
        }
    }

    /// Manages sessions. Returns only if the lease of the session in use ends, which is a bug.
    pub async fn run(mut self) {
        let store = Arc::clone(self.publisher.store());
        let mut state = ManagerState::default();
        let mut last_invalid = None;
        let mut is_watching = true;
        loop {
            let event = tokio::select! {
                observation = self.watcher.changed(), if is_watching => match observation.as_deref() {
                    Some(observation) => observed(observation),
                    // `app` notices that the watch has ended. The session in use stays.
                    None => {
                        is_watching = false;
                        continue;
                    }
                },
                () = at(self.retry_at) => {
                    self.retry_at = None;
                    Event::RetryDue
                }
                event = ended(&mut self.verification) => {
                    self.verification = None;
                    event
                }
                () = store.token_invalidated(&mut last_invalid) => Event::TokenInvalid,
                event = lease_event(&mut self.lease) => match event {
                    LeaseEvent::LoginDue => Event::LoginDue,
                    LeaseEvent::Ended => return,
                },
            };
            let mut events = VecDeque::from([event]);
            while let Some(event) = events.pop_front() {
                let moment = Moment {
                    jitter: rand::random_range(0.9..=1.0),
                    now: Instant::now(),
                    session_is_healthy: store.read().is_healthy(),
                };
                for action in state.step(event, moment) {
                    events.extend(self.perform(action, moment));
                }
            }
        }
    }

    /// Performs an action, and returns its result if that is known at once.
    fn perform(&mut self, action: Action<Sessions>, moment: Moment) -> Option<Event<Sessions>> {
        match action {
            Action::CancelVerification => self.verification = None,
            Action::Publish(session) => {
                return Some(match self.publish(session) {
                    Ok(session) => Event::Published(session),
                    Err(outdated) => Event::VerificationOutdated(TransitError::new(
                        ErrorKind::VersionUnavailable,
                        outdated.to_string(),
                    )),
                });
            }
            Action::ReloadConfig => {
                info!("the token is invalid: reading the config again");
                let handle = self.watcher.reload_handle();
                tokio::spawn(async move { handle.reload().await });
            }
            Action::ReportConfigInUse => {
                debug!("the config on disk is the one in use");
                self.publisher.set_config_error(None);
                self.metrics.config.set_state(ConfigState::InUse);
            }
            Action::ReportFailedCandidate { error, is_new, purpose, result } => {
                self.report_failure(&error, is_new, purpose, result, moment);
            }
            Action::ReportInvalidConfig(error) => {
                // The watcher has logged the error.
                self.metrics.config.reloaded(ReloadResult::Invalid);
                self.publisher.set_config_error(Some(error));
            }
            Action::RetryAt(at) => self.retry_at = Some(at),
            Action::StartLease(PublishedSession { generation, session, token }) => {
                let (store, metrics) = (Arc::clone(self.publisher.store()), Arc::clone(&self.metrics));
                self.lease = Lease::start(session, generation, token, store, metrics);
            }
            Action::Verify { config, older_versions, reports_progress } => {
                self.retry_at = None;
                if let Credentials::Login(auth) = &config.config.credentials
                    && !matches!(auth.method, AuthMethod::Inline(_))
                {
                    self.metrics.login.configured(auth.method.name());
                }
                let attempt = self.attempt(config, older_versions, reports_progress);
                self.verification = Some(Box::pin(attempt.run()));
            }
        }
        None
    }

    fn report_failure(
        &self,
        error: &TransitError,
        is_new: bool,
        purpose: CandidatePurpose,
        result: ReloadResult,
        moment: Moment,
    ) {
        match purpose {
            CandidatePurpose::NewConfig => self.publisher.set_config_error(Some(error.to_string())),
            CandidatePurpose::NewLogin => self.publisher.set_login_error(error.to_string()),
        }
        match purpose {
            CandidatePurpose::NewConfig if is_new => {
                self.metrics.config.reloaded(result);
                warn!(
                    %error, kind = error.kind.name(),
                    session_in_use_is_healthy = moment.session_is_healthy,
                    "the new config is not in use yet; trying again"
                );
            }
            CandidatePurpose::NewConfig => debug!(%error, "the new config is still not in use"),
            CandidatePurpose::NewLogin if is_new => warn!(
                %error, kind = error.kind.name(),
                session_in_use_is_healthy = moment.session_is_healthy,
                "the token ends, and no login has brought another one yet; trying again"
            ),
            CandidatePurpose::NewLogin => debug!(%error, "no login has brought another token yet"),
        }
    }

    fn attempt(
        &self,
        config: Arc<LoadedConfig>,
        older_versions: OlderVersions,
        reports_progress: bool,
    ) -> VerificationAttempt {
        let connections = self.connections.as_ref();
        let pool = connections
            .filter(|connections| connections.fingerprint == config.connection_fingerprint)
            .map(|connections| Arc::clone(&connections.pool));
        let progress = Progress::new(Arc::clone(&self.publisher), &config.config.addresses, reports_progress);
        VerificationAttempt {
            authenticator: Arc::clone(&self.authenticator),
            config,
            metrics: Arc::clone(&self.metrics.client),
            older_versions,
            pool,
            progress,
            published: self.publisher.store().read(),
        }
    }

    fn publish(&mut self, session: VerifiedSession) -> Result<PublishedSession, Outdated> {
        let VerifiedSession { config, pool, session, token, verification } = session;
        let new = NewSession {
            encryption: config.config.encryption,
            nodes: Some(Arc::clone(&pool)),
            transit: Arc::clone(&session) as _,
        };
        let snapshot = self.publisher.publish(new, verification)?;
        session.mark_in_use();
        self.authenticator.forget_token();
        self.metrics.config.reloaded(ReloadResult::Success);
        self.metrics.client.set_nodes(config.config.addresses.iter().map(ToString::to_string));
        self.connections = Some(Connections { fingerprint: config.connection_fingerprint, pool });
        Ok(PublishedSession { generation: snapshot.generation, session, token })
    }
}

fn observed(observation: &Observation) -> Event<Sessions> {
    match observation {
        Ok(config) => Event::ConfigObserved(Arc::new(config.clone())),
        Err(error) => Event::ConfigInvalid(error.to_string()),
    }
}

/// Waits until `when`. Never returns if there is no such time.
async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// What the lease of the session in use says.
enum LeaseEvent {
    /// Its task has ended, which is a bug.
    Ended,
    LoginDue,
}

/// Waits for the lease of the session in use. Never returns if there is none. Cancel safe.
async fn lease_event(lease: &mut Option<RunningLease>) -> LeaseEvent {
    let Some(lease) = lease else { return std::future::pending().await };
    tokio::select! {
        () = lease.login_due.notified() => LeaseEvent::LoginDue,
        _ = &mut lease.task => LeaseEvent::Ended,
    }
}

/// Waits for the end of a task. Never returns if there is none. Cancel safe.
async fn ended<F: Future + Unpin>(task: &mut Option<F>) -> F::Output {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}
