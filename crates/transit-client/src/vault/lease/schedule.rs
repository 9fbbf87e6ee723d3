//! When a token is looked up, renewed and replaced by a login; pure.
//!
//! A token is renewed after two thirds of its remaining lifetime. A renewal that fails is repeated after growing
//! pauses that never reach past the token's end. No request is given up: one that was refused may be granted
//! later, so it is only repeated less often.
//!
//! A token of an own login is replaced before it ends: after two thirds of its lifetime if it cannot be renewed,
//! and after a third of what is left once its maximum TTL or a refusal ends the renewals.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

use super::renewal::RenewalFailure;
use crate::ErrorKind;

/// The pause between two lookups, and between two attempts that are unlikely to succeed.
const LONG_PAUSE: Duration = Duration::from_secs(5 * 60);
/// The pause before the first retry. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause while Vault cannot be reached: an outage may end at any moment.
const MAX_PAUSE_UNREACHABLE: Duration = Duration::from_secs(5);
/// The longest pause while Vault denies a renewal. An operator has to change that, and every attempt is an entry
/// in Vault's audit log.
const MAX_PAUSE_DENIED: Duration = Duration::from_secs(30);
/// The shortest pause between two requests, however little time is left.
const MIN_PAUSE: Duration = Duration::from_millis(250);
/// Vault rounds a TTL down to seconds, so a token may live this much longer than its TTL says.
const TTL_ROUNDING: Duration = Duration::from_secs(1);
/// The longest that one request about the token may take.
const MAX_REQUEST_TIME: Duration = Duration::from_secs(10);

/// When a token expires.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expiry {
    /// At this time, unless it is renewed.
    At(Instant),
    /// Never, as a root token.
    Never,
    /// Vault has not said it.
    Unknown,
}

impl Expiry {
    /// The time until the token expires; `None` if it never does, or if that is unknown.
    #[must_use]
    pub fn remaining(self) -> Option<Duration> {
        match self {
            Self::At(end) => Some(end.saturating_duration_since(Instant::now())),
            Self::Never | Self::Unknown => None,
        }
    }
}

/// What is done with a lease.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LeaseAction {
    /// Log in, because the token ends.
    LogIn,
    /// Look the token up.
    LookUp,
    /// Renew the token.
    Renew,
}

/// Who replaces a token that ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TokenOrigin {
    /// The daemon logs in again.
    Login,
    /// Another program, such as an agent, renders the next token.
    Rendered,
}

/// The times of the next lookup, the next renewal and the next login of a token.
///
/// The caller waits for [`Self::next_action_at`], does the [`Self::due_action`], and reports its result.
#[derive(Debug)]
pub struct LeaseSchedule {
    expiry: Expiry,
    /// Renewals that failed since the last successful one.
    failed_renewals: u32,
    /// The last lookup failed. Until one succeeds, lookups keep their long pauses.
    lookup_failed: bool,
    /// `None` if the token can be renewed, or if another program replaces it.
    next_login: Option<Instant>,
    next_lookup: Instant,
    /// `None` if the token cannot or need not be renewed.
    next_renewal: Option<Instant>,
    origin: TokenOrigin,
}

impl LeaseSchedule {
    /// The schedule of a token that was just looked up. `renewable` is `None` if Vault has not said it.
    #[must_use]
    pub fn new(expiry: Expiry, renewable: Option<bool>) -> Self {
        let mut schedule = Self::without_lookup(ErrorKind::Denied);
        schedule.next_renewal = None;
        schedule.looked_up(expiry, renewable);
        schedule
    }

    /// The schedule of a token that an own login has just brought.
    #[must_use]
    pub fn of_login(expiry: Expiry, renewable: Option<bool>) -> Self {
        let mut schedule = Self { origin: TokenOrigin::Login, ..Self::new(expiry, renewable) };
        schedule.plan_login(renewable);
        schedule
    }

    /// The schedule of a token whose lookup failed with `kind`. The first renewal is due at once, because its
    /// answer has the TTL.
    #[must_use]
    pub fn without_lookup(kind: ErrorKind) -> Self {
        let now = Instant::now();
        Self {
            expiry: Expiry::Unknown,
            failed_renewals: 0,
            lookup_failed: true,
            next_login: None,
            next_lookup: now + jittered(pause_after_failed_lookup(kind)),
            next_renewal: Some(now),
            origin: TokenOrigin::Rendered,
        }
    }

