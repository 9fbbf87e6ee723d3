//! The path of a request of either API: limits, deadline, session, Vault.
//!
//! [`v1`](super::v1) and [`v2`](super::v2) translate the messages of their API. This module holds what they
//! share. Read [`Requests::with_session`] from top to bottom.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use tonic::{Response, Status};
use transit_client::{ErrorKind, TransitError, metrics::RetryReason, transit::Call};

use super::{
    call_log::{AnswerIds, CallLog, Method, RequestIds},
    concurrency_limit::{ConcurrencyLimit, Permit, Started},
    status_code::into_status,
};
use crate::{
    observe::{labels::HealthState, metrics::Metrics},
    session::state::{CallReporter, Published, Snapshot, StateStore},
};

/// kube-apiserver sends a UUID of 36 characters.
const MAX_UID_BYTES: usize = 256;
/// A new token usually arrives within moments after the old one becomes invalid, and calls wait for it. Once
/// the token has been invalid for this time, calls fail immediately with the reason.
const MAX_WAIT_FOR_TOKEN: Duration = Duration::from_secs(10);
/// The time that a call keeps for its retry on a new session.
const RETRY_TIME: Duration = Duration::from_millis(100);

const DEADLINE_EXCEEDED: &str = "Vault did not answer before the caller's deadline";

/// Answers the requests of one service from the published state.
#[derive(Clone)]
pub(super) struct Requests {
    limit: Arc<ConcurrencyLimit>,
    metrics: Arc<Metrics>,
    reporter: CallReporter,
    pub(super) store: Arc<StateStore>,
}

/// An Encrypt or a Decrypt, which [`Requests::with_session`] performs on a session.
pub(super) trait Operation {
    type Output;

    /// Refuses an operation that the published state forbids.
    fn check(&self, _published: &Published) -> Result<(), Status> {
        Ok(())
    }

    /// Does what needs no request to Vault, without waiting.
    fn attempt_locally(
        &self,
        snapshot: &Snapshot,
        reporter: &CallReporter,
    ) -> Result<LocalAttempt<Self::Output>, TransitError>;

    /// Sends requests to Vault. The whole answer comes from `snapshot`.
    fn send_to_vault(
        &self,
        snapshot: &Snapshot,
        reporter: &CallReporter,
        call: Call<'_>,
    ) -> impl Future<Output = Result<Self::Output, TransitError>> + Send;
}

/// How far an operation gets without Vault.
pub(super) enum LocalAttempt<T> {
    Done(T),
    /// It needs a usable local KEK, and there is none.
    NeedsKek,
    NeedsVault,
}

impl Requests {
    pub(super) fn new(reporter: CallReporter, metrics: Arc<Metrics>) -> Self {
        let store = Arc::clone(reporter.store());
        Self { limit: Arc::new(ConcurrencyLimit::new()), metrics, reporter, store }
    }

    /// Runs `work` with the timeout of the caller, and records how it ends.
    pub(super) async fn answer<T>(
        &self,
        method: Method,
        ids: RequestIds<'_>,
        timeout: Duration,
        work: impl Future<Output = Result<(T, AnswerIds), Status>>,
    ) -> Result<Response<T>, Status> {
        let log = CallLog::start(method, ids, &self.metrics);
        let outcome = timeout_at(log.started() + timeout, work).await.unwrap_or_else(|_| {
            // The cause is unknown, so a health check has to find it.
            self.store.request_health_check();
            Err(Status::deadline_exceeded(DEADLINE_EXCEEDED))
        });
        match outcome {
            Ok((message, ids)) => {
                log.succeeded(&ids);
                Ok(Response::new(message))
            }
            Err(status) => {
                log.failed(&status);
                Err(status)
            }
        }
    }

