//! Signals, and the shutdown of the real process.

use std::{
    fs,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use kms_plugin::v2::{DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest};
use rustix::process::Signal;
use tempfile::TempDir;
use testkit::{
    self, Bao, ConfigFile, Daemon, DaemonOptions, Kms, config_file, connect, eventually,
    raw::{self, GOAWAY, PREFACE, RawClient},
};
use tonic::{Code, Request};

const WAIT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than [`WAIT_TIMEOUT`], so that a shutdown that waits for silent clients fails the test.
const LONG_GRACE: [&str; 2] = ["--shutdown-grace", "30s"];

#[tokio::test]
async fn sigterm_and_sigint_end_it_cleanly_and_remove_its_sockets() {
    for signal in [Signal::TERM, Signal::INT] {
        let dir = tempfile::tempdir().unwrap();
        let mut daemon = Daemon::start(&no_config(&dir)).await;
        let sockets = [daemon.socket().to_owned(), daemon.admin_socket()];
        assert!(sockets.iter().all(|socket| socket.exists()));
        daemon.signal(signal);
        let status = daemon.wait_ended(WAIT_TIMEOUT).await;
        assert_eq!(status.code(), Some(0), "{signal:?}: {status}");
        assert!(!sockets.iter().any(|socket| socket.exists()), "{signal:?}");
        let name = if signal == Signal::TERM { "SIGTERM" } else { "SIGINT" };
        assert!(daemon.log().contains(&format!("{name}: shutting down")), "{}", daemon.log());
    }
}

#[tokio::test]
async fn a_signal_right_after_the_start_ends_it_cleanly() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::spawn(&no_config(&dir), DaemonOptions::default());
    let socket = daemon.socket().to_owned();
    // Without a pause between the checks, because this moment is short.
    while !socket.exists() {
        assert!(daemon.exited().is_none(), "it ended");
        std::thread::yield_now();
    }
    assert_eq!(daemon.terminate().await.code(), Some(0));
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_socket_of_another_process_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(&no_config(&dir)).await;
    let socket = daemon.socket().to_owned();
    let other = dir.path().join("other.sock");
    let _successor = UnixListener::bind(&other).unwrap();
    fs::rename(&other, &socket).unwrap();
    assert!(daemon.terminate().await.success());
    assert!(connect(&socket).await.is_ok(), "the successor's socket is still there");

    // A missing socket is no error either.
    let mut daemon = Daemon::start(&no_config(&dir)).await;
    fs::remove_file(daemon.socket()).unwrap();
    assert!(daemon.terminate().await.success());
}

#[tokio::test]
async fn silent_clients_do_not_delay_the_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start_with(&no_config(&dir), DaemonOptions::arguments(LONG_GRACE)).await;
    let socket = daemon.socket().to_owned();
    let nothing = RawClient::silent(&socket).await;
    let mut half = RawClient::silent(&socket).await;
    half.send(&PREFACE[..10]).await;
    let greeted = RawClient::greeted(&socket).await;
    // A client that has got a response, and then answers nothing, not even a ping.
    let mut answered = RawClient::greeted(&socket).await;
    answered.send(&raw::call_headers("Status", "localhost").bytes()).await;
    answered.send(&raw::call_message(&[]).bytes()).await;
    while answered.frame().await.expect("an answer").kind != raw::HEADERS {}
    let mut well_behaved = daemon.kms().await;
    well_behaved.status(StatusRequest {}).await.unwrap_err();
    let admin = RawClient::silent(&daemon.admin_socket()).await;

    daemon.signal(Signal::TERM);
    assert!(daemon.wait_ended(WAIT_TIMEOUT).await.success());
    assert!(daemon.log().contains("0 calls and 0 connections were cut off"), "{}", daemon.log());
    drop((nothing, half, greeted, answered, admin));
}

#[tokio::test]
async fn an_incomplete_request_ends_at_its_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start_with(&no_config(&dir), DaemonOptions::arguments(LONG_GRACE)).await;
    let mut half = RawClient::greeted(daemon.socket()).await;
    // The message is never sent.
    half.send(&raw::call_headers("Encrypt", "localhost").bytes()).await;
    half.send(&raw::ping().bytes()).await;
    while half.frame().await.expect("an answer to the ping").kind != raw::PING {}
    daemon.signal(Signal::TERM);
    assert!(daemon.wait_ended(WAIT_TIMEOUT).await.success());
}

