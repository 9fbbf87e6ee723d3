//! The socket of the real process: its owner and mode, its allowed clients, and what clients cannot do to it.
//!
//! Most tests need no server: a daemon without a config answers every Status with the reason.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use kms_plugin::v2::{DecryptRequest, EncryptRequest, StatusRequest};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use tempfile::TempDir;
use testkit::{
    Bao, ConfigFile, Daemon, DaemonOptions, Kms, calls, cli, command, config_file, connect, eventually,
    kms_client, port,
    raw::{self, DATA, END_HEADERS, END_STREAM, Frame, HEADERS, PREFACE, RST_STREAM, RawClient, SETTINGS},
    unix_url,
};
use tokio::{io::AsyncReadExt, process::Child, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// A user that is neither root nor, usually, the one that runs the tests.
const OTHER_UID: u32 = 65_534;
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);
/// A low limit of open files, and a number of connections above it.
const FEW_DESCRIPTORS: u64 = 64;
const MANY_CONNECTIONS: usize = 90;
/// `EX_CANTCREAT`.
const CANNOT_CREATE: Option<i32> = Some(73);

#[tokio::test]
async fn a_socket_left_by_a_crash_is_replaced() {
    let dir = folder();
    let socket = dir.path().join("kms.sock");
    let mut first = Daemon::start_with(&no_config(&dir), at(&socket)).await;
    first.signal(Signal::KILL);
    first.wait_ended(WAIT_TIMEOUT).await;
    let left = fs::symlink_metadata(&socket).expect("a killed process does not remove its socket");

    let second = Daemon::start_with(&no_config(&dir), at(&socket)).await;
    assert_served(&socket).await;
    let made = fs::symlink_metadata(&socket).unwrap();
    assert!(made.file_type().is_socket());
    assert_ne!((left.ino(), left.ctime_nsec()), (made.ino(), made.ctime_nsec()));
    assert!(second.log().contains("replacing it"), "{}", second.log());
}

#[tokio::test]
async fn a_live_listener_keeps_its_socket_and_is_named() {
    let dir = folder();
    for socket in [dir.path().join("kms.sock"), port::abstract_name()] {
        let first = Daemon::start_with(&no_config(&dir), at(&socket)).await;
        let mut second = Daemon::spawn(&no_config(&dir), at(&socket));
        assert_eq!(second.wait_ended(WAIT_TIMEOUT).await.code(), CANNOT_CREATE);
        let said = second.log();
        assert!(said.contains(&format!("the process with pid {} and uid ", first.pid())), "{said}");
        assert!(said.contains("--listen"), "{said}");
        assert_served(&socket).await;
        assert!(!second.admin_socket().exists());
    }
}

#[tokio::test]
async fn an_occupied_admin_address_leaves_no_socket_behind() {
    let dir = folder();
    let first = Daemon::start(&no_config(&dir)).await;
    let socket = dir.path().join("kms.sock");
    let admin = unix_url(&first.admin_socket()).into_string().unwrap();
    let options = DaemonOptions { arguments: vec!["--admin-listen".into(), admin], ..at(&socket) };
    let mut second = Daemon::spawn(&no_config(&dir), options);
    assert_eq!(second.wait_ended(WAIT_TIMEOUT).await.code(), CANNOT_CREATE);
    assert!(!socket.exists());
    assert_eq!(first.admin("/livez").await.0, 200);
}

#[tokio::test]
async fn a_file_that_is_not_a_socket_is_not_replaced() {
    let dir = folder();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("file"), "precious").unwrap();
    fs::create_dir(path("folder")).unwrap();
    std::os::unix::fs::symlink("file", path("link")).unwrap();
    for (name, kind) in [("file", "a regular file"), ("folder", "a directory"), ("link", "a symbolic link")] {
        let mut daemon = Daemon::spawn(&no_config(&dir), at(&path(name)));
        assert_eq!(daemon.wait_ended(WAIT_TIMEOUT).await.code(), CANNOT_CREATE);
        let said = daemon.log();
        assert!(said.contains(&format!("is {kind}, not a socket, and is left alone")), "{said}");
    }
    assert_eq!(fs::read_to_string(path("file")).unwrap(), "precious");
    assert!(path("folder").is_dir());
    assert_eq!(fs::read_link(path("link")).unwrap(), Path::new("file"));
}

