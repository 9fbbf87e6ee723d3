//! When the token next wants something; pure.
//!
//! A token is renewed at two thirds of the time that it has left. A renewal that fails is tried again,
//! with growing pauses that never leap over the token's end. Nothing here is for ever: what was
//! refused once may be granted later, so it is only asked for more rarely.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

use super::renewal::RenewalFailure;
use crate::ErrorKind;

/// How often the token is looked up, and how often what looks hopeless is tried.
const LONG_PAUSE: Duration = Duration::from_secs(5 * 60);
/// Before the first retry; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// An outage ends at any moment.
const LONGEST_PAUSE_AWAY: Duration = Duration::from_secs(5);
/// A refusal is healed by hand, and every try leaves a line in Vault's audit log.
const LONGEST_PAUSE_REFUSED: Duration = Duration::from_secs(30);
/// However little time is left, two calls are at least so far apart.
const LEAST_PAUSE: Duration = Duration::from_millis(250);
/// A TTL is in whole seconds, so the token may live so much longer than it says.
const ROUNDING: Duration = Duration::from_secs(1);
/// The longest that one call about the token may take.
const LONGEST_CALL: Duration = Duration::from_secs(10);

/// How long a token lives, as far as it is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expiry {
    /// Until then, unless it is renewed.
    At(Instant),
    /// The token does not expire.
    Never,
    /// Vault has not said it.
    Unknown,
}

impl Expiry {
    /// The time that is left, if it has an end and that is known.
    pub fn remaining(self) -> Option<Duration> {
        match self {
            Self::At(end) => Some(end.saturating_duration_since(Instant::now())),
            Self::Never | Self::Unknown => None,
        }
    }
}

/// What a token wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LeaseAction {
    /// Look the token up.
    LookUp,
    /// Renew the token.
    Renew,
}

/// The times at which a token is looked up and renewed.
#[derive(Debug)]
pub struct LeaseSchedule {
    /// Renewals that failed since the last good one.
    failures: u32,
    expiry: Expiry,
    lookup: Instant,
    /// The last lookup failed, so no further one is made out of turn.
    lookup_fails: bool,
    renewal: Option<Instant>,
}

impl LeaseSchedule {
    /// For a token that was just looked up.
    pub fn new(expiry: Expiry, renewable: Option<bool>) -> Self {
        let mut schedule = Self::without_lookup(ErrorKind::Denied);
        schedule.renewal = None;
        schedule.looked_up(expiry, renewable);
        schedule
    }

    /// For a token whose lookup failed so. A renewal tells its TTL, so that comes at once.
    pub fn without_lookup(kind: ErrorKind) -> Self {
        let now = Instant::now();
        let pause = pause_after_lookup(kind);
        Self {
            failures: 0,
            expiry: Expiry::Unknown,
            lookup: now + jittered(pause),
            lookup_fails: true,
            renewal: Some(now),
        }
    }

    /// How long the token lives.
    pub fn expiry(&self) -> Expiry {
        self.expiry
    }

    /// When something is next to do.
    pub fn next_action_at(&self) -> Instant {
        self.renewal.map_or(self.lookup, |renewal| renewal.min(self.lookup))
    }

    /// What is to be done now.
    pub fn due_action(&self) -> Option<LeaseAction> {
        let now = Instant::now();
        if self.lookup <= now {
            return Some(LeaseAction::LookUp);
        }
        self.renewal.filter(|renewal| *renewal <= now).map(|_| LeaseAction::Renew)
    }

    /// By when a call that begins now must have ended: so that there is time for others.
    pub fn request_deadline(&self) -> Instant {
        let share = self.expiry.remaining().map_or(LONGEST_CALL, |left| left / 2);
        Instant::now() + share.clamp(FIRST_PAUSE, LONGEST_CALL)
    }

