//! The health checker: verifies the session in use in the background, and reports the result.

use std::{cmp::min, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;
use transit_client::{ErrorKind, TransitError};

use super::{
    older_versions::OlderVersions,
    state::{HealthReporter, Snapshot},
    verification::{PreviousState, Verification, VerificationError, verify},
};
use crate::observe::{heartbeat::Heartbeat, metrics::Metrics};

/// Limits one health check. An interval below this limits it too, but not below [`MIN_CHECK_TIMEOUT`].
const MAX_CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// A check consists of four requests, which may need this long over a slow network.
const MIN_CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// The minimum pause between two checks, so that many failing calls do not cause as many checks.
const MIN_PAUSE: Duration = Duration::from_millis(250);
/// The pause after the first failed check; it doubles with each further one.
const INITIAL_UNHEALTHY_PAUSE: Duration = Duration::from_secs(1);
/// Limits the pause, so that the end of an outage is noticed soon.
const MAX_UNHEALTHY_PAUSE: Duration = Duration::from_secs(5);

/// Checks the session in use every interval, more often while it is not healthy, and on request.
pub struct HealthChecker {
    /// Beats at least once in every check and every pause.
    pub heartbeat: Heartbeat,
    /// Measures the duration of checks.
    pub metrics: Arc<Metrics>,
    /// Gets the results.
    pub reporter: HealthReporter,
}

impl HealthChecker {
    /// Runs health checks. Never returns.
    pub async fn run(self) {
        let store = Arc::clone(self.reporter.store());
        let mut older = OlderVersions::default();
        let mut unhealthy_pause = INITIAL_UNHEALTHY_PAUSE;
        let mut min_pause = MIN_PAUSE;
        let mut last_result = None;
        let mut was_requested = false;
        loop {
            self.heartbeat.beat();
            let healthy = match store.snapshot() {
                Some(snapshot) => {
                    let began = Instant::now();
                    let healthy = self.check(&snapshot, &mut older).await;
                    self.metrics.health.check_seconds.observe(began.elapsed().as_secs_f64());
                    healthy
                }
                // The session manager verifies the first session. There is nothing to check before that.
                None => false,
            };
            self.reporter.log_health();
            // Calls that fail for reasons that a check does not find must not cause more and more checks.
            let result =
                store.snapshot().map(|snapshot| (snapshot.keyring.current().key_id.clone(), healthy));
            let changed = last_result != result;
            last_result = result;
            min_pause =
                if was_requested && !changed { min(min_pause * 2, MAX_UNHEALTHY_PAUSE) } else { MIN_PAUSE };

            let interval = store.settings().health_check_interval;
            let pause = if healthy {
                unhealthy_pause = INITIAL_UNHEALTHY_PAUSE;
                interval
            } else {
                let pause = min(unhealthy_pause, interval);
                unhealthy_pause = min(unhealthy_pause * 2, MAX_UNHEALTHY_PAUSE);
                pause
            };
            self.heartbeat.beat();
            let min_pause = min(min_pause, pause);
            sleep(min_pause).await;
            was_requested = tokio::select! {
                () = sleep(pause.saturating_sub(min_pause)) => false,
                () = store.health_check_requested() => {
                    debug!("a health check was requested");
                    true
                }
            };
        }
    }

    /// Checks the session of `snapshot` and reports the result. Returns true if the session in use is healthy.
    async fn check(&self, snapshot: &Arc<Snapshot>, older: &mut OlderVersions) -> bool {
        let store = self.reporter.store();
        let timeout = store.settings().health_check_interval.clamp(MIN_CHECK_TIMEOUT, MAX_CHECK_TIMEOUT);
        let older = older.of_session(snapshot.generation);
        // A task of its own: cancelling a request would close its connection, and the next session may use it.
        let checking = tokio::spawn(check_session(Arc::clone(snapshot), older.next_is_accepted(), timeout));
        let outcome = tokio::select! {
            biased;
            outcome = checking => outcome,
            // The session manager has just verified the new session, and this check is about the old one.
            () = store.session_after(snapshot.generation) => return true,
        };
        let outcome = outcome.unwrap_or_else(|_| {
            Err(TransitError::new(
                ErrorKind::InvalidResponse,
                "the health check ended without an outcome: this is a bug",
            )
            .into())
        });
        older.count(&outcome);
        match outcome {
            Ok(verification) => {
                self.reporter.check_passed(snapshot.generation, verification);
                true
            }
            Err(failure) => {
                let error = TransitError::from(failure);
                if !store.read().is_healthy() {
                    debug!(%error, "still not healthy");
                }
                self.reporter.check_failed(snapshot.generation, &error);
                false
            }
        }
    }
}

async fn check_session(
    snapshot: Arc<Snapshot>,
    accept_older: bool,
    timeout: Duration,
) -> Result<Verification, VerificationError> {
    let deadline = Instant::now() + timeout;
    let before = PreviousState { same_session: true, ..snapshot.as_previous_state() };
    let checking = verify(snapshot.transit.as_ref(), Some(before), accept_older, deadline);
    timeout_at(deadline, checking).await.unwrap_or_else(|_| {
        let message = format!("Vault did not answer a health check within {} s", timeout.as_secs());
        Err(TransitError::new(ErrorKind::Unreachable, message).into())
    })
}
