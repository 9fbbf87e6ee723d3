//! Limits how many calls wait, and how many of them send requests to Vault.
//!
//! Without a limit, calls would accumulate during an outage of Vault until memory or file descriptors run
//! out. Only calls that have to wait need a permit: those that wait for Vault, a new token or a local KEK.
//! Status, and calls that a local KEK answers, wait for nothing, so waiting calls cannot delay them. They are
//! limited by the number of streams of a connection.

use std::time::Duration;

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};
use tonic::Status;
use transit_client::{ErrorKind, TransitError};

/// The calls that send requests to Vault. Each may use one or a few connections. A higher limit is not faster.
const MAX_RUNNING: usize = 128;
/// The calls that wait. Together with the running ones, they are more than the requests that an API server
/// has in flight (600 by default), and fewer than the streams of one connection, so that calls that need no
/// Vault are still accepted.
const MAX_WAITING: usize = 640;

/// The limit for the calls of one socket.
#[derive(Debug)]
pub(super) struct ConcurrencyLimit {
    admitted: Semaphore,
    running: Semaphore,
}

/// The permission of one call to wait, and to send requests to Vault while it is running.
pub(super) struct Permit<'a> {
    _admitted: SemaphorePermit<'a>,
    limit: &'a ConcurrencyLimit,
    /// `None` while the call is not allowed to send requests to Vault.
    running: Option<SemaphorePermit<'a>>,
    /// The time that the call has waited until it was running.
    waited: Duration,
}

/// How a call became a running one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Started {
    AfterWait,
    AtOnce,
}

impl ConcurrencyLimit {
    pub(super) fn new() -> Self {
        Self { admitted: Semaphore::new(MAX_RUNNING + MAX_WAITING), running: Semaphore::new(MAX_RUNNING) }
    }

    /// Returns a permit to wait.
    ///
    /// # Errors
    /// `ResourceExhausted`, without waiting, if too many calls have a permit.
    pub(super) fn admit(&self) -> Result<Permit<'_>, Status> {
        let admitted = self.admitted.try_acquire().map_err(|_| {
            Status::resource_exhausted(format!(
                "{} calls are already waiting for Vault: does it answer? Try again later",
                MAX_RUNNING + MAX_WAITING
            ))
        })?;
        Ok(Permit { _admitted: admitted, limit: self, running: None, waited: Duration::ZERO })
    }
}

impl Permit<'_> {
    /// Waits until the call may send requests to Vault. A caller that leaves does not use up a turn.
    ///
    /// # Errors
    /// `DeadlineExceeded` if this takes until `deadline`.
    pub(super) async fn start_running(&mut self, deadline: Instant) -> Result<Started, Status> {
        if self.running.is_some() {
            return Ok(Started::AtOnce);
        }
        if let Ok(permit) = self.limit.running.try_acquire() {
            self.running = Some(permit);
            return Ok(Started::AtOnce);
        }
        let began = Instant::now();
        let permit = timeout_at(deadline, self.limit.running.acquire()).await;
        self.waited += began.elapsed();
        match permit {
            Ok(Ok(permit)) if Instant::now() < deadline => {
                self.running = Some(permit);
                Ok(Started::AfterWait)
            }
            // The semaphore is never closed.
            Ok(Err(error)) => Err(Status::internal(error.to_string())),
            Ok(Ok(_)) | Err(_) => Err(Status::deadline_exceeded(format!(
                "the call was queued until its deadline, because {MAX_RUNNING} other calls are waiting for \
                 Vault. Does Vault answer?"
            ))),
        }
    }

    /// Lets another call send requests to Vault while this one waits for something else.
    pub(super) fn stop_running(&mut self) {
        self.running = None;
    }

    /// Adds to a timeout how much of the caller's time had passed before the request to Vault.
    pub(super) fn add_wait_to(&self, error: &mut TransitError) {
        if matches!(error.kind, ErrorKind::DeadlineExceeded | ErrorKind::Unreachable)
            && !self.waited.is_zero()
        {
            let waited = self.waited.as_millis();
            error.message.push_str(&format!(
                "; before that, the call was queued for {waited} ms, because {MAX_RUNNING} other calls were \
                 waiting for Vault"
            ));
        }
    }
}
