//! A session: one token on a pool of connections.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{
    failover::{self, Acceptance, Question, classify::Operation},
    node::{X_VAULT_NAMESPACE, X_VAULT_REQUEST},
    pool::{Incoming, Outgoing, Pool},
};
use crate::{
    ErrorKind, TransitError,
    key::{KeyNames, Namespace},
    metrics::ClientMetrics,
    token::Token,
    transit::Call,
};

const X_VAULT_TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
/// Vault >= 1.17 puts it into its audit log by itself; see `docs/audit.md`.
const X_CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
const X_KMS_UID: HeaderName = HeaderName::from_static("x-kms-uid");

/// For so long a token that was just issued may be unknown to some nodes.
const FRESH: Duration = Duration::from_secs(2);

/// What a session is made of.
#[derive(Clone, Debug)]
pub struct Access {
    /// The first encrypts, all decrypt.
    pub keys: KeyNames,
    /// The namespace of the token; a key has a namespace of its own.
    pub namespace: Namespace,
    /// Sent with every request.
    pub token: Token,
}

/// Learns what a session waits for, while it is verified.
pub trait RequestObserver: Send + Sync {
    /// A request for `operation` is sent.
    fn request_started(&self, operation: Operation);
    /// A node did not answer; others may.
    fn node_failed(&self, error: &TransitError);
}

/// No session reports to it: it gives the type of a reporter that never lived.
struct NoObserver;

impl RequestObserver for NoObserver {
    fn request_started(&self, _: Operation) {}
    fn node_failed(&self, _: &TransitError) {}
}

/// A token on a pool of connections, with the keys that it is for; not proven to work.
pub struct Session {
    acceptance: Acceptance,
    begun: Instant,
    /// Sent with every request, whatever its namespace: token (marked sensitive, wiped on drop).
    headers: HeaderMap,
    /// Calls are answered with it, or were.
    in_use: AtomicBool,
    pub(super) keys: KeyNames,
    pub(super) metrics: Arc<ClientMetrics>,
    /// Of the token, for what concerns the token; a key has a namespace of its own.
    namespace: Namespace,
    /// Its connections, which it may share with other sessions.
    pub pool: Arc<Pool>,
    /// Set while this is a candidate; it ends with the verification.
    progress: Weak<dyn RequestObserver>,
}

impl Session {
    /// # Errors
    /// If the token cannot be sent in a header.
    pub fn new(access: &Access, pool: Arc<Pool>, metrics: Arc<ClientMetrics>) -> Result<Self, TransitError> {
        let mut headers = HeaderMap::new();
        // The header shares the wiping buffer instead of copying the token.
        let bytes = Bytes::from_owner(Zeroizing::new(access.token.expose().as_bytes().to_vec()));
        let mut value = HeaderValue::from_maybe_shared(bytes).map_err(|_| unsendable("vault.token"))?;
        value.set_sensitive(true);
        headers.insert(X_VAULT_TOKEN, value);
        headers.insert(X_VAULT_REQUEST, HeaderValue::from_static("true"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(Self {
            acceptance: Acceptance::default(),
            begun: Instant::now(),
            headers,
            in_use: AtomicBool::new(false),
            keys: access.keys.clone(),
            metrics,
            namespace: access.namespace.clone(),
            pool,
            progress: Weak::<NoObserver>::new(),
        })
    }

    /// Calls are answered with it from now on: what it meets is news of the pool's nodes.
    pub fn mark_in_use(&self) {
        self.in_use.store(true, Ordering::Relaxed);
        self.pool.mark_in_use();
    }

    /// Whether what it meets changes the health of nodes. Live calls depend on the health of a pool in use,
    /// so a candidate changes none there; it may be wrong in ways that say nothing about the nodes.
    fn speaks_for_nodes(&self, operation: Operation) -> bool {
        !operation.is_token_care() && (self.in_use.load(Ordering::Relaxed) || !self.pool.is_in_use())
    }

    /// The same, and what it waits for is told to `progress` while that lives.
    #[must_use]
    pub fn with_observer(self, progress: &Arc<dyn RequestObserver>) -> Self {
        Self { progress: Arc::downgrade(progress), ..self }
    }

    /// Asks Vault about the token, in the token's namespace; as [`Self::ask_in`].
    pub(super) async fn ask<T>(
        &self,
        operation: Operation,
        path: String,
        body: Zeroizing<Vec<u8>>,
        call: Call<'_>,
        accept: impl Fn(&Incoming) -> Result<T, TransitError> + Sync,
    ) -> Result<T, TransitError> {
        self.ask_in(&self.namespace, operation, path, body, call, accept).await
    }

    /// Asks Vault; `path` is below `namespace` and without `/v1/`, `body` is wiped afterwards. An answer
    /// that `accept` does not understand is none: another node is asked.
    pub(super) async fn ask_in<T>(
        &self,
        namespace: &Namespace,
        operation: Operation,
        path: String,
        body: Zeroizing<Vec<u8>>,
        call: Call<'_>,
        accept: impl Fn(&Incoming) -> Result<T, TransitError> + Sync,
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
        let outgoing = Outgoing { method: operation.method(), path, headers, body: Bytes::from_owner(body) };
        let progress = self.progress.upgrade();
        if let Some(progress) = &progress {
            progress.request_started(operation);
        }
        let question = Question {
            acceptance: &self.acceptance,
            deadline: call.deadline,
            operation,
            outgoing: &outgoing,
            progress: progress.as_deref(),
            speaks_for_nodes: self.speaks_for_nodes(operation),
            token_is_fresh: self.begun.elapsed() < FRESH,
        };
        let asked = failover::ask(&self.pool, &self.metrics, question, &accept).await;
        asked.map_err(|mut error| {
            // These name the path, which is below the namespace of the config unless they say so.
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
        // It belongs to the node: in a namespace it is refused, and it needs no token.
        let mut headers = self.headers.clone();
        headers.remove(X_VAULT_TOKEN);
        let outgoing =
            Outgoing { method: Method::GET, path: "sys/health".into(), headers, body: Bytes::new() };
        let prefer = self.speaks_for_nodes(Operation::Health);
        failover::is_active(&self.pool, &self.metrics, &outgoing, node, prefer, deadline).await
    }
}

fn unsendable(what: &str) -> TransitError {
    TransitError::new(ErrorKind::Config, format!("{what} holds characters that cannot be sent"))
}
