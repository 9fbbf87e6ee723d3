//! The rotation of an X.509-SVID.

use std::{fmt, pin::Pin};

use futures_util::{Stream, StreamExt as _};
use spiffe::{SpiffeId, WorkloadApiError, X509Context};

use crate::{
    svid::X509Svid,
    workload_api::{FetchError, WorkloadApi},
};

type Contexts = Pin<Box<dyn Stream<Item = Result<X509Context, WorkloadApiError>> + Send>>;

/// The current X.509-SVID and its replacements, in order.
pub struct X509Updates {
    api: WorkloadApi,
    contexts: Option<Contexts>,
    /// The certificate that was returned last.
    last: Option<String>,
    spiffe_id: Option<SpiffeId>,
}

impl X509Updates {
    pub(crate) fn new(api: WorkloadApi, spiffe_id: Option<SpiffeId>) -> Self {
        Self { api, contexts: None, last: None, spiffe_id }
    }

    /// Returns the current SVID at the first call. Then waits, without a deadline, until there is an SVID with another
    /// certificate.
    ///
    /// It is cancel safe: dropping the future loses no SVID.
    ///
    /// # Errors
    /// See [`FetchError`]. The next call connects again, so wait before it.
    pub async fn next(&mut self) -> Result<X509Svid, FetchError> {
        let result = self.wait().await;
        if result.is_err() {
            self.contexts = None;
        }
        result
    }

    async fn wait(&mut self) -> Result<X509Svid, FetchError> {
        let (api, spiffe_id) = (&self.api, self.spiffe_id.as_ref());
        loop {
            let received = match &mut self.contexts {
                Some(contexts) => contexts.next().await,
                // The Workload API sends the current SVIDs at once.
                None => {
                    let open = async {
                        let contexts = api.connect().await?.stream_x509_contexts().await?;
                        let mut contexts: Contexts = Box::pin(contexts);
                        let first = contexts.next().await;
                        Ok((contexts, first))
                    };
                    let (contexts, first) = api.within_deadline(spiffe_id, open).await?;
                    self.contexts = Some(contexts);
                    first
                }
            };
            let context = received
                .unwrap_or(Err(WorkloadApiError::EmptyResponse))
                .map_err(|e| api.classify(e, spiffe_id))?;
            let svid = api.select(context.svids().iter().map(AsRef::as_ref), spiffe_id)?;
            // The Workload API also sends a message if only bundles or other SVIDs have changed.
            if self.last.as_ref() != Some(&svid.certificate) {
                self.last = Some(svid.certificate.clone());
                return Ok(svid);
            }
        }
    }
}

impl fmt::Debug for X509Updates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Updates")
            .field("api", &self.api)
            .field("spiffe_id", &self.spiffe_id)
            .finish_non_exhaustive()
    }
}
