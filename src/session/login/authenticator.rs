//! Sends at most one login at a time, and none that cannot succeed.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::OwnedMutexGuard, task::spawn_blocking, time::Instant};
use tracing::{debug, error, info, warn};
use transit_client::{
    ErrorKind, TransitError,
    key::Namespace,
    token::Token,
    vault::{
        auth::{InlineLogin, LoggedIn, LoginContext, LoginError, LoginFailure},
        lease::{Revoker, TokenGuard, TokenInfo},
    },
};

use super::{
    credential::CredentialHash,
    credential_source::{self, Prepared, contents, prepare},
    delivery::{OpenedDeliveries, open_token},
    ledger::Ledger,
};
use crate::{
    config::{
        Fingerprint, LoadedConfig, LoginMaterial,
        settings::auth::{AuthMethod, AuthSettings, InlineMethod},
    },
    observe::metrics::Metrics,
};

/// A credential that Vault has refused this often is not sent again.
const MAX_REFUSALS: u32 = 2;
/// How long a token is offered again if the session that it was for could not be verified.
const REUSE_TIME: Duration = Duration::from_secs(60);
/// The pause after a login that Vault does not allow. It doubles with each further one.
const FIRST_BLOCKED_PAUSE: Duration = Duration::from_secs(2);
const MAX_BLOCKED_PAUSE: Duration = Duration::from_secs(60);

/// What a login is for.
pub(in crate::session) struct LoginTarget {
    pub(in crate::session) auth: AuthSettings,
    pub(in crate::session) config: Arc<LoadedConfig>,
    pub(in crate::session) context: LoginContext,
}

/// A token for a session.
#[derive(Clone)]
pub(in crate::session) struct IssuedToken {
    /// Has the token revoked when its last user is gone. `None` for a batch token, which cannot be revoked, and for
    /// a token that another program has issued.
    pub(in crate::session) guard: Option<TokenGuard>,
    /// What the login says about it; `None` if another program has issued it.
    pub(in crate::session) info: Option<TokenInfo>,
    /// The namespace of the token.
    pub(in crate::session) namespace: Namespace,
    pub(in crate::session) token: Token,
}

/// Logs in. There is one for all sessions, so that what it remembers outlives each of them.
pub(in crate::session) struct Authenticator {
    inline: Mutex<Option<KnownInline>>,
    metrics: Arc<Metrics>,
    revoker: Revoker,
    /// Locked while a login is under way.
    state: Arc<tokio::sync::Mutex<Option<Identity>>>,
    unclaimed: Arc<Mutex<Option<Unclaimed>>>,
}

/// The login that travels with each request of the last session with one.
struct KnownInline {
    auth: AuthSettings,
    credential: CredentialHash,
    login: InlineLogin,
}

/// A token that no published session uses yet.
struct Unclaimed {
    auth: AuthSettings,
    material: Fingerprint,
    since: Instant,
    token: IssuedToken,
}

/// What is known about the login settings in use.
pub(super) struct Identity {
    auth: AuthSettings,
    /// Attempts that Vault did not allow, since the last success or change of the files.
    blocked: Option<Blocked>,
    ledger: Ledger,
    /// For the next logins.
    pub(super) opened: OpenedDeliveries,
    /// The credential that only another one replaces, and why.
    rejected: Option<(CredentialHash, LoginError)>,
    /// Other users can read the nonce, and a warning was logged.
    #[cfg(feature = "aws")]
    pub(super) warned_about_nonce: bool,
    /// The secret_id allows one login, and a warning was logged.
    warned_about_single_use: bool,
}

/// What an attempt has brought.
enum Outcome {
    LoggedIn(LoggedIn),
    /// The token of an agent's sink.
    Unwrapped(Token),
}

struct Blocked {
    error: LoginError,
    material: Fingerprint,
    not_before: Instant,
    pause: Duration,
}

