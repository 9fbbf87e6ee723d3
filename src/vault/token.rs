//! The token's own affairs: looking it up and renewing it, by `vaultrs`' endpoints over
//! our connections.

use std::{sync::Mutex, time::Duration};

use async_trait::async_trait;
use http::{Request, Response};
use rustify::{Endpoint, client::Client, errors::ClientError};
use serde::de::IgnoredAny;
use tokio::time::Instant;
use tracing::warn;
use vaultrs::api::{
    EndpointResult,
    token::requests::{LookupTokenSelfRequest, RenewTokenSelfRequest},
};
use zeroize::Zeroize;

use super::{errors::Operation, pool::Incoming, session::Session};
use crate::kms::{Fault, TransitError, transit::Call};

/// A token that cannot be renewed and has less than this to live needs an agent that is awake.
const SHORT_TTL: Duration = Duration::from_secs(10 * 60);

/// A hundred years, in seconds; beyond it, sums of times might overflow.
const LONGEST_TTL: u64 = 100 * 365 * 86_400;

/// What Vault says of a token; never the token.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct TokenInfo {
    /// Uses left, if they are counted.
    pub(super) num_uses: u64,
    pub(super) policies: Vec<String>,
    pub(super) renewable: bool,
    /// Time left; zero if it never ends.
    pub(super) ttl: Duration,
}

impl TokenInfo {
    /// Refuses what would wear out: every call, even a lookup, spends a use.
    pub(super) fn check(&self) -> Result<(), TransitError> {
        if self.num_uses > 0 {
            return Err(TransitError::new(
                Fault::Denied,
                "the token has a limited number of uses and would wear out: issue it with num_uses=0",
            ));
        }
        Ok(())
    }

    /// What is allowed but not wise.
    pub(super) fn warn(&self) {
        if self.policies.iter().any(|policy| policy == "root") {
            warn!(
                "the token is a root token: give transit-kms one with the policy in the README, and nothing else"
            );
        } else if self.policies.iter().any(|policy| policy == "default") {
            warn!(
                "the token has the policy `default`, which makes every call cost the server 2 to 4 times as much: issue it with token_no_default_policy=true"
            );
        }
        if !self.renewable && !self.ttl.is_zero() && self.ttl < SHORT_TTL {
            warn!(
                ttl_seconds = self.ttl.as_secs(),
                "the token is not renewable and ends soon: the agent must render the next one before that"
            );
        }
    }
}

/// What became of a renewal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Renewal {
    /// The time that the token has from now.
    pub(super) ttl: Duration,
    /// Vault said that its maximum is reached.
    pub(super) capped: bool,
}

/// Asks what the token is and how long it lives.
pub(super) async fn lookup(session: &Session, deadline: Instant) -> Result<TokenInfo, TransitError> {
    let client = OneCall::new(session, Operation::LookupSelf, deadline);
    let mut found =
        client.run(LookupTokenSelfRequest::builder().build()).await?.data.ok_or_else(|| client.garbled())?;
    // The answer repeats the token.
    found.id.zeroize();
    Ok(TokenInfo {
        num_uses: found.num_uses,
        policies: found.policies,
        renewable: found.renewable.unwrap_or(false),
        ttl: Duration::from_secs(found.ttl.min(LONGEST_TTL)),
    })
}

/// Asks for another full TTL.
pub(super) async fn renew(session: &Session, deadline: Instant) -> Result<Renewal, TransitError> {
    let client = OneCall::new(session, Operation::RenewSelf, deadline);
    let answer = client.run(RenewTokenSelfRequest::builder().build()).await?;
    let capped = answer.warnings.iter().flatten().any(|warning| warning.contains("capped"));
    let mut auth = answer.auth.ok_or_else(|| client.garbled())?;
    auth.client_token.zeroize();
    Ok(Renewal { ttl: Duration::from_secs(auth.lease_duration.min(LONGEST_TTL)), capped })
}

/// Carries one of `vaultrs`' requests over our session, and our error back past
/// rustify's, which has no room for it.
struct OneCall<'a> {
    deadline: Instant,
    failure: Mutex<Option<TransitError>>,
    operation: Operation,
    session: &'a Session,
}

impl<'a> OneCall<'a> {
    fn new(session: &'a Session, operation: Operation, deadline: Instant) -> Self {
        Self { deadline, failure: Mutex::new(None), operation, session }
    }

    /// `built` is what the derived builders answer; all their fields are optional.
    async fn run<E: Endpoint, B>(
        &self,
        built: Result<E, B>,
    ) -> Result<EndpointResult<E::Response>, TransitError> {
        let endpoint = built.map_err(|_| self.garbled())?;
        let mut result = match endpoint.exec(self).await {
            Ok(result) => result,
            Err(_) => {
                return Err(self
                    .failure
                    .lock()
                    .ok()
                    .and_then(|mut it| it.take())
                    .unwrap_or_else(|| self.garbled()));
            }
        };
        let parsed = serde_json::from_slice(result.response.body()).map_err(|_| self.garbled());
        result.response.body_mut().zeroize();
        parsed
    }

    fn garbled(&self) -> TransitError {
        TransitError::new(Fault::Nonsense, format!("the answer to {} is not Vault's", self.operation.name()))
    }
}

#[async_trait]
impl Client for OneCall<'_> {
    async fn send(&self, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, ClientError> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().trim_start_matches('/').to_owned();
        let call = Call { deadline: self.deadline, uid: "token" };
        // What it says is read by the caller; that it is JSON is what makes it an answer.
        let accept = |answer: &Incoming| match serde_json::from_slice::<IgnoredAny>(&answer.body) {
            Ok(_) => Ok(answer.body.to_vec()),
            Err(_) => Err(self.garbled()),
        };
        match self.session.ask(self.operation, path, body.into(), call, accept).await {
            Ok(answer) => Ok(Response::new(answer)),
            Err(error) => {
                if let Ok(mut failure) = self.failure.lock() {
                    *failure = Some(error);
                }
                Err(ClientError::GenericError { source: anyhow::anyhow!("see OneCall::failure") })
            }
        }
    }

    fn base(&self) -> &str {
        // Only the path is used; the session knows the addresses.
        "https://vault.invalid"
    }
}
