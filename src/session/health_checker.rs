//! The prober: looks, in the background, whether Transit still does what we promise.

use std::{cmp::min, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};
use transit_client::{Fault, TransitError};

use super::{
    health::Answer,
    state::{Board, Snapshot},
    verification::{Before, ProbeFailure, Proof, probe},
};
use crate::observe::{heartbeat::Heartbeat, metrics::Metrics};

/// The longest that one probe may take.
const LONGEST_PROBE: Duration = Duration::from_secs(10);
/// Between probes, however many are asked for: a storm of calls must not become one of probes.
const LEAST_PAUSE: Duration = Duration::from_millis(250);
/// While unhealthy, probes repeat after this, doubling up to [`LONGEST_UNWELL_PAUSE`].
const FIRST_UNWELL_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_UNWELL_PAUSE: Duration = Duration::from_secs(5);
/// So many probes in a row must show an older version on the active node before it is believed.
const PROBES_TO_GO_BACK: u32 = 3;

/// Probes for ever. `heart` beats at least once in every probe and pause.
pub async fn run(board: Arc<Board>, metrics: Arc<Metrics>, heart: Heartbeat) {
    let mut older = OlderVersions::default();
    let mut unwell_pause = FIRST_UNWELL_PAUSE;
    let mut least_pause = LEAST_PAUSE;
    let mut seen = None;
    let mut asked_for = false;
    loop {
        heart.beat();
        let healthy = match board.snapshot() {
            Some(snapshot) => {
                let began = Instant::now();
                let healthy = probe_once(&board, &snapshot, &mut older).await;
                metrics.health_check_seconds.observe(began.elapsed().as_secs_f64());
                healthy
            }
            // The keeper proves the first session; there is nothing to probe before that.
            None => false,
        };
        board.publish_health();
        // Calls that go on failing for their own reasons must not make for more and more probes.
        let found = board.snapshot().map(|snapshot| (snapshot.keyring.current().key_id.clone(), healthy));
        let news = seen != found;
        seen = found;
        least_pause =
            if asked_for && !news { min(least_pause * 2, LONGEST_UNWELL_PAUSE) } else { LEAST_PAUSE };

        let interval = board.settings().health_check_interval;
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
            () = board.probe_requested() => {
                debug!("probing out of turn");
                true
            }
        };
    }
}

/// Probes the session of `snapshot` and posts the result; true if all is well.
async fn probe_once(board: &Board, snapshot: &Arc<Snapshot>, older: &mut OlderVersions) -> bool {
    let longest = board.settings().health_check_interval.clamp(Duration::from_secs(1), LONGEST_PROBE);
    let older = older.of(snapshot.generation);
    // A task of its own: a request that is cancelled costs its connection, and sessions share those.
    let probing = tokio::spawn(probe_session(Arc::clone(snapshot), older.believed(), longest));
    let outcome = tokio::select! {
        biased;
        outcome = probing => outcome,
        // The keeper has just proven the new session, and the old one has no say about it.
        () = board.after(snapshot.generation) => return true,
    };
    let outcome = outcome.unwrap_or_else(|_| {
        Err(TransitError::new(Fault::Nonsense, "the probe ended without an outcome: this is a bug").into())
    });
    older.note(&outcome);
    match outcome {
        Ok(proof) => {
            board.probe_passed(snapshot.generation, proof);
            true
        }
        Err(failure) => {
            let error = TransitError::from(failure);
            match board.status().0 {
                Answer::Well { in_grace: false } => {}
                _ => debug!(%error, "still not healthy"),
            }
            board.probe_failed(snapshot.generation, &error);
            false
        }
    }
}

async fn probe_session(
    snapshot: Arc<Snapshot>,
    accept_older: bool,
    longest: Duration,
) -> Result<Proof, ProbeFailure> {
    let deadline = Instant::now() + longest;
    let before = Before {
        keyring: &snapshot.keyring,
        insist: false,
        lost: false,
        own: true,
        witness: &snapshot.witness,
    };
    let probing = probe(snapshot.transit.as_ref(), Some(before), accept_older, deadline);
    timeout_at(deadline, probing).await.unwrap_or_else(|_| {
        let message = format!("Vault did not answer a probe within {} s", longest.as_secs());
        Err(TransitError::new(Fault::Unreachable, message).into())
    })
}

/// Counts how often in a row the active node of one session knew only older versions.
#[derive(Debug, Default)]
pub struct OlderVersions {
    generation: u64,
    probes: u32,
}

impl OlderVersions {
    /// What the session of `generation` has shown; what another one did says nothing about its Vault.
    pub fn of(&mut self, generation: u64) -> &mut Self {
        if self.generation != generation {
            *self = Self { generation, probes: 0 };
        }
        self
    }

    /// Whether the next probe is to believe it.
    #[must_use]
    pub fn believed(&self) -> bool {
        self.probes + 1 >= PROBES_TO_GO_BACK
    }

    /// Takes notice of what a probe showed.
    pub fn note(&mut self, outcome: &Result<Proof, ProbeFailure>) {
        match outcome {
            Err(ProbeFailure::Older(version)) => {
                self.probes += 1;
                warn!(%version, probes = self.probes, "Vault's active node reports an older key version than the one in use");
            }
            // Silence says nothing about versions, and neither does what is not Vault.
            Err(ProbeFailure::Failed(error))
                if matches!(
                    error.fault,
                    Fault::DeadlineExceeded | Fault::Nonsense | Fault::Throttled | Fault::Unreachable
                ) => {}
            _ => self.probes = 0,
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
            older.of(1).note(&Err(ProbeFailure::Older(version)));
        }
        let silence = TransitError::new(Fault::Unreachable, "away");
        older.of(1).note(&Err(silence.into()));
        assert!(older.of(1).believed());
        assert!(!older.of(2).believed(), "its Vault has said nothing of the kind");
        assert!(!older.of(1).believed());
    }
}
