//! How many calls are worked on at once, and how many may wait for that.
//!
//! Without a bound, an outage of Vault would gather calls until memory or descriptors run out.
//! Status does not pass here: it costs nothing, and kube-apiserver must always have it.

use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::Status;

/// Calls worked on. Each may hold a connection to Vault, or a few; more than this at once is not
/// faster.
const RUNNING: usize = 128;
/// Calls that wait. With those that are worked on they are more than an API server has requests in
/// flight (600 by default), and fewer than the calls of one connection, so that Status has room
/// beside them.
const WAITING: usize = 640;

/// Lets calls in, one socket's worth.
#[derive(Debug)]
pub(super) struct Gate {
    places: Semaphore,
    running: Semaphore,
}

/// A call that was let in; it leaves when this is dropped.
pub(super) struct Admission<'a> {
    _place: SemaphorePermit<'a>,
    _running: SemaphorePermit<'a>,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { places: Semaphore::new(RUNNING + WAITING), running: Semaphore::new(RUNNING) }
    }

    /// Waits for its turn. Whoever stops waiting leaves the queue.
    ///
    /// # Errors
    /// `ResourceExhausted`, at once, if too many wait already.
    pub(super) async fn enter(&self) -> Result<Admission<'_>, Status> {
        let too_many = |_| {
            Status::resource_exhausted(format!(
                "{} calls are in flight already: does Vault answer? Try again later",
                RUNNING + WAITING
            ))
        };
        let place = self.places.try_acquire().map_err(too_many)?;
        // Neither is ever closed.
        let running = self.running.acquire().await.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Admission { _place: place, _running: running })
    }
}
