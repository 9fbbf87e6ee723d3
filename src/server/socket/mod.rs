//! Binding a unix socket so that nobody is robbed and nobody gets in too early.
//!
//! Under a lock on the parent directory: what is at the path is looked at
//! first. Nothing there: bind. A socket that nobody listens on is stale and
//! is replaced. A socket that somebody listens on is never taken. Whatever is
//! not a socket is left alone. Where a live listener is to be succeeded, ours
//! waits beside it: see [`super::takeover`].

use std::{
    fs,
    io::{self, ErrorKind},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, FileTypeExt, MetadataExt},
            net::UnixListener as StdUnixListener,
        },
    },
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use kms_plugin::address::UnixAddress;
use rustix::{
    fs::{AtFlags, CWD, FileType, FlockOperation, Gid, Mode, OFlags},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use tokio::{
    net::{UnixListener, UnixStream},
    time::sleep,
};
use tracing::{debug, info};

use super::{group::Group, peer::Peer};

/// Connections that wait for accept; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 1024;
/// A directory that we make may be entered by all: secrets are not kept there,
/// the socket has a mode of its own, and an API server that is not root must
/// be able to reach it.
const DIRECTORY_MODE: u32 = 0o755;
/// Another of us holds the lock for microseconds; whoever holds it longer is
/// not one of us.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// What a socket's name begins with while it waits for the path; eight hex digits follow. Short,
/// because the name has to fit where the path's own does.
const BESIDE: &str = ".tkms-";

/// Who may open the socket's file, and whose place it may have. Abstract sockets have no file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SocketOptions {
    /// Its group; ours if `None`.
    pub group: Option<Group>,
    /// Permission bits, at most 0777.
    pub mode: u32,
    /// Whether to wait beside a live listener instead of refusing to start.
    pub takeover: bool,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self { group: None, mode: 0o600, takeover: false }
    }
}

