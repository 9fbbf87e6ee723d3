//! What kube-apiserver says of its own calls to the plugin.

use super::api::Api;

const KMS_CALLS: &str = "apiserver_envelope_encryption_kms_operations_latency_seconds_count";

/// What kube-apiserver says of its calls.
#[derive(Clone, Copy, Default)]
pub struct KmsCalls {
    pub all: f64,
    pub failed: f64,
}

impl KmsCalls {
    /// Since this API server started.
    pub async fn of(api: &Api) -> Self {
        let calls = async |labels: &[(&str, &str)]| api.metric(KMS_CALLS, labels).await;
        // In this order, a call in between counts as one that failed.
        let well = calls(&[("grpc_status_code", "OK")]).await;
        let all = calls(&[]).await;
        Self { all, failed: all - well }
    }

    /// Those that came after `before`.
    pub fn since(self, before: Self) -> Self {
        Self { all: self.all - before.all, failed: self.failed - before.failed }
    }

    /// Those of both.
    pub fn and(self, other: Self) -> Self {
        Self { all: self.all + other.all, failed: self.failed + other.failed }
    }
}
