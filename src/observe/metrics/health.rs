//! The metrics of the session and its health.

use prometheus::{
    Histogram, IntGauge, IntGaugeVec, Registry, histogram_opts, register_histogram_with_registry,
    register_int_gauge_vec_with_registry, register_int_gauge_with_registry,
};
use transit_client::metrics::LATENCY_BUCKETS;

use crate::observe::labels::HealthState;

/// The metrics of the session and its health.
#[derive(Debug)]
pub struct HealthMetrics {
    /// The duration of session health checks, in seconds.
    pub check_seconds: Histogram,
    session_generation: IntGauge,
    state: IntGaugeVec,
}

impl HealthMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            check_seconds: register_histogram_with_registry!(
                histogram_opts!(
                    "health_check_duration_seconds",
                    "Duration of session health checks.",
                    LATENCY_BUCKETS.to_vec()
                ),
                registry
            )?,
            session_generation: register_int_gauge_with_registry!(
                "session_generation",
                "Generation of the session in use; 0 before the first session.",
                registry
            )?,
            state: register_int_gauge_vec_with_registry!(
                "health",
                "1 for the current state of the session, 0 for the others.",
                &["state"],
                registry
            )?,
        };
        metrics.set_state(HealthState::Unknown);
        Ok(metrics)
    }

    /// Sets the generation of the session in use. Generations start at 1.
    pub fn set_session_generation(&self, generation: u64) {
        self.session_generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
    }

    /// Sets the health state.
    pub fn set_state(&self, state: HealthState) {
        for other in HealthState::ALL {
            self.state.with_label_values(&[other.label()]).set(i64::from(other == state));
        }
    }
}
