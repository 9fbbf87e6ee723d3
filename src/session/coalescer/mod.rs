//! Coalesces concurrent Decrypts into few Vault requests.
//!
//! A kube-apiserver that starts decodes ten objects at a time and requests the same DEK seed up to ten times.
//! With KMS v1 it requests thousands of DEKs. Therefore, identical Decrypts become one, and different Decrypts
//! of one Transit key share a request. There is no timer: all items that arrive while the permitted number of
//! requests is in flight are sent with the next request, and a single call is sent at once.
//!
//! No caller owns a request: it runs in a task of its own until it is answered or the last caller leaves, so
//! the first caller may leave earlier. Each session has its own coalescer, so requests never mix tokens.

mod batch;
mod limit;
mod queue;

use std::sync::{Arc, Mutex};

use tokio::{sync::Semaphore, time::timeout_at};
use transit_client::{
    ErrorKind, Transit, TransitError,
    ciphertext::Ciphertext,
    key::KeyRef,
    transit::{Call, Decrypted},
};

use self::queue::{Inner, ItemOutcome, MAX_IN_FLIGHT};
use crate::observe::metrics::Metrics;

/// Decrypts with one session for many callers.
pub struct Coalescer {
    enabled: bool,
    inner: Arc<Inner>,
    /// Limits the requests in flight if coalescing is disabled.
    uncoalesced: Semaphore,
}

impl Coalescer {
    /// Creates a coalescer that sends requests to `transit`. If it is not `enabled`, each call is a request.
    #[must_use]
    pub fn new(transit: Arc<dyn Transit>, enabled: bool, metrics: Arc<Metrics>) -> Self {
        let inner = Inner { metrics, state: Mutex::default(), transit };
        Self { enabled, inner: Arc::new(inner), uncoalesced: Semaphore::new(MAX_IN_FLIGHT) }
    }

    /// Decrypts like [`Transit::decrypt`].
    ///
    /// # Errors
    /// The errors of [`Transit::decrypt`].
    pub async fn decrypt(
        &self,
        key: &KeyRef,
        ciphertext: &Ciphertext,
        call: Call<'_>,
    ) -> Result<Decrypted, TransitError> {
        let late = || {
            TransitError::new(
                ErrorKind::DeadlineExceeded,
                "Vault did not answer before the caller's deadline",
            )
        };
        if !self.enabled {
            let permit = timeout_at(call.deadline, self.uncoalesced.acquire()).await;
            let _permit = permit.map_err(|_| late())?.map_err(|_| unanswered())?;
            return self.inner.transit.decrypt(key, ciphertext, call).await;
        }
        let mut outcome = self.inner.join(key, ciphertext, call);
        let waiting = outcome.wait_for(|outcome| outcome.is_final_for(call.deadline));
        match timeout_at(call.deadline, waiting).await {
            Ok(Ok(outcome)) => match &*outcome {
                ItemOutcome::Done(result) => result.clone(),
                ItemOutcome::TimedOut { error, .. } => Err(error.clone()),
                ItemOutcome::Pending => Err(unanswered()),
            },
            // Only a panic drops the sender without an outcome.
            Ok(Err(_)) => Err(unanswered()),
            Err(_) => Err(late()),
        }
    }
}

fn unanswered() -> TransitError {
    TransitError::new(
        ErrorKind::InvalidResponse,
        "the request to Vault ended without an answer: this is a bug",
    )
}

#[cfg(test)]
mod tests;
