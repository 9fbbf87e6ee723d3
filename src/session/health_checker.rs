//! The health_checker: looks, in the background, whether Transit still does what we promise.

use std::{cmp::min, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};
use transit_client::{ErrorKind, TransitError};

use super::{
    health::Answer,
    state::{Snapshot, StateStore},
    verification::{PreviousState, Verification, VerificationError, verify},
};
use crate::observe::{heartbeat::Heartbeat, metrics::Metrics};

/// The longest that one probe may take.
const MAX_CHECK: Duration = Duration::from_secs(10);
/// Between probes, however many are asked for: a storm of calls must not become one of probes.
const LEAST_PAUSE: Duration = Duration::from_millis(250);
/// While unhealthy, probes repeat after this, doubling up to [`LONGEST_UNWELL_PAUSE`].
const FIRST_UNWELL_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_UNWELL_PAUSE: Duration = Duration::from_secs(5);
/// So many probes in a row must show an older version on the active node before it is believed.
const CHECKS_TO_GO_BACK: u32 = 3;

/// Probes for ever. `heart` beats at least once in every probe and pause.
pub async fn run(store: Arc<StateStore>, metrics: Arc<Metrics>, heart: Heartbeat) {
    let mut older = OlderVersions::default();
    let mut unwell_pause = FIRST_UNWELL_PAUSE;
    let mut least_pause = LEAST_PAUSE;
    let mut seen = None;
    let mut asked_for = false;
    loop {
        heart.beat();
        let healthy = match store.snapshot() {
            Some(snapshot) => {
                let began = Instant::now();
                let healthy = check_once(&store, &snapshot, &mut older).await;
                metrics.health_check_seconds.observe(began.elapsed().as_secs_f64());
                healthy
            }
            // The keeper proves the first session; there is nothing to probe before that.
            None => false,
        };
        store.publish_health();
        // Calls that go on failing for their own reasons must not make for more and more probes.
        let found = store.snapshot().map(|snapshot| (snapshot.keyring.current().key_id.clone(), healthy));
        let news = seen != found;
        seen = found;
        least_pause =
            if asked_for && !news { min(least_pause * 2, LONGEST_UNWELL_PAUSE) } else { LEAST_PAUSE };

        let interval = store.settings().health_check_interval;
        let pause = if healthy {
            unwell_pause = FIRST_UNWELL_PAUSE;
            interval
        } else {
            let pause = min(unwell_pause, interval);
            unwell_pause = min(unwell_pause * 2, LONGEST_UNWELL_PAUSE);
            pause
        };
        heart.beat();
        let least_pause = min(least_pause, pause);
        sleep(least_pause).await;
        asked_for = tokio::select! {
            () = sleep(pause.saturating_sub(least_pause)) => false,
            () = store.check_requested() => {
                debug!("checking out of turn");
                true
            }
        };
    }
}

/// Probes the session of `snapshot` and posts the result; true if all is well.
async fn check_once(store: &StateStore, snapshot: &Arc<Snapshot>, older: &mut OlderVersions) -> bool {
    let longest = store.settings().health_check_interval.clamp(Duration::from_secs(1), MAX_CHECK);
    let older = older.of(snapshot.generation);
    // A task of its own: a request that is cancelled costs its connection, and sessions share those.
    let checking = tokio::spawn(check_session(Arc::clone(snapshot), older.believed(), longest));
    let outcome = tokio::select! {
        biased;
        outcome = checking => outcome,
        // The keeper has just proven the new session, and the old one has no say about it.
        () = store.after(snapshot.generation) => return true,
    };
    let outcome = outcome.unwrap_or_else(|_| {
        Err(TransitError::new(
            ErrorKind::InvalidResponse,
            "the probe ended without an outcome: this is a bug",
        )
        .into())
    });
    older.note(&outcome);
    match outcome {
        Ok(verification) => {
            store.check_passed(snapshot.generation, verification);
            true
        }
        Err(failure) => {
            let error = TransitError::from(failure);
            match store.status().0 {
                Answer::Well { in_grace: false } => {}
                _ => debug!(%error, "still not healthy"),
            }
            store.check_failed(snapshot.generation, &error);
            false
        }
    }
}

async fn check_session(
    snapshot: Arc<Snapshot>,
    accept_older: bool,
    longest: Duration,
) -> Result<Verification, VerificationError> {
    let deadline = Instant::now() + longest;
    let before = PreviousState {
        keyring: &snapshot.keyring,
        insist: false,
        lost: false,
        own: true,
        canary: &snapshot.canary,
    };
    let checking = verify(snapshot.transit.as_ref(), Some(before), accept_older, deadline);
    timeout_at(deadline, checking).await.unwrap_or_else(|_| {
        let message = format!("Vault did not answer a probe within {} s", longest.as_secs());
        Err(TransitError::new(ErrorKind::Unreachable, message).into())
    })
}

/// Counts how often in a row the active node of one session knew only older versions.
#[derive(Debug, Default)]
pub struct OlderVersions {
    generation: u64,
    checks: u32,
}

impl OlderVersions {
    /// What the session of `generation` has shown; what another one did says nothing about its Vault.
    pub fn of(&mut self, generation: u64) -> &mut Self {
        if self.generation != generation {
            *self = Self { generation, checks: 0 };
        }
        self
    }

    /// Whether the next probe is to believe it.
    #[must_use]
    pub fn believed(&self) -> bool {
        self.checks + 1 >= CHECKS_TO_GO_BACK
    }

    /// Takes notice of what a probe showed.
    pub fn note(&mut self, outcome: &Result<Verification, VerificationError>) {
        match outcome {
            Err(VerificationError::Older(version)) => {
                self.checks += 1;
                warn!(%version, checks = self.checks, "Vault's active node reports an older key version than the one in use");
            }
            // Silence says nothing about versions, and neither does what is not Vault.
            Err(VerificationError::Failed(error))
                if matches!(
                    error.kind,
                    ErrorKind::DeadlineExceeded
                        | ErrorKind::InvalidResponse
                        | ErrorKind::Throttled
                        | ErrorKind::Unreachable
                ) => {}
            _ => self.checks = 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use transit_client::key_id::KeyVersion;

    #[test]
    fn older_versions_are_counted_for_one_session() {
        let mut older = OlderVersions::default();
        let version = KeyVersion::new(1).unwrap();
        for _ in 0..2 {
            assert!(!older.of(1).believed());
            older.of(1).note(&Err(VerificationError::Older(version)));
        }
        let silence = TransitError::new(ErrorKind::Unreachable, "away");
        older.of(1).note(&Err(silence.into()));
        assert!(older.of(1).believed());
        assert!(!older.of(2).believed(), "its Vault has said nothing of the kind");
        assert!(!older.of(1).believed());
    }
}
