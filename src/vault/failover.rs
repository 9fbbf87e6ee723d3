//! Which node is asked, and who is asked next: the one place that decides it.
//!
//! For now: in order, beginning with the one that answered last, and on to the next
//! on connection errors and on nodes that lag behind. Encrypt and Decrypt may be sent
//! twice without harm, so a connection that breaks is no reason to give up either.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

use super::{
    errors::{Operation, meaning},
    pool::{Incoming, NoAnswer, Outgoing, Pool},
};
use crate::{
    kms::{Fault, TransitError},
    observe::metrics::Metrics,
};

/// A standby was seen to lag for 56 to 98 ms after a rotation.
const LAG: Duration = Duration::from_millis(100);
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
                Ok(incoming) if (200..300).contains(&incoming.status) || operation == Operation::Health => {
                    pool.preferred.store(index, Ordering::Relaxed);
                    metrics.vault_call(operation.name(), "ok", began.elapsed());
                    return Ok(incoming);
                }
                Ok(incoming) => {
                    answered = true;
                    let error = meaning(operation, &outgoing.path, incoming.status, &incoming.body);
                    metrics.vault_call(operation.name(), error.fault.name(), began.elapsed());
                    if error.fault != Fault::Lagging {
                        pool.preferred.store(index, Ordering::Relaxed);
                        return Err(error);
                    }
                    metrics.retry("lagging");
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
            last = error;
        }
    }
    Err(last)
}
