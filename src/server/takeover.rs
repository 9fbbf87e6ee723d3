//! Decides which of several processes has the path of a socket.
//!
//! A successor listens under a name beside the path ([`super::socket::bind`] creates it there). Once it
//! is verified, it renames its socket over the path. A rename replaces in one step, so a client that
//! connects reaches one process or the other. The predecessor keeps its connections, including those in
//! its queue that it has not accepted yet.
//!
//! A superseded process keeps watching the path. If no process listens there any more, because the
//! successor was stopped or killed, it binds a new socket there: a listener whose name was replaced
//! cannot get a name again. Three rules keep several processes from undoing each other's work:
//!
//! - The owner of the path changes only under the lock of the directory, after a check under that lock.
//! - A live listener loses the path only to a process that waits and is verified. Each process waits
//!   only once, after its start, so the number of takeovers is finite.
//! - All other processes take the path only when no process listens there. Superseded processes go
//!   first, because they are verified. Waiting processes follow a second later.

use std::{convert::Infallible, fmt, fs, io, pin::pin, time::Duration};

use tokio::{
    net::UnixListener,
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    peer::describe_owner,
    socket::{
        self, BindError, BoundSocket, DirectoryLock, Occupant, SocketFile, SocketOptions, occupant, parent,
    },
};

#[cfg(test)]
mod tests;

/// How often a process that does not have the path checks whether another process listens there. Each
/// check opens a connection and closes it.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// For how many checks an unverified process leaves a free path to superseded processes, which are
/// verified.
const POLLS_BEFORE_UNVERIFIED_TAKEOVER: u32 = 4;
/// How often the process that has the path checks that it still has it.
const OWNER_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Where new connections to the path of a socket go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SocketState {
    /// To this process.
    Serving,
    /// To another process, which the text describes. This process serves its existing connections.
    Superseded(String),
    /// To no process, or that is unknown; the text says why. This process serves its existing
    /// connections.
    Unreachable(String),
    /// To a predecessor. This process listens beside the path.
    Waiting,
}

impl fmt::Display for SocketState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serving => f.write_str("serving"),
            Self::Superseded(by) => write!(f, "superseded: new connections go to {by}"),
            Self::Unreachable(why) => write!(f, "this process receives no new connections: {why}"),
            Self::Waiting => f.write_str("waiting to take the socket over"),
        }
    }
}

/// Moves the socket to its path, as soon as `verified` resolves or no process has listened at the path
/// for a while.
///
/// Returns at once if the socket is at its path. Otherwise it tries until it succeeds, and logs what
/// prevents it. Cancel-safe.
pub async fn take_over(socket: &mut BoundSocket, options: SocketOptions, verified: impl Future<Output = ()>) {
    let mut verified = pin!(verified);
    let mut is_verified = false;
    let mut has_warned = false;
    let mut free_polls = 0;
    loop {
        match try_take_over(socket, options, is_verified, free_polls).await {
            Ok(TakeoverStep::Done) => return,
            Ok(TakeoverStep::PathIsFree) => free_polls += 1,
            Ok(TakeoverStep::NotYet) => free_polls = 0,
            Err(error) if has_warned => debug!(%error, "the socket still cannot be taken over"),
            Err(error) => {
                warn!(%error, "the socket cannot be taken over; transit-kms tries again");
                has_warned = true;
            }
        }
        tokio::select! {
            () = &mut verified, if !is_verified => is_verified = true,
            () = sleep(POLL_INTERVAL) => {}
        }
    }
}

/// The result of an attempt to take over.
enum TakeoverStep {
    /// The socket is at its path.
    Done,
    /// Another process has the path, or the lock.
    NotYet,
    /// No process listens at the path, but a superseded process may take it first.
    PathIsFree,
}

/// Moves the socket to its path, if the rules allow it now.
async fn try_take_over(
    socket: &mut BoundSocket,
    options: SocketOptions,
    is_verified: bool,
    free_polls: u32,
) -> Result<TakeoverStep, BindError> {
    let file = &mut socket.file;
    let (Some(path), Some(waiting_at)) = (file.address.path(), file.waiting_at.as_deref()) else {
        return Ok(TakeoverStep::Done);
    };
    let failed = |step| {
        let address = file.address.clone();
        move |source: io::Error| BindError::Unix { address, step, source }
    };
    let lock = match DirectoryLock::try_acquire(parent(path)) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(TakeoverStep::NotYet),
        lock => lock.map_err(failed("lock the directory"))?,
    };
    let predecessor = occupant(&file.address, path)?;
    match predecessor {
        _ if is_verified => {}
        Occupant::Live(_) => return Ok(TakeoverStep::NotYet),
        Occupant::Free | Occupant::Stale if free_polls < POLLS_BEFORE_UNVERIFIED_TAKEOVER => {
            return Ok(TakeoverStep::PathIsFree);
        }
        Occupant::Free | Occupant::Stale => {}
    }
    if !file.is_at(waiting_at).map_err(failed("check the socket beside the path"))? {
        drop(lock);
        warn!(socket = %file.address, "the socket beside the path was removed; creating another");
        *socket = socket::bind(&file.address.clone(), options).await?;
        return Ok(if socket.file.waiting_at.is_none() { TakeoverStep::Done } else { TakeoverStep::NotYet });
    }
    fs::rename(waiting_at, path).map_err(failed("rename"))?;
    file.waiting_at = None;
    let socket = &file.address;
    match predecessor {
        Occupant::Live(owner) => {
            info!(%socket, "took the socket over from {}", describe_owner(owner.as_ref()));
        }
        Occupant::Free | Occupant::Stale => {
            info!(%socket, "took the socket over: its predecessor is gone");
        }
    }
    Ok(TakeoverStep::Done)
}

