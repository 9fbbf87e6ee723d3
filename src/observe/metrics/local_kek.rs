//! The metrics of local KEKs.

use std::time::Duration;

use prometheus::{Gauge, IntGauge, Registry, register_gauge_with_registry, register_int_gauge_with_registry};

use super::{WallClock, unix_seconds};

/// The metrics of local KEKs.
#[derive(Debug)]
pub struct LocalKekMetrics {
    clock: WallClock,
    expiry: Gauge,
    /// The number of local KEKs in memory.
    pub in_memory: IntGauge,
    unwrapped: Gauge,
}

impl LocalKekMetrics {
    pub(super) fn register(registry: &Registry, clock: WallClock) -> Result<Self, prometheus::Error> {
        Ok(Self {
            clock,
            expiry: register_gauge_with_registry!(
                "local_kek_expiry_timestamp_seconds",
                "Unix time until which the local KEK that encrypts is used if Vault stays unavailable; 0 if there is \
                 none.",
                registry
            )?,
            in_memory: register_int_gauge_with_registry!("local_keks", "Local KEKs in memory.", registry)?,
            unwrapped: register_gauge_with_registry!(
                "local_kek_unwrapped_timestamp_seconds",
                "Unix time at which Vault last wrapped or unwrapped the local KEK that encrypts; 0 if there is none.",
                registry
            )?,
        })
    }

    /// Sets the times of the local KEK that encrypts, if there is one: how long ago Vault unwrapped it, and
    /// how much longer it is used if Vault stays unavailable.
    pub fn set_times(&self, times: Option<(Duration, Duration)>) {
        let now = unix_seconds((self.clock)());
        let unwrapped = times.map(|(age, _)| now - age.as_secs_f64());
        let expiry = times.map(|(_, left)| now + left.as_secs_f64());
        self.unwrapped.set(unwrapped.unwrap_or_default());
        self.expiry.set(expiry.unwrap_or_default());
    }
}
