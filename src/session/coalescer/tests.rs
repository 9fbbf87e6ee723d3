use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use tokio::{
    sync::Semaphore,
    task::{JoinHandle, yield_now},
    time::{advance, sleep_until},
};
use transit_client::{
    key::KeyNames,
    key_id::KeyVersion,
    transit::{Encrypted, KeyDescription, NodeId},
};
use zeroize::Zeroizing;

use super::*;

/// Decrypts to the ciphertext itself, once let; keeps a record.
struct Engine {
    /// Each request takes one.
    lets: Semaphore,
    /// Requests that were given up before they were answered.
    given_up: AtomicUsize,
    keys: KeyNames,
    /// How requests end that were not let before their deadline.
    late: Mutex<ErrorKind>,
    /// The number of items in each request; 1 is a lone one, not a batch.
    requests: Mutex<Vec<usize>>,
    /// How requests of more than so many items fail.
    refuses: Mutex<Option<(usize, ErrorKind)>>,
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
                    Some((most, kind)) if items > most => Err(kind),
                    _ => Ok(()),
                }
            }
            () = sleep_until(call.deadline) => Err(*self.late.lock().unwrap()),
        };
        mem::forget(on_its_way);
        outcome.map_err(|kind| TransitError::new(kind, kind.name()))
    }

    fn requests(&self) -> Vec<usize> {
        self.requests.lock().unwrap().clone()
    }

    fn given_up(&self) -> usize {
        self.given_up.load(Ordering::Relaxed)
    }

    fn refuses(&self, more_than: usize, kind: ErrorKind) {
        *self.refuses.lock().unwrap() = Some((more_than, kind));
    }
}

