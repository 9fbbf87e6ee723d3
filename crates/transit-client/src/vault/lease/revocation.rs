//! Revokes tokens of own logins when their last user is gone.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tracing::{debug, info};

use super::requests::revoke;
use crate::{
    TransitError,
    key::Namespace,
    metrics::ClientMetrics,
    token::Token,
    vault::{
        pool::Pool,
        requester::{RequestAuth, Requester},
    },
};

/// The longest that one revocation may take. If it fails, the token stays valid until its TTL ends.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Takes tokens that are to be revoked. Clones take them for the same [`Revocations`].
#[derive(Clone)]
pub struct Revoker(mpsc::UnboundedSender<Requester>);

/// Revokes the tokens that the [`Revoker`]s take.
pub struct Revocations(mpsc::UnboundedReceiver<Requester>);

/// A revoker, and the task that does its work.
#[must_use]
pub fn revocations() -> (Revoker, Revocations) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Revoker(sender), Revocations(receiver))
}

impl Revoker {
    /// Has the token revoked when the last clone of the guard is dropped. `namespace` is that of the token.
    ///
    /// # Errors
    /// If the token cannot be sent in a header.
    pub fn guard(
        &self,
        token: &Token,
        namespace: &Namespace,
        pool: Arc<Pool>,
        metrics: Arc<ClientMetrics>,
    ) -> Result<TokenGuard, TransitError> {
        let requester = Requester::new(&RequestAuth::Token(token.clone()), namespace, pool, metrics)?;
        Ok(TokenGuard(Arc::new(RevokeOnDrop { requester: Some(requester), revoker: self.clone() })))
    }
}

impl Revocations {
    /// Revokes tokens until the last [`Revoker`], and with it the last session that is to be revoked, is
    /// dropped. Failures are logged and not repeated.
    pub async fn run(mut self) {
        let mut running = JoinSet::new();
        while let Some(requester) = self.0.recv().await {
            while running.try_join_next().is_some() {}
            running.spawn(async move {
                match revoke(&requester, Instant::now() + REVOKE_TIMEOUT).await {
                    Ok(()) => debug!("the token of a session that is no longer used was revoked"),
                    Err(error) => {
                        info!(%error, "a token could not be revoked; it stays valid until its TTL ends");
                    }
                }
            });
        }
        running.join_all().await;
    }
}

/// Keeps the token of an own login valid. Its last clone hands the token to the [`Revoker`] when it is dropped.
#[derive(Clone)]
pub struct TokenGuard(#[expect(dead_code, reason = "it is there to be dropped")] Arc<RevokeOnDrop>);

struct RevokeOnDrop {
    requester: Option<Requester>,
    revoker: Revoker,
}

impl Drop for RevokeOnDrop {
    fn drop(&mut self) {
        if let Some(requester) = self.requester.take() {
            // Fails if the process is about to end and nothing revokes tokens any more.
            let _ = self.revoker.0.send(requester);
        }
    }
}
