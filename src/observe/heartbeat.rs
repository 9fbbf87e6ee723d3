//! Proof of life for loops that must keep turning.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A loop beats; somebody on another thread asks how long ago that was.
///
/// Measured with the operating system's monotonic clock, not tokio's: the
/// reader must notice a runtime that no longer turns.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    started: Instant,
    last_millis: Arc<AtomicU64>,
}

impl Heartbeat {
    /// A heart that has just beaten.
    #[must_use]
    pub fn new() -> Self {
        Self { started: Instant::now(), last_millis: Arc::new(AtomicU64::new(0)) }
    }

    /// A heart that beat last so long ago.
    #[cfg(test)]
    pub(crate) fn aged(age: Duration) -> Self {
        Self { started: Instant::now().checked_sub(age).unwrap(), ..Self::new() }
    }

    /// Called by the loop that is to be seen alive.
    pub fn beat(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_millis.store(millis, Ordering::Relaxed);
    }

    /// Time since the last beat.
    #[must_use]
    pub fn age(&self) -> Duration {
        let last = Duration::from_millis(self.last_millis.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last)
    }
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self::new()
    }
}