#[tokio::test]
async fn the_socket_and_its_folder_have_the_configured_mode_and_group() {
    let dir = folder();
    let root = runs_as_root();
    // Only root may give a file to a group that it does not belong to.
    let group = if root { OTHER_UID } else { rustix::process::getegid().as_raw() };
    let group_argument = format!("--socket-group={group}");
    for (arguments, mode) in [
        (vec![], 0o600),
        (vec!["--socket-mode", "0660", &group_argument], 0o660),
        (vec!["--socket-mode=777"], 0o777),
    ] {
        let socket = dir.path().join(format!("made/{mode:o}/kms.sock"));
        let arguments: Vec<_> = arguments.into_iter().map(str::to_owned).collect();
        let with_group = arguments.len() > 1;
        let daemon = Daemon::start_with(&no_config(&dir), DaemonOptions { arguments, ..at(&socket) }).await;
        let made = fs::symlink_metadata(&socket).unwrap();
        assert_eq!(made.mode() & 0o7777, mode, "{:o}", made.mode());
        if with_group {
            assert_eq!(made.gid(), group);
        }
        let parent = fs::metadata(socket.parent().unwrap()).unwrap();
        assert_eq!(parent.mode() & 0o022, 0, "{:o}", parent.mode());
        drop(daemon);
    }
}

/// Needs no other user: the daemon is configured to serve only another one.
#[tokio::test]
async fn a_uid_that_is_not_allowed_is_refused_at_accept() {
    let dir = folder();
    let own_uid = rustix::process::geteuid().as_raw();
    let daemon =
        Daemon::start_with(&no_config(&dir), DaemonOptions::arguments(["--allow-uid", "4242424"])).await;
    let mut client = RawClient::greeted(daemon.socket()).await;
    client.closed(WAIT_TIMEOUT).await;
    let ran = probe(daemon.socket(), "status").await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains(&format!("does it allow uid {own_uid} (--allow-uid)?")), "{ran:?}");
    let log = daemon.log();
    let warning =
        log.lines().find(|line| line.contains("WARN") && line.contains("rejected")).expect("a warning");
    assert!(warning.contains(&format!("uid={own_uid} ")), "{warning}");
    assert!(warning.contains(&format!("--allow-uid {own_uid},4242424 ")), "{warning}");
    assert!(daemon.metric("transit_kms_connections_rejected_total", &[]).await >= 2.0);
    assert_eq!(daemon.metric("transit_kms_connections_open", &[]).await, 0.0);
}

#[tokio::test]
async fn another_user_is_refused_until_a_flag_allows_it() {
    if !runs_as_root() {
        // Only root can become another user. The test above covers the opposite case.
        return;
    }
    let dir = open_folder();
    let socket = dir.path().join("kms.sock");
    let start = async |arguments: &[&str]| {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Daemon::start_with(&no_config(&dir), DaemonOptions { arguments, ..at(&socket) }).await
    };
    let url = unix_url(&socket).into_string().unwrap();
    let probe = ["probe", "status", "--socket", &url];

    let mut daemon = start(&["--socket-mode", "0666"]).await;
    let ran = cli::run_as(OTHER_UID, dir.path(), &probe).await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    let log = daemon.log();
    assert!(log.contains(&format!("uid={OTHER_UID} ")), "{log}");
    assert!(log.contains(&format!("--allow-uid 0,{OTHER_UID} ")), "{log}");
    assert_served(&socket).await;
    daemon.terminate().await;

    let daemon = start(&["--socket-mode", "0666", "--allow-uid", "0", "--allow-uid", "65534"]).await;
    let ran = cli::run_as(OTHER_UID, dir.path(), &probe).await;
    assert_is_answered(&ran);
    assert_served(&socket).await;
    drop(daemon);

    // The kernel refuses what the mode of the socket forbids, before the daemon sees the connection.
    let daemon = start(&["--allow-uid", "0,65534"]).await;
    let ran = cli::run_as(OTHER_UID, dir.path(), &probe).await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("Permission denied"), "{ran:?}");
    assert_eq!(daemon.metric("transit_kms_connections_rejected_total", &[]).await, 0.0);
}

