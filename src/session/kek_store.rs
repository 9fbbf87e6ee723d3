//! The local KEKs that are kept in memory, and how long each may be used.
//!
//! A KEK is *usable* if Transit has unwrapped it within `max_age`; while Vault is merely unreachable,
//! within `max_age_in_outage`. [`look_after`] has all of them unwrapped again before their time,
//! whether they are asked for or not: kube-apiserver asks for a KEK again only when it
//! starts, which may be in the middle of an outage. A refusal ends all of them at once.
//!
//! If a KEK cannot be unwrapped now, its name stays, which is no secret, so that the KEK is there by the
//! next outage.
//!
//! Every report carries a [`Stamp`]: a session that was replaced has no say about what its successor
//! uses.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::Rng;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, sleep},
};
use tracing::{debug, warn};
use transit_client::{ErrorKind, TransitError, ciphertext::Ciphertext, key_id::Scope, transit::Call};

use super::{
    local_kek::LocalKek,
    state::{Snapshot, StateStore},
};
use crate::{config::LocalKekLimits, observe::metrics::Metrics};

/// More than all nodes of a large cluster make in the life of its seeds.
const MOST_KEPT: usize = 1024;
/// What could not be unwrapped is tried again after this.
const RETRY: Duration = Duration::from_secs(10);
/// The longest that one look after a KEK may take.
const LONGEST_LOOK: Duration = Duration::from_secs(5);
/// Between looks, however much is asked for.
const LEAST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Keeps KEKs; shared by all tasks.
pub struct KekStore {
    /// Changes when a KEK comes in.
    arrivals: watch::Sender<()>,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    wanted: Notify,
}

#[derive(Default)]
struct State {
    /// The KEK that encrypts. It is never dropped to make room: no call asks for it by name.
    encrypts: Option<Ciphertext>,
    kept: HashMap<Ciphertext, Kept>,
    /// `None` in mode `transit`: then nothing is kept.
    limits: Option<LocalKekLimits>,
    /// Of the session in use.
    now: Stamp,
}

/// Which session a report is of, and how often Vault had said no when the question was asked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stamp {
    generation: u64,
    refusals: u64,
}

struct Kept {
    kek: Option<Arc<LocalKek>>,
    next_look: Instant,
    /// The last look found Vault unreachable.
    outage: bool,
    scope: Scope,
    /// When Transit last wrapped or unwrapped it.
    unwrapped: Instant,
    used: Instant,
}

impl Kept {
    fn usable(&self, limits: LocalKekLimits) -> Option<&Arc<LocalKek>> {
        let longest = if self.outage { limits.max_age_in_outage } else { limits.max_age };
        self.kek.as_ref().filter(|_| self.unwrapped.elapsed() < longest)
    }
}

