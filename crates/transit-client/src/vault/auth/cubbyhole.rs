//! A token with one use left, whose cubbyhole holds what a delivery contains.
//!
//! The token is never looked up: a lookup uses up the only use that is left.
//!
//! Source: <https://developer.hashicorp.com/vault/docs/secrets/cubbyhole>

use zeroize::Zeroizing;

use super::{LoginContext, LoginError, LoginFailure};
use crate::{ErrorKind, TransitError, key::Namespace, operation::VaultOperation, token::Token};

/// Reads `path`, such as `cubbyhole/node-1`, which works once. The answer is the whole JSON.
///
/// # Errors
/// If Vault does not answer. If Vault does not accept the token, the failure is [`LoginFailure::Tampered`],
/// because this machine has not used it. If the answer was lost, it is [`LoginFailure::Spent`].
pub async fn read(
    token: &Token,
    path: &str,
    namespace: &Namespace,
    context: &LoginContext,
) -> Result<Zeroizing<Vec<u8>>, LoginError> {
    let answer = context.use_up(token, namespace, VaultOperation::ReadCubbyhole, path);
    answer.await.map_err(|error| match error.kind {
        ErrorKind::Denied | ErrorKind::TokenInvalid | ErrorKind::KeyNotFound => {
            let message = format!(
                "the token of the cubbyhole was used, has expired or is forged, or the cubbyhole is empty ({})",
                error.message
            );
            let kind = ErrorKind::Denied;
            LoginError::new(LoginFailure::Tampered, TransitError::new(kind, message).with_source(error))
        }
        _ if error.may_have_been_processed() => {
            let message = format!(
                "the answer was lost, and the token of a cubbyhole works only once: deliver a new one ({})",
                error.message
            );
            let kind = error.kind;
            LoginError::new(LoginFailure::Spent, TransitError::new(kind, message).with_source(error))
        }
        ErrorKind::Config => LoginError::new(LoginFailure::Blocked, error),
        _ => LoginError::new(LoginFailure::Away, error),
    })
}
