//! Keeps the token of one session valid: looks it up and renews it in time.
//!
//! Each session has a lease of its own, in a task of its own, so no slow candidate delays a renewal, and no
//! renewal delays a candidate. [`LeaseSchedule`] decides when each request is due.
//!
//! When only a login brings another token, the lease says so, and the session manager logs in.
//!
//! No result of a lookup or renewal changes the health of the session: a token can be valid for calls although
//! it may not be renewed. If Vault reports the token as invalid, the lease requests a health check.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};
use transit_client::{
    ErrorKind, TransitError,
    vault::{
        Session,
        lease::{
            self, Expiry, LeaseAction, LeaseSchedule, Renewal, RenewalError, RenewalFailure, TokenInfo,
            TokenOrigin,
        },
    },
};

use super::{manager::SessionToken, state::StateStore};
use crate::observe::{labels::RenewalResult, metrics::Metrics};

/// The lease of the session in use.
pub(super) struct Lease {
    generation: u64,
    /// The last lookup failed, and a warning was logged.
    lookup_failed: bool,
    login_due: Arc<Notify>,
    /// The token has reached its maximum TTL, and a warning was logged.
    max_ttl_reached: bool,
    metrics: Arc<Metrics>,
    /// How the last renewal failed. A warning was logged.
    renewal_failure: Option<RenewalFailure>,
    schedule: LeaseSchedule,
    session: Arc<Session>,
    store: Arc<StateStore>,
}

/// A lease at work. It ends when it is dropped.
pub(super) struct RunningLease {
    /// Is notified when only a login brings another token.
    pub(super) login_due: Arc<Notify>,
    pub(super) task: AbortOnDropHandle<()>,
}

impl Lease {
    /// Starts to look up and renew the token of `session`; `None` if it has no token.
    pub(super) fn start(
        session: Arc<Session>,
        generation: u64,
        token: Option<SessionToken>,
        store: Arc<StateStore>,
        metrics: Arc<Metrics>,
    ) -> Option<RunningLease> {
        let Some(SessionToken { info, origin }) = token else {
            info!(generation, "session in use, without a token");
            metrics.token.replaced(None);
            return None;
        };
        let schedule = match (&info, origin) {
            (Ok(token), TokenOrigin::Login) => LeaseSchedule::of_login(token.expiry, token.renewable),
            (Ok(token), TokenOrigin::Rendered) => LeaseSchedule::new(token.expiry, token.renewable),
            (Err(kind), _) => LeaseSchedule::without_lookup(*kind),
        };
        let remaining = schedule.expiry().remaining();
        let token_ttl_seconds = remaining.map(|remaining| remaining.as_secs());
        info!(generation, token_ttl_seconds, "session in use");
        // Also if nothing is known of this token: the expiry of the token before it would raise an alarm.
        metrics.token.replaced(remaining);
        if let (Ok(token), TokenOrigin::Rendered) = (&info, origin) {
            token.warn();
        }
        let login_due = Arc::<Notify>::default();
        let lease = Self {
            generation,
            lookup_failed: false,
            login_due: Arc::clone(&login_due),
            max_ttl_reached: false,
            metrics,
            renewal_failure: None,
            schedule,
            session,
            store,
        };
        Some(RunningLease { login_due, task: AbortOnDropHandle::new(tokio::spawn(lease.run())) })
    }

    async fn run(mut self) {
        loop {
            sleep_until(self.schedule.next_action_at()).await;
            let (session, deadline) = (Arc::clone(&self.session), self.schedule.request_deadline());
            // Each request is a task of its own. It ends by itself when this lease is dropped, because cancelling
            // a request closes its connection, and the next session may use it.
            match self.schedule.due_action() {
                None => {}
                Some(LeaseAction::LogIn) => {
                    let token_ends_in_seconds = self.remaining_seconds();
                    info!(token_ends_in_seconds, "the token ends: logging in again");
                    self.schedule.login_requested();
                    self.login_due.notify_one();
                }
                Some(LeaseAction::LookUp) => {
                    let request = tokio::spawn(async move { lease::lookup(&session, deadline).await });
                    let outcome = outcome_of(request).await;
                    self.looked_up(outcome);
                }
                Some(LeaseAction::Renew) => {
                    let request = tokio::spawn(async move { lease::renew(&session, deadline).await });
                    let outcome = outcome_of(request).await;
                    self.renewed(outcome);
                }
            }
        }
    }