/// Why nothing was bound; the message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The parent directory cannot be made or opened.
    #[error("cannot use the directory {} for the socket: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The group cannot be given to the socket.
    #[error(
        "cannot give {address} to group {gid}: {source}; run as a member of that group, or leave \
         --socket-group out"
    )]
    Group {
        /// The socket.
        address: UnixAddress,
        /// The group.
        gid: u32,
        /// Why.
        source: io::Error,
    },
    /// Somebody listens there.
    #[error(
        "{address} is in use: {} listens there; stop it, take its place with --takeover, or listen \
         elsewhere with --listen",
        named(.owner.as_ref())
    )]
    InUse {
        /// The socket.
        address: UnixAddress,
        /// Who bound it, if the kernel tells.
        owner: Option<Peer>,
    },
    /// Somebody keeps the lock on the directory.
    #[error(
        "another process keeps a lock on the directory {}: find it with `fuser -v` or lslocks",
        path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// Neither nothing nor a socket.
    #[error(
        "{} is {kind}, not a socket, and is left alone: remove it, or listen elsewhere with --listen",
        path.display()
    )]
    NotASocket {
        /// What it is.
        kind: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// A TCP port cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Tcp {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// One step failed.
    #[error("cannot listen on {address}: {step}: {source}")]
    Unix {
        /// The socket.
        address: UnixAddress,
        /// Which.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
}

pub(super) fn named(owner: Option<&Peer>) -> String {
    match owner {
        Some(Peer { uid, pid: Some(pid), .. }) => format!("the process with pid {pid} and uid {uid}"),
        Some(Peer { uid, pid: None, .. }) => {
            format!("a process with uid {uid} in another pid namespace")
        }
        None => "another process".into(),
    }
}

/// A socket that listens.
#[derive(Debug)]
pub struct BoundSocket {
    pub(super) file: SocketFile,
    pub(super) listener: StdUnixListener,
}

impl BoundSocket {
    /// One that somebody else has bound: its file is not ours to remove.
    pub(super) fn inherited(address: UnixAddress, listener: StdUnixListener) -> Self {
        Self { file: SocketFile { address, beside: None, pinned: None }, listener }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &UnixAddress {
        &self.file.address
    }

    /// The listener for [`super::accept::serve`], and the file to remove at the
    /// end. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// Fails if the runtime does not take the listener.
    pub fn into_listener(self) -> io::Result<(UnixListener, SocketFile)> {
        Ok((UnixListener::from_std(self.listener)?, self.file))
    }

    /// See [`SocketFile::remove_if_ours`].
    ///
    /// # Errors
    /// As there.
    pub async fn remove_if_ours(&self) -> io::Result<bool> {
        self.file.remove_if_ours().await
    }
}

/// The file of a socket that we bound.
#[derive(Debug)]
pub struct SocketFile {
    pub(super) address: UnixAddress,
    /// Where it is while the path is still another's.
    pub(super) beside: Option<PathBuf>,
    /// Keeps the inode alive, so that its number is not given to another file
    /// and a look at the path always tells ours from another.
    pinned: Option<OwnedFd>,
}

impl SocketFile {
    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &UnixAddress {
        &self.address
    }

    /// Removes the file if it is still the one that this process made; tells whether it did.
    /// Waits at most a second for the directory's lock.
    ///
    /// # Errors
    /// Fails if the directory cannot be locked or the file not be removed.
    pub async fn remove_if_ours(&self) -> io::Result<bool> {
        let mut tries = 0;
        loop {
            match self.remove_at_once() {
                Err(error) if error.kind() == ErrorKind::WouldBlock && tries < LOCK_TRIES => tries += 1,
                removed => return removed,
            }
            sleep(LOCK_PAUSE).await;
        }
    }

    /// As [`SocketFile::remove_if_ours`], without waiting for the lock.
    pub(super) fn remove_at_once(&self) -> io::Result<bool> {
        let Some(path) = self.place() else { return Ok(false) };
        // Others look and bind under the same lock, so the path cannot change between the look
        // and the unlink.
        let _lock = match Lock::at_once(parent(path)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            lock => lock?,
        };
        if !self.is_at(path)? {
            return Ok(false);
        }
        fs::remove_file(path)?;
        Ok(true)
    }

    /// Whether it has a file that we made, wherever that is by now.
    #[must_use]
    pub fn has_file(&self) -> bool {
        self.place().is_some()
    }

    /// Where it was put last; an abstract or inherited one has no place of ours.
    pub(super) fn place(&self) -> Option<&Path> {
        self.pinned.as_ref().and(self.beside.as_deref().or(self.address.path()))
    }

    /// Whether what is at `path` is the one that we made.
    pub(super) fn is_at(&self, path: &Path) -> io::Result<bool> {
        let Some(pinned) = &self.pinned else { return Ok(false) };
        let there = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            there => there?,
        };
        let ours = rustix::fs::fstat(pinned)?;
        Ok((there.dev(), there.ino()) == (ours.st_dev, ours.st_ino))
    }
}

/// Binds and listens. Sockets are non-blocking and closed on exec.
///
/// The socket has its final mode from the moment it exists, and its final
/// group before the first connection is possible. The umask of the process is
/// changed for that moment; it only ever takes rights of group and others
/// away from what other threads create meanwhile. Waits at most a second for
/// another process that is binding in the same directory.
///
/// If another process listens there and `options` allow it, the socket gets a name beside the path,
/// with the same mode and group, and waits there for [`super::takeover::take_over`].
///
/// # Errors
/// See [`BindError`]. What was at the path is then still there.
pub async fn bind(address: &UnixAddress, options: SocketOptions) -> Result<BoundSocket, BindError> {
    let mut tries = 0;
    loop {
        match bind_at_once(address, options) {
            Err(BindError::Locked { .. }) if tries < LOCK_TRIES => tries += 1,
            bound => return bound,
        }
        // Never `thread::sleep`: calls may be served on this thread.
        sleep(LOCK_PAUSE).await;
    }
}

/// As [`bind`], without waiting for the lock.
pub(super) fn bind_at_once(address: &UnixAddress, options: SocketOptions) -> Result<BoundSocket, BindError> {
    let failed =
        |step| move |error: Errno| BindError::Unix { address: address.clone(), step, source: error.into() };
    let socket = new_socket().map_err(failed("socket"))?;
    let file = match address {
        UnixAddress::Abstract(name) => {
            let name = SocketAddrUnix::new_abstract_name(name.as_bytes()).map_err(failed("name"))?;
            match rustix::net::bind(&socket, &name) {
                Err(Errno::ADDRINUSE) => {
                    let owner = match look(&name) {
                        Ok(Occupant::Live(owner)) => owner,
                        _ => None,
                    };
                    return Err(BindError::InUse { address: address.clone(), owner });
                }
                bound => bound.map_err(failed("bind"))?,
            }
            rustix::net::listen(&socket, BACKLOG).map_err(failed("listen"))?;
            SocketFile { address: address.clone(), beside: None, pinned: None }
        }
        UnixAddress::Path(path) => {
            let directory = parent(path);
            make_directory(directory)
                .map_err(|source| BindError::Directory { path: directory.into(), source })?;
            let _lock = Lock::at_once(directory).map_err(|source| match source.kind() {
                ErrorKind::WouldBlock => BindError::Locked { path: directory.into() },
                _ => BindError::Directory { path: directory.into(), source },
            })?;
            let beside = match clear_the_way(address, path) {
                Err(BindError::InUse { owner, .. }) if options.takeover => {
                    info!(
                        socket = %address,
                        "{} listens there; waiting beside it until a first probe is good",
                        named(owner.as_ref())
                    );
                    sweep(directory);
                    Some(directory.join(format!("{BESIDE}{:08x}", rand::random::<u32>())))
                }
                cleared => cleared.map(|()| None)?,
            };
            let place = beside.as_deref().unwrap_or(path);
            let name = SocketAddrUnix::new(place).map_err(failed("name"))?;
            bind_as(&socket, &name, options.mode).map_err(failed("bind"))?;
            match settle(&socket, address, place, options) {
                Ok(pinned) => SocketFile { address: address.clone(), beside, pinned: Some(pinned) },
                Err(error) => {
                    // Still under the lock: what is at the path is what we just made.
                    drop(fs::remove_file(place));
                    return Err(error);
                }
            }
        }
    };
    Ok(BoundSocket { file, listener: socket.into() })
}

/// Makes sure that nothing is at `path`, or says why something stays.
fn clear_the_way(address: &UnixAddress, path: &Path) -> Result<(), BindError> {
    match occupant(address, path)? {
        Occupant::Live(owner) => Err(BindError::InUse { address: address.clone(), owner }),
        Occupant::Nobody => {
            info!(path = %path.display(), "nobody listens on the socket that is there; replacing it");
            fs::remove_file(path).map_err(|source| {
                let step = "remove the stale socket";
                BindError::Unix { address: address.clone(), step, source }
            })
        }
        Occupant::Nothing => Ok(()),
    }
}

/// What is at `path`.
///
/// # Errors
/// Something that is not a socket, or that does not let itself be asked.
pub(super) fn occupant(address: &UnixAddress, path: &Path) -> Result<Occupant, BindError> {
    let failed = |step, source| BindError::Unix { address: address.clone(), step, source };
    let kind = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Occupant::Nothing),
        Err(error) => return Err(failed("look at the path", error)),
        Ok(there) => there.file_type(),
    };
    if !kind.is_socket() {
        let kind = if kind.is_dir() {
            "a directory"
        } else if kind.is_symlink() {
            "a symbolic link"
        } else if kind.is_file() {
            "a regular file"
        } else {
            "a special file"
        };
        return Err(BindError::NotASocket { kind, path: path.into() });
    }
    SocketAddrUnix::new(path)
        .and_then(|name| look(&name))
        .map_err(|error| failed("ask the socket that is there whether anybody listens", error.into()))
}

