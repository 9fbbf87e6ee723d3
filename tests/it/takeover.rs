//! `--takeover`: which process owns the socket, and when, while one daemon replaces another.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use kms_plugin::v2::StatusRequest;
use rustix::{
    fs::{FlockOperation, flock},
    process::Signal,
};
use tempfile::TempDir;
use testkit::{
    Daemon, DaemonOptions, Load, TestEnv, calls, cli::run, connect, eventually, http::client, kms_client,
    port, temp_dir, unix_url,
};

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
/// The number of takeovers in the test under load; `tests/e2e/upgrades.rs` has more.
const UPGRADES: usize = 5;

/// A folder with the socket that one daemon takes over from another.
struct SharedSocket {
    dir: TempDir,
    socket: PathBuf,
}

impl SharedSocket {
    fn new() -> Self {
        let dir = temp_dir("takeover-");
        Self { socket: dir.path().join("kms.sock"), dir }
    }

    /// Starts a daemon that takes over this socket, and does not wait for the takeover.
    async fn daemon<const N: usize>(&self, config: &Path, more: [&str; N]) -> Daemon {
        let mut arguments = vec!["--takeover", "--log-level", "debug", "--health-check-interval", "1s"];
        arguments.extend(more);
        let arguments = arguments.into_iter().map(str::to_owned).collect();
        let socket = Some(self.socket.clone());
        // `start_with` connects to the path, which any of the daemons may own.
        Daemon::start_with(config, DaemonOptions { arguments, socket, ..DaemonOptions::default() }).await
    }

    fn inode(&self) -> u64 {
        fs::symlink_metadata(&self.socket).unwrap().ino()
    }

    /// The files in the folder besides the socket.
    fn others(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "kms.sock").collect()
    }

    async fn wait_replaced(&self, before: u64) {
        eventually("the successor has the path", WAIT_TIMEOUT, async || self.inode() != before).await;
    }
}

async fn answered(daemon: &Daemon) -> f64 {
    daemon.metric("transit_kms_requests_total", &[]).await
}

#[tokio::test]
async fn a_successor_takes_over_once_it_is_verified_and_the_predecessor_keeps_serving() {
    let (env, shared) = (TestEnv::start().await, SharedSocket::new());
    let mut first = shared.daemon(&env.config, []).await;
    first.wait_ready().await;
    let old = kms_client(&shared.socket).await;
    calls::round_trip(&old, "old").await;

    // A successor without a verified session does not take over.
    let later = shared.dir.path().join("later");
    fs::create_dir(&later).unwrap();
    let before = shared.inode();
    let mut second = shared.daemon(&later.join("config.yaml"), []).await;
    second.wait_printed(&format!("the process with pid {} and uid ", first.pid())).await;
    eventually("readyz names the missing config", WAIT_TIMEOUT, async || {
        let (status, why) = second.admin("/readyz").await;
        assert_eq!(status, 503, "{why}");
        if why.contains("config.yaml") { Ok(()) } else { Err(why) }
    })
    .await;
    assert_eq!(shared.inode(), before);
    calls::round_trip(&kms_client(&shared.socket).await, "still the first").await;

    fs::copy(&env.config, later.join("config.yaml")).unwrap();
    shared.wait_replaced(before).await;
    second.wait_ready().await;
    assert_eq!(shared.others(), ["later"]);
    second.wait_printed(&format!("took the socket over from the process with pid {} ", first.pid())).await;
    eventually("the first process names its successor", WAIT_TIMEOUT, async || {
        let (log, by) = (first.log(), format!("with pid {} ", second.pid()));
        log.lines().any(|line| line.contains("superseded: new connections go to") && line.contains(&by))
    })
    .await;
    let (status, text) = first.admin("/readyz").await;
    assert!(status == 200 && text.contains("; superseded: "), "{status} {text}");
    for (daemon, superseded) in [(&first, 1.0), (&second, 0.0)] {
        assert_eq!(daemon.metric("transit_kms_superseded", &[]).await, superseded);
    }

    // Each process serves its own connections.
    let (by_first, by_second) = (answered(&first).await, answered(&second).await);
    calls::round_trip(&old, "old again").await;
    assert_eq!(answered(&first).await, by_first + 3.0);
    let new = kms_client(&shared.socket).await;
    calls::round_trip(&new, "new").await;
    assert_eq!(answered(&second).await, by_second + 3.0);

    // The end of the first process neither removes the socket nor fails a call of its clients.
    let taken = shared.inode();
    assert!(first.terminate().await.success());
    assert!(first.log().contains("0 calls and 0 connections were cut off"), "{}", first.log());
    assert_eq!(shared.inode(), taken);
    calls::round_trip(&old, "the old one at the second").await;
    assert!(second.terminate().await.success());
    assert!(!shared.socket.exists());
}

