//! Sends requests to the nodes of a pool: the headers, the namespace, and how the requests authenticate.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{
    auth::InlineLogin,
    exchange::{HttpRequest, HttpResponse, X_VAULT_NAMESPACE, X_VAULT_REQUEST},
    failover::{self, Acceptance, Replay, TokenSource},
    pool::Pool,
};
use crate::{
    ErrorKind, TransitError, key::Namespace, metrics::ClientMetrics, operation::VaultOperation, token::Token,
    transit::Call,
};

const X_VAULT_TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
/// Vault 1.17 and later writes it into its audit log by default; see `docs/audit.md`.
const X_CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
const X_KMS_UID: HeaderName = HeaderName::from_static("x-kms-uid");

/// How long a token is fresh. Within this time after it was issued, some nodes may not know it yet, so their
/// refusal is not final.
const FRESH_TOKEN_AGE: Duration = Duration::from_secs(2);

/// How long an active node is looked for before a request that is sent only once.
const FIND_NODE_TIMEOUT: Duration = Duration::from_secs(2);

/// How requests authenticate.
#[derive(Clone)]
pub enum RequestAuth {
    /// With this JWT in the header `Authorization`. Only a login has it.
    Bearer(SecretString),
    /// With headers that hold a login, which OpenBao performs for each request.
    Inline(InlineLogin),
    /// With the token of a login of this process.
    LoginToken(Token),
    /// Not at all: an agent or proxy in between adds its token, or the path needs none.
    NoToken,
    /// With a token that another program has issued.
    Token(Token),
}

impl fmt::Debug for RequestAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bearer(_) => "Bearer(***)",
            Self::Inline(_) => "Inline(***)",
            Self::LoginToken(_) => "LoginToken(***)",
            Self::NoToken => "NoToken",
            Self::Token(_) => "Token(***)",
        })
    }
}

/// Observes the requests of a session, for example while the session is verified.
pub trait RequestObserver: Send + Sync {
    /// A request for `operation` is about to be sent.
    fn request_started(&self, operation: VaultOperation);
    /// A node did not answer. Others may still do so.
    fn node_failed(&self, error: &TransitError);
}

/// The type of the observer of a requester that has none.
struct NoObserver;

impl RequestObserver for NoObserver {
    fn request_started(&self, _: VaultOperation) {}
    fn node_failed(&self, _: &TransitError) {}
}

/// A request, without what the requester adds to it.
pub(super) struct Outgoing {
    /// Wiped when the last reference is dropped.
    pub(super) body: Zeroizing<Vec<u8>>,
    pub(super) operation: VaultOperation,
    /// Below the namespace, and without `/v1/`.
    pub(super) path: String,
    pub(super) replay: Replay,
}

/// Sends requests with one authentication to the nodes of a pool.
pub(super) struct Requester {
    acceptance: Acceptance,
    created: Instant,
    /// Sent with every request. The value of the token is marked sensitive, and wiped on drop.
    headers: HeaderMap,
    /// See [`Self::mark_in_use`].
    in_use: AtomicBool,
    /// The login that travels with each request.
    inline: Option<InlineLogin>,
    pub(super) metrics: Arc<ClientMetrics>,
    /// The namespace of the token, for lookup and renewal. Each key has a namespace of its own.
    namespace: Namespace,
    observer: Weak<dyn RequestObserver>,
    pub(super) pool: Arc<Pool>,
    token_source: TokenSource,
}

impl Requester {
    /// Requests that authenticate with `auth`. It sends none.
    ///
    /// # Errors
    /// If the token cannot be sent in a header.
    pub(super) fn new(
        auth: &RequestAuth,
        namespace: &Namespace,
        pool: Arc<Pool>,
        metrics: Arc<ClientMetrics>,
    ) -> Result<Self, TransitError> {
        let mut headers = common_headers();
        let (token, token_source) = match auth {
            RequestAuth::Bearer(jwt) => {
                let value = bearer(jwt).ok_or_else(|| unsendable("the JWT"))?;
                headers.insert(header::AUTHORIZATION, value);
                (None, TokenSource::Agent)
            }
            RequestAuth::Inline(login) => {
                headers.extend(login.headers().clone());
                (None, TokenSource::Inline)
            }
            RequestAuth::LoginToken(token) => (Some(token), TokenSource::Login),
            RequestAuth::NoToken => (None, TokenSource::Agent),
            RequestAuth::Token(token) => (Some(token), TokenSource::Rendered),
        };
        if let Some(token) = token {
            let value = sensitive(token.expose().as_bytes()).ok_or_else(|| unsendable("vault.token"))?;
            headers.insert(X_VAULT_TOKEN, value);
        }
        let inline = match auth {
            RequestAuth::Inline(login) => Some(login.clone()),
            _ => None,
        };
        Ok(Self {
            acceptance: Acceptance::default(),
            created: Instant::now(),
            headers,
            in_use: AtomicBool::new(false),
            inline,
            metrics,
            namespace: namespace.clone(),
            observer: Weak::<NoObserver>::new(),
            pool,
            token_source,
        })
    }

    /// See [`Session::mark_in_use`](super::Session::mark_in_use).
    pub(super) fn mark_in_use(&self) {
        self.in_use.store(true, Ordering::Relaxed);
        self.pool.mark_in_use();
    }

    /// Whether the outcome of a request changes the health of nodes. Calls depend on the health of a pool in
    /// use, and a candidate may be wrong in ways that say nothing about the nodes.
    fn affects_node_health(&self, operation: VaultOperation) -> bool {
        !operation.is_about_token() && (self.in_use.load(Ordering::Relaxed) || !self.pool.is_in_use())
    }