/// What [`watch()`] needs besides the file.
#[derive(Debug)]
pub struct WatchContext<'a> {
    /// How a new socket is created.
    pub options: SocketOptions,
    /// Receives a new listener.
    pub listeners: mpsc::Sender<UnixListener>,
    /// Receives each change.
    pub state: &'a watch::Sender<SocketState>,
    /// Once it is cancelled, the path is left to other processes.
    pub stopping: &'a CancellationToken,
}

/// Watches which process has the path, publishes each change, and takes the path back when no process
/// listens there. Never returns. Cancel-safe.
///
/// Inherited and abstract sockets are not watched: this process does not own their names.
pub async fn watch(file: &mut SocketFile, context: &WatchContext<'_>) -> Infallible {
    if !file.has_file() {
        return std::future::pending().await;
    }
    loop {
        let pause = match path_state(file) {
            // A check that fails changes nothing.
            None => POLL_INTERVAL,
            Some(found) => {
                let found = match found {
                    SocketState::Unreachable(why) if !context.stopping.is_cancelled() => {
                        take_back(file, context).unwrap_or(SocketState::Unreachable(why))
                    }
                    found => found,
                };
                let pause = if found == SocketState::Serving { OWNER_CHECK_INTERVAL } else { POLL_INTERVAL };
                publish(file, context.state, found);
                pause
            }
        };
        sleep(pause).await;
    }
}

/// Checks which process has the path. Returns `None` if that cannot be determined.
fn path_state(file: &SocketFile) -> Option<SocketState> {
    let path = file.path()?;
    if file.is_at(path).ok()? {
        return Some(SocketState::Serving);
    }
    Some(match occupant(file.address(), path) {
        Ok(Occupant::Live(owner)) => SocketState::Superseded(describe_owner(owner.as_ref())),
        Ok(Occupant::Free | Occupant::Stale) => {
            SocketState::Unreachable(format!("no process listens at {}", file.address()))
        }
        Err(error) => SocketState::Unreachable(error.to_string()),
    })
}

/// Binds a new socket at the path, if no process listens there. Returns `None` if another process was
/// faster or holds the lock.
///
/// It must not await: the caller has checked `stopping`, and nothing may run between that check and the
/// bind.
fn take_back(file: &mut SocketFile, context: &WatchContext<'_>) -> Option<SocketState> {
    let options = SocketOptions { takeover: false, ..context.options };
    // This checks the path again, under the lock.
    let BoundSocket { file: new_file, listener } = match socket::try_bind(file.address(), options) {
        Ok(socket) => socket,
        Err(BindError::InUse { .. } | BindError::Locked { .. }) => return None,
        Err(error) => return Some(SocketState::Unreachable(error.to_string())),
    };
    let served = UnixListener::from_std(listener).map_err(|error| error.to_string());
    if let Err(why) =
        served.and_then(|listener| context.listeners.try_send(listener).map_err(|error| error.to_string()))
    {
        drop(new_file.try_remove());
        return Some(SocketState::Unreachable(format!("the new listener cannot be served: {why}")));
    }
    *file = new_file;
    Some(SocketState::Serving)
}

/// Publishes a state, and logs it if it has changed.
fn publish(file: &SocketFile, state: &watch::Sender<SocketState>, found: SocketState) {
    let socket = file.address();
    let before = state.send_replace(found.clone());
    if before == found {
        return;
    }
    match found {
        SocketState::Superseded(by) => info!(
            %socket,
            "superseded: new connections go to {by}; existing connections are served until SIGTERM"
        ),
        SocketState::Unreachable(why) => {
            warn!(%socket, "this process receives no new connections: {why}");
        }
        SocketState::Serving => {
            info!(%socket, "no process listened at the socket's path: took it back");
        }
        SocketState::Waiting => {}
    }
}

/// Describes the process that has the path now.
#[must_use]
pub fn current_owner(file: &SocketFile) -> String {
    match path_state(file) {
        Some(SocketState::Superseded(by)) => by,
        _ => "no process".into(),
    }
}
