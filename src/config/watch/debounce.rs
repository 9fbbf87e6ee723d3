//! When to read after a burst of events.

use std::time::Duration;

use tokio::time::Instant;

/// Reads are due when the events have been quiet for a while, or, if they never
/// are, some time after the first.
#[derive(Debug)]
pub(super) struct Debounce {
    quiet: Duration,
    patience: Duration,
    /// The first and the last event of the burst.
    burst: Option<(Instant, Instant)>,
}

impl Debounce {
    pub(super) fn new(quiet: Duration, patience: Duration) -> Self {
        Self { quiet, patience, burst: None }
    }

    /// Something happened.
    pub(super) fn touch(&mut self, now: Instant) {
        let first = self.burst.map_or(now, |(first, _)| first);
        self.burst = Some((first, now));
    }

    /// When to read; `None` without events.
    pub(super) fn due(&self) -> Option<Instant> {
        self.burst.map(|(first, last)| (last + self.quiet).min(first + self.patience))
    }

    /// The read that was due begins.
    pub(super) fn clear(&mut self) {
        self.burst = None;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep_until};

    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_event_is_read_after_the_quiet_time() {
        let start = Instant::now();
        let mut debounce = Debounce::new(ms(250), ms(1000));
        assert_eq!(debounce.due(), None);
        debounce.touch(Instant::now());
        sleep_until(debounce.due().unwrap()).await;
        assert_eq!(start.elapsed(), ms(250));
        debounce.clear();
        assert_eq!(debounce.due(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn later_events_put_the_read_off() {
        let start = Instant::now();
        let mut debounce = Debounce::new(ms(250), ms(1000));
        debounce.touch(Instant::now());
        advance(ms(200)).await;
        debounce.touch(Instant::now());
        sleep_until(debounce.due().unwrap()).await;
        assert_eq!(start.elapsed(), ms(450));
    }

    #[tokio::test(start_paused = true)]
    async fn events_without_end_are_read_after_a_second() {
        let start = Instant::now();
        let mut debounce = Debounce::new(ms(250), ms(1000));
        let mut reads = Vec::new();
        while start.elapsed() < ms(3000) {
            debounce.touch(Instant::now());
            advance(ms(100)).await;
            if debounce.due().unwrap() <= Instant::now() {
                reads.push(start.elapsed().as_millis());
                debounce.clear();
            }
        }
        assert_eq!(reads, [1000, 2000, 3000]);
    }
}
