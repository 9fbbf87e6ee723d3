//! Which nodes have accepted a session, and so may refuse it.
//!
//! A refusal of the token, of the policy or of the key from a node that has never worked for the session
//! may come from another cluster: a performance secondary does not know the service tokens of the primary,
//! and a stale DNS record leads to another Vault. Such a refusal counts only after the node that accepted
//! the session last has confirmed it.

use std::sync::{Mutex, PoisonError};

/// The nodes that gave a session what it asked for, by their ids in the pool.
#[derive(Debug, Default)]
pub(crate) struct Acceptance(Mutex<Accepted>);

#[derive(Debug, Default)]
struct Accepted {
    all: Vec<usize>,
    last: Option<usize>,
}

/// What a refusal by one node is worth.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Weight {
    /// It is the answer.
    Counts,
    /// This node has accepted the session and must confirm it.
    AskNode(usize),
    /// No node that has accepted the session can confirm it now: it says nothing.
    Unconfirmed,
}

impl Acceptance {
    /// This node has done what the session asked for.
    pub(crate) fn by(&self, node: usize) {
        let mut accepted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        accepted.last = Some(node);
        if !accepted.all.contains(&node) {
            accepted.all.push(node);
        }
    }

    /// What a refusal by `node` is worth. `members` are all nodes of the pool, with whether they are well.
    pub(crate) fn weigh(&self, node: usize, members: &[(usize, bool)]) -> Weight {
        let accepted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_member = |id: &usize| members.iter().any(|(member, _)| member == id);
        // Nothing is known of a session that no node has accepted, or whose nodes have all been replaced.
        if !accepted.all.iter().any(is_member) || accepted.last == Some(node) {
            return Weight::Counts;
        }
        let is_well = |id: &usize| members.contains(&(*id, true));
        if let Some(last) = accepted.last.filter(is_well) {
            return Weight::AskNode(last);
        }
        if accepted.all.contains(&node) {
            return Weight::Counts;
        }
        accepted.all.iter().copied().rfind(is_well).map_or(Weight::Unconfirmed, Weight::AskNode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: [(usize, bool); 3] = [(0, true), (1, true), (2, true)];

    #[test]
    fn a_refusal_counts_only_from_where_the_session_worked() {
        let acceptance = Acceptance::default();
        assert_eq!(acceptance.weigh(1, &WELL), Weight::Counts, "nothing is known of the session");
        acceptance.by(2);
        acceptance.by(0);
        assert_eq!(acceptance.weigh(0, &WELL), Weight::Counts, "it accepted the session last");
        assert_eq!(acceptance.weigh(1, &WELL), Weight::AskNode(0));
        assert_eq!(acceptance.weigh(2, &WELL), Weight::AskNode(0), "another one did so later");

        let away = [(0, false), (1, true), (2, true)];
        assert_eq!(acceptance.weigh(1, &away), Weight::AskNode(2), "it may be of another Vault");
        assert_eq!(acceptance.weigh(2, &away), Weight::Counts, "it is of the same Vault");
        let replaced = [(2, true), (3, true)];
        assert_eq!(acceptance.weigh(3, &replaced), Weight::AskNode(2), "another one that did so is well");
        assert_eq!(acceptance.weigh(3, &[(2, false), (3, true)]), Weight::Unconfirmed);
        assert_eq!(acceptance.weigh(1, &[(1, true)]), Weight::Counts, "the others have been replaced");
    }
}
