//! Measurements with the versions of Kubernetes and etcd.

use super::tools::versions;
use crate::measurements;

/// Appends a line to the measurements. Nothing checks it.
pub fn record_measurement(scenario: &str, text: &str) {
    measurements::record_measurement(scenario, &format!("{text} ({})", versions()));
}
