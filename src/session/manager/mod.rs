//! The keeper: turns configs into sessions, and looks after the token of the one in use.
//!
//! A new config is a *candidate*: it is verified against Vault while the session in use goes on
//! working, and replaces it only when proven. While Vault is away, or says no, it stays pending and is
//! tried again, ever more slowly, until a newer config supersedes it.
//!
//! One task holds the state, so a session is taken in one step. Whatever waits for Vault is a future
//! beside it: a candidate that gets no answer delays no renewal, and a renewal delays no candidate.

use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{debug, info, warn};
use transit_client::{
    ErrorKind, TransitError,
    metrics::ClientMetrics,
    vault::{
        self, Access, Pool, Session,
        lease::{
            self, Expiry, LeaseAction, LeaseSchedule, Renewal, RenewalError, RenewalFailure, TokenInfo,
            jittered,
        },
    },
};

use super::{
    older_versions::OlderVersions,
    progress::Progress,
    state::{NewSession, SessionPublisher, Snapshot},
    verification::{PreviousState, Verification, verify},
};
use crate::{
    config::{Credentials, Fingerprint, Observation, Reading, Watcher},
    observe::{
        labels::{ConfigState, ReloadResult, RenewalResult},
        metrics::Metrics,
    },
};

/// The longest that one try of a candidate may take.
const LONGEST_TRY: Duration = Duration::from_secs(10);
/// Of that, the longest for the lookup of its token, which is of use and not needed.
const LONGEST_LOOKUP: Duration = Duration::from_secs(3);
/// A token just issued may not have reached every node: the first tries follow fast.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// An outage ends at any moment, and somebody waits for it.
const LONGEST_PAUSE_AWAY: Duration = Duration::from_secs(5);
/// A refusal is healed by hand, and every try leaves a line in Vault's audit log.
const LONGEST_PAUSE_REFUSED: Duration = Duration::from_secs(30);

/// Owns the sessions of the daemon.
pub struct SessionManager {
    metrics: Arc<Metrics>,
    publisher: Arc<SessionPublisher>,
    watcher: Watcher,
}

type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What the keeper holds.
#[derive(Default)]
struct State {
    candidate: Stage,
    /// The call about the token of the session in use that has not been answered yet.
    care: Option<Task<Cared>>,
    in_use: Option<InUse>,
}

/// The session in use, as far as its token is concerned.
struct InUse {
    fingerprint: Fingerprint,
    generation: u64,
    /// The last lookup failed, and it has been said.
    lookup_fails: bool,
    pool: Arc<Pool>,
    pool_fingerprint: Fingerprint,
    /// How the last renewal failed, as it has been said.
    renewal_fails: Option<RenewalFailure>,
    schedule: LeaseSchedule,
    session: Arc<Session>,
    /// It has been said that the token has reached its maximum TTL.
    told_capped: bool,
}

/// Where the newest config is on its way, if it is not in use.
#[derive(Default)]
enum Stage {
    #[default]
    None,
    Verifying(VerificationTask),
    Waiting(Box<Candidate>),
}

/// A config that is not in use yet.
struct Candidate {
    next_try: Instant,
    older: OlderVersions,
    pause: Duration,
    reading: Reading,
    /// What was said of it last: `pending` or `refused`.
    told: Option<ReloadResult>,
}

/// One try of a candidate.
struct VerificationTask {
    /// The token in use died meanwhile: if this fails, the next try comes at once.
    hurry: bool,
    outcome: Task<(Box<Candidate>, Result<Proven, TransitError>)>,
}

/// A candidate that stood the test.
struct Proven {
    /// What a lookup of its token told, or how that failed.
    info: Result<TokenInfo, ErrorKind>,
    pool: Arc<Pool>,
    verification: Verification,
    session: Arc<Session>,
}

/// What came of a call about the token.
enum Cared {
    LookedUp(Result<TokenInfo, TransitError>),
    Renewed(Result<Renewal, RenewalError>),
}

