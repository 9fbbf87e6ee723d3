//! Which node is asked, and who is asked next: the one place that decides it.
//!
//! For now: in order, beginning with the one that answered last, and on to the next on
//! connection errors, on nodes that are sealed or not ready, and on nodes that lag behind. Encrypt and Decrypt may be sent
//! twice without harm, so a connection that breaks is no reason to give up either.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

use super::{
    errors::{Operation, is_answer, meaning},
    pool::{Incoming, NoAnswer, Outgoing, Pool},
};
use crate::{
    kms::{Fault, TransitError},
    observe::metrics::Metrics,
};

/// A standby was seen to lag for 56 to 98 ms after a rotation.
const LAG: Duration = Duration::from_millis(100);
/// What `/sys/health` answers for the active node.
const ACTIVE: u16 = 200;
/// What it answers for a standby, a secondary for disaster recovery, and a performance standby.
const STANDBY: [u16; 3] = [429, 472, 473];
/// So often every node is asked at most.
const ROUNDS: usize = 3;

/// Sends `outgoing` to one node after the other until one gives an answer that counts.
///
/// # Errors
/// What the last node said, or why it said nothing.
pub(super) async fn ask(
    pool: &Pool,
    metrics: &Metrics,
    operation: Operation,
    outgoing: &Outgoing,
    deadline: Instant,
) -> Result<Incoming, TransitError> {
    let first = pool.preferred.load(Ordering::Relaxed);
    let count = pool.nodes.len();
    let mut last = TransitError::new(Fault::Nonsense, "no address is configured");
    // After an outage of every node one round is enough; the caller hears of it at once.
    let mut answered = false;
    for round in 0..ROUNDS {
        if round > 0 {
            if !answered || timeout_at(deadline, sleep(LAG)).await.is_err() {
                break;
            }
            metrics.retry("round");
        }
        for (index, node) in pool.nodes.iter().enumerate().cycle().skip(first % count.max(1)).take(count) {
            let began = Instant::now();
            let outcome = node.exchange(outgoing, deadline).await;
            let error = match outcome {
                Ok(incoming) if is_answer(incoming.status, &incoming.body) => {
                    pool.preferred.store(index, Ordering::Relaxed);
                    metrics.vault_call(operation.name(), "ok", began.elapsed());
                    return Ok(incoming);
                }
                Ok(incoming) => {
                    let error = meaning(operation, &outgoing.path, incoming.status, &incoming.body);
                    metrics.vault_call(operation.name(), error.fault.name(), began.elapsed());
                    match error.fault {
                        Fault::Lagging => {
                            answered = true;
                            metrics.retry("lagging");
                        }
                        // Sealed, not ready, or not Vault at all: another node may be better.
                        Fault::Unreachable => {}
                        _ => {
                            pool.preferred.store(index, Ordering::Relaxed);
                            return Err(error);
                        }
                    }
                    error
                }
                Err(NoAnswer::Final(error)) => {
                    metrics.vault_call(operation.name(), error.fault.name(), began.elapsed());
                    return Err(error);
                }
                Err(NoAnswer::Broken(error)) => {
                    // A kept connection may be closed under our hands: that alone is worth another try.
                    answered = true;
                    metrics.vault_call(operation.name(), error.fault.name(), began.elapsed());
                    metrics.retry("broken");
                    error
                }
                Err(NoAnswer::Connect(error)) => {
                    metrics.vault_call(operation.name(), error.fault.name(), began.elapsed());
                    if count > 1 {
                        metrics.retry("connect");
                    }
                    error
                }
            };
            // A node that lags says more than one that does not answer.
            if last.fault != Fault::Lagging || error.fault == Fault::Lagging {
                last = error;
            }
        }
    }
    Err(last)
}

/// Whether the node that is asked first is the active one of its cluster.
///
/// If it is not, and another one is, that one is asked first from now on: whoever wants to
/// know is to look again, there.
///
/// # Errors
/// If no node says whether it is active or a standby.
pub(super) async fn first_is_active(
    pool: &Pool,
    metrics: &Metrics,
    outgoing: &Outgoing,
    deadline: Instant,
) -> Result<bool, TransitError> {
    let operation = Operation::Health;
    let first = pool.preferred.load(Ordering::Relaxed);
    let count = pool.nodes.len();
    let mut outcome = Err(TransitError::new(Fault::Nonsense, "no address is configured"));
    for (index, node) in pool.nodes.iter().enumerate().cycle().skip(first % count.max(1)).take(count) {
        let began = Instant::now();
        match node.exchange(outgoing, deadline).await {
            Ok(incoming) if incoming.status == ACTIVE => {
                metrics.vault_call(operation.name(), "ok", began.elapsed());
                pool.preferred.store(index, Ordering::Relaxed);
                return Ok(index == first % count.max(1));
            }
            Ok(incoming) if STANDBY.contains(&incoming.status) => {
                metrics.vault_call(operation.name(), "ok", began.elapsed());
                outcome = Ok(false);
            }
            Ok(incoming) => {
                let error = meaning(operation, &outgoing.path, incoming.status, &incoming.body);
                metrics.vault_call(operation.name(), error.fault.name(), began.elapsed());
                outcome = outcome.or(Err(error));
            }
            Err(NoAnswer::Broken(error) | NoAnswer::Connect(error) | NoAnswer::Final(error)) => {
                metrics.vault_call(operation.name(), error.fault.name(), began.elapsed());
                outcome = outcome.or(Err(error));
            }
        }
    }
    outcome
}
