//! Which nodes have accepted a session, and what the refusal of another node is worth.
//!
//! A node that has never done anything for the session may belong to another cluster: a performance
//! secondary does not know the service tokens of the primary, and a stale DNS record leads to another Vault.
//! If such a node refuses the token, the policy or the key, the refusal counts only after the node that
//! accepted the session last has confirmed it.

use std::sync::{Mutex, PoisonError};

/// The nodes that did what a session asked for, by their ids in the pool.
#[derive(Debug, Default)]
pub(crate) struct Acceptance(Mutex<Accepted>);

#[derive(Debug, Default)]
struct Accepted {
    /// In the order of their first success.
    all: Vec<usize>,
    last: Option<usize>,
}

/// What follows from the refusal of one node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum RefusalWeight {
    /// The refusal is the answer.
    Counts,
    /// This node has accepted the session, and must confirm the refusal.
    AskNode(usize),
    /// The node may belong to another cluster, and no node that accepted the session is healthy: the refusal
    /// says nothing.
    Unconfirmed,
}

impl Acceptance {
    /// Notes that the node did what the session asked for.
    pub(crate) fn accepted_by(&self, node: usize) {
        let mut accepted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        accepted.last = Some(node);
        if !accepted.all.contains(&node) {
            accepted.all.push(node);
        }
    }

    /// What follows from a refusal of `node`. `nodes` are the ids of all nodes of the pool, and whether each
    /// is healthy.
    pub(crate) fn weigh_refusal(&self, node: usize, nodes: &[(usize, bool)]) -> RefusalWeight {
        let accepted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_member = |id: &usize| nodes.iter().any(|(member, _)| member == id);
        // If no node has accepted the session, or all that did were replaced, there is nothing to compare
        // with.
        if !accepted.all.iter().any(is_member) || accepted.last == Some(node) {
            return RefusalWeight::Counts;
        }
        let is_healthy = |id: &usize| nodes.contains(&(*id, true));
        if let Some(last) = accepted.last.filter(is_healthy) {
            return RefusalWeight::AskNode(last);
        }
        if accepted.all.contains(&node) {
            return RefusalWeight::Counts;
        }
        accepted
            .all
            .iter()
            .copied()
            .rfind(is_healthy)
            .map_or(RefusalWeight::Unconfirmed, RefusalWeight::AskNode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEALTHY: [(usize, bool); 3] = [(0, true), (1, true), (2, true)];

    #[test]
    fn a_refusal_counts_only_from_a_node_that_accepted_the_session_or_is_confirmed_there() {
        let acceptance = Acceptance::default();
        let weight = |node, nodes: &[(usize, bool)]| acceptance.weigh_refusal(node, nodes);
        assert_eq!(weight(1, &HEALTHY), RefusalWeight::Counts, "no node has accepted the session");
        acceptance.accepted_by(2);
        acceptance.accepted_by(0);
        assert_eq!(weight(0, &HEALTHY), RefusalWeight::Counts, "it accepted the session last");
        assert_eq!(weight(1, &HEALTHY), RefusalWeight::AskNode(0));
        assert_eq!(weight(2, &HEALTHY), RefusalWeight::AskNode(0), "another node accepted it later");

        let ejected = [(0, false), (1, true), (2, true)];
        assert_eq!(weight(1, &ejected), RefusalWeight::AskNode(2), "it may belong to another Vault");
        assert_eq!(weight(2, &ejected), RefusalWeight::Counts, "it belongs to the same Vault");
        let replaced = [(2, true), (3, true)];
        assert_eq!(weight(3, &replaced), RefusalWeight::AskNode(2), "node 2 accepted it and is healthy");
        assert_eq!(weight(3, &[(2, false), (3, true)]), RefusalWeight::Unconfirmed);
        assert_eq!(weight(1, &[(1, true)]), RefusalWeight::Counts, "the other nodes were replaced");
    }
}
