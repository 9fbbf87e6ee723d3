//! Whether a request may be sent again.

/// Whether a request may be sent again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Replay {
    /// Only if Vault certainly has not processed it: the request uses up a credential, such as a secret_id of one
    /// use, a wrapping token, or the first login of an EC2 instance.
    ///
    /// One node is asked at a time, and keeps its time until the deadline. Another node is asked only if no
    /// connection could be established, or if the answer proves that no handler of Vault has seen the request:
    /// [`Processed::No`](super::classify::Processed::No) in the tables of answers. Otherwise the call ends, and
    /// [`TransitError::may_have_been_processed`](crate::TransitError::may_have_been_processed) says whether the
    /// credential may be used up.
    IfUnsent,
    /// At any time: to repeat the request changes nothing in Vault.
    Safe,
}

impl Replay {
    /// The most requests that are in flight for one call. With one, no request is hedged, and no request is sent
    /// because a node is silent.
    pub(super) fn max_in_flight(self) -> usize {
        match self {
            Self::IfUnsent => 1,
            Self::Safe => 3,
        }
    }
}

#[cfg(test)]
mod tests;
