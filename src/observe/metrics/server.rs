//! The metrics of the KMS sockets and their connections.

use prometheus::{
    IntCounter, IntCounterVec, IntGauge, Registry, register_int_counter_vec_with_registry,
    register_int_counter_with_registry, register_int_gauge_with_registry,
};

use crate::observe::labels::MalformedRequest;

/// The metrics of the KMS sockets and their connections.
#[derive(Debug)]
pub struct ServerMetrics {
    /// Errors of `accept(2)`, such as no free file descriptor.
    pub accept_errors: IntCounter,
    /// The number of open connections.
    pub connections_open: IntGauge,
    /// Connections that were rejected because of the uid of the client.
    pub connections_rejected: IntCounter,
    /// Connections that sent no complete HTTP/2 preface in time.
    pub handshake_timeouts: IntCounter,
    malformed_requests: IntCounterVec,
    superseded: IntGauge,
}

impl ServerMetrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            accept_errors: register_int_counter_with_registry!(
                "accept_errors_total",
                "Errors when accepting connections on the KMS sockets.",
                registry
            )?,
            connections_open: register_int_gauge_with_registry!(
                "connections_open",
                "Open connections on the KMS sockets.",
                registry
            )?,
            connections_rejected: register_int_counter_with_registry!(
                "connections_rejected_total",
                "Connections that were rejected because the client's uid is not allowed.",
                registry
            )?,
            handshake_timeouts: register_int_counter_with_registry!(
                "handshake_timeouts_total",
                "Connections that sent no complete HTTP/2 preface in time.",
                registry
            )?,
            malformed_requests: register_int_counter_vec_with_registry!(
                "malformed_requests_total",
                "HTTP/2 requests that were refused as malformed, by what is malformed.",
                &["what"],
                registry
            )?,
            superseded: register_int_gauge_with_registry!(
                "superseded",
                "1 while a successor listens at the path of the KMS socket.",
                registry
            )?,
        };
        for what in MalformedRequest::ALL {
            metrics.malformed_requests.with_label_values(&[what.label()]);
        }
        Ok(metrics)
    }

    /// Counts a request that the HTTP/2 library refused.
    pub fn malformed_request(&self, what: MalformedRequest) {
        self.malformed_requests.with_label_values(&[what.label()]).inc();
    }

    /// Sets whether a successor listens at the path of the KMS socket.
    pub fn set_superseded(&self, superseded: bool) {
        self.superseded.set(i64::from(superseded));
    }
}
