//! Why an address cannot be bound.

use std::{io, net::SocketAddr, path::PathBuf};

use kms_plugin::address::UnixAddress;

use crate::server::peer::{Peer, describe_owner};

/// Why nothing was bound. The message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The parent directory cannot be created or opened.
    #[error("cannot use the directory {} for the socket: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The socket's group cannot be changed.
    #[error(
        "cannot change the group of {address} to {gid}: {source}; run transit-kms as a member of that group, \
         or omit --socket-group"
    )]
    Group {
        /// The socket.
        address: UnixAddress,
        /// The number of the group.
        gid: u32,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Another process listens there.
    #[error(
        "{address} is in use: {} listens there; stop it, take over from it with --takeover, or listen \
         elsewhere with --listen",
        describe_owner(.owner.as_ref())
    )]
    InUse {
        /// The socket.
        address: UnixAddress,
        /// The process that listens, if the kernel reports it.
        owner: Option<Peer>,
    },
    /// Another process holds the lock on the directory.
    #[error(
        "another process holds a lock on the directory {}: find it with `fuser -v` or lslocks",
        path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The path is occupied by something that is not a socket.
    #[error(
        "{} is {kind}, not a socket, and is left alone: remove it, or listen elsewhere with --listen",
        path.display()
    )]
    NotASocket {
        /// The kind of file, with its article.
        kind: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// A TCP port cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A system call for a unix socket has failed.
    #[error("cannot listen on {address}: {step}: {source}")]
    Unix {
        /// The socket.
        address: UnixAddress,
        /// What failed.
        step: &'static str,
        /// The error of the operating system.
        source: io::Error,
    },
}
