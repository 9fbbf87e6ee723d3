//! How a request to a Transit engine can fail.

/// Why a request failed. The caller decides what follows from it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ErrorKind {
    /// The ciphertext is damaged, or another key made it.
    BadCiphertext,
    /// A batch is larger than Vault, or a proxy in between, accepts. A single item always fits.
    BatchTooLarge,
    /// A setting cannot be used, such as a file that holds no certificate.
    Config,
    /// The deadline of the caller has passed.
    DeadlineExceeded,
    /// The token is valid, and its policy does not allow the request.
    Denied,
    /// The answer is not one of Vault's, or does not fit the request.
    InvalidResponse,
    /// The mount, namespace or key does not exist, or the key is soft-deleted.
    KeyNotFound,
    /// A rate limit refused the request (429). Further requests make it worse.
    Throttled,
    /// The token is expired, revoked, used up or unknown.
    TokenInvalid,
    /// Refused connection, timeout, sealed, standby without a leader, 5xx.
    Unreachable,
    /// The version is below `min_encryption_version` or `min_decryption_version`.
    VersionTooOld,
    /// The node does not know the version yet, or not any more, as after a backup is restored.
    VersionUnavailable,
}

impl ErrorKind {
    /// The name in metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BadCiphertext => "bad_ciphertext",
            Self::BatchTooLarge => "batch_too_large",
            Self::Config => "config",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Denied => "denied",
            Self::InvalidResponse => "invalid_response",
            Self::KeyNotFound => "key_not_found",
            Self::Throttled => "throttled",
            Self::TokenInvalid => "token_invalid",
            Self::Unreachable => "unreachable",
            Self::VersionTooOld => "version_too_old",
            Self::VersionUnavailable => "version_unavailable",
        }
    }
}

/// An [`ErrorKind`] with what an operator needs to know: the cause and the next step, never a secret.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct TransitError {
    /// What kind of failure it is.
    pub kind: ErrorKind,
    /// The cause and the next step.
    pub message: String,
}

impl TransitError {
    /// An error of this kind.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}
