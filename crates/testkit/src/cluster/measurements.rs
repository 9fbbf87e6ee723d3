//! What was measured on the way, and with which Kubernetes.

use super::tools::versions;
use crate::measurements;

/// Notes a line. Nothing is asserted on it.
pub fn figure(scenario: &str, text: &str) {
    measurements::figure(scenario, &format!("{text} ({})", versions()));
}
