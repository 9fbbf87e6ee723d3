//! The metrics of requests to Vault. The program that uses the client owns the registry.
//!
//! Each label value comes from a fixed set in this crate, or, for nodes, from the endpoint in use. The
//! names here have no prefix: the daemon gives its registry the prefix `transit_kms_`.

use std::{collections::BTreeSet, sync::RwLock, time::Duration};

use prometheus::{
    HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Registry, histogram_opts,
    register_histogram_vec_with_registry, register_int_counter_vec_with_registry,
    register_int_counter_with_registry, register_int_gauge_vec_with_registry,
};

use crate::{ErrorKind, operation::VaultOperation};

/// The upper bounds of the latency buckets in seconds, from 0.1 ms to 10 s: Transit answers in less than a
/// millisecond, and kube-apiserver waits for seconds.
pub const LATENCY_BUCKETS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Why a request is sent again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RetryReason {
    /// The node closed the connection before it answered.
    Broken,
    /// No connection to the node could be established.
    Connect,
    /// The node does not know the new token yet.
    FreshToken,
    /// All nodes were tried without success.
    Round,
    /// Vault refused the request, and the session was replaced in the meantime.
    SessionReplaced,
    /// The node has not answered for a second.
    Silent,
    /// The token became invalid, and the call waited for a new one.
    TokenInvalid,
    /// The node refused the request, and another node must confirm the refusal.
    Unconfirmed,
    /// The node answered, and cannot serve the request.
    Unreachable,
    /// The node does not know the key version yet.
    VersionUnavailable,
    /// No node was available, and the call waited for one.
    Waited,
}

impl RetryReason {
    /// Every reason, in the order of the labels.
    pub const ALL: [Self; 11] = [
        Self::Broken,
        Self::Connect,
        Self::FreshToken,
        Self::Round,
        Self::SessionReplaced,
        Self::Silent,
        Self::TokenInvalid,
        Self::Unconfirmed,
        Self::Unreachable,
        Self::VersionUnavailable,
        Self::Waited,
    ];

    /// The value of the label `reason`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Broken => "broken",
            Self::Connect => "connect",
            Self::FreshToken => "fresh_token",
            Self::Round => "round",
            Self::SessionReplaced => "session_replaced",
            Self::Silent => "silent",
            Self::TokenInvalid => "token_invalid",
            Self::Unconfirmed => "unconfirmed",
            Self::Unreachable => "unreachable",
            Self::VersionUnavailable => "version_unavailable",
            Self::Waited => "waited",
        }
    }
}

/// How a hedge ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HedgeResult {
    /// The hedging budget was empty, or hedging was paused: the hedge was not sent.
    Denied,
    /// The first request was faster, or the hedge failed.
    Lost,
    /// The hedge was faster than the first request.
    Won,
}

impl HedgeResult {
    /// Every result, in the order of the labels.
    pub const ALL: [Self; 3] = [Self::Denied, Self::Lost, Self::Won];

    /// The value of the label `result`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Lost => "lost",
            Self::Won => "won",
        }
    }
}

/// How a request to Vault ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RequestOutcome {
    /// The request was abandoned: another one was faster, or its caller left.
    Cancelled,
    /// Vault refused the request, or gave no usable answer.
    Failed(ErrorKind),
    /// Vault did what was asked.
    Ok,
}

impl RequestOutcome {
    /// The value of the label `outcome`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Failed(kind) => kind.name(),
            Self::Ok => "ok",
        }
    }
}

/// What a client counts and measures.
#[derive(Debug)]
pub struct ClientMetrics {
    hedges: IntCounterVec,
    node_requests: IntCounterVec,
    node_up: IntGaugeVec,
    /// The addresses of the endpoint in use.
    nodes: RwLock<BTreeSet<String>>,
    request_seconds: HistogramVec,
    requests: IntCounterVec,
    retries: IntCounterVec,
    /// Requests to another node that the retry budget did not allow.
    pub retry_budget_exhausted: IntCounter,
}

