//! The token's own affairs: looking it up and renewing it, by `vaultrs`' endpoints over
//! the session's connections.
//!
//! The requests are `vaultrs`', the answers are read here: of its types an answer fails for any
//! optional field. Both answers repeat the token, which is never read out of the body.

use std::{sync::Mutex, time::Duration};

use async_trait::async_trait;
use http::{Request, Response};
use rustify::{Endpoint, client::Client, errors::ClientError};
use serde::Deserialize;
use tokio::time::Instant;
use tracing::warn;
use vaultrs::api::token::requests::{LookupTokenSelfRequest, RenewTokenSelfRequest};

use super::{renewal::RenewalError, schedule::Expiry};
use crate::{
    ErrorKind, TransitError,
    transit::Call,
    vault::{Operation, exchange::HttpResponse, lenient::Lenient, session::Session},
};

/// A token that cannot be renewed and has less than this to live needs an agent that is awake.
const SHORT_TTL: Duration = Duration::from_secs(10 * 60);

/// A hundred years, in seconds; beyond it, sums of times might overflow.
const LONGEST_TTL: u64 = 100 * 365 * 86_400;

/// What Vault answers to a request that it took and that changed nothing.
const NO_CONTENT: u16 = 204;

/// What Vault says of a token; never the token.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TokenInfo {
    /// A use is spent with every call.
    pub has_limited_uses: bool,
    /// How long it lives.
    pub expiry: Expiry,
    /// The names of its policies, those of its identity included.
    pub policies: Vec<String>,
    /// Unless Vault has not said it.
    pub renewable: Option<bool>,
}

impl TokenInfo {
    /// Refuses what would wear out: every call, even a lookup, spends a use.
    pub fn check(&self) -> Result<(), TransitError> {
        if self.has_limited_uses {
            return Err(TransitError::new(
                ErrorKind::Denied,
                "the token has a limited number of uses and would wear out: issue it with num_uses=0",
            ));
        }
        Ok(())
    }

    /// What is allowed but not wise.
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
        if let Some(left) =
            self.expiry.remaining().filter(|left| self.renewable == Some(false) && *left < SHORT_TTL)
        {
            warn!(
                ttl_seconds = left.as_secs(),
                "the token is not renewable and ends soon: the agent must render the next one before that"
            );
        }
    }
}

/// What became of a renewal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Renewal {
    /// Unknown if Vault renewed it and did not say for how long.
    pub expiry: Expiry,
    /// Vault said that its maximum is reached.
    pub capped: bool,
    /// Unless Vault has not said it.
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
    auth: Option<Lease>,
    request_id: Lenient,
    warnings: Lenient,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Lease {
    lease_duration: Lenient,
    renewable: Lenient,
}

/// Asks what the token is and how long it lives.
pub async fn lookup(session: &Session, deadline: Instant) -> Result<TokenInfo, TransitError> {
    let request = LookupTokenSelfRequest::builder().build().map_err(|_| garbled(Operation::LookupSelf))?;
    // The time that it took to answer is not taken for time to live.
    let asked = Instant::now();
    let read = move |answer: &HttpResponse| {
        let data = serde_json::from_slice::<LookupAnswer>(&answer.body).ok()?.data;
        let is_vaults = [&data.ttl, &data.expire_time, &data.policies, &data.renewable];
        is_vaults.iter().any(|field| field.is_there()).then(|| data.info(asked))
    };
    ask(session, Operation::LookupSelf, deadline, request, read).await
}

/// Asks for another full TTL.
pub async fn renew(session: &Session, deadline: Instant) -> Result<Renewal, RenewalError> {
    let request = RenewTokenSelfRequest::builder().build().map_err(|_| garbled(Operation::RenewSelf))?;
    let asked = Instant::now();
    let read = move |answer: &HttpResponse| {
        if answer.status == NO_CONTENT {
            return Some(None);
        }
        let answer: RenewalAnswer = serde_json::from_slice(&answer.body).ok()?;
        let capped = answer.warnings.texts().any(|warning| warning.contains("capped"));
        match answer.auth {
            Some(lease) => {
                Some(Some(Renewal { expiry: lease.expiry(asked), capped, renewable: lease.renewable.bool() }))
            }
            None => answer.request_id.is_there().then_some(None),
        }
    };
    ask(session, Operation::RenewSelf, deadline, request, read)
        .await?
        .ok_or_else(RenewalError::nothing_was_renewed)
}

impl LookupData {
    fn info(&self, asked: Instant) -> TokenInfo {
        let policies = self.policies.texts().chain(self.identity_policies.texts());
        TokenInfo {
            // It is negative once the last use is spent.
            has_limited_uses: self.num_uses.number().is_some_and(|uses| uses != 0),
            expiry: self.expiry(asked),
            policies: policies.map(str::to_owned).collect(),
            renewable: self.renewable.bool(),
        }
    }

