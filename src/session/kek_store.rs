//! Keeps the local KEKs in memory, and decides how long each may be used.
//!
//! A KEK is *usable* if Transit has unwrapped it within `max_age`, or within `max_age_in_outage` while Vault is
//! unreachable. The [`KekRefresher`](super::kek_refresher::KekRefresher) has each unwrapped again before that
//! time ends. A refusal makes all of them unusable at once.
//!
//! If a KEK cannot be unwrapped now, its wrapped form stays. That form is not secret, and with it the refresher
//! can have the KEK unwrapped before the next outage.
//!
//! Every report carries a [`Stamp`]: a report of a session that was replaced changes nothing for its successor.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tracing::warn;
use transit_client::{ErrorKind, TransitError, ciphertext::Ciphertext, key_id::Scope};

use super::local_kek::LocalKek;
use crate::{config::LocalKekLimits, observe::metrics::Metrics};

/// More KEKs than all nodes of a large cluster make while their DEK seeds are in use.
const MAX_KEKS: usize = 1024;
/// The pause before a KEK that could not be unwrapped is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// The local KEKs in memory; shared by all tasks.
pub struct KekStore {
    /// Changes when a KEK is added.
    additions: watch::Sender<()>,
    keks: Mutex<Keks>,
    metrics: Arc<Metrics>,
    refresh_request: Notify,
}

#[derive(Default)]
struct Keks {
    /// The KEK that encrypts. It is never evicted, because no call uses it by its wrapped form.
    encrypting: Option<Ciphertext>,
    entries: HashMap<Ciphertext, KekEntry>,
    /// `None` in mode `transit`: then no KEK is kept.
    limits: Option<LocalKekLimits>,
    /// The stamp of the session in use.
    now: Stamp,
}

/// Says which session a report is about, and how often Vault had refused when the request began.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stamp {
    /// `None` before the first session.
    generation: Option<u64>,
    refusals: u64,
}

struct KekEntry {
    /// `None` if only the wrapped form is known.
    kek: Option<Arc<LocalKek>>,
    last_used: Instant,
    next_refresh: Instant,
    /// The last refresh found Vault unreachable.
    outage: bool,
    scope: Scope,
    /// When Transit last wrapped or unwrapped it.
    unwrapped_at: Instant,
}

impl KekEntry {
    fn usable(&self, limits: LocalKekLimits) -> Option<&Arc<LocalKek>> {
        let max_age = if self.outage { limits.max_age_in_outage } else { limits.max_age };
        self.kek.as_ref().filter(|_| self.unwrapped_at.elapsed() < max_age)
    }
}

