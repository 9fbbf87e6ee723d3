//! The connections that are open, and which of them has to go when there are
//! too many.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::peer::Peer;
use crate::observe::metrics::Metrics;

/// All open connections.
#[derive(Debug)]
pub(super) struct Roster {
    drain: CancellationToken,
    /// Ticks whenever a connection becomes idle: a lower number has been idle longer.
    idle_clock: Arc<AtomicU64>,
    inside: Mutex<Inside>,
    metrics: Arc<Metrics>,
    most: usize,
}

#[derive(Debug, Default)]
struct Inside {
    /// Someone had to go or was turned away, and it has not become calm since.
    crowded: bool,
    next: u64,
    open: HashMap<u64, Arc<Connection>>,
}

/// One open connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// Calls in flight; from the request until its answer has been handed over whole.
    calls: watch::Sender<usize>,
    idle_clock: Arc<AtomicU64>,
    idle_since: AtomicU64,
    /// Asks it to say GOAWAY and leave.
    pub(super) leave: CancellationToken,
    pub(super) peer: Peer,
}

/// A place on the roster; vacated when dropped.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) connection: Arc<Connection>,
    id: u64,
    roster: Arc<Roster>,
}

/// A call in flight, until dropped.
#[derive(Debug)]
pub(super) struct CallGuard(Arc<Connection>);

impl Roster {
    /// At most `most` connections stay; `drain` asks all of them to leave.
    pub(super) fn new(most: usize, drain: CancellationToken, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { drain, idle_clock: Arc::default(), inside: Mutex::default(), metrics, most })
    }

    /// A place for a new connection.
    ///
    /// When all are taken, an idle connection is asked to leave, so that many
    /// silent clients cannot lock out one that wants to work. `None` if all
    /// are busy, or if those that were asked have not left yet and hold as
    /// many places again.
    pub(super) fn admit(self: &Arc<Self>, peer: Peer) -> Option<Place> {
        let mut inside = self.lock();
        if inside.open.len() >= self.most {
            let staying = inside.open.values().filter(|open| !open.leave.is_cancelled()).count();
            let room = inside.open.len() < self.most.saturating_mul(2);
            let victim = (staying >= self.most && room).then(|| send_one_away(&inside)).flatten();
            if let Some(Peer { uid, pid, .. }) = victim {
                if inside.crowd() {
                    warn!(
                        uid,
                        pid,
                        open = inside.open.len(),
                        "too many connections: asked an idle one of the process that has most to leave"
                    );
                } else {
                    debug!(uid, pid, "asked an idle connection to leave: there are too many");
                }
            } else if staying >= self.most {
                if inside.crowd() {
                    warn!(
                        uid = peer.uid,
                        pid = peer.pid,
                        open = inside.open.len(),
                        "too many connections, and all are busy or on their way out: turned one away"
                    );
                } else {
                    debug!(uid = peer.uid, pid = peer.pid, "turned a connection away: there are too many");
                }
                return None;
            }
        }
        let connection = Arc::new(Connection {
            calls: watch::Sender::new(0),
            idle_clock: Arc::clone(&self.idle_clock),
            idle_since: AtomicU64::new(self.idle_clock.fetch_add(1, Ordering::Relaxed)),
            leave: self.drain.child_token(),
            peer,
        });
        let id = inside.next;
        inside.next += 1;
        inside.open.insert(id, Arc::clone(&connection));
        self.metrics.server.connections_open.inc();
        Some(Place { connection, id, roster: Arc::clone(self) })
    }

    /// Asks idle connections to leave, for their descriptors, until a quarter of all is leaving:
    /// whoever waits for accept is not known, and may be many.
    pub(super) fn shed(&self) {
        let inside = self.lock();
        let leaving = inside.open.values().filter(|open| open.leave.is_cancelled()).count();
        let wanted = inside.open.len().div_ceil(4).saturating_sub(leaving);
        let asked = std::iter::from_fn(|| send_one_away(&inside)).take(wanted).count();
        // That descriptors ran out is told where accept failed.
        debug!(open = inside.open.len(), leaving, asked, "asked idle connections to leave");
    }

    /// Connections that are open, and calls in flight on them.
    pub(super) fn count(&self) -> (usize, usize) {
        let inside = self.lock();
        (inside.open.len(), inside.open.values().map(|open| *open.calls.borrow()).sum())
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        // Nothing is left half done by a panic: each change is one step.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    /// Remembers that it is crowded; whether that is new.
    fn crowd(&mut self) -> bool {
        !std::mem::replace(&mut self.crowded, true)
    }
}

