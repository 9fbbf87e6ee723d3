use std::{
    mem,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::Semaphore,
    task::{JoinHandle, yield_now},
    time::{Instant, advance, sleep_until},
};
use transit_client::{
    key::KeyNames,
    key_id::KeyVersion,
    transit::{Encrypted, KeyDescription, NodeId},
};
use zeroize::Zeroizing;

use super::{
    limit::INITIAL_RECOVERY,
    queue::{DecryptResult, MAX_SINGLES_IN_FLIGHT, STALL_TIMEOUT},
    *,
};

/// Records each request, answers it once there is a permit, and decrypts each ciphertext to itself.
struct Engine {
    /// Each answer takes one.
    answers: Semaphore,
    /// Requests that were cancelled before they were answered.
    cancelled: AtomicUsize,
    /// How requests fail that are not answered before their deadline.
    deadline_error: Mutex<ErrorKind>,
    keys: KeyNames,
    /// The largest request that is accepted, and how larger ones fail.
    max_size: Mutex<Option<(usize, ErrorKind)>>,
    /// The number of items in each request. 1 is a single Decrypt, not a batch.
    requests: Mutex<Vec<usize>>,
}

/// Counts the request as cancelled if it is dropped.
struct CancelGuard<'a>(&'a Engine);

impl Drop for CancelGuard<'_> {
    fn drop(&mut self) {
        self.0.cancelled.fetch_add(1, Ordering::Relaxed);
    }
}

impl Engine {
    async fn request(&self, items: usize, call: Call<'_>) -> Result<(), TransitError> {
        self.requests.lock().unwrap().push(items);
        let guard = CancelGuard(self);
        let outcome = tokio::select! {
            biased;
            permit = self.answers.acquire() => {
                permit.unwrap().forget();
                match *self.max_size.lock().unwrap() {
                    Some((max, kind)) if items > max => Err(kind),
                    _ => Ok(()),
                }
            }
            () = sleep_until(call.deadline) => Err(*self.deadline_error.lock().unwrap()),
        };
        mem::forget(guard);
        outcome.map_err(|kind| TransitError::new(kind, kind.name()))
    }

    fn requests(&self) -> Vec<usize> {
        self.requests.lock().unwrap().clone()
    }

    fn cancelled(&self) -> usize {
        self.cancelled.load(Ordering::Relaxed)
    }

    fn refuse_above(&self, max: usize, kind: ErrorKind) {
        *self.max_size.lock().unwrap() = Some((max, kind));
    }
}

fn decrypted(ciphertext: &Ciphertext, single: bool) -> DecryptResult {
    let text = ciphertext.as_str();
    assert!(!text.contains("PANIC"), "a bug");
    if text.contains("BAD") {
        return Err(TransitError::new(ErrorKind::BadCiphertext, "message authentication failed"));
    }
    if text.contains("LAG") && !single {
        return Err(TransitError::new(ErrorKind::VersionUnavailable, "version is too new"));
    }
    let plaintext = Zeroizing::new(text.as_bytes().to_vec());
    Ok(Decrypted { plaintext, request_id: Some("request".into()) })
}

#[async_trait]
impl Transit for Engine {
    async fn decrypt(&self, _: &KeyRef, ciphertext: &Ciphertext, call: Call<'_>) -> DecryptResult {
        self.request(1, call).await?;
        decrypted(ciphertext, true)
    }

    async fn decrypt_batch(
        &self,
        _: &KeyRef,
        ciphertexts: &[&Ciphertext],
        call: Call<'_>,
    ) -> Result<Vec<DecryptResult>, TransitError> {
        assert!(ciphertexts.len() > 1, "a single Decrypt is not sent as a batch");
        self.request(ciphertexts.len(), call).await?;
        Ok(ciphertexts.iter().map(|ciphertext| decrypted(ciphertext, false)).collect())
    }

    async fn encrypt(
        &self,
        _: &KeyRef,
        _: KeyVersion,
        _: &[u8],
        _: Call<'_>,
    ) -> Result<Encrypted, TransitError> {
        Err(unanswered())
    }

    async fn is_active(&self, _: NodeId, _: Call<'_>) -> Result<bool, TransitError> {
        Err(unanswered())
    }

    fn keys(&self) -> &KeyNames {
        &self.keys
    }

