//! The board: the one place where what is proven is published.
//!
//! Status, Encrypt and key_id are answered from one immutable [`Snapshot`], and its
//! health hangs beside it, so no reader ever sees a key_id of one moment and a version
//! of another. Two tasks write: the keeper of sessions, and the prober. What they bring
//! is stamped with the generation of the session it was found on, and news of an older
//! session is dropped: a refusal of a token that has been replaced says nothing.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tracing::{error, info, warn};

use super::{
    coalescer::Coalescer,
    health::{Answer, HealthSettings, Verdict},
    kek_store::KekStore,
    keyring::Keyring,
    local_kek::LocalKek,
    probe::{Proof, Witness},
    transit::{Fault, Transit, TransitError},
};
use crate::{config::Encryption, observe::metrics::Metrics};

/// The trouble before any other is known.
const STARTING: &str = "starting: the config has not been read yet";

/// A proven way to Transit and the keys behind it; immutable.
pub struct Snapshot {
    /// Calls decrypt through it, over `transit`; it lives as long as the session.
    pub decrypts: Arc<Coalescer>,
    /// Counts the sessions of this process from 1.
    pub generation: u64,
    /// What was known of the keys when this was published.
    pub keyring: Keyring,
    /// In mode `local-kek`, what encrypts: wrapped with the version that `keyring` says is current.
    pub local_kek: Option<Arc<LocalKek>>,
    /// The session; calls that hold this snapshot finish on it.
    pub transit: Arc<dyn Transit>,
    /// What a successor must be able to decrypt.
    pub witness: Arc<Witness>,
}

struct Known {
    /// Why what the key wraps cannot be read again. Only a good probe takes it back: a token
    /// that dies, or a policy that refuses, says nothing about the key being there again.
    lost: Option<Arc<str>>,
    probed: Instant,
    snapshot: Arc<Snapshot>,
    verdict: Verdict,
}

struct Posted {
    known: Option<Known>,
    /// Why the newest config is not in use, if it is not.
    trouble: Option<Arc<str>>,
}

/// Another key_id was published while this was being proven.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("another key version was published meanwhile")]
pub struct Outdated;

/// Publishes snapshots and health; shared by everybody.
pub struct Board {
    coalescing: bool,
    /// The local KEKs in memory.
    pub keks: KekStore,
    metrics: Arc<Metrics>,
    posted: watch::Sender<Posted>,
    probe_request: Notify,
    sessions: AtomicU64,
    settings: HealthSettings,
    /// The state of health that was logged last.
    told: Mutex<&'static str>,
}

impl Board {
    /// An empty board: nothing is known.
    #[must_use]
    pub fn new(settings: HealthSettings, metrics: Arc<Metrics>) -> Self {
        let trouble = Some(STARTING.into());
        let posted = watch::Sender::new(Posted { known: None, trouble });
        Self {
            coalescing: true,
            keks: KekStore::new(Arc::clone(&metrics)),
            metrics,
            posted,
            probe_request: Notify::new(),
            sessions: AtomicU64::new(0),
            settings,
            told: Mutex::new("unknown"),
        }
    }

    /// The same, but every Decrypt is a call to Vault of its own.
    #[must_use]
    pub fn without_coalescing(self) -> Self {
        Self { coalescing: false, ..self }
    }

    /// The settings that health is judged by.
    #[must_use]
    pub fn settings(&self) -> HealthSettings {
        self.settings
    }

