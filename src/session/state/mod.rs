//! The store: the one place where what is proven is published.
//!
//! Status, Encrypt and key_id are answered from one immutable [`Snapshot`], and its
//! health hangs beside it, so no reader ever sees a key_id of one moment and a version
//! of another. Two tasks write: the keeper of sessions, and the health_checker. What they bring
//! is stamped with the generation of the session it was found on, and news of an older
//! session is dropped: a refusal of a token that has been replaced says nothing.

use std::{
    collections::HashSet,
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
use transit_client::{ErrorKind, Transit, TransitError, key_id::Scope, vault::Pool};

use super::{
    coalescer::Coalescer,
    health::{Answer, HealthSettings, Verdict},
    kek_store::KekStore,
    keyring::{KeyEntry, Keyring},
    local_kek::LocalKek,
    verification::{Canary, Verification},
};
use crate::{config::Encryption, observe::metrics::Metrics};

/// The config_error before any other is known.
const STARTING: &str = "starting: the config has not been read yet";

/// A proven way to Transit and the keys behind it; immutable.
pub struct Snapshot {
    /// Calls decrypt through it, over `transit`; it lives as long as the session.
    pub decrypts: Arc<Coalescer>,
    /// What wraps seeds.
    pub encryption: Encryption,
    /// Counts the sessions of this process from 1.
    pub generation: u64,
    /// What was known of the keys when this was published.
    pub keyring: Keyring,
    /// In mode `local-kek`, what encrypts: wrapped with the version that `keyring` says is current.
    pub local_kek: Option<Arc<LocalKek>>,
    /// The nodes of the session; `None` if its Transit engine has none.
    pub nodes: Option<Arc<Pool>>,
    /// The session; calls that hold this snapshot finish on it.
    pub transit: Arc<dyn Transit>,
    /// What a successor must be able to decrypt.
    pub canary: Arc<Canary>,
}

/// A session that is to be published.
pub struct NewSession {
    /// What wraps seeds.
    pub encryption: Encryption,
    /// Its nodes; `None` if its Transit engine has none.
    pub nodes: Option<Arc<Pool>>,
    /// The session.
    pub transit: Arc<dyn Transit>,
}

struct Known {
    /// Why what the key wraps cannot be read again. Only a good probe takes it back: a token
    /// that dies, or a policy that refuses, says nothing about the key being there again.
    lost: Option<Arc<str>>,
    checked: Instant,
    snapshot: Arc<Snapshot>,
    verdict: Verdict,
}

struct Posted {
    known: Option<Known>,
    /// `config_error` names a cause, rather than what is being waited for.
    news: bool,
    /// Why the newest config is not in use, if it is not.
    config_error: Option<Arc<str>>,
}

/// What is published, at one moment. A call reads it once and goes by that, so that no part of its
/// answer is of another moment than the rest.
pub struct Published {
    /// What Status says.
    pub answer: Answer,
    /// Why nothing may be encrypted under the published key, if that is so.
    pub key_lost: Option<Arc<str>>,
    /// Why Vault cannot be used, if that is so.
    pub outage: Option<Arc<str>>,
    /// The session and its keys; `None` before the first.
    pub snapshot: Option<Arc<Snapshot>>,
    /// For how long the session's token has been known to be dead.
    pub token_dead_for: Option<Duration>,
    /// Why the newest config is not in use, if it is not.
    pub config_error: Option<Arc<str>>,
}

impl Published {
    /// Of the session in use; 0 before the first.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.snapshot.as_ref().map_or(0, |snapshot| snapshot.generation)
    }

    /// Status is `ok`, and not only for a grace.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.answer == Answer::Well { in_grace: false }
    }
}

/// Another key_id was published while this was being proven.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("another key version was published meanwhile")]
pub struct Outdated;

/// Publishes snapshots and health; shared by everybody.
pub struct StateStore {
    coalescing: bool,
    /// The additional keys of the session of this generation that were told to be denied.
    denied: Mutex<(u64, HashSet<Scope>)>,
    /// The local KEKs in memory.
    pub keks: KekStore,
    metrics: Arc<Metrics>,
    posted: watch::Sender<Posted>,
    check_request: Notify,
    sessions: AtomicU64,
    settings: HealthSettings,
    /// The state of health that was logged last.
    told: Mutex<&'static str>,
}

