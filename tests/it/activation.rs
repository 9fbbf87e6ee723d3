//! Socket activation. The test takes the place of systemd: it holds the listener and receives the notifications.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use kms_plugin::v2::StatusRequest;
use rustix::process::Signal;
use tempfile::TempDir;
use testkit::{
    Daemon, DaemonOptions, Load, TestEnv, calls, connect, eventually, kms_client, raw::RawClient,
    reconnecting_client, temp_dir,
};
use tokio::net::UnixDatagram;

const WAIT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than [`WAIT_TIMEOUT`], so that a shutdown that waits for open connections fails the test.
const LONG_GRACE: [&str; 2] = ["--shutdown-grace", "30s"];
const RESTARTS: usize = 5;

/// A socket unit: its listener and its folder.
struct SocketUnit {
    dir: TempDir,
    listener: UnixListener,
    socket: PathBuf,
}

impl SocketUnit {
    fn new() -> Self {
        let dir = temp_dir("unit-");
        let socket = dir.path().join("kms.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o620)).unwrap();
        Self { dir, listener, socket }
    }

    /// The options of the service of this unit.
    fn options<const N: usize>(&self, more: [&str; N]) -> DaemonOptions {
        let mut arguments = vec!["--log-level", "debug", "--health-check-interval", "1s"];
        arguments.extend(more);
        DaemonOptions {
            arguments: arguments.into_iter().map(str::to_owned).collect(),
            listener: Some(self.listener.try_clone().unwrap()),
            socket: Some(self.socket.clone()),
            ..DaemonOptions::default()
        }
    }

    async fn daemon<const N: usize>(&self, config: &Path, more: [&str; N]) -> Daemon {
        Daemon::start_with(config, self.options(more)).await
    }

    fn absent_config(&self) -> PathBuf {
        self.dir.path().join("absent.yaml")
    }

    fn assert_untouched(&self) {
        let there = fs::symlink_metadata(&self.socket).unwrap();
        assert_eq!(there.mode() & 0o7777, 0o620);
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 1);
    }
}

#[tokio::test]
async fn restarts_under_load_fail_no_call() {
    let (env, unit) = (TestEnv::start().await, SocketUnit::new());
    let mut daemon = unit.daemon(&env.config, []).await;
    daemon.wait_ready().await;
    let load = Load::start_on(&unit.socket, 4, Duration::from_millis(5)).await;
    for _ in 0..RESTARTS {
        let calls = load.calls();
        eventually("further calls", WAIT_TIMEOUT, async || load.calls() > calls + 40).await;
        assert!(daemon.terminate().await.success());
        unit.assert_untouched();
        daemon = unit.daemon(&env.config, []).await;
    }
    load.stop().await.assert_nothing_failed();
    daemon.wait_printed("inherited a listener").await;
}

#[tokio::test]
async fn calls_between_two_processes_are_answered_by_the_next_one() {
    let (env, unit) = (TestEnv::start().await, SocketUnit::new());
    // No process runs yet, so this connection waits in the queue.
    let mut kms = reconnecting_client(&unit.socket);
    let mut request = tonic::Request::new(StatusRequest {});
    request.set_timeout(WAIT_TIMEOUT);
    let call = tokio::spawn(async move { kms.status(request).await });
    let daemon = unit.daemon(&env.config, []).await;
    assert_eq!(call.await.unwrap().unwrap().into_inner().healthz, "ok");
    drop(daemon);
    unit.assert_untouched();
}

#[tokio::test]
async fn open_connections_do_not_delay_the_shutdown() {
    let unit = SocketUnit::new();
    let mut daemon = unit.daemon(&unit.absent_config(), LONG_GRACE).await;
    let silent = RawClient::silent(&unit.socket).await;
    let mut greeted = RawClient::greeted(&unit.socket).await;
    greeted.frame().await.expect("SETTINGS");
    let mut idle = kms_client(&unit.socket).await;
    idle.status(StatusRequest {}).await.unwrap_err();
    daemon.signal(Signal::TERM);
    assert!(daemon.wait_ended(WAIT_TIMEOUT).await.success());
    assert!(daemon.log().contains("0 calls and 0 connections were cut off"), "{}", daemon.log());
    unit.assert_untouched();
    // The listener belongs to the unit, so clients can still connect.
    connect(&unit.socket).await.unwrap();
    drop((silent, greeted));
}

#[tokio::test]
async fn flags_that_contradict_the_socket_unit_are_named() {
    let unit = SocketUnit::new();
    for flags in [&["--socket-mode=0666"][..], &["--takeover"], &["--socket-group=0"], &[]] {
        let mut options = unit.options([]);
        options.arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let mut daemon = Daemon::start_with(&unit.absent_config(), options).await;
        // After its end the output is complete.
        assert!(daemon.terminate().await.success());
        let warned = daemon.log().contains("have no effect on an inherited listener");
        assert_eq!(warned, !flags.is_empty(), "{flags:?}: {}", daemon.log());
        unit.assert_untouched();
    }
}

