//! The accept loop of a KMS socket, and the drain at its end.
//!
//! tonic's own loop is not used, for three reasons: it does not pause when file descriptors run out, it
//! waits without limit for an incomplete HTTP/2 preface, and one silent client can delay a graceful
//! shutdown.

use std::{sync::Arc, time::Duration};

use tokio::{
    net::UnixStream,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

pub use super::connection::GrpcService;
use super::{
    backoff::{AcceptBackoff, out_of_descriptors},
    connection::{self, ConnectionContext},
    connection_tracker::ConnectionTracker,
    limits::Limits,
    listener::Listener,
    peer::{AllowedPeers, Peer, RejectionLog},
};
use crate::observe::metrics::Metrics;

/// How long to wait for aborted tasks. A task takes longer only if it blocks its thread.
const ABORT_TIMEOUT: Duration = Duration::from_secs(4);

/// How [`serve`] serves.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// How long calls in flight at shutdown may take.
    pub grace: Duration,
    /// What clients may use.
    pub limits: Limits,
    /// Counts connections, rejections and errors.
    pub metrics: Arc<Metrics>,
    /// Which peers are served.
    pub peers: AllowedPeers,
}

/// What was cut off because the shutdown grace ended; usually nothing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CutOff {
    /// Calls in flight that got no answer.
    pub calls: usize,
    /// Connections that were still open.
    pub connections: usize,
}

impl CutOff {
    /// Adds what another listener has cut off.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { calls: self.calls + other.calls, connections: self.connections + other.connections }
    }
}

/// Serves `service` on `listener` until `shutdown`, then drains.
///
/// Only `shutdown` ends it: after an error of accept it waits and tries again. Each request carries its
/// [`Peer`] in the extensions. A panic in one call is answered with `Internal` and affects no other call.
///
/// At `shutdown` it closes the listener, sends GOAWAY to every client, lets calls in flight finish
/// within the grace, and closes connections without a call after [`Limits::linger`]. When it returns,
/// none of its tasks is running, unless a call blocks its thread. Dropping the future aborts everything.
pub async fn serve<L, S>(
    mut listener: L,
    service: S,
    options: ServeOptions,
    shutdown: CancellationToken,
) -> CutOff
where
    L: Listener<Stream = UnixStream>,
    S: GrpcService,
{
    let ServeOptions { grace, limits, metrics, peers } = options;
    let drain = CancellationToken::new();
    let tracker = ConnectionTracker::new(limits.max_connections, drain.clone(), Arc::clone(&metrics));
    let context = ConnectionContext {
        abort: CancellationToken::new(),
        limits,
        malformed: Arc::default(),
        metrics: Arc::clone(&metrics),
        tasks: TaskTracker::new(),
    };
    let _abort_on_drop = context.abort.clone().drop_guard();
    let rejections = RejectionLog::default();
    let mut backoff = AcceptBackoff::new("kms");

    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok(stream) => {
                backoff.succeeded();
                stream
            }
            Err(error) => {
                metrics.server.accept_errors.inc();
                if out_of_descriptors(&error) {
                    tracker.shed_idle();
                }
                let delay = backoff.failed(&error);
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => break,
                    () = sleep(delay) => continue,
                }
            }
        };
        let peer = match Peer::of(&stream) {
            Ok(peer) if peers.allows(peer.uid) => peer,
            Ok(peer) => {
                metrics.server.connections_rejected.inc();
                rejections.log(&peer, &peers);
                continue;
            }
            Err(error) => {
                metrics.server.connections_rejected.inc();
                debug!(%error, "rejected a connection: the kernel does not report the uid of its process");
                continue;
            }
        };
        if let Some(slot) = tracker.admit(peer) {
            context.tasks.spawn(connection::serve(stream, service.clone(), slot, context.clone()));
        }
    }

    drop(listener);
    let (connections, calls) = tracker.count();
    info!(connections, calls, "no longer accepting connections; finishing calls in flight");
    drain.cancel();
    context.tasks.close();
    if timeout(grace, context.tasks.wait()).await.is_ok() {
        return CutOff::default();
    }
    let (connections, calls) = tracker.count();
    warn!(connections, calls, "the shutdown grace has ended; aborting the remaining calls and connections");
    context.abort.cancel();
    if timeout(ABORT_TIMEOUT, context.tasks.wait()).await.is_err() {
        warn!("some calls do not stop; exiting without waiting for them");
    }
    CutOff { calls, connections }
}