#[tokio::test]
async fn root_and_the_daemons_own_uid_are_served_by_default() {
    if !runs_as_root() {
        // Nothing more can be tested without root.
        let daemon = Daemon::start(&no_config(&folder())).await;
        return assert_served(daemon.socket()).await;
    }
    let dir = open_folder();
    let options = DaemonOptions { uid: Some(OTHER_UID), ..DaemonOptions::default() };
    let daemon = Daemon::start_with(&no_config(&dir), options).await;
    assert_served(daemon.socket()).await;
    let socket = unix_url(daemon.socket()).into_string().unwrap();
    let folder = daemon.socket().parent().unwrap();
    assert_is_answered(&cli::run_as(OTHER_UID, folder, &["probe", "status", "--socket", &socket]).await);
    assert_eq!(daemon.metric("transit_kms_connections_rejected_total", &[]).await, 0.0);
}

#[tokio::test]
async fn an_abstract_socket_works() {
    let dir = folder();
    let name = port::abstract_name();
    let mut daemon = Daemon::start_with(&no_config(&dir), at(&name)).await;
    assert_served(&name).await;
    let ran = cli::run(&["probe", "status", "--socket", &format!("unix:///{}", name.display())]).await;
    assert_is_answered(&ran);
    assert!(daemon.terminate().await.success());
    assert!(connect(&name).await.is_err());
}

#[tokio::test]
async fn an_incomplete_preface_times_out_while_other_clients_are_served() {
    let daemon = Daemon::start(&no_config(&folder())).await;
    let timed_out = async || daemon.metric("transit_kms_handshake_timeouts_total", &[]).await;
    let mut halves = Vec::new();
    for length in [0, 1, PREFACE.len() / 2, PREFACE.len() - 1] {
        let mut half = RawClient::silent(daemon.socket()).await;
        half.send(&PREFACE[..length]).await;
        halves.push(half);
    }
    let begun = Instant::now();
    let mut whole = RawClient::greeted(daemon.socket()).await;
    let mut kms = daemon.kms().await;
    let mut served = 0;
    eventually("all incomplete prefaces time out", WAIT_TIMEOUT, async || {
        assert_answered(kms.status(calls::timed(StatusRequest {})).await.unwrap_err());
        served += 1;
        timed_out().await >= 4.0
    })
    .await;
    assert!(begun.elapsed() > Duration::from_secs(4), "{:?}", begun.elapsed());
    assert!(served > 10);
    for half in &mut halves {
        half.closed(Duration::from_secs(1)).await;
    }
    // A client with a complete preface may be silent without a limit.
    whole.send(&raw::call_headers("Status", "localhost").bytes()).await;
    whole.send(&raw::call_message(&[]).bytes()).await;
    while whole.frame().await.expect("an answer").kind != HEADERS {}
    assert_eq!(timed_out().await, 4.0);
}

