//! Looks the token up and renews it, with requests of `vaultrs` over the connections of the session.
//!
//! Only the requests are those of `vaultrs`. Its response types fail if any optional field is missing, so the
//! answers are read here. Both answers repeat the token, which is never read from the body.

use std::{sync::Mutex, time::Duration};

use async_trait::async_trait;
use http::{Request, Response};
use rustify::{Endpoint, client::Client, errors::ClientError};
use serde::Deserialize;
use tokio::time::Instant;
use tracing::warn;
use vaultrs::api::token::requests::{LookupTokenSelfRequest, RenewTokenSelfRequest, RevokeTokenSelfRequest};

use super::{renewal::RenewalError, schedule::Expiry};
use crate::{
    ErrorKind, TransitError,
    operation::VaultOperation,
    transit::Call,
    vault::{
        exchange::{HttpResponse, invalid_response},
        failover::Replay,
        lenient::Lenient,
        requester::{Outgoing, Requester},
        session::Session,
    },
};

/// A token that is not renewable is warned about if less than this remains: the agent must render the next one
/// soon.
const SHORT_TTL: Duration = Duration::from_secs(10 * 60);

/// A hundred years in seconds. With longer TTLs, sums of times could overflow.
const MAX_TTL_SECONDS: u64 = 100 * 365 * 86_400;

/// The status of a request that Vault accepted and that changed nothing.
const NO_CONTENT: u16 = 204;

/// What Vault says about a token. It never contains the token.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TokenInfo {
    /// When it expires.
    pub expiry: Expiry,
    /// Every request with the token uses up one of a limited number of uses.
    pub has_limited_uses: bool,
    /// The names of its policies, those of its identity included.
    pub policies: Vec<String>,
    /// `None` if Vault has not said it.
    pub renewable: Option<bool>,
}

impl TokenInfo {
    /// Refuses a token with a limited number of uses: every request, even a lookup, uses up one.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] with the next step.
    pub fn check(&self) -> Result<(), TransitError> {
        if self.has_limited_uses {
            return Err(TransitError::new(
                ErrorKind::Denied,
                "the token has a limited number of uses, and every request uses up one: issue it with num_uses=0",
            ));
        }
        Ok(())
    }

    /// Logs a warning about what is allowed, but not advisable.
    pub fn warn(&self) {
        if self.policies.iter().any(|policy| policy == "root") {
            warn!(
                "the token is a root token: give transit-kms one with the policy in docs/install.md, and nothing else"
            );
        } else if self.policies.iter().any(|policy| policy == "default") {
            warn!(
                "the token has the policy `default`, which makes every call cost the server 2 to 4 times as much: issue it with token_no_default_policy=true"
            );
        }
        if let Some(remaining) =
            self.expiry.remaining().filter(|left| self.renewable == Some(false) && *left < SHORT_TTL)
        {
            warn!(
                ttl_seconds = remaining.as_secs(),
                "the token is not renewable and ends soon: the agent must render the next one before that"
            );
        }
    }
}

/// The answer to a renewal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Renewal {
    /// The maximum TTL of the token has capped the renewal.
    pub capped: bool,
    /// [`Expiry::Unknown`] if Vault did not say it.
    pub expiry: Expiry,
    /// `None` if Vault has not said it.
    pub renewable: Option<bool>,
}