    fn looked_up(&mut self, outcome: Result<TokenInfo, TransitError>) {
        match outcome {
            Ok(token) => {
                self.schedule.looked_up(token.expiry, token.renewable);
                self.lookup_failed = false;
                self.update_metrics();
                debug!(ttl_seconds = self.remaining_seconds(), "token looked up");
            }
            Err(error) => {
                self.schedule.lookup_failed(error.kind);
                self.check_if_invalid(&error);
                if std::mem::replace(&mut self.lookup_failed, true) {
                    debug!(%error, "the token still cannot be looked up");
                } else {
                    warn!(%error, "the token could not be looked up");
                }
            }
        }
    }

    fn renewed(&mut self, outcome: Result<Renewal, RenewalError>) {
        let renewal = match outcome {
            Ok(renewal) => renewal,
            Err(RenewalError { error, failure }) => {
                self.metrics.token.renewal(RenewalResult::Failed);
                self.check_if_invalid(&error);
                self.renewal_failed(&error, failure);
                return;
            }
        };
        self.schedule.renewed(renewal.expiry, renewal.renewable);
        self.renewal_failure = None;
        self.metrics.token.renewal(if renewal.capped {
            RenewalResult::Capped
        } else {
            RenewalResult::Renewed
        });
        self.update_metrics();
        if renewal.capped {
            self.schedule.renewals_end();
        }
        let ttl_seconds = self.remaining_seconds();
        if !renewal.capped {
            info!(ttl_seconds, "token renewed");
        } else if std::mem::replace(&mut self.max_ttl_reached, true) {
            debug!(ttl_seconds, "the token is still at its maximum TTL");
        } else if self.schedule.origin() == TokenOrigin::Login {
            info!(ttl_seconds, "the token has reached its maximum TTL: a login replaces it before it ends");
        } else {
            warn!(
                ttl_seconds,
                "the token has reached its maximum TTL: the agent must render a new one before it ends"
            );
        }
    }

    /// Plans the next renewal, and logs why this one failed, when the next one is, and when the token expires.
    fn renewal_failed(&mut self, error: &TransitError, failure: RenewalFailure) {
        let next = self.schedule.renewal_failed(failure);
        let next_try_seconds =
            next.map(|next| rounded_seconds(next.saturating_duration_since(Instant::now())));
        let token_ends_in_seconds = self.remaining_seconds();
        if self.renewal_failure.replace(failure) == Some(failure) {
            debug!(%error, next_try_seconds, token_ends_in_seconds, "the token still cannot be renewed");
        } else if self.schedule.origin() == TokenOrigin::Login && failure == RenewalFailure::LoginRequired {
            info!(
                %error, token_ends_in_seconds,
                "the token cannot be renewed any more: a login replaces it before it ends"
            );
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

    /// Has the session checked if Vault reports its token as invalid.
    fn check_if_invalid(&self, error: &TransitError) {
        if error.kind == ErrorKind::TokenInvalid {
            debug!(generation = self.generation, "the token may be invalid");
            self.store.request_health_check();
        }
    }

    fn update_metrics(&self) {
        match self.schedule.expiry() {
            Expiry::Unknown => {}
            expiry => self.metrics.token.set_ttl(expiry.remaining()),
        }
    }

    fn remaining_seconds(&self) -> Option<u64> {
        self.schedule.expiry().remaining().map(rounded_seconds)
    }
}

/// Waits for a request. If it panics, that counts as a failure, so that the schedule continues.
async fn outcome_of<T, E: From<TransitError>>(request: JoinHandle<Result<T, E>>) -> Result<T, E> {
    request.await.unwrap_or_else(|_| {
        let message = "the request about the token ended without an outcome: this is a bug";
        Err(TransitError::new(ErrorKind::InvalidResponse, message).into())
    })
}

fn rounded_seconds(duration: Duration) -> u64 {
    (duration + Duration::from_millis(500)).as_secs()
}

#[cfg(test)]
mod tests;
