//! Budgets for extra requests: retries and hedges. They keep an outage from being amplified.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// The size of a budget, in requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BudgetLimits {
    /// The most extra requests in a burst.
    pub(crate) capacity: f64,
    /// What each successful request adds.
    pub(crate) earned: f64,
    /// What each second adds, so that clients with few calls have a budget too.
    pub(crate) per_second: f64,
}

impl BudgetLimits {
    /// The burst is large enough for every call in flight to move to another node when one fails. In the long
    /// run, one request of ten is a retry.
    pub(crate) const RETRIES: Self = Self { capacity: 200.0, earned: 0.1, per_second: 5.0 };
}

/// A token bucket that extra requests are paid from.
#[derive(Debug)]
pub(crate) struct Budget {
    bucket: Mutex<Bucket>,
    limits: BudgetLimits,
}

#[derive(Debug)]
struct Bucket {
    balance: f64,
    /// When `balance` last grew with time.
    updated: Instant,
}

impl Budget {
    /// A full budget.
    pub(crate) fn new(limits: BudgetLimits) -> Self {
        Self { bucket: Mutex::new(Bucket { balance: limits.capacity, updated: Instant::now() }), limits }
    }

    /// Adds what a successful request earns.
    pub(crate) fn earn(&self) {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.balance = (bucket.balance + self.limits.earned).min(self.limits.capacity);
    }

    /// Pays for one extra request. Returns false, and takes nothing, if the budget does not allow it.
    #[must_use]
    pub(crate) fn take(&self) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(bucket.updated).as_secs_f64();
        let balance = (bucket.balance + elapsed * self.limits.per_second).min(self.limits.capacity);
        let allowed = balance >= 1.0;
        *bucket = Bucket { balance: if allowed { balance - 1.0 } else { balance }, updated: now };
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn drain(budget: &Budget) -> usize {
        (0..10_000).take_while(|_| budget.take()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_spent_and_grows_with_successes_and_time() {
        let budget = Budget::new(BudgetLimits::RETRIES);
        assert_eq!(drain(&budget), 200);
        (0..100).for_each(|_| budget.earn());
        assert!((9..=10).contains(&drain(&budget)), "a tenth of the successes");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(drain(&budget), 10);
        tokio::time::advance(Duration::from_secs(3600)).await;
        (0..5000).for_each(|_| budget.earn());
        assert_eq!(drain(&budget), 200, "at most the capacity");
    }
}
