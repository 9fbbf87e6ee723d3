//! Decides when to read after a burst of events.

use std::time::Duration;

use tokio::time::Instant;

/// A read is due `quiet` after the last event of a burst, and at most `max_delay` after the first one.
#[derive(Debug)]
pub(super) struct Debounce {
    quiet: Duration,
    max_delay: Duration,
    /// The first and the last event of the burst.
    burst: Option<(Instant, Instant)>,
}

impl Debounce {
    pub(super) fn new(quiet: Duration, max_delay: Duration) -> Self {
        Self { quiet, max_delay, burst: None }
    }

    /// Records an event.
    pub(super) fn touch(&mut self, now: Instant) {
        let first = self.burst.map_or(now, |(first, _)| first);
        self.burst = Some((first, now));
    }

    /// Returns when to read; `None` without events.
    pub(super) fn due(&self) -> Option<Instant> {
        self.burst.map(|(first, last)| (last + self.quiet).min(first + self.max_delay))
    }

    /// Ends the burst, because the read begins.
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
    async fn later_events_delay_the_read() {
        let start = Instant::now();
        let mut debounce = Debounce::new(ms(250), ms(1000));
        debounce.touch(Instant::now());
        advance(ms(200)).await;
        debounce.touch(Instant::now());
        sleep_until(debounce.due().unwrap()).await;
        assert_eq!(start.elapsed(), ms(450));
    }

    #[tokio::test(start_paused = true)]
    async fn events_without_a_pause_are_read_after_the_maximum_delay() {
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
