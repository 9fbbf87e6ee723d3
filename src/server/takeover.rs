//! Taking a path over from a live predecessor, so that at every moment somebody good is behind it.
//!
//! The successor listens under a name beside the path ([`super::socket::bind`] puts it there) and is
//! renamed over the path once it is proven. A rename replaces in one step: whoever connects finds the
//! one or the other. The predecessor keeps what has connected to it, even what still waits for accept.

use std::{convert::Infallible, fmt, fs, io, pin::pin, time::Duration};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::{debug, info, warn};

use super::{
    peer::Peer,
    socket::{
        self, BindError, BoundSocket, Lock, Occupant, SocketFile, SocketOptions, named, occupant, parent,
    },
};

/// How often the one that waits looks whether its predecessor is still there. A look is a connection
/// that is closed at once.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often the one that serves looks whether the path is still its own.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// How a socket stands with its path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Stand {
    /// New connections come to us.
    Serving,
    /// They go to somebody else, or to nobody; it says to whom. Those that stand are served.
    Superseded(String),
    /// Ours is beside the path, which is a predecessor's.
    Waiting,
}

impl fmt::Display for Stand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serving => f.write_str("serving"),
            Self::Superseded(by) => write!(f, "superseded: new connections go to {by}"),
            Self::Waiting => f.write_str("waiting to take the socket over"),
        }
    }
}

