//! Our own accept loop, and the drain at its end.
//!
//! tonic's loop goes round without a pause when descriptors run out, waits
//! for ever for half a preface, and lets one silent client hold up a
//! graceful shutdown. Hence this one.

use std::{sync::Arc, time::Duration};

use tokio::{
    net::UnixStream,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

pub use super::{backoff::Listener, connection::GrpcService};
use super::{
    backoff::{Failures, out_of_descriptors},
    connection::{self, Shared},
    connection_tracker::Roster,
    peer::{AllowedPeers, Peer, RefusalLog},
};
use crate::observe::metrics::Metrics;

/// A task that has been told to stop needs no longer than this, unless it blocks its thread.
const KILLED_WITHIN: Duration = Duration::from_secs(4);

/// Bounds on what clients may do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long the first 24 bytes, the HTTP/2 preface, may take.
    pub handshake_timeout: Duration,
    /// How long a connection without a call in flight may stay after GOAWAY.
    pub linger: Duration,
    /// Connections that may be open. One more makes the one that has been idle
    /// longest leave; as many again may be on their way out.
    pub max_connections: usize,
    /// Calls in flight on one connection: more than the service takes, so that it answers those that
    /// are too many, and Status beside them.
    pub max_streams: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(5),
            linger: Duration::from_millis(500),
            max_connections: 512,
            max_streams: 1024,
        }
    }
}

impl Limits {
    /// As these, with no more connections than half of `open_files` are enough for, even if as
    /// many again are on their way out: the other half is for Vault, without which no call is
    /// answered, and for the admin listeners.
    #[must_use]
    pub fn within(self, open_files: Option<u64>) -> Self {
        let most = open_files.and_then(|most| usize::try_from(most / 4).ok()).unwrap_or(usize::MAX);
        Self { max_connections: self.max_connections.min(most.max(1)), ..self }
    }
}

/// How [`serve`] serves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long calls in flight at shutdown may take.
    pub grace: Duration,
    /// What clients may do.
    pub limits: Limits,
    /// Where connections, refusals and errors are counted.
    pub metrics: Arc<Metrics>,
    /// Who is served.
    pub peers: AllowedPeers,
}

/// What the end of the grace cut off; nothing, if all is well.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CutOff {
    /// Calls in flight that got no answer.
    pub calls: usize,
    /// Connections that were still open.
    pub connections: usize,
}

impl CutOff {
    /// What two listeners cut off together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { calls: self.calls + other.calls, connections: self.connections + other.connections }
    }
}

/// Serves `service` on `listener` until `shutdown`, then drains.
///
/// Nothing but `shutdown` ends it: errors of accept are waited out. Each
/// request carries its [`Peer`] in the extensions; a panic in one call is
/// answered with `Internal` and touches nothing else.
///
/// At `shutdown` the listener is closed, every client is told GOAWAY, calls in
/// flight are finished within the grace, connections without one are dropped
/// after [`Limits::linger`]. When this returns, no task of it is left. Dropping
/// the future ends everything at once.
pub async fn serve<L, S>(
    mut listener: L,
    service: S,
    settings: Settings,
    shutdown: CancellationToken,
) -> CutOff
where
    L: Listener<Stream = UnixStream>,
    S: GrpcService,
{
    let Settings { grace, limits, metrics, peers } = settings;
    let drain = CancellationToken::new();
    let roster = Roster::new(limits.max_connections, drain.clone(), Arc::clone(&metrics));
    let shared = Shared {
        kill: CancellationToken::new(),
        limits,
        malformed: Arc::default(),
        metrics: Arc::clone(&metrics),
        tasks: TaskTracker::new(),
    };
    let _all_ends = shared.kill.clone().drop_guard();
    let refusals = RefusalLog::default();
    let mut failures = Failures::new("kms");

    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok(stream) => {
                failures.succeeded();
                stream
            }
            Err(error) => {
                metrics.server.accept_errors.inc();
                if out_of_descriptors(&error) {
                    roster.shed();
                }
                let pause = failures.failed(&error);
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => break,
                    () = sleep(pause) => continue,
                }
            }
        };
        let peer = match Peer::of(&stream) {
            Ok(peer) if peers.allows(peer.uid) => peer,
            Ok(peer) => {
                metrics.server.connections_rejected.inc();
                refusals.refused(&peer);
                continue;
            }
            Err(error) => {
                metrics.server.connections_rejected.inc();
                debug!(%error, "refused a connection: the kernel does not tell whose it is");
                continue;
            }
        };
        if let Some(place) = roster.admit(peer) {
            shared.tasks.spawn(connection::serve(stream, service.clone(), place, shared.clone()));
        }
    }

    drop(listener);
    let (connections, calls) = roster.count();
    info!(connections, calls, "no longer accepting; finishing calls in flight");
    drain.cancel();
    shared.tasks.close();
    if timeout(grace, shared.tasks.wait()).await.is_ok() {
        return CutOff::default();
    }
    let (connections, calls) = roster.count();
    warn!(connections, calls, "the shutdown grace is over; dropping what is left");
    shared.kill.cancel();
    if timeout(KILLED_WITHIN, shared.tasks.wait()).await.is_err() {
        warn!("some calls do not stop; leaving without them");
    }
    CutOff { calls, connections }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_descriptors_are_not_for_connections() {
        let most = |open_files| Limits::default().within(open_files).max_connections;
        assert_eq!(most(None), 512);
        assert_eq!(most(Some(1_000_000)), 512);
        assert_eq!(most(Some(1024)), 256);
        assert_eq!(most(Some(2)), 1);
    }
}
