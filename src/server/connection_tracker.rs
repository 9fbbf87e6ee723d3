//! Tracks open connections and chooses which one to close when there are too many.

use std::{
    cmp::Reverse,
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

/// The open connections of one listener.
#[derive(Debug)]
pub(super) struct ConnectionTracker {
    drain: CancellationToken,
    /// Advances when a connection is opened and when a call ends: the lower a connection's number, the
    /// longer it has been idle.
    idle_clock: Arc<AtomicU64>,
    max_connections: usize,
    metrics: Arc<Metrics>,
    open: Mutex<OpenConnections>,
}

#[derive(Debug, Default)]
struct OpenConnections {
    by_id: HashMap<u64, Arc<TrackedConnection>>,
    next_id: u64,
    /// Set when a connection was closed or rejected because of the limit, until half of the slots are
    /// free again. Limits the warnings to one per episode.
    over_limit: bool,
}

/// One open connection.
#[derive(Debug)]
pub(super) struct TrackedConnection {
    /// Calls in flight: from the request until the whole response is handed to the HTTP/2 library.
    calls: watch::Sender<usize>,
    /// Asks the connection to send GOAWAY and close.
    pub(super) close: CancellationToken,
    idle_clock: Arc<AtomicU64>,
    idle_since: AtomicU64,
    pub(super) peer: Peer,
}

/// The right to keep a connection open; released on drop.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    pub(super) connection: Arc<TrackedConnection>,
    id: u64,
    tracker: Arc<ConnectionTracker>,
}

/// Counts one call in flight until it is dropped.
#[derive(Debug)]
pub(super) struct CallGuard(Arc<TrackedConnection>);

impl ConnectionTracker {
    /// Allows `max_connections`. Cancelling `drain` asks all of them to close.
    pub(super) fn new(max_connections: usize, drain: CancellationToken, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { drain, idle_clock: Arc::default(), max_connections, metrics, open: Mutex::default() })
    }

    /// Returns a slot for a new connection.
    ///
    /// If all slots are taken, an idle connection is asked to close, so that many silent clients cannot
    /// lock out a client with work to do. Returns `None` if all connections are busy, or if the closing
    /// connections already hold as many slots as the limit allows.
    pub(super) fn admit(self: &Arc<Self>, peer: Peer) -> Option<ConnectionSlot> {
        let mut open = self.lock();
        if open.by_id.len() >= self.max_connections {
            let staying = open.by_id.values().filter(|connection| !connection.close.is_cancelled()).count();
            let may_exceed = open.by_id.len() < self.max_connections.saturating_mul(2);
            let closed =
                (staying >= self.max_connections && may_exceed).then(|| close_one_idle(&open)).flatten();
            if let Some(Peer { uid, pid, .. }) = closed {
                if open.set_over_limit() {
                    warn!(
                        uid,
                        pid,
                        open = open.by_id.len(),
                        "too many connections: closing an idle one of the process that has the most"
                    );
                } else {
                    debug!(uid, pid, "too many connections: closing another idle one");
                }
            } else if staying >= self.max_connections {
                if open.set_over_limit() {
                    warn!(
                        uid = peer.uid,
                        pid = peer.pid,
                        open = open.by_id.len(),
                        "too many connections, and all are busy or closing: rejected a new one"
                    );
                } else {
                    debug!(uid = peer.uid, pid = peer.pid, "too many connections: rejected another new one");
                }
                return None;
            }
        }
        let connection = Arc::new(TrackedConnection {
            calls: watch::Sender::new(0),
            close: self.drain.child_token(),
            idle_clock: Arc::clone(&self.idle_clock),
            idle_since: AtomicU64::new(self.idle_clock.fetch_add(1, Ordering::Relaxed)),
            peer,
        });
        let id = open.next_id;
        open.next_id += 1;
        open.by_id.insert(id, Arc::clone(&connection));
        self.metrics.server.connections_open.inc();
        Some(ConnectionSlot { connection, id, tracker: Arc::clone(self) })
    }

    /// Asks idle connections to close, to free their file descriptors, until a quarter of all
    /// connections is closing: the number of clients in the listener's queue is unknown and may be high.
    pub(super) fn shed_idle(&self) {
        let open = self.lock();
        let closing = open.by_id.values().filter(|connection| connection.close.is_cancelled()).count();
        let missing = open.by_id.len().div_ceil(4).saturating_sub(closing);
        let asked = std::iter::from_fn(|| close_one_idle(&open)).take(missing).count();
        // The warning about the descriptors is logged where accept fails.
        debug!(open = open.by_id.len(), closing, asked, "closing idle connections to free file descriptors");
    }

    /// Returns the number of open connections and of calls in flight on them.
    pub(super) fn count(&self) -> (usize, usize) {
        let open = self.lock();
        (open.by_id.len(), open.by_id.values().map(|connection| *connection.calls.borrow()).sum())
    }

    fn lock(&self) -> MutexGuard<'_, OpenConnections> {
        // Each change is one step, so a panic leaves nothing half done.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenConnections {
    /// Returns true if the limit was not exceeded before.
    fn set_over_limit(&mut self) -> bool {
        !std::mem::replace(&mut self.over_limit, true)
    }
}