/// Who has a path.
pub(super) enum Occupant {
    /// Somebody listens; who, if the kernel tells.
    Live(Option<Peer>),
    /// A socket on which nobody listens.
    Nobody,
    /// It is free.
    Nothing,
}

/// Removes what killed processes left behind when they waited; the caller holds the lock.
fn sweep(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let waited =
            entry.file_name().to_str().and_then(|name| name.strip_prefix(BESIDE)).is_some_and(|digits| {
                digits.len() == 8 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
            });
        let path = entry.path();
        // Who binds listens before it lets go of the lock: nobody is between the two.
        if waited
            && entry.file_type().is_ok_and(|kind| kind.is_socket())
            && SocketAddrUnix::new(&path).is_ok_and(|name| matches!(look(&name), Ok(Occupant::Nobody)))
        {
            debug!(path = %path.display(), "removing the socket of one that waited here and was killed");
            drop(fs::remove_file(path));
        }
    }
}

fn look(name: &SocketAddrUnix) -> Result<Occupant, Errno> {
    let socket = new_socket()?;
    match rustix::net::connect(&socket, name) {
        Ok(()) => Ok(Occupant::Live(owner(socket))),
        // Its queue is full: it does not keep up, but it is there.
        Err(Errno::AGAIN) => Ok(Occupant::Live(None)),
        Err(Errno::CONNREFUSED) => Ok(Occupant::Nobody),
        Err(error) => Err(error),
    }
}

