use std::os::unix::{
    fs::{PermissionsExt, symlink},
    net::{UnixDatagram, UnixStream as StdUnixStream},
};

use std::time::Duration;

use rustix::{fs::Mode, net::SocketAddrUnix};
use tempfile::TempDir;
use tokio::net::UnixStream;

use super::{
    bind::{bind_with_mode, set_group_and_listen},
    *,
};

fn new_path() -> (TempDir, PathBuf, UnixAddress) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.sock");
    let address = UnixAddress::Path(path.clone());
    (directory, path, address)
}

fn bound(address: &UnixAddress) -> BoundSocket {
    try_bind(address, SocketOptions::default()).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn binds_and_accepts_connections() {
    let (_directory, path, address) = new_path();
    let socket = bound(&address);
    assert_eq!(socket.address(), &address);
    StdUnixStream::connect(&path).unwrap();
}

#[test]
fn missing_directories_are_created() {
    let (directory, ..) = new_path();
    let path = directory.path().join("a/b/kms.sock");
    let _socket = bound(&UnixAddress::Path(path.clone()));
    StdUnixStream::connect(&path).unwrap();
    assert_eq!(mode(path.parent().unwrap()) & 0o700, 0o700);
}

#[test]
fn the_mode_does_not_depend_on_the_umask() {
    for wanted in [0o600, 0o660, 0o666, 0o777, 0o640] {
        let (_directory, path, address) = new_path();
        let options = SocketOptions { mode: wanted, ..SocketOptions::default() };
        let _socket = try_bind(&address, options).unwrap();
        assert_eq!(mode(&path), wanted);
    }
}

/// Checks the mode between bind and the following steps.
#[test]
fn the_mode_is_final_at_bind() {
    for wanted in [0o600, 0o660, 0o666, 0o060] {
        let (_directory, path, _) = new_path();
        let socket = new_socket().unwrap();
        bind_with_mode(&socket, &SocketAddrUnix::new(&path).unwrap(), wanted).unwrap();
        assert_eq!(mode(&path), wanted, "{wanted:o}");
    }
}

/// Runs in a process of its own: in this one, other tests bind at the same time.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the program is this test, and needs the environment that cargo sets for it"
)]
fn the_umask_is_restored() {
    const ALONE: &str = "TRANSIT_KMS_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let alone = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "server::socket::tests::the_umask_is_restored"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&alone.stdout);
        assert!(alone.status.success() && output.contains("1 passed"), "{output}");
        return;
    }
    rustix::process::umask(Mode::from_raw_mode(0o027));
    let (_directory, _, address) = new_path();
    let _socket = bound(&address);
    assert_eq!(rustix::process::umask(Mode::empty()).as_raw_mode(), 0o027);
}

#[test]
fn clients_cannot_connect_before_group_and_mode_are_set() {
    let (_directory, path, address) = new_path();
    let socket = new_socket().unwrap();
    bind_with_mode(&socket, &SocketAddrUnix::new(&path).unwrap(), 0o600).unwrap();
    let refused = StdUnixStream::connect(&path).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let _inode = set_group_and_listen(&socket, &address, &path, SocketOptions::default()).unwrap();
    StdUnixStream::connect(&path).unwrap();
}

#[test]
fn the_group_is_set() {
    let (_directory, path, address) = new_path();
    // Root may set any group, other users only a group of their own.
    let gid = if rustix::process::geteuid().is_root() { 4242 } else { rustix::process::getegid().as_raw() };
    let options =
        SocketOptions { mode: 0o660, group: Some(Group::from_gid(gid)), ..SocketOptions::default() };
    let _socket = try_bind(&address, options).unwrap();
    assert_eq!(fs::symlink_metadata(&path).unwrap().gid(), gid);
    assert_eq!(mode(&path), 0o660);
}

#[test]
fn a_stale_socket_is_replaced() {
    let (_directory, path, address) = new_path();
    drop(StdUnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let _socket = bound(&address);
    StdUnixStream::connect(&path).unwrap();
}

#[tokio::test]
async fn a_live_socket_is_not_taken_and_its_owner_is_named() {
    let (_directory, path, address) = new_path();
    let first = bound(&address);
    let inode = fs::symlink_metadata(&path).unwrap().ino();
    let error = try_bind(&address, SocketOptions::default()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, BindError::InUse { owner: Some(_), .. }), "{error:?}");
    assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
    assert!(text.contains("--listen"), "{text}");
    assert_eq!(fs::symlink_metadata(&path).unwrap().ino(), inode);
    drop(first);
}

#[test]
fn a_live_socket_with_a_full_queue_is_not_taken() {
    let (_directory, path, address) = new_path();
    let socket = new_socket().unwrap();
    let name = SocketAddrUnix::new(&path).unwrap();
    rustix::net::bind(&socket, &name).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let waiting = StdUnixStream::connect(&path).unwrap();
    let error = try_bind(&address, SocketOptions::default()).unwrap_err();
    assert!(matches!(error, BindError::InUse { owner: None, .. }), "{error:?}");
    drop(waiting);
}

