//! The metrics of requests to Vault. The program that uses the client owns the registry.
//!
//! Each label value comes from a fixed set in this crate, or, for nodes, from the endpoint in use.

use std::{collections::BTreeSet, sync::RwLock, time::Duration};

use prometheus::{
    HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Registry, histogram_opts,
    register_histogram_vec_with_registry, register_int_counter_vec_with_registry,
    register_int_counter_with_registry, register_int_gauge_vec_with_registry,
};

/// From 0.1 ms to 10 s: Transit answers in less than a millisecond, and kube-apiserver waits for seconds.
pub const LATENCY_BUCKETS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

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
        for result in ["denied", "lost", "won"] {
            metrics.hedges.with_label_values(&[result]);
        }
        for reason in [
            "broken",
            "connect",
            "fresh_token",
            "version_unavailable",
            "round",
            "silent",
            "token_invalid",
            "unconfirmed",
            "unreachable",
            "waited",
        ] {
            metrics.retries.with_label_values(&[reason]);
        }
        Ok(metrics)
    }

    /// Counts a hedge that has `won` or `lost`, or was `denied` by its budget.
    pub fn hedge(&self, result: &'static str) {
        self.hedges.with_label_values(&[result]).inc();
    }

    /// Counts a request that is sent again.
    pub fn retry(&self, reason: &'static str) {
        self.retries.with_label_values(&[reason]).inc();
    }

    /// Records a request to Vault that has ended.
    pub fn request(&self, operation: &'static str, outcome: &'static str, took: Duration) {
        self.requests.with_label_values(&[operation, outcome]).inc();
        self.request_seconds.with_label_values(&[operation, outcome]).observe(took.as_secs_f64());
    }

    /// Records a request to the node with this address; other addresses than those in use are not counted.
    pub fn node_request(&self, node: &str, outcome: &'static str) {
        if self.nodes.read().is_ok_and(|nodes| nodes.contains(node)) {
            self.node_requests.with_label_values(&[node, outcome]).inc();
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

    /// Sets whether the node with this address gets calls; other addresses than those in use have no series.
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

    #[test]
    fn nodes_are_those_of_the_config_and_no_others() {
        let metrics = ClientMetrics::register(&Registry::new()).unwrap();
        metrics.set_nodes(["https://one".to_owned()]);
        metrics.node_request("https://one", "ok");
        metrics.node_request("https://two", "ok");
        metrics.set_node_up("https://one", true);
        metrics.set_node_up("https://two", true);
        let text = metrics.render();
        assert!(text.contains("vault_node_requests_total{node=\"https://one\",outcome=\"ok\"} 1"), "{text}");
        assert!(text.contains("vault_node_up{node=\"https://one\"} 1"), "{text}");
        assert!(!text.contains("https://two"), "{text}");
        metrics.set_nodes(["https://two".to_owned()]);
        metrics.node_request("https://one", "ok");
        metrics.set_node_up("https://one", true);
        assert!(!metrics.render().contains("https://one"));
    }
}
