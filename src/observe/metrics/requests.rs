//! The metrics of KMS calls.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, Registry, histogram_opts,
    register_histogram_vec_with_registry, register_histogram_with_registry,
    register_int_counter_vec_with_registry, register_int_counter_with_registry,
};
use transit_client::metrics::LATENCY_BUCKETS;

/// From a single Decrypt to the largest batch.
const BATCH_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// The metrics of KMS calls.
#[derive(Debug)]
pub struct RequestMetrics {
    /// The number of Decrypts in one request to Vault.
    pub batch_size: Histogram,
    calls: IntCounterVec,
    /// Decrypts that were answered with the result of a concurrent Decrypt.
    pub decrypts_deduplicated: IntCounter,
    seconds: HistogramVec,
}

impl RequestMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            batch_size: register_histogram_with_registry!(
                histogram_opts!(
                    "decrypt_batch_size",
                    "Decrypts in one request to Vault.",
                    BATCH_BUCKETS.to_vec()
                ),
                registry
            )?,
            calls: register_int_counter_vec_with_registry!(
                "requests_total",
                "KMS calls by method and gRPC code.",
                &["method", "code"],
                registry
            )?,
            decrypts_deduplicated: register_int_counter_with_registry!(
                "decrypts_deduplicated_total",
                "Decrypts that were answered with the result of a concurrent Decrypt of the same ciphertext.",
                registry
            )?,
            seconds: register_histogram_vec_with_registry!(
                histogram_opts!(
                    "request_duration_seconds",
                    "Latency of KMS calls.",
                    LATENCY_BUCKETS.to_vec()
                ),
                &["method", "code"],
                registry
            )?,
        })
    }

    /// Records a KMS call that has ended.
    pub fn call(&self, method: &'static str, code: &'static str, took: Duration) {
        self.calls.with_label_values(&[method, code]).inc();
        self.seconds.with_label_values(&[method, code]).observe(took.as_secs_f64());
    }
}
