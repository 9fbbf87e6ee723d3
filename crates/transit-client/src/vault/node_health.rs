//! How a node is doing, and when to look at it again; pure.
//!
//! A node that fails is *ejected*: calls leave it alone. After a while a health check, a request that
//! carries nothing, looks whether it is back, so that no caller pays for finding out that it is not.
//! A node that is ready again is on *trial*: it gets one call at a time, until it has answered one.
//! Else all calls that waited for it would come at once, and might be what it cannot bear.

use std::time::Duration;

use tokio::time::Instant;

use crate::TransitError;

/// The times by which nodes are looked after; tests have others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// While callers wait for any node to come back, the first look follows so soon.
    pub(super) first_look: Duration,
    /// How long a node rests after its first failure. It doubles with each relapse.
    pub(super) first_rest: Duration,
    /// Connections that have not been used for so long are made anew instead: below the idle
    /// timeouts of Vault (5 minutes) and of usual load balancers (60 s).
    pub(super) idle: Duration,
    pub(super) longest_look: Duration,
    pub(super) longest_rest: Duration,
    /// How often names are resolved anew.
    pub(super) resolve: Duration,
    /// A connection that is not used for so long is used by us, so that it is there, and warm, when
    /// another node fails.
    pub(super) warm: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first_look: Duration::from_millis(250),
            first_rest: Duration::from_secs(2),
            idle: Duration::from_secs(55),
            longest_look: Duration::from_secs(2),
            longest_rest: Duration::from_secs(10),
            resolve: Duration::from_secs(30),
            warm: Duration::from_secs(20),
        }
    }
}

/// What is known of a node.
#[derive(Debug)]
pub(super) struct Condition {
    /// Since its last good answer it has failed for the first time then.
    away_since: Option<Instant>,
    pace: Pace,
    /// How often it has begun to rest since its last good answer.
    relapses: u32,
    rest: Option<Rest>,
    trial: Option<Trial>,
    used: Instant,
}

/// The time between a good health check and a good answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Trial {
    /// The next call may have the trial.
    Free,
    /// A call has it, and its outcome is not known yet.
    Taken,
}

#[derive(Debug)]
struct Rest {
    /// When it was last seen to fail.
    failed: Instant,
    /// Until then it has asked to be left alone.
    not_before: Instant,
    why: TransitError,
}

impl Condition {
    pub(super) fn new(pace: Pace, now: Instant) -> Self {
        Self { away_since: None, pace, relapses: 0, rest: None, trial: None, used: now }
    }

    /// Whether any number of calls may be sent to it.
    pub(super) fn is_well(&self) -> bool {
        self.rest.is_none() && self.trial.is_none()
    }

    /// Whether it is left alone.
    pub(super) fn is_ejected(&self) -> bool {
        self.rest.is_some()
    }

    /// Whether it is on trial.
    pub(super) fn is_on_trial(&self) -> bool {
        self.trial.is_some()
    }

    /// Whether it is on trial and no call has the trial.
    pub(super) fn has_free_trial(&self) -> bool {
        self.trial == Some(Trial::Free)
    }

    /// Takes the trial for one call; false if another call has it. No trial is needed unless it is on trial.
    #[must_use]
    pub(super) fn take_trial(&mut self) -> bool {
        let free = self.has_free_trial();
        if free {
            self.trial = Some(Trial::Taken);
        }
        free
    }

    /// The call that had the trial has ended and shown nothing.
    pub(super) fn return_trial(&mut self) {
        if self.is_on_trial() {
            self.trial = Some(Trial::Free);
        }
    }

    /// Since when it has not given a good answer, unless it is well.
    pub(super) fn away_since(&self) -> Option<Instant> {
        self.away_since.filter(|_| !self.is_well())
    }

    /// Nobody should ask it before.
    pub(super) fn not_before(&self) -> Option<Instant> {
        self.rest.as_ref().map(|rest| rest.not_before)
    }

    /// A request was sent to it.
    pub(super) fn used(&mut self, now: Instant) {
        self.used = now;
    }

    /// It gave a good answer.
    pub(super) fn answered(&mut self) {
        self.away_since = None;
        self.relapses = 0;
        self.rest = None;
        self.trial = None;
    }

    /// It failed for the reason `why`, and asked to be left alone for `pause`, or not.
    pub(super) fn failed(&mut self, now: Instant, why: &TransitError, pause: Option<Duration>) {
        self.away_since.get_or_insert(now);
        self.trial = None;
        let asked = now + pause.unwrap_or_default();
        let not_before = match &self.rest {
            // Calls that were on their way when it began to rest are no relapse.
            Some(rest) => asked.max(rest.not_before),
            None => {
                self.relapses = self.relapses.saturating_add(1);
                asked
            }
        };
        self.rest = Some(Rest { failed: now, not_before, why: why.clone() });
    }