    /// A lookup told this.
    pub fn looked_up(&mut self, expiry: Expiry, renewable: Option<bool>) {
        let now = Instant::now();
        // Another one may have renewed it, such as the agent that it belongs to.
        let extended = match (self.expiry, expiry) {
            (Expiry::At(before), Expiry::At(end)) => end > before + ROUNDING,
            (before, _) => before == Expiry::Unknown,
        };
        self.lookup_fails = false;
        if expiry != Expiry::Unknown {
            self.expiry = expiry;
        }
        self.lookup = now + jittered(LONG_PAUSE);
        if let Expiry::At(end) = self.expiry {
            // What is there then, tells whether it has ended.
            self.lookup = self.lookup.min((end + ROUNDING).max(now + LEAST_PAUSE));
        }
        if extended {
            self.failures = 0;
        }
        self.renewal = match self.expiry {
            _ if renewable == Some(false) => None,
            Expiry::Never => None,
            Expiry::At(end) => {
                let usual = Self::before(end);
                match self.renewal.filter(|_| !extended) {
                    Some(renewal) if self.failures > 0 => Some(renewal),
                    Some(renewal) => Some(renewal.min(usual)),
                    None => Some(usual),
                }
            }
            Expiry::Unknown => self.renewal.or(Some(now)),
        };
    }

    /// A lookup failed.
    pub fn lookup_failed(&mut self, kind: ErrorKind) {
        self.lookup_fails = true;
        self.lookup = Instant::now() + jittered(pause_after_lookup(kind));
        if kind == ErrorKind::TokenInvalid {
            // The next one is on its way; until then the prober looks, and nothing loops on 403.
            self.renewal = self.renewal.map(|_| Instant::now() + jittered(LONG_PAUSE));
        }
    }

    /// A renewal brought this; an unknown expiry if Vault did not say how long.
    pub fn renewed(&mut self, expiry: Expiry, renewable: Option<bool>) {
        let now = Instant::now();
        match expiry {
            Expiry::At(end) => {
                self.failures = 0;
                self.expiry = expiry;
                self.renewal = Some(Self::before(end));
                if !self.lookup_fails {
                    let usual = now + jittered(LONG_PAUSE);
                    self.lookup = usual.min((end + ROUNDING).max(now + LEAST_PAUSE));
                }
            }
            Expiry::Never | Expiry::Unknown => {
                // A lookup tells. If it may not, the next renewal has to, but not at once.
                self.renewal = Some(now + self.pause(RenewalFailure::Denied));
                self.failures = self.failures.saturating_add(1);
                self.look_by(now);
            }
        }
        if renewable == Some(false) {
            self.renewal = None;
        }
    }

    /// A renewal failed; when the next one is tried, if one is before the end.
    pub fn renewal_failed(&mut self, failure: RenewalFailure) -> Option<Instant> {
        let next = Instant::now() + self.pause(failure);
        self.failures = self.failures.saturating_add(1);
        let in_time = !matches!(self.expiry, Expiry::At(end) if end + ROUNDING < next);
        self.renewal = (in_time || failure != RenewalFailure::LoginRequired).then_some(next);
        if failure == RenewalFailure::Unreachable && self.failures == 1 {
            // It may have worked all the same, and only the answer was lost.
            self.look_by(next);
        }
        self.renewal
    }

    /// Before the next retry.
    fn pause(&self, failure: RenewalFailure) -> Duration {
        let longest = match failure {
            RenewalFailure::LoginRequired | RenewalFailure::TokenInvalid => return jittered(LONG_PAUSE),
            RenewalFailure::Unreachable => LONGEST_PAUSE_AWAY,
            RenewalFailure::Denied if self.expiry == Expiry::Unknown => LONG_PAUSE,
            RenewalFailure::Denied => LONGEST_PAUSE_REFUSED,
        };
        let growing = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(longest);
        let pause = match self.expiry.remaining() {
            // The nearer the end, the more often.
            Some(left) if !left.is_zero() => growing.min(left / 3),
            _ => growing,
        };
        jittered(pause).max(LEAST_PAUSE)
    }

    fn look_by(&mut self, when: Instant) {
        if !self.lookup_fails {
            self.lookup = self.lookup.min(when);
        }
    }

    /// At two thirds of what is left, a little earlier on some nodes than on others.
    ///
    /// However little that is: a renewal may bring a whole period. If renewals are capped, each
    /// leaves whole seconds less than the one before, so they come to an end.
    fn before(end: Instant) -> Instant {
        let now = Instant::now();
        now + jittered(end.saturating_duration_since(now) * 2 / 3).max(LEAST_PAUSE)
    }
}

fn pause_after_lookup(kind: ErrorKind) -> Duration {
    match kind {
        ErrorKind::Denied | ErrorKind::KeyNotFound | ErrorKind::TokenInvalid => LONG_PAUSE,
        _ => LONGEST_PAUSE_REFUSED,
    }
}

