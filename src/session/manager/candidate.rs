//! Verifies a candidate: makes a session of a config, and checks that it can replace the session in use.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use tracing::warn;
use transit_client::{
    ErrorKind, TransitError,
    key::Namespace,
    metrics::ClientMetrics,
    token::Token,
    vault::{
        Access, Pool, RequestAuth, RequestObserver, Session,
        auth::LoginContext,
        lease::{self, TokenInfo, TokenOrigin},
    },
};

use super::machine::Event;
use crate::{
    config::{
        Credentials, LoadedConfig,
        settings::auth::{AuthMethod, AuthSettings},
    },
    session::{
        login::{Authenticator, IssuedToken, LoginTarget},
        manager::Sessions,
        older_versions::OlderVersions,
        progress::Progress,
        state::Published,
        verification::{PreviousState, Verification, verify},
    },
};

/// Limits one attempt, so that the next one can succeed after an outage has ended.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Limits the login within an attempt, so that time is left to verify its token.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(7);
/// Limits the lookup of the token within an attempt. Its result is useful but not required.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

/// A session that was verified and can be published.
pub(super) struct VerifiedSession {
    pub(super) config: Arc<LoadedConfig>,
    pub(super) pool: Arc<Pool>,
    pub(super) session: Arc<Session>,
    /// `None` if the session has no token.
    pub(super) token: Option<SessionToken>,
    pub(super) verification: Verification,
}

/// What is known about the token of a session.
pub(in crate::session) struct SessionToken {
    /// What Vault says about it, or how its lookup failed.
    pub(in crate::session) info: Result<TokenInfo, ErrorKind>,
    pub(in crate::session) origin: TokenOrigin,
}

/// A session that was not verified yet.
struct UnverifiedSession {
    session: Session,
    token: Option<UnverifiedToken>,
}

struct UnverifiedToken {
    info: Result<TokenInfo, TransitError>,
    origin: TokenOrigin,
}

/// One attempt to verify a candidate.
pub(super) struct VerificationAttempt {
    pub(super) authenticator: Arc<Authenticator>,
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
                if error.kind == ErrorKind::TokenInvalid {
                    self.authenticator.forget_token();
                }
                let older_versions = self.older_versions;
                Event::CandidateFailed { error: progress.explain(error), older_versions }
            }
        }
    }

    async fn verify(&mut self, deadline: Instant) -> Result<VerifiedSession, TransitError> {
        let pool = match &self.pool {
            Some(pool) => Arc::clone(pool),
            None => Arc::new(Pool::new(&self.config.endpoint()).await?),
        };
        let UnverifiedSession { session, token } = self.authenticate(&pool, deadline).await?;
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
        let token = token.map(|UnverifiedToken { info, origin }| {
            let info = info.map_err(|error| {
                if error.kind == ErrorKind::Denied {
                    warn!(%error, "the token may not look itself up; a renewal follows, and its answer shows when the token expires");
                } else {
                    warn!(%error, "the token could not be looked up");
                }
                error.kind
            });
            SessionToken { info, origin }
        });
        Ok(VerifiedSession {
            config: Arc::clone(&self.config),
            pool,
            session: Arc::new(session),
            token,
            verification,
        })
    }

    /// Makes a session with the credentials of the config.
    async fn authenticate(
        &self,
        pool: &Arc<Pool>,
        deadline: Instant,
    ) -> Result<UnverifiedSession, TransitError> {
        let namespace = &self.config.config.namespace;
        match &self.config.config.credentials {
            Credentials::Agent => {
                let session = self.session(RequestAuth::NoToken, namespace, pool)?;
                Ok(UnverifiedSession { session, token: None })
            }
            Credentials::Login(auth) => match &auth.method {
                AuthMethod::Inline(method) => {
                    let login = self.authenticator.inline(auth, &self.config.material, method);
                    let auth = RequestAuth::Inline(login.map_err(|failed| failed.error)?);
                    Ok(UnverifiedSession { session: self.session(auth, namespace, pool)?, token: None })
                }
                _ => self.log_in(auth, pool, deadline).await,
            },
            Credentials::Token(token) => self.rendered(token.clone(), namespace, pool, deadline).await,
        }
    }

    /// Makes a session with a token that another program has issued.
    async fn rendered(
        &self,
        token: Token,
        namespace: &Namespace,
        pool: &Arc<Pool>,
        deadline: Instant,
    ) -> Result<UnverifiedSession, TransitError> {
        let session = self.session(RequestAuth::Token(token), namespace, pool)?;
        let info = match lease::lookup(&session, deadline.min(Instant::now() + LOOKUP_TIMEOUT)).await {
            Ok(info) => {
                info.check()?;
                Ok(info)
            }
            Err(error) if error.kind == ErrorKind::TokenInvalid => return Err(error),
            Err(error) => Err(error),
        };
        let token = UnverifiedToken { info, origin: TokenOrigin::Rendered };
        Ok(UnverifiedSession { session, token: Some(token) })
    }

    async fn log_in(
        &self,
        auth: &AuthSettings,
        pool: &Arc<Pool>,
        deadline: Instant,
    ) -> Result<UnverifiedSession, TransitError> {
        let context = LoginContext {
            deadline: deadline.min(Instant::now() + LOGIN_TIMEOUT),
            metrics: Arc::clone(&self.metrics),
            observer: Some(self.observer()),
            pool: Arc::clone(pool),
        };
        let target = LoginTarget { auth: auth.clone(), config: Arc::clone(&self.config), context };
        let IssuedToken { guard, info, namespace, token } =
            self.authenticator.log_in(target).await.map_err(|failed| failed.error)?;
        let Some(info) = info else { return self.rendered(token, &namespace, pool, deadline).await };
        let session = self.session(RequestAuth::LoginToken(token), &namespace, pool)?;
        let session = match guard {
            Some(guard) => session.with_token_guard(guard),
            None => session,
        };
        let token = UnverifiedToken { info: Ok(info), origin: TokenOrigin::Login };
        Ok(UnverifiedSession { session, token: Some(token) })
    }

    fn session(
        &self,
        auth: RequestAuth,
        namespace: &Namespace,
        pool: &Arc<Pool>,
    ) -> Result<Session, TransitError> {
        let access = Access { auth, keys: self.config.config.keys.clone(), namespace: namespace.clone() };
        let session = Session::new(&access, Arc::clone(pool), Arc::clone(&self.metrics))?;
        Ok(session.with_observer(&self.observer()))
    }

    fn observer(&self) -> Arc<dyn RequestObserver> {
        Arc::clone(&self.progress) as _
    }
}