impl StateStore {
    /// An empty store: nothing is known.
    #[must_use]
    pub fn new(settings: HealthSettings, metrics: Arc<Metrics>) -> Self {
        let config_error = Some(STARTING.into());
        let posted = watch::Sender::new(Posted { known: None, news: false, config_error });
        Self {
            coalescing: true,
            denied: Mutex::default(),
            keks: KekStore::new(Arc::clone(&metrics)),
            metrics,
            posted,
            check_request: Notify::new(),
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

    /// What is published now. Costs no I/O.
    #[must_use]
    pub fn read(&self) -> Published {
        let posted = self.posted.borrow();
        let config_error = posted.config_error.clone();
        let Some(known) = &posted.known else {
            let reason = config_error.as_deref().unwrap_or("nothing is known yet").to_owned();
            return Published {
                answer: Answer::Unknown(reason),
                key_lost: None,
                outage: None,
                snapshot: None,
                token_dead_for: None,
                config_error,
            };
        };
        let mut answer = match &known.lost {
            Some(reason) => Answer::Lost(reason.to_string()),
            None => known.verdict.answer(known.checked, Instant::now(), self.settings),
        };
        if answer.state() == "unreachable" && self.has_usable_kek(&known.snapshot) {
            answer = Answer::Well { in_grace: true };
        }
        if let (Answer::Unwell { reason, .. } | Answer::Lost(reason), Some(config_error)) =
            (&mut answer, config_error.as_deref())
        {
            // At three in the morning the way out is what matters: say why the new config,
            // which may hold the cure, is not in use.
            *reason = format!("{reason}; the newest config is not in use: {config_error}");
        }
        let (outage, token_dead_for) = match &known.verdict {
            Verdict::Unreachable { reason, .. } => (Some(Arc::clone(reason)), None),
            Verdict::Refused { since, token_dead: true, .. } => (None, Some(since.elapsed())),
            _ => (None, None),
        };
        Published {
            answer,
            key_lost: known.lost.clone(),
            outage,
            snapshot: Some(Arc::clone(&known.snapshot)),
            token_dead_for,
            config_error,
        }
    }

    /// Status: the answer, and the snapshot whose key_id goes with it. Costs no I/O.
    #[must_use]
    pub fn status(&self) -> (Answer, Option<Arc<Snapshot>>) {
        let now = self.read();
        (now.answer, now.snapshot)
    }

    fn has_usable_kek(&self, snapshot: &Snapshot) -> bool {
        snapshot.local_kek.as_ref().is_some_and(|kek| self.keks.is_usable(kek))
    }

    /// The KEK that is to encrypt from now on: the one so far, if it may and is of the same key
    /// version, else the one that the verification has brought along.
    fn local_kek(
        &self,
        encryption: Encryption,
        verification: &Verification,
        before: Option<&Arc<Snapshot>>,
        generation: u64,
    ) -> Option<Arc<LocalKek>> {
        let Encryption::LocalKek(limits) = encryption else { return None };
        let current = verification.keyring.current();
        let so_far = before
            .filter(|before| before.keyring.current().key_id == current.key_id)
            .and_then(|before| before.local_kek.as_ref())
            .filter(|kek| !kek.is_worn(limits) && self.keks.is_usable(kek));
        if let Some(kek) = so_far {
            return Some(Arc::clone(kek));
        }
        let kek = Arc::new(verification.canary.local_kek(verification.keyring.entries().first()?.scope)?);
        self.keks.encrypt_with(Arc::clone(&kek), self.keks.stamp(generation));
        Some(kek)
    }

    /// Why the newest config is not in use, if it is not.
    #[must_use]
    pub fn config_error(&self) -> Option<Arc<str>> {
        self.posted.borrow().config_error.clone()
    }

    /// Says why the newest config is not in use, or that it is.
    pub fn set_config_error(&self, config_error: Option<String>) {
        self.posted.send_modify(|posted| {
            posted.news = true;
            posted.config_error = config_error.map(Into::into);
        });
    }

    /// Says what the newest config waits for. That is no news yet: calls that come at the start wait on,
    /// because the session is usually a moment away.
    pub fn set_progress(&self, progress: String) {
        self.posted.send_modify(|posted| posted.config_error = Some(progress.into()));
    }

    /// Publishes a proven session; what was there before serves the calls that hold it.
    ///
    /// # Errors
    /// [`Outdated`] if another key_id was published since the verification began: prove it again.
    pub fn take_session(
        &self,
        session: NewSession,
        verification: Verification,
    ) -> Result<Arc<Snapshot>, Outdated> {
        let NewSession { encryption, nodes, transit } = session;
        let decrypts = Coalescer::new(Arc::clone(&transit), self.coalescing, Arc::clone(&self.metrics));
        let mut taken = None;
        self.posted.send_if_modified(|posted| {
            let before = posted.known.as_ref().map(|known| &known.snapshot);
            if before.map(|before| &before.keyring.current().key_id) != verification.against.as_ref() {
                return false;
            }
            let generation = self.sessions.fetch_add(1, Ordering::Relaxed) + 1;
            let limits = match encryption {
                Encryption::LocalKek(limits) => Some(limits),
                Encryption::Transit => None,
            };
            self.keks.configure(generation, limits);
            let snapshot = Arc::new(Snapshot {
                decrypts: Arc::new(decrypts),
                encryption,
                generation,
                local_kek: self.local_kek(encryption, &verification, before, generation),
                keyring: verification.keyring,
                nodes,
                transit,
                canary: Arc::new(verification.canary),
            });
            self.announce(before, &snapshot);
            posted.config_error = None;
            taken = Some(Arc::clone(&snapshot));
            posted.known =
                Some(Known { lost: None, checked: Instant::now(), snapshot, verdict: Verdict::Good });
            true
        });
        self.publish_health();
        taken.ok_or(Outdated)
    }

    /// A probe of the session of `generation` proved it good; ignored if either that session
    /// or the key_id that the verification was held against is no longer the published one.
    pub fn check_passed(&self, generation: u64, verification: Verification) {
        self.posted.send_if_modified(|posted| {
            let Some(known) = posted.known.as_mut().filter(|known| {
                known.snapshot.generation == generation
                    && Some(&known.snapshot.keyring.current().key_id) == verification.against.as_ref()
            }) else {
                return false;
            };
            let encryption = known.snapshot.encryption;
            let snapshot = Arc::new(Snapshot {
                decrypts: Arc::clone(&known.snapshot.decrypts),
                encryption,
                generation,
                local_kek: self.local_kek(encryption, &verification, Some(&known.snapshot), generation),
                keyring: verification.keyring,
                nodes: known.snapshot.nodes.clone(),
                transit: Arc::clone(&known.snapshot.transit),
                canary: Arc::new(verification.canary),
            });
            self.announce(Some(&known.snapshot), &snapshot);
            *known = Known { lost: None, checked: Instant::now(), snapshot, verdict: Verdict::Good };
            true
        });
        self.publish_health();
    }

    /// A probe of the session of `generation` failed.
    pub fn check_failed(&self, generation: u64, error: &TransitError) {
        self.failed(generation, error, true);
    }

    /// A call on the session of `generation` failed: what concerns only that call is ignored,
    /// a refusal counts at once, and whatever smells of an outage or a rotation is checked.
    pub fn call_failed(&self, generation: u64, error: &TransitError) {
        let in_use = match error.kind {
            ErrorKind::Config | ErrorKind::Denied | ErrorKind::TokenInvalid => {
                self.failed(generation, error, false)
            }
            ErrorKind::DeadlineExceeded
            | ErrorKind::KeyNotFound
            | ErrorKind::VersionUnavailable
            | ErrorKind::InvalidResponse
            | ErrorKind::BatchTooLarge
            | ErrorKind::VersionTooOld
            | ErrorKind::Unreachable => self.snapshot().is_some_and(|now| now.generation == generation),
            // A probe would only add to the requests that are too many.
            ErrorKind::BadCiphertext | ErrorKind::Throttled => false,
        };
        if in_use {
            self.request_check();
        }
    }

    /// A Decrypt with the key of `entry` failed on the session of `snapshot`. Only the key that encrypts
    /// speaks for the session; gives back what the failure is to the call.
    pub fn decrypt_failed(&self, snapshot: &Snapshot, entry: &KeyEntry, error: TransitError) -> TransitError {
        let current = &snapshot.keyring.current().key;
        match error.kind {
            // In a namespace where the token does not hold, Vault says the same as of a dead one.
            ErrorKind::TokenInvalid if entry.key.namespace() != current.namespace() => {
                self.request_check();
                let message =
                    format!("the token is not accepted in the namespace of the key: {}", error.message);
                return TransitError::new(ErrorKind::Denied, message);
            }
            ErrorKind::TokenInvalid => self.call_failed(snapshot.generation, &error),
            _ if entry.key == *current => self.call_failed(snapshot.generation, &error),
            ErrorKind::Denied => self.tell_denied(snapshot.generation, entry, &error),
            _ => {}
        }
        error
    }

    /// Once for each session and key: every Decrypt of another provider's value may try the key.
    fn tell_denied(&self, generation: u64, entry: &KeyEntry, error: &TransitError) {
        let Ok(mut denied) = self.denied.lock() else { return };
        if denied.0 != generation {
            *denied = (generation, HashSet::new());
        }
        if denied.1.insert(entry.scope) {
            warn!(key = %entry.key, %error, "an additional key may not be used to decrypt; the others are");
        }
    }

    /// Whether the session of `generation` is in use; if it is not, this says nothing.
    fn failed(&self, generation: u64, error: &TransitError, checked: bool) -> bool {
        let in_use = self.posted.send_if_modified(|posted| {
            let Some(known) = posted.known.as_mut().filter(|known| known.snapshot.generation == generation)
            else {
                return false;
            };
            let now = Instant::now();
            if error.kind == ErrorKind::KeyNotFound {
                known.lost = Some(error.message.as_str().into());
            }
            known.verdict = known.verdict.after(error.kind, &error.message, now);
            if known.lost.is_some() || matches!(known.verdict, Verdict::Refused { .. }) {
                self.keks.refused(generation, None);
            }
            if checked {
                known.checked = now;
            }
            true
        });
        self.publish_health();
        in_use
    }

    /// Has the metrics tell what changes with the time alone.
    pub fn measure(&self) {
        self.publish_health();
        let snapshot = self.snapshot();
        let kek = snapshot.as_ref().and_then(|snapshot| snapshot.local_kek.as_ref());
        self.metrics.local_kek(kek.and_then(|kek| self.keks.life(kek)));
        let nodes = snapshot.as_ref().and_then(|snapshot| snapshot.nodes.as_ref());
        for (node, up) in nodes.into_iter().flat_map(|nodes| nodes.health()) {
            self.metrics.client.set_node_up(&node, up);
        }
    }

    /// Asks for a probe now.
    pub fn request_check(&self) {
        self.check_request.notify_one();
    }

    /// Resolves when a probe was asked for.
    pub async fn check_requested(&self) {
        self.check_request.notified().await;
    }

    /// Resolves once a session is published and its last probe is good.
    pub async fn well(&self) {
        self.published_when(Published::is_well).await;
    }

    /// Resolves once anything is known: a session, or why there is none.
    pub async fn first_news(&self) {
        self.published_when(|now| now.snapshot.is_some() || self.posted.borrow().news).await;
    }

    /// Resolves with a session newer than `generation`, or with that one once its token is found
    /// to be alive after all.
    pub async fn after_death_of(&self, generation: u64) -> Published {
        self.published_when(|now| now.generation() > generation || now.token_dead_for.is_none()).await
    }

    /// Resolves once the session in use is newer than `generation`.
    pub async fn after(&self, generation: u64) {
        self.published_when(|now| now.generation() > generation).await;
    }

    /// Resolves once Encrypt need not wait for a local KEK any longer: there is one that may be
    /// used, or none is wanted, or all is not well and waiting does not help.
    pub async fn kek_or_reason(&self) -> Published {
        let needs_none = |now: &Published| match &now.snapshot {
            Some(snapshot) if now.is_well() => snapshot.local_kek.is_none() || self.has_usable_kek(snapshot),
            _ => true,
        };
        // A KEK that comes back is no posting.
        let mut arrivals = self.keks.arrivals();
        loop {
            tokio::select! {
                now = self.published_when(needs_none) => return now,
                () = changed(&mut arrivals) => {}
            }
        }
    }

    /// Resolves with what is published once `holds`, which is asked at each posting.
    async fn published_when(&self, holds: impl Fn(&Published) -> bool) -> Published {
        let mut posted = self.posted.subscribe();
        loop {
            let now = self.read();
            if holds(&now) {
                return now;
            }
            changed(&mut posted).await;
        }
    }

    /// Resolves when the token in use turns out dead; once for each death.
    pub async fn token_died(&self, last: &mut Option<u64>) {
        let mut posted = self.posted.subscribe();
        loop {
            let now = self.read();
            let dead = now.token_dead_for.map(|_| now.generation());
            if dead != std::mem::replace(last, dead) && dead.is_some() {
                return;
            }
            changed(&mut posted).await;
        }
    }

    /// Sets the health metric to what Status would say now, and logs it if that is news.
    pub fn publish_health(&self) {
        let Published { answer, outage, .. } = self.read();
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
                reason = outage.as_deref(),
                grace_seconds = self.settings.outage_grace.as_secs(),
                "Vault cannot be used; Status stays ok for the outage grace"
            ),
            _ => warn!(before, state = news, reason = answer.reason(), "Status is not ok"),
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
            let so_far = known.and_then(|known| known.unusable.as_ref());
            if let Some(reason) = entry.unusable.as_ref().filter(|reason| Some(*reason) != so_far) {
                warn!(key = %entry.key, %reason, "an additional key cannot be used; the others are");
            }
            // Its words may differ each time.
            if let Some(reason) =
                entry.unread.as_ref().filter(|_| known.is_none_or(|known| known.unread.is_none()))
            {
                warn!(key = %entry.key, %reason, "an additional key cannot be read; Decrypts are tried all the same");
            }
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
            // With its path: a key of the same name elsewhere must not look like an older version.
            &format!("{}/{}", current.key.path(), current.key.name()),
            current.version.number(),
            &current.key_id_hash,
        );
        self.metrics.session_generation.set(i64::try_from(now.generation).unwrap_or(i64::MAX));
    }
}

/// Resolves at the next change; never if there can be none, so that nobody spins.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
