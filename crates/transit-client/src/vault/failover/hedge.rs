//! Hedging: when a call sends a second request because the first is slow, and when hedging pauses.
//!
//! The delay before a hedge follows the latency of recent requests. Hedges have a budget of their own, apart
//! from the retry budget, which must be available when a node fails.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::budget::{Budget, BudgetLimits};

/// How many latencies are kept.
const WINDOW: usize = 256;
/// The fewest latencies from which the 95th percentile is computed.
const MIN_SAMPLES: usize = 32;
/// How many new latencies come before the percentile is computed again. Sorting the window for every request
/// would cost too much.
const RECOMPUTE_INTERVAL: usize = 16;
/// The delay is this multiple of the 95th percentile. A request that takes longer is unlikely to be quick.
const PERCENTILE_MULTIPLE: u32 = 4;
/// The delay until there are [`MIN_SAMPLES`] latencies. With it, a frozen leader was measured to cost a call
/// 168 ms instead of a second.
const DEFAULT_DELAY: Duration = Duration::from_millis(150);
/// With a shorter delay, a pause of a garbage collector or of a busy machine would cause hedges.
const MIN_DELAY: Duration = Duration::from_millis(100);
/// With a longer delay, hedges would come too late for callers with a deadline of a few seconds.
const MAX_DELAY: Duration = Duration::from_millis(500);

/// In the long run, one request of twenty is a hedge; in a burst, there are at most 50.
const LIMITS: BudgetLimits = BudgetLimits { capacity: 50.0, earned: 0.05, per_second: 1.0 };

/// Hedging pauses after this many hedges in a row that were not faster than the first request: all nodes are
/// equally slow then, and hedges only add load.
const MAX_CONSECUTIVE_LOSSES: u32 = 10;
/// The first pause. It doubles with each further hedge that is not faster.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// The latency of recent requests, the hedging budget, and the results of hedges.
#[derive(Debug)]
pub(crate) struct Hedge {
    budget: Budget,
    latencies: Mutex<Latencies>,
    results: Mutex<Results>,
}

/// The results of recent hedges.
#[derive(Debug)]
struct Results {
    consecutive_losses: u32,
    next_pause: Duration,
    /// The end of the current pause.
    paused_until: Option<Instant>,
}

impl Results {
    const fn new() -> Self {
        Self { consecutive_losses: 0, next_pause: FIRST_PAUSE, paused_until: None }
    }
}

#[derive(Debug)]
struct Latencies {
    delay: Duration,
    /// Latencies since the percentile was last computed.
    new: usize,
    window: VecDeque<Duration>,
}

impl Hedge {
    /// Has no latencies and a full budget.
    pub(crate) fn new() -> Self {
        let latencies = Latencies { delay: DEFAULT_DELAY, new: 0, window: VecDeque::with_capacity(WINDOW) };
        Self {
            budget: Budget::new(LIMITS),
            latencies: Mutex::new(latencies),
            results: Mutex::new(Results::new()),
        }
    }

    /// Pays for one hedge. Returns false if hedging is paused, or the budget does not allow it.
    #[must_use]
    pub(crate) fn take(&self) -> bool {
        !self.is_paused() && self.budget.take()
    }

    /// Whether hedging is paused.
    pub(crate) fn is_paused(&self) -> bool {
        self.results().paused_until.is_some_and(|until| Instant::now() < until)
    }

    /// Adds what a successful request earns.
    pub(crate) fn earn(&self) {
        self.budget.earn();
    }

    /// Notes a hedge that was faster than the first request. It ends the pauses.
    pub(crate) fn won(&self) {
        *self.results() = Results::new();
    }

