//! The health of a node, and when its next health check is due; pure.
//!
//! A node that fails is *ejected*: it gets no calls. Health checks, which are requests without a token,
//! find out whether it works again, so that no call has to. A node that has passed a health check is on *trial*:
//! it gets one call at a time until it has answered one. Otherwise all calls that waited for the node would
//! reach it at once, and overload it again.

use std::time::Duration;

use tokio::time::Instant;

use crate::TransitError;

/// The intervals of health checks, and the lifetimes of connections and addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timings {
    /// The pause between the failure of a node and its health check, after its first ejection. It doubles
    /// with each consecutive ejection, up to [`Self::max_check_interval`].
    pub(super) check_interval: Duration,
    pub(super) max_check_interval: Duration,
    /// The same while callers wait for any node: these checks follow sooner.
    pub(super) awaited_check_interval: Duration,
    pub(super) max_awaited_check_interval: Duration,
    /// Connections that are idle for longer are closed. It is below the idle timeouts of Vault (5 minutes)
    /// and of common load balancers (60 s), so that no request meets a connection that they have closed.
    pub(super) idle_timeout: Duration,
    /// A healthy node that gets no requests is checked at this interval, to keep a connection open for the
    /// time when another node fails. It is below [`Self::idle_timeout`].
    pub(super) keep_alive_interval: Duration,
    /// How often names are resolved again.
    pub(super) resolve_interval: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            check_interval: Duration::from_secs(2),
            max_check_interval: Duration::from_secs(10),
            awaited_check_interval: Duration::from_millis(250),
            max_awaited_check_interval: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(55),
            keep_alive_interval: Duration::from_secs(20),
            resolve_interval: Duration::from_secs(30),
        }
    }
}

/// What is known of the health of one node.
#[derive(Debug)]
pub(super) struct NodeHealth {
    /// Ejections since the last success.
    consecutive_ejections: u32,
    ejection: Option<Ejection>,
    /// The first failure since the last success.
    failing_since: Option<Instant>,
    last_request: Instant,
    timings: Timings,
    trial: Option<Trial>,
}

/// The time between a passed health check and the next success or failure.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Trial {
    /// The next call may take the trial.
    Free,
    /// A call has taken the trial, and has not ended.
    Taken,
}

/// The time between a failure and a passed health check.
#[derive(Debug)]
struct Ejection {
    error: TransitError,
    last_failure: Instant,
    /// The end of the pause that the node asked for with `Retry-After`.
    not_before: Instant,
}

impl NodeHealth {
    pub(super) fn new(timings: Timings, now: Instant) -> Self {
        Self {
            consecutive_ejections: 0,
            ejection: None,
            failing_since: None,
            last_request: now,
            timings,
            trial: None,
        }
    }

    /// Whether the node gets any number of calls: it is neither ejected nor on trial.
    pub(super) fn is_healthy(&self) -> bool {
        self.ejection.is_none() && self.trial.is_none()
    }

    /// Whether the node gets no calls.
    pub(super) fn is_ejected(&self) -> bool {
        self.ejection.is_some()
    }

    /// Whether the node gets one call at a time.
    pub(super) fn is_on_trial(&self) -> bool {
        self.trial.is_some()
    }

    /// Whether the node is on trial, and no call has taken the trial.
    pub(super) fn has_free_trial(&self) -> bool {
        self.trial == Some(Trial::Free)
    }

    /// Takes the trial for one call. Returns false if there is none, or another call has it.
    #[must_use]
    pub(super) fn take_trial(&mut self) -> bool {
        let free = self.has_free_trial();
        if free {
            self.trial = Some(Trial::Taken);
        }
        free
    }

    /// Gives the trial back: the call that had it ended, and showed neither a success nor a failure.
    pub(super) fn return_trial(&mut self) {
        if self.is_on_trial() {
            self.trial = Some(Trial::Free);
        }
    }

    /// The first failure since the last success; `None` for a healthy node.
    pub(super) fn failing_since(&self) -> Option<Instant> {
        self.failing_since.filter(|_| !self.is_healthy())
    }

    /// Before this time the node wants no requests; `None` unless it is ejected.
    pub(super) fn not_before(&self) -> Option<Instant> {
        self.ejection.as_ref().map(|ejection| ejection.not_before)
    }

    /// The time and the reason of the last failure; `None` unless the node is ejected.
    pub(super) fn last_failure(&self) -> Option<(Instant, TransitError)> {
        self.ejection.as_ref().map(|ejection| (ejection.last_failure, ejection.error.clone()))
    }

    /// Notes that a request was sent to the node.
    pub(super) fn request_sent(&mut self, now: Instant) {
        self.last_request = now;
    }

    /// Notes that the node answered a call as Vault does.
    pub(super) fn succeeded(&mut self) {
        self.consecutive_ejections = 0;
        self.ejection = None;
        self.failing_since = None;
        self.trial = None;
    }

