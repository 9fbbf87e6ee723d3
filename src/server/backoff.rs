//! Pauses after `accept(2)` has failed: they grow, they are logged once, and accept is tried again
//! until it succeeds.

use std::{io, time::Duration};

use rustix::io::Errno;
use tokio::time::Instant;
use tracing::{debug, info, warn};

const MIN_DELAY: Duration = Duration::from_millis(10);
const MAX_DELAY: Duration = Duration::from_secs(1);
/// Accept works again if it succeeds at least this long after the last failure. With a shorter time, a
/// listener that fails at every second attempt would log a warning for each failure.
const RECOVERY_TIME: Duration = Duration::from_secs(5);

/// Returns true if the process or the machine has run out of file descriptors.
pub(super) fn out_of_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// The backoff of one listener.
#[derive(Debug)]
pub(super) struct AcceptBackoff {
    failing: Option<FailureStreak>,
    listener: String,
}

#[derive(Debug)]
struct FailureStreak {
    delay: Duration,
    failures: u64,
    last: Instant,
}

impl AcceptBackoff {
    /// `listener` is its name in the log.
    pub(super) fn new(listener: impl Into<String>) -> Self {
        Self { failing: None, listener: listener.into() }
    }

    /// Records that accept has failed. Returns the time to wait before the next attempt.
    pub(super) fn failed(&mut self, error: &io::Error) -> Duration {
        let listener = &self.listener;
        let streak = match self.failing.take() {
            Some(FailureStreak { delay, failures, .. }) => {
                debug!(listener, %error, failures, "accept still fails");
                let delay = delay.saturating_mul(2).min(MAX_DELAY);
                FailureStreak { delay, failures: failures.saturating_add(1), last: Instant::now() }
            }
            None => {
                let advice = if out_of_descriptors(error) {
                    "; raise the limit of open files (RLIMIT_NOFILE)"
                } else {
                    ""
                };
                warn!(
                    listener,
                    %error,
                    "accept failed; transit-kms tries again, with pauses of up to {} s{advice}",
                    MAX_DELAY.as_secs(),
                );
                FailureStreak { delay: MIN_DELAY, failures: 1, last: Instant::now() }
            }
        };
        self.failing.insert(streak).delay
    }

    /// Records that accept has succeeded.
    pub(super) fn succeeded(&mut self) {
        if let Some(streak) = self.failing.take_if(|streak| streak.last.elapsed() >= RECOVERY_TIME) {
            info!(listener = self.listener, failures = streak.failures, "accept works again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn delays_double_to_a_second_and_start_again_after_a_recovery() {
        let error = io::Error::from(Errno::MFILE);
        assert!(out_of_descriptors(&error));
        let mut backoff = AcceptBackoff::new("test");
        let delays: Vec<_> = (0..9).map(|_| backoff.failed(&error).as_millis()).collect();
        assert_eq!(delays, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);

        // A single success among failures changes nothing.
        backoff.succeeded();
        assert_eq!(backoff.failed(&error), MAX_DELAY);

        tokio::time::advance(RECOVERY_TIME).await;
        backoff.succeeded();
        assert_eq!(backoff.failed(&error), MIN_DELAY);
    }
}