impl KekStore {
    /// Creates an empty store, which keeps no KEK before `configure` sets limits.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let additions = watch::Sender::new(());
        Self { additions, keks: Mutex::default(), metrics, refresh_request: Notify::new() }
    }

    /// Sets the session in use and how long KEKs may be used. Without limits, no KEK is kept.
    pub(super) fn configure(&self, generation: u64, limits: Option<LocalKekLimits>) {
        let mut keks = self.lock();
        keks.now.generation = Some(generation);
        keks.limits = limits;
        if limits.is_none() {
            keks.now.refusals += 1;
            keks.entries.clear();
            keks.encrypting = None;
        }
        self.update_metric(&keks);
        // The new session may unwrap KEKs that the old one could not.
        let now = Instant::now();
        keks.entries
            .values_mut()
            .filter(|entry| entry.kek.is_none())
            .for_each(|entry| entry.next_refresh = now);
        drop(keks);
        self.refresh_request.notify_one();
    }

    /// Changes when a KEK is added.
    pub(super) fn additions(&self) -> watch::Receiver<()> {
        self.additions.subscribe()
    }

    /// Waits until a refresh is requested.
    pub(super) async fn refresh_requested(&self) {
        self.refresh_request.notified().await;
    }

    /// Returns the KEK with this wrapped form, if it may be used now.
    #[must_use]
    pub fn get(&self, wrapped: &Ciphertext) -> Option<Arc<LocalKek>> {
        let mut keks = self.lock();
        let limits = keks.limits?;
        let entry = keks.entries.get_mut(wrapped)?;
        entry.last_used = Instant::now();
        entry.usable(limits).cloned()
    }

    /// Whether this KEK may be used now.
    #[must_use]
    pub fn is_usable(&self, kek: &LocalKek) -> bool {
        let keks = self.lock();
        let usable = keks.limits.and_then(|limits| keks.entries.get(kek.wrapped())?.usable(limits));
        usable.is_some()
    }

    /// Returns how long ago Vault has wrapped or unwrapped this KEK, and how much longer it may be used if Vault
    /// stays unreachable.
    #[must_use]
    pub(super) fn life(&self, kek: &LocalKek) -> Option<(Duration, Duration)> {
        let keks = self.lock();
        let limits = keks.limits?;
        let entry = keks.entries.get(kek.wrapped()).filter(|entry| entry.kek.is_some())?;
        let age = entry.unwrapped_at.elapsed();
        Some((age, limits.max_age_in_outage.saturating_sub(age)))
    }

    /// Returns the stamp for a report of the session of `generation`. Take it before the request to Transit.
    #[must_use]
    pub fn stamp(&self, generation: u64) -> Stamp {
        Stamp { generation: Some(generation), ..self.lock().now }
    }

    /// Adds a KEK that Transit has just wrapped or unwrapped. If Vault has refused since the stamp was taken, or
    /// another session is in use, it has to be unwrapped again first.
    pub fn insert(&self, kek: Arc<LocalKek>, stamp: Stamp) {
        self.add(kek, stamp, false);
    }

    /// Adds a KEK as [`insert`](Self::insert) does. This KEK encrypts from now on.
    pub(super) fn insert_encrypting(&self, kek: Arc<LocalKek>, stamp: Stamp) {
        self.add(kek, stamp, true);
    }

    fn add(&self, kek: Arc<LocalKek>, stamp: Stamp, encrypting: bool) {
        let mut keks = self.lock();
        let Some(limits) = keks.limits else { return };
        let (wrapped, scope) = (kek.wrapped().clone(), kek.scope());
        if stamp != keks.now {
            self.remember(&mut keks, &wrapped, scope);
            return;
        }
        let now = Instant::now();
        let last_used = keks.entries.get(&wrapped).map_or(now, |entry| entry.last_used);
        let entry = KekEntry {
            // An existing KEK stays, because it counts its uses.
            kek: keks.entries.get(&wrapped).and_then(|entry| entry.kek.clone()).or(Some(kek)),
            last_used,
            // Random, so that neither all KEKs nor all nodes are refreshed at the same moment.
            next_refresh: now + limits.max_age.mul_f64(rand::random_range(0.5..0.75)),
            outage: false,
            scope,
            unwrapped_at: now,
        };
        if encrypting {
            keks.encrypting = Some(wrapped.clone());
        }
        keks.entries.insert(wrapped, entry);
        self.evict(&mut keks);
        drop(keks);
        self.additions.send_replace(());
    }

    /// Keeps the wrapped form of a KEK that the session in use has not unwrapped yet.
    fn remember(&self, keks: &mut Keks, wrapped: &Ciphertext, scope: Scope) {
        let now = Instant::now();
        keks.entries.entry(wrapped.clone()).or_insert(KekEntry {
            kek: None,
            last_used: now,
            next_refresh: now + RETRY_PAUSE,
            outage: false,
            scope,
            unwrapped_at: now,
        });
        self.evict(keks);
    }

    /// Vault refuses the session of `generation`, for all keys or for the key in `scope`. No such KEK is used
    /// until Vault unwraps it again.
    pub(crate) fn refused(&self, generation: u64, scope: Option<Scope>) {
        self.drop_keks(&mut self.lock(), generation, scope);
    }

    /// Drops the KEKs, and keeps their wrapped forms.
    fn drop_keks(&self, keks: &mut Keks, generation: u64, scope: Option<Scope>) {
        if keks.now.generation != Some(generation) {
            return;
        }
        keks.now.refusals += 1;
        let next_refresh = Instant::now() + RETRY_PAUSE;
        for entry in keks.entries.values_mut().filter(|entry| scope.is_none_or(|scope| scope == entry.scope))
        {
            if entry.kek.take().is_some() {
                entry.next_refresh = next_refresh;
            }
        }
        self.update_metric(keks);
    }

    /// Transit has not unwrapped this KEK, because of `error`.
    pub fn unwrap_failed(&self, wrapped: &Ciphertext, scope: Scope, error: &TransitError, stamp: Stamp) {
        let mut keks = self.lock();
        if keks.limits.is_none() {
            return;
        }
        let Some(generation) = stamp.generation.filter(|_| stamp.generation == keks.now.generation) else {
            // The session that failed was replaced. The session in use has to try.
            self.remember(&mut keks, wrapped, scope);
            return;
        };
        match error.kind {
            ErrorKind::DeadlineExceeded
            | ErrorKind::VersionUnavailable
            | ErrorKind::InvalidResponse
            | ErrorKind::Throttled
            | ErrorKind::BatchTooLarge
            | ErrorKind::Unreachable => {
                self.remember(&mut keks, wrapped, scope);
                if let Some(entry) = keks.entries.get_mut(wrapped) {
                    entry.outage = true;
                    entry.next_refresh = Instant::now() + RETRY_PAUSE;
                }
            }
            ErrorKind::Config | ErrorKind::Denied | ErrorKind::KeyNotFound => {
                self.drop_keks(&mut keks, generation, Some(scope));
            }
            ErrorKind::TokenInvalid => self.drop_keks(&mut keks, generation, None),
            ErrorKind::BadCiphertext | ErrorKind::VersionTooOld => {
                if keks.entries.remove(wrapped).is_some() {
                    warn!(%error, "Vault does not unwrap a local KEK any more");
                }
                self.update_metric(&keks);
            }
        }
    }

    /// Returns the KEKs to refresh now, and when the next one is due.
    pub(super) fn due(&self) -> (Vec<(Ciphertext, Scope)>, Option<Instant>) {
        let keks = self.lock();
        let now = Instant::now();
        let due = keks.entries.iter().filter(|(_, entry)| entry.next_refresh <= now);
        let next = keks.entries.values().map(|entry| entry.next_refresh).filter(|next| *next > now).min();
        (due.map(|(wrapped, entry)| (wrapped.clone(), entry.scope)).collect(), next)
    }

    /// Evicts entries above the maximum: first those without a KEK, then the least recently used.
    fn evict(&self, keks: &mut Keks) {
        while keks.entries.len() > MAX_KEKS {
            let evictable =
                keks.entries.iter().filter(|(wrapped, _)| Some(*wrapped) != keks.encrypting.as_ref());
            let first = evictable.min_by_key(|(_, entry)| (entry.kek.is_some(), entry.last_used));
            let Some(wrapped) = first.map(|(wrapped, _)| wrapped.clone()) else { break };
            keks.entries.remove(&wrapped);
        }
        self.update_metric(keks);
    }

    fn update_metric(&self, keks: &Keks) {
        let count = keks.entries.values().filter(|entry| entry.kek.is_some()).count();
        self.metrics.local_kek.in_memory.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Ignores poisoning: no method leaves the entries inconsistent if it panics.
    fn lock(&self) -> MutexGuard<'_, Keks> {
        self.keks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