/// A rollout stops the predecessor as soon as the successor is ready, so the successor must own the path by then.
#[tokio::test]
async fn a_process_is_ready_only_when_it_owns_the_path() {
    let (env, shared) = (TestEnv::start().await, SharedSocket::new());
    let first = shared.daemon(&env.config, []).await;
    first.wait_ready().await;
    let before = shared.inode();
    let later = shared.dir.path().join("later.yaml");
    let second = shared.daemon(&later, []).await;
    // Processes change the folder only under its lock, which the test now holds.
    let folder = fs::File::open(shared.dir.path()).unwrap();
    flock(&folder, FlockOperation::LockExclusive).unwrap();
    fs::copy(&env.config, &later).unwrap();
    eventually("the successor is verified and waits", WAIT_TIMEOUT, async || {
        let (status, why) = second.admin("/readyz").await;
        assert_eq!(status, 503, "{why}");
        if why == "waiting to take the socket over\n" { Ok(()) } else { Err(why) }
    })
    .await;
    assert_eq!(shared.inode(), before);
    drop(folder);
    second.wait_ready().await;
    assert_ne!(shared.inode(), before);
}

#[tokio::test]
async fn no_call_fails_during_repeated_takeovers_under_load() {
    let (env, shared) = (TestEnv::start().await, SharedSocket::new());
    let mut daemon = shared.daemon(&env.config, []).await;
    daemon.wait_ready().await;
    let load = Load::start_on(&shared.socket, 4, Duration::from_millis(5)).await;
    for _ in 0..UPGRADES {
        let before = shared.inode();
        let next = shared.daemon(&env.config, []).await;
        // A rollout removes the predecessor once the successor is ready.
        next.wait_ready().await;
        assert_ne!(shared.inode(), before, "it is ready only when it owns the path");
        assert!(daemon.terminate().await.success());
        daemon = next;
        let calls = load.calls();
        eventually("further calls", WAIT_TIMEOUT, async || load.calls() > calls + 40).await;
    }
    load.stop().await.assert_nothing_failed();
    assert!(shared.others().is_empty(), "{:?}", shared.others());
}

#[tokio::test]
async fn without_vault_the_predecessor_serves_until_it_ends() {
    for signal in [Signal::TERM, Signal::KILL] {
        let (env, shared) = (TestEnv::start().await, SharedSocket::new());
        let mut first = shared.daemon(&env.config, []).await;
        first.wait_ready().await;
        let mut bao = env.bao;
        bao.stop();
        let before = shared.inode();
        let second = shared.daemon(&env.config, []).await;
        eventually("the successor has tried its config", WAIT_TIMEOUT, async || {
            let (status, why) = second.admin("/readyz").await;
            assert_eq!(status, 503, "{why}");
            if why.contains("cannot be reached") { Ok(()) } else { Err(why) }
        })
        .await;
        assert_eq!(shared.inode(), before);
        calls::status(&kms_client(&shared.socket).await).await.expect("the first knows the key");

        first.signal(signal);
        first.wait_ended(WAIT_TIMEOUT).await;
        let said = eventually("the second process answers with the reason", WAIT_TIMEOUT, async || {
            let mut kms = match connect(&shared.socket).await {
                Ok(_) => kms_client(&shared.socket).await,
                Err(error) => return Err(error.to_string()),
            };
            Ok(kms.status(StatusRequest {}).await.unwrap_err())
        })
        .await;
        assert!(said.message().contains("cannot be reached"), "{signal:?}: {said}");
        second.wait_printed("its predecessor is gone").await;
        bao.start_again().await;
        second.wait_ready().await;
    }
}