impl KekStore {
    /// An empty one, which keeps nothing before [`configure`](Self::configure) says how.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let arrivals = watch::Sender::new(());
        Self { arrivals, metrics, state: Mutex::default(), wanted: Notify::new() }
    }

    /// The session of `generation` is in use from now on. Sets how long KEKs are used; without limits
    /// none is kept.
    pub fn configure(&self, generation: u64, limits: Option<LocalKekLimits>) {
        let mut state = self.lock();
        state.now.generation = generation;
        state.limits = limits;
        if limits.is_none() {
            state.now.refusals += 1;
            state.kept.clear();
            state.encrypts = None;
        }
        self.count(&state);
        // What could not be unwrapped on the old session may be on the new one.
        let now = Instant::now();
        state.kept.values_mut().filter(|kept| kept.kek.is_none()).for_each(|kept| kept.next_look = now);
        drop(state);
        self.wanted.notify_one();
    }

    /// Tells when a KEK has come in.
    pub fn arrivals(&self) -> watch::Receiver<()> {
        self.arrivals.subscribe()
    }

    /// A usable KEK.
    #[must_use]
    pub fn get(&self, wrapped: &Ciphertext) -> Option<Arc<LocalKek>> {
        let mut state = self.lock();
        let limits = state.limits?;
        let kept = state.kept.get_mut(wrapped)?;
        kept.used = Instant::now();
        kept.usable(limits).cloned()
    }

    /// Whether this KEK may be used now.
    #[must_use]
    pub fn is_usable(&self, kek: &LocalKek) -> bool {
        let state = self.lock();
        let kept = state.limits.and_then(|limits| state.kept.get(kek.wrapped())?.usable(limits));
        kept.is_some()
    }

    /// How long ago Vault has wrapped or unwrapped this KEK, and how much longer it may be used if
    /// Vault stays away.
    #[must_use]
    pub fn life(&self, kek: &LocalKek) -> Option<(Duration, Duration)> {
        let state = self.lock();
        let limits = state.limits?;
        let kept = state.kept.get(kek.wrapped()).filter(|kept| kept.kek.is_some())?;
        let age = kept.unwrapped.elapsed();
        Some((age, limits.max_age_in_outage.saturating_sub(age)))
    }

    /// What a report of the session of `generation` is to be given, taken before Transit is asked.
    #[must_use]
    pub fn stamp(&self, generation: u64) -> Stamp {
        Stamp { generation, ..self.lock().now }
    }

    /// Keeps what Transit has just wrapped or unwrapped. After a refusal, or on another session, it has
    /// to be unwrapped again first.
    pub fn put(&self, kek: Arc<LocalKek>, stamp: Stamp) {
        self.keep(kek, stamp, false);
    }

    /// The same, and this KEK encrypts from now on.
    pub fn encrypt_with(&self, kek: Arc<LocalKek>, stamp: Stamp) {
        self.keep(kek, stamp, true);
    }

    fn keep(&self, kek: Arc<LocalKek>, stamp: Stamp, encrypts: bool) {
        let mut state = self.lock();
        let Some(limits) = state.limits else { return };
        let (wrapped, scope) = (kek.wrapped().clone(), kek.scope());
        if stamp != state.now {
            self.want(&mut state, &wrapped, scope);
            return;
        }
        let now = Instant::now();
        let used = state.kept.get(&wrapped).map_or(now, |kept| kept.used);
        let kept = Kept {
            // The one that is there counts its uses.
            kek: state.kept.get(&wrapped).and_then(|kept| kept.kek.clone()).or(Some(kek)),
            // Not all at the same moment, nor on all nodes.
            next_look: now + limits.max_age.mul_f64(rand::random_range(0.5..0.75)),
            outage: false,
            scope,
            unwrapped: now,
            used,
        };
        if encrypts {
            state.encrypts = Some(wrapped.clone());
        }
        state.kept.insert(wrapped, kept);
        self.bound(&mut state);
        drop(state);
        self.arrivals.send_replace(());
    }

    /// Remembers a KEK that is wanted, and could not be unwrapped on the session in use so far.
    fn want(&self, state: &mut State, wrapped: &Ciphertext, scope: Scope) {
        let now = Instant::now();
        let named =
            Kept { kek: None, next_look: now + RETRY, outage: false, scope, unwrapped: now, used: now };
        state.kept.entry(wrapped.clone()).or_insert(named);
        self.bound(state);
    }

    /// Vault says no to the session of `generation`, to all or to the key in `scope`: no such KEK is
    /// used before it says yes again.
    pub fn refused(&self, generation: u64, scope: Option<Scope>) {
        self.wipe(&mut self.lock(), generation, scope);
    }

    fn wipe(&self, state: &mut State, generation: u64, scope: Option<Scope>) {
        if generation != state.now.generation {
            return;
        }
        state.now.refusals += 1;
        let next_look = Instant::now() + RETRY;
        for kept in state.kept.values_mut().filter(|kept| scope.is_none_or(|scope| scope == kept.scope)) {
            if kept.kek.take().is_some() {
                kept.next_look = next_look;
            }
        }
        self.count(state);
    }

    /// A look after a KEK, or a Decrypt with one that is not kept, has failed so.
    pub fn failed(&self, wrapped: &Ciphertext, scope: Scope, error: &TransitError, stamp: Stamp) {
        let mut state = self.lock();
        if state.limits.is_none() {
            return;
        }
        if stamp.generation != state.now.generation {
            // The session that failed was replaced: the one in use is to find out.
            self.want(&mut state, wrapped, scope);
            return;
        }
        match error.kind {
            ErrorKind::DeadlineExceeded
            | ErrorKind::VersionUnavailable
            | ErrorKind::InvalidResponse
            | ErrorKind::Throttled
            | ErrorKind::BatchTooLarge
            | ErrorKind::Unreachable => {
                self.want(&mut state, wrapped, scope);
                if let Some(kept) = state.kept.get_mut(wrapped) {
                    kept.outage = true;
                    kept.next_look = Instant::now() + RETRY;
                }
            }
            ErrorKind::Config | ErrorKind::Denied | ErrorKind::KeyNotFound => {
                self.wipe(&mut state, stamp.generation, Some(scope))
            }
            ErrorKind::TokenInvalid => self.wipe(&mut state, stamp.generation, None),
            ErrorKind::BadCiphertext | ErrorKind::VersionTooOld => {
                if state.kept.remove(wrapped).is_some() {
                    warn!(%error, "a local KEK is not unwrapped any more");
                }
                self.count(&state);
            }
        }
    }

    /// What is to be unwrapped now, and when there will be something next.
    fn due(&self) -> (Vec<(Ciphertext, Scope)>, Option<Instant>) {
        let state = self.lock();
        let now = Instant::now();
        let due = state.kept.iter().filter(|(_, kept)| kept.next_look <= now);
        let next = state.kept.values().map(|kept| kept.next_look).filter(|next| *next > now).min();
        (due.map(|(wrapped, kept)| (wrapped.clone(), kept.scope)).collect(), next)
    }

    /// Makes room: names of what cannot be unwrapped go first, then what was not asked for the longest.
    fn bound(&self, state: &mut State) {
        while state.kept.len() > MOST_KEPT {
            let droppable =
                state.kept.iter().filter(|(wrapped, _)| Some(*wrapped) != state.encrypts.as_ref());
            let first = droppable.min_by_key(|(_, kept)| (kept.kek.is_some(), kept.used));
            let Some(wrapped) = first.map(|(wrapped, _)| wrapped.clone()) else { break };
            state.kept.remove(&wrapped);
        }
        self.count(state);
    }

    fn count(&self, state: &State) {
        let kept = state.kept.values().filter(|kept| kept.kek.is_some()).count();
        self.metrics.local_keks.set(i64::try_from(kept).unwrap_or(i64::MAX));
    }

    /// Each value in it stands for itself, so a panic leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has all KEKs unwrapped again before their time, for ever.
