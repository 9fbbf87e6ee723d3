//! How a request to a Transit engine can fail.

use std::{error::Error, sync::Arc};

/// Why a request failed. The caller decides what follows.
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
    /// No node can serve the request: connections fail or time out, Vault is sealed, has no leader, or
    /// answers 5xx.
    Unreachable,
    /// The version is below `min_encryption_version` or `min_decryption_version`.
    VersionTooOld,
    /// The node does not know the version: it lags behind, or an older backup was restored.
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

/// A failed request: its [`ErrorKind`], and a message with the cause and the next step.
///
/// Neither the error nor its [`source`](Error::source) contains a secret.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct TransitError {
    /// What kind of failure it is.
    pub kind: ErrorKind,
    /// The cause and the next step, for an operator.
    pub message: String,
    may_have_been_processed: bool,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl TransitError {
    /// An error without a source.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), may_have_been_processed: false, source: None }
    }

    /// Whether Vault may have processed the request although its result is lost: the connection broke, no answer
    /// came in time, or the answer does not say it. A credential that works only once may be used up then.
    ///
    /// It is always false for requests that may be repeated without harm, such as those of
    /// [`Transit`](crate::Transit).
    #[must_use]
    pub fn may_have_been_processed(&self) -> bool {
        self.may_have_been_processed
    }

    /// The same error, of a request that is not sent again because Vault may have processed it.
    #[must_use]
    pub(crate) fn after_possible_processing(mut self) -> Self {
        self.may_have_been_processed = true;
        self.message.push_str(" (Vault may have processed the request, so it is not sent again)");
        self
    }

    /// The same error with a source. Neither `Display` nor `Debug` of the source may show a secret.
    #[must_use]
    pub fn with_source(self, source: impl Error + Send + Sync + 'static) -> Self {
        Self { source: Some(Arc::new(source)), ..self }
    }
}
