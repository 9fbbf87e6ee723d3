//! The coalescer: what is asked for at the same time is asked of Vault at once.
//!
//! A kube-apiserver that starts decodes ten objects at a time and asks for the same seed up to ten
//! times; under KMS v1 it asks for thousands of DEKs. So identical Decrypts become one, and
//! different ones share requests. There is no timer: whatever has come while `AT_ONCE` requests
//! were away goes with the next, and a lone call goes alone, as it would without all this.
//!
//! No waiter owns a request: it runs in a task of its own, until it is answered
//! or the last waiter has gone, so the one who asked first may leave. One coalescer belongs to one
//! session, so nothing is shared between tokens.
//!
//! A refusal of batches lowers the `Limit` of their size for a while, never for good: what refused
//! them may have been one node, one proxy, or one moment.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::Rng;
use tokio::{
    pin,
    sync::{Semaphore, watch},
    time::{Instant, timeout, timeout_at},
};
use tracing::{debug, warn};
use transit_client::{
    ErrorKind, Transit, TransitError,
    ciphertext::Ciphertext,
    key::KeyRef,
    transit::{Call, Decrypted},
};

use crate::observe::metrics::Metrics;

/// So many requests are away at once. One or three make no measurable difference in throughput
/// (`benches/daemon.rs`, on one node); with one, a slow request would hold up everybody.
const AT_ONCE: usize = 2;
/// So many requests of one item are away at once, of items that cannot share one.
const LONE_AT_ONCE: usize = 16;
/// So many requests are away at once in all, those included that stall.
const MOST_AWAY: usize = 128;
/// OpenBao takes 499 of the smallest items; proxies, and Vaults with tighter limits, take fewer.
const LARGEST_BATCH: usize = 128;
/// A request ends so long before those who wait for it give up, so that they hear its reason.
const LEAD: Duration = Duration::from_millis(20);
/// A request that takes so long no longer keeps others from being sent.
const STALLED: Duration = Duration::from_millis(250);
/// A limit that was lowered doubles after this; each time that turns out too early, twice as late.
const FIRST_RECOVERY: Duration = Duration::from_secs(10);
const LONGEST_RECOVERY: Duration = Duration::from_secs(600);

/// Decrypts with one session for many callers.
pub struct Coalescer {
    enabled: bool,
    shared: Arc<Shared>,
    /// Without coalescing, what keeps requests from being too many.
    uncoalesced: Semaphore,
}

struct Shared {
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    transit: Arc<dyn Transit>,
}

#[derive(Default)]
struct State {
    /// What is to be sent alone, before the rest.
    alone: VecDeque<Arc<Item>>,
    /// All requests that are on their way.
    away: usize,
    /// Requests that keep others of their lane from being sent.
    holding: Holding,
    limit: Limit,
    /// What waits to be sent, in the order in which it came.
    queue: VecDeque<Arc<Item>>,
    /// All that is queued or away, for others to join.
    wanted: HashMap<Wanted, Arc<Item>>,
}

#[derive(Default)]
struct Holding {
    lone: usize,
    shared: usize,
}

/// Which requests a task sends.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Lane {
    /// Of one item each.
    Lone,
    /// Of as many items as the limit allows.
    Shared,
}

/// The most items that a request may have.
struct Limit {
    /// When it doubles, if it was lowered.
    grows: Option<Instant>,
    /// It has doubled, and is not known to be right.
    grown: bool,
    largest: usize,
    pause: Duration,
    /// So many items were refused last, and not taken since.
    refused: usize,
}

impl Default for Limit {
    fn default() -> Self {
        Self { grows: None, grown: false, largest: LARGEST_BATCH, pause: FIRST_RECOVERY, refused: usize::MAX }
    }
}

impl Limit {
    fn now(&mut self) -> usize {
        if self.grows.is_some_and(|at| at <= Instant::now()) {
            self.largest = (self.largest * 2).min(LARGEST_BATCH);
            self.grown = self.refused != usize::MAX;
            self.grows = (self.largest < LARGEST_BATCH).then(|| Instant::now() + self.pause);
        }
        self.largest
    }

    /// A request of `items` was refused; `most` may go for now.
    fn lower(&mut self, items: usize, most: usize) {
        // Else another request has found out the same.
        if most < self.largest {
            if self.grown {
                self.pause = (self.pause * 2).min(LONGEST_RECOVERY);
            }
            self.grown = false;
            self.grows = Some(Instant::now() + self.pause);
            self.largest = most.max(1);
            self.refused = items;
        }
    }

