//! Verifies a candidate: makes a session of a config, and checks that it can replace the session in use.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use tracing::warn;
use transit_client::{
    ErrorKind, TransitError,
    metrics::ClientMetrics,
    vault::{
        Access, Pool, RequestObserver, Session,
        lease::{self, TokenInfo},
    },
};

use super::machine::Event;
use crate::{
    config::{Credentials, LoadedConfig},
    session::{
        manager::Sessions,
        older_versions::OlderVersions,
        progress::Progress,
        state::Published,
        verification::{PreviousState, Verification, verify},
    },
};

/// Limits one attempt, so that the next one can succeed after an outage has ended.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Limits the lookup of the token within an attempt. Its result is useful but not required.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

/// A session that was verified and can be published.
pub(super) struct VerifiedSession {
    pub(super) config: Arc<LoadedConfig>,
    pub(super) pool: Arc<Pool>,
    pub(super) session: Arc<Session>,
    /// What a lookup of the token returned, or how that failed.
    pub(super) token: Result<TokenInfo, ErrorKind>,
    pub(super) verification: Verification,
}

/// One attempt to verify a candidate.
pub(super) struct VerificationAttempt {
    pub(super) config: Arc<LoadedConfig>,
    pub(super) metrics: Arc<ClientMetrics>,
    pub(super) older_versions: OlderVersions,
    /// The connections of the session in use, if they lead to the addresses of the candidate.
    pub(super) pool: Option<Arc<Pool>>,
    pub(super) progress: Arc<Progress>,
    /// The state when the attempt began.
    pub(super) published: Published,
}

impl VerificationAttempt {
    /// Verifies the candidate within a time limit.
    pub(super) async fn run(mut self) -> Event<Sessions> {
        let deadline = Instant::now() + ATTEMPT_TIMEOUT;
        let progress = Arc::clone(&self.progress);
        let outcome = timeout_at(deadline, self.verify(deadline)).await.unwrap_or_else(|_| {
            let message = format!("Vault did not answer within {} s", ATTEMPT_TIMEOUT.as_secs());
            Err(TransitError::new(ErrorKind::DeadlineExceeded, message))
        });
        match outcome {
            Ok(session) => Event::CandidateVerified(session),
            Err(error) => {
                let older_versions = self.older_versions;
                Event::CandidateFailed { error: progress.explain(error), older_versions }
            }
        }
    }

    async fn verify(&mut self, deadline: Instant) -> Result<VerifiedSession, TransitError> {
        let config = &self.config.config;
        let login = match &config.credentials {
            Credentials::Agent => Err("agent"),
            Credentials::Login(auth) => Err(auth.method.name()),
            Credentials::Token(token) => Ok(token),
        };
        let token = match login {
            Ok(token) => token,
            Err(method) => {
                return Err(TransitError::new(
                    ErrorKind::Denied,
                    format!(
                        "login method `{method}` is not supported yet: let an agent log in and render \
                         vault.token instead"
                    ),
                ));
            }
        };
        let pool = match &self.pool {
            Some(pool) => Arc::clone(pool),
            None => Arc::new(Pool::new(&self.config.endpoint()).await?),
        };
        let access =
            Access { keys: config.keys.clone(), namespace: config.namespace.clone(), token: token.clone() };
        let observer: Arc<dyn RequestObserver> = Arc::clone(&self.progress) as _;
        let session = Session::new(&access, Arc::clone(&pool), Arc::clone(&self.metrics))?;
        let session = session.with_observer(&observer);
        let token = match lease::lookup(&session, deadline.min(Instant::now() + LOOKUP_TIMEOUT)).await {
            Ok(token) => {
                token.check()?;
                Ok(token)
            }
            Err(error) if error.kind == ErrorKind::TokenInvalid => return Err(error),
            Err(error) => Err(error),
        };
        let is_healthy = self.published.is_healthy();
        let before = self.published.snapshot.as_ref().map(|before| PreviousState {
            is_healthy,
            key_lost: self.published.key_lost.is_some(),
            ..before.as_previous_state()
        });
        // While the session in use is healthy, its Vault has the published version. A Vault that reports an older
        // one is another Vault, or it lags.
        let accept_older = !is_healthy && self.older_versions.next_is_accepted();
        let outcome = verify(&session, before, accept_older, deadline).await;
        self.older_versions.count(&outcome);
        let verification = outcome?;
        // Logged only now: if the candidate fails, its error is what matters.
        let token = token.map_err(|error| {
            if error.kind == ErrorKind::Denied {
                warn!(%error, "the token may not look itself up; a renewal follows, and its answer shows when the token expires");
            } else {
                warn!(%error, "the token could not be looked up");
            }
            error.kind
        });
        Ok(VerifiedSession {
            config: Arc::clone(&self.config),
            pool,
            session: Arc::new(session),
            token,
            verification,
        })
    }
}