impl SessionManager {
    /// A keeper of what `watcher` finds, who publishes with `publisher`.
    #[must_use]
    pub fn new(watcher: Watcher, publisher: SessionPublisher, metrics: Arc<Metrics>) -> Self {
        Self { metrics, publisher: Arc::new(publisher), watcher }
    }

    /// Keeps for ever.
    pub async fn run(mut self) {
        let mut state = State::default();
        let mut last_death = None;
        let mut watching = true;
        loop {
            state.care_if_due();
            let next_try = state.candidate.next_try();
            let next_care = state.next_care();
            let State { candidate, care, .. } = &mut state;
            tokio::select! {
                observation = self.watcher.changed(), if watching => match observation {
                    // A verification under way ends here: a newer config supersedes it.
                    Some(observation) => {
                        state.candidate = self.observe(&observation, state.in_use.as_ref());
                    }
                    // The token is cared for all the same; `app` sees that the watch has ended.
                    None => watching = false,
                },
                () = at(next_try) => state.candidate = self.verify(state.candidate.take(), state.in_use.as_ref()),
                (candidate, outcome) = candidate.verified() => self.verified(candidate, outcome, &mut state),
                cared = answered(care) => {
                    state.care = None;
                    if let Some(in_use) = &mut state.in_use {
                        self.cared(in_use, cared);
                    }
                }
                // The next turn begins it.
                () = at(next_care) => {}
                () = self.publisher.store().token_invalidated(&mut last_death) => {
                    // The agent may just have written the next one: look, and hurry.
                    info!("the token is dead: reading the config anew");
                    state.candidate.hurry();
                    let rereader = self.watcher.rereader();
                    tokio::spawn(async move { rereader.reread().await });
                }
            }
        }
    }

    /// Whether the session in use does its work.
    fn is_well(&self) -> bool {
        self.publisher.store().read().is_healthy()
    }

    /// What is on disk now: a candidate, nothing new, or nothing usable.
    fn observe(&self, observation: &Observation, in_use: Option<&InUse>) -> Stage {
        match observation {
            Ok(reading) if in_use.is_some_and(|in_use| in_use.fingerprint == reading.fingerprint) => {
                debug!("the config on disk is the one in use");
                self.publisher.set_config_error(None);
                self.metrics.config_state(ConfigState::InUse);
                Stage::None
            }
            Ok(reading) => Stage::Waiting(Box::new(Candidate::new(reading.clone()))),
            Err(error) => {
                // The watcher has logged it; what works stays.
                self.metrics.reload(ReloadResult::Invalid);
                self.publisher.set_config_error(Some(error.to_string()));
                Stage::None
            }
        }
    }

    /// Begins to verify a candidate.
    fn verify(&self, stage: Stage, in_use: Option<&InUse>) -> Stage {
        let Stage::Waiting(mut candidate) = stage else { return stage };
        let deadline = Instant::now() + LONGEST_TRY;
        let config = &candidate.reading.config;
        let progress =
            Progress::new(Arc::clone(&self.publisher), &config.addresses, candidate.told.is_none());
        let pool = in_use
            .filter(|in_use| in_use.pool_fingerprint == candidate.reading.connection_fingerprint)
            .map(|in_use| Arc::clone(&in_use.pool));
        let (before, is_well) = (self.publisher.store().snapshot(), self.is_well());
        let key_is_lost = self.publisher.store().read().key_lost.is_some();
        let metrics = Arc::clone(&self.metrics.client);
        let outcome = async move {
            let session = InUseNow { before: before.as_deref(), is_well, key_is_lost, pool };
            let proving = prove(&metrics, &mut candidate, session, deadline, &progress);
            let outcome = timeout_at(deadline, proving).await.unwrap_or_else(|_| {
                let message = format!("Vault did not answer within {} s", LONGEST_TRY.as_secs());
                Err(TransitError::new(ErrorKind::DeadlineExceeded, message))
            });
            (candidate, outcome.map_err(|error| progress.explained(error)))
        };
        Stage::Verifying(VerificationTask { hurry: false, outcome: Box::pin(outcome) })
    }

