//! Budgets: what extra requests, retries and hedges, may cost Vault.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// How many extra requests there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// At once.
    pub(crate) capacity: f64,
    /// For each good answer.
    pub(crate) earned: f64,
    /// For each second, so that those who call seldom have some, too.
    pub(crate) per_second: f64,
}

impl Limits {
    /// Enough for every call in flight to go to another node when one dies. In the long run one request of
    /// ten is a retry.
    pub(crate) const RETRIES: Self = Self { capacity: 200.0, earned: 0.1, per_second: 5.0 };
}

/// A token bucket.
#[derive(Debug)]
pub(crate) struct Budget {
    bucket: Mutex<(f64, Instant)>,
    limits: Limits,
}

impl Budget {
    /// A full one.
    pub(crate) fn new(limits: Limits) -> Self {
        Self { bucket: Mutex::new((limits.capacity, Instant::now())), limits }
    }

    /// A good answer has come.
    pub(crate) fn earn(&self) {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.0 = (bucket.0 + self.limits.earned).min(self.limits.capacity);
    }

    /// Whether one more request may be made.
    #[must_use]
    pub(crate) fn take(&self) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let since = now.saturating_duration_since(bucket.1).as_secs_f64();
        let left = (bucket.0 + since * self.limits.per_second).min(self.limits.capacity);
        *bucket = (if left >= 1.0 { left - 1.0 } else { left }, now);
        left >= 1.0
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
    async fn it_is_spent_earned_and_grows_slowly_by_itself() {
        let budget = Budget::new(Limits::RETRIES);
        assert_eq!(drain(&budget), 200);
        (0..100).for_each(|_| budget.earn());
        assert!((9..=10).contains(&drain(&budget)), "a tenth");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(drain(&budget), 10);
        tokio::time::advance(Duration::from_secs(3600)).await;
        (0..5000).for_each(|_| budget.earn());
        assert_eq!(drain(&budget), 200, "no more than fits");
    }
}