/// An incomplete request keeps the drain open until its deadline.
#[tokio::test]
async fn while_draining_it_is_alive_but_not_ready_and_does_not_take_the_path_again() {
    let env = testkit::TestEnv::start().await;
    let (mut daemon, _) = env.ready(LONG_GRACE).await;
    let socket = daemon.socket().to_owned();
    let mut half = RawClient::greeted(&socket).await;
    let mut headers = raw::call_headers("Encrypt", "localhost");
    let deadline = headers.payload.len() - "2999870u".len();
    headers.payload.splice(deadline.., *b"0020000m");
    half.send(&headers.bytes()).await;
    half.send(&raw::ping().bytes()).await;
    while half.frame().await.expect("an answer to the ping").kind != raw::PING {}
    daemon.signal(Signal::TERM);
    daemon.wait_printed("no longer accepting").await;
    let stopping = async || {
        let (status, text) = daemon.admin("/readyz").await;
        assert!(status == 503 && text.starts_with("stopping: "), "{status} {text}");
        assert_eq!(daemon.admin("/livez").await.0, 200);
    };
    stopping().await;
    // No process listens on the path any more. The draining one notices that, and does not take the path again.
    fs::remove_file(&socket).unwrap();
    daemon.wait_printed("this process receives no new connections: no process listens at ").await;
    stopping().await;
    assert!(!socket.exists());
    drop(half);
    assert!(daemon.wait_ended(WAIT_TIMEOUT).await.success());
    assert!(!socket.exists());
}

#[tokio::test]
async fn clients_get_goaway() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(&no_config(&dir)).await;
    let mut client = RawClient::greeted(daemon.socket()).await;
    // The response shows that the daemon has accepted this connection.
    client.frame().await.expect("SETTINGS");
    daemon.signal(Signal::TERM);
    let goaway = loop {
        let frame = client.frame().await.expect("GOAWAY before the end of the connection");
        if frame.kind == GOAWAY {
            break frame;
        }
    };
    // The error code is NO_ERROR.
    assert_eq!(goaway.payload[4..8], [0; 4], "{goaway:?}");
    assert!(daemon.wait_ended(WAIT_TIMEOUT).await.success());
}

#[tokio::test]
async fn a_call_in_flight_is_finished() {
    let mut env = Setup::start(LONG_GRACE).await;
    let sealed = encrypt(&mut env.kms).await;
    env.bao.freeze().await;
    let mut kms = env.kms.clone();
    let decrypt = kms.decrypt(decrypt_of(&sealed, Duration::from_secs(9)));
    tokio::pin!(decrypt);
    // It is sent before the Status on the same connection, so the daemon has it when Status is answered.
    tokio::select! {
        biased;
        answer = &mut decrypt => panic!("{answer:?}"),
        status = env.kms.status(StatusRequest {}) => drop(status.unwrap()),
    }
    env.daemon.signal(Signal::TERM);
    let draining = async || {
        let log = env.daemon.log();
        log.lines().any(|line| line.contains("finishing calls in flight") && line.contains("calls=1"))
    };
    tokio::select! {
        biased;
        answer = &mut decrypt => panic!("{answer:?}"),
        () = eventually("it drains", WAIT_TIMEOUT, draining) => {}
    }
    // New clients are not accepted, and the socket is removed.
    assert!(connect(env.daemon.socket()).await.is_err());
    assert!(env.daemon.exited().is_none());
    env.bao.thaw();
    assert_eq!(decrypt.await.unwrap().into_inner().plaintext, SEED);
    assert!(env.daemon.wait_ended(WAIT_TIMEOUT).await.success());
    assert!(env.daemon.log().contains("0 calls and 0 connections were cut off"), "{}", env.daemon.log());
}