    /// Takes a candidate that was proven, or puts it off.
    fn verified(
        &self,
        mut candidate: Box<Candidate>,
        outcome: Result<Proven, TransitError>,
        state: &mut State,
    ) {
        let hurry = matches!(&state.candidate, Stage::Verifying(verification) if verification.hurry);
        match outcome.and_then(|proven| self.take(&candidate, proven)) {
            Ok(taken) => {
                // An answer about the token of the session before says nothing about this one's. The
                // request ends by itself: one that is cancelled costs its connection.
                if let Some(care) = state.care.take() {
                    drop(tokio::spawn(care));
                }
                *state = State { candidate: Stage::None, care: None, in_use: Some(taken) };
            }
            Err(error) => {
                self.put_off(&mut candidate, &error, self.is_well());
                state.candidate = Stage::Waiting(candidate);
                if hurry {
                    state.candidate.hurry();
                }
            }
        }
    }

    /// Publishes what was proven.
    fn take(&self, candidate: &Candidate, proven: Proven) -> Result<InUse, TransitError> {
        let Proven { info, pool, verification, session } = proven;
        let snapshot = self
            .publisher
            .publish(
                NewSession {
                    encryption: candidate.reading.config.encryption,
                    nodes: Some(Arc::clone(&pool)),
                    transit: Arc::clone(&session) as _,
                },
                verification,
            )
            .map_err(|outdated| TransitError::new(ErrorKind::VersionUnavailable, outdated.to_string()))?;
        session.mark_in_use();
        self.metrics.reload(ReloadResult::Success);
        self.metrics.client.set_nodes(candidate.reading.config.addresses.iter().map(ToString::to_string));
        let schedule = match &info {
            Ok(info) => LeaseSchedule::new(info.expiry, info.renewable),
            Err(kind) => LeaseSchedule::without_lookup(*kind),
        };
        let ttl_seconds = schedule.expiry().remaining().map(|left| left.as_secs());
        info!(generation = snapshot.generation, token_ttl_seconds = ttl_seconds, "session in use");
        // If nothing is known of this token, what was known of the one before it must go: its end
        // would raise an alarm.
        self.metrics.new_token(schedule.expiry().remaining());
        if let Ok(info) = info {
            info.warn();
        }
        Ok(InUse {
            fingerprint: candidate.reading.fingerprint,
            generation: snapshot.generation,
            lookup_fails: false,
            pool,
            pool_fingerprint: candidate.reading.connection_fingerprint,
            renewal_fails: None,
            schedule,
            session,
            told_capped: false,
        })
    }

    /// Says why a candidate is not in use, and when it is tried again.
    fn put_off(&self, candidate: &mut Candidate, error: &TransitError, something_works: bool) {
        let away = matches!(
            error.kind,
            ErrorKind::DeadlineExceeded
                | ErrorKind::VersionUnavailable
                | ErrorKind::InvalidResponse
                | ErrorKind::Throttled
                | ErrorKind::Unreachable
        );
        let result = if away { ReloadResult::Pending } else { ReloadResult::Refused };
        if candidate.told.replace(result) != Some(result) {
            self.metrics.reload(result);
            warn!(
                %error, kind = error.kind.name(), keeping_the_old = something_works,
                "the new config is not taken yet; trying again"
            );
        } else {
            debug!(%error, "the new config is still not taken");
        }
        self.publisher.set_config_error(Some(error.to_string()));
        candidate.next_try = Instant::now() + jittered(candidate.pause);
        let longest = if away || !something_works { LONGEST_PAUSE_AWAY } else { LONGEST_PAUSE_REFUSED };
        candidate.pause = (candidate.pause * 2).min(longest);
    }