/// Who called `listen` at the other end.
fn owner(socket: OwnedFd) -> Option<Peer> {
    // rustix reads a pid that cannot be 0, which it is across pid namespaces; tokio reads it
    // right, but only inside a runtime.
    tokio::runtime::Handle::try_current().ok()?;
    Peer::of(&UnixStream::from_std(socket.into()).ok()?).ok()
}

fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn bind_as(socket: &OwnedFd, name: &SocketAddrUnix, mode: u32) -> Result<(), Errno> {
    /// The umask is one for the whole process.
    static UMASK: Mutex<()> = Mutex::new(());
    let _one_at_a_time = UMASK.lock();
    // Linux gives the file the mode of the unbound socket, less the umask. So the first line
    // takes away what is too much, and the second makes sure that nothing of it is lost. Where
    // the first is not supported, the umask alone keeps group and others out; the owner's bits
    // are left out of it because other threads may be creating files at this moment.
    let _ = rustix::fs::fchmod(socket, Mode::from_raw_mode(mode));
    let before = rustix::process::umask(Mode::from_raw_mode(!mode & 0o077));
    let bound = rustix::net::bind(socket, name);
    rustix::process::umask(before);
    bound
}

/// Group, mode and listen, in this order: nobody can connect before the last.
fn settle(
    socket: &OwnedFd,
    address: &UnixAddress,
    path: &Path,
    options: SocketOptions,
) -> Result<OwnedFd, BindError> {
    let failed =
        |step| move |error: Errno| BindError::Unix { address: address.clone(), step, source: error.into() };
    let pinned = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("open the new socket"))?;
    if let Some(group) = options.group {
        rustix::fs::chownat(&pinned, "", None, Some(Gid::from_raw(group.gid())), AtFlags::EMPTY_PATH)
            .map_err(|error| BindError::Group {
                address: address.clone(),
                gid: group.gid(),
                source: error.into(),
            })?;
    }
    let made = rustix::fs::fstat(&pinned).map_err(failed("look at the new socket"))?;
    let wanted = Mode::from_raw_mode(options.mode);
    if Mode::from_raw_mode(made.st_mode) != wanted && FileType::from_raw_mode(made.st_mode).is_socket() {
        rustix::fs::chmodat(CWD, path, wanted, AtFlags::empty()).map_err(failed("chmod"))?;
    }
    rustix::net::listen(socket, BACKLOG).map_err(failed("listen"))?;
    Ok(pinned)
}

pub(super) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    debug!(path = %directory.display(), "making the socket's directory");
    fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory)
}

/// An advisory lock on a directory, until dropped.
pub(super) struct Lock {
    _directory: OwnedFd,
}

