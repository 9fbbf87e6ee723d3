//! The credentials of a client, and the check whether it may connect.

use std::{
    collections::{BTreeSet, HashSet},
    hash::Hash,
    io,
    sync::Mutex,
};

use tokio::net::UnixStream;
use tracing::{debug, warn};

/// Bounds the memory of [`FirstOccurrences`]. Further values get no warning of their own.
const MAX_REMEMBERED: usize = 64;

/// The process at the other end of a connection, as the kernel reports it.
///
/// Every request on the connection has it in its extensions.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Peer {
    /// Its effective gid when it connected.
    pub gid: u32,
    /// Its pid. `None` if it is in a pid namespace that this process cannot see into.
    pub pid: Option<i32>,
    /// Its effective uid when it connected.
    pub uid: u32,
}

impl Peer {
    /// Asks the kernel.
    ///
    /// # Errors
    /// Returns the error of `getsockopt(SO_PEERCRED)`.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        Ok(Self {
            gid: credentials.gid(),
            // The kernel reports 0 for a process in a foreign pid namespace.
            pid: credentials.pid().filter(|&pid| pid != 0),
            uid: credentials.uid(),
        })
    }
}

/// Describes the process that listens on a socket, for messages.
pub(super) fn describe_owner(owner: Option<&Peer>) -> String {
    match owner {
        Some(Peer { uid, pid: Some(pid), .. }) => format!("the process with pid {pid} and uid {uid}"),
        Some(Peer { uid, pid: None, .. }) => {
            format!("a process with uid {uid} in another pid namespace")
        }
        None => "another process".into(),
    }
}

/// The uids that may connect.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AllowedPeers(BTreeSet<u32>);

impl AllowedPeers {
    /// Allows these uids. An empty list means the default.
    #[must_use]
    pub fn new(uids: impl IntoIterator<Item = u32>) -> Self {
        let uids: BTreeSet<u32> = uids.into_iter().collect();
        if uids.is_empty() { Self::default() } else { Self(uids) }
    }

    /// Returns true if this uid may connect.
    #[must_use]
    pub fn allows(&self, uid: u32) -> bool {
        self.0.contains(&uid)
    }

    /// Returns the value of `--allow-uid` that allows this uid and all that are allowed now.
    fn flag_value_with(&self, uid: u32) -> String {
        let uids: BTreeSet<u32> = self.0.iter().copied().chain([uid]).collect();
        uids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
    }
}

impl Default for AllowedPeers {
    /// Root, which kube-apiserver usually runs as, and the uid of this process.
    fn default() -> Self {
        Self(BTreeSet::from([0, rustix::process::geteuid().as_raw()]))
    }
}

/// Logs rejected connections: a warning for the first of a uid, debug lines for the others.
#[derive(Debug, Default)]
pub(super) struct RejectionLog(FirstOccurrences<u32>);

impl RejectionLog {
    pub(super) fn log(&self, peer: &Peer, allowed: &AllowedPeers) {
        let (uid, pid) = (peer.uid, peer.pid);
        if self.0.is_first(uid) {
            let uids = allowed.flag_value_with(uid);
            warn!(
                uid,
                pid,
                "rejected a connection: uid {uid} is not allowed; --allow-uid {uids} or TRANSIT_KMS_ALLOW_UID={uids} \
                 would allow it"
            );
        } else {
            debug!(uid, pid, "rejected another connection of uid {uid}");
        }
    }
}

/// Remembers which values have occurred, so that a warning is logged once for each.
#[derive(Debug)]
pub(super) struct FirstOccurrences<T>(Mutex<HashSet<T>>);

impl<T> Default for FirstOccurrences<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Eq + Hash> FirstOccurrences<T> {
    /// Returns true the first time that it gets this value, for up to [`MAX_REMEMBERED`] values.
    pub(super) fn is_first(&self, value: T) -> bool {
        let Ok(mut seen) = self.0.lock() else { return false };
        seen.len() < MAX_REMEMBERED && seen.insert(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_root_and_the_own_uid() {
        let own = rustix::process::geteuid().as_raw();
        let peers = AllowedPeers::new([]);
        assert!(peers.allows(0) && peers.allows(own));
        assert!(!peers.allows(own + 4242));
    }

    #[test]
    fn named_uids_replace_the_default() {
        let peers = AllowedPeers::new([1000, 1001]);
        assert!(peers.allows(1000) && peers.allows(1001));
        assert!(!peers.allows(0));
        assert_eq!(peers.flag_value_with(7), "7,1000,1001");
    }

    #[test]
    fn each_uid_gets_one_warning_and_memory_is_bounded() {
        let log = FirstOccurrences::default();
        assert!(log.is_first(7));
        assert!(!log.is_first(7));
        for uid in 100..1000 {
            log.is_first(uid);
        }
        assert!(!log.is_first(5000));
        assert_eq!(log.0.lock().unwrap().len(), MAX_REMEMBERED);
    }

    #[tokio::test]
    async fn the_kernel_reports_the_credentials() {
        let (stream, _other_end) = UnixStream::pair().unwrap();
        let peer = Peer::of(&stream).unwrap();
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.pid, i32::try_from(std::process::id()).ok());
    }
}