    /// Takes notice of what came of a call about the token. None of it changes the health of the session:
    /// that is for probes and calls to find out.
    fn cared(&self, in_use: &mut InUse, cared: Cared) {
        match cared {
            Cared::LookedUp(Ok(info)) => {
                in_use.schedule.looked_up(info.expiry, info.renewable);
                in_use.lookup_fails = false;
                self.measure(in_use);
                debug!(ttl_seconds = seconds_left(in_use.schedule.expiry()), "token looked up");
            }
            Cared::LookedUp(Err(error)) => {
                in_use.schedule.lookup_failed(error.kind);
                self.suspect(in_use, error.kind);
                if std::mem::replace(&mut in_use.lookup_fails, true) {
                    debug!(%error, "the token still cannot be looked up");
                } else {
                    warn!(%error, "the token could not be looked up");
                }
            }
            Cared::Renewed(Ok(renewal)) => {
                in_use.schedule.renewed(renewal.expiry, renewal.renewable);
                in_use.renewal_fails = None;
                self.metrics.token_renewal(if renewal.capped {
                    RenewalResult::Capped
                } else {
                    RenewalResult::Renewed
                });
                self.measure(in_use);
                let ttl_seconds = seconds_left(in_use.schedule.expiry());
                if renewal.capped && std::mem::replace(&mut in_use.told_capped, true) {
                    debug!(ttl_seconds, "the token is still at its maximum TTL");
                } else if renewal.capped {
                    warn!(
                        ttl_seconds,
                        "the token has reached its maximum TTL: the agent must render a new one before it ends"
                    );
                } else {
                    info!(ttl_seconds, "token renewed");
                }
            }
            Cared::Renewed(Err(RenewalError { error, failure })) => {
                self.metrics.token_renewal(RenewalResult::Failed);
                self.suspect(in_use, error.kind);
                self.say_not_renewed(in_use, &error, failure);
            }
        }
    }

    /// Plans the next renewal, and says what failed, when that is, and when the token ends.
    fn say_not_renewed(&self, in_use: &mut InUse, error: &TransitError, failure: RenewalFailure) {
        let next = in_use.schedule.renewal_failed(failure);
        let next_try_seconds = next.map(|next| rounded(next.saturating_duration_since(Instant::now())));
        let token_ends_in_seconds = seconds_left(in_use.schedule.expiry());
        if in_use.renewal_fails.replace(failure) == Some(failure) {
            debug!(%error, next_try_seconds, token_ends_in_seconds, "the token still cannot be renewed");
        } else if failure == RenewalFailure::LoginRequired {
            warn!(
                %error, next_try_seconds, token_ends_in_seconds,
                "the token cannot be renewed any more: the agent must log in again and render a new one"
            );
        } else {
            warn!(
                %error, next_try_seconds, token_ends_in_seconds,
                "the token could not be renewed; trying again"
            );
        }
    }

    /// A call about the token says nothing about calls; that the token may be dead is worth a look.
    fn suspect(&self, in_use: &InUse, kind: ErrorKind) {
        if kind == ErrorKind::TokenInvalid {
            debug!(generation = in_use.generation, "the token may be dead");
            self.publisher.store().request_health_check();
        }
    }

    fn measure(&self, in_use: &InUse) {
        match in_use.schedule.expiry() {
            Expiry::Unknown => {}
            life => self.metrics.token(life.remaining()),
        }
    }
}

fn seconds_left(life: Expiry) -> Option<u64> {
    life.remaining().map(rounded)
}

/// In whole seconds.
fn rounded(duration: Duration) -> u64 {
    (duration + Duration::from_millis(500)).as_secs()
}

/// What a candidate is verified against.
struct InUseNow<'a> {
    before: Option<&'a Snapshot>,
    is_well: bool,
    key_is_lost: bool,
    /// Its connections, if they lead to the candidate's addresses.
    pool: Option<Arc<Pool>>,
}