    /// A request of `items` was taken.
    fn passed(&mut self, items: usize) {
        if items >= self.refused {
            self.grown = false;
            self.pause = FIRST_RECOVERY;
            self.refused = usize::MAX;
        }
    }
}

#[derive(Clone, Eq, Hash, PartialEq)]
struct Wanted {
    ciphertext: Ciphertext,
    key: KeyRef,
}

type Outcome = Result<Decrypted, TransitError>;

/// What those who wait for an item are told.
enum Answer {
    Awaited,
    /// Vault did not answer a request that could wait until `until`. Those who can wait longer do.
    Missed {
        error: TransitError,
        until: Instant,
    },
    Done(Outcome),
}

impl Answer {
    fn is_for(&self, deadline: Instant) -> bool {
        match self {
            Self::Awaited => false,
            Self::Missed { until, .. } => deadline <= *until,
            Self::Done(_) => true,
        }
    }
}

/// One thing that is wanted, by all who have a receiver of `answer`.
struct Item {
    answer: watch::Sender<Answer>,
    /// Of the one who asked first.
    uid: String,
    /// When the last of those who wait gives up.
    until: Mutex<Instant>,
    wanted: Wanted,
}

impl Coalescer {
    /// One that asks `transit`; if it is not `enabled`, once for each call.
    #[must_use]
    pub fn new(transit: Arc<dyn Transit>, enabled: bool, metrics: Arc<Metrics>) -> Self {
        let shared = Shared { metrics, state: Mutex::default(), transit };
        Self { enabled, shared: Arc::new(shared), uncoalesced: Semaphore::new(MOST_AWAY) }
    }

    /// As [`Transit::decrypt`].
    ///
    /// # Errors
    /// As there.
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
            let _permit = permit.map_err(|_| late())?.map_err(|_| given_up())?;
            return self.shared.transit.decrypt(key, ciphertext, call).await;
        }
        let mut answer = self.shared.join(key, ciphertext, call);
        let heard = answer.wait_for(|answer| answer.is_for(call.deadline));
        match timeout_at(call.deadline, heard).await {
            Ok(Ok(answer)) => match &*answer {
                Answer::Done(outcome) => outcome.clone(),
                Answer::Missed { error, .. } => Err(error.clone()),
                Answer::Awaited => Err(given_up()),
            },
            // Only a panic leaves a request unanswered.
            Ok(Err(_)) => Err(given_up()),
            Err(_) => Err(late()),
        }
    }
}

fn given_up() -> TransitError {
    TransitError::new(
        ErrorKind::InvalidResponse,
        "the request to Vault ended without an answer: this is a bug",
    )
}

impl Item {
    fn is_awaited(&self) -> bool {
        self.answer.receiver_count() > 0
    }

    fn until(&self) -> Instant {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until(&self, deadline: Instant) {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        *until = deadline.max(*until);
    }
}

impl Shared {
    /// No invariant spans more than one critical section, so a panic in one breaks none.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(
        self: &Arc<Self>,
        key: &KeyRef,
        ciphertext: &Ciphertext,
        call: Call<'_>,
    ) -> watch::Receiver<Answer> {
        let wanted = Wanted { ciphertext: ciphertext.clone(), key: key.clone() };
        let mut state = self.lock();
        if let Some(item) = state.wanted.get(&wanted) {
            item.wait_until(call.deadline);
            self.metrics.decrypts_deduplicated.inc();
            return item.answer.subscribe();
        }
        let (answer, waiter) = watch::channel(Answer::Awaited);
        let item = Arc::new(Item {
            answer,
            uid: call.uid.to_owned(),
            until: Mutex::new(call.deadline),
            wanted: wanted.clone(),
        });
        state.wanted.insert(wanted, Arc::clone(&item));
        state.queue.push_back(item);
        drop(state);
        self.send_next();
        waiter
    }