#[tokio::test]
async fn a_waiting_process_leaves_no_file_behind_when_it_ends() {
    let shared = SharedSocket::new();
    let absent = shared.dir.path().join("absent.yaml");
    let first = shared.daemon(&absent, []).await;
    let before = shared.inode();
    let mut second = shared.daemon(&absent, []).await;
    assert_eq!(shared.others().len(), 1);
    assert_eq!(second.terminate().await.code(), Some(0));
    assert!(shared.others().is_empty());
    assert_eq!(shared.inode(), before);

    // A killed process cannot clean up; the next waiting one does.
    let mut third = shared.daemon(&absent, []).await;
    third.signal(Signal::KILL);
    third.wait_ended(WAIT_TIMEOUT).await;
    let left = shared.others();
    assert_eq!(left.len(), 1);
    let _fourth = shared.daemon(&absent, []).await;
    assert_eq!(shared.others().len(), 1);
    assert_ne!(shared.others(), left);
    drop(first);
}

#[tokio::test]
async fn without_a_live_predecessor_it_listens_at_once() {
    let shared = SharedSocket::new();
    let absent = shared.dir.path().join("absent.yaml");
    for _ in 0..2 {
        // In the second round, the stale socket of the first is still there.
        let mut daemon = shared.daemon(&absent, []).await;
        let error = kms_client(&shared.socket).await.status(StatusRequest {}).await.unwrap_err();
        assert!(error.message().contains("absent.yaml"), "{error}");
        assert!(shared.others().is_empty());
        daemon.signal(Signal::KILL);
        daemon.wait_ended(WAIT_TIMEOUT).await;
    }
}

/// As when a rollout is undone while both pods run: the new one ends, and the old one stays.
#[tokio::test]
async fn when_the_successor_ends_the_predecessor_takes_the_path_again() {
    let (env, shared) = (TestEnv::start().await, SharedSocket::new());
    let first = shared.daemon(&env.config, []).await;
    first.wait_ready().await;
    let old = kms_client(&shared.socket).await;
    calls::round_trip(&old, "old").await;
    for signal in [Signal::TERM, Signal::KILL] {
        let before = shared.inode();
        let mut second = shared.daemon(&env.config, []).await;
        shared.wait_replaced(before).await;
        wait_superseded_by(&first, second.pid()).await;
        second.signal(signal);
        second.wait_ended(WAIT_TIMEOUT).await;

        eventually("the first process owns the path", WAIT_TIMEOUT, async || {
            let (status, text) = first.admin("/readyz").await;
            // Its answer never names an ended process as the one that accepts connections.
            let names_it = text.contains(&format!("pid {} ", second.pid()));
            if status == 200 && !names_it && !text.contains("superseded") { Ok(()) } else { Err(text) }
        })
        .await;
        assert_eq!(first.metric("transit_kms_superseded", &[]).await, 0.0);
        let by_first = answered(&first).await;
        calls::round_trip(&kms_client(&shared.socket).await, "new").await;
        calls::round_trip(&old, "old again").await;
        assert_eq!(answered(&first).await, by_first + 6.0);
        assert!(shared.others().is_empty(), "{:?}", shared.others());
    }

    // Another process can take over again.
    let before = shared.inode();
    let third = shared.daemon(&env.config, []).await;
    shared.wait_replaced(before).await;
    wait_superseded_by(&first, third.pid()).await;
}

async fn wait_superseded_by(daemon: &Daemon, pid: u32) {
    eventually("readyz names the successor", WAIT_TIMEOUT, async || {
        let (status, text) = daemon.admin("/readyz").await;
        let named = text.contains("; superseded: ") && text.contains(&format!("with pid {pid} "));
        if status == 200 && named { Ok(()) } else { Err(text) }
    })
    .await;
}

/// Two processes are superseded one after the other. One takes the path again, and the other names it.
#[tokio::test]
async fn of_two_superseded_processes_only_one_takes_the_path_again() {
    let (env, shared) = (TestEnv::start().await, SharedSocket::new());
    let mut daemons = Vec::new();
    for _ in 0..3 {
        let daemon = shared.daemon(&env.config, []).await;
        daemon.wait_ready().await;
        daemons.push(daemon);
    }
    let mut last = daemons.pop().unwrap();
    for daemon in &daemons {
        wait_superseded_by(daemon, last.pid()).await;
    }
    last.signal(Signal::KILL);
    last.wait_ended(WAIT_TIMEOUT).await;
    let settled = eventually("one process owns the path and the other names it", WAIT_TIMEOUT, async || {
        let texts = [daemons[0].admin("/readyz").await, daemons[1].admin("/readyz").await];
        let by = |taker: usize, other: usize| {
            let named =
                format!("superseded: new connections go to the process with pid {} ", daemons[taker].pid());
            !texts[taker].1.contains("superseded") && texts[other].1.contains(&named)
        };
        let settled = texts.iter().all(|(status, _)| *status == 200) && (by(0, 1) || by(1, 0));
        if settled { Ok(shared.inode()) } else { Err(format!("{texts:?}")) }
    })
    .await;
    calls::round_trip(&kms_client(&shared.socket).await, "new").await;
    let took = |daemon: &Daemon| daemon.log().matches("took it back").count();
    assert_eq!(took(&daemons[0]) + took(&daemons[1]), 1);
    assert_eq!(shared.inode(), settled);
}