    async fn read_key(&self, _: &KeyRef, _: Call<'_>) -> Result<KeyDescription, TransitError> {
        Err(unanswered())
    }
}

struct Bench {
    coalescer: Arc<Coalescer>,
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
}

impl Bench {
    /// With an engine that answers only as many requests as [`Bench::answer`] permits.
    fn new() -> Self {
        Self::with(true)
    }

    fn with(enabled: bool) -> Self {
        let engine = Arc::new(Engine {
            answers: Semaphore::new(0),
            cancelled: AtomicUsize::new(0),
            keys: KeyNames::new([key("kms")]).unwrap(),
            deadline_error: Mutex::new(ErrorKind::DeadlineExceeded),
            requests: Mutex::default(),
            max_size: Mutex::default(),
        });
        let metrics = Arc::new(Metrics::new().unwrap());
        let coalescer = Coalescer::new(Arc::clone(&engine) as _, enabled, Arc::clone(&metrics));
        Self { coalescer: Arc::new(coalescer), engine, metrics }
    }

    fn decrypt(&self, body: &str) -> JoinHandle<DecryptResult> {
        self.decrypt_with("kms", body, 3)
    }

    fn decrypt_with(&self, name: &str, body: &str, seconds: u64) -> JoinHandle<DecryptResult> {
        let (coalescer, name) = (Arc::clone(&self.coalescer), key(name));
        let ciphertext = Ciphertext::parse(format!("vault:v1:{body}").as_bytes()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(seconds);
        tokio::spawn(
            async move { coalescer.decrypt(&name, &ciphertext, Call { deadline, uid: "uid" }).await },
        )
    }

    fn decrypt_many(&self, bodies: std::ops::Range<usize>) -> Vec<JoinHandle<DecryptResult>> {
        bodies.map(|body| self.decrypt(&format!("{body:04}"))).collect()
    }

    async fn answer(&self, requests: usize) {
        self.engine.answers.add_permits(requests);
        settle().await;
    }

    /// Asserts that nothing is queued, in flight or left over.
    fn assert_idle(&self) {
        let state = self.coalescer.inner.lock();
        assert_eq!((state.slots_in_use.singles, state.slots_in_use.batches, state.in_flight), (0, 0, 0));
        assert_eq!((state.singles.len(), state.queue.len(), state.by_key.len()), (0, 0, 0));
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

async fn kind(call: JoinHandle<DecryptResult>) -> ErrorKind {
    call.await.unwrap().unwrap_err().kind
}

async fn assert_decrypted(calls: Vec<JoinHandle<DecryptResult>>) {
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn identical_decrypts_share_one_request() {
    let bench = Bench::new();
    let early: Vec<_> = (0..5).map(|_| bench.decrypt("QUJD")).collect();
    settle().await;
    // Also while the request is in flight.
    let late: Vec<_> = (0..5).map(|_| bench.decrypt("QUJD")).collect();
    settle().await;
    bench.answer(1).await;
    for call in early.into_iter().chain(late) {
        assert_eq!(*call.await.unwrap().unwrap().plaintext, b"vault:v1:QUJD");
    }
    assert_eq!(bench.engine.requests(), [1]);
    assert_eq!(bench.metrics.requests.decrypts_deduplicated.get(), 9);
    bench.assert_idle();
    // Results are not cached.
    let again = bench.decrypt("QUJD");
    settle().await;
    bench.answer(1).await;
    again.await.unwrap().unwrap();
    assert_eq!(bench.engine.requests(), [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn decrypts_that_arrive_while_two_batches_are_in_flight_form_batches_of_at_most_128() {
    let bench = Bench::new();
    let mut calls = bench.decrypt_many(0..1);
    settle().await;
    calls.extend(bench.decrypt_many(1..41));
    settle().await;
    calls.extend(bench.decrypt_many(41..241));
    settle().await;
    assert_eq!(bench.engine.requests(), [1, 40], "two are in flight, and the others wait");
    bench.answer(1).await;
    assert_eq!(bench.engine.requests(), [1, 40, 128]);
    bench.answer(3).await;
    assert_eq!(bench.engine.requests(), [1, 40, 128, 72]);
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(*call.await.unwrap().unwrap().plaintext, format!("vault:v1:{number:04}").into_bytes());
    }
    assert_eq!(bench.metrics.requests.batch_size.get_sample_sum(), 241.0);
    bench.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_batch_has_ciphertexts_of_one_key() {
    let bench = Bench::new();
    let calls =
        (0..10).map(|number| bench.decrypt_with(["kms", "old"][number % 2], &format!("{number:04}"), 3));
    let calls = calls.collect();
    settle().await;
    assert_eq!(bench.engine.requests(), [5, 5]);
    bench.answer(2).await;
    assert_decrypted(calls).await;
}

#[tokio::test(start_paused = true)]
async fn a_bad_ciphertext_fails_only_its_caller() {
    let bench = Bench::new();
    let (calls, bad) = (bench.decrypt_many(0..9), bench.decrypt("BAD="));
    settle().await;
    bench.answer(1).await;
    assert_decrypted(calls).await;
    assert_eq!(kind(bad).await, ErrorKind::BadCiphertext);
    assert_eq!(bench.engine.requests(), [10]);
    bench.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn an_item_that_another_node_may_decrypt_is_sent_alone() {
    let bench = Bench::new();
    let (calls, lagging) = (bench.decrypt_many(0..9), bench.decrypt("LAG="));
    settle().await;
    bench.answer(1).await;
    assert_decrypted(calls).await;
    bench.answer(1).await;
    lagging.await.unwrap().unwrap();
    assert_eq!(bench.engine.requests(), [10, 1]);
    bench.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn the_first_caller_may_leave() {
    let bench = Bench::new();
    let first = bench.decrypt("QUJD");
    settle().await;
    let second = bench.decrypt("QUJD");
    settle().await;
    first.abort();
    settle().await;
    assert_eq!(bench.engine.cancelled(), 0);
    bench.answer(1).await;
    second.await.unwrap().unwrap();
    assert_eq!(bench.engine.requests(), [1]);
}

#[tokio::test(start_paused = true)]
async fn requests_without_callers_are_cancelled() {
    let bench = Bench::new();
    let in_flight = bench.decrypt_many(0..4);
    settle().await;
    let mut queued = bench.decrypt_many(4..9);
    settle().await;
    let more = bench.decrypt_many(9..12);
    settle().await;
    let sent = bench.engine.requests().len();
    // If one of several callers leaves, the others still get their results.
    queued.pop().unwrap().abort();
    settle().await;
    assert_eq!(bench.engine.cancelled(), 0);
    in_flight.iter().chain(&queued).chain(&more).for_each(JoinHandle::abort);
    settle().await;
    assert_eq!(bench.engine.cancelled(), sent, "all that were in flight");
    assert_eq!(bench.engine.requests().len(), sent, "no queued item was sent");
    bench.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn each_caller_keeps_its_own_deadline() {
    let bench = Bench::new();
    let short = bench.decrypt_with("kms", "QUJD", 1);
    settle().await;
    let long = bench.decrypt_with("kms", "QUJD", 5);
    settle().await;
    advance(Duration::from_millis(1001)).await;
    settle().await;
    assert!(short.is_finished() && !long.is_finished());
    let error = short.await.unwrap().unwrap_err();
    assert_eq!(error.message, "deadline_exceeded", "the error of the request");
    // The request had the deadline of the first caller. A new one is sent for the second caller.
    assert_eq!(bench.engine.requests(), [1, 1]);
    bench.answer(1).await;
    long.await.unwrap().unwrap();
    bench.assert_idle();

    // Also for callers whose items share a batch.
    let (short, long) = (bench.decrypt_with("kms", "AAAA", 1), bench.decrypt_with("kms", "BBBB", 5));
    settle().await;
    advance(Duration::from_millis(1001)).await;
    settle().await;
    assert!(short.is_finished() && !long.is_finished());
    bench.answer(1).await;
    long.await.unwrap().unwrap();
    assert_eq!(bench.engine.requests(), [1, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_later_caller_does_not_hide_the_error_from_the_first() {
    // Failover returns this if a node refused the request before the deadline.
    let bench = Bench::new();
    *bench.engine.deadline_error.lock().unwrap() = ErrorKind::Unreachable;
    let short = bench.decrypt_with("kms", "QUJD", 1);
    settle().await;
    let long = bench.decrypt_with("kms", "QUJD", 5);
    settle().await;
    advance(Duration::from_millis(981)).await;
    settle().await;
    assert_eq!(kind(short).await, ErrorKind::Unreachable);
    assert!(!long.is_finished());
    assert_eq!(bench.engine.requests(), [1, 1]);
    bench.answer(1).await;
    long.await.unwrap().unwrap();
    bench.assert_idle();

    // An error before the deadline is returned to all callers.
    let bench = Bench::new();
    bench.engine.refuse_above(0, ErrorKind::Unreachable);
    let calls = [1, 5].map(|seconds| (bench.decrypt_with("kms", "QUJD", seconds), seconds));
    settle().await;
    let late = bench.decrypt_with("kms", "QUJD", 9);
    settle().await;
    bench.answer(1).await;
    assert_eq!(kind(late).await, ErrorKind::Unreachable);
    for (call, _) in calls {
        assert_eq!(kind(call).await, ErrorKind::Unreachable);
    }
    assert_eq!(bench.engine.requests(), [1]);
    bench.assert_idle();
}

/// The sizes of the requests for this number of concurrent calls.
async fn burst(bench: &Bench, calls: usize) -> Vec<usize> {
    let before = bench.engine.requests().len();
    let calls = bench.decrypt_many(0..calls);
    settle().await;
    for _ in 0..10 {
        bench.answer(100).await;
    }
    assert_decrypted(calls).await;
    // Take back the permits that no request used.
    let left = bench.engine.answers.available_permits();
    bench.engine.answers.forget_permits(left);
    bench.assert_idle();
    bench.engine.requests().split_off(before)
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_too_large_is_halved_and_the_limit_recovers() {
    let bench = Bench::new();
    bench.engine.refuse_above(40, ErrorKind::BatchTooLarge);
    assert_eq!(burst(&bench, 128).await, [128, 64, 32, 32, 32, 32]);
    assert_eq!(burst(&bench, 64).await, [32, 32], "the limit stays");
    // A permanent limit is tested at increasing intervals.
    for pause in [10, 20, 40] {
        advance(Duration::from_secs(pause) - Duration::from_millis(1)).await;
        assert_eq!(burst(&bench, 64).await, [32, 32], "before {pause} s");
        advance(Duration::from_millis(1)).await;
        assert_eq!(burst(&bench, 64).await, [64, 32, 32], "after {pause} s");
    }
    // A temporary limit is forgotten soon.
    bench.engine.refuse_above(1000, ErrorKind::BatchTooLarge);
    advance(Duration::from_secs(80)).await;
    assert_eq!(burst(&bench, 128).await, [64, 64]);
    advance(INITIAL_RECOVERY).await;
    assert_eq!(burst(&bench, 128).await, [64, 64], "the recovery time has not been reset yet");
    advance(Duration::from_secs(80)).await;
    assert_eq!(burst(&bench, 128).await, [128]);
    bench.engine.refuse_above(100, ErrorKind::BatchTooLarge);
    assert_eq!(burst(&bench, 128).await, [128, 64, 64]);
    bench.engine.refuse_above(1000, ErrorKind::BatchTooLarge);
    advance(INITIAL_RECOVERY).await;
    assert_eq!(burst(&bench, 128).await, [128], "the recovery time has been reset");

    // The limit falls to one item, which cannot be halved.
    bench.engine.refuse_above(0, ErrorKind::BatchTooLarge);
    let calls = bench.decrypt_many(0..3);
    settle().await;
    bench.answer(10).await;
    for call in calls {
        assert_eq!(kind(call).await, ErrorKind::BatchTooLarge);
    }
    bench.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn an_invalid_response_does_not_lower_the_limit() {
    let bench = Bench::new();
    bench.engine.refuse_above(1, ErrorKind::InvalidResponse);
    let mut expected = vec![20];
    expected.extend([1; 20]);
    assert_eq!(burst(&bench, 20).await, expected, "each item is sent alone");
    bench.engine.refuse_above(1000, ErrorKind::InvalidResponse);
    assert_eq!(burst(&bench, 20).await, [20]);
    // If a single Decrypt has the same error, all callers get it.
    bench.engine.refuse_above(0, ErrorKind::InvalidResponse);
    let calls = bench.decrypt_many(0..20);
    settle().await;
    bench.answer(2).await;
    for call in calls {
        assert_eq!(kind(call).await, ErrorKind::InvalidResponse);
    }
    bench.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn the_number_of_single_requests_in_flight_is_limited() {
    let bench = Bench::new();
    bench.engine.refuse_above(1, ErrorKind::Denied);
    let first = bench.decrypt_many(0..100);
    settle().await;
    bench.answer(2).await;
    assert_eq!(bench.engine.requests().len(), 2 + MAX_SINGLES_IN_FLIGHT);
    bench.answer(10).await;
    assert_eq!(
        bench.engine.requests().len(),
        12 + MAX_SINGLES_IN_FLIGHT,
        "the end of a request starts the next one"
    );
    bench.answer(89).await;
    assert_decrypted(first).await;
    bench.assert_idle();

    // Stalled requests do not block others until the total limit is reached.
    let before = bench.engine.requests().len();
    let calls: Vec<_> =
        (0..300).map(|number| bench.decrypt_with("kms", &format!("{number:04}"), 30)).collect();
    for _ in 0..20 {
        settle().await;
        advance(STALL_TIMEOUT + Duration::from_millis(1)).await;
    }
    settle().await;
    assert_eq!(bench.engine.requests().len() - before, MAX_IN_FLIGHT);
    bench.engine.refuse_above(1000, ErrorKind::Denied);
    for _ in 0..10 {
        bench.answer(100).await;
    }
    assert_decrypted(calls).await;
    bench.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_fails_as_a_whole_fails_all_callers_with_its_error() {
    for refused in [ErrorKind::TokenInvalid, ErrorKind::KeyNotFound, ErrorKind::Unreachable] {
        let bench = Bench::new();
        bench.engine.refuse_above(0, refused);
        let calls = bench.decrypt_many(0..20);
        settle().await;
        bench.answer(1).await;
        for call in calls {
            assert_eq!(kind(call).await, refused);
        }
        assert_eq!(bench.engine.requests(), [20], "no request is repeated");
        bench.assert_idle();
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_denies_only_batches_disables_them_for_a_while() {
    let bench = Bench::new();
    bench.engine.refuse_above(1, ErrorKind::Denied);
    let mut expected = vec![20];
    expected.extend([1; 20]);
    assert_eq!(burst(&bench, 20).await, expected);
    assert_eq!(burst(&bench, 20).await, [1; 20], "no batch is sent");
    advance(INITIAL_RECOVERY).await;
    assert_eq!(burst(&bench, 20).await[..2], [2, 2], "batches are tried again later");
    // The policy was changed.
    bench.engine.refuse_above(1000, ErrorKind::Denied);
    for size in [2, 4, 8, 16, 20] {
        advance(INITIAL_RECOVERY * 2).await;
        assert_eq!(burst(&bench, 20).await[0], size);
    }

    // If single Decrypts are denied too, only one more request is sent.
    let bench = Bench::new();
    bench.engine.refuse_above(0, ErrorKind::Denied);
    let calls = bench.decrypt_many(0..20);
    settle().await;
    bench.answer(30).await;
    for call in calls {
        assert_eq!(kind(call).await, ErrorKind::Denied);
    }
    assert_eq!(bench.engine.requests(), [20, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_request_does_not_block_others() {
    let bench = Bench::new();
    for body in ["AAAA", "BBBB", "CCCC"] {
        bench.decrypt(body);
        settle().await;
    }
    assert_eq!(bench.engine.requests(), [1, 1]);
    advance(STALL_TIMEOUT + Duration::from_millis(1)).await;
    settle().await;
    assert_eq!(bench.engine.requests(), [1, 1, 1]);
    bench.answer(3).await;
    bench.assert_idle();
}

#[tokio::test(start_paused = true)]
async fn a_panic_fails_only_the_callers_of_its_batch() {
    let bench = Bench::new();
    let broken = bench.decrypt("PANIC");
    settle().await;
    bench.answer(1).await;
    assert_eq!(kind(broken).await, ErrorKind::InvalidResponse);
    bench.assert_idle();
    let calls = bench.decrypt_many(0..3);
    settle().await;
    bench.answer(1).await;
    assert_decrypted(calls).await;
}

#[tokio::test(start_paused = true)]
async fn each_call_is_a_request_if_coalescing_is_disabled() {
    let bench = Bench::with(false);
    let calls = (0..10).map(|_| bench.decrypt("QUJD")).collect();
    settle().await;
    assert_eq!(bench.engine.requests(), [1; 10]);
    bench.answer(10).await;
    assert_decrypted(calls).await;
}
