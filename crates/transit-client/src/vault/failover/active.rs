//! Which node is the active one of its cluster.

use tokio::time::Instant;

use super::{
    attempts::SILENCE_TIMEOUT,
    classify::{classify, is_ready},
};
use crate::{
    ErrorKind, TransitError,
    metrics::{ClientMetrics, RequestOutcome},
    operation::VaultOperation,
    vault::{exchange::HttpRequest, pool::Pool},
};

/// The status with which the active node answers `sys/health`. Standbys answer 429 or 473.
const ACTIVE: u16 = 200;

/// Whether the node with the id `node` is the active one of its cluster.
///
/// If another node is the active one and `prefer` allows it, that node is asked first from now on, so that
/// the caller who repeats its request reaches the active node.
///
/// # Errors
/// If no node says whether it is active or a standby.
pub(crate) async fn is_active(
    pool: &Pool,
    metrics: &ClientMetrics,
    request: &HttpRequest,
    node: usize,
    prefer: bool,
    deadline: Instant,
) -> Result<bool, TransitError> {
    let operation = VaultOperation::Health;
    let mut result = Err(TransitError::new(ErrorKind::InvalidResponse, "no address is configured"));
    let mut nodes = pool.nodes();
    // The sort is stable: the other nodes keep their order.
    nodes.sort_by_key(|other| other.id != node);
    for asked in nodes {
        let started = Instant::now();
        let record = |outcome: RequestOutcome| {
            metrics.request(&asked.name, operation, outcome, started.elapsed());
        };
        let error = match asked.exchange(request, deadline.min(started + SILENCE_TIMEOUT)).await {
            Ok(response) if is_ready(response.status, &response.body) => {
                record(RequestOutcome::Ok);
                if response.status == ACTIVE {
                    if prefer {
                        pool.prefer(&asked);
                    }
                    return Ok(asked.id == node);
                }
                result = Ok(false);
                continue;
            }
            Ok(response) => classify(operation, request, &response).error,
            Err(error) => error.into_error(),
        };
        record(RequestOutcome::Failed(error.kind));
        result = result.or(Err(error));
    }
    result
}