/// The library rejects it with a reset of the stream, and does not report it to the program.
#[tokio::test]
async fn an_authority_that_is_a_path_is_rejected_logged_once_and_counted() {
    let daemon = Daemon::start(&no_config(&folder())).await;
    let count = async |what| daemon.metric("transit_kms_malformed_requests_total", &[("what", what)]).await;
    // The client may get its response before the rejection is counted.
    let counted = async |wanted: (f64, f64)| {
        eventually("all rejections are counted", WAIT_TIMEOUT, async || {
            let found = (count("authority").await, count("other").await);
            if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    };
    let refused = async |headers: Frame| {
        let mut client = RawClient::greeted(daemon.socket()).await;
        client.send(&headers.bytes()).await;
        loop {
            let frame = client.frame().await.expect("a reset of the stream");
            if frame.kind == RST_STREAM {
                assert_eq!(frame.payload, [0, 0, 0, 1]);
                break;
            }
        }
    };
    for authority in ["%2Frun%2Ftransit-kms%2Fkms.sock", "/run/transit-kms/kms.sock", "%2frun%2fkms.sock"] {
        refused(raw::call_headers("Status", authority)).await;
    }
    daemon.wait_printed("its HTTP/2 :authority is the path of the socket").await;
    counted((3.0, 0.0)).await;
    // As Python's grpc sends it: a literal name, and no first slash in the value.
    let mut python = raw::call_headers("Status", "localhost");
    let known = [&[0x01, 9][..], b"localhost"].concat();
    let at = python.payload.windows(known.len()).position(|bytes| *bytes == known).unwrap();
    let spelled = b"@\x0a:authority\x0erun%2Fkms.sock";
    python.payload.splice(at..at + known.len(), *spelled);
    refused(python).await;
    counted((4.0, 0.0)).await;
    let warnings =
        daemon.log().lines().filter(|line| line.contains("WARN") && line.contains(":authority")).count();
    assert_eq!(warnings, 1, "{}", daemon.log());

    // A duplicate `:path`.
    let mut twice = raw::call_headers("Status", "localhost");
    twice.payload.extend([0x04, 1, b'/']);
    refused(twice).await;
    counted((4.0, 1.0)).await;
    // The error does not affect other calls.
    assert_served(daemon.socket()).await;
}

#[tokio::test]
async fn invalid_bytes_end_only_their_own_connection() {
    let daemon = Daemon::start(&no_config(&folder())).await;
    let mut bystander = daemon.kms().await;
    let frame = |kind, flags, stream, payload: &[u8]| {
        let frame = Frame { kind, flags, stream, payload: payload.to_vec() };
        [PREFACE, SETTINGS, &frame.bytes()].concat()
    };
    let mut noise = vec![0; 100_000];
    rand::fill(&mut noise[..]);
    for garbage in [
        noise.clone(),
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        // A client that expects TLS.
        vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03],
        PREFACE.iter().rev().copied().collect(),
        [PREFACE, SETTINGS, &noise].concat(),
        // A frame of 16 MiB.
        [PREFACE, SETTINGS, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat(),
        // Headers that cannot be decoded; a CONTINUATION of nothing; DATA on stream 0.
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff; 200]),
        frame(9, END_HEADERS, 1, b""),
        frame(DATA, END_STREAM, 0, b"x"),
    ] {
        let mut client = RawClient::silent(daemon.socket()).await;
        client.send(&garbage).await;
        // The daemon waits for the rest of an incomplete preface, which the test above covers.
        if garbage.len() >= PREFACE.len() {
            client.closed(WAIT_TIMEOUT).await;
        }
        assert_answered(bystander.status(calls::timed(StatusRequest {})).await.unwrap_err());
        assert_served(daemon.socket()).await;
    }
    assert!(!daemon.log().contains("a panic: "), "{}", daemon.log());
}

/// Connections leave descriptors for Vault, even with a low limit and many connections.
#[tokio::test]
async fn many_connections_leave_descriptors_for_calls() {
    let bao = Bao::start().await;
    let dir = folder();
    let config = dir.path().join("config.yaml");
    config_file::by_rename(&config, &ConfigFile::with_new_token(&bao).await.yaml());
    let options = DaemonOptions { open_files: Some(FEW_DESCRIPTORS), ..DaemonOptions::default() };
    let daemon = Daemon::start_with(&config, options).await;
    daemon.wait_ready().await;

    // An active client keeps its connection, because the longest idle connection is closed first.
    let stop = CancellationToken::new();
    let working = tokio::spawn(call_until_stopped(daemon.kms().await, stop.clone()));
    let idle = IdleConnections::at(daemon.socket(), MANY_CONNECTIONS).await;
    for _ in 0..5 {
        probe_until_accepted(daemon.socket(), "roundtrip", 0).await;
    }
    stop.cancel();
    let worked = working.await.unwrap();
    assert!(worked > 10, "{worked}");
    assert_eq!(daemon.metric("transit_kms_accept_errors_total", &[]).await, 0.0);
    assert!(!daemon.log().contains("Too many open files"), "{}", daemon.log());
    drop(idle);
}

