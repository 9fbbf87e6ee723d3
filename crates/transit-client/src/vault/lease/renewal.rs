//! What a failed renewal means: whether a later renewal can succeed, or only a new login helps.

use crate::{ErrorKind, TransitError};

/// The refusals that no retry changes, in the words of Vault and OpenBao, and their meaning.
///
/// They come with status 400 or 500, within other words. A refusal that is not in this table may be temporary.
/// Source: `vault/expiration.go`, `vault/token_store.go` and `pathLoginRenew` of each login method
const LOGIN_REQUIRED: [(&str, &str); 8] = [
    ("policies have changed", "the policies of its user or role have changed since the login"),
    ("does not exist during renewal", "the role that it was issued for does not exist any more"),
    ("could not be found, not renewing", "the token role that it was issued for does not exist any more"),
    ("client identity during renewal not matching", "it was issued for another client certificate"),
    ("lease is not renewable", "it is not renewable"),
    ("lease expired or is not renewable", "it is not renewable"),
    ("batch tokens cannot be renewed", "it is a batch token, and those cannot be renewed"),
    ("past the max TTL", "it has reached its maximum TTL"),
];

/// The kind of a failed renewal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RenewalFailure {
    /// The policy does not allow the renewal now.
    Denied,
    /// Only a new login brings a token that lives longer.
    LoginRequired,
    /// Vault does not accept the token.
    TokenInvalid,
    /// Vault did not answer, or not as Vault does. The next attempt may succeed, and this one may have
    /// succeeded, with its answer lost.
    Unreachable,
}

/// Why a token was not renewed.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct RenewalError {
    /// The cause with Vault's words, and the next step.
    pub error: TransitError,
    /// Whether a later renewal can succeed.
    pub failure: RenewalFailure,
}

impl RenewalError {
    /// Vault accepted the request, and renewed nothing. That is its answer if the user or role of the token was
    /// deleted.
    pub(super) fn nothing_renewed() -> Self {
        let error = TransitError::new(
            ErrorKind::Denied,
            "Vault renewed nothing: the user or role that it was issued for does not exist any more",
        );
        Self { error, failure: RenewalFailure::LoginRequired }
    }
}

impl From<TransitError> for RenewalError {
    fn from(error: TransitError) -> Self {
        let known = LOGIN_REQUIRED.iter().find(|(words, _)| error.message.contains(words));
        if let Some((_, meaning)) = known {
            let error = TransitError::new(error.kind, format!("{meaning} ({})", error.message));
            return Self { error, failure: RenewalFailure::LoginRequired };
        }
        let failure = match error.kind {
            ErrorKind::Denied | ErrorKind::KeyNotFound => RenewalFailure::Denied,
            ErrorKind::TokenInvalid => RenewalFailure::TokenInvalid,
            _ => RenewalFailure::Unreachable,
        };
        Self { error, failure }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the words that OpenBao 2.7.2 was observed to use, and that Vault's sources have.
    #[test]
    fn a_failure_that_needs_a_login_is_recognised_by_vaults_words() {
        for (kind, message, failure) in [
            (
                ErrorKind::Unreachable,
                "Vault answered 500: 1 error occurred: * failed to renew entry: policies have changed, not renewing",
                RenewalFailure::LoginRequired,
            ),
            (
                ErrorKind::Unreachable,
                "Vault answered 500: 1 error occurred: * failed to renew entry: role \"r\" does not exist during renewal",
                RenewalFailure::LoginRequired,
            ),
            (
                ErrorKind::Unreachable,
                "Vault answered 500: 1 error occurred: * failed to renew entry: original token role \"tr\" could not be found, not renewing",
                RenewalFailure::LoginRequired,
            ),
            (
                ErrorKind::Unreachable,
                "Vault answered 500: 1 error occurred: * past the max TTL, cannot renew",
                RenewalFailure::LoginRequired,
            ),
            (
                ErrorKind::InvalidResponse,
                "Vault answered 400 to renew_self: lease is not renewable",
                RenewalFailure::LoginRequired,
            ),
            (
                ErrorKind::InvalidResponse,
                "Vault answered 400 to renew_self: batch tokens cannot be renewed",
                RenewalFailure::LoginRequired,
            ),
            (ErrorKind::Unreachable, "Vault answered 500: internal error", RenewalFailure::Unreachable),
            (ErrorKind::Unreachable, "Vault answered 503: Vault is sealed", RenewalFailure::Unreachable),
            (
                ErrorKind::InvalidResponse,
                "the answer to renew_self is not Vault's",
                RenewalFailure::Unreachable,
            ),
            (ErrorKind::DeadlineExceeded, "Vault at x did not answer in time", RenewalFailure::Unreachable),
            (
                ErrorKind::Denied,
                "the token's policy does not allow renew_self: grant `update`",
                RenewalFailure::Denied,
            ),
            (
                ErrorKind::TokenInvalid,
                "Vault does not accept the token any more",
                RenewalFailure::TokenInvalid,
            ),
        ] {
            let found = RenewalError::from(TransitError::new(kind, message));
            assert_eq!(found.failure, failure, "{message}");
            assert!(found.error.message.contains(message), "Vault's words are missing: {}", found.error);
        }
    }
}