/// Asks the connection that has been idle longest, of the process with the most connections, to close.
fn close_one_idle(open: &OpenConnections) -> Option<Peer> {
    let mut per_process: HashMap<(u32, Option<i32>), usize> = HashMap::new();
    let staying = || open.by_id.values().filter(|connection| !connection.close.is_cancelled());
    for connection in staying() {
        *per_process.entry((connection.peer.uid, connection.peer.pid)).or_default() += 1;
    }
    let chosen = staying().filter(|connection| *connection.calls.borrow() == 0).max_by_key(|connection| {
        let held = per_process.get(&(connection.peer.uid, connection.peer.pid)).copied().unwrap_or_default();
        (held, Reverse(connection.idle_since.load(Ordering::Relaxed)))
    })?;
    chosen.close.cancel();
    Some(chosen.peer)
}

impl TrackedConnection {
    /// Waits until no call has been in flight for `linger`.
    pub(super) async fn idle_for(&self, linger: Duration) {
        let mut calls = self.calls.subscribe();
        loop {
            // `self` owns the sender, so neither wait fails because the channel is closed.
            if calls.wait_for(|calls| *calls == 0).await.is_err() {
                return;
            }
            if !matches!(timeout(linger, calls.changed()).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// Counts one call as in flight until the guard is dropped.
    pub(super) fn start_call(self: &Arc<Self>) -> CallGuard {
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

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut open = self.tracker.lock();
        open.by_id.remove(&self.id);
        if open.over_limit && open.by_id.len() <= self.tracker.max_connections / 2 {
            open.over_limit = false;
            info!(open = open.by_id.len(), "the number of connections is below half of the limit again");
        }
        self.tracker.metrics.server.connections_open.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracker(max_connections: usize) -> Arc<ConnectionTracker> {
        ConnectionTracker::new(max_connections, CancellationToken::new(), Arc::new(Metrics::new().unwrap()))
    }

    fn peer(pid: i32) -> Peer {
        Peer { gid: 0, pid: Some(pid), uid: 0 }
    }

    fn is_closing(slot: &ConnectionSlot) -> bool {
        slot.connection.close.is_cancelled()
    }

    #[test]
    fn the_connection_that_is_idle_longest_is_closed() {
        let tracker = tracker(3);
        let busy = tracker.admit(peer(1)).unwrap();
        let call = busy.connection.start_call();
        let worked = tracker.admit(peer(1)).unwrap();
        let silent = tracker.admit(peer(1)).unwrap();
        drop(worked.connection.start_call());
        let _new = tracker.admit(peer(1)).unwrap();
        assert!(is_closing(&silent) && !is_closing(&worked) && !is_closing(&busy));
        drop(call);
    }

    #[test]
    fn a_connection_of_the_process_with_the_most_is_closed() {
        let tracker = tracker(4);
        let api_server = tracker.admit(peer(1)).unwrap();
        let many: Vec<_> = (0..3).map(|_| tracker.admit(peer(2)).unwrap()).collect();
        let _new = tracker.admit(peer(3)).unwrap();
        assert!(!is_closing(&api_server), "it has been idle longest, but its process has only one");
        assert!(is_closing(&many[0]));
    }

    #[test]
    fn at_most_a_quarter_is_closing_at_a_time() {
        let tracker = tracker(20);
        let mut slots: Vec<_> = (0..9).map(|_| tracker.admit(peer(1)).unwrap()).collect();
        let closing = |slots: &[ConnectionSlot]| slots.iter().filter(|slot| is_closing(slot)).count();
        tracker.shed_idle();
        tracker.shed_idle();
        assert_eq!(closing(&slots), 3);
        slots.retain(|slot| !is_closing(slot));
        tracker.shed_idle();
        assert_eq!(closing(&slots), 2);
        assert!(!tracker.lock().over_limit, "the limit of connections is not the cause");
    }

    #[test]
    fn when_all_are_busy_a_new_connection_is_rejected_and_memory_stays_bounded() {
        let tracker = tracker(2);
        let slots: Vec<_> = (0..2).map(|_| tracker.admit(peer(1)).unwrap()).collect();
        let calls: Vec<_> = slots.iter().map(|slot| slot.connection.start_call()).collect();
        assert!(tracker.admit(peer(1)).is_none());
        assert_eq!(tracker.count(), (2, 2));
        drop(calls);

        // Connections that were asked to close and stay open count too.
        let more: Vec<_> = std::iter::from_fn(|| tracker.admit(peer(1))).collect();
        assert_eq!(more.len(), 2);
        assert_eq!(tracker.metrics.server.connections_open.get(), 4);
        drop((more, slots));
        assert_eq!(tracker.count(), (0, 0));
        assert_eq!(tracker.metrics.server.connections_open.get(), 0);
        assert!(!tracker.lock().over_limit);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_after_a_whole_linger_without_a_call() {
        let tracker = tracker(1);
        let slot = tracker.admit(peer(1)).unwrap();
        let linger = Duration::from_millis(500);
        let call = slot.connection.start_call();
        let start = tokio::time::Instant::now();
        let calls = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            drop(call);
            tokio::time::sleep(Duration::from_millis(400)).await;
            drop(slot.connection.start_call());
        };
        tokio::join!(slot.connection.idle_for(linger), calls);
        assert_eq!(start.elapsed(), Duration::from_millis(2900));
    }
}
