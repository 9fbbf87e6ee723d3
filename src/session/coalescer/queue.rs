//! The queue of items, and which of them are sent next.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    pin,
    sync::watch,
    time::{Instant, timeout},
};
use transit_client::{
    Transit, TransitError,
    ciphertext::Ciphertext,
    key::KeyRef,
    transit::{Call, Decrypted},
};

use super::{batch::Batch, limit::BatchSizeLimit};
use crate::observe::metrics::Metrics;

/// The most batches in flight. One or three make no measurable difference in throughput on one node
/// (`benches/daemon.rs`). With one, a slow request would delay all callers.
const MAX_BATCHES_IN_FLIGHT: usize = 2;
/// The most requests of one item in flight, for items that cannot share a request.
pub(super) const MAX_SINGLES_IN_FLIGHT: usize = 16;
/// The most requests in flight, including stalled ones.
pub(super) const MAX_IN_FLIGHT: usize = 128;
/// A request that takes longer than this is stalled: it no longer occupies a [`Slot`].
pub(super) const STALL_TIMEOUT: Duration = Duration::from_millis(250);

/// The result of one Decrypt.
pub(super) type DecryptResult = Result<Decrypted, TransitError>;

/// What the coalescer and its tasks share.
pub(super) struct Inner {
    pub(super) metrics: Arc<Metrics>,
    pub(super) state: Mutex<QueueState>,
    pub(super) transit: Arc<dyn Transit>,
}

#[derive(Default)]
pub(super) struct QueueState {
    /// All items that are queued or in flight, so that other callers can join them.
    pub(super) by_key: HashMap<ItemKey, Arc<Item>>,
    /// The number of requests in flight, including stalled ones.
    pub(super) in_flight: usize,
    pub(super) limit: BatchSizeLimit,
    /// The items to send in the order of their arrival.
    pub(super) queue: VecDeque<Arc<Item>>,
    /// The items to send one by one, before those in `queue`.
    pub(super) singles: VecDeque<Arc<Item>>,
    pub(super) slots_in_use: SlotsInUse,
}

/// The number of occupied [`Slot`]s in each lane.
#[derive(Default)]
pub(super) struct SlotsInUse {
    pub(super) batches: usize,
    pub(super) singles: usize,
}

/// The kind of requests that a task sends.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Lane {
    /// Requests of as many items as the limit allows.
    Batches,
    /// Requests of one item.
    Singles,
}

/// Equal keys can share one Decrypt.
#[derive(Clone, Eq, Hash, PartialEq)]
pub(super) struct ItemKey {
    pub(super) ciphertext: Ciphertext,
    pub(super) transit_key: KeyRef,
}

/// One ciphertext to decrypt, for all callers that hold a receiver of `outcome`.
pub(super) struct Item {
    pub(super) key: ItemKey,
    /// The latest deadline of the callers.
    deadline: Mutex<Instant>,
    pub(super) outcome: watch::Sender<ItemOutcome>,
    /// The uid of the first caller.
    pub(super) uid: String,
}

/// What the callers of an item receive.
pub(super) enum ItemOutcome {
    Done(DecryptResult),
    Pending,
    /// Vault did not answer a request that ended at `deadline`. Callers with a later deadline keep waiting.
    TimedOut {
        deadline: Instant,
        error: TransitError,
    },
}

impl ItemOutcome {
    /// Whether a caller with this deadline has to stop waiting.
    pub(super) fn is_final_for(&self, caller_deadline: Instant) -> bool {
        match self {
            Self::Done(_) => true,
            Self::Pending => false,
            Self::TimedOut { deadline, .. } => caller_deadline <= *deadline,
        }
    }
}

impl Item {
    pub(super) fn has_waiters(&self) -> bool {
        self.outcome.receiver_count() > 0
    }

    pub(super) fn deadline(&self) -> Instant {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn extend_deadline(&self, deadline: Instant) {
        let mut latest = self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = deadline.max(*latest);
    }
}

impl Inner {
    /// A poisoned lock is harmless, because no invariant spans more than one critical section.
    pub(super) fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the item for this ciphertext, or queues a new one.
    pub(super) fn join(
        self: &Arc<Self>,
        transit_key: &KeyRef,
        ciphertext: &Ciphertext,
        call: Call<'_>,
    ) -> watch::Receiver<ItemOutcome> {
        let key = ItemKey { ciphertext: ciphertext.clone(), transit_key: transit_key.clone() };
        let mut state = self.lock();
        if let Some(item) = state.by_key.get(&key) {
            item.extend_deadline(call.deadline);
            self.metrics.requests.decrypts_deduplicated.inc();
            return item.outcome.subscribe();
        }
        let (outcome, waiter) = watch::channel(ItemOutcome::Pending);
        let item = Arc::new(Item {
            key: key.clone(),
            deadline: Mutex::new(call.deadline),
            outcome,
            uid: call.uid.to_owned(),
        });
        state.by_key.insert(key, Arc::clone(&item));
        state.queue.push_back(item);
        drop(state);
        self.dispatch();
        waiter
    }

