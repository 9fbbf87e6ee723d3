//! How many calls may wait, and how many may ask Vault at once.
//!
//! Without a bound, an outage of Vault would gather calls until memory or descriptors run out.
//! Only a call that has to wait passes here: for Vault, for a new token, or for a local KEK. Status,
//! and what a local KEK does, wait for nothing, so no call that waits can hold them up. Of these
//! a connection has at most as many as it has streams.

use std::time::Duration;

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};
use tonic::Status;
use transit_client::{ErrorKind, TransitError};

/// Calls that ask Vault. Each may hold a connection to Vault, or a few; more than this at once is not
/// faster.
const RUNNING: usize = 128;
/// Calls that wait. With those that ask Vault they are more than an API server has requests in
/// flight (600 by default), and fewer than the calls of one connection, so that what needs no Vault
/// has room beside them.
const WAITING: usize = 640;

/// Lets calls in, one socket's worth.
#[derive(Debug)]
pub(super) struct Gate {
    places: Semaphore,
    running: Semaphore,
}

/// A call that may wait; it leaves when this is dropped.
pub(super) struct Place<'a> {
    gate: &'a Gate,
    _place: SemaphorePermit<'a>,
    running: Option<SemaphorePermit<'a>>,
    waited: Duration,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { places: Semaphore::new(RUNNING + WAITING), running: Semaphore::new(RUNNING) }
    }

    /// A place to wait in.
    ///
    /// # Errors
    /// `ResourceExhausted`, at once, if too many wait already.
    pub(super) fn place(&self) -> Result<Place<'_>, Status> {
        let too_many = |_| {
            Status::resource_exhausted(format!(
                "{} calls wait for Vault already: does it answer? Try again later",
                RUNNING + WAITING
            ))
        };
        let place = self.places.try_acquire().map_err(too_many)?;
        Ok(Place { gate: self, _place: place, running: None, waited: Duration::ZERO })
    }
}

impl Place<'_> {
    /// Waits for the turn to ask Vault; true if it came only after a while. A caller that leaves
    /// the queue costs nobody a turn.
    ///
    /// # Errors
    /// `DeadlineExceeded` if the turn does not come before `deadline`.
    pub(super) async fn may_ask_vault(&mut self, deadline: Instant) -> Result<bool, Status> {
        if self.running.is_some() {
            return Ok(false);
        }
        if let Ok(permit) = self.gate.running.try_acquire() {
            self.running = Some(permit);
            return Ok(false);
        }
        let began = Instant::now();
        let permit = timeout_at(deadline, self.gate.running.acquire()).await;
        self.waited += began.elapsed();
        match permit {
            Ok(Ok(permit)) if Instant::now() < deadline => {
                self.running = Some(permit);
                Ok(true)
            }
            // The semaphore is never closed.
            Ok(Err(error)) => Err(Status::internal(error.to_string())),
            Ok(Ok(_)) | Err(_) => Err(Status::deadline_exceeded(format!(
                "the call waited until its deadline for its turn: {RUNNING} calls ask Vault at once, and those \
                 before it have not ended. Does Vault answer?"
            ))),
        }
    }

    /// What `error` leaves out: how much of the caller's time went by before Vault was asked.
    pub(super) fn explain(&self, error: &mut TransitError) {
        if matches!(error.kind, ErrorKind::DeadlineExceeded | ErrorKind::Unreachable)
            && !self.waited.is_zero()
        {
            let waited = self.waited.as_millis();
            error.message.push_str(&format!(
                "; before that the call waited {waited} ms for its turn, because {RUNNING} calls asked Vault already"
            ));
        }
    }

    /// Lets another call ask Vault while this one waits for something else.
    pub(super) fn rest(&mut self) {
        self.running = None;
    }
}
