//! The metrics of kube-apiserver about its calls to the plugin.

use super::api::Api;

const KMS_CALLS: &str = "apiserver_envelope_encryption_kms_operations_latency_seconds_count";

/// Counts of KMS calls, as kube-apiserver reports them.
#[derive(Clone, Copy, Default)]
pub struct KmsCalls {
    pub all: f64,
    pub failed: f64,
}

impl KmsCalls {
    /// The counts since this API server started.
    pub async fn of(api: &Api) -> Self {
        let calls = async |labels: &[(&str, &str)]| api.metric(KMS_CALLS, labels).await;
        // Read in this order, so that a call between the two requests counts as failed and is not lost.
        let succeeded = calls(&[("grpc_status_code", "OK")]).await;
        let all = calls(&[]).await;
        Self { all, failed: all - succeeded }
    }

    /// The calls after `before`.
    pub fn since(self, before: Self) -> Self {
        Self { all: self.all - before.all, failed: self.failed - before.failed }
    }

    /// The sum of both.
    pub fn and(self, other: Self) -> Self {
        Self { all: self.all + other.all, failed: self.failed + other.failed }
    }
}
