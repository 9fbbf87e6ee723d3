//! The metrics of the config file and its reloads.

use prometheus::{
    Gauge, IntCounterVec, IntGaugeVec, Registry, register_gauge_with_registry,
    register_int_counter_vec_with_registry, register_int_gauge_vec_with_registry,
};

use super::{WallClock, unix_seconds};
use crate::observe::labels::{ConfigState, ReloadResult};

/// The metrics of the config file and its reloads.
#[derive(Debug)]
pub struct ConfigMetrics {
    clock: WallClock,
    last_reload_success: Gauge,
    reloads: IntCounterVec,
    state: IntGaugeVec,
}

impl ConfigMetrics {
    pub(super) fn register(registry: &Registry, clock: WallClock) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            clock,
            last_reload_success: register_gauge_with_registry!(
                "config_last_reload_success_timestamp_seconds",
                "Unix time at which a config was last put in use.",
                registry
            )?,
            reloads: register_int_counter_vec_with_registry!(
                "config_reloads_total",
                "Configs that were read, by result.",
                &["result"],
                registry
            )?,
            state: register_int_gauge_vec_with_registry!(
                "config_state",
                "1 for the state of the newest config, 0 for the others.",
                &["state"],
                registry
            )?,
        };
        metrics.set_state(ConfigState::Pending);
        // Every series starts at 0: the rate of a series that appears with its first event misses that event.
        for result in ReloadResult::ALL {
            metrics.reloads.with_label_values(&[result.label()]);
        }
        Ok(metrics)
    }

    /// Counts a reload with this result, and sets the state of the newest config.
    pub fn reloaded(&self, result: ReloadResult) {
        self.reloads.with_label_values(&[result.label()]).inc();
        if result == ReloadResult::Success {
            self.last_reload_success.set(unix_seconds((self.clock)()));
        }
        self.set_state(result.config_state());
    }

    /// Sets the state of the newest config.
    pub fn set_state(&self, state: ConfigState) {
        for other in ConfigState::ALL {
            self.state.with_label_values(&[other.label()]).set(i64::from(other == state));
        }
    }
}