pub async fn look_after(store: Arc<StateStore>) {
    loop {
        let mut pause = LONGEST_PAUSE;
        let now = store.read();
        // Nothing loops on 403: while the token is dead, only the health_checker looks.
        if let Some(snapshot) = now.snapshot.filter(|_| now.token_dead_for.is_none()) {
            let (due, _) = store.keks.due();
            let mut looks = JoinSet::new();
            for (wrapped, scope) in due {
                looks.spawn(look(Arc::clone(&store), Arc::clone(&snapshot), wrapped, scope));
            }
            tokio::select! {
                // Together, so that the coalescer makes a few calls of them.
                () = async { while looks.join_next().await.is_some() {} } => {}
                // A new session need not wait for the silence of the old one. The requests end by
                // themselves: one that is cancelled costs its connection.
                () = store.after(snapshot.generation) => {
                    looks.detach_all();
                    continue;
                }
            }
            if let (_, Some(next)) = store.keks.due() {
                pause = next.saturating_duration_since(Instant::now()).clamp(LEAST_PAUSE, LONGEST_PAUSE);
            }
        }
        sleep(LEAST_PAUSE).await;
        tokio::select! {
            () = sleep(pause.saturating_sub(LEAST_PAUSE)) => {}
            () = store.keks.wanted.notified() => {}
        }
    }
}

async fn look(store: Arc<StateStore>, snapshot: Arc<Snapshot>, wrapped: Ciphertext, scope: Scope) {
    let stamp = store.keks.stamp(snapshot.generation);
    let Some(entry) = snapshot.keyring.entry(scope) else {
        let error = TransitError::new(ErrorKind::VersionTooOld, "its Transit key is not configured any more");
        store.keks.failed(&wrapped, scope, &error, stamp);
        return;
    };
    let uid = format!("kek-{:016x}", rand::rng().next_u64());
    let call = Call { deadline: Instant::now() + LONGEST_LOOK, uid: &uid };
    let outcome = snapshot.decrypts.decrypt(&entry.key, &wrapped, call).await;
    match outcome.and_then(|opened| LocalKek::new(&opened.plaintext, wrapped.clone(), scope)) {
        Ok(kek) => store.keks.put(Arc::new(kek), stamp),
        Err(error) => {
            debug!(%error, "a local KEK could not be unwrapped again");
            let error = store.decrypt_failed(&snapshot, entry, error);
            store.keks.failed(&wrapped, scope, &error, stamp);
        }
    }
}

#[cfg(test)]
mod tests {
    use transit_client::key::KeyRef;

    use super::*;
    use crate::session::local_kek::new_payload;

    fn store() -> KekStore {
        let store = KekStore::new(Arc::new(Metrics::new().unwrap()));
        store.configure(1, Some(LocalKekLimits::default()));
        store
    }