    fn expiry(&self, asked: Instant) -> Expiry {
        let has_an_end =
            self.expire_time.text().is_some() || self.creation_ttl.number().is_some_and(|ttl| ttl > 0);
        match self.ttl.number() {
            // The TTL is in whole seconds: a token in its last one has 0, as has one that never ends.
            Some(0) if !has_an_end => Expiry::Never,
            Some(ttl) => Expiry::At(asked + seconds(ttl)),
            None => Expiry::Unknown,
        }
    }
}

impl Lease {
    fn expiry(&self, asked: Instant) -> Expiry {
        match self.lease_duration.number() {
            Some(ttl) if ttl > 0 => Expiry::At(asked + seconds(ttl)),
            _ => Expiry::Unknown,
        }
    }
}

fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0).min(LONGEST_TTL))
}

fn garbled(operation: Operation) -> TransitError {
    TransitError::new(
        ErrorKind::InvalidResponse,
        format!("the answer to {} is not Vault's: is something else listening there?", operation.name()),
    )
}

/// Sends one of `vaultrs`' requests over the session; `read` answers `None` to what is not Vault's.
async fn ask<T: Send>(
    session: &Session,
    operation: Operation,
    deadline: Instant,
    request: impl Endpoint,
    read: impl Fn(&HttpResponse) -> Option<T> + Send + Sync,
) -> Result<T, TransitError> {
    let carrier = Carrier { deadline, operation, outcome: Mutex::new(None), read, session };
    // What matters is left in `outcome`: rustify's results have no room for it.
    drop(request.exec(&carrier).await);
    carrier.outcome.into_inner().ok().flatten().unwrap_or_else(|| Err(garbled(operation)))
}

/// Carries a request of `vaultrs` over the session.
struct Carrier<'a, T, R> {
    deadline: Instant,
    operation: Operation,
    outcome: Mutex<Option<Result<T, TransitError>>>,
    read: R,
    session: &'a Session,
}

#[async_trait]
impl<T: Send, R: Fn(&HttpResponse) -> Option<T> + Send + Sync> Client for Carrier<'_, T, R> {
    async fn send(&self, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, ClientError> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().trim_start_matches('/').to_owned();
        let call = Call { deadline: self.deadline, uid: "token" };
        // The body repeats the token; it is wiped with the answer, and nothing of it is kept.
        let accept = |answer: &HttpResponse| (self.read)(answer).ok_or_else(|| garbled(self.operation));
        let outcome = self.session.send(self.operation, path, body.into(), call, accept).await;
        if let Ok(mut place) = self.outcome.lock() {
            *place = Some(outcome);
        }
        Ok(Response::new(Vec::new()))
    }

    fn base(&self) -> &str {
        // Only the path is used; the session knows the addresses.
        "https://vault.invalid"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        testing::fake_vault::{Fake, call, json, session},
        vault::lease::RenewalFailure,
    };

    async fn looked_up(data: &str) -> Result<TokenInfo, TransitError> {
        let fake = Fake::with(vec![json(200, &format!(r#"{{"data":{data}}}"#))]).await;
        lookup(&session(&[&fake.address]).await, call().deadline).await
    }

    async fn renewed(status: u16, body: &str) -> Result<Renewal, RenewalError> {
        let fake = Fake::with(vec![json(status, body)]).await;
        renew(&session(&[&fake.address]).await, call().deadline).await
    }

    fn left(expiry: Expiry) -> u64 {
        expiry.remaining().unwrap_or_else(|| panic!("{expiry:?}")).as_secs_f64().ceil() as u64
    }

    /// A real server and a real agent are in `tests/it/token.rs`; these are what they might send.
    #[tokio::test]
    async fn of_a_lookup_nothing_is_required_that_is_not_needed() {
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
    async fn a_token_in_its_last_second_is_not_one_that_never_ends() {
        for (data, endless) in [
            (r#"{"ttl":0,"expire_time":null,"creation_ttl":0}"#, true),
            (r#"{"ttl":0}"#, true),
            (r#"{"ttl":0,"expire_time":"2026-11-25T13:00:44Z","creation_ttl":2}"#, false),
            (r#"{"ttl":0,"creation_ttl":2}"#, false),
            (r#"{"ttl":-1}"#, false),
        ] {
            assert_eq!(looked_up(data).await.unwrap().expiry == Expiry::Never, endless, "{data}");
        }
    }

    #[tokio::test]
    async fn of_a_renewal_only_the_lease_is_needed() {
        // Of a real server with an identity-only token, and of a real agent that adds its own token.
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
        // The user is gone.
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
