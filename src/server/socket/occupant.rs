//! What is at a socket's path, and which process listens there.

use std::{
    fs,
    io::ErrorKind,
    os::{fd::OwnedFd, unix::fs::FileTypeExt},
    path::Path,
};

use kms_plugin::address::UnixAddress;
use rustix::{io::Errno, net::SocketAddrUnix};
use tokio::net::UnixStream;

use super::{error::BindError, new_socket};
use crate::server::peer::Peer;

/// What is at a socket's path.
pub(in crate::server) enum Occupant {
    /// Nothing.
    Free,
    /// A socket on which a process listens, with the process if the kernel reports it.
    Live(Option<Peer>),
    /// A socket on which no process listens.
    Stale,
}

/// Returns what is at `path`.
///
/// # Errors
/// Fails if it is not a socket, or if a connection attempt gives no clear result.
pub(in crate::server) fn occupant(address: &UnixAddress, path: &Path) -> Result<Occupant, BindError> {
    let failed = |step, source| BindError::Unix { address: address.clone(), step, source };
    let file_type = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Occupant::Free),
        Err(error) => return Err(failed("check the path", error)),
        Ok(metadata) => metadata.file_type(),
    };
    if !file_type.is_socket() {
        let kind = if file_type.is_dir() {
            "a directory"
        } else if file_type.is_symlink() {
            "a symbolic link"
        } else if file_type.is_file() {
            "a regular file"
        } else {
            "a special file"
        };
        return Err(BindError::NotASocket { kind, path: path.into() });
    }
    SocketAddrUnix::new(path)
        .and_then(|name| try_connect(&name))
        .map_err(|error| failed("connect to the existing socket", error.into()))
}

/// Finds out by a connection attempt whether a process listens on a socket that exists.
pub(super) fn try_connect(name: &SocketAddrUnix) -> Result<Occupant, Errno> {
    let socket = new_socket()?;
    match rustix::net::connect(&socket, name) {
        Ok(()) => Ok(Occupant::Live(owner(socket))),
        // Its queue is full, so a process listens, even if it does not accept.
        Err(Errno::AGAIN) => Ok(Occupant::Live(None)),
        Err(Errno::CONNREFUSED) => Ok(Occupant::Stale),
        Err(error) => Err(error),
    }
}

/// Returns the process that called `listen` at the other end.
fn owner(socket: OwnedFd) -> Option<Peer> {
    // rustix requires a pid that is not 0, but the kernel reports 0 across pid namespaces. tokio handles
    // that, but only inside a runtime.
    tokio::runtime::Handle::try_current().ok()?;
    Peer::of(&UnixStream::from_std(socket.into()).ok()?).ok()
}