#[derive(Deserialize)]
struct LookupAnswer {
    data: LookupData,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LookupData {
    creation_ttl: Lenient,
    expire_time: Lenient,
    identity_policies: Lenient,
    num_uses: Lenient,
    policies: Lenient,
    renewable: Lenient,
    ttl: Lenient,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RenewalAnswer {
    auth: Option<LeaseData>,
    request_id: Lenient,
    warnings: Lenient,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LeaseData {
    lease_duration: Lenient,
    renewable: Lenient,
}

/// Looks up the token of the session.
///
/// # Errors
/// If the policy does not allow it, the token is invalid, or Vault does not answer.
pub async fn lookup(session: &Session, deadline: Instant) -> Result<TokenInfo, TransitError> {
    let operation = VaultOperation::LookupSelf;
    let request = LookupTokenSelfRequest::builder().build().map_err(|_| invalid_response(operation))?;
    // TTLs count from here: the time that the answer took must not be added to them.
    let sent_at = Instant::now();
    let read = move |response: &HttpResponse| {
        let data = serde_json::from_slice::<LookupAnswer>(&response.body).ok()?.data;
        let known_fields = [&data.ttl, &data.expire_time, &data.policies, &data.renewable];
        known_fields.iter().any(|field| field.is_there()).then(|| data.info(sent_at))
    };
    send(&session.requester, operation, deadline, request, read).await
}

/// Renews the token of the session by its whole TTL.
///
/// # Errors
/// If the token was not renewed. [`RenewalError::failure`] says whether a later renewal can succeed.
pub async fn renew(session: &Session, deadline: Instant) -> Result<Renewal, RenewalError> {
    let operation = VaultOperation::RenewSelf;
    let request = RenewTokenSelfRequest::builder().build().map_err(|_| invalid_response(operation))?;
    let sent_at = Instant::now();
    let read = move |response: &HttpResponse| {
        if response.status == NO_CONTENT {
            return Some(None);
        }
        let answer: RenewalAnswer = serde_json::from_slice(&response.body).ok()?;
        let capped = answer.warnings.texts().any(|warning| warning.contains("capped"));
        match answer.auth {
            Some(lease) => {
                let (expiry, renewable) = (lease.expiry(sent_at), lease.renewable.bool());
                Some(Some(Renewal { capped, expiry, renewable }))
            }
            None => answer.request_id.is_there().then_some(None),
        }
    };
    send(&session.requester, operation, deadline, request, read)
        .await?
        .ok_or_else(RenewalError::nothing_renewed)
}

/// Revokes the token of the requester.
///
/// # Errors
/// If the policy does not allow it, the token is invalid, or Vault does not answer.
pub(super) async fn revoke(requester: &Requester, deadline: Instant) -> Result<(), TransitError> {
    let operation = VaultOperation::RevokeSelf;
    let request = RevokeTokenSelfRequest::builder().build().map_err(|_| invalid_response(operation))?;
    let read = |response: &HttpResponse| (response.status == NO_CONTENT).then_some(());
    send(requester, operation, deadline, request, read).await
}

impl LookupData {
    fn info(&self, sent_at: Instant) -> TokenInfo {
        let policies = self.policies.texts().chain(self.identity_policies.texts());
        TokenInfo {
            expiry: self.expiry(sent_at),
            // The number is negative after the last use.
            has_limited_uses: self.num_uses.number().is_some_and(|uses| uses != 0),
            policies: policies.map(str::to_owned).collect(),
            renewable: self.renewable.bool(),
        }
    }

    fn expiry(&self, sent_at: Instant) -> Expiry {
        let expires =
            self.expire_time.text().is_some() || self.creation_ttl.number().is_some_and(|ttl| ttl > 0);
        match self.ttl.number() {
            // The TTL is in whole seconds. It is 0 for a token in its last second, and for one that never
            // expires.
            Some(0) if !expires => Expiry::Never,
            Some(ttl) => Expiry::At(sent_at + seconds(ttl)),
            None => Expiry::Unknown,
        }
    }
}

impl LeaseData {
    fn expiry(&self, sent_at: Instant) -> Expiry {
        expiry_of(&self.lease_duration, sent_at)
    }
}

/// When a token with this `lease_duration` expires, if it was issued or renewed at `sent_at`.
pub(in crate::vault) fn expiry_of(lease_duration: &Lenient, sent_at: Instant) -> Expiry {
    match lease_duration.number() {
        Some(ttl) if ttl > 0 => Expiry::At(sent_at + seconds(ttl)),
        _ => Expiry::Unknown,
    }
}

fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0).min(MAX_TTL_SECONDS))
}

/// Sends a request of `vaultrs`. `read` returns `None` for an answer that is not Vault's.
async fn send<T: Send>(
    requester: &Requester,
    operation: VaultOperation,
    deadline: Instant,
    request: impl Endpoint,
    read: impl Fn(&HttpResponse) -> Option<T> + Send + Sync,
) -> Result<T, TransitError> {
    let carrier = Carrier { deadline, operation, outcome: Mutex::new(None), read, requester };
    // The result of rustify has no room for the outcome, which the carrier keeps.
    drop(request.exec(&carrier).await);
    carrier.outcome.into_inner().ok().flatten().unwrap_or_else(|| Err(invalid_response(operation)))
}

/// Carries a request of `vaultrs` over the connections of the session, as the HTTP client of rustify.
struct Carrier<'a, T, R> {
    deadline: Instant,
    operation: VaultOperation,
    outcome: Mutex<Option<Result<T, TransitError>>>,
    read: R,
    requester: &'a Requester,
}

