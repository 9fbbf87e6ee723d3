//! Creates a listening unix socket.

use std::{
    fs,
    io::{self, ErrorKind},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, FileTypeExt},
    },
    path::Path,
    sync::Mutex,
};

use kms_plugin::address::UnixAddress;
use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags},
    io::Errno,
    net::SocketAddrUnix,
};
use tokio::time::sleep;
use tracing::{debug, info};

use super::{
    BoundSocket, SocketFile, SocketOptions,
    error::BindError,
    lock::{DirectoryLock, LOCK_RETRIES, LOCK_RETRY_DELAY},
    new_socket,
    occupant::{Occupant, occupant, try_connect},
    parent,
};
use crate::server::peer::describe_owner;

/// Connections that may wait for accept. The kernel reduces it to `net.core.somaxconn`.
const BACKLOG: i32 = 1024;
/// The mode of a directory that transit-kms creates. All users may enter it: it holds no secrets, the
/// socket has a mode of its own, and an API server that does not run as root must reach the socket.
const DIRECTORY_MODE: u32 = 0o755;
/// The prefix of a socket's name while it waits for the path; eight hex digits follow. It is short
/// because the kernel limits the length of a socket's path.
const WAITING_PREFIX: &str = ".tkms-";

/// Creates a listening socket. It is non-blocking and closed on exec.
///
/// The socket has its final mode from the moment it exists, and its final group before the first
/// connection is possible. For this, the umask of the process changes for a moment; meanwhile, files
/// that other threads create can only lose permissions of group and others. If another process binds in
/// the same directory, it waits up to a second.
///
/// If another process listens at the path and `options` ask for a takeover, the socket gets a name
/// beside the path, with the same mode and group, and waits there for
/// [`take_over`](crate::server::takeover::take_over).
///
/// # Errors
/// See [`BindError`]. After an error, the path is as it was before.
pub async fn bind(address: &UnixAddress, options: SocketOptions) -> Result<BoundSocket, BindError> {
    let mut retries = 0;
    loop {
        match try_bind(address, options) {
            Err(BindError::Locked { .. }) if retries < LOCK_RETRIES => retries += 1,
            bound => return bound,
        }
        sleep(LOCK_RETRY_DELAY).await;
    }
}

/// Does what [`bind()`] does, without waiting for the lock.
pub(in crate::server) fn try_bind(
    address: &UnixAddress,
    options: SocketOptions,
) -> Result<BoundSocket, BindError> {
    let failed =
        |step| move |error: Errno| BindError::Unix { address: address.clone(), step, source: error.into() };
    let socket = new_socket().map_err(failed("socket"))?;
    let file = match address {
        UnixAddress::Abstract(name) => {
            let name = SocketAddrUnix::new_abstract_name(name.as_bytes()).map_err(failed("name"))?;
            match rustix::net::bind(&socket, &name) {
                Err(Errno::ADDRINUSE) => {
                    let owner = match try_connect(&name) {
                        Ok(Occupant::Live(owner)) => owner,
                        _ => None,
                    };
                    return Err(BindError::InUse { address: address.clone(), owner });
                }
                bound => bound.map_err(failed("bind"))?,
            }
            rustix::net::listen(&socket, BACKLOG).map_err(failed("listen"))?;
            SocketFile { address: address.clone(), inode: None, waiting_at: None }
        }
        UnixAddress::Path(path) => {
            let directory = parent(path);
            make_directory(directory)
                .map_err(|source| BindError::Directory { path: directory.into(), source })?;
            let _lock = DirectoryLock::try_acquire(directory).map_err(|source| match source.kind() {
                ErrorKind::WouldBlock => BindError::Locked { path: directory.into() },
                _ => BindError::Directory { path: directory.into(), source },
            })?;
            let waiting_at = match remove_stale_socket(address, path) {
                Err(BindError::InUse { owner, .. }) if options.takeover => {
                    info!(
                        socket = %address,
                        "{} listens there; waiting beside its socket until the first verification succeeds",
                        describe_owner(owner.as_ref())
                    );
                    remove_abandoned_waiting_sockets(directory);
                    Some(directory.join(format!("{WAITING_PREFIX}{:08x}", rand::random::<u32>())))
                }
                removed => removed.map(|()| None)?,
            };
            let file_path = waiting_at.as_deref().unwrap_or(path);
            let name = SocketAddrUnix::new(file_path).map_err(failed("name"))?;
            bind_with_mode(&socket, &name, options.mode).map_err(failed("bind"))?;
            match set_group_and_listen(&socket, address, file_path, options) {
                Ok(inode) => SocketFile { address: address.clone(), inode: Some(inode), waiting_at },
                Err(error) => {
                    // The lock is still held, so this is the socket that was just created.
                    drop(fs::remove_file(file_path));
                    return Err(error);
                }
            }
        }
    };
    Ok(BoundSocket { file, listener: socket.into() })
}

