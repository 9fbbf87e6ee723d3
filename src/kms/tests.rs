//! The rules, end to end from gRPC request to a Transit engine in memory.

use std::{
    ops::Deref,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use kms_plugin::{
    v1beta1::{self, key_management_service_server::KeyManagementService as ServesV1},
    v2::{
        DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
        key_management_service_server::KeyManagementService,
    },
};
use proptest::prelude::*;
use tokio::{
    task::{JoinHandle, JoinSet, yield_now},
    time::{Instant, advance},
};
use tonic::{Code, Request, Status};
use transit_client::{
    ErrorKind, TransitError,
    ciphertext::Ciphertext,
    key::{KeyName, KeyRef, MountPath, Namespace},
    key_id::KeyId,
    testing::fake_transit::{FakeKey, FakeSession, FakeTransit},
};

use super::{v1::KmsV1, v2::KmsV2};
use crate::{
    config::{Encryption, LocalKekLimits},
    observe::{heartbeat::Heartbeat, metrics::Metrics},
    session::{
        HealthChecker, KekRefresher,
        health::HealthSettings,
        keyring::KeyEntry,
        local_kek::ANNOTATION,
        state::{NewSession, StateStore, Writers},
        verification::{PreviousState, VerificationError, verify},
    },
};

const SETTINGS: HealthSettings =
    HealthSettings { outage_grace: Duration::from_secs(60), health_check_interval: Duration::from_secs(30) };

/// A Transit engine in memory, and how its sessions wrap seeds.
#[derive(Clone, Default)]
struct Model {
    encryption: Arc<Mutex<Encryption>>,
    transit: FakeTransit,
}

impl Model {
    /// With a key `kms` of one version.
    fn new() -> Self {
        Self { encryption: Arc::default(), transit: FakeTransit::new() }
    }

    /// Sessions that are taken from now on wrap seeds in this way.
    fn encrypt_with(&self, encryption: Encryption) {
        *self.encryption.lock().unwrap() = encryption;
    }

    fn offer(&self, session: &Arc<FakeSession>) -> NewSession {
        let encryption = *self.encryption.lock().unwrap();
        NewSession { encryption, nodes: None, transit: Arc::clone(session) as _ }
    }
}

impl Deref for Model {
    type Target = FakeTransit;

    fn deref(&self) -> &FakeTransit {
        &self.transit
    }
}

/// A service on a model, with or without a running health_checker.
struct Bench {
    health_checker: Option<JoinHandle<()>>,
    kek_refresher: Option<JoinHandle<()>>,
    metrics: Arc<Metrics>,
    model: Model,
    service: KmsV2,
    session: Arc<FakeSession>,
    store: Arc<StateStore>,
    writers: Writers,
}

impl Bench {
    /// Nothing known yet.
    fn bare(model: Model) -> Self {
        let metrics = Arc::new(Metrics::new().unwrap());
        let (store, writers) = StateStore::new(SETTINGS, Arc::clone(&metrics)).share();
        let service = KmsV2::new(writers.calls.clone(), Arc::clone(&metrics));
        let session = model.session(&["kms"]);
        Self { health_checker: None, kek_refresher: None, metrics, model, service, session, store, writers }
    }

    /// With a session taken.
    async fn ready(model: Model, keys: &[&str]) -> Self {
        let mut bench = Self::bare(model);
        bench.take_session(keys).await.unwrap();
        bench
    }

    async fn with_health_checker(model: Model) -> Self {
        let mut bench = Self::ready(model, &["kms"]).await;
        let metrics = Arc::new(Metrics::new().unwrap());
        let reporter = bench.store.writers().health;
        let health_checker = HealthChecker { heartbeat: Heartbeat::new(), metrics, reporter };
        bench.health_checker = Some(tokio::spawn(health_checker.run()));
        settle().await;
        bench
    }

    /// What the keeper does with a candidate.
    async fn take_session(&mut self, keys: &[&str]) -> Result<(), VerificationError> {
        let session = self.model.session(keys);
        let before = self.store.snapshot();
        let against = before.as_ref().map(|before| before.as_previous_state());
        let verification =
            verify(session.as_ref(), against, false, Instant::now() + Duration::from_secs(10)).await?;
        self.writers.sessions.publish(self.model.offer(&session), verification).unwrap();
        self.session = session;
        Ok(())
    }

    /// Encrypts in a task of its own.
    fn begin_encrypt(&self) -> JoinHandle<Result<EncryptResponse, Status>> {
        let service = self.service.clone();
        let request = EncryptRequest { plaintext: Bytes::from_static(b"seed"), uid: "uid".into() };
        tokio::spawn(async move { Ok(service.encrypt(Request::new(request)).await?.into_inner()) })
    }

    /// Decrypts in a task of its own.
    fn begin_open(&self, sealed: &EncryptResponse) -> JoinHandle<Result<Bytes, Status>> {
        let request = DecryptRequest {
            ciphertext: sealed.ciphertext.clone(),
            uid: "uid".into(),
            key_id: sealed.key_id.clone(),
            annotations: sealed.annotations.clone(),
        };
        let service = self.service.clone();
        tokio::spawn(async move { Ok(service.decrypt(Request::new(request)).await?.into_inner().plaintext) })
    }

    /// How many calls of `method` ended with `code`.
    fn calls(&self, method: &str, code: &str) -> u64 {
        let line = format!("transit_kms_requests_total{{code=\"{code}\",method=\"{method}\"}} ");
        let text = self.metrics.render().unwrap();
        text.lines().find_map(|it| it.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
    }

    async fn status(&self) -> Result<StatusResponse, Status> {
        Ok(self.service.status(Request::new(StatusRequest {})).await?.into_inner())
    }

    async fn healthz(&self) -> String {
        self.status().await.unwrap().healthz
    }

    async fn encrypt(&self, plaintext: &[u8]) -> Result<EncryptResponse, Status> {
        let request = EncryptRequest { plaintext: Bytes::copy_from_slice(plaintext), uid: "uid".into() };
        Ok(self.service.encrypt(Request::new(request)).await?.into_inner())
    }

    /// As kube-apiserver does, with everything that it has stored.
    async fn open(&self, sealed: &EncryptResponse) -> Result<Bytes, Status> {
        let request = DecryptRequest {
            ciphertext: sealed.ciphertext.clone(),
            uid: "uid".into(),
            key_id: sealed.key_id.clone(),
            annotations: sealed.annotations.clone(),
        };
        Ok(self.service.decrypt(Request::new(request)).await?.into_inner().plaintext)
    }

    async fn decrypt(&self, ciphertext: &[u8], key_id: &str) -> Result<Bytes, Status> {
        let request = DecryptRequest {
            ciphertext: Bytes::copy_from_slice(ciphertext),
            uid: "uid".into(),
            key_id: key_id.into(),
            annotations: [("other.provider.example".to_owned(), Bytes::from_static(b"1"))].into(),
        };
        Ok(self.service.decrypt(Request::new(request)).await?.into_inner().plaintext)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.kek_refresher.iter().chain(&self.health_checker).for_each(JoinHandle::abort);
    }
}

/// Short enough to be waited for; probes come every 30 s.
const LIMITS: LocalKekLimits = LocalKekLimits {
    max_age: Duration::from_secs(100),
    max_age_in_outage: Duration::from_secs(400),
    renew_after: Duration::from_secs(1000),
    renew_after_uses: 50,
};

/// A model whose sessions have local KEKs from now on.
fn local(model: Model) -> Model {
    model.encrypt_with(Encryption::LocalKek(LIMITS));
    model
}

/// As [`Bench::with_health_checker`], in mode `local-kek`; its KEKs are looked after.
async fn local_bench(model: Model) -> Bench {
    let mut bench = Bench::with_health_checker(local(model)).await;
    let reporter = bench.writers.calls.clone();
    bench.kek_refresher = Some(tokio::spawn(KekRefresher { reporter }.run()));
    settle().await;
    bench
}

/// Lets every task that can run do so.
async fn settle() {
    for _ in 0..50 {
        yield_now().await;
    }
}

async fn pass(seconds: u64) {
    // In small steps: a timer may start another one.
    for _ in 0..seconds * 4 {
        advance(Duration::from_millis(250)).await;
        settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn too_many_calls_are_refused_at_once_and_status_is_answered_all_the_same() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    bench.model.change(|state| state.silent = true);
    let before = bench.model.calls();
    let mut calls = JoinSet::new();
    for _ in 0..768 {
        let service = bench.service.clone();
        calls.spawn(async move {
            let request = EncryptRequest { plaintext: Bytes::from_static(b"seed"), uid: "uid".into() };
            service.encrypt(Request::new(request)).await.map(drop)
        });
    }
    settle().await;
    assert_eq!(bench.model.calls() - before, 128, "the others wait");
    let refused = Instant::now();
    assert_eq!(bench.encrypt(b"seed").await.unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(refused, Instant::now(), "at once");
    assert_eq!(bench.healthz().await, "ok");

    // Who leaves makes room; who waits gets its turn, or hears in time that it did not.
    calls.abort_all();
    while calls.join_next().await.is_some() {}
    bench.model.change(|state| state.silent = false);
    assert!(bench.encrypt(b"seed").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_its_turn_ends_with_its_deadline() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    bench.model.change(|state| state.silent = true);
    let mut calls = JoinSet::new();
    for _ in 0..200 {
        let service = bench.service.clone();
        calls.spawn(async move {
            let request = EncryptRequest { plaintext: Bytes::from_static(b"seed"), uid: "uid".into() };
            service.encrypt(Request::new(request)).await.map(drop)
        });
    }
    let began = Instant::now();
    let mut waited = 0;
    for outcome in calls.join_all().await {
        let error = outcome.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded);
        waited += usize::from(error.message().contains("128 other calls are waiting for Vault"));
    }
    assert_eq!(waited, 200 - 128, "they say what they waited for");
    assert_eq!(began.elapsed(), Duration::from_millis(2900));

    // So does one whose turn came too late to be of use.
    let hasty: Vec<_> = (0..128).map(|_| bench.begin_encrypt()).collect();
    settle().await;
    advance(Duration::from_secs(1)).await;
    let late = bench.begin_encrypt();
    settle().await;
    for call in hasty {
        drop(call.await);
    }
    let error = late.await.unwrap().unwrap_err();
    assert!(error.message().contains("the call was queued for 1900 ms"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_needs_no_vault_waits_for_nothing_that_does() {
    let bench = Bench::ready(local(Model::new()), &["kms"]).await;
    let own = bench.encrypt(b"own").await.unwrap();
    bench.model.encrypt_with(Encryption::Transit);
    let other = Bench::ready(bench.model.clone(), &["kms"]).await;
    let mut bare = Vec::new();
    for number in 0..768_u32 {
        bare.push(other.encrypt(&number.to_be_bytes()).await.unwrap());
    }
    bench.model.change(|state| state.silent = true);
    for waiting in [200, 768] {
        let calls: Vec<_> = bare[..waiting].iter().map(|sealed| bench.begin_open(sealed)).collect();
        settle().await;
        let began = Instant::now();
        let sealed = bench.encrypt(b"seed").await.unwrap();
        assert_eq!(bench.open(&sealed).await.unwrap(), b"seed"[..]);
        assert_eq!(bench.open(&own).await.unwrap(), b"own"[..]);
        // Refusals, too.
        let damaged = EncryptResponse { ciphertext: own.ciphertext.slice(..30), ..own.clone() };
        assert_eq!(bench.open(&damaged).await.unwrap_err().code(), Code::InvalidArgument);
        let foreign = format!("tk1.{}.1.{}", "0".repeat(32), "0".repeat(16));
        let error = bench.decrypt(&bare[0].ciphertext, &foreign).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert_eq!(began, Instant::now(), "with {waiting} calls before them");
        assert!(calls.iter().all(|call| !call.is_finished()));
        if waiting == 768 {
            let error = bench.open(&bare[0]).await.unwrap_err();
            assert_eq!(error.code(), Code::ResourceExhausted, "what needs Vault is bounded all the same");
        }
        for call in calls {
            call.abort();
            drop(call.await);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_caller_goes_away_is_counted() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    bench.model.change(|state| state.silent = true);
    let calls = [bench.begin_encrypt(), bench.begin_encrypt()];
    settle().await;
    for call in calls {
        call.abort();
        drop(call.await);
    }
    assert_eq!((bench.calls("encrypt", "Canceled"), bench.calls("encrypt", "OK")), (2, 0));
    bench.model.change(|state| state.silent = false);
    bench.encrypt(b"seed").await.unwrap();
    assert_eq!((bench.calls("encrypt", "Canceled"), bench.calls("encrypt", "OK")), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_encrypted_is_decrypted_under_the_key_id_of_status() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    let sealed = bench.encrypt(b"seed").await.unwrap();
    let status = bench.status().await.unwrap();
    assert_eq!((status.version.as_str(), status.healthz.as_str()), ("v2", "ok"));
    assert_eq!(sealed.key_id, status.key_id);
    assert!(sealed.annotations.is_empty());
    assert!(sealed.ciphertext.starts_with(b"vault:v1:"));
    assert_eq!(bench.decrypt(&sealed.ciphertext, &sealed.key_id).await.unwrap(), &b"seed"[..]);
}

// What Status says: one test for each row of the table in `health`.

#[tokio::test(start_paused = true)]
async fn status_nothing_known_yet_is_unavailable_with_the_reason() {
    let bench = Bench::bare(Model::new());
    bench.writers.sessions.set_config_error(Some("/etc/kms.yaml:3: vault.token is missing".into()));
    for error in [bench.status().await.unwrap_err(), bench.encrypt(b"x").await.unwrap_err()] {
        assert_eq!(error.code(), Code::Unavailable);
        assert!(error.message().contains("vault.token is missing"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn status_is_ok_while_probes_are_good_and_costs_no_call() {
    let bench = Bench::with_health_checker(Model::new()).await;
    pass(300).await;
    let calls = bench.model.calls();
    for _ in 0..1000 {
        assert_eq!(bench.healthz().await, "ok");
    }
    assert_eq!(bench.model.calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn status_survives_an_outage_for_the_grace_and_then_says_why() {
    let bench = Bench::with_health_checker(Model::new()).await;
    pass(35).await;
    bench.model.change(|state| {
        state.fails.insert("read_key", ErrorKind::Unreachable);
    });
    pass(30).await;
    // The outage was noticed by a probe within the last 30 s.
    assert_eq!(bench.healthz().await, "ok");
    pass(25).await;
    assert_eq!(bench.healthz().await, "ok");
    pass(40).await;
    let status = bench.status().await.unwrap();
    assert!(status.healthz.contains("unreachable"), "{}", status.healthz);
    assert!(!status.key_id.is_empty(), "a reason comes with the key_id");

    bench.model.change(|state| state.fails.clear());
    pass(6).await;
    assert_eq!(bench.healthz().await, "ok");
}

#[tokio::test(start_paused = true)]
async fn status_is_not_ok_if_the_prober_is_stuck() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    pass(90).await;
    assert_eq!(bench.healthz().await, "ok");
    pass(1).await;
    assert!(bench.healthz().await.contains("more than three intervals"));
}

#[tokio::test(start_paused = true)]
async fn status_a_silent_vault_is_an_outage_not_a_stuck_prober() {
    let bench = Bench::with_health_checker(Model::new()).await;
    bench.model.change(|state| state.silent = true);
    pass(80).await;
    assert_eq!(bench.healthz().await, "ok");
    pass(60).await;
    assert!(bench.healthz().await.contains("did not answer a health check"), "{}", bench.healthz().await);
}

#[tokio::test(start_paused = true)]
async fn status_a_refusal_counts_from_the_first_call_that_shows_it() {
    for (what, kind) in [("encrypt", ErrorKind::Denied), ("decrypt", ErrorKind::Denied)] {
        let bench = Bench::with_health_checker(Model::new()).await;
        let sealed = bench.encrypt(b"seed").await.unwrap();
        bench.model.change(|state| {
            state.fails.insert(what, kind);
        });
        let error = match what {
            "encrypt" => bench.encrypt(b"seed").await.unwrap_err(),
            _ => bench.decrypt(&sealed.ciphertext, &sealed.key_id).await.unwrap_err(),
        };
        assert_eq!(error.code(), Code::PermissionDenied);
        assert!(bench.healthz().await.contains("denied"));

        // Probes repeat every 1 to 5 s until all is well.
        bench.model.change(|state| state.fails.clear());
        pass(6).await;
        assert_eq!(bench.healthz().await, "ok");
    }
}

#[tokio::test(start_paused = true)]
async fn status_a_refusal_is_found_by_the_probe_too() {
    let bench = Bench::with_health_checker(Model::new()).await;
    bench.session.kill_token();
    pass(31).await;
    assert!(bench.healthz().await.contains("token is dead"));
}

#[tokio::test(start_paused = true)]
async fn status_a_lost_key_is_a_grpc_error_and_nothing_is_encrypted() {
    let restored = FakeKey::new(1, &[100]);
    for (what, lose) in [
        ("does not exist", None),
        ("soft-deleted", Some(FakeKey { soft_deleted: true, ..restored.clone() })),
        ("made anew", Some(FakeKey::new(2, &[999]))),
        // Within the second in which it was made.
        ("made anew", Some(FakeKey::new(2, &[100]))),
    ] {
        let bench = Bench::with_health_checker(Model::new()).await;
        bench.model.change(|state| {
            state.keys.remove("kms");
            if let Some(key) = lose {
                state.keys.insert("kms".into(), key);
            }
        });
        pass(31).await;
        for error in [bench.status().await.unwrap_err(), bench.encrypt(b"x").await.unwrap_err()] {
            assert_eq!(error.code(), Code::FailedPrecondition, "{what}");
            assert!(error.message().contains(what), "{error}");
        }
        bench.model.change(|state| state.keys.insert("kms".into(), restored.clone()));
        pass(6).await;
        assert_eq!(bench.healthz().await, "ok", "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn status_a_lost_key_is_not_taken_for_a_refused_one_at_the_word_of_a_call() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    bench.writers.health.check_failed(1, &TransitError::new(ErrorKind::KeyNotFound, "the key is gone"));
    // As Vault answers an Encrypt with a key that is not there.
    bench.writers.calls.call_failed(1, &TransitError::new(ErrorKind::Denied, "permission denied"));
    let error = bench.status().await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::FailedPrecondition, "the key is gone"));
    // Nor at the word of a probe: what refuses us says nothing about the key being there again.
    for kind in [ErrorKind::Denied, ErrorKind::TokenInvalid, ErrorKind::Unreachable] {
        bench.writers.health.check_failed(1, &TransitError::new(kind, "no"));
        assert_eq!(bench.status().await.unwrap_err().message(), "the key is gone");
        assert_eq!(bench.encrypt(b"seed").await.unwrap_err().code(), Code::FailedPrecondition);
    }
}

#[tokio::test(start_paused = true)]
async fn the_reason_says_too_why_the_newest_config_is_no_cure() {
    let bench = Bench::with_health_checker(Model::new()).await;
    bench.session.kill_token();
    bench.writers.sessions.set_config_error(Some("line 3: vault.token must not be empty".into()));
    pass(31).await;
    let reason = bench.healthz().await;
    assert!(reason.contains("token is dead") && reason.contains("line 3"), "{reason}");
}

// KMS v1.

/// The KMS v1 face of `bench`.
fn v1(bench: &Bench) -> KmsV1 {
    KmsV1::new(bench.writers.calls.clone(), Arc::new(Metrics::new().unwrap()))
}

async fn v1_decrypt(service: &KmsV1, cipher: &[u8]) -> Result<Bytes, Status> {
    let request =
        v1beta1::DecryptRequest { version: "v1beta1".into(), cipher: Bytes::copy_from_slice(cipher) };
    Ok(ServesV1::decrypt(service, Request::new(request)).await?.into_inner().plain)
}

async fn v1_encrypt(service: &KmsV1, plain: &[u8]) -> Result<Bytes, Status> {
    let request = v1beta1::EncryptRequest { version: "v1beta1".into(), plain: Bytes::copy_from_slice(plain) };
    Ok(ServesV1::encrypt(service, Request::new(request)).await?.into_inner().cipher)
}

#[tokio::test(start_paused = true)]
async fn kms_v1_wraps_what_kms_v2_unwraps_and_the_other_way_round() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    let service = v1(&bench);
    // A DEK, and the health check of kube-apiserver.
    for plain in [&[7; 32][..], b"ping"] {
        let cipher = v1_encrypt(&service, plain).await.unwrap();
        assert!(cipher.starts_with(b"vault:v1:"), "{cipher:?}");
        assert_eq!(v1_decrypt(&service, &cipher).await.unwrap(), plain);
        assert_eq!(bench.decrypt(&cipher, "1").await.unwrap(), plain);
        let sealed = bench.encrypt(plain).await.unwrap();
        assert_eq!(v1_decrypt(&service, &sealed.ciphertext).await.unwrap(), plain);
    }
}

#[tokio::test(start_paused = true)]
async fn kms_v1_tries_every_key_for_it_knows_no_key_id() {
    let model = Model::new();
    model.change(|state| state.keys.insert("kms-old".into(), FakeKey::new(9, &[50])));
    let old = Bench::ready(model.clone(), &["kms-old"]).await;
    let cipher = v1_encrypt(&v1(&old), b"DEK").await.unwrap();
    let bench = Bench::ready(model, &["kms", "kms-old"]).await;
    assert_eq!(v1_decrypt(&v1(&bench), &cipher).await.unwrap(), b"DEK"[..]);
}

#[tokio::test(start_paused = true)]
async fn kms_v1_says_its_version_before_anything_is_known() {
    let service = v1(&Bench::bare(Model::new()));
    let request = v1beta1::VersionRequest { version: "v1beta1".into() };
    let answer = service.version(Request::new(request)).await.unwrap().into_inner();
    assert_eq!((answer.version.as_str(), answer.runtime_name.as_str()), ("v1beta1", "transit-kms"));
    assert_eq!(v1_encrypt(&service, b"ping").await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(v1_decrypt(&service, b"vault:v1:QUJD").await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn kms_v1_refuses_what_cannot_be() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    let service = v1(&bench);
    for cipher in [&b""[..], b"vault:v0:QUJD", b"vault:-:!", b"\xff", &[b'x'; 2000]] {
        let code = v1_decrypt(&service, cipher).await.unwrap_err().code();
        assert_eq!(code, Code::InvalidArgument, "{}", cipher.escape_ascii());
    }
    for plain in [&b""[..], &[0; 701]] {
        assert_eq!(v1_encrypt(&service, plain).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

// Tokens.

#[tokio::test(start_paused = true)]
async fn a_call_that_meets_a_dead_token_waits_for_the_next_session() {
    let mut bench = Bench::ready(Model::new(), &["kms"]).await;
    bench.session.kill_token();
    let service = bench.service.clone();
    let call = tokio::spawn(async move {
        let request = EncryptRequest { plaintext: Bytes::from_static(b"seed"), uid: "uid".into() };
        service.encrypt(Request::new(request)).await
    });
    settle().await;
    assert!(!call.is_finished());
    let mut died = None;
    bench.store.token_invalidated(&mut died).await;
    assert_eq!(died, Some(1));
    bench.take_session(&["kms"]).await.unwrap();
    assert!(call.await.unwrap().is_ok());
    assert_eq!(bench.healthz().await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_stays_dead_is_not_asked_again_by_calls() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    bench.session.kill_token();
    let began = Instant::now();
    let error = bench.encrypt(b"seed").await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied);
    assert!(began.elapsed() < Duration::from_secs(3), "the caller's deadline holds");

    let calls = bench.model.calls();
    pass(10).await;
    for _ in 0..100 {
        let began = Instant::now();
        assert_eq!(bench.encrypt(b"seed").await.unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(began.elapsed(), Duration::ZERO, "by now nobody waits any more");
    }
    assert_eq!(bench.model.calls(), calls, "nothing loops on 403");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_dies_after_a_long_refusal_is_only_just_dead() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    bench.writers.calls.call_failed(1, &TransitError::new(ErrorKind::Denied, "the policy refuses"));
    advance(Duration::from_secs(60)).await;
    assert_eq!(bench.store.read().token_invalid_for, None);
    let dead = TransitError::new(ErrorKind::TokenInvalid, "the token is dead");
    bench.writers.calls.call_failed(1, &dead);
    assert_eq!(bench.store.read().token_invalid_for, Some(Duration::ZERO), "calls wait for the next token");
    advance(Duration::from_secs(5)).await;
    bench.writers.calls.call_failed(1, &dead);
    assert_eq!(bench.store.read().token_invalid_for, Some(Duration::from_secs(5)));
}

#[tokio::test(start_paused = true)]
async fn news_of_an_old_session_says_nothing_about_the_new_one() {
    let mut bench = Bench::ready(Model::new(), &["kms"]).await;
    bench.take_session(&["kms"]).await.unwrap();
    let dead = TransitError::new(ErrorKind::TokenInvalid, "the old token is dead");
    bench.writers.calls.call_failed(1, &dead);
    bench.writers.health.check_failed(1, &dead);
    assert_eq!(bench.healthz().await, "ok");
    bench.writers.calls.call_failed(2, &dead);
    assert_ne!(bench.healthz().await, "ok");
}

#[tokio::test(start_paused = true)]
async fn what_a_replaced_session_may_not_is_asked_of_the_one_in_use() {
    for kind in [ErrorKind::TokenInvalid, ErrorKind::Denied, ErrorKind::KeyNotFound] {
        let mut bench = Bench::ready(Model::new(), &["kms"]).await;
        let sealed = bench.encrypt(b"seed").await.unwrap();
        bench.model.change(|state| state.delays = [200, 200].into());
        let (encrypt, decrypt) = (bench.begin_encrypt(), bench.begin_open(&sealed));
        settle().await;
        let old = Arc::clone(&bench.session);
        bench.take_session(&["kms"]).await.unwrap();
        old.refuse(kind);
        assert_eq!(encrypt.await.unwrap().unwrap().key_id, sealed.key_id);
        assert_eq!(decrypt.await.unwrap().unwrap(), b"seed"[..]);
        assert_eq!(bench.healthz().await, "ok");
    }
    // Of the session in use, a refusal is an answer.
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    bench.session.refuse(ErrorKind::Denied);
    assert_eq!(bench.encrypt(b"seed").await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test(start_paused = true)]
async fn a_silent_vault_is_answered_before_the_caller_gives_up() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    bench.model.change(|state| state.silent = true);
    let began = Instant::now();
    let mut request =
        Request::new(EncryptRequest { plaintext: Bytes::from_static(b"seed"), uid: "uid".into() });
    request.set_timeout(Duration::from_secs(1));
    let error = bench.service.encrypt(request).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(began.elapsed() < Duration::from_secs(1));
}

// Candidates.

#[tokio::test(start_paused = true)]
async fn a_session_with_another_key_of_the_same_name_is_refused() {
    let mut bench = Bench::ready(Model::new(), &["kms"]).await;
    let sealed = bench.encrypt(b"seed").await.unwrap();
    let ours = bench.model.clone();
    // Made at the same second, so that only what was encrypted before tells them apart.
    for versions in [&[100][..], &[200][..]] {
        bench.model = Model::new();
        bench.model.change(|state| state.keys.insert("kms".into(), FakeKey::new(2, versions)));
        let Err(VerificationError::Failed(error)) = bench.take_session(&["kms"]).await else {
            panic!("taken")
        };
        assert_eq!(error.kind, ErrorKind::KeyNotFound);
        assert!(error.message.contains("not the one that was in use"), "{error}");
    }
    assert_eq!(bench.decrypt(&sealed.ciphertext, &sealed.key_id).await.unwrap(), &b"seed"[..]);
    bench.model = ours;
    bench.take_session(&["kms"]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_old_key_must_be_the_same_even_if_it_only_decrypts_now() {
    let mut bench = Bench::ready(Model::new(), &["kms"]).await;
    let sealed = bench.encrypt(b"seed").await.unwrap();
    bench.model.change(|state| state.keys.insert("new".into(), FakeKey::new(7, &[500])));
    bench.take_session(&["new", "kms"]).await.unwrap();
    assert_eq!(bench.decrypt(&sealed.ciphertext, &sealed.key_id).await.unwrap(), &b"seed"[..]);
    let moved = bench.encrypt(b"seed").await.unwrap();
    assert_ne!(moved.key_id, sealed.key_id);

    bench.model.change(|state| state.keys.insert("new".into(), FakeKey::new(8, &[500])));
    assert!(bench.take_session(&["kms", "new"]).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_session_without_the_published_key_is_refused_unless_the_key_is_gone_or_has_moved() {
    let model = Model::new();
    model.change(|state| {
        state.keys.insert("new".into(), FakeKey::new(7, &[500]));
        // The same key in another place, as after `vault secrets move`.
        state.keys.insert("moved".into(), FakeKey::new(1, &[100]));
    });
    let bench = Bench::ready(model, &["kms"]).await;
    let before = bench.store.snapshot().unwrap();
    let try_session = async |keys: &[&str], is_healthy, key_lost| {
        let session = bench.model.session(keys);
        let against = PreviousState { is_healthy, key_lost, ..before.as_previous_state() };
        let outcome =
            verify(session.as_ref(), Some(against), false, Instant::now() + Duration::from_secs(10)).await;
        outcome.map(drop).map_err(TransitError::from)
    };
    let remedy = "add { name: kms, mount: transit, namespace: root } behind the new key, or restart";
    for (keys, is_healthy) in [(["new"], true), (["moved"], true), (["new"], false)] {
        let error = try_session(&keys, is_healthy, false).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::KeyNotFound, "{keys:?}");
        assert!(error.message.contains(remedy), "{error}");
    }
    try_session(&["new", "kms"], true, false).await.unwrap();
    try_session(&["moved"], false, false).await.unwrap();
    try_session(&["new"], false, true).await.unwrap();
    // It must not only be named, but decrypt.
    bench.model.change(|state| state.keys.insert("kms".into(), FakeKey::new(9, &[100])));
    assert!(try_session(&["new", "kms"], true, false).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn without_a_witness_the_birth_of_a_shared_version_decides_if_the_old_session_is_not_well() {
    let mut bench = Bench::ready(Model::new(), &["kms"]).await;
    let first = bench.store.snapshot().unwrap();
    bench.model.rotate("kms");
    bench.take_session(&["kms"]).await.unwrap();
    // Versions 1 and 2 are known, the canary is of version 1, and that is excluded now.
    let second = bench.store.snapshot().unwrap();
    let minimum =
        |version| bench.model.change(|state| state.keys.get_mut("kms").unwrap().min_decryption = version);
    let try_session = async |is_healthy| {
        let session = bench.model.session(&["kms"]);
        let against = PreviousState { canary: &first.canary, is_healthy, ..second.as_previous_state() };
        verify(session.as_ref(), Some(against), false, Instant::now() + Duration::from_secs(10)).await
    };
    assert!(try_session(true).await.is_ok());
    minimum(2);
    assert!(
        matches!(try_session(true).await, Err(VerificationError::Failed(error)) if error.kind == ErrorKind::VersionTooOld)
    );
    assert!(try_session(false).await.is_ok());
    bench.model.rotate("kms");
    minimum(3);
    assert!(try_session(false).await.is_err(), "no version is shared any more");
}

#[tokio::test(start_paused = true)]
async fn an_additional_key_made_anew_stops_nothing_but_its_own_key_ids() {
    let model = Model::new();
    model.change(|state| state.keys.insert("old".into(), FakeKey::new(9, &[50])));
    let theirs = Bench::ready(model.clone(), &["old"]).await.encrypt(b"seed").await.unwrap();
    let mut bench = Bench::ready(model, &["kms", "old"]).await;
    bench.model.change(|state| state.keys.insert("old".into(), FakeKey::new(10, &[60])));
    bench.take_session(&["kms", "old"]).await.unwrap();
    assert!(bench.encrypt(b"seed").await.is_ok());
    assert_eq!(bench.healthz().await, "ok");
    assert_eq!(
        bench.decrypt(&theirs.ciphertext, &theirs.key_id).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test(start_paused = true)]
async fn callers_wait_no_longer_once_the_same_token_is_found_alive() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    bench.model.change(|state| state.fails.insert("encrypt", ErrorKind::TokenInvalid));
    let service = bench.service.clone();
    let call = tokio::spawn(async move {
        let request = EncryptRequest { plaintext: Bytes::from_static(b"seed"), uid: "uid".into() };
        service.encrypt(Request::new(request)).await
    });
    settle().await;
    bench.model.change(|state| state.fails.clear());
    let snapshot = bench.store.snapshot().unwrap();
    let against = PreviousState { same_session: true, ..snapshot.as_previous_state() };
    let verification =
        verify(bench.session.as_ref(), Some(against), false, Instant::now() + Duration::from_secs(10)).await;
    bench.writers.health.check_passed(1, verification.unwrap());
    assert!(call.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn keys_that_cannot_do_the_work_are_refused_with_the_remedy() {
    let good = FakeKey::new(1, &[100]);
    for (key, words) in [
        (FakeKey { derived: true, ..good.clone() }, "derived"),
        (FakeKey { kind: "rsa-4096", ..good.clone() }, "authenticated symmetric"),
        (FakeKey { soft_deleted: true, ..good.clone() }, "soft-delete-restore"),
    ] {
        let mut bench = Bench::bare(Model::new());
        bench.model.change(|state| state.keys.insert("kms".into(), key));
        let error = bench.take_session(&["kms"]).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_additional_key_that_is_gone_does_not_stop_the_first() {
    let bench = Bench::ready(Model::new(), &["kms", "long-gone"]).await;
    assert!(bench.encrypt(b"seed").await.is_ok());
}

// Decrypt.

#[tokio::test(start_paused = true)]
async fn what_another_provider_wrote_is_read_with_any_of_the_keys() {
    let model = Model::new();
    model.change(|state| state.keys.insert("old".into(), FakeKey::new(9, &[50])));
    let old = Bench::ready(model.clone(), &["old"]).await;
    let theirs = old.encrypt(b"seed").await.unwrap().ciphertext;
    let bench = Bench::ready(model, &["kms", "old"]).await;
    for key_id in ["1", "1719830400", "kleidi-kms-plugin_1_1719830400"] {
        assert_eq!(bench.decrypt(&theirs, key_id).await.unwrap(), &b"seed"[..]);
    }
    let nobodys = b"vault:v1:AAAAAAAAAAAAAAAAAAAAAAAA";
    let error = bench.decrypt(nobodys, "1").await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("none of the keys"), "{error}");
    assert_eq!(bench.healthz().await, "ok", "one bad ciphertext is nobody else's business");
}

/// A model with the key `old`, and a value that it has wrapped.
async fn with_an_old_key() -> (Model, EncryptResponse) {
    let model = Model::new();
    model.change(|state| state.keys.insert("old".into(), FakeKey::new(9, &[50])));
    let sealed = Bench::ready(model.clone(), &["old"]).await.encrypt(b"seed").await.unwrap();
    (model, sealed)
}

#[tokio::test(start_paused = true)]
async fn a_key_that_cannot_be_used_hides_none_of_those_behind_it() {
    let (model, theirs) = with_an_old_key().await;
    let good = FakeKey::new(5, &[60]);
    let broken = |kind| FakeKey { fails: Some(kind), ..good.clone() };
    let middle = [
        ("hmac", FakeKey { kind: "hmac", ..good.clone() }),
        ("derived", FakeKey { derived: true, ..good.clone() }),
        ("forbidden", broken(ErrorKind::Denied)),
        ("gone", broken(ErrorKind::KeyNotFound)),
        ("broken", broken(ErrorKind::Unreachable)),
        ("silent", broken(ErrorKind::DeadlineExceeded)),
        ("foreign", broken(ErrorKind::InvalidResponse)),
        ("version_unavailable", broken(ErrorKind::VersionUnavailable)),
        ("limited", broken(ErrorKind::Throttled)),
    ];
    for (name, key) in middle {
        let ends_all = matches!(name, "silent" | "limited");
        model.change(|state| state.keys.insert(name.into(), key));
        // Neither at the start nor later does it stop a session.
        let mut bench = Bench::ready(model.clone(), &["kms", name, "old"]).await;
        bench.take_session(&["kms", name, "old"]).await.unwrap();
        assert_eq!(bench.decrypt(&theirs.ciphertext, "1").await.is_ok(), !ends_all, "{name}");
        assert_eq!(bench.open(&theirs).await.unwrap(), b"seed"[..], "{name}");
        bench.encrypt(b"seed").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn of_several_failures_the_one_that_tells_the_most_is_told() {
    let (model, theirs) = with_an_old_key().await;
    let garbage = Bytes::from_static(b"vault:v1:AAAAAAAAAAAAAAAAAAAAAAAA");
    let with = |name: &str, key: FakeKey| model.change(|state| state.keys.insert(name.into(), key));
    with("hmac", FakeKey { kind: "hmac", ..FakeKey::new(5, &[60]) });
    with("old", FakeKey { min_decryption: 2, ..FakeKey::new(9, &[50, 51]) });
    with("forbidden", FakeKey { fails: Some(ErrorKind::Denied), ..FakeKey::new(5, &[60]) });
    with("broken", FakeKey { fails: Some(ErrorKind::Unreachable), ..FakeKey::new(5, &[60]) });
    for (keys, code, words) in [
        (&["kms", "hmac"][..], Code::InvalidArgument, "none of the keys"),
        (&["kms", "old"], Code::FailedPrecondition, "key `old`: too old; no other key"),
        (&["kms", "old", "forbidden", "hmac"], Code::FailedPrecondition, "key `old`: too old; no other key"),
        (&["kms", "forbidden", "old"], Code::FailedPrecondition, "key `old`: too old; no other key"),
        (&["kms", "forbidden", "hmac"], Code::PermissionDenied, "key `forbidden`: denied; no other key"),
        (&["kms", "broken", "old"], Code::Unavailable, "key `broken`: unreachable; no other key"),
    ] {
        let bench = Bench::ready(model.clone(), keys).await;
        for (ciphertext, key_id) in [(&theirs.ciphertext, "1"), (&garbage, "")] {
            let error = bench.decrypt(ciphertext, key_id).await.unwrap_err();
            assert_eq!(error.code(), code, "{keys:?}: {error}");
            assert!(error.message().contains(words), "{keys:?}: {error}");
            let named =
                error.message().contains("key `hmac` is of type hmac, which cannot decrypt: take it out");
            assert_eq!(named, keys.contains(&"hmac"), "{error}");
        }
        assert_eq!(bench.healthz().await, "ok", "{keys:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_another_namespace_does_not_take_is_not_dead() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    let snapshot = bench.store.snapshot().unwrap();
    let dead = || TransitError::new(ErrorKind::TokenInvalid, "permission denied");
    let elsewhere = KeyRef::in_own_mount(
        KeyName::new("old").unwrap(),
        MountPath::default(),
        Namespace::new("team-b").unwrap(),
    );
    let entry = KeyEntry::unread(elsewhere, None, "permission denied");
    assert_eq!(bench.writers.calls.decrypt_failed(&snapshot, &entry, dead()).kind, ErrorKind::Denied);
    assert_eq!(bench.healthz().await, "ok");
    let entry = KeyEntry::unread(KeyRef::in_transit("old"), None, "permission denied");
    assert_eq!(bench.writers.calls.decrypt_failed(&snapshot, &entry, dead()).kind, ErrorKind::TokenInvalid);
    assert_ne!(bench.healthz().await, "ok");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_ours_is_refused_without_asking_vault() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    let sealed = bench.encrypt(b"seed").await.unwrap();
    let id: KeyId = sealed.key_id.parse().unwrap();
    let calls = bench.model.calls();
    let foreign = format!("tk1.{}.1.{}", "0".repeat(32), "0".repeat(16));
    let reborn = KeyId::new(id.scope, id.version, 101).to_string();
    let v2 =
        sealed.ciphertext.to_vec().iter().map(|b| if *b == b'1' { b'2' } else { *b }).collect::<Vec<_>>();
    for (ciphertext, key_id, code) in [
        (&sealed.ciphertext[..], foreign.as_str(), Code::FailedPrecondition),
        (&sealed.ciphertext, &reborn, Code::InvalidArgument),
        (&v2, &sealed.key_id, Code::InvalidArgument),
        (b"somebody else's", "1", Code::InvalidArgument),
        (b"", &sealed.key_id, Code::InvalidArgument),
        (&[b'A'; 1025], "1", Code::InvalidArgument),
        (&sealed.ciphertext, &"k".repeat(1025), Code::InvalidArgument),
    ] {
        let error = bench.decrypt(ciphertext, key_id).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    for plaintext in [&b""[..], &[0; 701]] {
        assert_eq!(bench.encrypt(plaintext).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(bench.model.calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn a_refused_additional_key_does_not_make_the_first_look_unwell() {
    let model = Model::new();
    model.change(|state| state.keys.insert("old".into(), FakeKey::new(9, &[50])));
    let old = Bench::ready(model.clone(), &["old"]).await.encrypt(b"seed").await.unwrap();
    let bench = Bench::ready(model, &["kms", "old"]).await;
    bench.model.change(|state| {
        state.fails.insert("decrypt", ErrorKind::Denied);
    });
    assert_eq!(bench.decrypt(&old.ciphertext, &old.key_id).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(bench.healthz().await, "ok");
}

#[tokio::test(start_paused = true)]
async fn decrypts_at_once_are_few_calls_and_a_damaged_one_fails_alone() {
    let bench = Bench::ready(Model::new(), &["kms"]).await;
    let mut sealed = Vec::new();
    for number in 0..100_u8 {
        sealed.push(bench.encrypt(&[number; 32]).await.unwrap());
    }
    let before = bench.model.calls();
    let decrypt = |ciphertext: Bytes, key_id: &str| {
        let request =
            DecryptRequest { ciphertext, uid: "uid".into(), key_id: key_id.into(), annotations: [].into() };
        let service = bench.service.clone();
        tokio::spawn(async move { Ok(service.decrypt(Request::new(request)).await?.into_inner().plaintext) })
    };
    let calls: Vec<_> =
        sealed.iter().map(|sealed| decrypt(sealed.ciphertext.clone(), &sealed.key_id)).collect();
    let damaged = decrypt(Bytes::from_static(b"vault:v1:AAAAAAAAAAAAAAAAAAAAAAAA"), &sealed[0].key_id);
    for (number, call) in (0..).zip(calls) {
        assert_eq!(call.await.unwrap().unwrap(), [number; 32][..]);
    }
    let error: Status = damaged.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert_eq!(bench.model.calls() - before, 1);
}

#[tokio::test(start_paused = true)]
async fn decrypts_at_once_wait_for_the_next_session_if_the_token_is_dead() {
    let mut bench = Bench::ready(Model::new(), &["kms"]).await;
    let sealed = bench.encrypt(b"seed").await.unwrap();
    bench.session.kill_token();
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let request = DecryptRequest {
                ciphertext: sealed.ciphertext.clone(),
                uid: "uid".into(),
                key_id: sealed.key_id.clone(),
                annotations: [].into(),
            };
            let service = bench.service.clone();
            tokio::spawn(async move { service.decrypt(Request::new(request)).await })
        })
        .collect();
    settle().await;
    assert!(calls.iter().all(|call| !call.is_finished()));
    bench.take_session(&["kms"]).await.unwrap();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().into_inner().plaintext, b"seed"[..]);
    }
}

// Local KEKs.

fn wrapped_kek(sealed: &EncryptResponse) -> Ciphertext {
    Ciphertext::parse(&sealed.annotations[ANNOTATION]).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_local_kek_costs_one_call_where_it_is_new_and_then_none() {
    let bench = Bench::ready(local(Model::new()), &["kms"]).await;
    let before = bench.model.calls();
    let mut sealed = Vec::new();
    for number in 0..20_u8 {
        sealed.push(bench.encrypt(&[number; 32]).await.unwrap());
    }
    for (number, sealed) in (0..).zip(&sealed) {
        assert!(sealed.ciphertext.starts_with(b"lk1:") && sealed.ciphertext.len() == 64);
        assert_eq!(sealed.key_id, bench.status().await.unwrap().key_id);
        assert_eq!(bench.open(sealed).await.unwrap(), [number; 32][..]);
    }
    assert_eq!(bench.model.calls(), before);
    // Another node, or this one started again.
    let other = Bench::ready(bench.model.clone(), &["kms"]).await;
    let before = bench.model.calls();
    for sealed in &sealed {
        other.open(sealed).await.unwrap();
    }
    assert_eq!(bench.model.calls() - before, 1);
    assert_ne!(wrapped_kek(&other.encrypt(b"seed").await.unwrap()), wrapped_kek(&sealed[0]), "new at start");
}

#[tokio::test(start_paused = true)]
async fn a_stripped_swapped_or_foreign_annotation_is_refused() {
    let model = local(Model::new());
    let bench = Bench::ready(model.clone(), &["kms"]).await;
    let sealed = bench.encrypt(b"seed").await.unwrap();
    let theirs = Bench::ready(model.clone(), &["kms"]).await.encrypt(b"seed").await.unwrap();
    model.encrypt_with(Encryption::Transit);
    let bare = Bench::ready(model.clone(), &["kms"]).await.encrypt(&[7; 32]).await.unwrap();
    model.rotate("kms");
    let newer = Bench::ready(local(model), &["kms"]).await.encrypt(b"seed").await.unwrap();
    let with = |wrapped: &[u8]| EncryptResponse {
        annotations: [(ANNOTATION.to_owned(), Bytes::copy_from_slice(wrapped))].into(),
        ..sealed.clone()
    };
    for (what, request) in [
        ("stripped", EncryptResponse { annotations: [].into(), ..sealed.clone() }),
        ("another KEK", with(&theirs.annotations[ANNOTATION])),
        ("a KEK of another version", with(&newer.annotations[ANNOTATION])),
        ("a seed for a KEK", with(&bare.ciphertext)),
        ("nothing that Transit makes", with(b"lk1:")),
        ("nothing", with(b"")),
        (
            "beside a bare ciphertext",
            EncryptResponse { annotations: sealed.annotations.clone(), ..bare.clone() },
        ),
        ("another key_id", EncryptResponse { key_id: newer.key_id.clone(), ..sealed.clone() }),
        ("another provider's key_id", EncryptResponse { key_id: "1".into(), ..sealed.clone() }),
        ("another seed's ciphertext", EncryptResponse { ciphertext: theirs.ciphertext, ..sealed.clone() }),
        ("cut off", EncryptResponse { ciphertext: sealed.ciphertext.slice(..30), ..sealed.clone() }),
    ] {
        let error = bench.open(&request).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{what}: {error}");
    }
    // Nor does a KEK leave as if it were a seed.
    for key_id in [&sealed.key_id, "1"] {
        let error = bench.decrypt(&sealed.annotations[ANNOTATION], key_id).await.unwrap_err();
        assert!(error.message().contains("not a seed"), "{error}");
    }
    assert_eq!(bench.healthz().await, "ok");
    assert_eq!(bench.open(&sealed).await.unwrap(), b"seed"[..]);
}

#[tokio::test(start_paused = true)]
async fn a_new_kek_comes_with_a_new_version_and_after_time_and_uses() {
    let bench = local_bench(Model::new()).await;
    let first = wrapped_kek(&bench.encrypt(b"seed").await.unwrap());
    pass(900).await;
    assert_eq!(wrapped_kek(&bench.encrypt(b"seed").await.unwrap()), first);
    pass(131).await;
    let second = wrapped_kek(&bench.encrypt(b"seed").await.unwrap());
    assert_ne!(second, first, "after its time");
    for _ in 0..50 {
        bench.encrypt(b"seed").await.unwrap();
    }
    pass(1).await;
    let third = wrapped_kek(&bench.encrypt(b"seed").await.unwrap());
    assert_ne!(third, second, "after its uses, at once");
    bench.model.rotate("kms");
    pass(31).await;
    let sealed = bench.encrypt(b"seed").await.unwrap();
    assert_eq!(sealed.key_id.parse::<KeyId>().unwrap().version.number(), 2);
    assert_eq!(wrapped_kek(&sealed).version().number(), 2, "wrapped under what is published");
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_outlived_until_the_hard_limit() {
    let bench = local_bench(Model::new()).await;
    let sealed = bench.encrypt(b"seed").await.unwrap();
    let theirs = Bench::ready(bench.model.clone(), &["kms"]).await.encrypt(b"theirs").await.unwrap();
    bench.open(&theirs).await.unwrap();
    // Longer than any is used without being unwrapped anew, whether asked for or not.
    pass(300).await;
    let calls = bench.model.calls();
    assert_eq!(bench.open(&theirs).await.unwrap(), b"theirs"[..]);
    assert_eq!(bench.model.calls(), calls);

    bench.model.change(|state| {
        for what in ["decrypt", "decrypt_batch", "encrypt", "read_key"] {
            state.fails.insert(what, ErrorKind::Unreachable);
        }
    });
    for _ in 0..3 {
        pass(100).await;
        assert_eq!(bench.healthz().await, "ok");
        let during = bench.encrypt(b"during").await.unwrap();
        for (sealed, seed) in [(&sealed, "seed"), (&theirs, "theirs"), (&during, "during")] {
            assert_eq!(bench.open(sealed).await.unwrap(), seed.as_bytes());
        }
    }
    pass(110).await;
    assert!(bench.healthz().await.contains("unreachable"), "{}", bench.healthz().await);
    for error in [bench.encrypt(b"seed").await.unwrap_err(), bench.open(&theirs).await.unwrap_err()] {
        assert_eq!(error.code(), Code::Unavailable, "{error}");
    }

    bench.model.change(|state| state.fails.clear());
    pass(16).await;
    assert_eq!(bench.healthz().await, "ok");
    let calls = bench.model.calls();
    for sealed in [&sealed, &theirs, &bench.encrypt(b"seed").await.unwrap()] {
        bench.open(sealed).await.unwrap();
    }
    assert_eq!(bench.model.calls(), calls, "all of them are there again");
}

#[tokio::test(start_paused = true)]
async fn a_kek_that_was_named_in_an_outage_is_there_in_the_next() {
    let bench = local_bench(Model::new()).await;
    let theirs = Bench::ready(bench.model.clone(), &["kms"]).await.encrypt(b"theirs").await.unwrap();
    let outage = |bench: &Bench| {
        bench.model.change(|state| {
            state.fails.insert("decrypt", ErrorKind::Unreachable);
        });
    };
    outage(&bench);
    assert_eq!(bench.open(&theirs).await.unwrap_err().code(), Code::Unavailable);
    bench.model.change(|state| state.fails.clear());
    pass(16).await;
    outage(&bench);
    assert_eq!(bench.open(&theirs).await.unwrap(), b"theirs"[..]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_ends_all_local_keks_at_once_and_a_new_session_brings_them_back() {
    let mut bench = local_bench(Model::new()).await;
    let sealed = bench.encrypt(b"seed").await.unwrap();
    let theirs = Bench::ready(bench.model.clone(), &["kms"]).await.encrypt(b"theirs").await.unwrap();
    bench.open(&theirs).await.unwrap();
    for (kind, code) in
        [(ErrorKind::Denied, Code::PermissionDenied), (ErrorKind::KeyNotFound, Code::FailedPrecondition)]
    {
        bench.model.change(|state| {
            for what in ["decrypt", "decrypt_batch", "read_key"] {
                state.fails.insert(what, kind);
            }
        });
        pass(31).await;
        for error in [
            bench.encrypt(b"seed").await.unwrap_err(),
            bench.open(&sealed).await.unwrap_err(),
            bench.open(&theirs).await.unwrap_err(),
        ] {
            assert_eq!(error.code(), code, "{error}");
        }
        // Silence afterwards gives nothing back.
        bench.model.change(|state| {
            for what in ["decrypt", "decrypt_batch", "read_key"] {
                state.fails.insert(what, ErrorKind::Unreachable);
            }
        });
        pass(10).await;
        assert!(bench.open(&sealed).await.is_err());
        bench.model.change(|state| state.fails.clear());
        pass(16).await;
        bench.open(&sealed).await.unwrap();
    }

    bench.session.kill_token();
    pass(31).await;
    assert_eq!(bench.open(&theirs).await.unwrap_err().code(), Code::PermissionDenied);
    bench.take_session(&["kms"]).await.unwrap();
    pass(1).await;
    let calls = bench.model.calls();
    for sealed in [&sealed, &theirs, &bench.encrypt(b"seed").await.unwrap()] {
        bench.open(sealed).await.unwrap();
    }
    assert_eq!(bench.model.calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn a_late_refusal_of_a_replaced_session_takes_no_kek_from_the_one_in_use() {
    for kind in [ErrorKind::TokenInvalid, ErrorKind::Denied, ErrorKind::KeyNotFound] {
        let mut bench = Bench::ready(local(Model::new()), &["kms"]).await;
        let own = bench.encrypt(b"own").await.unwrap();
        let theirs = Bench::ready(bench.model.clone(), &["kms"]).await.encrypt(b"theirs").await.unwrap();
        bench.model.change(|state| state.delays = [200].into());
        let late = bench.begin_open(&theirs);
        settle().await;
        let old = Arc::clone(&bench.session);
        bench.take_session(&["kms"]).await.unwrap();
        old.refuse(kind);
        assert_eq!(late.await.unwrap().unwrap(), b"theirs"[..]);
        let calls = bench.model.calls();
        assert_eq!(bench.open(&own).await.unwrap(), b"own"[..]);
        bench.encrypt(b"seed").await.unwrap();
        assert_eq!(bench.model.calls(), calls, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn with_vault_well_an_encrypt_waits_for_a_kek() {
    let bench = local_bench(Model::new()).await;
    pass(1).await;
    let before = wrapped_kek(&bench.encrypt(b"seed").await.unwrap());
    bench.store.keks.refused(1, None);
    assert_eq!(bench.healthz().await, "ok");
    let sealed = bench.begin_encrypt();
    pass(2).await;
    let sealed = sealed.await.unwrap().unwrap();
    assert_ne!(wrapped_kek(&sealed), before);
    assert_eq!(bench.open(&sealed).await.unwrap(), b"seed"[..]);

    // With nobody to bring one it ends in time, and says what it waited for.
    let bench = Bench::ready(local(Model::new()), &["kms"]).await;
    bench.store.keks.refused(1, None);
    let began = Instant::now();
    let error = bench.encrypt(b"seed").await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(error.message().contains("did not wrap a new one"), "{error}");
    assert_eq!(began.elapsed(), Duration::from_millis(2900));
}

#[tokio::test(start_paused = true)]
async fn the_silence_of_a_replaced_session_does_not_hold_up_the_keks_of_the_next() {
    let mut bench = local_bench(Model::new()).await;
    let theirs = Bench::ready(bench.model.clone(), &["kms"]).await.encrypt(b"theirs").await.unwrap();
    bench.open(&theirs).await.unwrap();
    // Looks come ten seconds after a refusal. They and a probe are on their way, and will not be answered.
    bench.store.keks.refused(1, None);
    pass(9).await;
    bench.model.change(|state| state.silent = true);
    bench.store.request_health_check();
    pass(3).await;
    bench.model.change(|state| state.silent = false);
    bench.take_session(&["kms"]).await.unwrap();
    pass(1).await;
    let calls = bench.model.calls();
    assert_eq!(bench.open(&theirs).await.unwrap(), b"theirs"[..]);
    assert_eq!(bench.model.calls(), calls, "the next session has unwrapped it");
    bench.store.keks.refused(2, None);
    let sealed = bench.begin_encrypt();
    pass(1).await;
    assert!(sealed.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_kek_of_an_excluded_version_is_refused() {
    let bench = local_bench(Model::new()).await;
    let sealed = bench.encrypt(b"seed").await.unwrap();
    bench.model.rotate("kms");
    bench.model.change(|state| state.keys.get_mut("kms").unwrap().min_decryption = 2);
    pass(31).await;
    assert_eq!(bench.open(&sealed).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(bench.healthz().await, "ok");
}

#[tokio::test(start_paused = true)]
async fn modes_are_switched_either_way_and_all_stays_readable() {
    let mut bench = Bench::ready(Model::new(), &["kms"]).await;
    let bare = bench.encrypt(b"bare").await.unwrap();
    bench.model = local(bench.model.clone());
    bench.take_session(&["kms"]).await.unwrap();
    let sealed = bench.encrypt(b"sealed").await.unwrap();
    assert_eq!(sealed.key_id, bare.key_id);
    for _ in 0..2 {
        assert_eq!(bench.open(&bare).await.unwrap(), b"bare"[..]);
        assert_eq!(bench.open(&sealed).await.unwrap(), b"sealed"[..]);
        bench.model.encrypt_with(Encryption::Transit);
        bench.take_session(&["kms"]).await.unwrap();
    }
    assert!(bench.encrypt(b"bare").await.unwrap().annotations.is_empty());
    // No KEK is kept in this mode.
    let calls = bench.model.calls();
    for _ in 0..3 {
        bench.open(&sealed).await.unwrap();
    }
    assert_eq!(bench.model.calls() - calls, 3);
}

#[tokio::test(start_paused = true)]
async fn kms_v1_has_no_annotations_and_so_no_local_kek() {
    let bench = Bench::ready(local(Model::new()), &["kms"]).await;
    let service = v1(&bench);
    let cipher = v1_encrypt(&service, b"DEK").await.unwrap();
    assert!(cipher.starts_with(b"vault:v1:"), "{cipher:?}");
    assert_eq!(v1_decrypt(&service, &cipher).await.unwrap(), b"DEK"[..]);
}

// Rotation.

#[tokio::test(start_paused = true)]
async fn a_rotation_moves_status_and_encrypt_together() {
    let bench = Bench::with_health_checker(Model::new()).await;
    let first = bench.encrypt(b"seed").await.unwrap();
    bench.model.rotate("kms");
    assert_eq!(bench.encrypt(b"seed").await.unwrap().key_id, first.key_id, "not before it is proven");
    pass(31).await;
    let second = bench.encrypt(b"seed").await.unwrap();
    assert_ne!(second.key_id, first.key_id);
    assert_eq!(bench.status().await.unwrap().key_id, second.key_id);
    assert!(second.ciphertext.starts_with(b"vault:v2:"));
    assert_eq!(bench.decrypt(&first.ciphertext, &first.key_id).await.unwrap(), &b"seed"[..]);
}

#[tokio::test(start_paused = true)]
async fn a_new_version_that_cannot_be_used_yet_is_not_published() {
    let bench = Bench::with_health_checker(Model::new()).await;
    let first = bench.status().await.unwrap().key_id;
    bench.model.rotate("kms");
    bench.model.change(|state| {
        state.fails.insert("encrypt", ErrorKind::VersionUnavailable);
    });
    pass(40).await;
    assert_eq!(bench.status().await.unwrap().key_id, first);
    bench.model.change(|state| state.fails.clear());
    pass(31).await;
    assert_ne!(bench.status().await.unwrap().key_id, first);
}

#[tokio::test(start_paused = true)]
async fn a_version_that_another_node_saw_first_is_decrypted_and_then_published() {
    let bench = Bench::with_health_checker(Model::new()).await;
    pass(1).await;
    bench.model.rotate("kms");
    let other = Bench::ready(bench.model.clone(), &["kms"]).await;
    let newer = other.encrypt(b"seed").await.unwrap();
    assert_eq!(bench.decrypt(&newer.ciphertext, &newer.key_id).await.unwrap(), &b"seed"[..]);
    pass(1).await;
    assert_eq!(bench.status().await.unwrap().key_id, newer.key_id, "checked at once, not after an interval");
}

#[tokio::test(start_paused = true)]
async fn a_raised_min_encryption_version_fails_one_call_and_is_refreshed_at_once() {
    let bench = Bench::with_health_checker(Model::new()).await;
    pass(1).await;
    bench.model.rotate("kms");
    bench.model.change(|state| state.keys.get_mut("kms").unwrap().min_encryption = 2);
    assert_eq!(bench.encrypt(b"seed").await.unwrap_err().code(), Code::FailedPrecondition);
    pass(1).await;
    assert!(bench.encrypt(b"seed").await.unwrap().ciphertext.starts_with(b"vault:v2:"));
}

#[tokio::test(start_paused = true)]
async fn a_lagging_standby_never_moves_the_key_id_back() {
    let model = Model::new();
    model.rotate("kms");
    let bench = Bench::with_health_checker(model).await;
    let newest = bench.status().await.unwrap();
    bench.model.change(|state| state.lag = 1);
    for _ in 0..50 {
        pass(1).await;
        let status = bench.status().await.unwrap();
        assert_eq!((status.key_id, status.healthz), (newest.key_id.clone(), "ok".into()));
    }
}

#[tokio::test(start_paused = true)]
async fn an_older_version_is_published_after_three_probes_of_the_active_node() {
    let model = Model::new();
    let first = Bench::ready(model.clone(), &["kms"]).await.status().await.unwrap().key_id;
    model.rotate("kms");
    let bench = Bench::with_health_checker(model).await;
    let second = bench.status().await.unwrap().key_id;
    assert_ne!(first, second);
    // A backup was restored.
    bench.model.change(|state| state.keys.get_mut("kms").unwrap().versions.truncate(1));
    pass(31).await;
    assert_eq!(bench.status().await.unwrap().key_id, second, "one probe is not enough");
    pass(10).await;
    let status = bench.status().await.unwrap();
    assert_eq!((status.key_id, status.healthz.as_str()), (first, "ok"));
    assert_eq!(
        bench.encrypt(b"seed").await.map(|sealed| sealed.ciphertext.starts_with(b"vault:v1:")).ok(),
        Some(true)
    );
}

#[tokio::test(start_paused = true)]
async fn what_one_session_said_of_older_versions_does_not_count_for_the_next() {
    let model = Model::new();
    model.rotate("kms");
    let mut bench = Bench::with_health_checker(model).await;
    let second = bench.status().await.unwrap().key_id;
    let versions = |count: i64| {
        let key = FakeKey::new(1, &(1..=count).map(|version| version * 100).collect::<Vec<_>>());
        bench.model.change(|state| state.keys.insert("kms".into(), key));
    };
    versions(1);
    pass(31).await;
    bench.store.request_health_check();
    pass(1).await;
    versions(2);
    bench.take_session(&["kms"]).await.unwrap();
    bench.model.change(|state| state.keys.get_mut("kms").unwrap().versions.truncate(1));
    bench.store.request_health_check();
    pass(2).await;
    assert_eq!(bench.status().await.unwrap().key_id, second, "the third of two sessions");
    pass(15).await;
    assert_ne!(bench.status().await.unwrap().key_id, second, "the third of one");
}

#[tokio::test(start_paused = true)]
async fn a_new_session_with_a_restored_vault_is_taken_but_not_one_with_another_key() {
    let model = Model::new();
    model.rotate("kms");
    let mut bench = Bench::ready(model, &["kms"]).await;
    bench.session.kill_token();
    let try_session = async |bench: &Bench, accept_older| {
        let (session, before) = (bench.model.session(&["kms"]), bench.store.snapshot().unwrap());
        let against = before.as_previous_state();
        verify(session.as_ref(), Some(against), accept_older, Instant::now() + Duration::from_secs(10)).await
    };
    bench.model.change(|state| state.keys.get_mut("kms").unwrap().versions.truncate(1));
    assert!(matches!(try_session(&bench, false).await, Err(VerificationError::Older(_))));
    assert!(try_session(&bench, true).await.is_ok());

    bench.model = Model::new();
    for other in [FakeKey::new(2, &[999]), FakeKey { min_decryption: 2, ..FakeKey::new(2, &[100]) }] {
        bench.model.change(|state| state.keys.insert("kms".into(), other));
        let error = TransitError::from(try_session(&bench, true).await.unwrap_err());
        assert_ne!(error.kind, ErrorKind::VersionUnavailable, "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_calls_is_not_a_storm_of_probes() {
    let bench = Bench::with_health_checker(Model::new()).await;
    let before = bench.model.calls();
    for _ in 0..1000 {
        bench.store.request_health_check();
        settle().await;
    }
    assert!(bench.model.calls() - before <= 3, "one probe has three calls");
}

#[tokio::test(start_paused = true)]
async fn calls_that_go_on_failing_do_not_make_for_more_and_more_probes() {
    let bench = Bench::with_health_checker(Model::new()).await;
    pass(1).await;
    let before = bench.model.calls();
    for _ in 0..120 {
        bench.store.request_health_check();
        pass(1).await;
    }
    let probes = (bench.model.calls() - before) / 4;
    assert!(probes < 40, "{probes} in two minutes");
}

/// One step of an interleaving.
#[derive(Clone, Debug)]
enum Step {
    Encrypt,
    Lag(u32),
    MinEncryption,
    Probe,
    Rotate,
    Session,
    Turn,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Encrypt),
        1 => (0..3_u32).prop_map(Step::Lag),
        1 => Just(Step::MinEncryption),
        4 => Just(Step::Probe),
        2 => Just(Step::Rotate),
        2 => Just(Step::Session),
        8 => Just(Step::Turn),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// On every interleaving of rotations, probes, new sessions, lagging nodes and calls:
    /// no Encrypt leaves whose ciphertext and key_id disagree or whose key_id was not
    /// published while it ran, and the published version never goes back.
    #[test]
    fn no_interleaving_parts_ciphertext_and_key_id(
        steps in steps(),
        delays in proptest::collection::vec(0..6_u8, 0..200),
        with_local_kek in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(interleave(steps, delays, with_local_kek))?;
    }
}

async fn interleave(steps: Vec<Step>, delays: Vec<u8>, with_local_kek: bool) -> Result<(), TestCaseError> {
    let model = if with_local_kek { local(Model::new()) } else { Model::new() };
    let bench = Bench::ready(model, &["kms"]).await;
    bench.model.change(|state| state.delays = delays.into());
    // Every key_id that was ever published, in order.
    let mut published = vec![bench.status().await.unwrap().key_id];
    let mut calls: Vec<(usize, JoinHandle<Result<EncryptResponse, Status>>)> = Vec::new();
    let mut others: Vec<JoinHandle<()>> = Vec::new();
    let mut done = Vec::new();
    for step in steps.into_iter().chain(std::iter::repeat_n(Step::Turn, 100)) {
        match step {
            Step::Encrypt => {
                let service = bench.service.clone();
                let from = published.len() - 1;
                let request = EncryptRequest { plaintext: Bytes::from_static(b"seed"), uid: "uid".into() };
                let call = async move { Ok(service.encrypt(Request::new(request)).await?.into_inner()) };
                calls.push((from, tokio::spawn(call)));
            }
            Step::Lag(versions) => bench.model.change(|state| state.lag = versions),
            Step::MinEncryption => bench.model.change(|state| {
                let key = state.keys.get_mut("kms").unwrap();
                key.min_encryption = u32::try_from(key.versions.len()).unwrap();
            }),
            Step::Probe => {
                let store = Arc::clone(&bench.store);
                others.push(tokio::spawn(async move {
                    let snapshot = store.snapshot().unwrap();
                    let before = PreviousState { same_session: true, ..snapshot.as_previous_state() };
                    let deadline = Instant::now() + Duration::from_secs(10);
                    match verify(snapshot.transit.as_ref(), Some(before), false, deadline).await {
                        Ok(verification) => {
                            store.writers().health.check_passed(snapshot.generation, verification)
                        }
                        Err(failure) => {
                            store.writers().health.check_failed(snapshot.generation, &failure.into())
                        }
                    }
                }));
            }
            Step::Rotate => bench.model.rotate("kms"),
            Step::Session => {
                let (store, session) = (Arc::clone(&bench.store), bench.model.session(&["kms"]));
                let offer = bench.model.offer(&session);
                others.push(tokio::spawn(async move {
                    let before = store.snapshot().unwrap();
                    let against = before.as_previous_state();
                    let deadline = Instant::now() + Duration::from_secs(10);
                    if let Ok(verification) = verify(session.as_ref(), Some(against), false, deadline).await {
                        drop(store.writers().sessions.publish(offer, verification));
                    }
                }));
            }
            Step::Turn => {}
        }
        yield_now().await;
        let now = bench.store.snapshot().unwrap().keyring.current().key_id.clone();
        if published.last() != Some(&now) {
            published.push(now);
        }
        for (from, call) in std::mem::take(&mut calls) {
            if call.is_finished() {
                done.push((from, published.len(), call.await.unwrap()));
            } else {
                calls.push((from, call));
            }
        }
    }
    let versions: Vec<u32> =
        published.iter().map(|id| id.parse::<KeyId>().unwrap().version.number()).collect();
    prop_assert!(versions.is_sorted(), "went back: {versions:?}");
    for (from, to, response) in done {
        let Ok(sealed) = response else { continue };
        let id: KeyId = sealed.key_id.parse().unwrap();
        let transits = sealed.annotations.get(ANNOTATION).unwrap_or(&sealed.ciphertext);
        prop_assert_eq!(Ciphertext::parse(transits).unwrap().version(), id.version);
        prop_assert_eq!(sealed.annotations.len(), usize::from(with_local_kek));
        prop_assert!(
            published[from..to].contains(&sealed.key_id),
            "published meanwhile: {:?}",
            &published[from..to]
        );
    }
    bench.session.kill_token();
    Ok(())
}