    /// Who replaces the token when it ends.
    #[must_use]
    pub fn origin(&self) -> TokenOrigin {
        self.origin
    }

    /// When the token expires.
    #[must_use]
    pub fn expiry(&self) -> Expiry {
        self.expiry
    }

    /// When the next action is due.
    #[must_use]
    pub fn next_action_at(&self) -> Instant {
        let others = [self.next_login, self.next_renewal];
        others.into_iter().flatten().fold(self.next_lookup, Instant::min)
    }

    /// The action that is due now; `None` before [`Self::next_action_at`].
    #[must_use]
    pub fn due_action(&self) -> Option<LeaseAction> {
        let now = Instant::now();
        let is_due = |time: Option<Instant>| time.is_some_and(|time| time <= now);
        if is_due(self.next_login) {
            Some(LeaseAction::LogIn)
        } else if self.next_lookup <= now {
            Some(LeaseAction::LookUp)
        } else {
            is_due(self.next_renewal).then_some(LeaseAction::Renew)
        }
    }

    /// The deadline of a request that is sent now. It leaves time for more attempts before the token expires.
    #[must_use]
    pub fn request_deadline(&self) -> Instant {
        let share = self.expiry.remaining().map_or(MAX_REQUEST_TIME, |remaining| remaining / 2);
        Instant::now() + share.clamp(FIRST_PAUSE, MAX_REQUEST_TIME)
    }

    /// Notes the result of a lookup.
    pub fn looked_up(&mut self, expiry: Expiry, renewable: Option<bool>) {
        let now = Instant::now();
        // Another program, such as the agent, may have renewed the token.
        let extended = match (self.expiry, expiry) {
            (Expiry::At(before), Expiry::At(end)) => end > before + TTL_ROUNDING,
            (before, _) => before == Expiry::Unknown,
        };
        self.lookup_failed = false;
        if expiry != Expiry::Unknown {
            self.expiry = expiry;
        }
        self.next_lookup = now + jittered(LONG_PAUSE);
        if let Expiry::At(end) = self.expiry {
            // A lookup at the end shows whether the token has expired.
            self.next_lookup = self.next_lookup.min((end + TTL_ROUNDING).max(now + MIN_PAUSE));
        }
        if extended {
            self.failed_renewals = 0;
        }
        self.next_renewal = match self.expiry {
            _ if renewable == Some(false) => None,
            Expiry::Never => None,
            Expiry::At(end) => {
                let regular = Self::regular_renewal(end);
                match self.next_renewal.filter(|_| !extended) {
                    Some(renewal) if self.failed_renewals > 0 => Some(renewal),
                    Some(renewal) => Some(renewal.min(regular)),
                    None => Some(regular),
                }
            }
            Expiry::Unknown => self.next_renewal.or(Some(now)),
        };
        self.plan_login(renewable);
    }

    /// Plans the login that replaces a token that cannot be renewed.
    fn plan_login(&mut self, renewable: Option<bool>) {
        if self.origin == TokenOrigin::Login
            && renewable == Some(false)
            && self.next_login.is_none()
            && let Expiry::At(end) = self.expiry
        {
            self.next_login = Some(Self::regular_renewal(end));
        }
    }

    /// Notes that a login was requested. If the token is still in use later, another one is.
    pub fn login_requested(&mut self) {
        let pause = self.expiry.remaining().map_or(LONG_PAUSE, |left| (left / 3).min(LONG_PAUSE));
        self.next_login = Some(Instant::now() + jittered(pause.max(MAX_PAUSE_UNREACHABLE)));
    }

    /// Notes that renewals do not prolong the token any more. A token of an own login is replaced after a third
    /// of the time that is left: early enough for several attempts, and not at the same moment on every machine.
    pub fn renewals_end(&mut self) {
        if self.origin == TokenOrigin::Login && self.next_login.is_none() {
            let left = self.expiry.remaining().unwrap_or(LONG_PAUSE);
            self.next_login = Some(Instant::now() + jittered((left / 3).min(LONG_PAUSE)));
        }
    }