#[async_trait]
impl<T: Send, R: Fn(&HttpResponse) -> Option<T> + Send + Sync> Client for Carrier<'_, T, R> {
    async fn send(&self, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, ClientError> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().trim_start_matches('/').to_owned();
        let call = Call { deadline: self.deadline, uid: "token" };
        // The body of the answer repeats the token. It is wiped with the answer, and not passed on to rustify.
        let parse =
            |response: &HttpResponse| (self.read)(response).ok_or_else(|| invalid_response(self.operation));
        let request = Outgoing { body: body.into(), operation: self.operation, path, replay: Replay::Safe };
        let outcome = self.requester.send(request, call, parse).await;
        if let Ok(mut slot) = self.outcome.lock() {
            *slot = Some(outcome);
        }
        Ok(Response::new(Vec::new()))
    }

    fn base(&self) -> &str {
        // Only the path of the URL is used: the pool knows the addresses.
        "https://vault.invalid"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        testing::fake_vault::{FakeVault, call, json, session},
        vault::lease::RenewalFailure,
    };

    async fn looked_up(data: &str) -> Result<TokenInfo, TransitError> {
        let fake = FakeVault::with(vec![json(200, &format!(r#"{{"data":{data}}}"#))]).await;
        lookup(&session(&[&fake.address]).await, call().deadline).await
    }

    async fn renewed(status: u16, body: &str) -> Result<Renewal, RenewalError> {
        let fake = FakeVault::with(vec![json(status, body)]).await;
        renew(&session(&[&fake.address]).await, call().deadline).await
    }

    fn left(expiry: Expiry) -> u64 {
        expiry.remaining().unwrap_or_else(|| panic!("{expiry:?}")).as_secs_f64().ceil() as u64
    }

    /// `tests/it/token.rs` has a real server and a real agent. These are answers that they may send.
    #[tokio::test]
    async fn a_lookup_needs_none_of_its_optional_fields() {
        let full = looked_up(
            r#"{"id":"s.x","accessor":"a","ttl":60,"expire_time":"2026-11-25T13:01:41Z","renewable":true,
                "num_uses":0,"policies":["a"],"identity_policies":["b"]}"#,
        );
        let full = full.await.unwrap();
        assert_eq!(left(full.expiry), 60);
        assert_eq!(
            (full.policies, full.renewable, full.has_limited_uses),
            (vec!["a".into(), "b".into()], Some(true), false)
        );

        let quoted =
            looked_up(r#"{"ttl":"60","renewable":"true","num_uses":"0","policies":"a"}"#).await.unwrap();
        assert_eq!((left(quoted.expiry), quoted.renewable), (60, Some(true)));
        assert_eq!(quoted.policies, ["a"]);

        let nulls = r#"{"ttl":60,"policies":null,"identity_policies":null,"expire_time":null,"meta":null,
                        "renewable":null,"num_uses":null,"id":null}"#;
        let nulls = looked_up(nulls).await.unwrap();
        assert_eq!((left(nulls.expiry), nulls.renewable, nulls.has_limited_uses), (60, None, false));
        let odd = looked_up(r#"{"ttl":{},"policies":{},"renewable":true,"num_uses":[]}"#).await.unwrap();
        assert_eq!((odd.expiry, odd.renewable), (Expiry::Unknown, Some(true)));
        for has_limited_uses in ["1", "-1", r#""7""#] {
            let info = looked_up(&format!(r#"{{"ttl":60,"num_uses":{has_limited_uses}}}"#)).await.unwrap();
            assert!(info.check().is_err(), "{has_limited_uses}");
        }
        for foreign in ["null", "{}", "[]", r#"{"ciphertext":"secret:1"}"#, r#""text""#] {
            assert_eq!(looked_up(foreign).await.unwrap_err().kind, ErrorKind::InvalidResponse, "{foreign}");
        }
    }

    #[tokio::test]
    async fn a_token_in_its_last_second_is_not_one_that_never_expires() {
        for (data, never) in [
            (r#"{"ttl":0,"expire_time":null,"creation_ttl":0}"#, true),
            (r#"{"ttl":0}"#, true),
            (r#"{"ttl":0,"expire_time":"2026-11-25T13:00:44Z","creation_ttl":2}"#, false),
            (r#"{"ttl":0,"creation_ttl":2}"#, false),
            (r#"{"ttl":-1}"#, false),
        ] {
            assert_eq!(looked_up(data).await.unwrap().expiry == Expiry::Never, never, "{data}");
        }
    }

    #[tokio::test]
    async fn a_renewal_needs_the_lease_only() {
        // From a server, for a token with identity policies only, and from an agent that adds its own token.
        for auth in [
            r#"{"client_token":"s.x","policies":["p"],"identity_policies":["p"],"lease_duration":60,"renewable":true}"#,
            r#"{"client_token":"","accessor":"","policies":null,"token_policies":null,"lease_duration":60,"renewable":true}"#,
            r#"{"lease_duration":"60","renewable":"true","orphan":7}"#,
        ] {
            let renewal = renewed(200, &format!(r#"{{"auth":{auth},"warnings":null}}"#)).await.unwrap();
            assert_eq!(
                (left(renewal.expiry), renewal.capped, renewal.renewable),
                (60, false, Some(true)),
                "{auth}"
            );
        }
        for auth in [r#"{"lease_duration":0}"#, "{}", r#"{"lease_duration":null}"#] {
            let renewal = renewed(200, &format!(r#"{{"auth":{auth}}}"#)).await.unwrap();
            assert_eq!(renewal.expiry, Expiry::Unknown, "{auth}");
        }
        let capped = r#"{"auth":{"lease_duration":5},"warnings":["TTL of \"1h\" ... capped accordingly"]}"#;
        assert!(renewed(200, capped).await.unwrap().capped);
        // The user was deleted.
        for (status, body) in [(204, ""), (200, r#"{"request_id":"r","auth":null}"#)] {
            assert_eq!(
                renewed(status, body).await.unwrap_err().failure,
                RenewalFailure::LoginRequired,
                "{status}"
            );
        }
        for body in ["", "<html>", "{}", "[]", r#"{"auth":"x"}"#] {
            assert_eq!(
                renewed(200, body).await.unwrap_err().error.kind,
                ErrorKind::InvalidResponse,
                "{body}"
            );
        }
    }
}
