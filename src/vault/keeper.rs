//! The keeper: turns configs into sessions, and looks after the token of the one in use.
//!
//! One task, one loop. A new config is a *candidate*: it is tried against Vault while
//! the session in use goes on working, and replaces it only when proven. While Vault is
//! away, or says no, it stays pending and is tried again, ever more slowly, until a newer
//! config supersedes it.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{debug, info, warn};

use super::{
    pool::Pool,
    schedule::{Schedule, jittered},
    session::Session,
    token::{self, TokenInfo},
};
use crate::{
    config::{Credentials, Fingerprint, Observation, Reading, Watcher},
    kms::{
        Board, Fault, Snapshot, TransitError,
        health::Answer,
        probe::{Before, Proof, probe},
        prober::OlderVersions,
    },
    observe::metrics::Metrics,
};

/// The longest that one call about the token may take; a new config waits meanwhile.
const LONGEST_CARE: Duration = Duration::from_secs(3);
/// The longest that one try of a candidate may take.
const LONGEST_TRY: Duration = Duration::from_secs(10);
/// A token just issued may not have reached every node: the first tries follow fast.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// An outage ends at any moment, and somebody waits for it.
const LONGEST_PAUSE_AWAY: Duration = Duration::from_secs(5);
/// A refusal is healed by hand, and every try leaves a line in Vault's audit log.
const LONGEST_PAUSE_REFUSED: Duration = Duration::from_secs(30);

/// Owns the sessions of the daemon.
pub struct Keeper {
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    watcher: Watcher,
}

/// The session in use, as far as its token is concerned.
struct InUse {
    fingerprint: Fingerprint,
    generation: u64,
    pool: Arc<Pool>,
    pool_fingerprint: Fingerprint,
    /// The last renewal failed, and it has been said.
    renewal_fails: bool,
    schedule: Schedule,
    session: Arc<Session>,
}

/// A config that is not in use yet.
struct Candidate {
    next_try: Instant,
    older: OlderVersions,
    pause: Duration,
    reading: Reading,
    /// What was said of it last: `pending` or `refused`.
    told: Option<&'static str>,
}

/// A candidate that stood the test.
struct Proven {
    info: Option<TokenInfo>,
    pool: Arc<Pool>,
    proof: Proof,
    session: Arc<Session>,
}

impl Keeper {
    /// A keeper of what `watcher` finds, who publishes on `board`.
    #[must_use]
    pub fn new(watcher: Watcher, board: Arc<Board>, metrics: Arc<Metrics>) -> Self {
        Self { board, metrics, watcher }
    }

    /// Keeps for ever.
    pub async fn run(mut self) {
        let mut candidate: Option<Candidate> = None;
        let mut in_use: Option<InUse> = None;
        let mut last_death = None;
        let mut watching = true;
        loop {
            let next_try = candidate.as_ref().map(|candidate| candidate.next_try);
            let next_care = in_use.as_ref().and_then(|in_use| in_use.schedule.next());
            tokio::select! {
                observation = self.watcher.changed(), if watching => match observation {
                    Some(observation) => candidate = self.observe(&observation, in_use.as_ref()),
                    // The token is cared for all the same; `app` sees that the watch has ended.
                    None => watching = false,
                },
                () = at(next_try) => {
                    if let Some(waiting) = candidate.take() {
                        candidate = self.try_candidate(waiting, &mut in_use).await;
                    }
                }
                () = at(next_care) => {
                    if let Some(in_use) = in_use.as_mut() {
                        self.care_for_token(in_use).await;
                    }
                }
                () = self.board.token_died(&mut last_death) => {
                    // The agent may just have written the next one: look, and hurry.
                    info!("the token is dead: reading the config anew");
                    if let Some(candidate) = candidate.as_mut() {
                        candidate.hurry();
                    }
                    let rereader = self.watcher.rereader();
                    tokio::spawn(async move { rereader.reread().await });
                }
            }
        }
    }

    /// Whether the session in use does its work.
    fn is_well(&self) -> bool {
        self.board.status().0 == Answer::Well { in_grace: false }
    }

