//! Response wrapping: what a wrapping token is for, and the one time that it can be opened.
//!
//! Source: <https://developer.hashicorp.com/vault/docs/concepts/response-wrapping>

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{LoginContext, LoginError, LoginFailure, login::unusable};
use crate::{
    ErrorKind, TransitError,
    key::Namespace,
    operation::VaultOperation,
    token::Token,
    vault::{
        exchange::invalid_response,
        failover::Replay,
        requester::{Outgoing, RequestAuth},
    },
};

/// What the refusal of a wrapping token says, in the words of Vault and OpenBao. It was used, has expired, was
/// revoked, or has never existed.
const NOT_VALID: &str = "wrapping token is not valid or does not exist";

#[derive(Deserialize)]
struct WrapLookupBody {
    data: WrapDetails,
}

#[derive(Deserialize)]
struct WrapDetails {
    creation_path: String,
}

/// The path of the request whose answer the wrapping token wraps. The token stays usable.
///
/// It is checked before the token is used: everyone can wrap a text of their own with `sys/wrapping/wrap`.
///
/// # Errors
/// If Vault does not answer, or does not know the token: then the failure is [`LoginFailure::Tampered`], because
/// this machine has not used it.
pub async fn creation_path(
    token: &Token,
    namespace: &Namespace,
    context: &LoginContext,
) -> Result<String, LoginError> {
    let requester = context
        .requester(&RequestAuth::NoToken, namespace)
        .map_err(|error| LoginError::new(LoginFailure::Blocked, error))?;
    let mut body = Zeroizing::new(Vec::with_capacity(token.expose().len() + 16));
    for part in [r#"{"token":""#, token.expose(), r#""}"#] {
        // A token is visible ASCII. It may contain a quote or a backslash, which JSON must escape.
        body.extend_from_slice(part.as_bytes());
    }
    if token.expose().contains(['"', '\\']) {
        return Err(LoginError::new(
            LoginFailure::Tampered,
            unusable("the wrapping token is not one of Vault's"),
        ));
    }
    let operation = VaultOperation::WrappingLookup;
    let request = Outgoing { body, operation, path: "sys/wrapping/lookup".to_owned(), replay: Replay::Safe };
    let answer = requester.send(request, context.call(), |response| {
        let body: WrapLookupBody =
            serde_json::from_slice(&response.body).map_err(|_| invalid_response(operation))?;
        Ok(body.data.creation_path)
    });
    answer.await.map_err(of_wrap)
}

/// Opens the wrapping token, which works once. The answer is the whole JSON that was wrapped.
///
/// # Errors
/// As [`creation_path`]. If the answer is lost, the token may have been used: the failure is
/// [`LoginFailure::Away`], and [`creation_path`] must show that the token is still there before it is sent again.
pub async fn unwrap(
    token: &Token,
    namespace: &Namespace,
    context: &LoginContext,
) -> Result<Zeroizing<Vec<u8>>, LoginError> {
    let path = "sys/wrapping/unwrap";
    context.use_up(token, namespace, VaultOperation::Unwrap, path).await.map_err(of_wrap)
}

/// The token that was wrapped: the field `token` of the data that an agent's sink wraps, or the `client_token` of an
/// answer that creates a token.
///
/// # Errors
/// If the JSON does not contain a token.
pub fn token_of(unwrapped: &[u8]) -> Result<Token, TransitError> {
    #[derive(Deserialize)]
    struct Unwrapped {
        auth: Option<UnwrappedAuth>,
        data: Option<UnwrappedData>,
    }
    #[derive(Deserialize)]
    struct UnwrappedAuth {
        client_token: SecretString,
    }
    #[derive(Deserialize)]
    struct UnwrappedData {
        token: SecretString,
    }
    let missing = || {
        unusable(
            "the wrapping token in vault.auth.token_file wraps no token: it must be of an agent's sink, or of \
             auth/token/create",
        )
    };
    let body: Unwrapped = serde_json::from_slice(unwrapped).map_err(|_| missing())?;
    let of_auth = body.auth.map(|auth| auth.client_token);
    let token = body.data.map(|data| data.token).or(of_auth).ok_or_else(missing)?;
    Token::new(token.expose_secret()).map_err(|_| missing())
}

/// The meaning of an error about a wrapping token.
fn of_wrap(error: TransitError) -> LoginError {
    if error.message.contains(NOT_VALID) {
        let message = format!("the wrapping token was used, has expired or is forged ({})", error.message);
        let kind = ErrorKind::Denied;
        return LoginError::new(LoginFailure::Tampered, TransitError::new(kind, message).with_source(error));
    }
    let failure = match error.kind {
        ErrorKind::Config | ErrorKind::Denied | ErrorKind::KeyNotFound | ErrorKind::TokenInvalid => {
            LoginFailure::Blocked
        }
        _ => LoginFailure::Away,
    };
    LoginError::new(failure, error)
}
