//! Unix sockets: created with their final mode, never taken from a live process.
//!
//! [`bind()`] first checks what is at the path, under a lock on the parent directory:
//!
//! - nothing: it creates a socket;
//! - a socket on which no process listens: it is stale and is replaced;
//! - a socket on which a process listens: it is never taken; to take over from that process, the new
//!   socket waits beside the path (see [`super::takeover`]);
//! - anything else: it is left alone.

use std::{
    fs,
    io::{self, ErrorKind},
    os::{
        fd::OwnedFd,
        unix::{fs::MetadataExt, net::UnixListener as StdUnixListener},
    },
    path::{Path, PathBuf},
};

use kms_plugin::address::UnixAddress;
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType},
};
use tokio::{net::UnixListener, time::sleep};

use self::lock::{LOCK_RETRIES, LOCK_RETRY_DELAY};
pub use self::{bind::bind, error::BindError};
pub(super) use self::{
    bind::try_bind,
    lock::DirectoryLock,
    occupant::{Occupant, occupant},
};
use super::group::Group;

mod bind;
mod error;
mod lock;
mod occupant;
#[cfg(test)]
mod tests;

/// Mode and group of a socket's file, and what to do about a live listener. Abstract sockets have no
/// file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SocketOptions {
    /// Its group; `None` means the group of this process.
    pub group: Option<Group>,
    /// Its permission bits, at most 0777.
    pub mode: u32,
    /// If another process listens at the path: true waits beside it, false is an error.
    pub takeover: bool,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self { group: None, mode: 0o600, takeover: false }
    }
}

/// A socket that listens.
#[derive(Debug)]
pub struct BoundSocket {
    pub(super) file: SocketFile,
    pub(super) listener: StdUnixListener,
}

impl BoundSocket {
    /// Makes a socket of a listener that another process has bound. Its file is not removed at the end.
    pub(super) fn inherited(address: UnixAddress, listener: StdUnixListener) -> Self {
        Self { file: SocketFile { address, inode: None, waiting_at: None }, listener }
    }

    /// Returns the address that clients connect to.
    #[must_use]
    pub fn address(&self) -> &UnixAddress {
        &self.file.address
    }

    /// Returns the listener for [`serve`](super::accept::serve), and the file to remove at the end. Must
    /// be called inside a tokio runtime.
    ///
    /// # Errors
    /// Fails if the runtime does not accept the listener.
    pub fn into_listener(self) -> io::Result<(UnixListener, SocketFile)> {
        Ok((UnixListener::from_std(self.listener)?, self.file))
    }

    /// See [`SocketFile::remove_if_own`].
    ///
    /// # Errors
    /// See there.
    pub async fn remove_if_own(&self) -> io::Result<bool> {
        self.file.remove_if_own().await
    }
}

/// The file of a socket.
#[derive(Debug)]
pub struct SocketFile {
    pub(super) address: UnixAddress,
    /// The inode of the file that this process has created; `None` for abstract and inherited sockets.
    ///
    /// The open handle keeps the kernel from reusing the inode number, so that a comparison of numbers
    /// tells this file from any other.
    inode: Option<OwnedFd>,
    /// Where the file is while another process has the path.
    pub(super) waiting_at: Option<PathBuf>,
}

impl SocketFile {
    /// Returns the address that clients connect to.
    #[must_use]
    pub fn address(&self) -> &UnixAddress {
        &self.address
    }

    /// Removes the file if it is still the one that this process has created, and returns whether it
    /// did. Waits up to a second for the directory's lock.
    ///
    /// # Errors
    /// Fails if the directory cannot be locked or the file cannot be removed.
    pub async fn remove_if_own(&self) -> io::Result<bool> {
        let mut retries = 0;
        loop {
            match self.try_remove() {
                Err(error) if error.kind() == ErrorKind::WouldBlock && retries < LOCK_RETRIES => retries += 1,
                removed => return removed,
            }
            sleep(LOCK_RETRY_DELAY).await;
        }
    }

    /// Does what [`SocketFile::remove_if_own`] does, without waiting for the lock.
    pub(super) fn try_remove(&self) -> io::Result<bool> {
        let Some(path) = self.path() else { return Ok(false) };
        // Other processes bind under the same lock, so the path cannot change between the comparison and
        // the removal.
        let _lock = match DirectoryLock::try_acquire(parent(path)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            lock => lock?,
        };
        if !self.is_at(path)? {
            return Ok(false);
        }
        fs::remove_file(path)?;
        Ok(true)
    }

    /// Returns true if this process has created a file, even if it is not at the path any more.
    #[must_use]
    pub fn has_file(&self) -> bool {
        self.path().is_some()
    }

    /// Returns where this process has put the file; `None` for abstract and inherited sockets.
    pub(super) fn path(&self) -> Option<&Path> {
        self.inode.as_ref().and(self.waiting_at.as_deref().or(self.address.path()))
    }

    /// Returns true if the file at `path` is the one that this process has created.
    pub(super) fn is_at(&self, path: &Path) -> io::Result<bool> {
        let Some(inode) = &self.inode else { return Ok(false) };
        let found = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            found => found?,
        };
        let own = rustix::fs::fstat(inode)?;
        Ok((found.dev(), found.ino()) == (own.st_dev, own.st_ino))
    }
}

fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Returns the directory of a path.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}