/// The limit is lowered while the daemon runs, so that it cannot prepare for it.
#[tokio::test]
async fn running_out_of_descriptors_causes_no_busy_loop() {
    let bao = Bao::start().await;
    let dir = folder();
    let config = dir.path().join("config.yaml");
    config_file::by_rename(&config, &ConfigFile::with_new_token(&bao).await.yaml());
    let daemon = Daemon::start(&config).await;
    daemon.wait_ready().await;
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap()).unwrap();
    prlimit(
        Some(pid),
        Resource::Nofile,
        Rlimit { current: Some(FEW_DESCRIPTORS), maximum: Some(FEW_DESCRIPTORS) },
    )
    .unwrap();

    let (begun, busy) = (Instant::now(), cpu(&daemon));
    let idle = IdleConnections::at(daemon.socket(), MANY_CONNECTIONS).await;
    eventually("descriptors run out", WAIT_TIMEOUT, async || daemon.log().contains("RLIMIT_NOFILE")).await;
    // A new client after all of them is accepted.
    let mut late = daemon.kms().await;
    let answer = timeout(2 * WAIT_TIMEOUT, late.status(StatusRequest {})).await.expect("an answer");
    assert_eq!(answer.unwrap().into_inner().version, "v2");
    let (took, busy) = (begun.elapsed(), cpu(&daemon) - busy);
    // A busy loop uses a whole core; an unoptimized build under load uses a little.
    assert!(took > Duration::from_secs(2), "{took:?} is too short to tell");
    assert!(busy < took.mul_f64(0.4), "{busy:?} of {took:?}");
    // The pauses grow to one second.
    let failures = daemon.log().matches("accept still fails").count();
    assert!((failures as f64) < 20.0 + 3.0 * took.as_secs_f64(), "{failures} in {took:?}");
    let log = daemon.log();
    let warned = log.lines().filter(|line| line.contains(" WARN ") && line.contains("::server::")).count();
    assert_eq!(warned, 1, "{log}");

    drop(idle);
    eventually("the idle connections are closed", WAIT_TIMEOUT, async || {
        let open = daemon.metric("transit_kms_connections_open", &[]).await;
        if open <= 1.0 { Ok(()) } else { Err(open.to_string()) }
    })
    .await;
    assert!(daemon.metric("transit_kms_accept_errors_total", &[]).await > 0.0);
    for _ in 0..10 {
        roundtrip(&mut daemon.kms().await).await;
    }
    roundtrip(&mut late).await;
}

/// Calls until it is stopped, and returns the number of calls.
///
/// # Panics
/// If a call fails.
async fn call_until_stopped(mut kms: Kms, stop: CancellationToken) -> usize {
    let mut rounds = 0;
    while !stop.is_cancelled() {
        roundtrip(&mut kms).await;
        rounds += 1;
        drop(timeout(Duration::from_millis(20), stop.cancelled()).await);
    }
    rounds
}

#[tokio::test]
async fn a_thousand_idle_connections_do_not_block_other_clients() {
    let daemon = Daemon::start(&no_config(&folder())).await;
    let mut working = daemon.kms().await;
    let idle = IdleConnections::at(daemon.socket(), 1000).await;
    // This client is idle as long as the others, but its process has few connections.
    assert_answered(working.status(calls::timed(StatusRequest {})).await.unwrap_err());
    assert_is_answered(&probe_until_accepted(daemon.socket(), "status", 1).await);
    eventually("most idle connections are closed", WAIT_TIMEOUT, async || {
        let open = daemon.metric("transit_kms_connections_open", &[]).await;
        if open <= 512.0 { Ok(()) } else { Err(open.to_string()) }
    })
    .await;
    assert_answered(working.status(calls::timed(StatusRequest {})).await.unwrap_err());
    assert_is_answered(&probe_until_accepted(daemon.socket(), "status", 1).await);
    let log = daemon.log();
    let warnings = log.lines().filter(|line| line.contains("WARN") && line.contains("too many")).count();
    assert_eq!(warnings, 1, "{log}");
    drop(idle);
}

/// Idle connections of another process, with a complete preface. They are closed when this value is dropped.
struct IdleConnections(Child);

