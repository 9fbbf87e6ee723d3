//! A session on a Transit engine in memory, for the unit tests of this module and of those above it.

use std::{
    ops::Deref,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    task::{JoinHandle, yield_now},
    time::{Instant, advance},
};
use transit_client::{
    TransitError,
    ciphertext::Ciphertext,
    testing::fake_transit::{FakeSession, FakeTransit},
    transit::Call,
};

use super::{
    HealthChecker, KekRefresher, StateStore,
    health::{HealthSettings, StatusAnswer},
    state::{NewSession, Writers},
    verification::{PreviousState, Verification, VerificationError, verify},
};
use crate::{
    config::{Encryption, LocalKekLimits},
    observe::{heartbeat::Heartbeat, metrics::Metrics},
};

pub(crate) const SETTINGS: HealthSettings =
    HealthSettings { outage_grace: Duration::from_secs(60), health_check_interval: Duration::from_secs(30) };

/// Limits that a test can wait for. Health checks come every 30 s.
pub(crate) const LIMITS: LocalKekLimits = LocalKekLimits {
    max_age: Duration::from_secs(100),
    max_age_in_outage: Duration::from_secs(400),
    renew_after: Duration::from_secs(1000),
    renew_after_uses: 50,
};

/// Limits one verification.
const VERIFICATION_TIMEOUT: Duration = Duration::from_secs(10);

/// A Transit engine in memory, and how its sessions wrap seeds.
#[derive(Clone, Default)]
pub(crate) struct Model {
    encryption: Arc<Mutex<Encryption>>,
    transit: FakeTransit,
}

impl Model {
    /// Creates an engine with a key `kms` of one version.
    pub(crate) fn new() -> Self {
        Self { encryption: Arc::default(), transit: FakeTransit::new() }
    }

    /// Has its sessions wrap seeds with local KEKs from now on.
    pub(crate) fn with_local_keks(self) -> Self {
        self.encrypt_with(Encryption::LocalKek(LIMITS));
        self
    }

    /// Sessions that are published from now on wrap seeds in this way.
    pub(crate) fn encrypt_with(&self, encryption: Encryption) {
        *self.encryption.lock().unwrap() = encryption;
    }

    pub(crate) fn offer(&self, session: &Arc<FakeSession>) -> NewSession {
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

/// The published state of sessions on a model, with or without the tasks that keep it up to date.
pub(crate) struct SessionBench {
    health_checker: Option<JoinHandle<()>>,
    kek_refresher: Option<JoinHandle<()>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) model: Model,
    pub(crate) session: Arc<FakeSession>,
    pub(crate) store: Arc<StateStore>,
    pub(crate) writers: Writers,
}

impl SessionBench {
    /// Without a session.
    pub(crate) fn bare(model: Model) -> Self {
        let metrics = Arc::new(Metrics::new().unwrap());
        let (store, writers) = StateStore::new(SETTINGS, Arc::clone(&metrics)).share();
        let session = model.session(&["kms"]);
        Self { health_checker: None, kek_refresher: None, metrics, model, session, store, writers }
    }

    /// With a published session.
    pub(crate) async fn ready(model: Model, keys: &[&str]) -> Self {
        let mut bench = Self::bare(model);
        bench.publish(keys).await.unwrap();
        bench
    }

    /// With a published session and a health checker.
    pub(crate) async fn with_health_checker(model: Model) -> Self {
        let mut bench = Self::ready(model, &["kms"]).await;
        bench.start_health_checker().await;
        bench
    }

    pub(crate) async fn start_health_checker(&mut self) {
        let metrics = Arc::new(Metrics::new().unwrap());
        let reporter = self.store.writers().health;
        let health_checker = HealthChecker { heartbeat: Heartbeat::new(), metrics, reporter };
        self.health_checker = Some(tokio::spawn(health_checker.run()));
        settle().await;
    }

    pub(crate) async fn start_kek_refresher(&mut self) {
        let reporter = self.writers.calls.clone();
        self.kek_refresher = Some(tokio::spawn(KekRefresher { reporter }.run()));
        settle().await;
    }

    /// Verifies a candidate with these keys and publishes its session, as the session manager does.
    pub(crate) async fn publish(&mut self, keys: &[&str]) -> Result<(), VerificationError> {
        let session = self.model.session(keys);
        let before = self.store.snapshot();
        let before = before.as_ref().map(|before| before.as_previous_state());
        let verification = verify_candidate(&session, before, false).await?;
        self.writers.sessions.publish(self.model.offer(&session), verification).unwrap();
        self.session = session;
        Ok(())
    }

    /// The answer to Status: `ok` or the reason.
    pub(crate) fn healthz(&self) -> String {
        self.answer().reason().unwrap_or("ok").to_owned()
    }

    pub(crate) fn answer(&self) -> StatusAnswer {
        self.store.read().answer
    }

    /// The published key_id.
    pub(crate) fn key_id(&self) -> String {
        self.store.snapshot().unwrap().keyring.current().key_id.clone()
    }

    /// Encrypts with the published version.
    pub(crate) async fn wrap(&self, plaintext: &[u8]) -> Result<Ciphertext, TransitError> {
        let snapshot = self.store.snapshot().unwrap();
        let current = snapshot.keyring.current();
        let call = Call { deadline: Instant::now() + VERIFICATION_TIMEOUT, uid: "uid" };
        let encrypted = snapshot.transit.encrypt(&current.key, current.version, plaintext, call).await?;
        Ok(encrypted.ciphertext)
    }

    /// Decrypts with the published key.
    pub(crate) async fn unwrap(&self, wrapped: &Ciphertext) -> Result<Vec<u8>, TransitError> {
        let snapshot = self.store.snapshot().unwrap();
        let call = Call { deadline: Instant::now() + VERIFICATION_TIMEOUT, uid: "uid" };
        let decrypted = snapshot.coalescer.decrypt(&snapshot.keyring.current().key, wrapped, call).await?;
        Ok(decrypted.plaintext.to_vec())
    }
}

impl Drop for SessionBench {
    fn drop(&mut self) {
        self.kek_refresher.iter().chain(&self.health_checker).for_each(JoinHandle::abort);
    }
}

/// Verifies `session` within a time limit.
pub(crate) async fn verify_candidate(
    session: &Arc<FakeSession>,
    before: Option<PreviousState<'_>>,
    accept_older: bool,
) -> Result<Verification, VerificationError> {
    verify(session.as_ref(), before, accept_older, Instant::now() + VERIFICATION_TIMEOUT).await
}

/// Lets every task that can run do so.
pub(crate) async fn settle() {
    for _ in 0..50 {
        yield_now().await;
    }
}

/// Lets time pass in small steps, because a timer may start another one.
pub(crate) async fn pass(seconds: u64) {
    for _ in 0..seconds * 4 {
        advance(Duration::from_millis(250)).await;
        settle().await;
    }
}
