//! The lock under which processes change what is at a socket's path.

use std::{io, os::fd::OwnedFd, path::Path, time::Duration};

use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};

/// How often to try again while another process holds the lock. transit-kms holds it for microseconds.
pub(super) const LOCK_RETRIES: u32 = 100;
/// The time between two attempts.
pub(super) const LOCK_RETRY_DELAY: Duration = Duration::from_millis(10);

/// An advisory lock on a directory; released on drop.
pub(in crate::server) struct DirectoryLock {
    _directory: OwnedFd,
}

impl DirectoryLock {
    /// Takes the lock without waiting.
    ///
    /// # Errors
    /// Returns `WouldBlock` if another process holds the lock. Try again later, and do not block the
    /// thread meanwhile: it may serve calls.
    pub(in crate::server) fn try_acquire(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory, flags, Mode::empty())?;
        loop {
            match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { _directory: directory }),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