impl Authenticator {
    pub(in crate::session) fn new(revoker: Revoker, metrics: Arc<Metrics>) -> Self {
        Self { inline: Mutex::default(), metrics, revoker, state: Arc::default(), unclaimed: Arc::default() }
    }

    /// Logs in, or returns the token of a login whose session could not be verified a moment ago.
    ///
    /// The login is a task of its own. If the caller is dropped, it ends in the background, because half of a
    /// login uses up a credential; the next call returns its token.
    pub(in crate::session) async fn log_in(&self, target: LoginTarget) -> Result<IssuedToken, LoginError> {
        let state = Arc::clone(&self.state).lock_owned().await;
        if let Some(token) = self.unclaimed_token(&target) {
            return Ok(token);
        }
        let (metrics, revoker, unclaimed) =
            (Arc::clone(&self.metrics), self.revoker.clone(), Arc::clone(&self.unclaimed));
        let login = tokio::spawn(async move {
            let (auth, material) = (target.auth.clone(), target.config.material_fingerprint);
            let token = log_in(state, target, &metrics, &revoker).await?;
            let issued = Unclaimed { auth, material, since: Instant::now(), token: token.clone() };
            *unclaimed.lock().unwrap_or_else(PoisonError::into_inner) = Some(issued);
            Ok(token)
        });
        login.await.unwrap_or_else(|_| {
            let error =
                TransitError::new(ErrorKind::Config, "the login ended without an outcome: this is a bug");
            Err(LoginError::new(LoginFailure::Away, error))
        })
    }

    /// The login that travels with each request of a session. Sessions with the same credential share what is known
    /// about its refusals.
    pub(in crate::session) fn inline(
        &self,
        auth: &AuthSettings,
        material: &LoginMaterial,
        method: &InlineMethod,
    ) -> Result<InlineLogin, LoginError> {
        let Prepared { credential, login, waits_for, .. } =
            credential_source::inline(auth, material, method)?;
        let mut known = self.inline.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_ref().filter(|it| it.credential == credential && it.auth == *auth) {
            return Ok(known.login.clone());
        }
        let login =
            login.inline(&waits_for).map_err(|error| LoginError::new(LoginFailure::Blocked, error))?;
        *known = Some(KnownInline { auth: auth.clone(), credential, login: login.clone() });
        Ok(login)
    }