impl Lock {
    /// # Errors
    /// `WouldBlock` if another process keeps it: try again later, and do not block the thread meanwhile.
    pub(super) fn at_once(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(directory, flags, Mode::empty())?;
        loop {
            match try_lock(directory.as_fd()) {
                Ok(()) => return Ok(Self { _directory: directory }),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn try_lock(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::flock(directory, FlockOperation::NonBlockingLockExclusive)
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::{PermissionsExt, symlink},
        net::{UnixDatagram, UnixStream as StdUnixStream},
    };

    use tempfile::TempDir;

    use super::*;

    fn place() -> (TempDir, PathBuf, UnixAddress) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kms.sock");
        let address = UnixAddress::Path(path.clone());
        (directory, path, address)
    }

    fn bound(address: &UnixAddress) -> BoundSocket {
        bind_at_once(address, SocketOptions::default()).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn binds_and_takes_connections() {
        let (_directory, path, address) = place();
        let socket = bound(&address);
        assert_eq!(socket.address(), &address);
        StdUnixStream::connect(&path).unwrap();
    }

    #[test]
    fn missing_directories_are_made() {
        let (directory, ..) = place();
        let path = directory.path().join("a/b/kms.sock");
        let _socket = bound(&UnixAddress::Path(path.clone()));
        StdUnixStream::connect(&path).unwrap();
        assert_eq!(mode(path.parent().unwrap()) & 0o700, 0o700);
    }

    #[test]
    fn the_mode_is_the_one_asked_for_whatever_the_umask() {
        for wanted in [0o600, 0o660, 0o666, 0o777, 0o640] {
            let (_directory, path, address) = place();
            let options = SocketOptions { mode: wanted, ..SocketOptions::default() };
            let _socket = bind_at_once(&address, options).unwrap();
            assert_eq!(mode(&path), wanted);
        }
    }

    /// Stops between bind and everything that follows it.
    #[test]
    fn the_mode_is_final_right_at_bind() {
        for wanted in [0o600, 0o660, 0o666, 0o060] {
            let (_directory, path, _) = place();
            let socket = new_socket().unwrap();
            bind_as(&socket, &SocketAddrUnix::new(&path).unwrap(), wanted).unwrap();
            assert_eq!(mode(&path), wanted, "{wanted:o}");
        }
    }

    /// In a process of its own: in this one other tests bind at the same time.
    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "the program is this one, and needs what cargo sets for it"
    )]
    fn the_umask_is_restored() {
        const ALONE: &str = "TRANSIT_KMS_TEST_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let alone = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "server::socket::tests::the_umask_is_restored"])
                .env(ALONE, "1")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&alone.stdout);
            assert!(alone.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        rustix::process::umask(Mode::from_raw_mode(0o027));
        let (_directory, _, address) = place();
        let _socket = bound(&address);
        assert_eq!(rustix::process::umask(Mode::empty()).as_raw_mode(), 0o027);
    }

    #[test]
    fn nobody_can_connect_before_group_and_mode_are_set() {
        let (_directory, path, address) = place();
        let socket = new_socket().unwrap();
        bind_as(&socket, &SocketAddrUnix::new(&path).unwrap(), 0o600).unwrap();
        let refused = StdUnixStream::connect(&path).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let _pinned = settle(&socket, &address, &path, SocketOptions::default()).unwrap();
        StdUnixStream::connect(&path).unwrap();
    }

    #[test]
    fn the_group_is_given() {
        let (_directory, path, address) = place();
        // A supplementary group works for anybody, any number for root.
        let gid =
            if rustix::process::geteuid().is_root() { 4242 } else { rustix::process::getegid().as_raw() };
        let options =
            SocketOptions { mode: 0o660, group: Some(Group::from_gid(gid)), ..SocketOptions::default() };
        let _socket = bind_at_once(&address, options).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().gid(), gid);
        assert_eq!(mode(&path), 0o660);
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let (_directory, path, address) = place();
        drop(StdUnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _socket = bound(&address);
        StdUnixStream::connect(&path).unwrap();
    }

    #[tokio::test]
    async fn a_live_socket_is_not_stolen_and_its_owner_is_named() {
        let (_directory, path, address) = place();
        let first = bound(&address);
        let inode = fs::symlink_metadata(&path).unwrap().ino();
        let error = bind_at_once(&address, SocketOptions::default()).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, BindError::InUse { owner: Some(_), .. }), "{error:?}");
        assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
        assert!(text.contains("--listen"), "{text}");
        assert_eq!(fs::symlink_metadata(&path).unwrap().ino(), inode);
        drop(first);
    }

    #[test]
    fn a_live_socket_with_a_full_queue_is_not_stolen() {
        let (_directory, path, address) = place();
        let socket = new_socket().unwrap();
        let name = SocketAddrUnix::new(&path).unwrap();
        rustix::net::bind(&socket, &name).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let waiting = StdUnixStream::connect(&path).unwrap();
        let error = bind_at_once(&address, SocketOptions::default()).unwrap_err();
        assert!(matches!(error, BindError::InUse { owner: None, .. }), "{error:?}");
        drop(waiting);
    }

    #[test]
    fn what_is_not_a_socket_is_left_alone() {
        let (directory, path, address) = place();
        let refuse = |kind| {
            let error = bind_at_once(&address, SocketOptions::default()).unwrap_err().to_string();
            assert!(error.contains(kind) && error.contains("left alone"), "{error}");
        };
        fs::write(&path, "precious").unwrap();
        refuse("a regular file");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_file(&path).unwrap();

        fs::create_dir(&path).unwrap();
        refuse("a directory");
        fs::remove_dir(&path).unwrap();

        // Even one that leads to a stale socket, or nowhere.
        let target = directory.path().join("target");
        symlink(&target, &path).unwrap();
        refuse("a symbolic link");
        drop(StdUnixListener::bind(&target).unwrap());
        refuse("a symbolic link");
        assert!(target.exists());
        fs::remove_file(&path).unwrap();

        let _datagram = UnixDatagram::bind(&path).unwrap();
        bind_at_once(&address, SocketOptions::default()).unwrap_err();
        assert!(path.exists());
    }

    #[test]
    fn the_file_is_removed_only_if_it_is_ours() {
        let (_directory, path, address) = place();
        let first = bound(&address);
        assert!(first.file.remove_at_once().unwrap());
        assert!(!path.exists());
        assert!(!first.file.remove_at_once().unwrap());

        let second = bound(&address);
        assert!(!first.file.remove_at_once().unwrap());
        assert!(path.exists());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "not ours").unwrap();
        assert!(!second.file.remove_at_once().unwrap());
        assert!(path.exists());
    }

    #[test]
    fn an_inode_number_is_not_reused_while_we_remember_it() {
        let (_directory, path, address) = place();
        let BoundSocket { file, listener } = bound(&address);
        drop(listener);
        fs::remove_file(&path).unwrap();
        let _other = StdUnixListener::bind(&path).unwrap();
        assert!(!file.remove_at_once().unwrap());
        assert!(path.exists());
    }

    #[test]
    fn a_failed_bind_leaves_nothing_behind() {
        if rustix::process::geteuid().is_root() {
            // Root may give a file to any group, so nothing fails for it here.
            return;
        }
        let (_directory, path, address) = place();
        let options =
            SocketOptions { mode: 0o660, group: Some(Group::from_gid(0)), ..SocketOptions::default() };
        let error = bind_at_once(&address, options).unwrap_err().to_string();
        assert!(error.contains("--socket-group"), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let (directory, ..) = place();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let error =
            bind_at_once(&UnixAddress::Path(file.join("kms.sock")), SocketOptions::default()).unwrap_err();
        assert!(error.to_string().contains("file for the socket"), "{error}");
    }

    #[test]
    fn a_lock_that_somebody_keeps_is_reported() {
        let (directory, path, address) = place();
        let lock = Lock::at_once(directory.path()).unwrap();
        let error = bind_at_once(&address, SocketOptions::default()).unwrap_err();
        assert!(matches!(error, BindError::Locked { .. }), "{error:?}");
        assert!(!path.exists());
        drop(lock);
        bound(&address);
    }

    /// A thread that sleeps would hold up the calls beside it, here the task that ends the lock.
    #[tokio::test(start_paused = true)]
    async fn the_lock_is_waited_for_while_other_tasks_run() {
        let (directory, path, address) = place();
        let lock_for = |time| {
            let lock = Lock::at_once(directory.path()).unwrap();
            async move {
                sleep(time).await;
                drop(lock);
            }
        };
        let short = Duration::from_millis(500);
        let (socket, ()) = tokio::join!(bind(&address, SocketOptions::default()), lock_for(short));
        let socket = socket.unwrap();
        let (removed, ()) = tokio::join!(socket.remove_if_ours(), lock_for(short));
        assert!(removed.unwrap() && !path.exists());

        let long = Duration::from_secs(60);
        let (socket, ()) = tokio::join!(bind(&address, SocketOptions::default()), lock_for(long));
        assert!(matches!(socket.unwrap_err(), BindError::Locked { .. }));
    }

    #[tokio::test]
    async fn abstract_sockets_work_and_are_not_stolen() {
        let name = format!("transit-kms-test-{}-{}", std::process::id(), rand::random::<u64>());
        let address = UnixAddress::Abstract(name.clone());
        let socket = bound(&address);
        drop(UnixStream::connect(format!("\0{name}")).await.unwrap());
        let error = bind_at_once(&address, SocketOptions::default()).unwrap_err();
        assert!(matches!(error, BindError::InUse { owner: Some(_), .. }), "{error:?}");
        assert!(!socket.file.remove_at_once().unwrap());
    }
}