#[test]
fn what_is_not_a_socket_is_left_alone() {
    let (directory, path, address) = new_path();
    let refuse = |kind| {
        let error = try_bind(&address, SocketOptions::default()).unwrap_err().to_string();
        assert!(error.contains(kind) && error.contains("left alone"), "{error}");
    };
    fs::write(&path, "precious").unwrap();
    refuse("a regular file");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    fs::remove_file(&path).unwrap();

    fs::create_dir(&path).unwrap();
    refuse("a directory");
    fs::remove_dir(&path).unwrap();

    // Also a link to a stale socket, and a dangling link.
    let target = directory.path().join("target");
    symlink(&target, &path).unwrap();
    refuse("a symbolic link");
    drop(StdUnixListener::bind(&target).unwrap());
    refuse("a symbolic link");
    assert!(target.exists());
    fs::remove_file(&path).unwrap();

    let _datagram = UnixDatagram::bind(&path).unwrap();
    try_bind(&address, SocketOptions::default()).unwrap_err();
    assert!(path.exists());
}

#[test]
fn the_file_is_removed_only_if_this_process_created_it() {
    let (_directory, path, address) = new_path();
    let first = bound(&address);
    assert!(first.file.try_remove().unwrap());
    assert!(!path.exists());
    assert!(!first.file.try_remove().unwrap());

    let second = bound(&address);
    assert!(!first.file.try_remove().unwrap());
    assert!(path.exists());
    fs::remove_file(&path).unwrap();
    fs::write(&path, "a foreign file").unwrap();
    assert!(!second.file.try_remove().unwrap());
    assert!(path.exists());
}

#[test]
fn an_inode_number_is_not_reused_while_the_handle_is_open() {
    let (_directory, path, address) = new_path();
    let BoundSocket { file, listener } = bound(&address);
    drop(listener);
    fs::remove_file(&path).unwrap();
    let _other = StdUnixListener::bind(&path).unwrap();
    assert!(!file.try_remove().unwrap());
    assert!(path.exists());
}

#[test]
fn a_failed_bind_leaves_nothing_behind() {
    if rustix::process::geteuid().is_root() {
        // Root may set any group, so the bind would not fail.
        return;
    }
    let (_directory, path, address) = new_path();
    let options = SocketOptions { mode: 0o660, group: Some(Group::from_gid(0)), ..SocketOptions::default() };
    let error = try_bind(&address, options).unwrap_err().to_string();
    assert!(error.contains("--socket-group"), "{error}");
    assert!(!path.exists());
}

#[test]
fn a_directory_that_cannot_be_created_is_named() {
    let (directory, ..) = new_path();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let error = try_bind(&UnixAddress::Path(file.join("kms.sock")), SocketOptions::default()).unwrap_err();
    assert!(error.to_string().contains("file for the socket"), "{error}");
}

#[test]
fn a_lock_of_another_process_is_reported() {
    let (directory, path, address) = new_path();
    let lock = DirectoryLock::try_acquire(directory.path()).unwrap();
    let error = try_bind(&address, SocketOptions::default()).unwrap_err();
    assert!(matches!(error, BindError::Locked { .. }), "{error:?}");
    assert!(!path.exists());
    drop(lock);
    bound(&address);
}

/// A thread that sleeps would block the other tasks, among them the one that releases the lock.
#[tokio::test(start_paused = true)]
async fn other_tasks_run_while_it_waits_for_the_lock() {
    let (directory, path, address) = new_path();
    let lock_for = |time| {
        let lock = DirectoryLock::try_acquire(directory.path()).unwrap();
        async move {
            sleep(time).await;
            drop(lock);
        }
    };
    let short = Duration::from_millis(500);
    let (socket, ()) = tokio::join!(bind(&address, SocketOptions::default()), lock_for(short));
    let socket = socket.unwrap();
    let (removed, ()) = tokio::join!(socket.remove_if_own(), lock_for(short));
    assert!(removed.unwrap() && !path.exists());

    let long = Duration::from_secs(60);
    let (socket, ()) = tokio::join!(bind(&address, SocketOptions::default()), lock_for(long));
    assert!(matches!(socket.unwrap_err(), BindError::Locked { .. }));
}

#[tokio::test]
async fn abstract_sockets_work_and_are_not_taken() {
    let name = format!("transit-kms-test-{}-{}", std::process::id(), rand::random::<u64>());
    let address = UnixAddress::Abstract(name.clone());
    let socket = bound(&address);
    drop(UnixStream::connect(format!("\0{name}")).await.unwrap());
    let error = try_bind(&address, SocketOptions::default()).unwrap_err();
    assert!(matches!(error, BindError::InUse { owner: Some(_), .. }), "{error:?}");
    assert!(!socket.file.try_remove().unwrap());
}