/// Makes the path free, unless a process listens there or it is not a socket.
fn remove_stale_socket(address: &UnixAddress, path: &Path) -> Result<(), BindError> {
    match occupant(address, path)? {
        Occupant::Live(owner) => Err(BindError::InUse { address: address.clone(), owner }),
        Occupant::Stale => {
            info!(path = %path.display(), "no process listens on the existing socket; replacing it");
            fs::remove_file(path).map_err(|source| {
                let step = "remove the stale socket";
                BindError::Unix { address: address.clone(), step, source }
            })
        }
        Occupant::Free => Ok(()),
    }
}

/// Removes the sockets of processes that were killed while they waited. The caller holds the lock.
fn remove_abandoned_waiting_sockets(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let is_waiting_name =
            entry.file_name().to_str().and_then(|name| name.strip_prefix(WAITING_PREFIX)).is_some_and(
                |digits| digits.len() == 8 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()),
            );
        let path = entry.path();
        // A process calls bind and listen under the same lock. So a socket without a listener is
        // abandoned, and not one that is being created.
        if is_waiting_name
            && entry.file_type().is_ok_and(|kind| kind.is_socket())
            && SocketAddrUnix::new(&path).is_ok_and(|name| matches!(try_connect(&name), Ok(Occupant::Stale)))
        {
            debug!(path = %path.display(), "removing the socket of a process that was killed while it waited");
            drop(fs::remove_file(path));
        }
    }
}

/// Binds the socket so that its file has `mode` from the moment it exists.
pub(super) fn bind_with_mode(socket: &OwnedFd, name: &SocketAddrUnix, mode: u32) -> Result<(), Errno> {
    /// The umask belongs to the whole process, so only one thread at a time may change it.
    static UMASK: Mutex<()> = Mutex::new(());
    let _one_at_a_time = UMASK.lock();
    // Linux creates the file with the mode of the unbound socket, minus the umask. So fchmod removes the
    // bits that `mode` does not have, and the umask must not remove any that it has. Where fchmod on an
    // unbound socket is not supported, the umask alone keeps group and others out. The umask leaves the
    // owner's bits alone, because other threads may be creating files at this moment.
    let _ = rustix::fs::fchmod(socket, Mode::from_raw_mode(mode));
    let before = rustix::process::umask(Mode::from_raw_mode(!mode & 0o077));
    let bound = rustix::net::bind(socket, name);
    rustix::process::umask(before);
    bound
}

/// Sets group and mode, then listens. The order matters: clients can connect from listen on.
///
/// Returns a handle of the socket's inode.
pub(super) fn set_group_and_listen(
    socket: &OwnedFd,
    address: &UnixAddress,
    path: &Path,
    options: SocketOptions,
) -> Result<OwnedFd, BindError> {
    let failed =
        |step| move |error: Errno| BindError::Unix { address: address.clone(), step, source: error.into() };
    let inode = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("open the new socket"))?;
    if let Some(group) = options.group {
        rustix::fs::chownat(&inode, "", None, Some(Gid::from_raw(group.gid())), AtFlags::EMPTY_PATH)
            .map_err(|error| BindError::Group {
                address: address.clone(),
                gid: group.gid(),
                source: error.into(),
            })?;
    }
    let created = rustix::fs::fstat(&inode).map_err(failed("check the new socket"))?;
    let wanted = Mode::from_raw_mode(options.mode);
    if Mode::from_raw_mode(created.st_mode) != wanted && FileType::from_raw_mode(created.st_mode).is_socket()
    {
        rustix::fs::chmodat(CWD, path, wanted, AtFlags::empty()).map_err(failed("chmod"))?;
    }
    rustix::net::listen(socket, BACKLOG).map_err(failed("listen"))?;
    Ok(inode)
}

fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    debug!(path = %directory.display(), "creating the socket's directory");
    fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory)
}