/// Waits until `well`, or until nobody listens at the path any more, and puts the socket there.
///
/// Returns at once for a socket that is where it belongs. Never gives up: what stands in the way is
/// logged, and tried again. Cancel-safe.
pub async fn take_over(socket: &mut BoundSocket, options: SocketOptions, well: impl Future<Output = ()>) {
    let mut well = pin!(well);
    let mut is_well = false;
    let mut told = false;
    loop {
        match step(socket, options, is_well) {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) if told => debug!(%error, "the socket is still not taken over"),
            Err(error) => {
                warn!(%error, "the socket cannot be taken over for now; trying on");
                told = true;
            }
        }
        tokio::select! {
            () = &mut well, if !is_well => is_well = true,
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

/// Whether the socket is at its path, where it is put if that may be.
fn step(socket: &mut BoundSocket, options: SocketOptions, is_well: bool) -> Result<bool, BindError> {
    let file = &mut socket.file;
    let (Some(path), Some(beside)) = (file.address.path(), file.beside.as_deref()) else {
        return Ok(true);
    };
    let failed = |step| {
        let address = file.address.clone();
        move |source: io::Error| BindError::Unix { address, step, source }
    };
    let lock = match Lock::at_once(parent(path)) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
        lock => lock.map_err(failed("lock the directory"))?,
    };
    let predecessor = occupant(&file.address, path)?;
    if matches!(predecessor, Occupant::Live(_)) && !is_well {
        return Ok(false);
    }
    if !file.is_at(beside).map_err(failed("look at the socket beside the path"))? {
        drop(lock);
        warn!(socket = %file.address, "the socket beside the path has been removed; making another");
        *socket = socket::bind(&file.address.clone(), options)?;
        return Ok(socket.file.beside.is_none());
    }
    fs::rename(beside, path).map_err(failed("rename"))?;
    file.beside = None;
    let socket = &file.address;
    match predecessor {
        Occupant::Live(owner) => {
            info!(%socket, "took the socket over from {}", named(owner.as_ref()));
        }
        Occupant::Nobody | Occupant::Nothing => {
            info!(%socket, "took the socket over: its predecessor is gone");
        }
    }
    Ok(true)
}

/// Watches whose the path is, and tells each change. Never returns.
pub async fn watch(file: &SocketFile, stand: &watch::Sender<Stand>) -> Infallible {
    let Some(path) = file.place() else { return std::future::pending().await };
    let socket = file.address();
    let mut looks = interval(WATCH_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        // That it cannot be told says nothing.
        let Ok(ours) = file.is_at(path) else { continue };
        let superseded = matches!(*stand.borrow(), Stand::Superseded(_));
        if ours == superseded {
            stand.send_replace(if ours { Stand::Serving } else { Stand::Superseded(whose(file)) });
            match &*stand.borrow() {
                Stand::Superseded(by) => info!(
                    %socket,
                    "superseded: new connections go to {by}; those that stand are served until SIGTERM"
                ),
                _ => info!(%socket, "the socket is ours again"),
            }
        }
    }
}

/// Who has the path, in words.
#[must_use]
pub fn whose(file: &SocketFile) -> String {
    let owner: Option<Option<Peer>> =
        file.address.path().and_then(|path| match occupant(&file.address, path) {
            Ok(Occupant::Live(owner)) => Some(owner),
            _ => None,
        });
    match owner {
        Some(owner) => named(owner.as_ref()),
        None => "nobody".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        os::unix::fs::{MetadataExt, PermissionsExt},
        os::unix::net::UnixStream,
        path::{Path, PathBuf},
    };

    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;
    use crate::server::address::UnixAddress;

    /// With the clock paused, this passes as soon as nothing else can happen.
    const LONG: Duration = Duration::from_secs(60);
    const OPTIONS: SocketOptions = SocketOptions { group: None, mode: 0o640, takeover: true };

    fn place() -> (TempDir, PathBuf, UnixAddress) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kms.sock");
        let address = UnixAddress::Path(path.clone());
        (directory, path, address)
    }

    fn bind(address: &UnixAddress) -> BoundSocket {
        socket::bind(address, OPTIONS).unwrap()
    }

    fn inode(path: &Path) -> u64 {
        fs::symlink_metadata(path).unwrap().ino()
    }

    fn names(directory: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(directory.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test(start_paused = true)]
    async fn a_live_predecessor_keeps_the_path_until_the_successor_is_well() {
        let (directory, path, address) = place();
        let first = bind(&address);
        assert!(first.file.beside.is_none(), "nobody was there");
        let before = inode(&path);

        let mut second = bind(&address);
        let beside = second.file.beside.clone().unwrap();
        assert_eq!(fs::symlink_metadata(&beside).unwrap().permissions().mode() & 0o7777, 0o640);
        UnixStream::connect(&beside).unwrap();
        assert!(timeout(LONG, take_over(&mut second, OPTIONS, pending())).await.is_err());
        assert_eq!(inode(&path), before);

        take_over(&mut second, OPTIONS, ready(())).await;
        assert_ne!(inode(&path), before);
        assert_eq!(names(&directory), ["kms.sock"]);
        assert!(!first.remove_if_ours().unwrap(), "it is not the first one's to remove");
        assert!(second.remove_if_ours().unwrap());
        assert!(names(&directory).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_predecessor_that_goes_is_followed_at_once() {
        let (_directory, path, address) = place();
        for leaves_its_socket in [true, false] {
            let first = bind(&address);
            let mut second = bind(&address);
            let mut waiting = pin!(take_over(&mut second, OPTIONS, pending()));
            assert!(timeout(LONG, waiting.as_mut()).await.is_err());
            if !leaves_its_socket {
                first.remove_if_ours().unwrap();
            }
            drop(first);
            timeout(LONG, waiting).await.expect("it takes the path");
            UnixStream::connect(&path).unwrap();
            fs::remove_file(&path).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_before_the_turn_leaves_nothing_behind() {
        let (directory, path, address) = place();
        let _first = bind(&address);
        let before = inode(&path);
        let second = bind(&address);
        assert_eq!(names(&directory).len(), 2);
        assert!(second.remove_if_ours().unwrap());
        assert_eq!(names(&directory), ["kms.sock"]);
        assert_eq!(inode(&path), before);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_a_socket_is_left_alone_and_waited_for() {
        let (_directory, path, address) = place();
        let first = bind(&address);
        let mut second = bind(&address);
        first.remove_if_ours().unwrap();
        fs::write(&path, "precious").unwrap();
        let mut waiting = pin!(take_over(&mut second, OPTIONS, ready(())));
        assert!(timeout(LONG, waiting.as_mut()).await.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_file(&path).unwrap();
        timeout(LONG, waiting).await.expect("it takes the path");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_binds_keeps_the_path_from_changing_meanwhile() {
        let (directory, path, address) = place();
        let _first = bind(&address);
        let before = inode(&path);
        let mut second = bind(&address);
        let lock = Lock::on(directory.path()).unwrap();
        let mut waiting = pin!(take_over(&mut second, OPTIONS, ready(())));
        assert!(timeout(LONG, waiting.as_mut()).await.is_err());
        assert_eq!(inode(&path), before);
        drop(lock);
        timeout(LONG, waiting).await.expect("it takes the path");
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_is_cleaned_away_while_it_waits_is_made_anew() {
        let (_directory, path, address) = place();
        let _first = bind(&address);
        let before = inode(&path);
        let mut second = bind(&address);
        fs::remove_file(second.file.beside.as_deref().unwrap()).unwrap();
        timeout(LONG, take_over(&mut second, OPTIONS, ready(()))).await.expect("it takes the path");
        assert_ne!(inode(&path), before);
        let (listener, _file) = second.into_listener().unwrap();
        UnixStream::connect(&path).unwrap();
        timeout(LONG, listener.accept()).await.expect("the listener is that of the path").unwrap();
    }

    #[tokio::test]
    async fn leftovers_of_the_killed_go_and_those_who_wait_stay() {
        let (directory, _path, address) = place();
        let _first = bind(&address);
        let waits = bind(&address);
        let killed = bind(&address);
        // As SIGKILL does: the file stays.
        let left = killed.file.beside.clone().unwrap();
        drop(killed);
        fs::write(directory.path().join(".tkms-00000000"), "not a socket").unwrap();
        let third = bind(&address);
        assert!(!left.exists());
        assert!(waits.file.beside.as_ref().unwrap().exists());
        assert!(third.file.beside.as_ref().unwrap().exists());
        assert!(directory.path().join(".tkms-00000000").exists());
    }

    #[tokio::test(start_paused = true)]
    async fn the_superseded_notices_and_knows_by_whom() {
        let (_directory, path, address) = place();
        let first = bind(&address);
        let (stand, mut seen) = watch::channel(Stand::Serving);
        let mut second = bind(&address);
        let look = async {
            take_over(&mut second, OPTIONS, ready(())).await;
            let found = seen.wait_for(|stand| *stand != Stand::Serving).await.unwrap().clone();
            let Stand::Superseded(by) = &found else { panic!("{found:?}") };
            assert!(by.contains(&format!("pid {}", std::process::id())), "{by}");
            assert!(found.to_string().starts_with("superseded"), "{found}");
            fs::remove_file(&path).unwrap();
            assert_eq!(whose(&first.file), "nobody");
        };
        tokio::select! {
            never = watch(&first.file, &stand) => match never {},
            looked = timeout(LONG, look) => looked.expect("it notices"),
        }
    }
}
