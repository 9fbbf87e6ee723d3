//! The metrics of the Vault token.

use std::{sync::Mutex, time::Duration};

use prometheus::{
    Gauge, IntCounterVec, Registry, register_gauge_with_registry, register_int_counter_vec_with_registry,
};
use tokio::time::Instant;

use super::{WallClock, unix_seconds};
use crate::observe::labels::RenewalResult;

/// The metrics of the Vault token.
#[derive(Debug)]
pub struct TokenMetrics {
    clock: WallClock,
    expiry: Gauge,
    lease: Gauge,
    renewals: IntCounterVec,
    times: Mutex<TokenTimes>,
    ttl: Gauge,
}

/// The times of the token in use; `None` if it does not expire or the time is not known.
#[derive(Clone, Copy, Debug, Default)]
struct TokenTimes {
    /// By the monotonic clock: the time of day can be set while the token is in use.
    expiry: Option<Instant>,
    longest_ttl: Option<Duration>,
}

impl TokenMetrics {
    pub(super) fn register(registry: &Registry, clock: WallClock) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            clock,
            expiry: register_gauge_with_registry!(
                "token_expiry_timestamp_seconds",
                "Unix time at which the Vault token expires; 0 if it does not expire or the time is not known.",
                registry
            )?,
            lease: register_gauge_with_registry!(
                "token_lease_seconds",
                "Longest TTL seen for the Vault token in use; 0 if it does not expire.",
                registry
            )?,
            renewals: register_int_counter_vec_with_registry!(
                "token_renewals_total",
                "Token renewals by result.",
                &["result"],
                registry
            )?,
            times: Mutex::default(),
            ttl: register_gauge_with_registry!(
                "token_ttl_seconds",
                "TTL of the Vault token at its last lookup or renewal; 0 if it does not expire.",
                registry
            )?,
        };
        for result in RenewalResult::ALL {
            metrics.renewals.with_label_values(&[result.label()]);
        }
        Ok(metrics)
    }

    /// Sets the TTL of a token that replaces the one in use; see [`Self::set_ttl`].
    pub fn replaced(&self, ttl: Option<Duration>) {
        self.update(|_| TokenTimes::default(), ttl);
    }

    /// Sets the TTL of the token in use; `None` if it does not expire or the TTL is not known.
    pub fn set_ttl(&self, ttl: Option<Duration>) {
        self.update(|times| times, ttl);
    }

    /// Counts a renewal with this result.
    pub fn renewal(&self, result: RenewalResult) {
        self.renewals.with_label_values(&[result.label()]).inc();
    }

    fn update(&self, before: impl FnOnce(TokenTimes) -> TokenTimes, ttl: Option<Duration>) {
        if let Ok(mut times) = self.times.lock() {
            let longest_ttl = before(*times).longest_ttl.max(ttl);
            *times = TokenTimes { expiry: ttl.map(|ttl| Instant::now() + ttl), longest_ttl };
            self.lease.set(seconds(longest_ttl));
            self.ttl.set(seconds(ttl));
        }
    }

    /// Converts the expiry to the time of day, which may have been set since the last call.
    pub(super) fn update_expiry(&self) {
        let expiry = self.times.lock().ok().and_then(|times| times.expiry);
        let time_of_day = expiry.map(|expiry| {
            let now = Instant::now();
            let left = expiry.saturating_duration_since(now).as_secs_f64();
            let overdue = now.saturating_duration_since(expiry).as_secs_f64();
            unix_seconds((self.clock)()) + left - overdue
        });
        self.expiry.set(time_of_day.unwrap_or_default());
    }
}

/// The exported value; 0 stands for `None`.
fn seconds(time: Option<Duration>) -> f64 {
    time.map_or(0.0, |time| time.as_secs_f64())
}