    /// Notes that the node failed with `error`, and asked for a pause of `retry_after`.
    pub(super) fn failed(&mut self, now: Instant, error: &TransitError, retry_after: Option<Duration>) {
        self.failing_since.get_or_insert(now);
        self.trial = None;
        let wanted = now + retry_after.unwrap_or_default();
        let not_before = match &self.ejection {
            // Requests that were in flight when the node was ejected are no further ejections.
            Some(ejection) => wanted.max(ejection.not_before),
            None => {
                self.consecutive_ejections = self.consecutive_ejections.saturating_add(1);
                wanted
            }
        };
        self.ejection = Some(Ejection { error: error.clone(), last_failure: now, not_before });
    }

    /// Notes that the node passed a health check. That ends an ejection, and begins a trial: only the answer
    /// to a call shows that the node is healthy.
    pub(super) fn passed_health_check(&mut self) {
        if self.ejection.take().is_some() {
            self.trial = Some(Trial::Free);
        }
    }

    /// When the next health check is due. `awaited` says that callers wait for any node.
    pub(super) fn next_health_check(&self, awaited: bool) -> Instant {
        let Some(ejection) = &self.ejection else {
            return self.last_request + self.timings.keep_alive_interval;
        };
        let doubled = |base: Duration, max: Duration| {
            let factor = 1_u32 << self.consecutive_ejections.saturating_sub(1).min(10);
            base.saturating_mul(factor).min(max)
        };
        let timings = &self.timings;
        let interval = if awaited {
            doubled(timings.awaited_check_interval, timings.max_awaited_check_interval)
        } else {
            doubled(timings.check_interval, timings.max_check_interval)
        };
        (ejection.last_failure + interval).max(ejection.not_before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn error() -> TransitError {
        TransitError::new(ErrorKind::Unreachable, "error")
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn new_node(now: Instant) -> NodeHealth {
        NodeHealth::new(Timings::default(), now)
    }

    #[test]
    fn check_intervals_double_with_each_ejection_up_to_a_limit_until_a_success() {
        let now = Instant::now();
        let mut node = new_node(now);
        for interval in [2, 4, 8, 10, 10] {
            assert!(!node.is_ejected());
            node.failed(now, &error(), None);
            // A request that was in flight.
            node.failed(now, &error(), None);
            assert!(!node.is_healthy());
            assert_eq!(node.next_health_check(false) - now, seconds(interval));
            node.passed_health_check();
        }
        node.succeeded();
        node.failed(now, &error(), None);
        assert_eq!(node.next_health_check(false) - now, seconds(2));
    }

    #[test]
    fn a_node_that_callers_wait_for_is_checked_sooner_but_not_before_its_retry_after() {
        let now = Instant::now();
        let mut node = new_node(now);
        node.failed(now, &error(), None);
        assert_eq!(node.next_health_check(true) - now, Duration::from_millis(250));
        node.failed(now, &error(), Some(seconds(7)));
        node.failed(now, &error(), None);
        assert_eq!(node.next_health_check(true) - now, seconds(7));
        assert_eq!(node.next_health_check(false) - now, seconds(7));
        assert_eq!(node.not_before(), Some(now + seconds(7)));
    }

    #[test]
    fn a_failure_lasts_until_a_success_and_not_only_until_a_passed_health_check() {
        let now = Instant::now();
        let mut node = new_node(now);
        node.failed(now, &error(), None);
        node.passed_health_check();
        assert_eq!(node.failing_since(), Some(now), "the node has not answered a call yet");
        node.failed(now + seconds(5), &error(), None);
        assert_eq!(node.failing_since(), Some(now));
        node.succeeded();
        node.failed(now + seconds(9), &error(), None);
        assert_eq!(node.failing_since(), Some(now + seconds(9)));
    }

    #[test]
    fn a_node_on_trial_gets_one_call_at_a_time_until_it_has_answered_one() {
        let now = Instant::now();
        let mut node = new_node(now);
        node.passed_health_check();
        assert!(node.is_healthy() && !node.is_on_trial(), "the node was not ejected");
        node.failed(now, &error(), None);
        assert!(node.is_ejected() && !node.take_trial());
        node.passed_health_check();
        assert!(!node.is_healthy() && !node.is_ejected());
        assert!(node.take_trial() && !node.take_trial(), "one call at a time");
        node.passed_health_check();
        assert!(!node.take_trial(), "another health check does not free the trial");
        node.return_trial();
        assert!(node.take_trial(), "the first call ended without an outcome");
        node.failed(now, &error(), None);
        node.return_trial();
        assert!(node.is_ejected() && !node.take_trial(), "the node failed");
        node.passed_health_check();
        assert!(node.take_trial());
        node.succeeded();
        assert!(node.is_healthy());
    }

    #[test]
    fn an_idle_node_is_checked_before_its_connection_is_closed() {
        let now = Instant::now();
        let mut node = new_node(now);
        node.request_sent(now + seconds(3));
        assert_eq!(node.next_health_check(false) - now, seconds(23));
        assert!(Timings::default().keep_alive_interval < Timings::default().idle_timeout);
    }
}
