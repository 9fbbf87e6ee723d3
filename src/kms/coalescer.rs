//! The coalescer: what is asked for at the same time is asked of Vault at once.
//!
//! A kube-apiserver that starts decodes ten objects at a time and asks for the same seed up to ten
//! times; under KMS v1 it asks for thousands of DEKs. So identical Decrypts become one, and
//! different ones share requests. There is no timer: whatever has come while [`AT_ONCE`] requests
//! were away goes with the next, and a lone call goes alone, as it would without all this.
//!
//! A request belongs to nobody who waits for it: it runs in a task of its own, until it is answered
//! or the last waiter has gone, so whoever asked first may leave. One coalescer belongs to one
//! session, so nothing is shared between tokens.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::Rng;
use tokio::{
    pin,
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tracing::{debug, warn};

use super::{
    ciphertext::Ciphertext,
    transit::{Call, Fault, Opened, Transit, TransitError},
};
use crate::{config::KeyRef, observe::metrics::Metrics};

/// So many requests are away at once. One or three make no measurable difference in throughput
/// (`benches/figures.rs`, on one node); with one, a slow request would hold up everybody.
const AT_ONCE: usize = 2;
/// OpenBao takes 499 of the smallest items; proxies, and Vaults with tighter limits, take fewer.
const LARGEST_BATCH: usize = 128;
/// A request ends so long before those who wait for it give up, so that they hear its reason.
const LEAD: Duration = Duration::from_millis(20);
/// A request that takes so long no longer keeps others from being sent.
const STALLED: Duration = Duration::from_millis(250);

/// Decrypts with one session for many callers.
pub struct Coalescer {
    enabled: bool,
    shared: Arc<Shared>,
}

struct Shared {
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    transit: Arc<dyn Transit>,
}

struct State {
    /// Requests that keep others from being sent.
    away: usize,
    /// The most items that a request may have.
    largest: usize,
    /// What waits to be sent, in the order in which it came.
    queue: VecDeque<Arc<Item>>,
    /// All that is queued or away, for others to join.
    wanted: HashMap<Wanted, Arc<Item>>,
}

#[derive(Clone, Eq, Hash, PartialEq)]
struct Wanted {
    ciphertext: Ciphertext,
    key: KeyRef,
}

type Outcome = Result<Opened, TransitError>;

/// One thing that is wanted, by whoever has a receiver of `answer`.
struct Item {
    answer: watch::Sender<Option<Outcome>>,
    /// Of whoever asked first.
    uid: String,
    /// When the last of those who wait gives up.
    until: Mutex<Instant>,
    wanted: Wanted,
}

impl Coalescer {
    /// One that asks `transit`; if it is not `enabled`, once for each call.
    #[must_use]
    pub fn new(transit: Arc<dyn Transit>, enabled: bool, metrics: Arc<Metrics>) -> Self {
        let state = Mutex::new(State {
            away: 0,
            largest: LARGEST_BATCH,
            queue: VecDeque::new(),
            wanted: HashMap::new(),
        });
        Self { enabled, shared: Arc::new(Shared { metrics, state, transit }) }
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
    ) -> Result<Opened, TransitError> {
        if !self.enabled {
            return self.shared.transit.decrypt(key, ciphertext, call).await;
        }
        let mut answer = self.shared.join(key, ciphertext, call);
        match timeout_at(call.deadline, answer.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => answer.clone().unwrap_or_else(|| Err(given_up())),
            // Only a panic leaves a request unanswered.
            Ok(Err(_)) => Err(given_up()),
            Err(_) => Err(TransitError::new(
                Fault::DeadlineExceeded,
                "Vault did not answer before the caller's deadline",
            )),
        }
    }
}

fn given_up() -> TransitError {
    TransitError::new(Fault::Nonsense, "the request to Vault ended without an answer: this is a bug")
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
    ) -> watch::Receiver<Option<Outcome>> {
        let wanted = Wanted { ciphertext: ciphertext.clone(), key: key.clone() };
        let mut state = self.lock();
        if let Some(item) = state.wanted.get(&wanted) {
            item.wait_until(call.deadline);
            self.metrics.decrypts_shared.inc();
            return item.answer.subscribe();
        }
        let (answer, waiter) = watch::channel(None);
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
        let mut state = self.lock();
        if state.largest == 1 {
            // Then there is nothing to gain from waiting.
            mem::take(&mut state.queue).into_iter().for_each(|item| self.send_alone(item));
        } else if state.away < AT_ONCE && !state.queue.is_empty() {
            state.away += 1;
            tokio::spawn(send_all(Place(Arc::clone(self))));
        }
    }

    fn send_alone(self: &Arc<Self>, item: Arc<Item>) {
        tokio::spawn(self.flight(vec![item]).run());
    }

    /// What is to be sent now: items of one key that somebody waits for.
    fn next_flight(self: &Arc<Self>) -> Option<Flight> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut items: Vec<Arc<Item>> = Vec::new();
        for item in mem::take(&mut state.queue) {
            if !item.is_awaited() {
                state.wanted.remove(&item.wanted);
            } else if items.len() < state.largest
                && items.first().is_none_or(|first| first.wanted.key == item.wanted.key)
            {
                items.push(item);
            } else {
                state.queue.push_back(item);
            }
        }
        (!items.is_empty()).then(|| self.flight(items))
    }

    fn flight(self: &Arc<Self>, items: Vec<Arc<Item>>) -> Flight {
        Flight { items, shared: Arc::clone(self) }
    }

    /// Puts `items` back, to be sent before all others.
    fn requeue(self: &Arc<Self>, items: impl DoubleEndedIterator<Item = Arc<Item>>) {
        let mut state = self.lock();
        items.rev().for_each(|item| state.queue.push_front(item));
        drop(state);
        self.send_next();
    }

    /// Batches of more than `most` are not made any more.
    fn at_most(&self, most: usize) {
        let mut state = self.lock();
        state.largest = most.clamp(1, state.largest);
    }
}