#[tokio::test]
async fn a_call_that_does_not_end_is_cut_off_after_the_drain_grace() {
    let mut env = Setup::start(["--shutdown-grace", "500ms"]).await;
    let sealed = encrypt(&mut env.kms).await;
    env.bao.freeze().await;
    let mut kms = env.kms.clone();
    let stuck = kms.decrypt(decrypt_of(&sealed, Duration::from_secs(50)));
    tokio::pin!(stuck);
    tokio::select! {
        biased;
        answer = &mut stuck => panic!("{answer:?}"),
        status = env.kms.status(StatusRequest {}) => drop(status.unwrap()),
    }
    let begun = Instant::now();
    env.daemon.signal(Signal::TERM);
    let error = stuck.await.unwrap_err();
    assert_ne!(error.code(), Code::DeadlineExceeded, "{error:?}");
    assert!(env.daemon.wait_ended(WAIT_TIMEOUT).await.success());
    assert!(begun.elapsed() < WAIT_TIMEOUT, "{:?}", begun.elapsed());
    assert!(begun.elapsed() >= Duration::from_millis(500), "{:?}", begun.elapsed());
    assert!(!env.daemon.socket().exists());
    assert!(env.daemon.log().contains("1 calls and 1 connections were cut off"), "{}", env.daemon.log());
}

#[tokio::test]
async fn sighup_reloads_the_config() {
    let mut env = Setup::start(LONG_GRACE).await;
    let config = env.dir.path().join("config.yaml");
    // The file is changed by another name in another folder, so the watched folder has no event. Only polling would find
    // the change.
    let elsewhere = env.dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::hard_link(&config, elsewhere.join("config.yaml")).unwrap();
    let mut next = Vec::new();
    for _ in 0..5 {
        next.push(ConfigFile::with_new_token(&env.bao).await.yaml());
    }
    let begun = Instant::now();
    for text in next {
        let before = env.daemon.metric("transit_kms_session_generation", &[]).await;
        config_file::in_place(&elsewhere.join("config.yaml"), &text);
        env.daemon.signal(Signal::HUP);
        eventually("the new session", WAIT_TIMEOUT, async || {
            env.daemon.metric("transit_kms_session_generation", &[]).await > before
        })
        .await;
    }
    // Polling every five seconds could have found one or two of the changes in that time.
    assert!(begun.elapsed() < WAIT_TIMEOUT, "{:?}", begun.elapsed());
    assert!(env.daemon.exited().is_none());

    // SIGHUP without a change does nothing.
    let before = env.daemon.metric("transit_kms_session_generation", &[]).await;
    env.daemon.signal(Signal::HUP);
    eventually("the last SIGHUP is handled", WAIT_TIMEOUT, async || {
        env.daemon.log().matches("SIGHUP: reading the config").count() == 6
    })
    .await;
    env.kms.status(StatusRequest {}).await.unwrap();
    assert_eq!(env.daemon.metric("transit_kms_session_generation", &[]).await, before);
}

const SEED: &[u8] = b"0123456789abcdef0123456789abcdef";

/// A server, a daemon that uses it, and a client of the daemon.
struct Setup {
    // Fields are dropped in order, so the daemon ends before the server.
    daemon: Daemon,
    kms: Kms,
    bao: Bao,
    dir: TempDir,
}

impl Setup {
    async fn start(arguments: [&str; 2]) -> Self {
        let bao = Bao::start().await;
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.yaml");
        config_file::by_rename(&config, &ConfigFile::with_new_token(&bao).await.yaml());
        let daemon = Daemon::start_with(&config, DaemonOptions::arguments(arguments)).await;
        daemon.wait_ready().await;
        let kms = daemon.kms().await;
        Self { daemon, kms, bao, dir }
    }
}

fn no_config(dir: &TempDir) -> PathBuf {
    Path::join(dir.path(), "absent.yaml")
}

async fn encrypt(kms: &mut Kms) -> EncryptResponse {
    let request = EncryptRequest { plaintext: SEED.into(), uid: "shutdown".into() };
    kms.encrypt(request).await.unwrap().into_inner()
}

fn decrypt_of(sealed: &EncryptResponse, within: Duration) -> Request<DecryptRequest> {
    let mut request = Request::new(DecryptRequest {
        annotations: sealed.annotations.clone(),
        ciphertext: sealed.ciphertext.clone(),
        key_id: sealed.key_id.clone(),
        uid: "shutdown".into(),
    });
    request.set_timeout(within);
    request
}
