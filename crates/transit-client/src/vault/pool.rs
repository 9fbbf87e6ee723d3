//! The pool: the nodes of one Vault, their order, and what their health means for callers.
//!
//! A pool lives as long as its endpoint stays the same. Several sessions use it, one after the other or at
//! the same time, so a new token needs no new connections.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, timeout_at};

use super::{
    failover::{
        budget::{Budget, BudgetLimits},
        hedge::Hedge,
    },
    members::Members,
    node::{ConnectionSettings, Node, PoolSignals},
    node_health::Timings,
    resolver::{Resolver, SystemResolver},
};
use crate::{ErrorKind, TransitError, endpoint::Endpoint};

/// The nodes of one Vault, with their connections and their health.
pub struct Pool {
    /// Pays for the extra requests of candidates and of token lookups and renewals. It is separate from
    /// [`Self::budget`], so that they never take a retry from a call.
    pub(super) background_budget: Budget,
    /// Pays for the extra requests of calls.
    pub(super) budget: Budget,
    pub(super) hedge: Hedge,
    /// A session on the pool is in use: calls depend on the health of its nodes.
    in_use: AtomicBool,
    members: Members,
    /// The id of the node that answered last. The next call asks it first.
    preferred: AtomicUsize,
    signals: Arc<PoolSignals>,
}

impl Pool {
    /// Prepares connections to the addresses of `endpoint`. A name with several IP addresses is several
    /// nodes.
    ///
    /// It waits up to 2 s until the names are resolved, and for nothing else: the first call establishes the
    /// connections. Names that are resolved later add their nodes later. The pool checks the health of its
    /// nodes, and resolves names again, in background tasks that end when the pool is dropped.
    ///
    /// # Errors
    /// If a certificate or key cannot be used, or if there are only names, and none can be resolved.
    ///
    /// # Panics
    /// Outside a Tokio runtime with time and I/O enabled.
    pub async fn new(endpoint: &Endpoint) -> Result<Self, TransitError> {
        Self::with(endpoint, Timings::default(), Arc::new(SystemResolver)).await
    }

    pub(super) async fn with(
        endpoint: &Endpoint,
        timings: Timings,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Self, TransitError> {
        let settings = ConnectionSettings {
            connect_timeout: endpoint.connect_timeout,
            server_name: endpoint.server_name.clone(),
            timings,
            tls: endpoint.tls.clone(),
        };
        let signals = Arc::<PoolSignals>::default();
        let members = Members::resolve(&endpoint.addresses, settings, resolver, Arc::clone(&signals)).await?;
        Ok(Self {
            background_budget: Budget::new(BudgetLimits::RETRIES),
            budget: Budget::new(BudgetLimits::RETRIES),
            hedge: Hedge::new(),
            in_use: AtomicBool::new(false),
            members,
            preferred: AtomicUsize::new(0),
            signals,
        })
    }

    /// The configured addresses, and whether calls go there. An address gets no calls while all its nodes
    /// are ejected.
    #[must_use]
    pub fn health(&self) -> Vec<(String, bool)> {
        let mut up = BTreeMap::new();
        for node in self.nodes() {
            *up.entry(node.name.clone()).or_default() |= !node.is_ejected();
        }
        up.into_iter().collect()
    }

    /// Notes that calls depend on the health of the nodes from now on.
    pub(super) fn mark_in_use(&self) {
        self.in_use.store(true, Ordering::Relaxed);
    }

    /// Whether calls depend on the health of the nodes.
    pub(super) fn is_in_use(&self) -> bool {
        self.in_use.load(Ordering::Relaxed)
    }

    /// All nodes: the healthy ones first, and among these the one that answered last.
    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        let mut nodes = self.members.nodes();
        let preferred = self.preferred.load(Ordering::Relaxed);
        if let Some(first) = nodes.iter().position(|node| node.id == preferred) {
            nodes.rotate_left(first);
        }
        // The sort is stable: the order stays within the healthy ones and within the others.
        nodes.sort_by_key(|node| !node.is_healthy());
        nodes
    }

    /// As [`Pool::nodes`], without those that are ejected or on trial.
    pub(super) fn healthy(&self) -> Vec<Arc<Node>> {
        let mut nodes = self.nodes();
        nodes.retain(|node| node.is_healthy());
        nodes
    }

    /// As [`Pool::nodes`], without those that may not be sent one more call now.
    pub(super) fn ready(&self) -> Vec<Arc<Node>> {
        let mut nodes = self.nodes();
        nodes.retain(|node| node.is_ready());
        nodes
    }

    /// Whether a node is on trial. Its outcome is worth waiting for.
    pub(super) fn has_trial(&self) -> bool {
        self.members.nodes().iter().any(|node| node.is_on_trial())
    }

    /// The ids of all nodes, and whether each is healthy.
    pub(super) fn health_by_id(&self) -> Vec<(usize, bool)> {
        self.members.nodes().iter().map(|node| (node.id, node.is_healthy())).collect()
    }

    /// How long no node has been healthy; `None` if one is.
    pub(super) fn outage(&self) -> Option<Duration> {
        let failing: Option<Vec<Instant>> =
            self.members.nodes().iter().map(|node| node.failing_since()).collect();
        Some(failing?.into_iter().max()?.elapsed())
    }

    /// Notes that the node did what was asked.
    pub(super) fn succeeded(&self, node: &Node) {
        node.succeeded();
        self.prefer(node);
        self.budget.earn();
        self.hedge.earn();
    }

    /// Makes the node the first one to ask.
    pub(super) fn prefer(&self, node: &Node) {
        self.preferred.store(node.id, Ordering::Relaxed);
    }

    /// Ejects the node: it failed with `error`, and asked for a pause of `retry_after`.
    pub(super) fn failed(&self, node: &Node, error: &TransitError, retry_after: Option<Duration>) {
        node.failed(error, retry_after);
        if self.healthy().is_empty() {
            self.signals.no_healthy_node.notify_waiters();
        }
    }

    /// The error of the node that failed last.
    pub(super) fn last_failure(&self) -> TransitError {
        let nodes = self.members.nodes();
        let failures = nodes.iter().filter_map(|node| node.last_failure());
        failures.max_by_key(|(when, _)| *when).map_or_else(
            || {
                TransitError::new(
                    ErrorKind::Unreachable,
                    "no node of Vault is available: look at vault.addresses and the log",
                )
            },
            |(_, error)| error,
        )
    }

    /// Waits until a node may be sent a call. Returns false if none may until the time `until`: at that time,
    /// or at once if every node asked for a longer pause.
    pub(super) async fn wait_for_a_node(&self, until: Instant) -> bool {
        let mut node_ready = self.signals.node_ready();
        let _waiting = WaitingCaller::new(&self.signals);
        let nodes = self.members.nodes();
        nodes.iter().for_each(|node| node.awaited());
        if nodes.iter().all(|node| node.not_before().is_some_and(|then| then > until)) {
            return false;
        }
        timeout_at(until, async { while self.ready().is_empty() && node_ready.changed().await.is_ok() {} })
            .await
            .is_ok()
    }
}

/// Counts a caller that waits, until it is dropped.
struct WaitingCaller<'a>(&'a PoolSignals);

impl<'a> WaitingCaller<'a> {
    fn new(signals: &'a PoolSignals) -> Self {
        signals.waiting_callers.fetch_add(1, Ordering::Relaxed);
        Self(signals)
    }
}

impl Drop for WaitingCaller<'_> {
    fn drop(&mut self) {
        self.0.waiting_callers.fetch_sub(1, Ordering::Relaxed);
    }
}
