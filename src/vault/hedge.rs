//! After how long a call asks a second node as well.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

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

/// How long answers took of late, and what follows from it.
///
/// Those who lost count with the time that they had: if they did not, calls that are all slow
/// would be hedged for ever, on servers that have enough to do.
#[derive(Debug)]
pub(super) struct Hedge(Mutex<Recent>);

#[derive(Debug)]
struct Recent {
    delay: Duration,
    news: usize,
    took: VecDeque<Duration>,
}

impl Hedge {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Recent { delay: USUAL, news: 0, took: VecDeque::with_capacity(REMEMBERED) }))
    }

    /// An answer has taken so long, or at least so long.
    pub(super) fn note(&self, took: Duration) {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
    pub(super) fn delay(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).delay
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
}