/// The right to have a request away.
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.lock().away -= 1;
    }
}

/// Sends what is queued, until there is nothing more.
async fn send_all(place: Place) {
    let shared = Arc::clone(&place.0);
    while let Some(flight) = shared.next_flight() {
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
    // Somebody may have come after the last look, and found both places taken.
    shared.send_next();
}

/// Items on their way. What is in `items` is its to answer.
struct Flight {
    items: Vec<Arc<Item>>,
    shared: Arc<Shared>,
}

impl Flight {
    /// Asks, unless everybody who waits for it goes.
    async fn run(mut self) {
        let items = self.items.clone();
        tokio::select! {
            () = self.ask() => {}
            () = nobody_waits(&items) => {}
        }
        let mut state = self.shared.lock();
        for item in self.items.drain(..).rev() {
            // Somebody may have joined what all others had just left.
            if item.is_awaited() {
                state.queue.push_front(item);
            } else {
                state.wanted.remove(&item.wanted);
            }
        }
        drop(state);
        self.shared.send_next();
    }

    async fn ask(&mut self) {
        let Some(until) = self.items.iter().map(|item| item.until()).max() else { return };
        let deadline = until.checked_sub(LEAD).unwrap_or(until);
        self.shared.metrics.batch_size.observe(self.items.len() as f64);
        let outcome = match self.items.as_slice() {
            [item] => Ok(vec![self.alone(item, deadline).await]),
            items => self.together(items, deadline).await,
        };
        match outcome {
            Ok(outcomes) => {
                let several = outcomes.len() > 1;
                for (item, outcome) in mem::take(&mut self.items).into_iter().zip(outcomes) {
                    match outcome {
                        // It is for another node, or not known what for: failover knows what to do
                        // with a call that has failed, but not with a part of one that has not.
                        Err(error) if several && !is_about_the_ciphertext(error.fault) => {
                            self.shared.send_alone(item);
                        }
                        outcome => self.answer(item, outcome, until),
                    }
                }
            }
            Err(error) if error.fault == Fault::TooMuch => {
                debug!(%error, items = self.items.len(), "half as many Decrypts at once from now on");
                self.shared.at_most(self.items.len() / 2);
                self.shared.requeue(mem::take(&mut self.items).into_iter());
            }
            Err(error) if matches!(error.fault, Fault::Denied | Fault::Nonsense) => {
                self.doubt_batches(error, deadline, until).await;
            }
            Err(error) => self.answer_all(&error, until),
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

    /// A policy may allow but the one parameter that a lone Decrypt has, and not every proxy passes
    /// on everything: what is said to one of them alone decides.
    async fn doubt_batches(&mut self, error: TransitError, deadline: Instant, until: Instant) {
        let Some(first) = self.items.first() else { return };
        match self.alone(first, deadline).await {
            Err(alone) if alone.fault == error.fault => self.answer_all(&alone, until),
            outcome => {
                warn!(%error, "Decrypts cannot go together, though they can alone: does the policy allow `batch_input`?");
                self.shared.at_most(1);
                let first = self.items.remove(0);
                self.answer(first, outcome, until);
                self.shared.requeue(mem::take(&mut self.items).into_iter());
            }
        }
    }

    fn answer_all(&mut self, error: &TransitError, until: Instant) {
        for item in mem::take(&mut self.items) {
            self.answer(item, Err(error.clone()), until);
        }
    }

    /// `until` is when the last of those who waited would have given up when the request was made.
    fn answer(&self, item: Arc<Item>, outcome: Outcome, until: Instant) {
        let mut state = self.shared.lock();
        let late = matches!(&outcome, Err(error) if matches!(error.fault, Fault::DeadlineExceeded | Fault::Unreachable));
        if late && item.until() > until && item.is_awaited() {
            // Somebody with more patience has joined since.
            state.queue.push_back(item);
            drop(state);
            self.shared.send_next();
        } else {
            // Whoever comes from now on asks anew.
            state.wanted.remove(&item.wanted);
            item.answer.send_replace(Some(outcome));
        }
    }
}

impl Drop for Flight {
    /// What a panic has left unanswered can be asked for anew.
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

fn is_about_the_ciphertext(fault: Fault) -> bool {
    matches!(fault, Fault::BadCiphertext | Fault::TooOld)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use tokio::{
        sync::Semaphore,
        task::{JoinHandle, yield_now},
        time::{advance, sleep_until},
    };
    use zeroize::Zeroizing;

    use super::*;
    use crate::{
        config::{Encryption, KeyNames},
        kms::{
            key_id::KeyVersion,
            transit::{KeyDescription, NodeId, Sealed},
        },
    };

    /// Decrypts to the ciphertext itself, once let; keeps a record.
    struct Engine {
        /// Each request takes one.
        lets: Semaphore,
        /// Requests that were given up before they were answered.
        given_up: AtomicUsize,
        keys: KeyNames,
        /// The number of items in each request; 1 is a lone one, not a batch.
        requests: Mutex<Vec<usize>>,
        /// How requests of more than so many items fail.
        refuses: Mutex<Option<(usize, Fault)>>,
    }

    struct OnItsWay<'a>(&'a Engine);

    impl Drop for OnItsWay<'_> {
        fn drop(&mut self) {
            self.0.given_up.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Engine {
        async fn request(&self, items: usize, call: Call<'_>) -> Result<(), TransitError> {
            self.requests.lock().unwrap().push(items);
            let on_its_way = OnItsWay(self);
            let outcome = tokio::select! {
                biased;
                permit = self.lets.acquire() => {
                    permit.unwrap().forget();
                    match *self.refuses.lock().unwrap() {
                        Some((most, fault)) if items > most => Err(fault),
                        _ => Ok(()),
                    }
                }
                () = sleep_until(call.deadline) => Err(Fault::DeadlineExceeded),
            };
            mem::forget(on_its_way);
            outcome.map_err(|fault| TransitError::new(fault, fault.name()))
        }

        fn requests(&self) -> Vec<usize> {
            self.requests.lock().unwrap().clone()
        }

        fn given_up(&self) -> usize {
            self.given_up.load(Ordering::Relaxed)
        }

        fn refuses(&self, more_than: usize, fault: Fault) {
            *self.refuses.lock().unwrap() = Some((more_than, fault));
        }
    }

    fn opened(ciphertext: &Ciphertext, alone: bool) -> Outcome {
        let text = ciphertext.as_str();
        assert!(!text.contains("PANIC"), "as a bug does");
        if text.contains("BAD") {
            return Err(TransitError::new(Fault::BadCiphertext, "message authentication failed"));
        }
        if text.contains("LAG") && !alone {
            return Err(TransitError::new(Fault::Lagging, "version is too new"));
        }
        let plaintext = Zeroizing::new(text.as_bytes().to_vec());
        Ok(Opened { plaintext, request_id: "request".into() })
    }

    #[async_trait]
    impl Transit for Engine {
        async fn decrypt(&self, _: &KeyRef, ciphertext: &Ciphertext, call: Call<'_>) -> Outcome {
            self.request(1, call).await?;
            opened(ciphertext, true)
        }

        async fn decrypt_batch(
            &self,
            _: &KeyRef,
            ciphertexts: &[&Ciphertext],
            call: Call<'_>,
        ) -> Result<Vec<Outcome>, TransitError> {
            assert!(ciphertexts.len() > 1, "a lone one goes unbatched");
            self.request(ciphertexts.len(), call).await?;
            Ok(ciphertexts.iter().map(|ciphertext| opened(ciphertext, false)).collect())
        }

        async fn encrypt(
            &self,
            _: &KeyRef,
            _: KeyVersion,
            _: &[u8],
            _: Call<'_>,
        ) -> Result<Sealed, TransitError> {
            Err(given_up())
        }

        fn encryption(&self) -> Encryption {
            Encryption::Transit
        }

        fn nodes(&self) -> Vec<(String, bool)> {
            Vec::new()
        }

        async fn is_active(&self, _: NodeId, _: Call<'_>) -> Result<bool, TransitError> {
            Err(given_up())
        }

        fn keys(&self) -> &KeyNames {
            &self.keys
        }

        async fn read_key(&self, _: &KeyRef, _: Call<'_>) -> Result<KeyDescription, TransitError> {
            Err(given_up())
        }
    }

    struct Bench {
        coalescer: Arc<Coalescer>,
        engine: Arc<Engine>,
        metrics: Arc<Metrics>,
    }

    impl Bench {
        /// On an engine that answers no request before it is let.
        fn new() -> Self {
            Self::with(true)
        }

        fn with(enabled: bool) -> Self {
            let engine = Arc::new(Engine {
                lets: Semaphore::new(0),
                given_up: AtomicUsize::new(0),
                keys: KeyNames::new([key("kms")]).unwrap(),
                requests: Mutex::default(),
                refuses: Mutex::default(),
            });
            let metrics = Arc::new(Metrics::new().unwrap());
            let coalescer = Coalescer::new(Arc::clone(&engine) as _, enabled, Arc::clone(&metrics));
            Self { coalescer: Arc::new(coalescer), engine, metrics }
        }

        fn ask(&self, body: &str) -> JoinHandle<Outcome> {
            self.ask_of("kms", body, 3)
        }

        fn ask_of(&self, name: &str, body: &str, seconds: u64) -> JoinHandle<Outcome> {
            let (coalescer, name) = (Arc::clone(&self.coalescer), key(name));
            let ciphertext = Ciphertext::parse(format!("vault:v1:{body}").as_bytes()).unwrap();
            let deadline = Instant::now() + Duration::from_secs(seconds);
            tokio::spawn(
                async move { coalescer.decrypt(&name, &ciphertext, Call { deadline, uid: "uid" }).await },
            )
        }

        fn ask_many(&self, bodies: std::ops::Range<usize>) -> Vec<JoinHandle<Outcome>> {
            bodies.map(|body| self.ask(&format!("{body:04}"))).collect()
        }

        async fn answer(&self, requests: usize) {
            self.engine.lets.add_permits(requests);
            settle().await;
        }

        /// That nothing is left behind.
        fn assert_idle(&self) {
            let state = self.coalescer.shared.lock();
            assert_eq!((state.away, state.queue.len(), state.wanted.len()), (0, 0, 0));
        }
    }

    fn key(name: &str) -> KeyRef {
        KeyRef::in_transit(name)
    }

    async fn settle() {
        for _ in 0..50 {
            yield_now().await;
        }
    }

    async fn fault(call: JoinHandle<Outcome>) -> Fault {
        call.await.unwrap().unwrap_err().fault
    }

    async fn assert_opened(calls: Vec<JoinHandle<Outcome>>) {
        for call in calls {
            call.await.unwrap().unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_twice_at_once_is_asked_once() {
        let bench = Bench::new();
        let early: Vec<_> = (0..5).map(|_| bench.ask("QUJD")).collect();
        settle().await;
        // When it is on its way, too.
        let late: Vec<_> = (0..5).map(|_| bench.ask("QUJD")).collect();
        settle().await;
        bench.answer(1).await;
        for call in early.into_iter().chain(late) {
            assert_eq!(*call.await.unwrap().unwrap().plaintext, b"vault:v1:QUJD");
        }
        assert_eq!(bench.engine.requests(), [1]);
        assert_eq!(bench.metrics.decrypts_shared.get(), 9);
        bench.assert_idle();
        // It is no cache.
        let again = bench.ask("QUJD");
        settle().await;
        bench.answer(1).await;
        again.await.unwrap().unwrap();
        assert_eq!(bench.engine.requests(), [1, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_while_two_are_away_goes_together_128_at_most() {
        let bench = Bench::new();
        let mut calls = bench.ask_many(0..1);
        settle().await;
        calls.extend(bench.ask_many(1..41));
        settle().await;
        calls.extend(bench.ask_many(41..241));
        settle().await;
        assert_eq!(bench.engine.requests(), [1, 40], "two are away, and the others wait");
        bench.answer(1).await;
        assert_eq!(bench.engine.requests(), [1, 40, 128]);
        bench.answer(3).await;
        assert_eq!(bench.engine.requests(), [1, 40, 128, 72]);
        for (number, call) in calls.into_iter().enumerate() {
            assert_eq!(*call.await.unwrap().unwrap().plaintext, format!("vault:v1:{number:04}").into_bytes());
        }
        assert_eq!(bench.metrics.batch_size.get_sample_sum(), 241.0);
        bench.assert_idle();
    }

    #[tokio::test(start_paused = true)]
    async fn keys_do_not_mix() {
        let bench = Bench::new();
        let calls =
            (0..10).map(|number| bench.ask_of(["kms", "old"][number % 2], &format!("{number:04}"), 3));
        let calls = calls.collect();
        settle().await;
        assert_eq!(bench.engine.requests(), [5, 5]);
        bench.answer(2).await;
        assert_opened(calls).await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_bad_ciphertext_fails_only_its_caller() {
        let bench = Bench::new();
        let (calls, bad) = (bench.ask_many(0..9), bench.ask("BAD="));
        settle().await;
        bench.answer(1).await;
        assert_opened(calls).await;
        assert_eq!(fault(bad).await, Fault::BadCiphertext);
        assert_eq!(bench.engine.requests(), [10]);
        bench.assert_idle();
    }

    #[tokio::test(start_paused = true)]
    async fn what_another_node_may_know_is_asked_alone() {
        let bench = Bench::new();
        let (calls, lagging) = (bench.ask_many(0..9), bench.ask("LAG="));
        settle().await;
        bench.answer(1).await;
        assert_opened(calls).await;
        bench.answer(1).await;
        lagging.await.unwrap().unwrap();
        assert_eq!(bench.engine.requests(), [10, 1]);
        bench.assert_idle();
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asked_first_may_leave() {
        let bench = Bench::new();
        let first = bench.ask("QUJD");
        settle().await;
        let second = bench.ask("QUJD");
        settle().await;
        first.abort();
        settle().await;
        assert_eq!(bench.engine.given_up(), 0);
        bench.answer(1).await;
        second.await.unwrap().unwrap();
        assert_eq!(bench.engine.requests(), [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_stops() {
        let bench = Bench::new();
        let away = bench.ask_many(0..4);
        settle().await;
        let mut queued = bench.ask_many(4..9);
        settle().await;
        let more = bench.ask_many(9..12);
        settle().await;
        let asked = bench.engine.requests().len();
        // One of several leaves: the others are none the worse.
        queued.pop().unwrap().abort();
        settle().await;
        assert_eq!(bench.engine.given_up(), 0);
        away.iter().chain(&queued).chain(&more).for_each(JoinHandle::abort);
        settle().await;
        assert_eq!(bench.engine.given_up(), asked, "all that were away");
        assert_eq!(bench.engine.requests().len(), asked, "none that was queued was sent");
        bench.assert_idle();
    }

    #[tokio::test(start_paused = true)]
    async fn each_waiter_keeps_its_own_deadline() {
        let bench = Bench::new();
        let hasty = bench.ask_of("kms", "QUJD", 1);
        settle().await;
        let patient = bench.ask_of("kms", "QUJD", 5);
        settle().await;
        advance(Duration::from_millis(1001)).await;
        settle().await;
        assert!(hasty.is_finished() && !patient.is_finished());
        assert_eq!(fault(hasty).await, Fault::DeadlineExceeded);
        // The request had the first one's patience; there is another one for the second.
        assert_eq!(bench.engine.requests(), [1, 1]);
        bench.answer(1).await;
        patient.await.unwrap().unwrap();
        bench.assert_idle();

        // Among those that share a batch, too.
        let (hasty, patient) = (bench.ask_of("kms", "AAAA", 1), bench.ask_of("kms", "BBBB", 5));
        settle().await;
        advance(Duration::from_millis(1001)).await;
        settle().await;
        assert!(hasty.is_finished() && !patient.is_finished());
        bench.answer(1).await;
        patient.await.unwrap().unwrap();
        assert_eq!(bench.engine.requests(), [1, 1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn too_much_at_once_is_halved_until_it_is_not() {
        let bench = Bench::new();
        bench.engine.refuses(40, Fault::TooMuch);
        let calls = bench.ask_many(0..128);
        settle().await;
        bench.answer(6).await;
        assert_opened(calls).await;
        assert_eq!(bench.engine.requests(), [128, 64, 32, 32, 32, 32]);
        let calls = bench.ask_many(0..64);
        settle().await;
        bench.answer(2).await;
        assert_opened(calls).await;
        assert_eq!(bench.engine.requests()[6..], [32, 32], "it is remembered");
        bench.assert_idle();

        // Down to one, which cannot be halved.
        bench.engine.refuses(0, Fault::TooMuch);
        let calls = bench.ask_many(0..3);
        settle().await;
        bench.answer(10).await;
        for call in calls {
            assert_eq!(fault(call).await, Fault::TooMuch);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_as_a_whole_fails_all_with_its_meaning() {
        for refused in [Fault::TokenDead, Fault::KeyLost, Fault::Unreachable] {
            let bench = Bench::new();
            bench.engine.refuses(0, refused);
            let calls = bench.ask_many(0..20);
            settle().await;
            bench.answer(1).await;
            for call in calls {
                assert_eq!(fault(call).await, refused);
            }
            assert_eq!(bench.engine.requests(), [20], "nothing loops");
            bench.assert_idle();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_of_batches_alone_ends_them() {
        let bench = Bench::new();
        bench.engine.refuses(1, Fault::Denied);
        let calls = bench.ask_many(0..20);
        settle().await;
        bench.answer(60).await;
        assert_opened(calls).await;
        let calls = bench.ask_many(0..20);
        settle().await;
        assert_opened(calls).await;
        assert_eq!(bench.engine.requests()[..2], [20, 1]);
        assert!(bench.engine.requests()[2..].iter().all(|items| *items == 1), "and none is tried again");
        bench.assert_idle();

        // But one of lone Decrypts too is asked about but once more.
        let bench = Bench::new();
        bench.engine.refuses(0, Fault::Denied);
        let calls = bench.ask_many(0..20);
        settle().await;
        bench.answer(30).await;
        for call in calls {
            assert_eq!(fault(call).await, Fault::Denied);
        }
        assert_eq!(bench.engine.requests(), [20, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_stalls_does_not_keep_others_from_being_sent() {
        let bench = Bench::new();
        for body in ["AAAA", "BBBB", "CCCC"] {
            bench.ask(body);
            settle().await;
        }
        assert_eq!(bench.engine.requests(), [1, 1]);
        advance(STALLED + Duration::from_millis(1)).await;
        settle().await;
        assert_eq!(bench.engine.requests(), [1, 1, 1]);
        bench.answer(3).await;
        bench.assert_idle();
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_fails_only_who_waits_for_it() {
        let bench = Bench::new();
        let broken = bench.ask("PANIC");
        settle().await;
        bench.answer(1).await;
        assert_eq!(fault(broken).await, Fault::Nonsense);
        bench.assert_idle();
        let calls = bench.ask_many(0..3);
        settle().await;
        bench.answer(1).await;
        assert_opened(calls).await;
    }

    #[tokio::test(start_paused = true)]
    async fn without_coalescing_every_call_is_one_of_its_own() {
        let bench = Bench::with(false);
        let calls = (0..10).map(|_| bench.ask("QUJD")).collect();
        settle().await;
        assert_eq!(bench.engine.requests(), [1; 10]);
        bench.answer(10).await;
        assert_opened(calls).await;
    }
}
