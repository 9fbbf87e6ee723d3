//! How a Transit engine can fail.

/// Why Transit did not do it. What follows from it is decided by who asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// The ciphertext is damaged, or was made with another key.
    BadCiphertext,
    /// The caller's time is up.
    DeadlineExceeded,
    /// The token lives, but its policy does not allow this.
    Denied,
    /// The mount, namespace or key is not there, or the key is soft-deleted.
    KeyLost,
    /// The node does not know the version yet, or no longer (a restored backup).
    Lagging,
    /// An answer that makes no sense: a bug, here or there.
    Nonsense,
    /// A limit on the rate of requests refused it (429). To ask again at once makes it worse.
    Throttled,
    /// The token is expired, revoked, used up or unknown.
    TokenDead,
    /// More was asked for at once than is taken; a batch, that is, for one call alone is small.
    TooMuch,
    /// The version is below `min_encryption_version` or `min_decryption_version`.
    TooOld,
    /// Refused connection, timeout, sealed, standby without a leader, 5xx.
    Unreachable,
}

impl Fault {
    /// The word for it in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BadCiphertext => "bad_ciphertext",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Denied => "denied",
            Self::KeyLost => "key_lost",
            Self::Lagging => "lagging",
            Self::Nonsense => "nonsense",
            Self::Throttled => "throttled",
            Self::TokenDead => "token_dead",
            Self::TooMuch => "too_much",
            Self::TooOld => "too_old",
            Self::Unreachable => "unreachable",
        }
    }
}

/// A [`Fault`] and what an operator needs to know about it; never a secret.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct TransitError {
    /// What kind of failure it is.
    pub fault: Fault,
    /// Cause and next step.
    pub message: String,
}

impl TransitError {
    /// An error with its words.
    #[must_use]
    pub fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self { fault, message: message.into() }
    }
}
