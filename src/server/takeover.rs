//! Which of several processes has the path of a socket.
//!
//! A successor listens under a name beside the path ([`super::socket::bind`] puts it there) and is
//! renamed over the path once it is proven. A rename replaces in one step: a client that connects
//! finds the one or the other. The predecessor keeps what has connected to it, even what still waits
//! for accept.
//!
//! A superseded process goes on looking. When no process listens at the path any more, because its
//! successor was stopped or killed, it binds a new socket there: a listener whose name was replaced
//! cannot get a name again. Three rules keep several processes from undoing each other:
//!
//! - who has the path changes only under the lock of the directory, after a look under that lock;
//! - a live listener loses the path only to a process that waits and is proven, and each process waits
//!   only once, after its start: so this comes to an end;
//! - all others, however many, take the path only when no process listens there. Those that were
//!   superseded look first, because they are proven; those that wait come a second later.

use std::{convert::Infallible, fmt, fs, io, pin::pin, time::Duration};

use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    backoff::Listener,
    socket::{
        self, BindError, BoundSocket, Lock, Occupant, SocketFile, SocketOptions, named, occupant, parent,
    },
};

/// How often a process that does not have the path looks whether another one still listens there. A
/// look is a connection that is closed at once.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A process that waits and is not proven leaves an empty path for so many looks to those that were
/// superseded: they know the key.
const EMPTY_LOOKS: u32 = 4;
/// How often the process that has the path looks whether it is still its own.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// How a socket stands with its path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Stand {
    /// New connections come to this process.
    Serving,
    /// They go to another process, which listened there at the last look; it says to which. The
    /// connections that this process has are served.
    Superseded(String),
    /// They go to no process, or that cannot be told; it says why. The connections that this process has
    /// are served.
    Unreachable(String),
    /// This process listens beside the path, which is a predecessor's.
    Waiting,
}

impl fmt::Display for Stand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serving => f.write_str("serving"),
            Self::Superseded(by) => write!(f, "superseded: new connections go to {by}"),
            Self::Unreachable(why) => write!(f, "no new connection comes to this process: {why}"),
            Self::Waiting => f.write_str("waiting to take the socket over"),
        }
    }
}

