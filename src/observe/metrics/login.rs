//! The metrics of logins to Vault.

use prometheus::{IntCounterVec, Registry, register_int_counter_vec_with_registry};
use transit_client::vault::auth::LoginFailure;

/// The value of the label `result` of a login that has brought a token.
const OK: &str = "ok";

/// The metrics of logins to Vault.
#[derive(Debug)]
pub struct LoginMetrics {
    logins: IntCounterVec,
}

impl LoginMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            logins: register_int_counter_vec_with_registry!(
                "logins_total",
                "Logins to Vault by method and result.",
                &["method", "result"],
                registry
            )?,
        })
    }

    /// Exports all results of `method`, so that an alert sees the first failure.
    pub fn configured(&self, method: &str) {
        for result in LoginFailure::ALL.map(LoginFailure::label).into_iter().chain([OK]) {
            self.logins.with_label_values(&[method, result]);
        }
    }

    /// Counts a login with `method`, one of the names in the config. `failure` is `None` if it has brought a token.
    pub fn ended(&self, method: &str, failure: Option<LoginFailure>) {
        let result = failure.map_or(OK, LoginFailure::label);
        self.logins.with_label_values(&[method, result]).inc();
    }
}