impl ClientMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// If `registry` has a metric of the same name.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            hedges: register_int_counter_vec_with_registry!(
                "hedges_total",
                "Second requests made because the first took long, by whether they were faster.",
                &["result"],
                registry
            )?,
            node_requests: register_int_counter_vec_with_registry!(
                "vault_node_requests_total",
                "Requests to Vault by address and outcome.",
                &["node", "outcome"],
                registry
            )?,
            node_up: register_int_gauge_vec_with_registry!(
                "vault_node_up",
                "1 while the address gets calls, 0 while it is ejected.",
                &["node"],
                registry
            )?,
            nodes: RwLock::default(),
            request_seconds: register_histogram_vec_with_registry!(
                histogram_opts!(
                    "vault_request_duration_seconds",
                    "Latency of requests to Vault.",
                    LATENCY_BUCKETS.to_vec()
                ),
                &["operation", "outcome"],
                registry
            )?,
            requests: register_int_counter_vec_with_registry!(
                "vault_requests_total",
                "Requests to Vault by operation and outcome.",
                &["operation", "outcome"],
                registry
            )?,
            retries: register_int_counter_vec_with_registry!(
                "retries_total",
                "Requests sent again, by reason.",
                &["reason"],
                registry
            )?,
            retry_budget_exhausted: register_int_counter_with_registry!(
                "retry_budget_exhausted_total",
                "Requests to another node that the retry budget did not allow.",
                registry
            )?,
        };
        // Known label values start at 0: a rate over a series that appears with its first error would miss
        // that error.
        for result in HedgeResult::ALL {
            metrics.hedges.with_label_values(&[result.label()]);
        }
        for reason in RetryReason::ALL {
            metrics.retries.with_label_values(&[reason.label()]);
        }
        Ok(metrics)
    }

    /// Counts a hedge that has ended, or that was not sent.
    pub fn hedge(&self, result: HedgeResult) {
        self.hedges.with_label_values(&[result.label()]).inc();
    }

    /// Counts a request that is sent again.
    pub fn retry(&self, reason: RetryReason) {
        self.retries.with_label_values(&[reason.label()]).inc();
    }

    /// Records a request to the node with the address `node` that has ended after `took`.
    ///
    /// Addresses other than those in use have no series of their own.
    pub fn request(&self, node: &str, operation: VaultOperation, outcome: RequestOutcome, took: Duration) {
        let labels = [operation.name(), outcome.label()];
        self.requests.with_label_values(&labels).inc();
        self.request_seconds.with_label_values(&labels).observe(took.as_secs_f64());
        if self.nodes.read().is_ok_and(|nodes| nodes.contains(node)) {
            self.node_requests.with_label_values(&[node, outcome.label()]).inc();
        }
    }

    /// Sets the addresses in use; the series of other addresses disappear.
    pub fn set_nodes(&self, addresses: impl IntoIterator<Item = String>) {
        if let Ok(mut nodes) = self.nodes.write() {
            let now: BTreeSet<_> = addresses.into_iter().collect();
            if *nodes != now {
                *nodes = now;
                self.node_requests.reset();
                self.node_up.reset();
            }
        }
    }

    /// Sets whether the node with this address gets calls. Addresses other than those in use have no series.
    pub fn set_node_up(&self, node: &str, up: bool) {
        if self.nodes.read().is_ok_and(|nodes| nodes.contains(node)) {
            self.node_up.with_label_values(&[node]).set(i64::from(up));
        }
    }

    /// All metrics in the text format, for tests.
    #[cfg(test)]
    pub(crate) fn render(&self) -> String {
        use prometheus::core::Collector;
        let all: [&dyn Collector; 7] = [
            &self.hedges,
            &self.node_requests,
            &self.node_up,
            &self.request_seconds,
            &self.requests,
            &self.retries,
            &self.retry_budget_exhausted,
        ];
        let families: Vec<_> =
            all.into_iter().flat_map(Collector::collect).filter(|it| !it.get_metric().is_empty()).collect();
        prometheus::TextEncoder::new().encode_to_string(&families).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> ClientMetrics {
        ClientMetrics::register(&Registry::new()).unwrap()
    }

    #[test]
    fn only_nodes_of_the_endpoint_in_use_have_series() {
        let metrics = metrics();
        let request =
            |node| metrics.request(node, VaultOperation::Encrypt, RequestOutcome::Ok, Duration::ZERO);
        metrics.set_nodes(["https://one".to_owned()]);
        request("https://one");
        request("https://two");
        metrics.set_node_up("https://one", true);
        metrics.set_node_up("https://two", true);
        let text = metrics.render();
        assert!(text.contains("vault_node_requests_total{node=\"https://one\",outcome=\"ok\"} 1"), "{text}");
        assert!(text.contains("vault_node_up{node=\"https://one\"} 1"), "{text}");
        assert!(!text.contains("https://two"), "{text}");
        metrics.set_nodes(["https://two".to_owned()]);
        request("https://one");
        metrics.set_node_up("https://one", true);
        assert!(!metrics.render().contains("https://one"));
    }

    #[test]
    fn every_reason_and_result_starts_at_0() {
        let text = metrics().render();
        for reason in RetryReason::ALL {
            let line = format!("retries_total{{reason=\"{}\"}} 0", reason.label());
            assert!(text.contains(&line), "{line}: {text}");
        }
        for result in HedgeResult::ALL {
            let line = format!("hedges_total{{result=\"{}\"}} 0", result.label());
            assert!(text.contains(&line), "{line}: {text}");
        }
    }
}