    /// What is on disk now: a candidate, nothing new, or nothing usable.
    fn observe(&self, observation: &Observation, in_use: Option<&InUse>) -> Option<Candidate> {
        match observation {
            Ok(reading) if in_use.is_some_and(|in_use| in_use.fingerprint == reading.fingerprint) => {
                debug!("the config on disk is the one in use");
                self.board.set_trouble(None);
                self.metrics.config_in_use();
                None
            }
            Ok(reading) => {
                for warning in &reading.config.warnings {
                    warn!(%warning, "config");
                }
                Some(Candidate::new(reading.clone()))
            }
            Err(error) => {
                // The watcher has logged it; what works stays.
                self.metrics.reload("unparsable");
                self.board.set_trouble(Some(error.to_string()));
                None
            }
        }
    }

    /// Tries a candidate; what it returns is to be tried next: the same one later, or a newer one.
    async fn try_candidate(
        &mut self,
        mut candidate: Candidate,
        in_use: &mut Option<InUse>,
    ) -> Option<Candidate> {
        let deadline = Instant::now() + LONGEST_TRY;
        let before = self.board.snapshot();
        let proving = prove(
            &self.metrics,
            &mut candidate,
            in_use.as_ref(),
            before.as_deref(),
            self.is_well(),
            self.board.read().key_lost.is_some(),
            deadline,
        );
        let outcome = tokio::select! {
            biased;
            // Nothing has been published yet, so a newer config may simply take over.
            Some(observation) = self.watcher.changed() => return self.observe(&observation, in_use.as_ref()),
            outcome = timeout_at(deadline, proving) => outcome.unwrap_or_else(|_| {
                let message = format!("Vault did not answer within {} s", LONGEST_TRY.as_secs());
                Err(TransitError::new(Fault::Unreachable, message))
            }),
        };
        match outcome.and_then(|proven| self.take(&candidate, proven)) {
            Ok(taken) => {
                *in_use = Some(taken);
                None
            }
            Err(error) => {
                self.put_off(&mut candidate, &error, self.is_well());
                Some(candidate)
            }
        }
    }

    /// Publishes what was proven.
    fn take(&self, candidate: &Candidate, proven: Proven) -> Result<InUse, TransitError> {
        let Proven { info, pool, proof, session } = proven;
        let snapshot = self
            .board
            .take_session(Arc::clone(&session) as _, proof)
            .map_err(|outdated| TransitError::new(Fault::Lagging, outdated.to_string()))?;
        session.put_in_use();
        self.metrics.reload("taken");
        self.metrics.vault_nodes(candidate.reading.config.addresses.iter().map(ToString::to_string));
        let mut in_use = InUse {
            fingerprint: candidate.reading.fingerprint,
            generation: snapshot.generation,
            pool,
            pool_fingerprint: candidate.reading.connection_fingerprint,
            renewal_fails: false,
            schedule: Schedule::new(info.is_some()),
            session,
        };
        let ttl = info.as_ref().map(|info| info.ttl).unwrap_or_default();
        info!(generation = snapshot.generation, token_ttl_seconds = ttl.as_secs(), "session in use");
        // Nothing is known of a token that may not look itself up; what was known of the one
        // before it must go, or its end would raise an alarm.
        self.metrics.new_token(ttl);
        if let Some(info) = info {
            info.warn();
            if info.renewable {
                in_use.schedule.renew_before_end(info.ttl);
            }
        }
        Ok(in_use)
    }

    /// Says why a candidate is not in use, and when it is tried again.
    fn put_off(&self, candidate: &mut Candidate, error: &TransitError, something_works: bool) {
        let away = matches!(
            error.fault,
            Fault::DeadlineExceeded
                | Fault::Lagging
                | Fault::Nonsense
                | Fault::Throttled
                | Fault::Unreachable
        );
        let result = if away { "pending" } else { "refused" };
        if candidate.told.replace(result) != Some(result) {
            self.metrics.reload(result);
            warn!(
                %error, fault = error.fault.name(), keeping_the_old = something_works,
                "the new config is not taken yet; trying again"
            );
        } else {
            debug!(%error, "the new config is still not taken");
        }
        self.board.set_trouble(Some(error.to_string()));
        candidate.next_try = Instant::now() + jittered(candidate.pause);
        let longest = if away || !something_works { LONGEST_PAUSE_AWAY } else { LONGEST_PAUSE_REFUSED };
        candidate.pause = (candidate.pause * 2).min(longest);
    }