/// As by `rm` or a cleaner of temporary files.
#[tokio::test]
async fn a_removed_socket_is_bound_again() {
    let shared = SharedSocket::new();
    let mut daemon = shared.daemon(&shared.dir.path().join("absent.yaml"), []).await;
    fs::remove_file(&shared.socket).unwrap();
    eventually("the socket is bound again", WAIT_TIMEOUT, async || connect(&shared.socket).await).await;
    kms_client(&shared.socket).await.status(StatusRequest {}).await.unwrap_err();
    assert!(daemon.terminate().await.success());
    assert!(!shared.socket.exists());
}

#[tokio::test]
async fn both_sockets_are_taken_over() {
    let (env, shared) = (TestEnv::start().await, SharedSocket::new());
    let v1 = shared.dir.path().join("v1@localhost");
    let url = unix_url(&v1).into_string().unwrap();
    let more = ["--kms-v1-listen", &url];
    let first = shared.daemon(&env.config, more).await;
    first.wait_ready().await;
    let inodes = || [shared.inode(), fs::symlink_metadata(&v1).unwrap().ino()];
    let before = inodes();
    let second = shared.daemon(&env.config, more).await;
    second.wait_ready().await;
    let after = inodes();
    assert!(before.iter().all(|inode| !after.contains(inode)), "{before:?} {after:?}");
    assert_eq!(shared.others(), ["v1@localhost"]);
}

/// As with a host port, which two pods of a node can only share with SO_REUSEPORT.
#[tokio::test]
async fn the_admin_port_answers_during_a_takeover() {
    let (env, shared) = (TestEnv::start().await, SharedSocket::new());
    let port = format!("127.0.0.1:{}", port::unused());
    let start = || {
        let socket = Some(shared.socket.clone());
        let options =
            DaemonOptions::arguments(["--takeover", "--admin-listen", &port, "--log-level", "debug"]);
        Daemon::spawn(&env.config, DaemonOptions { socket, ..options })
    };
    let has_path = async |daemon: &Daemon| {
        eventually("it has the path", WAIT_TIMEOUT, async || daemon.log().contains("listening")).await;
    };
    let http = client().build().unwrap();
    let live = async || http.get(format!("http://{port}/livez")).send().await.unwrap().status().as_u16();
    let mut first = start();
    has_path(&first).await;
    assert_eq!(live().await, 200);
    let mut second = start();
    has_path(&second).await;
    assert!(first.terminate().await.success());
    assert_eq!(live().await, 200);

    // Only processes with `--takeover` share the port.
    let options = DaemonOptions::arguments(["--admin-listen", &port]);
    let mut third = Daemon::spawn(&env.config, options);
    assert_eq!(third.wait_ended(WAIT_TIMEOUT).await.code(), Some(73));
    assert!(third.log().contains(&format!("cannot listen on {port}")), "{}", third.log());
    assert!(second.terminate().await.success());
}

#[tokio::test]
async fn takeover_of_an_abstract_socket_is_refused_at_the_start() {
    for address in
        [["--listen", "unix:///@transit-kms-test"], ["--kms-v1-listen", "unix:///@transit-kms-test-v1"]]
    {
        let ran = run(&[&["serve", "--takeover", "--config=/absent.yaml"][..], &address].concat()).await;
        assert_eq!(ran.code, Some(64), "{ran:?}");
        assert!(ran.stderr.contains("--takeover does not work with unix:///@transit-kms-test"), "{ran:?}");
        assert!(ran.stderr.contains("omit --takeover"), "{ran:?}");
    }
}
