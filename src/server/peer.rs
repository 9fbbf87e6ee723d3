//! Who is at the other end, and whether it may be.

use std::{
    collections::{BTreeSet, HashSet},
    hash::Hash,
    io,
    sync::Mutex,
};

use tokio::net::UnixStream;
use tracing::{debug, warn};

/// After this many a further one is refused without a warning of its own.
const REMEMBERED: usize = 64;

/// The process that made a connection, as the kernel tells it.
///
/// Every request on the connection carries it in its extensions.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Peer {
    /// Its effective gid when it connected.
    pub gid: u32,
    /// Its pid, unless it lives in a pid namespace that we cannot see into.
    pub pid: Option<i32>,
    /// Its effective uid when it connected.
    pub uid: u32,
}

impl Peer {
    /// Asks the kernel.
    ///
    /// # Errors
    /// Those of `getsockopt(SO_PEERCRED)`.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        Ok(Self {
            gid: credentials.gid(),
            // The kernel writes 0 for a process of a foreign pid namespace.
            pid: credentials.pid().filter(|&pid| pid != 0),
            uid: credentials.uid(),
        })
    }
}

/// The uids that are served.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AllowedPeers(BTreeSet<u32>);

impl AllowedPeers {
    /// Those uids; none at all means the default.
    #[must_use]
    pub fn new(uids: impl IntoIterator<Item = u32>) -> Self {
        let uids: BTreeSet<u32> = uids.into_iter().collect();
        if uids.is_empty() { Self::default() } else { Self(uids) }
    }

    /// Whether this uid is served.
    #[must_use]
    pub fn allows(&self, uid: u32) -> bool {
        self.0.contains(&uid)
    }
}

impl Default for AllowedPeers {
    /// Root, as which kube-apiserver usually runs, and our own uid.
    fn default() -> Self {
        Self(BTreeSet::from([0, rustix::process::geteuid().as_raw()]))
    }
}

/// Logs refusals: a warning for the first of a uid, debug for the others.
#[derive(Debug, Default)]
pub(super) struct RefusalLog(FirstTimes<u32>);

/// What has been warned of; a bounded number of things.
#[derive(Debug)]
pub(super) struct FirstTimes<T>(Mutex<HashSet<T>>);

impl<T> Default for FirstTimes<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Eq + Hash> FirstTimes<T> {
    pub(super) fn is_first(&self, one: T) -> bool {
        let Ok(mut warned) = self.0.lock() else { return false };
        warned.len() < REMEMBERED && warned.insert(one)
    }
}

impl RefusalLog {
    pub(super) fn refused(&self, peer: &Peer) {
        let (uid, pid) = (peer.uid, peer.pid);
        if self.0.is_first(uid) {
            warn!(
                uid,
                pid, "refused a connection: its uid may not connect; --allow-uid {uid} would allow it"
            );
        } else {
            debug!(uid, pid, "refused a connection again; --allow-uid {uid} would allow it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_root_and_ourselves() {
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
    }

    #[test]
    fn a_uid_is_warned_of_once_and_memory_is_bounded() {
        let log = FirstTimes::default();
        assert!(log.is_first(7));
        assert!(!log.is_first(7));
        for uid in 100..1000 {
            log.is_first(uid);
        }
        assert!(!log.is_first(5000));
        assert_eq!(log.0.lock().unwrap().len(), REMEMBERED);
    }

    #[tokio::test]
    async fn the_kernel_names_us() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.pid, i32::try_from(std::process::id()).ok());
    }
}
