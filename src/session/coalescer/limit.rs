//! The size limit of batches, and how it recovers after Vault or a proxy refuses a batch.

use std::time::Duration;

use tokio::time::Instant;

/// OpenBao accepts 499 items of the smallest size. Proxies, and Vaults with a lower limit, accept fewer.
const MAX_BATCH_SIZE: usize = 128;
/// A lowered limit doubles after this time. Each time that the doubled limit is refused again, the time doubles.
pub(super) const INITIAL_RECOVERY: Duration = Duration::from_secs(10);
const MAX_RECOVERY: Duration = Duration::from_secs(600);

/// The most items that a batch may have at the moment.
///
/// A refusal lowers the limit for a while, never permanently: its cause may have been one node, one proxy, or
/// a temporary setting.
pub(super) struct BatchSizeLimit {
    current: usize,
    /// The limit has been raised since the last refusal, and no batch has shown yet that this was right.
    raised: bool,
    /// When the limit doubles. `None` if it is at its maximum.
    raise_at: Option<Instant>,
    /// The time from lowering the limit to raising it again.
    recovery: Duration,
    /// The size of the batch that was refused last. `None` once a batch of this size succeeds.
    refused_size: Option<usize>,
}

impl Default for BatchSizeLimit {
    fn default() -> Self {
        Self {
            current: MAX_BATCH_SIZE,
            raised: false,
            raise_at: None,
            recovery: INITIAL_RECOVERY,
            refused_size: None,
        }
    }
}

impl BatchSizeLimit {
    /// Returns the limit. Raises it first if it is time to.
    pub(super) fn current(&mut self) -> usize {
        if self.raise_at.is_some_and(|at| at <= Instant::now()) {
            self.current = (self.current * 2).min(MAX_BATCH_SIZE);
            self.raised = self.refused_size.is_some();
            self.raise_at = (self.current < MAX_BATCH_SIZE).then(|| Instant::now() + self.recovery);
        }
        self.current
    }

    /// Lowers the limit to `limit` because a batch of `size` items was refused.
    pub(super) fn lower(&mut self, size: usize, limit: usize) {
        // Otherwise, another batch has lowered the limit already.
        if limit < self.current {
            if self.raised {
                self.recovery = (self.recovery * 2).min(MAX_RECOVERY);
            }
            self.raised = false;
            self.raise_at = Some(Instant::now() + self.recovery);
            self.current = limit.max(1);
            self.refused_size = Some(size);
        }
    }

    /// Records that a request with `size` items succeeded.
    pub(super) fn succeeded(&mut self, size: usize) {
        if self.refused_size.is_some_and(|refused| size >= refused) {
            self.raised = false;
            self.recovery = INITIAL_RECOVERY;
            self.refused_size = None;
        }
    }
}