    /// Notes a hedge that was slower than the first request, or failed.
    pub(crate) fn lost(&self) {
        let mut results = self.results();
        results.consecutive_losses = results.consecutive_losses.saturating_add(1);
        // Hedges that were in flight when the pause began do not extend it. The first hedge after a pause
        // does, if it is not faster.
        let is_paused = results.paused_until.is_some_and(|until| Instant::now() < until);
        if results.consecutive_losses >= MAX_CONSECUTIVE_LOSSES && !is_paused {
            results.paused_until = Some(Instant::now() + results.next_pause);
            results.next_pause = (results.next_pause * 2).min(MAX_PAUSE);
        }
    }

    fn results(&self) -> MutexGuard<'_, Results> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how long a request took, or, for one that was abandoned, how long it had taken until then.
    /// Without the abandoned ones, the delay would not grow when all requests become slow, and busy servers
    /// would get hedges all the time.
    pub(crate) fn record_latency(&self, took: Duration) {
        let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        if latencies.window.len() == WINDOW {
            latencies.window.pop_front();
        }
        latencies.window.push_back(took);
        latencies.new += 1;
        if latencies.new >= RECOMPUTE_INTERVAL && latencies.window.len() >= MIN_SAMPLES {
            latencies.new = 0;
            let mut sorted: Vec<_> = latencies.window.iter().copied().collect();
            sorted.sort_unstable();
            let p95 = sorted.get(sorted.len() * 95 / 100).copied().unwrap_or(DEFAULT_DELAY);
            latencies.delay = p95.saturating_mul(PERCENTILE_MULTIPLE).clamp(MIN_DELAY, MAX_DELAY);
        }
    }

    /// How long the first request may take before a hedge is sent.
    pub(crate) fn delay(&self) -> Duration {
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner).delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delay_with(tail: Duration) -> Duration {
        let hedge = Hedge::new();
        for number in 0..WINDOW * 2 {
            // One latency of ten is in the tail.
            hedge.record_latency(if number % 10 == 0 { tail } else { Duration::from_millis(1) });
        }
        hedge.delay()
    }

    #[test]
    fn the_delay_follows_the_95th_percentile_within_limits() {
        assert_eq!(Hedge::new().delay(), DEFAULT_DELAY);
        assert_eq!(delay_with(Duration::from_millis(1)), MIN_DELAY);
        assert_eq!(delay_with(Duration::from_millis(60)), Duration::from_millis(240));
        assert_eq!(delay_with(Duration::from_secs(2)), MAX_DELAY);
    }

    #[test]
    fn a_few_slow_requests_do_not_change_the_delay() {
        let hedge = Hedge::new();
        (0..MIN_SAMPLES - 1).for_each(|_| hedge.record_latency(MAX_DELAY));
        assert_eq!(hedge.delay(), DEFAULT_DELAY);
    }

    #[tokio::test(start_paused = true)]
    async fn hedging_pauses_when_hedges_stop_winning_and_is_tried_again() {
        let hedge = Hedge::new();
        for _ in 0..MAX_CONSECUTIVE_LOSSES {
            assert!(hedge.take());
            hedge.lost();
        }
        for pause in [30, 60, 120, 240, 300, 300] {
            assert!(!hedge.take());
            tokio::time::advance(Duration::from_secs(pause) - Duration::from_millis(1)).await;
            assert!(!hedge.take());
            tokio::time::advance(Duration::from_millis(2)).await;
            assert!(hedge.take(), "one hedge shows whether anything has changed");
            hedge.lost();
        }
        tokio::time::advance(MAX_PAUSE).await;
        hedge.won();
        for _ in 1..MAX_CONSECUTIVE_LOSSES {
            assert!(hedge.take());
            hedge.lost();
        }
        assert!(hedge.take());
    }

    #[tokio::test(start_paused = true)]
    async fn hedges_have_a_budget() {
        let hedge = Hedge::new();
        let taken = (0..1000).take_while(|_| hedge.take()).count();
        assert_eq!(taken, 50);
        (0..110).for_each(|_| hedge.earn());
        assert_eq!((0..1000).take_while(|_| hedge.take()).count(), 5, "a twentieth of the successes");
    }
}
