use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixStream,
    },
    sync::atomic::{AtomicBool, Ordering},
};

use super::*;
use kms_plugin::address::UnixAddress;

const TEST_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Default)]
struct FakeReport {
    panics: AtomicBool,
    fails: AtomicBool,
}

impl FakeReport {
    fn result(&self, text: &str) -> Result<String, String> {
        assert!(!self.panics.load(Ordering::SeqCst), "a test panics on purpose");
        if self.fails.load(Ordering::SeqCst) {
            Err("the health checker is stuck".into())
        } else {
            Ok(text.into())
        }
    }
}

impl AdminReport for FakeReport {
    fn live(&self) -> Result<(), String> {
        self.result("").map(drop)
    }

    fn metrics(&self) -> Result<String, String> {
        self.result("a_metric 1\n")
    }

    fn ready(&self) -> Result<String, String> {
        self.result("ok")
    }
}

async fn tcp() -> BoundAdmin {
    bind(&"127.0.0.1:0".parse().unwrap(), false).await.unwrap()
}

fn connect(address: &ListenAddress) -> TcpStream {
    let ListenAddress::Tcp(address) = address else { panic!("{address} is not TCP") };
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    stream
}

fn ask(mut stream: impl Read + Write, request: &str) -> String {
    write!(stream, "{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

async fn stopped(admin: AdminHandle) {
    timeout(TEST_TIMEOUT, admin.stop()).await.expect("the admin thread stops");
}

// There is no await between a request and its response, so the caller's runtime is blocked.
#[tokio::test]
async fn it_answers_while_the_callers_runtime_is_stuck() {
    let bound = tcp().await;
    let address = bound.address().clone();
    let report = Arc::new(FakeReport::default());
    let admin = spawn(vec![bound], Arc::clone(&report) as Arc<dyn AdminReport>).await.unwrap();

    for (request, status, kind, body) in [
        ("GET /livez", "200 OK", "text/plain; charset=utf-8", "\r\n\r\nok\n"),
        ("GET /livez?verbose", "200 OK", "text/plain; charset=utf-8", "\r\n\r\nok\n"),
        ("GET /readyz", "200 OK", "text/plain; charset=utf-8", "\r\n\r\nok\n"),
        ("GET /metrics", "200 OK", "text/plain; version=0.0.4; charset=utf-8", "a_metric 1\n"),
        ("GET /", "200 OK", "text/plain; charset=utf-8", "/livez /readyz /metrics\n"),
        ("HEAD /livez", "200 OK", "text/plain; charset=utf-8", "\r\n\r\n"),
        ("POST /livez", "405 Method Not Allowed", "text/plain; charset=utf-8", "only\n"),
        ("GET /health", "404 Not Found", "text/plain; charset=utf-8", "not found; see /\n"),
        ("GET /healthz", "200 OK", "text/plain; charset=utf-8", "\r\n\r\nok\n"),
        ("GET /livez/", "404 Not Found", "text/plain; charset=utf-8", "not found; see /\n"),
    ] {
        let answer = ask(connect(&address), request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {answer}");
        assert!(answer.contains(&format!("content-type: {kind}\r\n")), "{request}: {answer}");
        assert!(answer.ends_with(body), "{request}: {answer}");
    }

    report.fails.store(true, Ordering::SeqCst);
    for request in ["GET /livez", "GET /readyz"] {
        let answer = ask(connect(&address), request);
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nthe health checker is stuck\n"), "{answer}");
    }
    assert!(ask(connect(&address), "GET /metrics").starts_with("HTTP/1.1 500 "));

    report.panics.store(true, Ordering::SeqCst);
    assert_eq!(ask(connect(&address), "GET /livez"), "");
    report.panics.store(false, Ordering::SeqCst);
    assert!(ask(connect(&address), "GET /livez").starts_with("HTTP/1.1 503 "));
    stopped(admin).await;
}

#[tokio::test]
async fn several_listeners_tcp_and_unix() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let unix = bind(&UnixAddress::Path(path.clone()).into(), false).await.unwrap();
    let metadata = std::fs::symlink_metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let tcp = tcp().await;
    let address = tcp.address().clone();
    let admin = spawn(vec![unix, tcp], Arc::new(FakeReport::default())).await.unwrap();
    let stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    assert!(ask(stream, "GET /readyz").ends_with("ok\n"));
    assert!(ask(connect(&address), "GET /readyz").ends_with("ok\n"));

    stopped(admin).await;
    assert!(!path.exists());
    let ListenAddress::Tcp(address) = address else { panic!("not TCP") };
    TcpStream::connect(address).unwrap_err();
}

#[tokio::test]
async fn silent_and_greedy_clients_do_not_lock_out_others_or_delay_the_stop() {
    let bound = tcp().await;
    let address = bound.address().clone();
    let admin = spawn(vec![bound], Arc::new(FakeReport::default())).await.unwrap();
    let mut silent: Vec<_> = (0..MAX_CONNECTIONS).map(|_| connect(&address)).collect();
    assert!(ask(connect(&address), "GET /livez").ends_with("ok\n"));
    // The oldest was closed, well before its header timeout.
    silent[0].set_read_timeout(Some(HEADER_TIMEOUT / 2)).unwrap();
    match silent[0].read(&mut [0]) {
        Ok(read) => assert_eq!(read, 0),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }

    let mut greedy = connect(&address);
    let head = format!("GET / HTTP/1.1\r\nx: {}", "a".repeat(10 * BUFFER));
    // The server may close the connection before it has read everything.
    drop(greedy.write_all(head.as_bytes()));
    let mut answer = Vec::new();
    drop(greedy.read_to_end(&mut answer));
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431 "), "{answer:?}");
    stopped(admin).await;
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let first = tcp().await;
    for overlap in [false, true] {
        let error = bind(first.address(), overlap).await.unwrap_err().to_string();
        assert!(error.contains(&first.address().to_string()), "{error}");
    }
}

#[tokio::test]
async fn two_processes_can_share_a_port_and_one_keeps_serving_when_the_other_stops() {
    let first = bind(&"127.0.0.1:0".parse().unwrap(), true).await.unwrap();
    let address = first.address().clone();
    bind(&address, false).await.unwrap_err();
    let second = bind(&address, true).await.unwrap();
    let first = spawn(vec![first], Arc::new(FakeReport::default())).await.unwrap();
    let second = spawn(vec![second], Arc::new(FakeReport::default())).await.unwrap();
    assert!(ask(connect(&address), "GET /livez").ends_with("ok\n"));
    stopped(first).await;
    for _ in 0..20 {
        assert!(ask(connect(&address), "GET /livez").ends_with("ok\n"));
    }
    stopped(second).await;
}

#[tokio::test]
async fn dropping_the_handle_stops_the_thread_and_listeners_are_optional() {
    stopped(spawn(Vec::new(), Arc::new(FakeReport::default())).await.unwrap()).await;
    let bound = tcp().await;
    let ListenAddress::Tcp(address) = bound.address().clone() else { panic!("not TCP") };
    drop(spawn(vec![bound], Arc::new(FakeReport::default())).await.unwrap());
    let deadline = std::time::Instant::now() + TEST_TIMEOUT;
    while TcpStream::connect(address).is_ok() {
        assert!(std::time::Instant::now() < deadline, "it still listens");
        thread::yield_now();
    }
}