    /// What is published now.
    #[must_use]
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.posted.borrow().known.as_ref().map(|known| Arc::clone(&known.snapshot))
    }

    /// Status: the answer, and the snapshot whose key_id goes with it. Costs no I/O.
    #[must_use]
    pub fn status(&self) -> (Answer, Option<Arc<Snapshot>>) {
        let posted = self.posted.borrow();
        let trouble = posted.trouble.as_deref();
        let Some(known) = &posted.known else {
            return (Answer::Unknown(trouble.unwrap_or("nothing is known yet").to_owned()), None);
        };
        let mut answer = match &known.lost {
            Some(reason) => Answer::Lost(reason.to_string()),
            None => known.verdict.answer(known.probed, Instant::now(), self.settings),
        };
        if answer.state() == "unreachable" && self.can_do_without_vault(&known.snapshot) {
            answer = Answer::Well { in_grace: true };
        }
        if let (Answer::Unwell { reason, .. } | Answer::Lost(reason), Some(trouble)) = (&mut answer, trouble)
        {
            // At three in the morning the way out is what matters: say why the new config,
            // which may hold the cure, is not in use.
            *reason = format!("{reason}; the newest config is not in use: {trouble}");
        }
        (answer, Some(Arc::clone(&known.snapshot)))
    }

    fn can_do_without_vault(&self, snapshot: &Snapshot) -> bool {
        snapshot.local_kek.as_ref().is_some_and(|kek| self.keks.is_usable(kek))
    }

    /// The KEK that is to encrypt from now on: the one so far, if it may and is of the same key
    /// version, else the one that the proof has brought along.
    fn local_kek(
        &self,
        encryption: Encryption,
        proof: &Proof,
        before: Option<&Arc<Snapshot>>,
        era: u64,
    ) -> Option<Arc<LocalKek>> {
        let Encryption::LocalKek(limits) = encryption else { return None };
        let current = proof.keyring.current();
        let so_far = before
            .filter(|before| before.keyring.current().key_id == current.key_id)
            .and_then(|before| before.local_kek.as_ref())
            .filter(|kek| !kek.is_worn(limits) && self.keks.is_usable(kek));
        if let Some(kek) = so_far {
            return Some(Arc::clone(kek));
        }
        let kek = Arc::new(proof.witness.local_kek(proof.keyring.entries().first()?.scope)?);
        self.keks.put(Arc::clone(&kek), era);
        Some(kek)
    }

    /// Why the newest config is not in use, if it is not.
    #[must_use]
    pub fn trouble(&self) -> Option<Arc<str>> {
        self.posted.borrow().trouble.clone()
    }

    /// Says why the newest config is not in use, or that it is.
    pub fn set_trouble(&self, trouble: Option<String>) {
        self.posted.send_modify(|posted| posted.trouble = trouble.map(Into::into));
    }

    /// Publishes a proven session; what was there before serves the calls that hold it.
    ///
    /// # Errors
    /// [`Outdated`] if another key_id was published since the proof began: prove it again.
    pub fn take_session(&self, transit: Arc<dyn Transit>, proof: Proof) -> Result<Arc<Snapshot>, Outdated> {
        let decrypts = Coalescer::new(Arc::clone(&transit), self.coalescing, Arc::clone(&self.metrics));
        let encryption = transit.encryption();
        let mut taken = None;
        self.posted.send_if_modified(|posted| {
            let before = posted.known.as_ref().map(|known| &known.snapshot);
            if before.map(|before| &before.keyring.current().key_id) != proof.against.as_ref() {
                return false;
            }
            self.keks.configure(match encryption {
                Encryption::LocalKek(limits) => Some(limits),
                Encryption::Transit => None,
            });
            let snapshot = Arc::new(Snapshot {
                decrypts: Arc::new(decrypts),
                generation: self.sessions.fetch_add(1, Ordering::Relaxed) + 1,
                local_kek: self.local_kek(encryption, &proof, before, self.keks.era()),
                keyring: proof.keyring,
                transit,
                witness: Arc::new(proof.witness),
            });
            self.announce(before, &snapshot);
            posted.trouble = None;
            taken = Some(Arc::clone(&snapshot));
            posted.known =
                Some(Known { lost: None, probed: Instant::now(), snapshot, verdict: Verdict::Good });
            true
        });
        self.publish_health();
        taken.ok_or(Outdated)
    }

    /// A probe of the session of `generation` proved it good; ignored if either that session
    /// or the key_id that the proof was held against is no longer the published one.
    pub fn probe_passed(&self, generation: u64, proof: Proof) {
        self.posted.send_if_modified(|posted| {
            let Some(known) = posted.known.as_mut().filter(|known| {
                known.snapshot.generation == generation
                    && Some(&known.snapshot.keyring.current().key_id) == proof.against.as_ref()
            }) else {
                return false;
            };
            let encryption = known.snapshot.transit.encryption();
            let snapshot = Arc::new(Snapshot {
                decrypts: Arc::clone(&known.snapshot.decrypts),
                generation,
                local_kek: self.local_kek(encryption, &proof, Some(&known.snapshot), self.keks.era()),
                keyring: proof.keyring,
                transit: Arc::clone(&known.snapshot.transit),
                witness: Arc::new(proof.witness),
            });
            self.announce(Some(&known.snapshot), &snapshot);
            *known = Known { lost: None, probed: Instant::now(), snapshot, verdict: Verdict::Good };
            true
        });
        self.publish_health();
    }

    /// A probe of the session of `generation` failed.
    pub fn probe_failed(&self, generation: u64, error: &TransitError) {
        self.failed(generation, error, true);
    }

    /// A call on the session of `generation` failed: what concerns only that call is ignored,
    /// a refusal counts at once, and whatever smells of an outage or a rotation is probed.
    pub fn call_failed(&self, generation: u64, error: &TransitError) {
        match error.fault {
            Fault::Denied | Fault::TokenDead => {
                self.failed(generation, error, false);
                self.probe_soon();
            }
            Fault::DeadlineExceeded
            | Fault::KeyLost
            | Fault::Lagging
            | Fault::Nonsense
            | Fault::TooMuch
            | Fault::TooOld
            | Fault::Unreachable => self.probe_soon(),
            // A probe would only add to the requests that are too many.
            Fault::BadCiphertext | Fault::Throttled => {}
        }
    }

    fn failed(&self, generation: u64, error: &TransitError, probed: bool) {
        self.posted.send_if_modified(|posted| {
            let Some(known) = posted.known.as_mut().filter(|known| known.snapshot.generation == generation)
            else {
                return false;
            };
            let now = Instant::now();
            if error.fault == Fault::KeyLost {
                known.lost = Some(error.message.as_str().into());
            }
            known.verdict = known.verdict.after(error.fault, &error.message, now);
            if known.lost.is_some() || matches!(known.verdict, Verdict::Refused { .. }) {
                self.keks.refused(None);
            }
            if probed {
                known.probed = now;
            }
            true
        });
        self.publish_health();
    }

    /// Has the metrics tell what changes with the time alone.
    pub fn measure(&self) {
        self.publish_health();
        let snapshot = self.snapshot();
        let kek = snapshot.as_ref().and_then(|snapshot| snapshot.local_kek.as_ref());
        self.metrics.local_kek(kek.and_then(|kek| self.keks.life(kek)));
        for (node, up) in snapshot.iter().flat_map(|snapshot| snapshot.transit.nodes()) {
            self.metrics.vault_node(&node, up);
        }
    }

    /// Asks for a probe now.
    pub fn probe_soon(&self) {
        self.probe_request.notify_one();
    }

    /// Resolves when a probe was asked for.
    pub async fn probe_requested(&self) {
        self.probe_request.notified().await;
    }

    /// Resolves once a session is published and its last probe is good.
    pub async fn well(&self) {
        self.until(|| self.status().0 == Answer::Well { in_grace: false }).await;
    }

    /// Resolves once anything is known: a session, or why there is none.
    pub async fn first_news(&self) {
        self.until(|| {
            let posted = self.posted.borrow();
            posted.known.is_some() || posted.trouble.as_deref() != Some(STARTING)
        })
        .await;
    }

    /// Resolves once `holds`, which is asked at each posting.
    async fn until(&self, holds: impl Fn() -> bool) {
        let mut posted = self.posted.subscribe();
        while !holds() {
            if posted.changed().await.is_err() {
                // Cannot happen while `self` holds the sender.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Resolves with the snapshot of a session newer than `generation`, or of that one once its
    /// token is found to be alive after all.
    pub async fn after_death_of(&self, generation: u64) -> Arc<Snapshot> {
        let mut posted = self.posted.subscribe();
        loop {
            if let Some(known) = &posted.borrow_and_update().known
                && (known.snapshot.generation > generation
                    || !matches!(known.verdict, Verdict::Refused { token_dead: true, .. }))
            {
                return Arc::clone(&known.snapshot);
            }
            if posted.changed().await.is_err() {
                // Cannot happen while `self` holds the sender; if it did, nothing newer can come.
                std::future::pending::<()>().await;
            }
        }
    }

    /// For how long the token of the session of `generation` has been known to be dead.
    #[must_use]
    pub fn token_dead_for(&self, generation: u64) -> Option<Duration> {
        let posted = self.posted.borrow();
        let known = posted.known.as_ref().filter(|known| known.snapshot.generation == generation)?;
        match known.verdict {
            Verdict::Refused { since, token_dead: true, .. } => Some(since.elapsed()),
            _ => None,
        }
    }

    /// Why nothing may be encrypted under the published key, if that is so.
    #[must_use]
    pub fn key_lost(&self) -> Option<Arc<str>> {
        self.posted.borrow().known.as_ref()?.lost.clone()
    }

    /// Resolves when the token in use turns out dead; once for each death.
    pub async fn token_died(&self, last: &mut Option<u64>) {
        let mut posted = self.posted.subscribe();
        loop {
            let dead = match &posted.borrow_and_update().known {
                Some(Known { snapshot, verdict: Verdict::Refused { token_dead: true, .. }, .. }) => {
                    Some(snapshot.generation)
                }
                _ => None,
            };
            if dead != std::mem::replace(last, dead) && dead.is_some() {
                return;
            }
            if posted.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Sets the health metric to what Status would say now, and logs it if that is news.
    pub fn publish_health(&self) {
        let answer = self.status().0;
        self.metrics.health(answer.state());
        let news = match &answer {
            Answer::Well { in_grace: true } => "outage",
            _ => answer.state(),
        };
        let Ok(mut told) = self.told.lock() else { return };
        let before = std::mem::replace(&mut *told, news);
        if before == news {
            return;
        }
        match &answer {
            Answer::Well { in_grace: false } => info!(before, "healthy"),
            Answer::Well { in_grace: true } => warn!(
                reason = self.outage().as_deref(),
                grace_seconds = self.settings.outage_grace.as_secs(),
                "Vault cannot be used; Status stays ok for the outage grace"
            ),
            _ => warn!(before, state = news, reason = answer.reason(), "Status is not ok"),
        }
    }

    fn outage(&self) -> Option<Arc<str>> {
        match &self.posted.borrow().known.as_ref()?.verdict {
            Verdict::Unreachable { reason, .. } => Some(Arc::clone(reason)),
            _ => None,
        }
    }

    fn announce(&self, before: Option<&Arc<Snapshot>>, now: &Snapshot) {
        let current = now.keyring.current();
        let earlier = before.map(|before| before.keyring.current());
        if earlier != Some(current) {
            match earlier {
                Some(earlier) if earlier.key == current.key && earlier.version > current.version => {
                    self.metrics.key_version_regressions.inc();
                    error!(
                        key = %current.key, from = %earlier.version, to = %current.version,
                        key_id_hash = current.key_id_hash,
                        "Vault insists on an older key version, as after restoring a backup: publishing it, \
                         because what a version that is gone encrypts nobody could decrypt; data written with \
                         the newer version is unreadable until that version is back"
                    );
                }
                _ => info!(
                    key = %current.key, version = %current.version, key_id = current.key_id,
                    key_id_hash = current.key_id_hash, "key version published"
                ),
            }
        }
        for entry in now.keyring.entries() {
            let known = before.and_then(|before| before.keyring.entry(entry.scope));
            if entry.min_decryption > 1
                && known.is_none_or(|known| known.min_decryption < entry.min_decryption)
            {
                warn!(
                    key = %entry.key, min_decryption_version = entry.min_decryption,
                    "older versions of the key are excluded from decryption: what is still encrypted with them \
                     cannot be read; lower min_decryption_version until everything is migrated"
                );
            }
        }
        self.metrics.key_published(
            current.key.name().as_str(),
            current.version.number(),
            &current.key_id_hash,
        );
        self.metrics.session_generation.set(i64::try_from(now.generation).unwrap_or(i64::MAX));
    }
}