    /// Starts as many sending tasks as there are items to send and free slots.
    pub(super) fn dispatch(self: &Arc<Self>) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let (singles, batches) = match state.limit.current() {
            1 => (state.singles.len() + state.queue.len(), 0),
            _ => (state.singles.len(), state.queue.len()),
        };
        let room = MAX_IN_FLIGHT.saturating_sub(state.in_flight);
        let singles = MAX_SINGLES_IN_FLIGHT.saturating_sub(state.slots_in_use.singles).min(singles).min(room);
        let batches =
            MAX_BATCHES_IN_FLIGHT.saturating_sub(state.slots_in_use.batches).min(batches).min(room - singles);
        for (lane, tasks) in [(Lane::Singles, singles), (Lane::Batches, batches)] {
            *state.slots_in_use.of(lane) += tasks;
            (0..tasks).for_each(|_| drop(tokio::spawn(send_queued(Slot { inner: Arc::clone(self), lane }))));
        }
    }

    /// Queues `items` to be sent one by one, before the others.
    pub(super) fn queue_singles(self: &Arc<Self>, items: impl Iterator<Item = Arc<Item>>) {
        self.lock().singles.extend(items);
        self.dispatch();
    }

    /// Puts `items` back at the front of the queue.
    pub(super) fn requeue(self: &Arc<Self>, items: impl DoubleEndedIterator<Item = Arc<Item>>) {
        let mut state = self.lock();
        items.rev().for_each(|item| state.queue.push_front(item));
        drop(state);
        self.dispatch();
    }

    /// Takes the items of the next request from the queues. Returns `None` if there is nothing to send, or
    /// too many requests are in flight.
    fn next_batch(self: &Arc<Self>, lane: Lane) -> Option<Batch> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.in_flight >= MAX_IN_FLIGHT {
            return None;
        }
        let limit = state.limit.current();
        let items = match lane {
            Lane::Batches => state.take(limit, |state| &mut state.queue),
            Lane::Singles => {
                let single = state.take(1, |state| &mut state.singles);
                if single.is_empty() && limit == 1 { state.take(1, |state| &mut state.queue) } else { single }
            }
        };
        if items.is_empty() {
            return None;
        }
        state.in_flight += 1;
        Some(Batch::new(items, InFlightGuard(Arc::clone(self)), Arc::clone(self)))
    }
}

impl QueueState {
    /// Takes the first items from `queue` that have waiters and the same Transit key, at most `limit`. Drops
    /// the items without waiters.
    fn take(
        &mut self,
        limit: usize,
        queue: impl Fn(&mut Self) -> &mut VecDeque<Arc<Item>>,
    ) -> Vec<Arc<Item>> {
        let mut items: Vec<Arc<Item>> = Vec::new();
        for item in mem::take(queue(self)) {
            if !item.has_waiters() {
                self.by_key.remove(&item.key);
            } else if items.len() < limit
                && items.first().is_none_or(|first| first.key.transit_key == item.key.transit_key)
            {
                items.push(item);
            } else {
                queue(self).push_back(item);
            }
        }
        items
    }
}

impl SlotsInUse {
    fn of(&mut self, lane: Lane) -> &mut usize {
        match lane {
            Lane::Batches => &mut self.batches,
            Lane::Singles => &mut self.singles,
        }
    }
}

/// The permission to send requests of a lane.
struct Slot {
    inner: Arc<Inner>,
    lane: Lane,
}

impl Drop for Slot {
    fn drop(&mut self) {
        *self.inner.lock().slots_in_use.of(self.lane) -= 1;
    }
}

/// Counts one request in flight until it is dropped.
pub(super) struct InFlightGuard(Arc<Inner>);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.lock().in_flight -= 1;
    }
}

/// Sends one request after the other until the queue is empty or a request stalls.
async fn send_queued(slot: Slot) {
    let inner = Arc::clone(&slot.inner);
    while let Some(batch) = inner.next_batch(slot.lane) {
        let running = batch.run();
        pin!(running);
        if timeout(STALL_TIMEOUT, &mut running).await.is_err() {
            drop(slot);
            inner.dispatch();
            running.await;
            return;
        }
    }
    drop(slot);
    // A call may have come after `next_batch` found nothing, while this slot was still occupied.
    inner.dispatch();
}