fn opened(ciphertext: &Ciphertext, alone: bool) -> Outcome {
    let text = ciphertext.as_str();
    assert!(!text.contains("PANIC"), "as a bug does");
    if text.contains("BAD") {
        return Err(TransitError::new(ErrorKind::BadCiphertext, "message authentication failed"));
    }
    if text.contains("LAG") && !alone {
        return Err(TransitError::new(ErrorKind::VersionUnavailable, "version is too new"));
    }
    let plaintext = Zeroizing::new(text.as_bytes().to_vec());
    Ok(Decrypted { plaintext, request_id: "request".into() })
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
    ) -> Result<Encrypted, TransitError> {
        Err(given_up())
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
            late: Mutex::new(ErrorKind::DeadlineExceeded),
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
        assert_eq!((state.holding.lone, state.holding.shared, state.away), (0, 0, 0));
        assert_eq!((state.alone.len(), state.queue.len(), state.wanted.len()), (0, 0, 0));
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

async fn kind(call: JoinHandle<Outcome>) -> ErrorKind {
    call.await.unwrap().unwrap_err().kind
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
    assert_eq!(bench.metrics.decrypts_deduplicated.get(), 9);
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
    let calls = (0..10).map(|number| bench.ask_of(["kms", "old"][number % 2], &format!("{number:04}"), 3));
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
    assert_eq!(kind(bad).await, ErrorKind::BadCiphertext);
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
async fn the_one_who_asked_first_may_leave() {
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
    let error = hasty.await.unwrap().unwrap_err();
    assert_eq!(error.message, "deadline_exceeded", "what the request ended with");
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
async fn who_joins_later_does_not_cost_the_first_its_reason() {
    // As failover ends when a node has refused and time is up.
    let bench = Bench::new();
    *bench.engine.late.lock().unwrap() = ErrorKind::Unreachable;
    let hasty = bench.ask_of("kms", "QUJD", 1);
    settle().await;
    let patient = bench.ask_of("kms", "QUJD", 5);
    settle().await;
    advance(Duration::from_millis(981)).await;
    settle().await;
    assert_eq!(kind(hasty).await, ErrorKind::Unreachable);
    assert!(!patient.is_finished());
    assert_eq!(bench.engine.requests(), [1, 1]);
    bench.answer(1).await;
    patient.await.unwrap().unwrap();
    bench.assert_idle();

    // What is said before time is up, is said to all.
    let bench = Bench::new();
    bench.engine.refuses(0, ErrorKind::Unreachable);
    let calls = [1, 5].map(|seconds| (bench.ask_of("kms", "QUJD", seconds), seconds));
    settle().await;
    let late = bench.ask_of("kms", "QUJD", 9);
    settle().await;
    bench.answer(1).await;
    assert_eq!(kind(late).await, ErrorKind::Unreachable);
    for (call, _) in calls {
        assert_eq!(kind(call).await, ErrorKind::Unreachable);
    }
    assert_eq!(bench.engine.requests(), [1]);
    bench.assert_idle();
}

/// The sizes of the requests for `calls` calls at once.
async fn burst(bench: &Bench, calls: usize) -> Vec<usize> {
    let before = bench.engine.requests().len();
    let calls = bench.ask_many(0..calls);
    settle().await;
    for _ in 0..10 {
        bench.answer(100).await;
    }
    assert_opened(calls).await;
    // What was let and not asked for.
    let left = bench.engine.lets.available_permits();
    bench.engine.lets.forget_permits(left);
    bench.assert_idle();
    bench.engine.requests().split_off(before)
}

#[tokio::test(start_paused = true)]
async fn too_much_at_once_is_halved_and_the_limit_recovers() {
    let bench = Bench::new();
    bench.engine.refuses(40, ErrorKind::BatchTooLarge);
    assert_eq!(burst(&bench, 128).await, [128, 64, 32, 32, 32, 32]);
    assert_eq!(burst(&bench, 64).await, [32, 32], "it is remembered");
    // What refuses for good is tried again ever more seldom.
    for pause in [10, 20, 40] {
        advance(Duration::from_secs(pause) - Duration::from_millis(1)).await;
        assert_eq!(burst(&bench, 64).await, [32, 32], "before {pause} s");
        advance(Duration::from_millis(1)).await;
        assert_eq!(burst(&bench, 64).await, [64, 32, 32], "after {pause} s");
    }
    // A moment's refusal is soon forgotten.
    bench.engine.refuses(1000, ErrorKind::BatchTooLarge);
    advance(Duration::from_secs(80)).await;
    assert_eq!(burst(&bench, 128).await, [64, 64]);
    advance(FIRST_RECOVERY).await;
    assert_eq!(burst(&bench, 128).await, [64, 64], "the pause was that of before");
    advance(Duration::from_secs(80)).await;
    assert_eq!(burst(&bench, 128).await, [128]);
    bench.engine.refuses(100, ErrorKind::BatchTooLarge);
    assert_eq!(burst(&bench, 128).await, [128, 64, 64]);
    bench.engine.refuses(1000, ErrorKind::BatchTooLarge);
    advance(FIRST_RECOVERY).await;
    assert_eq!(burst(&bench, 128).await, [128], "and so is the long pause");

    // Down to one, which cannot be halved.
    bench.engine.refuses(0, ErrorKind::BatchTooLarge);
    let calls = bench.ask_many(0..3);
    settle().await;
    bench.answer(10).await;
    for call in calls {
        assert_eq!(kind(call).await, ErrorKind::BatchTooLarge);
    }
    bench.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_sense_changes_nothing() {
    let bench = Bench::new();
    bench.engine.refuses(1, ErrorKind::InvalidResponse);
    let mut expected = vec![20];
    expected.extend([1; 20]);
    assert_eq!(burst(&bench, 20).await, expected, "all are asked for alone");
    bench.engine.refuses(1000, ErrorKind::InvalidResponse);
    assert_eq!(burst(&bench, 20).await, [20]);
    // To all alike it is the answer.
    bench.engine.refuses(0, ErrorKind::InvalidResponse);
    let calls = bench.ask_many(0..20);
    settle().await;
    bench.answer(2).await;
    for call in calls {
        assert_eq!(kind(call).await, ErrorKind::InvalidResponse);
    }
    bench.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn lone_requests_are_not_sent_all_at_once() {
    let bench = Bench::new();
    bench.engine.refuses(1, ErrorKind::Denied);
    let first = bench.ask_many(0..100);
    settle().await;
    bench.answer(2).await;
    assert_eq!(bench.engine.requests().len(), 2 + LONE_AT_ONCE);
    bench.answer(10).await;
    assert_eq!(bench.engine.requests().len(), 12 + LONE_AT_ONCE, "as one ends, another begins");
    bench.answer(89).await;
    assert_opened(first).await;
    bench.assert_idle();

    // Those that stall do not keep others from being sent, but there is an end to that, too.
    let before = bench.engine.requests().len();
    let calls: Vec<_> = (0..300).map(|number| bench.ask_of("kms", &format!("{number:04}"), 30)).collect();
    for _ in 0..20 {
        settle().await;
        advance(STALLED + Duration::from_millis(1)).await;
    }
    settle().await;
    assert_eq!(bench.engine.requests().len() - before, MOST_AWAY);
    bench.engine.refuses(1000, ErrorKind::Denied);
    for _ in 0..10 {
        bench.answer(100).await;
    }
    assert_opened(calls).await;
    bench.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn what_fails_as_a_whole_fails_all_with_its_meaning() {
    for refused in [ErrorKind::TokenInvalid, ErrorKind::KeyNotFound, ErrorKind::Unreachable] {
        let bench = Bench::new();
        bench.engine.refuses(0, refused);
        let calls = bench.ask_many(0..20);
        settle().await;
        bench.answer(1).await;
        for call in calls {
            assert_eq!(kind(call).await, refused);
        }
        assert_eq!(bench.engine.requests(), [20], "nothing loops");
        bench.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_batches_alone_ends_them_for_a_while() {
    let bench = Bench::new();
    bench.engine.refuses(1, ErrorKind::Denied);
    let mut expected = vec![20];
    expected.extend([1; 20]);
    assert_eq!(burst(&bench, 20).await, expected);
    assert_eq!(burst(&bench, 20).await, [1; 20], "and none is tried again");
    advance(FIRST_RECOVERY).await;
    assert_eq!(burst(&bench, 20).await[..2], [2, 2], "but later");
    // The policy was changed.
    bench.engine.refuses(1000, ErrorKind::Denied);
    for size in [2, 4, 8, 16, 20] {
        advance(FIRST_RECOVERY * 2).await;
        assert_eq!(burst(&bench, 20).await[0], size);
    }

    // A refusal of lone Decrypts too is asked about only once more.
    let bench = Bench::new();
    bench.engine.refuses(0, ErrorKind::Denied);
    let calls = bench.ask_many(0..20);
    settle().await;
    bench.answer(30).await;
    for call in calls {
        assert_eq!(kind(call).await, ErrorKind::Denied);
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
    assert_eq!(kind(broken).await, ErrorKind::InvalidResponse);
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