    /// Performs `operation` on the session in use, and returns the snapshot that the output belongs to.
    ///
    /// If the token turns out to be invalid, or the session is replaced in the meantime, the operation is
    /// retried once, with only the snapshot of the next session.
    pub(super) async fn with_session<O: Operation>(
        &self,
        operation: &O,
        call: Call<'_>,
    ) -> Result<(O::Output, Arc<Snapshot>), Status> {
        let mut published = self.store.read();
        let mut permit = None;
        let mut retried = false;
        loop {
            let Some(snapshot) = published.snapshot.clone() else {
                return Err(Status::unavailable(published.answer.reason().unwrap_or_default()));
            };
            operation.check(&published)?;
            if published.token_invalid_for.is_some() {
                // A request with this token would only fail again.
                self.admit_waiting(&mut permit)?;
                published = self.next_session(&published, call).await?;
                continue;
            }

            match operation.attempt_locally(&snapshot, &self.reporter).map_err(into_status)? {
                LocalAttempt::Done(output) => return Ok((output, snapshot)),
                LocalAttempt::NeedsKek => {
                    self.admit_waiting(&mut permit)?;
                    published = self.next_kek(&published, call).await?;
                    continue;
                }
                LocalAttempt::NeedsVault => {}
            }

            let permit = self.admit(&mut permit)?;
            if permit.start_running(call.deadline).await? == Started::AfterWait {
                // The state may have changed in the meantime.
                published = self.store.read();
                continue;
            }

            let request = operation.send_to_vault(&snapshot, &self.reporter, call);
            let mut error = match timeout_at(call.deadline, request).await {
                Ok(Ok(output)) => return Ok((output, snapshot)),
                Ok(Err(error)) => error,
                Err(_) => {
                    let error = TransitError::new(ErrorKind::DeadlineExceeded, DEADLINE_EXCEEDED);
                    self.reporter.call_failed(snapshot.generation, &error);
                    error
                }
            };
            permit.add_wait_to(&mut error);

            published = self.store.read();
            let replaced = published.generation() > Some(snapshot.generation);
            let reason = match error.kind {
                ErrorKind::TokenInvalid => Some(RetryReason::TokenInvalid),
                // The new session may have the permission, or find the key.
                ErrorKind::Denied | ErrorKind::KeyNotFound if replaced => Some(RetryReason::SessionReplaced),
                _ => None,
            };
            match reason {
                Some(reason) if !retried => self.metrics.client.retry(reason),
                _ => return Err(into_status(error)),
            }
            retried = true;
        }
    }

    /// Returns the permit of the call. Takes one if it has none yet.
    fn admit<'a, 'p>(&'a self, permit: &'p mut Option<Permit<'a>>) -> Result<&'p mut Permit<'a>, Status> {
        match permit {
            Some(permit) => Ok(permit),
            none => Ok(none.insert(self.limit.admit()?)),
        }
    }

    /// Makes sure that a call that is about to wait has a permit, and that it is not a running one.
    fn admit_waiting<'a>(&'a self, permit: &mut Option<Permit<'a>>) -> Result<(), Status> {
        self.admit(permit)?.stop_running();
        Ok(())
    }

    /// Waits for a session that replaces the one with the invalid token, if there is time for a retry.
    async fn next_session(&self, invalid: &Published, call: Call<'_>) -> Result<Published, Status> {
        let invalid_for = invalid.token_invalid_for.unwrap_or_default();
        let until = call
            .deadline
            .checked_sub(RETRY_TIME)
            .unwrap_or(call.deadline)
            .min(Instant::now() + MAX_WAIT_FOR_TOKEN.saturating_sub(invalid_for));
        timeout_at(until, self.store.valid_token_after(invalid.generation())).await.map_err(|_| {
            let (answer, _) = self.store.status();
            Status::permission_denied(
                answer.reason().unwrap_or("the Vault token is invalid, and no new one has arrived"),
            )
        })
    }

    /// Waits for a usable local KEK. While Vault is healthy, the next health check creates one.
    async fn next_kek(&self, lacking: &Published, call: Call<'_>) -> Result<Published, Status> {
        self.store.request_health_check();
        if !lacking.is_healthy() {
            let kind = match lacking.answer.state() {
                HealthState::Refused => ErrorKind::Denied,
                _ => ErrorKind::Unreachable,
            };
            let reason = lacking.answer.reason().or(lacking.outage.as_deref());
            let reason = reason.unwrap_or("Vault has to wrap a new one");
            let message = format!("the local KEK may no longer be used: {reason}");
            return Err(into_status(TransitError::new(kind, message)));
        }
        timeout_at(call.deadline, self.store.usable_kek_or_reason()).await.map_err(|_| {
            Status::deadline_exceeded(
                "the local KEK may no longer be used, and Vault did not wrap a new one before the caller's deadline",
            )
        })
    }
}

/// Refuses a uid that is too long for the logs.
pub(super) fn check_uid(call: Call<'_>) -> Result<(), Status> {
    check_size("uid", call.uid.len(), MAX_UID_BYTES)
}

/// Refuses the field `name` if it has more than `max` bytes.
pub(super) fn check_size(name: &str, bytes: usize, max: usize) -> Result<(), Status> {
    if bytes > max {
        return Err(Status::invalid_argument(format!("the {name} has {bytes} bytes; the limit is {max}")));
    }
    Ok(())
}