/// Asks one to leave: of the process that has most connections, the one that has been idle longest.
fn send_one_away(inside: &Inside) -> Option<Peer> {
    let mut held: HashMap<(u32, Option<i32>), usize> = HashMap::new();
    let staying = || inside.open.values().filter(|open| !open.leave.is_cancelled());
    for open in staying() {
        *held.entry((open.peer.uid, open.peer.pid)).or_default() += 1;
    }
    let victim = staying().filter(|open| *open.calls.borrow() == 0).max_by_key(|open| {
        let held = held.get(&(open.peer.uid, open.peer.pid)).copied().unwrap_or_default();
        (held, std::cmp::Reverse(open.idle_since.load(Ordering::Relaxed)))
    })?;
    victim.leave.cancel();
    Some(victim.peer)
}

impl Connection {
    /// Returns once no call has been in flight for `linger`.
    pub(super) async fn idle_for(&self, linger: Duration) {
        let mut calls = self.calls.subscribe();
        loop {
            // The sender is in `self`, so neither wait can find it gone.
            if calls.wait_for(|calls| *calls == 0).await.is_err() {
                return;
            }
            if !matches!(timeout(linger, calls.changed()).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// Counts one call until the guard is dropped.
    pub(super) fn call(self: &Arc<Self>) -> CallGuard {
        self.calls.send_modify(|calls| *calls += 1);
        CallGuard(Arc::clone(self))
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        let now = self.0.idle_clock.fetch_add(1, Ordering::Relaxed);
        self.0.idle_since.store(now, Ordering::Relaxed);
        self.0.calls.send_modify(|calls| *calls = calls.saturating_sub(1));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inside = self.roster.lock();
        inside.open.remove(&self.id);
        if inside.crowded && inside.open.len() <= self.roster.most / 2 {
            inside.crowded = false;
            info!(open = inside.open.len(), "there is room for connections again");
        }
        self.roster.metrics.server.connections_open.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roster(most: usize) -> Arc<Roster> {
        Roster::new(most, CancellationToken::new(), Arc::new(Metrics::new().unwrap()))
    }

    fn peer(pid: i32) -> Peer {
        Peer { gid: 0, pid: Some(pid), uid: 0 }
    }

    fn leaves(place: &Place) -> bool {
        place.connection.leave.is_cancelled()
    }

    #[test]
    fn the_longest_idle_connection_makes_room() {
        let roster = roster(3);
        let busy = roster.admit(peer(1)).unwrap();
        let call = busy.connection.call();
        let worked = roster.admit(peer(1)).unwrap();
        let silent = roster.admit(peer(1)).unwrap();
        drop(worked.connection.call());
        let _new = roster.admit(peer(1)).unwrap();
        assert!(leaves(&silent) && !leaves(&worked) && !leaves(&busy));
        drop(call);
    }

    #[test]
    fn the_process_with_most_connections_gives_one_up() {
        let roster = roster(4);
        let api_server = roster.admit(peer(1)).unwrap();
        let many: Vec<_> = (0..3).map(|_| roster.admit(peer(2)).unwrap()).collect();
        let _new = roster.admit(peer(3)).unwrap();
        assert!(!leaves(&api_server), "idle longest, but not the one that crowds");
        assert!(leaves(&many[0]));
    }

    #[test]
    fn a_quarter_is_shed_and_no_more_until_they_have_left() {
        let roster = roster(20);
        let mut places: Vec<_> = (0..9).map(|_| roster.admit(peer(1)).unwrap()).collect();
        let leaving = |places: &[Place]| places.iter().filter(|place| leaves(place)).count();
        roster.shed();
        roster.shed();
        assert_eq!(leaving(&places), 3);
        places.retain(|place| !leaves(place));
        roster.shed();
        assert_eq!(leaving(&places), 2);
        assert!(!roster.lock().crowded, "that is not what is amiss");
    }

    #[test]
    fn when_all_are_busy_the_new_one_is_turned_away_and_nothing_grows_for_ever() {
        let roster = roster(2);
        let places: Vec<_> = (0..2).map(|_| roster.admit(peer(1)).unwrap()).collect();
        let calls: Vec<_> = places.iter().map(|place| place.connection.call()).collect();
        assert!(roster.admit(peer(1)).is_none());
        assert_eq!(roster.count(), (2, 2));
        drop(calls);

        // Those who were asked to leave and do not are counted too.
        let more: Vec<_> = std::iter::from_fn(|| roster.admit(peer(1))).collect();
        assert_eq!(more.len(), 2);
        assert_eq!(roster.metrics.server.connections_open.get(), 4);
        drop((more, places));
        assert_eq!(roster.count(), (0, 0));
        assert_eq!(roster.metrics.server.connections_open.get(), 0);
        assert!(!roster.lock().crowded);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_means_a_whole_linger_without_a_call() {
        let roster = roster(1);
        let place = roster.admit(peer(1)).unwrap();
        let linger = Duration::from_millis(500);
        let call = place.connection.call();
        let start = tokio::time::Instant::now();
        let calls = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            drop(call);
            tokio::time::sleep(Duration::from_millis(400)).await;
            drop(place.connection.call());
        };
        tokio::join!(place.connection.idle_for(linger), calls);
        assert_eq!(start.elapsed(), Duration::from_millis(2900));
    }
}
