use std::{
    future::{pending, ready},
    os::unix::fs::{MetadataExt, PermissionsExt},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::server::listener::{Listener, ReplaceableListener};
use kms_plugin::address::UnixAddress;

/// With a paused clock, this elapses as soon as all tasks are idle.
const LONG: Duration = Duration::from_secs(60);
const OPTIONS: SocketOptions = SocketOptions { group: None, mode: 0o640, takeover: true };

fn new_path() -> (TempDir, PathBuf, UnixAddress) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.sock");
    let address = UnixAddress::Path(path.clone());
    (directory, path, address)
}

fn bind(address: &UnixAddress) -> BoundSocket {
    socket::try_bind(address, OPTIONS).unwrap()
}

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

fn names(directory: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(directory.path()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(start_paused = true)]
async fn a_live_predecessor_keeps_the_path_until_the_successor_is_verified() {
    let (directory, path, address) = new_path();
    let first = bind(&address);
    assert!(first.file.waiting_at.is_none(), "the path was free");
    let before = inode(&path);

    let mut second = bind(&address);
    let waiting_at = second.file.waiting_at.clone().unwrap();
    assert_eq!(fs::symlink_metadata(&waiting_at).unwrap().permissions().mode() & 0o7777, 0o640);
    UnixStream::connect(&waiting_at).unwrap();
    assert!(timeout(LONG, take_over(&mut second, OPTIONS, pending())).await.is_err());
    assert_eq!(inode(&path), before);

    take_over(&mut second, OPTIONS, ready(())).await;
    assert_ne!(inode(&path), before);
    assert_eq!(names(&directory), ["kms.sock"]);
    assert!(!first.file.try_remove().unwrap(), "the first no longer owns the path");
    assert!(second.file.try_remove().unwrap());
    assert!(names(&directory).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_waiting_process_takes_the_path_when_its_predecessor_exits() {
    let (_directory, path, address) = new_path();
    for socket_remains in [true, false] {
        let first = bind(&address);
        let mut second = bind(&address);
        let mut waiting = pin!(take_over(&mut second, OPTIONS, pending()));
        assert!(timeout(LONG, waiting.as_mut()).await.is_err());
        if !socket_remains {
            first.file.try_remove().unwrap();
        }
        drop(first);
        timeout(LONG, waiting).await.expect("it takes the path");
        UnixStream::connect(&path).unwrap();
        fs::remove_file(&path).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_exits_while_it_waits_leaves_nothing_behind() {
    let (directory, path, address) = new_path();
    let _first = bind(&address);
    let before = inode(&path);
    let second = bind(&address);
    assert_eq!(names(&directory).len(), 2);
    assert!(second.file.try_remove().unwrap());
    assert_eq!(names(&directory), ["kms.sock"]);
    assert_eq!(inode(&path), before);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_not_a_socket_is_left_alone_until_it_is_removed() {
    let (_directory, path, address) = new_path();
    let first = bind(&address);
    let mut second = bind(&address);
    first.file.try_remove().unwrap();
    fs::write(&path, "precious").unwrap();
    let mut waiting = pin!(take_over(&mut second, OPTIONS, ready(())));
    assert!(timeout(LONG, waiting.as_mut()).await.is_err());
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    fs::remove_file(&path).unwrap();
    timeout(LONG, waiting).await.expect("it takes the path");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_holds_the_lock_keeps_the_path_from_changing() {
    let (directory, path, address) = new_path();
    let _first = bind(&address);
    let before = inode(&path);
    let mut second = bind(&address);
    let lock = DirectoryLock::try_acquire(directory.path()).unwrap();
    let mut waiting = pin!(take_over(&mut second, OPTIONS, ready(())));
    assert!(timeout(LONG, waiting.as_mut()).await.is_err());
    assert_eq!(inode(&path), before);
    drop(lock);
    timeout(LONG, waiting).await.expect("it takes the path");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_socket_that_was_removed_is_created_again() {
    let (_directory, path, address) = new_path();
    let _first = bind(&address);
    let before = inode(&path);
    let mut second = bind(&address);
    fs::remove_file(second.file.waiting_at.as_deref().unwrap()).unwrap();
    timeout(LONG, take_over(&mut second, OPTIONS, ready(()))).await.expect("it takes the path");
    assert_ne!(inode(&path), before);
    let (listener, _file) = second.into_listener().unwrap();
    UnixStream::connect(&path).unwrap();
    timeout(LONG, listener.accept()).await.expect("the listener belongs to the path").unwrap();
}

#[tokio::test]
async fn sockets_of_killed_processes_are_removed_and_waiting_ones_stay() {
    let (directory, _path, address) = new_path();
    let _first = bind(&address);
    let waiting = bind(&address);
    let killed = bind(&address);
    // The file stays, as after SIGKILL.
    let abandoned = killed.file.waiting_at.clone().unwrap();
    drop(killed);
    fs::write(directory.path().join(".tkms-00000000"), "not a socket").unwrap();
    let third = bind(&address);
    assert!(!abandoned.exists());
    assert!(waiting.file.waiting_at.as_ref().unwrap().exists());
    assert!(third.file.waiting_at.as_ref().unwrap().exists());
    assert!(directory.path().join(".tkms-00000000").exists());
}

/// A process that has the path, with its channels.
struct Serving {
    file: SocketFile,
    listener: ReplaceableListener,
    state: watch::Sender<SocketState>,
    stopping: CancellationToken,
    listeners: mpsc::Sender<UnixListener>,
}

impl Serving {
    fn new(socket: BoundSocket) -> Self {
        let (listener, file) = socket.into_listener().unwrap();
        let (listener, listeners) = ReplaceableListener::new(listener);
        let (state, _) = watch::channel(SocketState::Serving);
        Self { file, listener, listeners, state, stopping: CancellationToken::new() }
    }

    /// Watches until the state is as wanted.
    async fn until(&mut self, wanted: impl Fn(&SocketState) -> bool) -> SocketState {
        let mut seen = self.state.subscribe();
        let context = WatchContext {
            options: OPTIONS,
            listeners: self.listeners.clone(),
            state: &self.state,
            stopping: &self.stopping,
        };
        tokio::select! {
            never = watch(&mut self.file, &context) => match never {},
            found = timeout(LONG, seen.wait_for(|state| wanted(state))) => found.unwrap().unwrap().clone(),
        }
    }

    async fn until_superseded(&mut self) -> String {
        match self.until(|state| matches!(state, SocketState::Superseded(_))).await {
            SocketState::Superseded(by) => by,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_superseded_process_knows_its_successor() {
    let (_directory, _path, address) = new_path();
    let mut first = Serving::new(bind(&address));
    let mut second = bind(&address);
    take_over(&mut second, OPTIONS, ready(())).await;
    let by = first.until_superseded().await;
    assert!(by.contains(&format!("pid {}", std::process::id())), "{by}");
    assert!(first.state.borrow().to_string().starts_with("superseded"));
    assert_eq!(current_owner(&first.file), by);
    drop(second);
    assert_eq!(current_owner(&first.file), "no process");
}

#[tokio::test(start_paused = true)]
async fn a_superseded_process_takes_the_path_back_when_no_process_listens_there() {
    let (directory, path, address) = new_path();
    let mut first = Serving::new(bind(&address));
    for socket_remains in [true, false, true] {
        let mut second = bind(&address);
        take_over(&mut second, OPTIONS, ready(())).await;
        first.until_superseded().await;
        if !socket_remains {
            second.file.try_remove().unwrap();
        }
        drop(second);
        first.until(|state| *state == SocketState::Serving).await;
        UnixStream::connect(&path).unwrap();
        timeout(LONG, first.listener.accept()).await.expect("it accepts there").unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(names(&directory), ["kms.sock"]);
    }
    assert!(first.file.try_remove().unwrap(), "it owns the path again");
}

#[tokio::test(start_paused = true)]
async fn connections_in_the_old_queue_are_still_accepted() {
    let (_directory, path, address) = new_path();
    let mut first = Serving::new(bind(&address));
    let _early = UnixStream::connect(&path).unwrap();
    fs::remove_file(&path).unwrap();
    first.until(|_| path.exists()).await;
    let inode_before = inode(&path);
    let _late = UnixStream::connect(&path).unwrap();
    for _ in 0..2 {
        timeout(LONG, first.listener.accept()).await.expect("both are accepted").unwrap();
    }
    assert_eq!(inode(&path), inode_before);
}

#[tokio::test(start_paused = true)]
async fn the_path_is_not_taken_back_while_it_is_locked_occupied_or_this_process_stops() {
    let (directory, path, address) = new_path();
    let mut first = Serving::new(bind(&address));
    fs::remove_file(&path).unwrap();
    let unreachable = |state: &SocketState| matches!(state, SocketState::Unreachable(_));

    let lock = DirectoryLock::try_acquire(directory.path()).unwrap();
    let state = first.until(unreachable).await;
    assert!(state.to_string().contains("no process listens at unix:///"), "{state}");
    assert!(!path.exists());
    drop(lock);

    fs::write(&path, "precious").unwrap();
    let state = first.until(|state| unreachable(state) && state.to_string().contains("not a socket")).await;
    assert!(state.to_string().contains("a regular file"), "{state}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    fs::remove_file(&path).unwrap();

    first.stopping.cancel();
    first.until(|state| unreachable(state) && state.to_string().contains("no process listens")).await;
    assert!(names(&directory).is_empty());
    first.stopping = CancellationToken::new();
    first.until(|state| *state == SocketState::Serving).await;
}

/// There are two superseded processes, and one that waits and is not verified. One of the superseded
/// takes the path and keeps it, until the waiting one is verified.
#[tokio::test(start_paused = true)]
async fn one_of_several_takes_the_path_and_keeps_it() {
    let (directory, path, address) = new_path();
    let mut first = Serving::new(bind(&address));
    let mut second = bind(&address);
    take_over(&mut second, OPTIONS, ready(())).await;
    let mut second = Serving::new(second);
    let mut third = bind(&address);
    take_over(&mut third, OPTIONS, ready(())).await;
    first.until_superseded().await;
    second.until_superseded().await;

    let mut waiting_socket = bind(&address);
    drop(third);
    let took = {
        let waiting = take_over(&mut waiting_socket, OPTIONS, pending());
        let all = async {
            let serving = |state: &SocketState| *state == SocketState::Serving;
            let states = [first.state.clone(), second.state.clone()];
            let [mut a, mut b] = [states[0].subscribe(), states[1].subscribe()];
            let stopping = CancellationToken::new();
            let context = |listeners: &mpsc::Sender<UnixListener>, state| WatchContext {
                options: OPTIONS,
                listeners: listeners.clone(),
                state,
                stopping: &stopping,
            };
            let of_first = context(&first.listeners, &states[0]);
            let of_second = context(&second.listeners, &states[1]);
            let taken = async {
                tokio::select! {
                    _ = a.wait_for(serving) => {}
                    _ = b.wait_for(serving) => {}
                }
                let taken = inode(&path);
                sleep(LONG).await;
                assert_eq!(inode(&path), taken, "the owner does not change");
                let states = [states[0].borrow().clone(), states[1].borrow().clone()];
                assert_eq!(states.iter().filter(|state| serving(state)).count(), 1, "{states:?}");
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
            () = waiting => panic!("an unverified process took the path before the verified ones"),
            taken = all => taken,
        }
    };
    assert_eq!(names(&directory).len(), 2);
    take_over(&mut waiting_socket, OPTIONS, ready(())).await;
    assert_ne!(inode(&path), took);
    first.until_superseded().await;
    second.until_superseded().await;
}