    /// Has the next login bring another token: a session with the last one is published, or Vault does not accept
    /// it.
    pub(in crate::session) fn forget_token(&self) {
        *self.unclaimed.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn unclaimed_token(&self, target: &LoginTarget) -> Option<IssuedToken> {
        let mut unclaimed = self.unclaimed.lock().unwrap_or_else(PoisonError::into_inner);
        let fits =
            unclaimed.as_ref().is_some_and(|it| {
                it.auth == target.auth
                    && it.material == target.config.material_fingerprint
                    && it.since.elapsed() < REUSE_TIME
                    && it.token.info.as_ref().is_some_and(|info| {
                        info.expiry.remaining().is_none_or(|left| left > it.since.elapsed())
                    })
            });
        if !fits {
            *unclaimed = None;
        }
        unclaimed.as_ref().map(|it| it.token.clone())
    }
}

/// Logs in with what `identity` knows, and adds to it what the attempt shows.
async fn log_in(
    mut state: OwnedMutexGuard<Option<Identity>>,
    target: LoginTarget,
    metrics: &Metrics,
    revoker: &Revoker,
) -> Result<IssuedToken, LoginError> {
    let identity = match state.take() {
        Some(identity) if identity.auth == target.auth => identity,
        earlier => {
            let opened = earlier.map(|identity| identity.opened).unwrap_or_default();
            Identity { opened, ..Identity::open(target.auth.clone()).await }
        }
    };
    let identity = state.insert(identity);
    let material = target.config.material_fingerprint;
    if let Some(blocked) = identity.blocked.as_ref().filter(|blocked| blocked.material == material)
        && Instant::now() < blocked.not_before
    {
        return Err(blocked.error.clone());
    }
    let outcome = identity.attempt(&target).await;
    let method = target.auth.method.name();
    metrics.login.ended(method, outcome.as_ref().err().map(|failed| failed.failure));
    let namespace = target.auth.namespace.clone();
    match outcome {
        Ok(Outcome::Unwrapped(token)) => {
            identity.blocked = None;
            Ok(IssuedToken { guard: None, info: None, namespace, token })
        }
        Ok(Outcome::LoggedIn(logged_in)) => {
            identity.blocked = None;
            let ttl_seconds = logged_in.info.expiry.remaining().map(|left| left.as_secs());
            info!(method, ttl_seconds, "logged in");
            logged_in.warn();
            let LoginContext { metrics, pool, .. } = target.context;
            let guard = (!logged_in.is_batch)
                .then(|| revoker.guard(&logged_in.token, &namespace, pool, metrics))
                .transpose()
                .map_err(|error| LoginError::new(LoginFailure::Blocked, error))?;
            Ok(IssuedToken { guard, info: Some(logged_in.info), namespace, token: logged_in.token })
        }
        Err(failed) => {
            if failed.failure == LoginFailure::Blocked {
                let pause =
                    identity.blocked.as_ref().map_or(FIRST_BLOCKED_PAUSE, |blocked| blocked.pause * 2);
                let pause = pause.min(MAX_BLOCKED_PAUSE);
                let not_before = Instant::now() + pause;
                identity.blocked = Some(Blocked { error: failed.clone(), material, not_before, pause });
            }
            Err(failed)
        }
    }
}

impl Identity {
    async fn open(auth: AuthSettings) -> Self {
        let ledger = if auth.method.keeps_state() {
            let state_dir = auth.state_dir.clone();
            spawn_blocking(move || Ledger::open(&state_dir)).await.unwrap_or_else(|_| Ledger::in_memory())
        } else {
            Ledger::in_memory()
        };
        Self {
            auth,
            blocked: None,
            ledger,
            opened: OpenedDeliveries::default(),
            rejected: None,
            #[cfg(feature = "aws")]
            warned_about_nonce: false,
            warned_about_single_use: false,
        }
    }

    async fn attempt(&mut self, target: &LoginTarget) -> Result<Outcome, LoginError> {
        if let AuthMethod::TokenFile(token_file) = &target.auth.method {
            let (bytes, name) = contents(&target.config.material, token_file)?;
            return open_token(self, target, bytes, &name).await.map(Outcome::Unwrapped);
        }
        self.log_in(target).await.map(Outcome::LoggedIn)
    }

    async fn log_in(&mut self, target: &LoginTarget) -> Result<LoggedIn, LoginError> {
        let prepared = prepare(self, target).await?;
        let Prepared { credential, is_fetched, login, pool, waits_for } = &prepared;
        let credential = *credential;
        if let Some(known) = self.rejection(credential) {
            return Err(known);
        }
        let refusals = self.with_ledger(move |ledger| ledger.refusals(credential)).await;
        if refusals >= MAX_REFUSALS {
            let error = refused_before(waits_for);
            return Err(self.reject(credential, LoginError::new(LoginFailure::Refused, error)));
        }
        if !self.with_ledger(Ledger::may_log_in).await {
            let message = "there were too many logins within a minute: the next one waits, so that restarts do \
                           not become a storm of logins";
            let error = TransitError::new(ErrorKind::Throttled, message);
            return Err(LoginError::new(LoginFailure::Away, error));
        }
        let mut context = target.context.clone();
        if let Some(pool) = pool {
            context.pool = Arc::clone(pool);
        }
        debug!(method = login.method().name(), path = login.path(), "logging in");
        let failed = match login.log_in(&context).await {
            Ok(mut logged_in) => {
                if pool.is_some() {
                    // Vault renews a token of a certificate only on a connection with the same certificate.
                    logged_in.info.renewable = Some(false);
                }
                return Ok(logged_in);
            }
            Err(failed) => failed,
        };
        if *is_fetched && failed.failure == LoginFailure::Refused {
            return Err(LoginError { failure: LoginFailure::Blocked, ..failed });
        }
        match failed.failure {
            LoginFailure::Refused => {
                let refusals = self.with_ledger(move |ledger| ledger.refuse(credential)).await;
                if refusals < MAX_REFUSALS {
                    return Err(failed);
                }
                let LoginError { error, failure } = failed;
                let message = format!("{}; {}", error.message, refused_before(waits_for).message);
                let error = TransitError::new(error.kind, message).with_source(error);
                Err(self.reject(credential, LoginError::new(failure, error)))
            }
            LoginFailure::Spent | LoginFailure::Tampered => Err(self.reject(credential, failed)),
            LoginFailure::Away | LoginFailure::Blocked => Err(failed),
        }
    }