    /// Looks the token up, or renews it, whichever is due.
    async fn care_for_token(&self, in_use: &mut InUse) {
        let deadline = Instant::now() + LONGEST_CARE;
        if in_use.schedule.take_renewal() {
            match token::renew(&in_use.session, deadline).await {
                Ok(renewal) => {
                    self.metrics.token(renewal.ttl);
                    in_use.renewal_fails = false;
                    self.metrics.token_renewal(if renewal.capped { "capped" } else { "renewed" });
                    if renewal.capped {
                        warn!(
                            ttl_seconds = renewal.ttl.as_secs(),
                            "the token has reached its maximum TTL: the agent must render a new one before it ends"
                        );
                    } else {
                        info!(ttl_seconds = renewal.ttl.as_secs(), "token renewed");
                    }
                    in_use.schedule.renew_before_end(renewal.ttl);
                }
                Err(error) => {
                    self.metrics.token_renewal("failed");
                    if std::mem::replace(&mut in_use.renewal_fails, true) {
                        debug!(%error, "the token still cannot be renewed");
                    } else {
                        warn!(%error, "the token could not be renewed; trying again");
                    }
                    if error.fault == Fault::Denied {
                        // That the policy lacks renew-self does not keep the token from working:
                        // the next lookup tells how long there is to live.
                        return;
                    }
                    self.board.call_failed(in_use.generation, &error);
                    if error.fault != Fault::TokenDead {
                        in_use.schedule.renew_again_in(LONGEST_PAUSE_AWAY);
                    }
                }
            }
        }
        if in_use.schedule.lookup_due() {
            in_use.schedule.looked_up();
            match token::lookup(&in_use.session, deadline).await {
                Ok(info) => {
                    self.metrics.token(info.ttl);
                    debug!(ttl_seconds = info.ttl.as_secs(), "token looked up");
                    if info.renewable && !in_use.schedule.will_renew() {
                        in_use.schedule.renew_before_end(info.ttl);
                    }
                }
                Err(error) if error.fault == Fault::Denied => in_use.schedule.may_not_look_up(),
                Err(error) => {
                    warn!(%error, "the token could not be looked up");
                    self.board.call_failed(in_use.generation, &error);
                }
            }
        }
    }
}

/// Everything that a candidate must show before it replaces what works.
async fn prove(
    metrics: &Arc<Metrics>,
    candidate: &mut Candidate,
    in_use: Option<&InUse>,
    before: Option<&Snapshot>,
    in_use_is_well: bool,
    key_is_lost: bool,
    deadline: Instant,
) -> Result<Proven, TransitError> {
    let reading = &candidate.reading;
    let token = match &reading.config.credentials {
        Credentials::Token(token) => token,
        Credentials::Unsupported { method } => {
            return Err(TransitError::new(
                Fault::Denied,
                format!(
                    "login method `{method}` is not supported yet: let an agent log in and render \
                     vault.token instead"
                ),
            ));
        }
    };
    let pool = match in_use {
        Some(in_use) if in_use.pool_fingerprint == reading.connection_fingerprint => Arc::clone(&in_use.pool),
        _ => Arc::new(Pool::new(reading).await?),
    };
    let session = Session::new(reading, token, Arc::clone(&pool), Arc::clone(metrics))?;
    let info = match token::lookup(&session, deadline).await {
        Ok(info) => {
            info.check()?;
            Some(info)
        }
        Err(error) if error.fault == Fault::Denied => {
            warn!(%error, "the token may not look itself up, so its end cannot be foreseen");
            None
        }
        Err(error) => return Err(error),
    };
    let against = before.map(|before| Before {
        keyring: &before.keyring,
        insist: in_use_is_well,
        lost: key_is_lost,
        own: false,
        witness: &before.witness,
    });
    // While the session in use is well, an older key version is not its Vault's.
    let accept_older = !in_use_is_well && candidate.older.believed();
    let outcome = probe(&session, against, accept_older, deadline).await;
    candidate.older.note(&outcome);
    Ok(Proven { info, pool, proof: outcome?, session: Arc::new(session) })
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

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}
