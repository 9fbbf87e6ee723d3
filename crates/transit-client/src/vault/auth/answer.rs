//! The answer to a login.

use std::{fmt, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, de::IgnoredAny};
use tokio::time::Instant;
use tracing::warn;

use crate::{
    ErrorKind, TransitError,
    operation::VaultOperation,
    token::Token,
    vault::{
        exchange::{HttpResponse, invalid_response},
        lease::{TokenInfo, expiry_of},
        lenient::Lenient,
    },
};

/// A token with a shorter TTL is warned about: an outage of a third of it ends the session.
const SHORT_TTL: Duration = Duration::from_secs(5 * 60);

/// A token that a login has brought.
#[derive(Clone)]
pub struct LoggedIn {
    /// What the answer says about the token.
    pub info: TokenInfo,
    /// The token is a batch token: it can be neither renewed nor revoked.
    pub is_batch: bool,
    /// The token itself.
    pub token: Token,
}

#[derive(Deserialize)]
struct LoginBody {
    auth: Option<AuthBody>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthBody {
    client_token: Option<SecretString>,
    identity_policies: Lenient,
    lease_duration: Lenient,
    mfa_requirement: Option<IgnoredAny>,
    num_uses: Lenient,
    policies: Lenient,
    renewable: Lenient,
    token_policies: Lenient,
    token_type: Lenient,
}

impl LoggedIn {
    /// Reads the answer to a login that was sent at `sent_at`; `None` if Vault asks for a second factor.
    pub(super) fn parse(response: &HttpResponse, sent_at: Instant) -> Result<Option<Self>, TransitError> {
        let operation = VaultOperation::Login;
        let body: LoginBody =
            serde_json::from_slice(&response.body).map_err(|_| invalid_response(operation))?;
        let auth = body.auth.ok_or_else(|| invalid_response(operation))?;
        let token = auth.client_token.as_ref().map(|token| token.expose_secret().trim()).unwrap_or_default();
        if token.is_empty() && auth.mfa_requirement.is_some() {
            return Ok(None);
        }
        let token = Token::new(token).map_err(|_| invalid_response(operation))?;
        let policies =
            auth.policies.texts().chain(auth.token_policies.texts()).chain(auth.identity_policies.texts());
        let mut policies: Vec<String> = policies.map(str::to_owned).collect();
        policies.sort();
        policies.dedup();
        let info = TokenInfo {
            expiry: expiry_of(&auth.lease_duration, sent_at),
            has_limited_uses: auth.num_uses.number().is_some_and(|uses| uses != 0),
            policies,
            renewable: auth.renewable.bool(),
        };
        Ok(Some(Self { info, is_batch: auth.token_type.text() == Some("batch"), token }))
    }

    /// The error for an answer that asks for a second factor.
    pub(super) fn second_factor() -> TransitError {
        TransitError::new(
            ErrorKind::Denied,
            "the login needs a second factor, which a daemon does not have: remove this mount or entity from the \
             MFA login enforcement (identity/mfa/login-enforcement)",
        )
    }

    /// Refuses a token that cannot carry a session.
    pub(super) fn check(&self) -> Result<(), TransitError> {
        if self.info.has_limited_uses {
            return Err(TransitError::new(
                ErrorKind::Denied,
                "the login brings a token with a limited number of uses, and every request uses up one: set \
                 token_num_uses=0 in the role",
            ));
        }
        Ok(())
    }

    /// Logs a warning about what is allowed, but not advisable.
    pub fn warn(&self) {
        if self.is_batch {
            warn!(
                "the login brings a batch token, which cannot be renewed or revoked; transit-kms logs in again \
                 before it ends: token_type=service is better"
            );
        }
        if self.info.policies.iter().any(|policy| policy == "default") {
            warn!(
                "the token has the policy `default`, which makes every call cost the server 2 to 4 times as much: \
                 set token_no_default_policy=true in the role"
            );
        }
        if let Some(ttl) = self.info.expiry.remaining().filter(|ttl| *ttl < SHORT_TTL) {
            warn!(
                ttl_seconds = ttl.as_secs(),
                "the login brings a token with a short TTL, so a short outage of Vault ends the session: set \
                 token_ttl to an hour or more in the role"
            );
        }
    }
}

impl fmt::Debug for LoggedIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoggedIn").field("info", &self.info).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    fn parsed(body: &str) -> Result<Option<LoggedIn>, TransitError> {
        let body = Zeroizing::new(body.as_bytes().to_vec());
        LoggedIn::parse(
            &HttpResponse { status: 200, body, inline_auth_failed: false, node: 0, retry_after: None },
            Instant::now(),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_read_without_its_optional_fields() {
        let full = parsed(
            r#"{"auth":{"client_token":"hvs.x","accessor":"a","policies":["p"],"token_policies":["p"],"metadata":null,
                "lease_duration":3600,"renewable":true,"entity_id":"e","token_type":"service","orphan":true,
                "mfa_requirement":null,"num_uses":0}}"#,
        )
        .unwrap()
        .unwrap();
        assert_eq!(full.token.expose(), "hvs.x");
        assert_eq!(full.info.expiry.remaining(), Some(Duration::from_secs(3600)));
        assert_eq!((full.info.policies.as_slice(), full.info.renewable), (&["p".to_owned()][..], Some(true)));
        assert!(!full.is_batch && full.check().is_ok());
        let bare = parsed(r#"{"auth":{"client_token":"hvb.x","token_type":"batch"}}"#).unwrap().unwrap();
        assert!(bare.is_batch);
        assert!(!format!("{bare:?}").contains("hvb"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_cannot_carry_a_session_is_explained() {
        let limited = parsed(r#"{"auth":{"client_token":"hvs.x","num_uses":5}}"#).unwrap().unwrap();
        assert!(limited.check().unwrap_err().message.contains("token_num_uses=0"));
        let mfa = r#"{"auth":{"client_token":"","mfa_requirement":{"mfa_request_id":"m"}}}"#;
        assert!(parsed(mfa).unwrap().is_none());
        for foreign in ["", "<html>", "{}", "[]", r#"{"auth":null}"#, r#"{"auth":{}}"#] {
            assert_eq!(parsed(foreign).unwrap_err().kind, ErrorKind::InvalidResponse, "{foreign}");
        }
    }
}