#[tokio::test]
async fn two_listeners_are_distinguished_by_their_names() {
    /// Binds two sockets, and passes them on with the names in the first argument.
    const PASS_TWO: &str = "\
import os, socket, sys
names, kms, v1, *rest = sys.argv[1:]
held = []
for path in (kms, v1):
    one = socket.socket(socket.AF_UNIX)
    one.bind(path)
    one.listen()
    held.append(os.dup2(one.detach(), 20 + len(held)))
for at, one in enumerate(held):
    os.dup2(one, 3 + at)
os.environ.update(LISTEN_FDS='2', LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=names)
os.execv(rest[0], rest)";
    let env = TestEnv::start().await;
    let spawn = |dir: &TempDir, names: &str, v1: &str| {
        let (kms, v1) = (dir.path().join("kms.sock"), dir.path().join(v1));
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let wrapper =
            vec!["python3".to_owned(), "-c".into(), PASS_TWO.into(), names.into(), text(&kms), text(&v1)];
        Daemon::spawn(&env.config, DaemonOptions { socket: Some(kms), wrapper, ..DaemonOptions::default() })
    };
    let dir = temp_dir("two-");
    let mut daemon = spawn(&dir, "kms:kms-v1", "v1@localhost");
    daemon.wait_listening().await;
    daemon.wait_ready().await;
    calls::round_trip(&kms_client(daemon.socket()).await, "v2").await;
    daemon.wait_printed("listening for KMS v1 too").await;
    assert!(daemon.terminate().await.success());
    assert!(dir.path().join("kms.sock").exists() && dir.path().join("v1@localhost").exists());

    let dir = temp_dir("two-");
    for (names, v1, code, words) in [
        ("one:other", "a", 73, "FileDescriptorName="),
        // KMS v1 clients cannot connect to this path.
        ("kms:kms-v1", "b", 64, "an @ in the file's name"),
    ] {
        let folder = dir.path().join(v1);
        fs::create_dir(&folder).unwrap();
        let dir = tempfile::tempdir_in(folder).unwrap();
        let mut daemon = spawn(&dir, names, "v1.sock");
        assert_eq!(daemon.wait_ended(WAIT_TIMEOUT).await.code(), Some(code), "{}", daemon.log());
        assert!(daemon.log().contains(words), "{}", daemon.log());
    }
}

#[tokio::test]
async fn descriptors_for_other_processes_are_ignored_and_unusable_ones_are_named() {
    let dir = temp_dir("unit-");
    let start = |pid: &str| {
        let script = format!(
            "exec 3</dev/null; export LISTEN_FDS=1 LISTEN_PID={pid} LISTEN_FDNAMES=odd; exec \"$0\" \"$@\""
        );
        let wrapper = vec!["sh".to_owned(), "-c".into(), script];
        let config = dir.path().join("absent.yaml");
        Daemon::spawn(&config, DaemonOptions { wrapper, ..DaemonOptions::default() })
    };
    let mut daemon = start("1");
    daemon.wait_listening().await;
    assert!(daemon.terminate().await.success());
    assert!(!daemon.socket().exists(), "it was its own");

    let mut daemon = start("$$");
    assert_eq!(daemon.wait_ended(WAIT_TIMEOUT).await.code(), Some(73));
    let said = daemon.log();
    assert!(said.contains("descriptor \"odd\"") && said.contains("ListenStream="), "{said}");
}

/// The notification socket of systemd (sd_notify).
struct NotifySocket {
    socket: UnixDatagram,
    _dir: TempDir,
    path: PathBuf,
}

impl NotifySocket {
    fn new() -> Self {
        let dir = temp_dir("notify-");
        let path = dir.path().join("notify.sock");
        Self { socket: UnixDatagram::bind(&path).unwrap(), _dir: dir, path }
    }

    fn environment(&self, watchdog: Duration) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("NOTIFY_SOCKET".to_owned(), self.path.to_str().unwrap().to_owned()),
            ("WATCHDOG_USEC".to_owned(), watchdog.as_micros().to_string()),
        ])
    }

    async fn next(&self) -> String {
        let mut message = [0; 256];
        let read = tokio::time::timeout(WAIT_TIMEOUT, self.socket.recv(&mut message)).await;
        let length = read.expect("no further notification").unwrap();
        String::from_utf8(message[..length].into()).unwrap()
    }

    /// Reads until this notification arrives, and returns those before it.
    async fn until(&self, wanted: &str) -> Vec<String> {
        let mut before = Vec::new();
        loop {
            let notification = self.next().await;
            if notification.trim_end() == wanted {
                return before;
            }
            before.push(notification);
        }
    }
}

#[tokio::test]
async fn systemd_is_notified_of_readiness_watchdog_and_shutdown() {
    let (unit, notified) = (SocketUnit::new(), NotifySocket::new());
    // Without a config it still listens, is alive, and reports the reason.
    let options = unit.options([]);
    let environment = notified.environment(Duration::from_millis(100));
    let mut daemon =
        Daemon::start_with(&unit.absent_config(), DaemonOptions { environment, ..options }).await;
    notified.until("READY=1").await;
    for _ in 0..3 {
        notified.until("WATCHDOG=1").await;
    }
    daemon.signal(Signal::TERM);
    let before = notified.until("STOPPING=1").await;
    assert!(!before.iter().any(|notification| notification.contains("READY")), "{before:?}");
    assert!(daemon.wait_ended(WAIT_TIMEOUT).await.success());
}

#[tokio::test]
async fn a_process_that_waits_for_a_takeover_is_alive_but_not_ready() {
    let notified = NotifySocket::new();
    let dir = temp_dir("waits-");
    let (socket, absent) = (dir.path().join("kms.sock"), dir.path().join("absent.yaml"));
    let start = async |environment: BTreeMap<String, String>| {
        let options = DaemonOptions::arguments(["--takeover"]);
        let socket = Some(socket.clone());
        Daemon::start_with(&absent, DaemonOptions { environment, socket, ..options }).await
    };
    let mut first = start(BTreeMap::new()).await;
    let _second = start(notified.environment(Duration::from_millis(100))).await;
    for _ in 0..5 {
        assert_eq!(notified.next().await, "WATCHDOG=1\n");
    }
    first.terminate().await;
    notified.until("READY=1").await;
}