/// Waits until `well`, or until no process has listened at the path for a while, and puts the socket
/// there.
///
/// Returns at once for a socket that is where it belongs. Never gives up: what stands in the way is
/// logged, and tried again. Cancel-safe.
pub async fn take_over(socket: &mut BoundSocket, options: SocketOptions, well: impl Future<Output = ()>) {
    let mut well = pin!(well);
    let mut is_well = false;
    let mut told = false;
    let mut empty_looks = 0;
    loop {
        match step(socket, options, is_well, empty_looks).await {
            Ok(Step::Taken) => return,
            Ok(Step::Empty) => empty_looks += 1,
            Ok(Step::NotYet) => empty_looks = 0,
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

/// What has become of one attempt.
enum Step {
    /// No process listens at the path. One that was superseded may take it first: that one is proven.
    Empty,
    /// Another process has the path, or the lock.
    NotYet,
    /// The socket is where it belongs.
    Taken,
}

/// Puts the socket at its path, if that may be.
async fn step(
    socket: &mut BoundSocket,
    options: SocketOptions,
    is_well: bool,
    empty_looks: u32,
) -> Result<Step, BindError> {
    let file = &mut socket.file;
    let (Some(path), Some(beside)) = (file.address.path(), file.beside.as_deref()) else {
        return Ok(Step::Taken);
    };
    let failed = |step| {
        let address = file.address.clone();
        move |source: io::Error| BindError::Unix { address, step, source }
    };
    let lock = match Lock::at_once(parent(path)) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Step::NotYet),
        lock => lock.map_err(failed("lock the directory"))?,
    };
    let predecessor = occupant(&file.address, path)?;
    match predecessor {
        _ if is_well => {}
        Occupant::Live(_) => return Ok(Step::NotYet),
        Occupant::Nobody | Occupant::Nothing if empty_looks < EMPTY_LOOKS => return Ok(Step::Empty),
        Occupant::Nobody | Occupant::Nothing => {}
    }
    if !file.is_at(beside).map_err(failed("look at the socket beside the path"))? {
        drop(lock);
        warn!(socket = %file.address, "the socket beside the path has been removed; making another");
        *socket = socket::bind(&file.address.clone(), options).await?;
        return Ok(if socket.file.beside.is_none() { Step::Taken } else { Step::NotYet });
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
    Ok(Step::Taken)
}

/// What [`watch()`] is to do.
#[derive(Debug)]
pub struct Watched<'a> {
    /// How a new socket is made.
    pub options: SocketOptions,
    /// Where a new listener goes.
    pub listeners: mpsc::Sender<UnixListener>,
    /// Where each change is told.
    pub stand: &'a watch::Sender<Stand>,
    /// From then on the path is left to others.
    pub stopping: &'a CancellationToken,
}

/// Watches which process has the path, tells each change, and takes the path when no process listens
/// there. Never returns. Cancel-safe.
///
/// Inherited and abstract sockets are not watched: their names are not this process's to give.
pub async fn watch(file: &mut SocketFile, watched: &Watched<'_>) -> Infallible {
    if !file.has_file() {
        return std::future::pending().await;
    }
    loop {
        let look_after = match look(file) {
            // That it cannot be told says nothing.
            None => LOOK_EVERY,
            Some(found) => {
                let found = match found {
                    Stand::Unreachable(why) if !watched.stopping.is_cancelled() => {
                        retake(file, watched).unwrap_or(Stand::Unreachable(why))
                    }
                    found => found,
                };
                let pause = if found == Stand::Serving { WATCH_EVERY } else { LOOK_EVERY };
                tell(file, watched.stand, found);
                pause
            }
        };
        sleep(look_after).await;
    }
}

/// Who has the path now, as far as it can be told.
fn look(file: &SocketFile) -> Option<Stand> {
    let path = file.place()?;
    if file.is_at(path).ok()? {
        return Some(Stand::Serving);
    }
    Some(match occupant(file.address(), path) {
        Ok(Occupant::Live(owner)) => Stand::Superseded(named(owner.as_ref())),
        Ok(Occupant::Nobody | Occupant::Nothing) => {
            Stand::Unreachable(format!("no process listens at {}", file.address()))
        }
        Err(error) => Stand::Unreachable(error.to_string()),
    })
}

/// Binds a new socket at the path, if still no process listens there. It has no await: between the look
/// at `stopping` and this nothing else runs. `None` if another process was faster, or is at it.
fn retake(file: &mut SocketFile, watched: &Watched<'_>) -> Option<Stand> {
    let options = SocketOptions { takeover: false, ..watched.options };
    // It looks again, under the lock.
    let BoundSocket { file: new, listener } = match socket::bind_at_once(file.address(), options) {
        Ok(socket) => socket,
        Err(BindError::InUse { .. } | BindError::Locked { .. }) => return None,
        Err(error) => return Some(Stand::Unreachable(error.to_string())),
    };
    let served = UnixListener::from_std(listener).map_err(|error| error.to_string());
    if let Err(why) = served.and_then(|it| watched.listeners.try_send(it).map_err(|error| error.to_string()))
    {
        drop(new.remove_at_once());
        return Some(Stand::Unreachable(format!("a new listener cannot be served: {why}")));
    }
    *file = new;
    Some(Stand::Serving)
}

fn tell(file: &SocketFile, stand: &watch::Sender<Stand>, found: Stand) {
    let socket = file.address();
    let before = stand.send_replace(found.clone());
    if before == found {
        return;
    }
    match (&before, &found) {
        (_, Stand::Superseded(by)) => info!(
            %socket,
            "superseded: new connections go to {by}; those that stand are served until SIGTERM"
        ),
        (_, Stand::Unreachable(why)) => warn!(%socket, "no new connection comes to this process: {why}"),
        (_, Stand::Serving) => info!(%socket, "no process listened at the socket's path: took it again"),
        (_, Stand::Waiting) => {}
    }
}

/// A listener that may be replaced by another, without loss of what has connected to it.
#[derive(Debug)]
pub struct Listeners {
    current: UnixListener,
    next: mpsc::Receiver<UnixListener>,
    /// It has no name any more, but clients may wait in its queue.
    previous: Option<UnixListener>,
}

impl Listeners {
    /// This one until another comes by the sender.
    #[must_use]
    pub fn new(current: UnixListener) -> (Self, mpsc::Sender<UnixListener>) {
        let (sender, next) = mpsc::channel(1);
        (Self { current, next, previous: None }, sender)
    }
}

impl Listener for Listeners {
    type Stream = UnixStream;

    async fn accept(&mut self) -> io::Result<UnixStream> {
        loop {
            let previous = async {
                match &self.previous {
                    Some(previous) => previous.accept().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(next) = self.next.recv() => {
                    self.previous = Some(std::mem::replace(&mut self.current, next));
                }
                accepted = previous => return Ok(accepted?.0),
                accepted = self.current.accept() => return Ok(accepted?.0),
            }
        }
    }
}

/// Who has the path, in words.
#[must_use]
pub fn whose(file: &SocketFile) -> String {
    match look(file) {
        Some(Stand::Superseded(by)) => by,
        _ => "no process".into(),
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
    use kms_plugin::address::UnixAddress;

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
        socket::bind_at_once(address, OPTIONS).unwrap()
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
        assert!(!first.file.remove_at_once().unwrap(), "it is not the first one's to remove");
        assert!(second.file.remove_at_once().unwrap());
        assert!(names(&directory).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_predecessor_that_goes_is_followed() {
        let (_directory, path, address) = place();
        for leaves_its_socket in [true, false] {
            let first = bind(&address);
            let mut second = bind(&address);
            let mut waiting = pin!(take_over(&mut second, OPTIONS, pending()));
            assert!(timeout(LONG, waiting.as_mut()).await.is_err());
            if !leaves_its_socket {
                first.file.remove_at_once().unwrap();
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
        assert!(second.file.remove_at_once().unwrap());
        assert_eq!(names(&directory), ["kms.sock"]);
        assert_eq!(inode(&path), before);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_a_socket_is_left_alone_and_waited_for() {
        let (_directory, path, address) = place();
        let first = bind(&address);
        let mut second = bind(&address);
        first.file.remove_at_once().unwrap();
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
        let lock = Lock::at_once(directory.path()).unwrap();
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

    /// A process that has taken its place, with what it is told.
    struct Serving {
        file: SocketFile,
        listeners: Listeners,
        stand: watch::Sender<Stand>,
        stopping: CancellationToken,
        to_listeners: mpsc::Sender<UnixListener>,
    }

    impl Serving {
        fn new(socket: BoundSocket) -> Self {
            let (listener, file) = socket.into_listener().unwrap();
            let (listeners, to_listeners) = Listeners::new(listener);
            let (stand, _) = watch::channel(Stand::Serving);
            Self { file, listeners, stand, stopping: CancellationToken::new(), to_listeners }
        }

        /// Looks on until it stands so.
        async fn until(&mut self, wanted: impl Fn(&Stand) -> bool) -> Stand {
            let mut seen = self.stand.subscribe();
            let watched = Watched {
                options: OPTIONS,
                listeners: self.to_listeners.clone(),
                stand: &self.stand,
                stopping: &self.stopping,
            };
            tokio::select! {
                never = watch(&mut self.file, &watched) => match never {},
                found = timeout(LONG, seen.wait_for(|stand| wanted(stand))) => found.unwrap().unwrap().clone(),
            }
        }

        async fn until_superseded(&mut self) -> String {
            match self.until(|stand| matches!(stand, Stand::Superseded(_))).await {
                Stand::Superseded(by) => by,
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_superseded_notices_and_knows_by_which_process() {
        let (_directory, _path, address) = place();
        let mut first = Serving::new(bind(&address));
        let mut second = bind(&address);
        take_over(&mut second, OPTIONS, ready(())).await;
        let by = first.until_superseded().await;
        assert!(by.contains(&format!("pid {}", std::process::id())), "{by}");
        assert!(first.stand.borrow().to_string().starts_with("superseded"));
        assert_eq!(whose(&first.file), by);
        drop(second);
        assert_eq!(whose(&first.file), "no process");
    }

    #[tokio::test(start_paused = true)]
    async fn the_superseded_takes_the_path_again_when_no_process_listens_there() {
        let (directory, path, address) = place();
        let mut first = Serving::new(bind(&address));
        for leaves_its_socket in [true, false, true] {
            let mut second = bind(&address);
            take_over(&mut second, OPTIONS, ready(())).await;
            first.until_superseded().await;
            if !leaves_its_socket {
                second.file.remove_at_once().unwrap();
            }
            drop(second);
            first.until(|stand| *stand == Stand::Serving).await;
            UnixStream::connect(&path).unwrap();
            timeout(LONG, first.listeners.accept()).await.expect("it accepts there").unwrap();
            assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
            assert_eq!(names(&directory), ["kms.sock"]);
        }
        assert!(first.file.remove_at_once().unwrap(), "it is its own to remove");
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_in_the_old_queue_is_still_accepted() {
        let (_directory, path, address) = place();
        let mut first = Serving::new(bind(&address));
        let _early = UnixStream::connect(&path).unwrap();
        fs::remove_file(&path).unwrap();
        first.until(|_| path.exists()).await;
        let inode_before = inode(&path);
        let _late = UnixStream::connect(&path).unwrap();
        for _ in 0..2 {
            timeout(LONG, first.listeners.accept()).await.expect("both are accepted").unwrap();
        }
        assert_eq!(inode(&path), inode_before);
    }

    #[tokio::test(start_paused = true)]
    async fn the_path_is_left_alone_while_it_is_locked_foreign_or_this_process_stops() {
        let (directory, path, address) = place();
        let mut first = Serving::new(bind(&address));
        fs::remove_file(&path).unwrap();
        let unreachable = |stand: &Stand| matches!(stand, Stand::Unreachable(_));

        let lock = Lock::at_once(directory.path()).unwrap();
        let stand = first.until(unreachable).await;
        assert!(stand.to_string().contains("no process listens at unix:///"), "{stand}");
        assert!(!path.exists());
        drop(lock);

        fs::write(&path, "precious").unwrap();
        let stand =
            first.until(|stand| unreachable(stand) && stand.to_string().contains("not a socket")).await;
        assert!(stand.to_string().contains("a regular file"), "{stand}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_file(&path).unwrap();

        first.stopping.cancel();
        first.until(|stand| unreachable(stand) && stand.to_string().contains("no process listens")).await;
        assert!(names(&directory).is_empty());
        first.stopping = CancellationToken::new();
        first.until(|stand| *stand == Stand::Serving).await;
    }

    /// Two superseded processes, and one that waits and is not proven: one of them takes the path, and
    /// the others leave it there, until the one that waits is proven.
    #[tokio::test(start_paused = true)]
    async fn of_several_one_takes_the_path_and_nothing_flaps() {
        let (directory, path, address) = place();
        let mut first = Serving::new(bind(&address));
        let mut second = bind(&address);
        take_over(&mut second, OPTIONS, ready(())).await;
        let mut second = Serving::new(second);
        let mut third = bind(&address);
        take_over(&mut third, OPTIONS, ready(())).await;
        first.until_superseded().await;
        second.until_superseded().await;

        let mut waits = bind(&address);
        drop(third);
        let took = {
            let waiting = take_over(&mut waits, OPTIONS, pending());
            let all = async {
                let serving = |stand: &Stand| *stand == Stand::Serving;
                let stands = [first.stand.clone(), second.stand.clone()];
                let [mut a, mut b] = [stands[0].subscribe(), stands[1].subscribe()];
                let stopping = CancellationToken::new();
                let watched = |listeners: &mpsc::Sender<UnixListener>, stand| Watched {
                    options: OPTIONS,
                    listeners: listeners.clone(),
                    stand,
                    stopping: &stopping,
                };
                let of_first = watched(&first.to_listeners, &stands[0]);
                let of_second = watched(&second.to_listeners, &stands[1]);
                let taken = async {
                    tokio::select! {
                        _ = a.wait_for(serving) => {}
                        _ = b.wait_for(serving) => {}
                    }
                    let taken = inode(&path);
                    sleep(LONG).await;
                    assert_eq!(inode(&path), taken, "it stays where it is");
                    let stands = [stands[0].borrow().clone(), stands[1].borrow().clone()];
                    assert_eq!(stands.iter().filter(|stand| serving(stand)).count(), 1, "{stands:?}");
                    taken
                };
                tokio::select! {
                    never = watch(&mut first.file, &of_first) => match never {},
                    never = watch(&mut second.file, &of_second) => match never {},
                    taken = taken => taken,
                }
            };
            tokio::select! {
                biased;
                () = waiting => panic!("it took the path without being proven, before those that are"),
                taken = all => taken,
            }
        };
        assert_eq!(names(&directory).len(), 2);
        take_over(&mut waits, OPTIONS, ready(())).await;
        assert_ne!(inode(&path), took);
        first.until_superseded().await;
        second.until_superseded().await;
    }
}