    /// Notes a lookup that failed.
    pub fn lookup_failed(&mut self, kind: ErrorKind) {
        self.lookup_failed = true;
        self.next_lookup = Instant::now() + jittered(pause_after_failed_lookup(kind));
        if kind == ErrorKind::TokenInvalid {
            // The agent renders another token. Until then, the health check of the session watches this one,
            // and requests for its lease must not repeat 403 in a loop.
            self.next_renewal = self.next_renewal.map(|_| Instant::now() + jittered(LONG_PAUSE));
        }
    }

    /// Notes a renewal that succeeded. `expiry` is [`Expiry::Unknown`] if Vault did not say it.
    pub fn renewed(&mut self, expiry: Expiry, renewable: Option<bool>) {
        let now = Instant::now();
        match expiry {
            Expiry::At(end) => {
                self.expiry = expiry;
                self.failed_renewals = 0;
                self.next_renewal = Some(Self::regular_renewal(end));
                if !self.lookup_failed {
                    let regular = now + jittered(LONG_PAUSE);
                    self.next_lookup = regular.min((end + TTL_ROUNDING).max(now + MIN_PAUSE));
                }
            }
            Expiry::Never | Expiry::Unknown => {
                // A lookup shows the expiry. If lookups are denied, the next renewal has to, after a pause.
                self.next_renewal = Some(now + self.renewal_pause(RenewalFailure::Denied));
                self.failed_renewals = self.failed_renewals.saturating_add(1);
                self.look_up_by(now);
            }
        }
        if renewable == Some(false) {
            self.next_renewal = None;
        }
    }

    /// Notes a renewal that failed. Returns when the next one is due; `None` if there is none before the token
    /// expires.
    pub fn renewal_failed(&mut self, failure: RenewalFailure) -> Option<Instant> {
        let next = Instant::now() + self.renewal_pause(failure);
        self.failed_renewals = self.failed_renewals.saturating_add(1);
        if matches!(failure, RenewalFailure::Denied | RenewalFailure::LoginRequired) {
            self.renewals_end();
        }
        let in_time = !matches!(self.expiry, Expiry::At(end) if end + TTL_ROUNDING < next);
        self.next_renewal = (in_time || failure != RenewalFailure::LoginRequired).then_some(next);
        if failure == RenewalFailure::Unreachable && self.failed_renewals == 1 {
            // Vault may have renewed the token, and only the answer was lost.
            self.look_up_by(next);
        }
        self.next_renewal
    }

    /// The pause before the next renewal, after one that failed.
    fn renewal_pause(&self, failure: RenewalFailure) -> Duration {
        let max = match failure {
            RenewalFailure::LoginRequired | RenewalFailure::TokenInvalid => return jittered(LONG_PAUSE),
            RenewalFailure::Unreachable => MAX_PAUSE_UNREACHABLE,
            RenewalFailure::Denied if self.expiry == Expiry::Unknown => LONG_PAUSE,
            RenewalFailure::Denied => MAX_PAUSE_DENIED,
        };
        let growing = FIRST_PAUSE.saturating_mul(1 << self.failed_renewals.min(16)).min(max);
        let pause = match self.expiry.remaining() {
            // Pauses become shorter near the end.
            Some(remaining) if !remaining.is_zero() => growing.min(remaining / 3),
            _ => growing,
        };
        jittered(pause).max(MIN_PAUSE)
    }

    fn look_up_by(&mut self, when: Instant) {
        if !self.lookup_failed {
            self.next_lookup = self.next_lookup.min(when);
        }
    }

    /// The regular time of the next renewal: after two thirds of the remaining time, with jitter.
    ///
    /// It is scheduled however little time is left, because a renewal may add a whole period. If the maximum
    /// TTL caps renewals, each adds whole seconds less than the one before, so there are not many.
    fn regular_renewal(end: Instant) -> Instant {
        let now = Instant::now();
        now + jittered(end.saturating_duration_since(now) * 2 / 3).max(MIN_PAUSE)
    }
}

fn pause_after_failed_lookup(kind: ErrorKind) -> Duration {
    match kind {
        ErrorKind::Denied | ErrorKind::KeyNotFound | ErrorKind::TokenInvalid => LONG_PAUSE,
        _ => MAX_PAUSE_DENIED,
    }
}

/// 90 to 100 % of `pause`, at random, so that nodes that were started together do not send their requests at the
/// same time.
#[must_use]
pub fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.9..=1.0))
}

#[cfg(test)]
mod tests;