    /// Sees to it that what is queued is sent, if it may be.
    fn send_next(self: &Arc<Self>) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let (lone, shared) = match state.limit.now() {
            1 => (state.alone.len() + state.queue.len(), 0),
            _ => (state.alone.len(), state.queue.len()),
        };
        let room = MOST_AWAY.saturating_sub(state.away);
        let lone = LONE_AT_ONCE.saturating_sub(state.holding.lone).min(lone).min(room);
        let shared = AT_ONCE.saturating_sub(state.holding.shared).min(shared).min(room - lone);
        for (lane, tasks) in [(Lane::Lone, lone), (Lane::Shared, shared)] {
            *state.holding.of(lane) += tasks;
            (0..tasks).for_each(|_| drop(tokio::spawn(send_all(Place { lane, shared: Arc::clone(self) }))));
        }
    }

    fn send_alone(self: &Arc<Self>, items: impl Iterator<Item = Arc<Item>>) {
        self.lock().alone.extend(items);
        self.send_next();
    }

    /// What is to be sent now: items of one key that somebody waits for.
    fn next_flight(self: &Arc<Self>, lane: Lane) -> Option<Flight> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.away >= MOST_AWAY {
            return None;
        }
        let largest = state.limit.now();
        let items = match lane {
            Lane::Lone => {
                let alone = state.take(1, |state| &mut state.alone);
                if alone.is_empty() && largest == 1 { state.take(1, |state| &mut state.queue) } else { alone }
            }
            Lane::Shared => state.take(largest, |state| &mut state.queue),
        };
        if items.is_empty() {
            return None;
        }
        state.away += 1;
        Some(Flight { items, on_its_way: Some(OnItsWay(Arc::clone(self))), shared: Arc::clone(self) })
    }

    /// Puts `items` back, to be sent before all others.
    fn requeue(self: &Arc<Self>, items: impl DoubleEndedIterator<Item = Arc<Item>>) {
        let mut state = self.lock();
        items.rev().for_each(|item| state.queue.push_front(item));
        drop(state);
        self.send_next();
    }
}

impl State {
    /// The first items of `queue` that are awaited, `most` at most, all of one key.
    fn take(&mut self, most: usize, queue: impl Fn(&mut Self) -> &mut VecDeque<Arc<Item>>) -> Vec<Arc<Item>> {
        let mut items: Vec<Arc<Item>> = Vec::new();
        for item in mem::take(queue(self)) {
            if !item.is_awaited() {
                self.wanted.remove(&item.wanted);
            } else if items.len() < most
                && items.first().is_none_or(|first| first.wanted.key == item.wanted.key)
            {
                items.push(item);
            } else {
                queue(self).push_back(item);
            }
        }
        items
    }
}

impl Holding {
    fn of(&mut self, lane: Lane) -> &mut usize {
        match lane {
            Lane::Lone => &mut self.lone,
            Lane::Shared => &mut self.shared,
        }
    }
}

/// The right to send requests of a lane.
struct Place {
    lane: Lane,
    shared: Arc<Shared>,
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.shared.lock().holding.of(self.lane) -= 1;
    }
}

/// Counts as a request that is away.
struct OnItsWay(Arc<Shared>);

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.0.lock().away -= 1;
    }
}

/// Sends what is queued, until there is nothing more.
async fn send_all(place: Place) {
    let shared = Arc::clone(&place.shared);
    while let Some(flight) = shared.next_flight(place.lane) {
        let running = flight.run();
        pin!(running);
        if timeout(STALLED, &mut running).await.is_err() {
            drop(place);
            shared.send_next();
            running.await;
            return;
        }
    }
    drop(place);
    // Another call may have come after the last look, and found all places taken.
    shared.send_next();
}

/// Items on their way. What is in `items` is its to answer.
struct Flight {
    items: Vec<Arc<Item>>,
    on_its_way: Option<OnItsWay>,
    shared: Arc<Shared>,
}

/// By when a request is to be answered.
#[derive(Clone, Copy)]
struct Term {
    /// Of the request.
    deadline: Instant,
    /// When the last of those who waited would have given up when the request was made.
    until: Instant,
}

impl Flight {
    /// Asks, unless all who wait for it go.
    async fn run(mut self) {
        let items = self.items.clone();
        tokio::select! {
            () = self.ask() => {}
            () = nobody_waits(&items) => {}
        }
        let mut state = self.shared.lock();
        for item in self.items.drain(..).rev() {
            // Another caller may have joined what all others had just left.
            if item.is_awaited() {
                state.queue.push_front(item);
            } else {
                state.wanted.remove(&item.wanted);
            }
        }
        drop(state);
        drop(self.on_its_way.take());
        self.shared.send_next();
    }