/// Everything that a candidate must show before it replaces what works.
async fn prove(
    metrics: &Arc<ClientMetrics>,
    candidate: &mut Candidate,
    in_use: InUseNow<'_>,
    deadline: Instant,
    progress: &Arc<Progress>,
) -> Result<Proven, TransitError> {
    let reading = &candidate.reading;
    let token = match &reading.config.credentials {
        Credentials::Token(token) => token,
        Credentials::Unsupported { method } => {
            return Err(TransitError::new(
                ErrorKind::Denied,
                format!(
                    "login method `{method}` is not supported yet: let an agent log in and render \
                     vault.token instead"
                ),
            ));
        }
    };
    let pool = match in_use.pool {
        Some(pool) => pool,
        None => Arc::new(Pool::new(&reading.endpoint()).await?),
    };
    let access = Access {
        keys: reading.config.keys.clone(),
        namespace: reading.config.namespace.clone(),
        token: token.clone(),
    };
    let progress: Arc<dyn vault::RequestObserver> = Arc::clone(progress) as _;
    let session = Session::new(&access, Arc::clone(&pool), Arc::clone(metrics))?.with_observer(&progress);
    let info = match lease::lookup(&session, deadline.min(Instant::now() + LONGEST_LOOKUP)).await {
        Ok(info) => {
            info.check()?;
            Ok(info)
        }
        Err(error) if error.kind == ErrorKind::TokenInvalid => return Err(error),
        Err(error) => Err(error),
    };
    let against = in_use.before.map(|before| PreviousState {
        keyring: &before.keyring,
        insist: in_use.is_well,
        lost: in_use.key_is_lost,
        own: false,
        canary: &before.canary,
    });
    // While the session in use is well, an older key version is not its Vault's.
    let accept_older = !in_use.is_well && candidate.older.next_is_accepted();
    let outcome = verify(&session, against, accept_older, deadline).await;
    candidate.older.count(&outcome);
    let verification = outcome?;
    // Only now: if the config is not taken, what keeps it from that is what matters.
    let info = info.map_err(|error| {
        if error.kind == ErrorKind::Denied {
            warn!(%error, "the token may not look itself up; a renewal is tried, which tells its end");
        } else {
            warn!(%error, "the token could not be looked up");
        }
        error.kind
    });
    Ok(Proven { info, pool, verification, session: Arc::new(session) })
}

impl State {
    /// When the token next wants something, if no call about it is under way.
    fn next_care(&self) -> Option<Instant> {
        self.in_use.as_ref().filter(|_| self.care.is_none()).map(|in_use| in_use.schedule.next_action_at())
    }

    /// Looks the token up, or renews it, if that is due.
    fn care_if_due(&mut self) {
        let Some(in_use) = self.in_use.as_ref().filter(|_| self.care.is_none()) else { return };
        let (session, deadline) = (Arc::clone(&in_use.session), in_use.schedule.request_deadline());
        self.care = match in_use.schedule.due_action() {
            None => None,
            Some(LeaseAction::LookUp) => {
                Some(Box::pin(async move { Cared::LookedUp(lease::lookup(&session, deadline).await) }))
            }
            Some(LeaseAction::Renew) => {
                Some(Box::pin(async move { Cared::Renewed(lease::renew(&session, deadline).await) }))
            }
        };
    }
}

impl Stage {
    fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    fn next_try(&self) -> Option<Instant> {
        match self {
            Self::Waiting(candidate) => Some(candidate.next_try),
            Self::None | Self::Verifying(_) => None,
        }
    }

    /// Resolves when the verification under way has ended; cancel safe.
    async fn verified(&mut self) -> (Box<Candidate>, Result<Proven, TransitError>) {
        match self {
            Self::Verifying(verification) => verification.outcome.as_mut().await,
            Self::None | Self::Waiting(_) => std::future::pending().await,
        }
    }

    fn hurry(&mut self) {
        match self {
            Self::None => {}
            Self::Verifying(verification) => verification.hurry = true,
            Self::Waiting(candidate) => candidate.hurry(),
        }
    }
}

impl Candidate {
    fn new(reading: Reading) -> Self {
        Self {
            next_try: Instant::now(),
            older: OlderVersions::default(),
            pause: FIRST_PAUSE,
            reading,
            told: None,
        }
    }

    fn hurry(&mut self) {
        self.next_try = Instant::now();
        self.pause = FIRST_PAUSE;
    }
}

/// Resolves when the call has been answered; cancel safe.
async fn answered(care: &mut Option<Task<Cared>>) -> Cared {
    match care {
        Some(care) => care.as_mut().await,
        None => std::future::pending().await,
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}
