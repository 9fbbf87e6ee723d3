//! What a renewal that failed means: will a later one work, or does only a new login help?

use crate::{ErrorKind, TransitError};

/// The refusals that no retry heals, in words that Vault or OpenBao use, and what they mean.
///
/// They come as 400 or 500, wrapped in other words. Whatever is not in this table may heal.
/// Source: `vault/expiration.go`, `vault/token_store.go` and the `pathLoginRenew` of each login method
const LOG_IN_AGAIN: [(&str, &str); 8] = [
    ("policies have changed", "the policies of its user or role have changed since the login"),
    ("does not exist during renewal", "the role that it was issued for does not exist any more"),
    ("could not be found, not renewing", "the token role that it was issued for does not exist any more"),
    ("client identity during renewal not matching", "it was issued for another client certificate"),
    ("lease is not renewable", "it is not renewable"),
    ("lease expired or is not renewable", "it is not renewable"),
    ("batch tokens cannot be renewed", "it is a batch token, and those have no renewal"),
    ("past the max TTL", "it has reached its maximum TTL"),
];

/// What kind of failure it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RenewalFailure {
    /// Vault does not answer, or not sensibly: the next try may work, and this one may have worked.
    Unreachable,
    /// Only a new login brings a token that lives longer.
    LoginRequired,
    /// The policy does not allow it now.
    Denied,
    /// Vault does not accept the token.
    TokenInvalid,
}

/// Why a token was not renewed.
#[derive(Debug)]
pub struct RenewalError {
    /// What Vault said, and the next step.
    pub error: TransitError,
    /// Whether a later renewal can work.
    pub failure: RenewalFailure,
}

impl RenewalError {
    /// Vault takes the request of a token whose user or role is gone, and renews nothing.
    pub fn nothing_was_renewed() -> Self {
        let error = TransitError::new(
            ErrorKind::Denied,
            "Vault renewed nothing: the user or role that it was issued for does not exist any more",
        );
        Self { error, failure: RenewalFailure::LoginRequired }
    }
}

impl From<TransitError> for RenewalError {
    fn from(error: TransitError) -> Self {
        let known = LOG_IN_AGAIN.iter().find(|(words, _)| error.message.contains(words));
        if let Some((_, why)) = known {
            let error = TransitError::new(error.kind, format!("{why} ({})", error.message));
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

    /// As OpenBao 2.7.2 was observed to say it, and as Vault's sources have it.
    #[test]
    fn what_no_retry_heals_is_told_apart_from_what_may_heal() {
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
            assert!(found.error.message.contains(message), "Vault's own words stay: {}", found.error);
        }
    }
}
