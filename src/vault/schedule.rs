//! When the token next wants something; pure.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

/// How often the token is looked up.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// The times at which a token is looked up and renewed.
#[derive(Debug)]
pub(super) struct Schedule {
    lookup: Option<Instant>,
    renewal: Option<Instant>,
}

impl Schedule {
    /// For a token that was just looked up, or that may not look itself up.
    pub(super) fn new(may_look_up: bool) -> Self {
        let mut schedule = Self { lookup: None, renewal: None };
        if may_look_up {
            schedule.looked_up();
        }
        schedule
    }

    /// The next thing to do; `None` if there is none.
    pub(super) fn next(&self) -> Option<Instant> {
        self.lookup.into_iter().chain(self.renewal).min()
    }

    /// Whether a lookup is due.
    pub(super) fn lookup_due(&self) -> bool {
        self.lookup.is_some_and(|due| due <= Instant::now())
    }

    /// Whether a renewal is due; it is taken off the schedule.
    pub(super) fn take_renewal(&mut self) -> bool {
        self.renewal.take_if(|due| *due <= Instant::now()).is_some()
    }

    /// Whether a renewal is on the schedule.
    pub(super) fn will_renew(&self) -> bool {
        self.renewal.is_some()
    }

    /// The next lookup is an interval away.
    pub(super) fn looked_up(&mut self) {
        self.lookup = Some(Instant::now() + jittered(LOOKUP_INTERVAL));
    }

    /// No lookup, ever.
    pub(super) fn may_not_look_up(&mut self) {
        self.lookup = None;
    }

    /// Renews at two thirds of `ttl`, a little earlier on some nodes than on others.
    ///
    /// However little is left: a renewal may bring a whole period. If renewals are capped, each
    /// leaves whole seconds less than the one before, so they come to an end.
    pub(super) fn renew_before_end(&mut self, ttl: Duration) {
        self.renewal = (!ttl.is_zero()).then(|| Instant::now() + jittered(ttl * 2 / 3));
    }

    /// Renews after `pause`.
    pub(super) fn renew_again_in(&mut self, pause: Duration) {
        self.renewal = Some(Instant::now() + jittered(pause));
    }
}

/// 90 to 100 % of `pause`: nodes that were started together do not stay in step.
pub(super) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.9..=1.0))
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[tokio::test(start_paused = true)]
    async fn looks_up_every_five_minutes() {
        let mut schedule = Schedule::new(true);
        for _ in 0..3 {
            let next = schedule.next().unwrap() - Instant::now();
            assert!((seconds(270)..=seconds(300)).contains(&next), "{next:?}");
            advance(next - Duration::from_millis(1)).await;
            assert!(!schedule.lookup_due());
            advance(Duration::from_millis(2)).await;
            assert!(schedule.lookup_due());
            schedule.looked_up();
        }
        schedule.may_not_look_up();
        assert_eq!(schedule.next(), None);
        assert_eq!(Schedule::new(false).next(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn renews_at_two_thirds_with_jitter_and_never_what_has_no_end() {
        let mut schedule = Schedule::new(false);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..50 {
            schedule.renew_before_end(seconds(3600));
            let next = schedule.next().unwrap() - Instant::now();
            assert!((seconds(2160)..=seconds(2400)).contains(&next), "{next:?}");
            seen.insert(next);
        }
        assert!(seen.len() > 1, "nodes must not stay in step");
        assert!(!schedule.take_renewal());
        advance(seconds(2401)).await;
        assert!(schedule.take_renewal() && !schedule.will_renew());

        schedule.renew_before_end(Duration::ZERO);
        assert!(!schedule.will_renew());
    }
}
