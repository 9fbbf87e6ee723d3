//! A session: one token on a pool of nodes.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{
    exchange::{HttpRequest, HttpResponse, X_VAULT_NAMESPACE, X_VAULT_REQUEST},
    failover::{self, Acceptance, Replay},
    pool::Pool,
};
use crate::{
    ErrorKind, TransitError,
    key::{KeyNames, Namespace},
    metrics::ClientMetrics,
    operation::VaultOperation,
    token::Token,
    transit::Call,
};

const X_VAULT_TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
/// Vault 1.17 and later writes it into its audit log by default; see `docs/audit.md`.
const X_CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
const X_KMS_UID: HeaderName = HeaderName::from_static("x-kms-uid");

/// How long a token is fresh. Within this time after it was issued, some nodes may not know it yet, so their
/// refusal is not final.
const FRESH_TOKEN_AGE: Duration = Duration::from_secs(2);

/// What a session may do: the token, and the keys that it is for.
#[derive(Clone, Debug)]
pub struct Access {
    /// The first key encrypts, all keys decrypt.
    pub keys: KeyNames,
    /// The namespace of the token. Each key has a namespace of its own.
    pub namespace: Namespace,
    /// Sent with every request.
    pub token: Token,
}

/// Observes the requests of a session, for example while the session is verified.
pub trait RequestObserver: Send + Sync {
    /// A request for `operation` is about to be sent.
    fn request_started(&self, operation: VaultOperation);
    /// A node did not answer. Others may still do so.
    fn node_failed(&self, error: &TransitError);
}

/// The type of the observer of a session that has none.
struct NoObserver;

impl RequestObserver for NoObserver {
    fn request_started(&self, _: VaultOperation) {}
    fn node_failed(&self, _: &TransitError) {}
}

/// A token on a pool of nodes, with the keys that it is for. It implements [`Transit`](crate::Transit).
///
/// A new session is not known to work: no request has been sent.
pub struct Session {
    acceptance: Acceptance,
    created: Instant,
    /// Sent with every request. The value of the token is marked sensitive, and wiped on drop.
    headers: HeaderMap,
    /// See [`Self::mark_in_use`].
    in_use: AtomicBool,
    pub(super) keys: KeyNames,
    pub(super) metrics: Arc<ClientMetrics>,
    /// The namespace of the token, for lookup and renewal. Each key has a namespace of its own.
    namespace: Namespace,
    observer: Weak<dyn RequestObserver>,
    /// The nodes. Other sessions may use them at the same time.
    pub pool: Arc<Pool>,
}

impl Session {
    /// A session of `access` on `pool`. It sends no request.
    ///
    /// # Errors
    /// If the token cannot be sent in a header.
    pub fn new(access: &Access, pool: Arc<Pool>, metrics: Arc<ClientMetrics>) -> Result<Self, TransitError> {
        let mut headers = HeaderMap::new();
        // The header shares the buffer that is wiped, instead of a copy of the token.
        let bytes = Bytes::from_owner(Zeroizing::new(access.token.expose().as_bytes().to_vec()));
        let mut value = HeaderValue::from_maybe_shared(bytes).map_err(|_| unsendable("vault.token"))?;
        value.set_sensitive(true);
        headers.insert(X_VAULT_TOKEN, value);
        headers.insert(X_VAULT_REQUEST, HeaderValue::from_static("true"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(Self {
            acceptance: Acceptance::default(),
            created: Instant::now(),
            headers,
            in_use: AtomicBool::new(false),
            keys: access.keys.clone(),
            metrics,
            namespace: access.namespace.clone(),
            observer: Weak::<NoObserver>::new(),
            pool,
        })
    }

    /// Marks the session, and its pool, as in use: calls are answered with it from now on.
    ///
    /// From then on, requests of this session change the health of the pool's nodes, and requests of sessions
    /// that are not in use do not. On a pool that is not in use, every session changes it.
    pub fn mark_in_use(&self) {
        self.in_use.store(true, Ordering::Relaxed);
        self.pool.mark_in_use();
    }

    /// Whether the outcome of a request changes the health of nodes. Calls depend on the health of a pool in
    /// use, and a candidate may be wrong in ways that say nothing about the nodes.
    fn affects_node_health(&self, operation: VaultOperation) -> bool {
        !operation.is_about_token() && (self.in_use.load(Ordering::Relaxed) || !self.pool.is_in_use())
    }

    /// The same session with an observer. It is notified until it is dropped.
    #[must_use]
    pub fn with_observer(self, observer: &Arc<dyn RequestObserver>) -> Self {
        Self { observer: Arc::downgrade(observer), ..self }
    }

    /// As [`Self::send_in`], in the namespace of the token.
    pub(super) async fn send<T>(
        &self,
        operation: VaultOperation,
        path: String,
        body: Zeroizing<Vec<u8>>,
        call: Call<'_>,
        parse: impl Fn(&HttpResponse) -> Result<T, TransitError> + Sync,
    ) -> Result<T, TransitError> {
        self.send_in(&self.namespace, operation, path, body, call, parse).await
    }

    /// Sends a request to Vault. `path` is below `namespace` and without `/v1/`; `body` is wiped afterwards. If
    /// `parse` does not understand an answer, another node is asked.
    pub(super) async fn send_in<T>(
        &self,
        namespace: &Namespace,
        operation: VaultOperation,
        path: String,
        body: Zeroizing<Vec<u8>>,
        call: Call<'_>,
        parse: impl Fn(&HttpResponse) -> Result<T, TransitError> + Sync,
    ) -> Result<T, TransitError> {
        let mut headers = self.headers.clone();
        if !namespace.is_root() {
            let value = HeaderValue::from_str(namespace.as_str()).map_err(|_| unsendable("namespace"))?;
            headers.insert(X_VAULT_NAMESPACE, value);
        }
        if let Ok(uid) = HeaderValue::from_str(call.uid) {
            headers.insert(X_CORRELATION_ID, uid.clone());
            headers.insert(X_KMS_UID, uid);
        }
        let http = HttpRequest { method: operation.method(), path, headers, body: Bytes::from_owner(body) };
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
            replay: Replay::Safe,
            token_is_fresh: self.created.elapsed() < FRESH_TOKEN_AGE,
        };
        let answer = failover::send(&self.pool, &self.metrics, request, &parse).await;
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

    /// See [`failover::is_active`].
    pub(super) async fn node_is_active(&self, node: usize, deadline: Instant) -> Result<bool, TransitError> {
        let operation = VaultOperation::Health;
        let mut headers = self.headers.clone();
        // The request needs no token. It has no namespace either: Vault refuses it in one.
        headers.remove(X_VAULT_TOKEN);
        let request = HttpRequest {
            method: operation.method(),
            path: "sys/health".into(),
            headers,
            body: Bytes::new(),
        };
        let prefer = self.affects_node_health(operation);
        failover::is_active(&self.pool, &self.metrics, &request, node, prefer, deadline).await
    }
}

fn unsendable(what: &str) -> TransitError {
    TransitError::new(ErrorKind::Config, format!("{what} has characters that cannot be sent in a header"))
}