/// 90 to 100 % of `pause`: nodes that were started together do not stay in step.
pub fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.9..=1.0))
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep_until};

    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn ends_in(count: u64) -> Expiry {
        Expiry::At(Instant::now() + seconds(count))
    }

    fn until(when: Option<Instant>) -> Duration {
        when.unwrap() - Instant::now()
    }

    /// Fails every renewal until the end and answers the times of the tries, and how many lookups there were.
    async fn failing(schedule: &mut LeaseSchedule, failure: RenewalFailure) -> (Vec<Duration>, usize) {
        let (begun, Expiry::At(end)) = (Instant::now(), schedule.expiry()) else { panic!("{schedule:?}") };
        let (mut tries, mut lookups) = (Vec::new(), 0);
        loop {
            sleep_until(schedule.next_action_at()).await;
            if Instant::now() >= end {
                return (tries, lookups);
            }
            match schedule.due_action().unwrap() {
                LeaseAction::LookUp => {
                    lookups += 1;
                    schedule.looked_up(Expiry::At(end), Some(true));
                }
                LeaseAction::Renew => {
                    tries.push(begun.elapsed());
                    schedule.renewal_failed(failure);
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn looks_up_every_five_minutes() {
        let mut schedule = LeaseSchedule::new(Expiry::Never, Some(false));
        for _ in 0..3 {
            let next = schedule.next_action_at() - Instant::now();
            assert!((seconds(270)..=seconds(300)).contains(&next), "{next:?}");
            advance(next - Duration::from_millis(2)).await;
            assert_eq!(schedule.due_action(), None);
            advance(Duration::from_millis(4)).await;
            assert_eq!(schedule.due_action(), Some(LeaseAction::LookUp));
            schedule.looked_up(Expiry::Never, Some(false));
        }
        // The right to do it may come back.
        schedule.lookup_failed(ErrorKind::Denied);
        assert!(schedule.next_action_at() - Instant::now() <= seconds(300));
    }

    #[tokio::test(start_paused = true)]
    async fn renews_at_two_thirds_with_jitter_and_never_what_has_no_end() {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..50 {
            let schedule = LeaseSchedule::new(ends_in(360), Some(true));
            let next = schedule.next_action_at() - Instant::now();
            assert!((seconds(216)..=seconds(240)).contains(&next), "{next:?}");
            seen.insert(next);
        }
        assert!(seen.len() > 1, "nodes must not stay in step");
        assert_eq!(LeaseSchedule::new(Expiry::Never, Some(true)).renewal, None);
        assert_eq!(LeaseSchedule::new(ends_in(3600), Some(false)).renewal, None);
        assert!(
            LeaseSchedule::new(ends_in(3600), None).renewal.is_some(),
            "Vault has not said that it may not"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_tried_again_until_the_end_and_not_in_a_storm() {
        for (ttl, least, most) in [(2, 2, 8), (20, 5, 20), (3600, 30, 70)] {
            for failure in [RenewalFailure::Denied, RenewalFailure::Unreachable] {
                let mut schedule = LeaseSchedule::new(ends_in(ttl), Some(true));
                let (tries, _) = failing(&mut schedule, failure).await;
                let most = if failure == RenewalFailure::Unreachable { most * 5 } else { most };
                assert!((least..=most).contains(&tries.len()), "{ttl} s, {failure:?}: {tries:?}");
                let last = seconds(ttl) - tries[tries.len() - 1];
                assert!(last <= seconds(1), "{ttl} s: the last try is {last:?} before the end");
                for pair in tries.windows(2) {
                    let pause = pair[1] - pair[0];
                    assert!((LEAST_PAUSE..=seconds(30)).contains(&pause), "{pause:?}");
                }
            }
        }
    }

    /// A periodic token of 20 s whose policy was withdrawn for 5 s died.
    #[tokio::test(start_paused = true)]
    async fn a_policy_that_is_withdrawn_for_a_moment_costs_no_token() {
        let mut schedule = LeaseSchedule::new(ends_in(20), Some(true));
        let granted = Instant::now() + seconds(18);
        loop {
            sleep_until(schedule.next_action_at()).await;
            assert_eq!(schedule.due_action(), Some(LeaseAction::Renew));
            assert!(schedule.expiry().remaining().unwrap() > Duration::ZERO, "it died");
            if Instant::now() > granted {
                schedule.renewed(ends_in(20), Some(true));
                break;
            }
            schedule.renewal_failed(RenewalFailure::Denied);
        }
        let next = until(schedule.renewal);
        assert!((seconds(12)..=seconds(14)).contains(&next), "as after any renewal: {next:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_only_a_new_login_heals_is_tried_rarely_and_not_past_the_end() {
        let mut schedule = LeaseSchedule::new(ends_in(3600), Some(true));
        let (tries, _) = failing(&mut schedule, RenewalFailure::LoginRequired).await;
        assert!((2..=6).contains(&tries.len()), "{tries:?}");
        let mut short = LeaseSchedule::new(ends_in(20), Some(true));
        advance(seconds(14)).await;
        assert_eq!(short.renewal_failed(RenewalFailure::LoginRequired), None);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_lookup_one_renewal_tells_the_ttl() {
        let mut schedule = LeaseSchedule::without_lookup(ErrorKind::Denied);
        assert_eq!(schedule.due_action(), Some(LeaseAction::Renew));
        schedule.renewed(ends_in(60), Some(true));
        assert!((seconds(36)..=seconds(40)).contains(&until(schedule.renewal)));

        // If that is refused as well, it is asked for ever more rarely, and never given up.
        let mut schedule = LeaseSchedule::without_lookup(ErrorKind::Denied);
        for _ in 0..20 {
            let next = schedule.renewal_failed(RenewalFailure::Denied);
            advance(until(next)).await;
        }
        let next = until(schedule.renewal_failed(RenewalFailure::Denied));
        assert!((seconds(270)..=seconds(300)).contains(&next), "{next:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_of_nothing_is_looked_up_and_not_taken_for_one_without_end() {
        let mut schedule = LeaseSchedule::new(ends_in(60), Some(true));
        advance(seconds(40)).await;
        schedule.renewed(Expiry::Unknown, Some(true));
        assert!(matches!(schedule.expiry(), Expiry::At(_)), "what was known stays");
        assert_eq!(schedule.due_action(), Some(LeaseAction::LookUp));
        schedule.looked_up(ends_in(60), Some(true));
        assert!((seconds(36)..=seconds(40)).contains(&until(schedule.renewal)));

        // And if nobody tells, it does not loop.
        let mut schedule = LeaseSchedule::without_lookup(ErrorKind::Denied);
        for _ in 0..20 {
            schedule.renewed(Expiry::Unknown, Some(true));
            assert_ne!(schedule.due_action(), Some(LeaseAction::Renew));
            advance(until(schedule.renewal)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_was_lost_is_looked_for() {
        let mut schedule = LeaseSchedule::new(ends_in(60), Some(true));
        advance(seconds(40)).await;
        let next = schedule.renewal_failed(RenewalFailure::Unreachable).unwrap();
        sleep_until(next).await;
        assert_eq!(schedule.due_action(), Some(LeaseAction::LookUp));
        schedule.looked_up(ends_in(59), Some(true));
        assert_eq!(schedule.due_action(), None, "it has been renewed");
        assert!(until(schedule.renewal) > seconds(30));
    }

    #[tokio::test(start_paused = true)]
    async fn at_its_end_a_token_is_looked_up_because_its_agent_may_have_renewed_it() {
        let mut schedule = LeaseSchedule::new(ends_in(20), Some(true));
        schedule.renewal_failed(RenewalFailure::LoginRequired);
        sleep_until(schedule.next_action_at()).await;
        assert_eq!(schedule.due_action(), Some(LeaseAction::LookUp));
        assert_eq!(schedule.expiry().remaining(), Some(Duration::ZERO));
        schedule.looked_up(ends_in(20), Some(true));
        assert!(until(schedule.renewal) <= seconds(14));
        // And it does not loop on a token that stays in its last second.
        schedule.looked_up(ends_in(0), Some(true));
        assert_eq!(schedule.due_action(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_leaves_time_for_others() {
        for (ttl, longest) in [(1, 1), (10, 5), (3600, 10)] {
            let deadline = LeaseSchedule::new(ends_in(ttl), Some(true)).request_deadline() - Instant::now();
            assert_eq!(deadline, seconds(longest), "{ttl} s");
        }
    }
}