    fn kek(number: usize) -> Arc<LocalKek> {
        let scope = Scope::of(&KeyRef::in_transit("kms"));
        let wrapped = Ciphertext::parse(format!("vault:v1:{number:08}").as_bytes()).unwrap();
        Arc::new(LocalKek::new(&new_payload(), wrapped, scope).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_are_kept_and_those_not_asked_for_go_first() {
        let store = store();
        let first = kek(0);
        for number in 0..MOST_KEPT {
            store.put(if number == 0 { Arc::clone(&first) } else { kek(number) }, store.stamp(1));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(store.get(first.wrapped()).is_some());
        store.put(kek(MOST_KEPT), store.stamp(1));
        assert!(store.get(first.wrapped()).is_some());
        assert!(store.get(kek(1).wrapped()).is_none());
        // Names alone are bounded, too.
        let error = TransitError::new(ErrorKind::Unreachable, "away");
        for number in 0..2 * MOST_KEPT {
            let kek = kek(number + 10_000);
            store.failed(kek.wrapped(), kek.scope(), &error, store.stamp(1));
        }
        assert_eq!(store.lock().kept.len(), MOST_KEPT);
    }

    #[tokio::test(start_paused = true)]
    async fn the_kek_that_encrypts_is_never_dropped_for_room() {
        let (store, first, second) = (store(), kek(0), kek(1));
        let fill = |from: usize| {
            (from..from + 2 * MOST_KEPT).for_each(|number| store.put(kek(number), store.stamp(1)));
        };
        store.encrypt_with(Arc::clone(&first), store.stamp(1));
        tokio::time::advance(Duration::from_secs(1)).await;
        fill(10_000);
        assert!(store.is_usable(&first));
        // Until another one does.
        store.encrypt_with(Arc::clone(&second), store.stamp(1));
        tokio::time::advance(Duration::from_secs(1)).await;
        fill(20_000);
        assert!(store.is_usable(&second) && !store.is_usable(&first));
        assert_eq!(store.lock().kept.len(), MOST_KEPT);
    }

    #[tokio::test(start_paused = true)]
    async fn names_of_what_cannot_be_unwrapped_take_no_room_from_keks() {
        let store = store();
        let keks: Vec<_> = (0..MOST_KEPT - 10).map(kek).collect();
        keks.iter().for_each(|kek| store.put(Arc::clone(kek), store.stamp(1)));
        tokio::time::advance(Duration::from_secs(1)).await;
        // A LIST in an outage, over what other nodes have written.
        let error = TransitError::new(ErrorKind::Unreachable, "away");
        for number in 10_000..12_000 {
            store.failed(kek(number).wrapped(), kek(number).scope(), &error, store.stamp(1));
        }
        assert!(keks.iter().all(|kek| store.is_usable(kek)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_was_replaced_has_no_say() {
        let (store, used, late) = (store(), kek(0), kek(1));
        store.encrypt_with(Arc::clone(&used), store.stamp(1));
        let old = store.stamp(1);
        store.configure(2, Some(LocalKekLimits::default()));
        for kind in [
            ErrorKind::TokenInvalid,
            ErrorKind::Denied,
            ErrorKind::KeyNotFound,
            ErrorKind::BadCiphertext,
            ErrorKind::VersionTooOld,
        ] {
            store.failed(used.wrapped(), used.scope(), &TransitError::new(kind, "no"), old);
            assert!(store.is_usable(&used), "{kind:?}");
        }
        store.refused(1, None);
        assert!(store.is_usable(&used));
        // Not about a yes either; but the KEK is wanted.
        store.put(Arc::clone(&late), old);
        assert!(!store.is_usable(&late) && store.lock().kept.contains_key(late.wrapped()));
        store.refused(2, None);
        assert!(!store.is_usable(&used));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_unwrapped_before_a_refusal_does_not_come_in_after_it() {
        let store = store();
        let (kek, stamp) = (kek(0), store.stamp(1));
        store.refused(1, None);
        store.put(Arc::clone(&kek), stamp);
        assert!(!store.is_usable(&kek) && store.life(&kek).is_none());
        store.put(Arc::clone(&kek), store.stamp(1));
        assert!(store.is_usable(&kek));
        store.configure(1, None);
        assert!(!store.is_usable(&kek) && store.lock().kept.is_empty(), "mode transit keeps none");
    }

    #[tokio::test(start_paused = true)]
    async fn age_ends_a_kek_that_nobody_looks_after() {
        let (store, kek) = (store(), kek(0));
        store.put(Arc::clone(&kek), store.stamp(1));
        tokio::time::advance(Duration::from_secs(3599)).await;
        assert!(store.is_usable(&kek));
        let left = Duration::from_secs(24 * 3600 - 3599);
        assert_eq!(store.life(&kek), Some((Duration::from_secs(3599), left)), "while Vault is away");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!store.is_usable(&kek) && store.get(kek.wrapped()).is_none());
    }
}
