//! The retry budget: what an outage may cost Vault in requests that nobody made.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// Enough for every call in flight to go to another node when one dies.
const CAPACITY: f64 = 200.0;
/// A good answer earns a tenth of a retry: in the long run one request of ten is one.
const EARNED: f64 = 0.1;
/// So that those who call seldom have some, too.
const PER_SECOND: f64 = 5.0;

/// A token bucket.
#[derive(Debug)]
pub(super) struct Budget(Mutex<(f64, Instant)>);

impl Budget {
    /// A full one.
    pub(super) fn new() -> Self {
        Self(Mutex::new((CAPACITY, Instant::now())))
    }

    /// A good answer has come.
    pub(super) fn earn(&self) {
        let mut bucket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.0 = (bucket.0 + EARNED).min(CAPACITY);
    }

    /// Whether one more request may be made.
    #[must_use]
    pub(super) fn take(&self) -> bool {
        let mut bucket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let since = now.saturating_duration_since(bucket.1).as_secs_f64();
        let left = (bucket.0 + since * PER_SECOND).min(CAPACITY);
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
        let budget = Budget::new();
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
