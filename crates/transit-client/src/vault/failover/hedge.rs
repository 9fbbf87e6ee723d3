//! After how long a call asks a second node as well, and whether that is still worth it.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::budget::{Budget, Limits};

/// So many answers are remembered.
const REMEMBERED: usize = 256;
/// With fewer the tail is not known.
const ENOUGH: usize = 32;
/// So often the tail is worked out anew.
const EVERY: usize = 16;
/// A call that takes so many times the 95th percentile is not going to be quick.
const MULTIPLE: u32 = 4;
/// While nothing is known. A hedge after this was measured to make a frozen leader cost 168 ms
/// instead of a second.
const USUAL: Duration = Duration::from_millis(150);
/// Sooner, a pause of the garbage collector or of a busy machine would be enough.
const SOONEST: Duration = Duration::from_millis(100);
/// Later, it would not help with the deadlines of those who ask us.
const LATEST: Duration = Duration::from_millis(500);

/// Hedges that may be made at once.
const CAPACITY: f64 = 50.0;
/// A good answer earns so much of a hedge: in the long run one request of twenty is one.
const EARNED: f64 = 0.05;
/// So that those who call seldom have some, too.
const PER_SECOND: f64 = 1.0;
/// After so many hedges in a row that did not win, all nodes are slow alike, and a hedge only adds load.
const LOST_IN_A_ROW: u32 = 10;
/// For so long no hedge is made then. It doubles with each further hedge that does not win.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// How long answers took of late, and what follows from it.
///
/// Those who lost count with the time that they had: if they did not, calls that are all slow
/// would be hedged for ever, on servers that have enough to do.
#[derive(Debug)]
pub(crate) struct Hedge {
    /// Apart from the retry budget, which must be there when a node dies.
    budget: Budget,
    luck: Mutex<Luck>,
    recent: Mutex<Recent>,
}

/// Whether hedges are worth it.
#[derive(Debug)]
struct Luck {
    lost_in_a_row: u32,
    /// None is made before.
    not_before: Option<Instant>,
    pause: Duration,
}

impl Luck {
    const fn new() -> Self {
        Self { lost_in_a_row: 0, not_before: None, pause: FIRST_PAUSE }
    }
}

#[derive(Debug)]
struct Recent {
    delay: Duration,
    news: usize,
    took: VecDeque<Duration>,
}

impl Hedge {
    pub(crate) fn new() -> Self {
        Self {
            budget: Budget::new(Limits { capacity: CAPACITY, earned: EARNED, per_second: PER_SECOND }),
            luck: Mutex::new(Luck::new()),
            recent: Mutex::new(Recent { delay: USUAL, news: 0, took: VecDeque::with_capacity(REMEMBERED) }),
        }
    }

    /// Whether a hedge may be made now; it is paid for then.
    #[must_use]
    pub(crate) fn may_be_made(&self) -> bool {
        !self.is_paused() && self.budget.take()
    }

    /// Whether hedges have stopped winning.
    pub(crate) fn is_paused(&self) -> bool {
        self.luck().not_before.is_some_and(|then| Instant::now() < then)
    }

    /// A good answer has come.
    pub(crate) fn earn(&self) {
        self.budget.earn();
    }

    /// A hedge was faster than the first request.
    pub(crate) fn won(&self) {
        *self.luck() = Luck::new();
    }

    /// A hedge was slower than the first request, or failed.
    pub(crate) fn lost(&self) {
        let mut luck = self.luck();
        luck.lost_in_a_row = luck.lost_in_a_row.saturating_add(1);
        // One more after each pause shows whether anything has changed.
        if luck.lost_in_a_row >= LOST_IN_A_ROW && luck.not_before.is_none_or(|then| Instant::now() >= then) {
            luck.not_before = Some(Instant::now() + luck.pause);
            luck.pause = (luck.pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn luck(&self) -> MutexGuard<'_, Luck> {
        self.luck.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An answer has taken so long, or at least so long.
    pub(crate) fn note(&self, took: Duration) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.took.len() == REMEMBERED {
            recent.took.pop_front();
        }
        recent.took.push_back(took);
        recent.news += 1;
        if recent.news >= EVERY && recent.took.len() >= ENOUGH {
            recent.news = 0;
            let mut sorted: Vec<_> = recent.took.iter().copied().collect();
            sorted.sort_unstable();
            let p95 = sorted.get(sorted.len() * 95 / 100).copied().unwrap_or(USUAL);
            recent.delay = p95.saturating_mul(MULTIPLE).clamp(SOONEST, LATEST);
        }
    }

    /// After how long to ask a second node.
    pub(crate) fn delay(&self) -> Duration {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(tail: Duration) -> Duration {
        let hedge = Hedge::new();
        for number in 0..REMEMBERED * 2 {
            // Every tenth is of the tail.
            hedge.note(if number % 10 == 0 { tail } else { Duration::from_millis(1) });
        }
        hedge.delay()
    }

    #[test]
    fn the_delay_follows_the_tail_within_limits() {
        assert_eq!(Hedge::new().delay(), USUAL);
        assert_eq!(after(Duration::from_millis(1)), SOONEST);
        assert_eq!(after(Duration::from_millis(60)), Duration::from_millis(240));
        assert_eq!(after(Duration::from_secs(2)), LATEST);
    }

    #[test]
    fn a_few_slow_answers_are_no_tail() {
        let hedge = Hedge::new();
        (0..ENOUGH - 1).for_each(|_| hedge.note(LATEST));
        assert_eq!(hedge.delay(), USUAL);
    }

    #[tokio::test(start_paused = true)]
    async fn hedges_pause_when_they_stop_winning_and_are_tried_again() {
        let hedge = Hedge::new();
        for _ in 0..LOST_IN_A_ROW {
            assert!(hedge.may_be_made());
            hedge.lost();
        }
        for pause in [30, 60, 120, 240, 300, 300] {
            assert!(!hedge.may_be_made());
            tokio::time::advance(Duration::from_secs(pause) - Duration::from_millis(1)).await;
            assert!(!hedge.may_be_made());
            tokio::time::advance(Duration::from_millis(2)).await;
            assert!(hedge.may_be_made(), "one shows whether anything has changed");
            hedge.lost();
        }
        tokio::time::advance(LONGEST_PAUSE).await;
        hedge.won();
        for _ in 1..LOST_IN_A_ROW {
            assert!(hedge.may_be_made());
            hedge.lost();
        }
        assert!(hedge.may_be_made());
    }

    #[tokio::test(start_paused = true)]
    async fn hedges_are_paid_for() {
        let hedge = Hedge::new();
        let made = (0..1000).take_while(|_| hedge.may_be_made()).count();
        assert_eq!(made, 50);
        (0..110).for_each(|_| hedge.earn());
        assert_eq!((0..1000).take_while(|_| hedge.may_be_made()).count(), 5, "a twentieth");
    }
}
