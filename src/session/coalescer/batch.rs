//! One request to Vault for one or more items.

use std::{mem, sync::Arc, time::Duration};

use rand::Rng;
use tokio::time::Instant;
use tracing::{debug, warn};
use transit_client::{ErrorKind, TransitError, transit::Call};

use super::queue::{DecryptResult, InFlightGuard, Inner, Item, ItemKey, ItemOutcome};

/// A request ends this much earlier than the latest deadline of its callers, so that they receive its error.
const REPLY_MARGIN: Duration = Duration::from_millis(20);

/// The items of one request. The batch answers or requeues each item in `items`.
pub(super) struct Batch {
    in_flight: Option<InFlightGuard>,
    inner: Arc<Inner>,
    items: Vec<Arc<Item>>,
}

#[derive(Clone, Copy)]
struct Deadlines {
    /// The latest deadline of the callers at the time when the request was sent.
    callers: Instant,
    request: Instant,
}

impl Batch {
    pub(super) fn new(items: Vec<Arc<Item>>, in_flight: InFlightGuard, inner: Arc<Inner>) -> Self {
        Self { in_flight: Some(in_flight), inner, items }
    }

    /// Sends the request, and cancels it if all its callers leave.
    pub(super) async fn run(mut self) {
        let items = self.items.clone();
        tokio::select! {
            () = self.send() => {}
            () = all_waiters_gone(&items) => {}
        }
        let mut state = self.inner.lock();
        for item in self.items.drain(..).rev() {
            // A caller may have joined the item after all others left it.
            if item.has_waiters() {
                state.queue.push_front(item);
            } else {
                state.by_key.remove(&item.key);
            }
        }
        drop(state);
        drop(self.in_flight.take());
        self.inner.dispatch();
    }

    async fn send(&mut self) {
        let Some(latest) = self.items.iter().map(|item| item.deadline()).max() else { return };
        let deadlines =
            Deadlines { callers: latest, request: latest.checked_sub(REPLY_MARGIN).unwrap_or(latest) };
        let size = self.items.len();
        self.inner.metrics.requests.batch_size.observe(size as f64);
        let response = match self.items.as_slice() {
            [item] => Ok(vec![self.decrypt_single(item, deadlines.request).await]),
            items => self.decrypt_batch(items, deadlines.request).await,
        };
        match response {
            Ok(results) => {
                self.inner.lock().limit.succeeded(size);
                let mut singles = Vec::new();
                for (item, result) in mem::take(&mut self.items).into_iter().zip(results) {
                    match result {
                        // Another node may decrypt it. Failover handles a call that has failed, but not
                        // a part of one that has succeeded.
                        Err(error) if size > 1 && !depends_on_item_alone(error.kind) => singles.push(item),
                        result => self.answer(item, result, deadlines),
                    }
                }
                self.inner.queue_singles(singles.into_iter());
            }
            Err(error) if error.kind == ErrorKind::BatchTooLarge => {
                debug!(%error, items = size, "the batch is too large: halving the batch size for a while");
                self.inner.lock().limit.lower(size, size / 2);
                self.inner.requeue(mem::take(&mut self.items).into_iter());
            }
            Err(error) if matches!(error.kind, ErrorKind::Denied | ErrorKind::InvalidResponse) => {
                self.compare_with_single(error, deadlines).await;
            }
            Err(error) => self.answer_all(&error, deadlines),
        }
    }

    async fn decrypt_single(&self, item: &Item, deadline: Instant) -> DecryptResult {
        let ItemKey { ciphertext, transit_key } = &item.key;
        self.inner.transit.decrypt(transit_key, ciphertext, Call { deadline, uid: &item.uid }).await
    }

    async fn decrypt_batch(
        &self,
        items: &[Arc<Item>],
        deadline: Instant,
    ) -> Result<Vec<DecryptResult>, TransitError> {
        let Some(first) = items.first() else { return Ok(Vec::new()) };
        let key = &first.key.transit_key;
        let uid = format!("batch-{:016x}", rand::rng().next_u64());
        let ciphertexts: Vec<_> = items.iter().map(|item| &item.key.ciphertext).collect();
        debug!(uid, %key, items = items.len(), "sending a batch of Decrypts");
        self.inner.transit.decrypt_batch(key, &ciphertexts, Call { deadline, uid: &uid }).await
    }

    /// Sends the first item alone, to find out whether the batch was refused because it is a batch.
    ///
    /// A policy may allow only the parameter of a single Decrypt, and some proxies do not pass on batches. The
    /// result of the single Decrypt decides.
    async fn compare_with_single(&mut self, error: TransitError, deadlines: Deadlines) {
        let Some(first) = self.items.first() else { return };
        match self.decrypt_single(first, deadlines.request).await {
            Err(single_error) if single_error.kind == error.kind => {
                self.answer_all(&single_error, deadlines);
            }
            result => {
                // One invalid response says nothing about the next batch.
                if error.kind == ErrorKind::Denied {
                    warn!(%error, "Vault denies batches of Decrypts, but not single ones: does the policy allow `batch_input`?");
                    self.inner.lock().limit.lower(2, 1);
                } else {
                    debug!(%error, "the response to a batch is invalid: sending its Decrypts one by one");
                }
                let first = self.items.remove(0);
                self.answer(first, result, deadlines);
                self.inner.queue_singles(mem::take(&mut self.items).into_iter());
            }
        }
    }

    fn answer_all(&mut self, error: &TransitError, deadlines: Deadlines) {
        for item in mem::take(&mut self.items) {
            self.answer(item, Err(error.clone()), deadlines);
        }
    }

    fn answer(&self, item: Arc<Item>, result: DecryptResult, deadlines: Deadlines) {
        let mut state = self.inner.lock();
        match result {
            // A caller with a later deadline joined after the request was sent. It keeps waiting, and the
            // other callers receive the error now.
            Err(error)
                if deadlines.caused(error.kind)
                    && item.deadline() > deadlines.callers
                    && item.has_waiters() =>
            {
                item.outcome.send_replace(ItemOutcome::TimedOut { deadline: deadlines.callers, error });
                state.queue.push_back(item);
                drop(state);
                self.inner.dispatch();
            }
            result => {
                // Later calls for the same ciphertext send a new request: results are not cached.
                state.by_key.remove(&item.key);
                item.outcome.send_replace(ItemOutcome::Done(result));
            }
        }
    }
}

impl Deadlines {
    /// Whether a request failed with `kind` only because its deadline passed. At the deadline, failover returns
    /// the last error of a node, if there is one.
    fn caused(self, kind: ErrorKind) -> bool {
        match kind {
            ErrorKind::DeadlineExceeded => true,
            ErrorKind::Unreachable => Instant::now() >= self.request,
            _ => false,
        }
    }
}

impl Drop for Batch {
    /// Removes the items that a panic left unanswered, so that new calls can send them again.
    fn drop(&mut self) {
        if !self.items.is_empty() {
            let mut state = self.inner.lock();
            self.items.iter().for_each(|item| drop(state.by_key.remove(&item.key)));
        }
    }
}

async fn all_waiters_gone(items: &[Arc<Item>]) {
    while let Some(item) = items.iter().find(|item| item.has_waiters()) {
        item.outcome.closed().await;
    }
}

/// Whether an item that fails with `kind` in a batch would fail in the same way alone: the cause is the
/// ciphertext, or the type of the key. (A policy refuses batches as a whole.)
fn depends_on_item_alone(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::BadCiphertext | ErrorKind::Denied | ErrorKind::VersionTooOld)
}