    pub(super) fn warn_about_single_use(&mut self, name: &str) {
        if !std::mem::replace(&mut self.warned_about_single_use, true) {
            warn!(
                from = name,
                "the secret_id allows one login: when its token reaches the maximum TTL, or after a restart, transit-kms \
                 cannot log in until another one is delivered; set secret_id_num_uses=0 in the role"
            );
        }
    }

    /// Why the credential must not be used, if that is known.
    pub(super) fn rejection(&self, credential: CredentialHash) -> Option<LoginError> {
        let (_, error) = self.rejected.as_ref().filter(|(rejected, _)| *rejected == credential)?;
        Some(error.clone())
    }

    /// Remembers that the credential must not be used again, and logs it once.
    pub(super) fn reject(&mut self, credential: CredentialHash, failed: LoginError) -> LoginError {
        match failed.failure {
            LoginFailure::Tampered => error!(
                error = %failed.error,
                "POSSIBLE INTERCEPTION: a delivery was used or forged by another hand; it is not tried again"
            ),
            _ => warn!(error = %failed.error, "the credential cannot be used; another one is needed"),
        }
        self.rejected = Some((credential, failed.clone()));
        failed
    }

    /// Whether this machine has used the token of a delivery, or may have.
    pub(super) async fn has_consumed(&mut self, token: &Token) -> bool {
        let credential = CredentialHash::of([token.expose().as_bytes()]);
        self.with_ledger(move |ledger| ledger.is_consumed(credential)).await
    }

    /// See [`Ledger::consume`].
    pub(super) async fn consume(&mut self, token: &Token) {
        let credential = CredentialHash::of([token.expose().as_bytes()]);
        self.with_ledger(move |ledger| ledger.consume(credential)).await;
    }

    /// See [`Ledger::not_consumed`].
    pub(super) async fn not_consumed(&mut self, token: &Token) {
        let credential = CredentialHash::of([token.expose().as_bytes()]);
        self.with_ledger(move |ledger| ledger.not_consumed(credential)).await;
    }

    /// Uses the ledger on a thread for blocking calls: a disk that hangs must not stop the calls of the API server.
    pub(super) async fn with_ledger<T: Default + Send + 'static>(
        &mut self,
        use_ledger: impl FnOnce(&mut Ledger) -> T + Send + 'static,
    ) -> T {
        let mut ledger = std::mem::replace(&mut self.ledger, Ledger::in_memory());
        let used = spawn_blocking(move || {
            let result = use_ledger(&mut ledger);
            (ledger, result)
        });
        match used.await {
            Ok((ledger, result)) => {
                self.ledger = ledger;
                result
            }
            // The process ends, or the disk code has a bug: nothing is known.
            Err(_) => T::default(),
        }
    }
}

fn refused_before(waits_for: &str) -> TransitError {
    let message = format!(
        "Vault has refused this credential twice, and locks its user or role after a few more: transit-kms logs in \
         again when {waits_for} changes, or after a restart 15 minutes later"
    );
    TransitError::new(ErrorKind::Denied, message)
}
