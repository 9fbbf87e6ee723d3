//! Detects loops that are stuck.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A loop calls [`Heartbeat::beat`]; another thread reads how long ago the last call was.
///
/// The time is that of the operating system's monotonic clock, not of tokio's clock: the reader must
/// notice a stuck runtime.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    started: Instant,
    last_millis: Arc<AtomicU64>,
}

impl Heartbeat {
    /// Creates a heartbeat whose age is zero.
    #[must_use]
    pub fn new() -> Self {
        Self { started: Instant::now(), last_millis: Arc::new(AtomicU64::new(0)) }
    }

    /// Creates a heartbeat with this age.
    #[cfg(test)]
    pub(crate) fn aged(age: Duration) -> Self {
        Self { started: Instant::now().checked_sub(age).unwrap(), ..Self::new() }
    }

    /// Records that the loop is not stuck.
    pub fn beat(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_millis.store(millis, Ordering::Relaxed);
    }

    /// Returns the time since the last beat.
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
