//! A session: how requests authenticate, on a pool of nodes, with the keys that they are for.

use std::sync::Arc;

use super::{
    lease::TokenGuard,
    pool::Pool,
    requester::{RequestAuth, RequestObserver, Requester},
};
use crate::{
    TransitError,
    key::{KeyNames, Namespace},
    metrics::ClientMetrics,
};

/// What a session may do: how it authenticates, and the keys that it is for.
#[derive(Clone, Debug)]
pub struct Access {
    /// Sent with every request.
    pub auth: RequestAuth,
    /// The first key encrypts, all keys decrypt.
    pub keys: KeyNames,
    /// The namespace of the token. Each key has a namespace of its own.
    pub namespace: Namespace,
}

/// Authenticated requests to a pool of nodes, with the keys that they are for. It implements
/// [`Transit`](crate::Transit).
///
/// A new session is not known to work: no request has been sent.
pub struct Session {
    pub(super) keys: KeyNames,
    /// The nodes. Other sessions may use them at the same time.
    pub pool: Arc<Pool>,
    pub(super) requester: Requester,
    /// For a token of an own login; `None` for one that another program has issued.
    _token_guard: Option<TokenGuard>,
}

impl Session {
    /// A session of `access` on `pool`. It sends no request.
    ///
    /// # Errors
    /// If the token cannot be sent in a header.
    pub fn new(access: &Access, pool: Arc<Pool>, metrics: Arc<ClientMetrics>) -> Result<Self, TransitError> {
        let requester = Requester::new(&access.auth, &access.namespace, Arc::clone(&pool), metrics)?;
        Ok(Self { keys: access.keys.clone(), pool, requester, _token_guard: None })
    }

    /// Marks the session, and its pool, as in use: calls are answered with it from now on.
    ///
    /// From then on, requests of this session change the health of the pool's nodes, and requests of sessions
    /// that are not in use do not. On a pool that is not in use, every session changes it.
    pub fn mark_in_use(&self) {
        self.requester.mark_in_use();
    }

    /// The same session with an observer. It is notified until it is dropped.
    #[must_use]
    pub fn with_observer(self, observer: &Arc<dyn RequestObserver>) -> Self {
        Self { requester: self.requester.with_observer(observer), ..self }
    }

    /// The same session, which keeps the token of an own login valid. The token is revoked when its last user
    /// is gone.
    #[must_use]
    pub fn with_token_guard(self, guard: TokenGuard) -> Self {
        Self { _token_guard: Some(guard), ..self }
    }
}
