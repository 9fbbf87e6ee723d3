//! What follows from the outcome of an attempt, and from its silence: for its node, for the queue, and for the
//! call.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Attempts, Ended, ExchangeOutcome, NextStep, Request, SILENCE_TIMEOUT, is_no_answer};
use crate::{
    ErrorKind, TransitError,
    metrics::{HedgeResult, RetryReason},
    operation::VaultOperation,
    vault::{
        failover::{acceptance::RefusalWeight, replay::Replay},
        node::Node,
    },
};

impl<T> Attempts<'_, T> {
    /// Ejects the node, if the outcome of this request may do so.
    fn node_failed(&self, node: &Node, error: &TransitError, retry_after: Option<Duration>) {
        if self.request.affects_node_health {
            self.pool.failed(node, error, retry_after);
        }
    }

    /// Draws the consequences of attempts that have become silent: their nodes are ejected, if others are
    /// healthy. If the queue is empty, all nodes get another chance: the ejected ones, which may work again, and
    /// the silent ones, because a new connection may work where the old one is broken. The queue has no effect
    /// while as many requests are in flight as there may be.
    pub(super) fn note_silence(&mut self, now: Instant, queue: &mut VecDeque<Arc<Node>>) {
        let mut silent = Vec::new();
        for attempt in &mut self.in_flight {
            if !attempt.is_silent && now >= attempt.started + SILENCE_TIMEOUT {
                attempt.is_silent = true;
                silent.push((Arc::clone(&attempt.node), attempt.has_trial));
            }
        }
        if queue.is_empty() && !silent.is_empty() {
            let is_asked = |id: usize| self.in_flight.iter().any(|attempt| attempt.node.id == id);
            let mut nodes = self.pool.nodes();
            // The sort is stable: the order stays within the asked nodes and within the others.
            nodes.sort_by_key(|node| is_asked(node.id));
            nodes.retain(|node| !self.repeated.contains(&node.id));
            self.repeated.extend(nodes.iter().map(|node| node.id));
            queue.extend(nodes);
        }
        for (node, had_trial) in silent {
            // It is checked for each node: the second may be the last healthy one, because the first was
            // ejected just now.
            let health = self.pool.health_by_id();
            let others_are_healthy = health.iter().any(|(id, is_healthy)| *is_healthy && *id != node.id);
            let message = format!(
                "Vault at {} has been silent for {} s: {}",
                node.name,
                SILENCE_TIMEOUT.as_secs(),
                node.silence_hint()
            );
            let error = TransitError::new(ErrorKind::Unreachable, message);
            self.notify_observer(&error);
            if others_are_healthy || had_trial {
                self.node_failed(&node, &error, None);
            }
        }
    }

    /// Takes an attempt that has ended out of those in flight, and applies its outcome.
    pub(super) fn ended(&mut self, ended: Ended, queue: &mut VecDeque<Arc<Node>>) -> NextStep<T> {
        let Ended { exchanged, node, started } = ended;
        let index = self
            .in_flight
            .iter()
            .position(|attempt| attempt.node.id == node.id && attempt.started == started);
        let attempt = index.map(|index| self.in_flight.swap_remove(index));
        let is_hedge = attempt.as_ref().is_some_and(|attempt| attempt.is_hedge);
        let Request { http, operation, .. } = self.request;
        let outcome = ExchangeOutcome::of(operation, http, exchanged, self.parse);
        self.metrics.request(&node.name, operation, outcome.metric(), started.elapsed());
        if is_hedge {
            self.hedge_ended(matches!(outcome, ExchangeOutcome::Success(_)));
        }
        let ends_with = match self.request.replay {
            Replay::IfUnsent => outcome.without_replay(),
            Replay::Safe => None,
        };
        let next_step = self.apply(outcome, &node, started, queue);
        if attempt.is_some_and(|attempt| attempt.has_trial) {
            // It has no effect if the outcome showed that the node is healthy, or failed.
            node.return_trial();
        }
        ends_with.map_or(next_step, NextStep::Refuse)
    }

    /// Applies an outcome to the node, the pool and the queue, and says what follows.
    fn apply(
        &mut self,
        outcome: ExchangeOutcome<T>,
        node: &Arc<Node>,
        started: Instant,
        queue: &mut VecDeque<Arc<Node>>,
    ) -> NextStep<T> {
        let affects_node_health = self.request.affects_node_health;
        match outcome {
            ExchangeOutcome::Success(answer) => {
                self.request.acceptance.accepted_by(node.id);
                if affects_node_health {
                    self.pool.succeeded(node);
                    self.record_latencies(started);
                }
                NextStep::Answer(answer)
            }
            ExchangeOutcome::NodeFailed { error, reason, retry_after, .. } => {
                self.node_failed(node, &error, retry_after);
                self.ask_another(reason, error)
            }
            ExchangeOutcome::NotServed { error, reason, .. } => {
                if affects_node_health {
                    node.succeeded();
                }
                self.nodes_lag |= reason == RetryReason::VersionUnavailable;
                self.ask_another(reason, error)
            }
            ExchangeOutcome::Refused { error, .. } => {
                if affects_node_health {
                    // The node is healthy, but is not preferred: only successes change the order.
                    node.succeeded();
                }
                self.refused(node, error, queue)
            }
            ExchangeOutcome::Broken(error) => {
                // The server may have closed an idle connection: the node is asked once more, on another one.
                if self.repeated.contains(&node.id) {
                    self.node_failed(node, &error, None);
                } else {
                    self.repeated.push(node.id);
                    queue.push_back(Arc::clone(node));
                }
                self.ask_another(RetryReason::Broken, error)
            }
            ExchangeOutcome::DeadlineExceeded(error) => {
                self.last_error.get_or_insert(error);
                NextStep::DeadlineExceeded
            }
            ExchangeOutcome::Unusable(error) => NextStep::Refuse(error),
        }
    }

    /// Draws the consequences of a refusal that is recognised. A refusal of token, policy or key counts only
    /// from a node that has worked for the session, because another node may belong to another cluster.
    fn refused(
        &mut self,
        node: &Arc<Node>,
        error: TransitError,
        queue: &mut VecDeque<Arc<Node>>,
    ) -> NextStep<T> {
        let Request { acceptance, operation, token_is_fresh, .. } = self.request;
        if !matches!(error.kind, ErrorKind::Denied | ErrorKind::KeyNotFound | ErrorKind::TokenInvalid) {
            return NextStep::Refuse(error);
        }
        match acceptance.weigh_refusal(node.id, &self.pool.health_by_id()) {
            RefusalWeight::Counts if error.kind == ErrorKind::TokenInvalid && token_is_fresh => {
                self.ask_another(RetryReason::FreshToken, error)
            }
            // While a node starts, a mount or namespace may be missing for a moment. A key that is taken for
            // lost stops the writes of the API server, so a second answer must confirm it.
            RefusalWeight::Counts
                if error.kind == ErrorKind::KeyNotFound
                    && operation == VaultOperation::ReadKey
                    && !std::mem::replace(&mut self.key_was_missing, true) =>
            {
                self.nodes_lag = true;
                self.ask_another(RetryReason::Unconfirmed, error)
            }
            RefusalWeight::Counts => NextStep::Refuse(error),
            RefusalWeight::AskNode(other) => {
                let unconfirmed = unconfirmed(node, &error);
                if self.in_flight.iter().any(|attempt| attempt.node.id == other) {
                    self.last_error = Some(unconfirmed);
                    return NextStep::Wait;
                }
                queue.retain(|node| node.id != other);
                if let Some(other) = self.pool.nodes().into_iter().find(|node| node.id == other) {
                    queue.push_front(other);
                }
                self.ask_another(RetryReason::Unconfirmed, unconfirmed)
            }
            RefusalWeight::Unconfirmed => {
                self.ask_another(RetryReason::Unconfirmed, unconfirmed(node, &error))
            }
        }
    }

    /// Keeps the error in case no other node answers. A node that lags, or does not know the token, says more
    /// than one that does not answer.
    fn ask_another(&mut self, reason: RetryReason, error: TransitError) -> NextStep<T> {
        self.notify_observer(&error);
        let says_less =
            is_no_answer(error.kind) && self.last_error.as_ref().is_some_and(|last| !is_no_answer(last.kind));
        if !says_less {
            self.last_error = Some(error);
        }
        NextStep::AskAnother(reason)
    }

    /// Notes the latency of a call, and that of the attempts that it leaves behind.
    fn record_latencies(&self, started: Instant) {
        if self.request.operation.is_call() {
            self.pool.hedge.record_latency(started.elapsed());
            self.in_flight.iter().for_each(|it| self.pool.hedge.record_latency(it.started.elapsed()));
        }
    }

    pub(super) fn hedge_ended(&self, won: bool) {
        if won {
            self.pool.hedge.won();
            self.metrics.hedge(HedgeResult::Won);
        } else {
            self.pool.hedge.lost();
            self.metrics.hedge(HedgeResult::Lost);
        }
    }
}

/// The error for a refusal that no other node has confirmed. It says that the node could not be asked, and
/// nothing about the token, the policy or the key.
fn unconfirmed(node: &Node, error: &TransitError) -> TransitError {
    TransitError::new(
        ErrorKind::Unreachable,
        format!(
            "Vault at {} refuses what another address accepts: is it of another cluster, or not yet up to date? \
             It says: {error}",
            node.name
        ),
    )
}