    /// The same requester with an observer. It is notified until it is dropped.
    pub(super) fn with_observer(self, observer: &Arc<dyn RequestObserver>) -> Self {
        Self { observer: Arc::downgrade(observer), ..self }
    }

    /// As [`Self::send_in`], in the namespace of the token.
    pub(super) async fn send<T>(
        &self,
        request: Outgoing,
        call: Call<'_>,
        parse: impl Fn(&HttpResponse) -> Result<T, TransitError> + Sync,
    ) -> Result<T, TransitError> {
        self.send_in(&self.namespace, request, call, parse).await
    }

    /// Sends a request to Vault. If `parse` does not understand an answer, another node is asked, if the
    /// request may be sent again.
    pub(super) async fn send_in<T>(
        &self,
        namespace: &Namespace,
        request: Outgoing,
        call: Call<'_>,
        parse: impl Fn(&HttpResponse) -> Result<T, TransitError> + Sync,
    ) -> Result<T, TransitError> {
        let Outgoing { body, operation, path, replay } = request;
        if let Some(error) = self.inline.as_ref().and_then(InlineLogin::exhausted) {
            return Err(error);
        }
        let token_source = self.token_source;
        let mut headers = self.headers.clone();
        if !namespace.is_root() {
            let value = HeaderValue::from_str(namespace.as_str()).map_err(|_| unsendable("namespace"))?;
            headers.insert(X_VAULT_NAMESPACE, value);
        }
        if let Ok(uid) = HeaderValue::from_str(call.uid) {
            headers.insert(X_CORRELATION_ID, uid.clone());
            headers.insert(X_KMS_UID, uid);
        }
        if replay == Replay::IfUnsent {
            // It is sent to one node only, so that should be one that answers. On a pool in use, that is the node
            // that answers calls.
            let until = call.deadline.min(Instant::now() + FIND_NODE_TIMEOUT);
            drop(self.node_is_active(usize::MAX, until).await);
        }
        let body = Bytes::from_owner(body);
        let http = HttpRequest { method: operation.method(), path, headers, body, token_source };
        let observer = self.observer.upgrade();
        if let Some(observer) = &observer {
            observer.request_started(operation);
        }
        let request = failover::Request {
            acceptance: &self.acceptance,
            affects_node_health: self.affects_node_health(operation),
            deadline: call.deadline,
            http: &http,
            observer: observer.as_deref(),
            operation,
            replay,
            token_is_fresh: self.has_token() && self.created.elapsed() < FRESH_TOKEN_AGE,
        };
        let answer = failover::send(&self.pool, &self.metrics, request, &parse).await;
        let answer = match &self.inline {
            Some(inline) => inline.outcome(answer),
            None => answer,
        };
        answer.map_err(|mut error| {
            // These messages name the path, which is below the namespace of the token unless they say so.
            if matches!(error.kind, ErrorKind::Denied | ErrorKind::KeyNotFound)
                && *namespace != self.namespace
            {
                let name = if namespace.is_root() { "root" } else { namespace.as_str() };
                error.message.push_str(&format!(" (in namespace {name})"));
            }
            error
        })
    }

    /// Whether requests have a token. A token that was just issued may be unknown to some nodes.
    fn has_token(&self) -> bool {
        matches!(self.token_source, TokenSource::Login | TokenSource::Rendered)
    }

    /// See [`failover::is_active`].
    pub(super) async fn node_is_active(&self, node: usize, deadline: Instant) -> Result<bool, TransitError> {
        let operation = VaultOperation::Health;
        // The request needs no token. It has no namespace either: Vault refuses it in one.
        let headers = common_headers();
        let request = HttpRequest {
            method: operation.method(),
            path: "sys/health".into(),
            headers,
            body: Bytes::new(),
            token_source: self.token_source,
        };
        let prefer = self.affects_node_health(operation);
        failover::is_active(&self.pool, &self.metrics, &request, node, prefer, deadline).await
    }
}

/// The headers of every request.
fn common_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(X_VAULT_REQUEST, HeaderValue::from_static("true"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers
}

/// A header value that is marked sensitive. It shares one buffer, which is wiped on drop, with its clones.
/// `None` if a byte cannot be sent in a header.
pub(super) fn sensitive(bytes: &[u8]) -> Option<HeaderValue> {
    let bytes = Bytes::from_owner(Zeroizing::new(bytes.to_vec()));
    let mut value = HeaderValue::from_maybe_shared(bytes).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The value of the header `Authorization`. The buffer must not grow, because that leaves a copy in memory.
fn bearer(jwt: &SecretString) -> Option<HeaderValue> {
    const SCHEME: &[u8] = b"Bearer ";
    let jwt = jwt.expose_secret().as_bytes();
    let mut value = Zeroizing::new(Vec::with_capacity(SCHEME.len() + jwt.len()));
    value.extend_from_slice(SCHEME);
    value.extend_from_slice(jwt);
    sensitive(&value)
}

fn unsendable(what: &str) -> TransitError {
    TransitError::new(ErrorKind::Config, format!("{what} has characters that cannot be sent in a header"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jwt_is_a_sensitive_header() {
        let value = bearer(&"a.b.c".into()).unwrap();
        assert!(value.is_sensitive() && value == "Bearer a.b.c");
        assert_eq!(format!("{:?}", RequestAuth::Bearer("a.b.c".into())), "Bearer(***)");
    }
}