    async fn ask(&mut self) {
        let Some(until) = self.items.iter().map(|item| item.until()).max() else { return };
        let term = Term { deadline: until.checked_sub(LEAD).unwrap_or(until), until };
        let sent = self.items.len();
        self.shared.metrics.batch_size.observe(sent as f64);
        let outcome = match self.items.as_slice() {
            [item] => Ok(vec![self.alone(item, term.deadline).await]),
            items => self.together(items, term.deadline).await,
        };
        match outcome {
            Ok(outcomes) => {
                self.shared.lock().limit.passed(sent);
                let mut alone = Vec::new();
                for (item, outcome) in mem::take(&mut self.items).into_iter().zip(outcomes) {
                    match outcome {
                        // It is for another node, or not known what for: failover knows what to do
                        // with a call that has failed, but not with a part of one that has not.
                        Err(error) if sent > 1 && !is_settled(error.kind) => alone.push(item),
                        outcome => self.answer(item, outcome, term),
                    }
                }
                self.shared.send_alone(alone.into_iter());
            }
            Err(error) if error.kind == ErrorKind::BatchTooLarge => {
                debug!(%error, items = sent, "half as many Decrypts at once for a while");
                self.shared.lock().limit.lower(sent, sent / 2);
                self.shared.requeue(mem::take(&mut self.items).into_iter());
            }
            Err(error) if matches!(error.kind, ErrorKind::Denied | ErrorKind::InvalidResponse) => {
                self.doubt_batches(error, term).await;
            }
            Err(error) => self.answer_all(&error, term),
        }
    }

    async fn alone(&self, item: &Item, deadline: Instant) -> Outcome {
        let Wanted { ciphertext, key } = &item.wanted;
        self.shared.transit.decrypt(key, ciphertext, Call { deadline, uid: &item.uid }).await
    }

    async fn together(&self, items: &[Arc<Item>], deadline: Instant) -> Result<Vec<Outcome>, TransitError> {
        let Some(first) = items.first() else { return Ok(Vec::new()) };
        let uid = format!("batch-{:016x}", rand::rng().next_u64());
        let ciphertexts: Vec<_> = items.iter().map(|item| &item.wanted.ciphertext).collect();
        debug!(uid, key = %first.wanted.key, items = items.len(), "Decrypts go together");
        self.shared.transit.decrypt_batch(&first.wanted.key, &ciphertexts, Call { deadline, uid: &uid }).await
    }

    /// A policy may allow only the one parameter that a lone Decrypt has, and not every proxy passes
    /// on everything: what is said to one of them alone decides.
    async fn doubt_batches(&mut self, error: TransitError, term: Term) {
        let Some(first) = self.items.first() else { return };
        match self.alone(first, term.deadline).await {
            Err(alone) if alone.kind == error.kind => self.answer_all(&alone, term),
            outcome => {
                // An answer without sense says nothing about the next one.
                if error.kind == ErrorKind::Denied {
                    warn!(%error, "Decrypts cannot go together, though they can alone: does the policy allow `batch_input`?");
                    self.shared.lock().limit.lower(2, 1);
                } else {
                    debug!(%error, "Decrypts that went together are asked for alone");
                }
                let first = self.items.remove(0);
                self.answer(first, outcome, term);
                self.shared.send_alone(mem::take(&mut self.items).into_iter());
            }
        }
    }

    fn answer_all(&mut self, error: &TransitError, term: Term) {
        for item in mem::take(&mut self.items) {
            self.answer(item, Err(error.clone()), term);
        }
    }

    fn answer(&self, item: Arc<Item>, outcome: Outcome, term: Term) {
        let mut state = self.shared.lock();
        match outcome {
            // A caller with more time has joined since. The others hear the reason now.
            Err(error) if term.was_missed(error.kind) && item.until() > term.until && item.is_awaited() => {
                item.answer.send_replace(Answer::Missed { error, until: term.until });
                state.queue.push_back(item);
                drop(state);
                self.shared.send_next();
            }
            outcome => {
                // Who comes from now on asks again.
                state.wanted.remove(&item.wanted);
                item.answer.send_replace(Answer::Done(outcome));
            }
        }
    }
}

impl Term {
    /// Whether the request failed only because its time was up. When it is, failover gives the last
    /// reason that it has seen, if there is one.
    fn was_missed(self, kind: ErrorKind) -> bool {
        match kind {
            ErrorKind::DeadlineExceeded => true,
            ErrorKind::Unreachable => Instant::now() >= self.deadline,
            _ => false,
        }
    }
}

impl Drop for Flight {
    /// What a panic has left unanswered can be asked for again.
    fn drop(&mut self) {
        if !self.items.is_empty() {
            let mut state = self.shared.lock();
            self.items.iter().for_each(|item| drop(state.wanted.remove(&item.wanted)));
        }
    }
}

async fn nobody_waits(items: &[Arc<Item>]) {
    while let Some(item) = items.iter().find(|item| item.is_awaited()) {
        item.answer.closed().await;
    }
}

/// Whether what Vault says of one item of a batch would be the same if that was asked for alone: it is
/// about the ciphertext, or the type of the key. (A policy refuses batches as a whole.)
fn is_settled(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::BadCiphertext | ErrorKind::Denied | ErrorKind::VersionTooOld)
}

#[cfg(test)]
mod tests;