impl IdleConnections {
    async fn at(socket: &Path, size: usize) -> Self {
        const PROGRAM: &str = "
import resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = []
for _ in range(int(sys.argv[2])):
    one = socket.socket(socket.AF_UNIX)
    one.connect(sys.argv[1])
    held.append(one)
    try:
        one.sendall(bytes.fromhex(sys.argv[3]))
    except OSError:
        pass # The daemon has closed the connection.
print('here', flush=True)
sys.stdin.read()
";
        let greeting = hex::encode([PREFACE, SETTINGS].concat());
        let mut command = tokio::process::Command::from(command("python3"));
        command.args(["-c", PROGRAM]).arg(socket).args([&size.to_string(), &greeting]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("python3");
        let mut said = [0; 5];
        let reading = child.stdout.as_mut().unwrap().read_exact(&mut said);
        timeout(2 * WAIT_TIMEOUT, reading).await.expect("the idle connections in time").unwrap();
        Self(child)
    }
}

impl Drop for IdleConnections {
    fn drop(&mut self) {
        // Fails only if it has already ended.
        drop(self.0.start_kill());
    }
}

/// Probes until it is accepted: with very many connections, some are rejected.
async fn probe_until_accepted(socket: &Path, what: &str, code: i32) -> cli::Ran {
    let ran = eventually("a new client is accepted", WAIT_TIMEOUT, async || {
        let ran = probe(socket, what).await;
        if ran.code == Some(2) { Err(ran.stderr) } else { Ok(ran) }
    })
    .await;
    assert_eq!(ran.code, Some(code), "{ran:?}");
    ran
}

#[tokio::test]
async fn messages_above_the_limits_are_refused_and_other_calls_succeed() {
    let bao = Bao::start().await;
    let dir = folder();
    let config = dir.path().join("config.yaml");
    config_file::by_rename(&config, &ConfigFile::with_new_token(&bao).await.yaml());
    let daemon = Daemon::start(&config).await;
    daemon.wait_ready().await;
    let mut kms = daemon.kms().await;

    let encrypt = |plaintext: usize, uid: usize| EncryptRequest {
        plaintext: vec![7; plaintext].into(),
        uid: "u".repeat(uid),
    };
    for (request, code) in [
        (encrypt(0, 1), Code::InvalidArgument),
        (encrypt(701, 1), Code::InvalidArgument),
        (encrypt(32, 257), Code::InvalidArgument),
        (encrypt(64 * 1024, 1), Code::OutOfRange),
        (encrypt(8 * 1024 * 1024, 1), Code::OutOfRange),
    ] {
        let error = kms.encrypt(calls::timed(request)).await.unwrap_err();
        assert_eq!(error.code(), code, "{error:?}");
        // The next call on the same connection succeeds.
        roundtrip(&mut kms).await;
    }
    let sealed = kms.encrypt(calls::timed(encrypt(700, 256))).await.unwrap().into_inner();
    assert!(sealed.ciphertext.len() <= 1024, "{}", sealed.ciphertext.len());

    let decrypt = DecryptRequest {
        annotations: [].into(),
        ciphertext: sealed.ciphertext.clone(),
        key_id: sealed.key_id.clone(),
        uid: "u".into(),
    };
    let padded = |length: usize| {
        let mut ciphertext = sealed.ciphertext.to_vec();
        ciphertext.resize(length, b'A');
        ciphertext.into()
    };
    for (request, code) in [
        (DecryptRequest { ciphertext: padded(1025), ..decrypt.clone() }, Code::InvalidArgument),
        (DecryptRequest { key_id: "k".repeat(1025), ..decrypt.clone() }, Code::InvalidArgument),
        (
            DecryptRequest {
                annotations: [("a.b".to_owned(), vec![0; 32 * 1024].into())].into(),
                ..decrypt.clone()
            },
            Code::InvalidArgument,
        ),
        (DecryptRequest { ciphertext: padded(8 * 1024 * 1024), ..decrypt.clone() }, Code::OutOfRange),
    ] {
        let error = kms.decrypt(calls::timed(request)).await.unwrap_err();
        assert_eq!(error.code(), code, "{error:?}");
        roundtrip(&mut kms).await;
    }
    let opened = kms.decrypt(calls::timed(decrypt)).await.unwrap().into_inner();
    assert_eq!(opened.plaintext, vec![7; 700]);

    // 32 MiB of headers, in frames of allowed size: the connection may be closed, but the daemon keeps running.
    let mut client = RawClient::greeted(daemon.socket()).await;
    let mut headers = raw::call_headers("Status", "localhost");
    headers.flags = 0;
    client.send(&headers.bytes()).await;
    let more = Frame { kind: 9, flags: 0, stream: 1, payload: [0, 1, b'x', 126].repeat(4000) };
    for _ in 0..2000 {
        client.send(&more.bytes()).await;
    }
    client.closed(WAIT_TIMEOUT).await;
    roundtrip(&mut kms).await;
    let resident = daemon.metric("process_resident_memory_bytes", &[]).await;
    assert!(resident < 200e6, "{resident}");
}

#[tokio::test]
async fn a_call_with_the_bytes_of_kube_apiserver_is_answered() {
    let bao = Bao::start().await;
    let dir = folder();
    let config = dir.path().join("config.yaml");
    config_file::by_rename(&config, &ConfigFile::with_new_token(&bao).await.yaml());
    let daemon = Daemon::start(&config).await;
    daemon.wait_ready().await;
    let mut client = RawClient::greeted(daemon.socket()).await;
    client.send(&raw::call_headers("Status", "localhost").bytes()).await;
    client.send(&raw::call_message(&[]).bytes()).await;
    let mut data = Vec::new();
    let mut heads = 0;
    loop {
        let frame = client.frame().await.expect("an answer");
        match frame.kind {
            // The index of `:status: 200` in the static table.
            HEADERS if heads == 0 => assert_eq!(frame.payload[0], 0x88, "{frame:?}"),
            HEADERS => assert_eq!(frame.flags & END_STREAM, END_STREAM),
            DATA => data.extend(&frame.payload),
            _ => continue,
        }
        heads += usize::from(frame.kind == HEADERS);
        if heads == 2 {
            break;
        }
    }
    // version = 1, healthz = 2, key_id = 3.
    assert_eq!(&data[5..16], b"\x0a\x02v2\x12\x02ok\x1a\x37t", "{:?}", data.escape_ascii().to_string());
    assert!(data[15..].starts_with(b"tk1."), "{:?}", data.escape_ascii().to_string());
}

/// A folder of mode 0700.
fn folder() -> TempDir {
    tempfile::Builder::new().prefix("socket-").tempdir().unwrap()
}

/// A folder that all users may enter.
fn open_folder() -> TempDir {
    let dir = folder();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// The path of a config that does not exist.
fn no_config(dir: &TempDir) -> PathBuf {
    dir.path().join("absent.yaml")
}

fn at(socket: &Path) -> DaemonOptions {
    DaemonOptions { socket: Some(socket.to_owned()), ..DaemonOptions::default() }
}

fn runs_as_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Checks that a daemon without a config answers on a new connection with the reason. Retries, because on a busy machine
/// the deadline of three seconds may pass first.
async fn assert_served(socket: &Path) {
    let kms = kms_client(socket).await;
    let status = eventually("a new client is answered", WAIT_TIMEOUT, async || {
        calls::status(&kms).await.err().filter(|status| status.code() != Code::Cancelled)
    })
    .await;
    assert_answered(status);
}

fn assert_answered(status: Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(is_reason(status.message()), "{status:?}");
}

/// The reasons before and after the first read of the config.
fn is_reason(text: &str) -> bool {
    ["starting: ", "absent.yaml: does not exist"].iter().any(|reason| text.contains(reason))
}

async fn probe(socket: &Path, what: &str) -> cli::Ran {
    let url = unix_url(socket).into_string().unwrap();
    cli::run(&["probe", what, "--socket", &url]).await
}

fn assert_is_answered(ran: &cli::Ran) {
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("Unavailable") && is_reason(&ran.stderr), "{ran:?}");
}

async fn roundtrip(kms: &mut Kms) {
    let seed: [u8; 32] = rand::random();
    let request = EncryptRequest { plaintext: seed.to_vec().into(), uid: "roundtrip".into() };
    let sealed = kms.encrypt(calls::timed(request)).await.unwrap().into_inner();
    let request = DecryptRequest {
        annotations: sealed.annotations,
        ciphertext: sealed.ciphertext,
        key_id: sealed.key_id,
        uid: "roundtrip".into(),
    };
    let opened = kms.decrypt(calls::timed(request)).await.unwrap().into_inner();
    assert_eq!(opened.plaintext, seed[..]);
}

/// The processor time of the daemon.
fn cpu(daemon: &Daemon) -> Duration {
    let process = procfs::process::Process::new(i32::try_from(daemon.pid()).unwrap()).unwrap();
    let stat = process.stat().unwrap();
    let ticks = stat.utime + stat.stime;
    Duration::from_millis(ticks * 1000 / procfs::ticks_per_second())
}