    /// When it failed last and why, if it rests.
    pub(super) fn why_away(&self) -> Option<(Instant, TransitError)> {
        self.rest.as_ref().map(|rest| (rest.failed, rest.why.clone()))
    }

    /// A health check has found it ready to be asked. Only an answer to a call shows that it is well.
    pub(super) fn looked_ready(&mut self) {
        if self.rest.take().is_some() {
            self.trial = Some(Trial::Free);
        }
    }

    /// When to look next; `awaited` if callers wait for any node to come back.
    pub(super) fn next_look(&self, awaited: bool) -> Instant {
        let Some(rest) = &self.rest else { return self.used + self.pace.warm };
        let doubled = |first: Duration, longest: Duration| {
            let times = 1_u32 << self.relapses.saturating_sub(1).min(10);
            first.saturating_mul(times).min(longest)
        };
        let pause = if awaited {
            doubled(self.pace.first_look, self.pace.longest_look)
        } else {
            doubled(self.pace.first_rest, self.pace.longest_rest)
        };
        (rest.failed + pause).max(rest.not_before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn why() -> TransitError {
        TransitError::new(ErrorKind::Unreachable, "why")
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn rests_double_with_each_relapse_up_to_a_limit_and_end_with_a_good_answer() {
        let now = Instant::now();
        let mut node = Condition::new(Pace::default(), now);
        for rest in [2, 4, 8, 10, 10] {
            assert!(!node.is_ejected());
            node.failed(now, &why(), None);
            // Others that were on their way.
            node.failed(now, &why(), None);
            assert!(!node.is_well());
            assert_eq!(node.next_look(false) - now, seconds(rest));
            node.looked_ready();
        }
        node.answered();
        node.failed(now, &why(), None);
        assert_eq!(node.next_look(false) - now, seconds(2));
    }

    #[test]
    fn who_is_awaited_is_looked_at_sooner_but_not_before_it_has_asked_to_be() {
        let now = Instant::now();
        let mut node = Condition::new(Pace::default(), now);
        node.failed(now, &why(), None);
        assert_eq!(node.next_look(true) - now, Duration::from_millis(250));
        node.failed(now, &why(), Some(seconds(7)));
        node.failed(now, &why(), None);
        assert_eq!((node.next_look(true) - now, node.next_look(false) - now), (seconds(7), seconds(7)));
        assert_eq!(node.not_before(), Some(now + seconds(7)));
    }

    #[test]
    fn an_outage_lasts_until_a_good_answer_whatever_looks_have_found() {
        let now = Instant::now();
        let mut node = Condition::new(Pace::default(), now);
        node.failed(now, &why(), None);
        node.looked_ready();
        assert_eq!(node.away_since(), Some(now), "it may be asked, and has not answered yet");
        node.failed(now + seconds(5), &why(), None);
        assert_eq!(node.away_since(), Some(now));
        node.answered();
        node.failed(now + seconds(9), &why(), None);
        assert_eq!(node.away_since(), Some(now + seconds(9)));
    }

    #[test]
    fn a_node_that_is_back_gets_one_call_until_it_has_answered_one() {
        let now = Instant::now();
        let mut node = Condition::new(Pace::default(), now);
        node.looked_ready();
        assert!(node.is_well() && !node.is_on_trial(), "it was never away");
        node.failed(now, &why(), None);
        assert!(node.is_ejected() && !node.take_trial());
        node.looked_ready();
        assert!(!node.is_well() && !node.is_ejected());
        assert!(node.take_trial() && !node.take_trial(), "one call at a time");
        node.looked_ready();
        assert!(!node.take_trial(), "a further health check makes no further trial");
        node.return_trial();
        assert!(node.take_trial(), "the first one ended without an outcome");
        node.failed(now, &why(), None);
        node.return_trial();
        assert!(node.is_ejected() && !node.take_trial(), "it failed");
        node.looked_ready();
        assert!(node.take_trial());
        node.answered();
        assert!(node.is_well());
    }

    #[test]
    fn a_node_that_nobody_asks_is_kept_warm() {
        let now = Instant::now();
        let mut node = Condition::new(Pace::default(), now);
        node.used(now + seconds(3));
        assert_eq!(node.next_look(false) - now, seconds(23));
        assert!(Pace::default().warm < Pace::default().idle, "else it is never warm");
    }
}
