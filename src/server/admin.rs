//! `/livez`, `/readyz` and `/metrics`, over HTTP/1.1.
//!
//! On a thread and a runtime of their own: when the daemon's runtime is stuck,
//! `/livez` is what says so.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener as StdTcpListener},
    pin::pin,
    sync::Arc,
    thread,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use kms_plugin::address::ListenAddress;
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, sockopt},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::oneshot,
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    backoff::{Failures, Listener},
    socket::{self, BindError, BoundSocket, SocketFile, SocketOptions},
};

/// Connections that wait for accept.
const BACKLOG: i32 = 128;
const MAX_CONNECTIONS: usize = 64;
const MAX_HEADERS: usize = 64;
const BUFFER: usize = 16 * 1024;
/// For one request's head; a kept connection that is idle for longer is closed.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers are made in memory: at a stop they need only be written.
const STOP_GRACE: Duration = Duration::from_millis(500);
const STOPPED_WITHIN: Duration = Duration::from_secs(2);

/// What an admin listener tells. None of it may wait: all listeners share one thread.
pub trait Inspect: Send + Sync + 'static {
    /// Whether this process works, whatever Vault does.
    ///
    /// # Errors
    /// Why it should be restarted, in words.
    fn live(&self) -> Result<(), String>;

    /// Everything in the Prometheus text format.
    ///
    /// # Errors
    /// Why there is none.
    fn metrics(&self) -> Result<String, String>;

    /// Whether calls would succeed; a line that says what is served.
    ///
    /// # Errors
    /// Why not, in words.
    fn ready(&self) -> Result<String, String>;
}

/// An admin listener, not yet served; its clients wait.
#[derive(Debug)]
pub struct BoundAdmin {
    address: ListenAddress,
    listener: Bound,
}

#[derive(Debug)]
enum Bound {
    Tcp(StdTcpListener),
    Unix(BoundSocket),
}

impl BoundAdmin {
    /// Where it listens, with the port that the kernel chose.
    #[must_use]
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }
}

/// Binds. A unix socket gets mode 0600 and the rules of [`socket::bind`]; TCP port 0 takes a free one.
///
/// With `overlap` a TCP port may be held by a predecessor or a successor too, if that one allows it as
/// well and has our uid. Who connects then gets the one or the other: good for scrapes that would fail
/// otherwise, not for probes of one process, which ask through a unix socket of its own. It is off
/// unless an upgrade needs it, because a port that is taken by mistake would go unnoticed.
///
/// # Errors
/// See [`BindError`].
pub async fn bind(address: &ListenAddress, overlap: bool) -> Result<BoundAdmin, BindError> {
    match address {
        ListenAddress::Tcp(address) => {
            let failed = |source| BindError::Tcp { address: *address, source };
            let listener = listen_tcp(*address, overlap).map_err(|error| failed(error.into()))?;
            let address: SocketAddr = listener.local_addr().map_err(failed)?;
            Ok(BoundAdmin { address: ListenAddress::Tcp(address), listener: Bound::Tcp(listener) })
        }
        ListenAddress::Unix(address) => {
            let listener = socket::bind(address, SocketOptions::default()).await?;
            Ok(BoundAdmin { address: address.clone().into(), listener: Bound::Unix(listener) })
        }
    }
}

/// As the standard library does it, but for `SO_REUSEPORT`, which has to be set before bind.
fn listen_tcp(address: SocketAddr, overlap: bool) -> Result<StdTcpListener, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if overlap {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// The admin thread; it stops when this is dropped.
#[derive(Debug)]
pub struct AdminHandle {
    stop: CancellationToken,
    stopped: oneshot::Receiver<()>,
}

impl AdminHandle {
    /// Stops: closes the listeners, writes what is being answered, removes unix
    /// sockets that are still ours. Takes at most two seconds.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if timeout(STOPPED_WITHIN, &mut self.stopped).await.is_err() {
            warn!("the admin thread does not stop; leaving without it");
        }
    }
}

impl Drop for AdminHandle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Serves the listeners on a new thread. With none, the thread just waits.
///
/// # Errors
/// Fails if the thread or its runtime cannot be made.
pub async fn spawn(listeners: Vec<BoundAdmin>, inspect: Arc<dyn Inspect>) -> io::Result<AdminHandle> {
    let stop = CancellationToken::new();
    let (say_stopped, stopped) = oneshot::channel();
    let (say_started, started) = oneshot::channel();
    let stopping = stop.clone();
    thread::Builder::new().name("admin".into()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                drop(say_started.send(Err(error)));
                return;
            }
        };
        runtime.block_on(async {
            let mut loops = JoinSet::new();
            let files = match start(listeners, &inspect, &stopping, &mut loops) {
                Ok(files) => files,
                Err(error) => {
                    drop(say_started.send(Err(error)));
                    return;
                }
            };
            drop(say_started.send(Ok(())));
            stopping.cancelled().await;
            for file in files {
                if let Err(error) = file.remove_if_ours().await {
                    debug!(socket = %file.address(), %error, "cannot remove the admin socket");
                }
            }
            while loops.join_next().await.is_some() {}
        });
        drop(runtime);
        let _ = say_stopped.send(());
    })?;
    started.await.map_err(|_| io::Error::other("the admin thread ended at once"))??;
    Ok(AdminHandle { stop, stopped })
}

fn start(
    listeners: Vec<BoundAdmin>,
    inspect: &Arc<dyn Inspect>,
    stop: &CancellationToken,
    loops: &mut JoinSet<()>,
) -> io::Result<Vec<SocketFile>> {
    let mut files = Vec::new();
    for BoundAdmin { address, listener } in listeners {
        info!(%address, "admin listens");
        let failures = Failures::new(format!("admin {address}"));
        let inspect = Arc::clone(inspect);
        match listener {
            Bound::Tcp(listener) => {
                let listener = TcpListener::from_std(listener)?;
                loops.spawn(serve(listener, inspect, stop.clone(), failures));
            }
            Bound::Unix(socket) => {
                let (listener, file) = socket.into_listener()?;
                files.push(file);
                loops.spawn(serve(listener, inspect, stop.clone(), failures));
            }
        }
    }
    Ok(files)
}

async fn serve<L>(mut listener: L, inspect: Arc<dyn Inspect>, stop: CancellationToken, mut failures: Failures)
where
    L: Listener<Stream: AsyncRead + AsyncWrite + Unpin>,
{
    let mut connections = JoinSet::new();
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_ended) = connections.join_next() => {
                oldest_first.retain(|connection| !connection.is_finished());
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                failures.succeeded();
                // Who came first has had its time; a probe that comes now must be answered.
                if oldest_first.len() >= MAX_CONNECTIONS
                    && let Some(oldest) = oldest_first.pop_front()
                {
                    debug!("too many admin connections: dropped the oldest");
                    oldest.abort();
                }
                let connection = connection(stream, Arc::clone(&inspect), stop.clone());
                oldest_first.push_back(connections.spawn(connection));
            }
            Err(error) => {
                let pause = failures.failed(&error);
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    () = sleep(pause) => {}
                }
            }
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    // Those that are left are dropped with their set.
    drop(timeout(STOP_GRACE, all).await);
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    inspect: Arc<dyn Inspect>,
    stop: CancellationToken,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), inspect.as_ref());
        async move { Ok::<_, Infallible>(response) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_headers(MAX_HEADERS)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        biased;
        _ended = connection.as_mut() => return,
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    drop(connection.await);
}

fn answer(method: &Method, path: &str, inspect: &dyn Inspect) -> Response<Full<Bytes>> {
    const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
    const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    if !["/", "/livez", "/metrics", "/readyz"].contains(&path) {
        return respond(StatusCode::NOT_FOUND, TEXT, "not here; see /\n".into());
    }
    if method != Method::GET && method != Method::HEAD {
        let mut refused = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET and HEAD only\n".into());
        refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match path {
        "/livez" => match inspect.live() {
            Ok(()) => respond(StatusCode::OK, TEXT, "ok\n".into()),
            Err(reason) => respond(unavailable, TEXT, format!("{reason}\n")),
        },
        "/metrics" => match inspect.metrics() {
            Ok(metrics) => respond(StatusCode::OK, METRICS, metrics),
            Err(reason) => respond(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{reason}\n")),
        },
        "/readyz" => match inspect.ready() {
            Ok(served) => respond(StatusCode::OK, TEXT, format!("{served}\n")),
            Err(reason) => respond(unavailable, TEXT, format!("{reason}\n")),
        },
        _ => respond(StatusCode::OK, TEXT, "transit-kms: /livez /readyz /metrics\n".into()),
    }
}

fn respond(status: StatusCode, kind: HeaderValue, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
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

    const PATIENCE: Duration = Duration::from_secs(20);

    #[derive(Default)]
    struct Told {
        panics: AtomicBool,
        sick: AtomicBool,
    }

    impl Told {
        fn says(&self, well: &str) -> Result<String, String> {
            assert!(!self.panics.load(Ordering::SeqCst), "a test panics on purpose");
            if self.sick.load(Ordering::SeqCst) { Err("the prober is stuck".into()) } else { Ok(well.into()) }
        }
    }

    impl Inspect for Told {
        fn live(&self) -> Result<(), String> {
            self.says("").map(drop)
        }

        fn metrics(&self) -> Result<String, String> {
            self.says("a_metric 1\n")
        }

        fn ready(&self) -> Result<String, String> {
            self.says("ok")
        }
    }

    async fn tcp() -> BoundAdmin {
        bind(&"127.0.0.1:0".parse().unwrap(), false).await.unwrap()
    }

    fn connect(address: &ListenAddress) -> TcpStream {
        let ListenAddress::Tcp(address) = address else { panic!("{address} is not TCP") };
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn ask(mut stream: impl Read + Write, request: &str) -> String {
        write!(stream, "{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    async fn stopped(admin: AdminHandle) {
        timeout(PATIENCE, admin.stop()).await.expect("the admin thread stops");
    }

    // Not one await between asking and the answer: the caller's runtime is blocked throughout.
    #[tokio::test]
    async fn it_answers_while_the_callers_runtime_is_stuck() {
        let bound = tcp().await;
        let address = bound.address().clone();
        let told = Arc::new(Told::default());
        let admin = spawn(vec![bound], Arc::clone(&told) as Arc<dyn Inspect>).await.unwrap();

        for (request, status, kind, body) in [
            ("GET /livez", "200 OK", "text/plain; charset=utf-8", "\r\n\r\nok\n"),
            ("GET /livez?verbose", "200 OK", "text/plain; charset=utf-8", "\r\n\r\nok\n"),
            ("GET /readyz", "200 OK", "text/plain; charset=utf-8", "\r\n\r\nok\n"),
            ("GET /metrics", "200 OK", "text/plain; version=0.0.4; charset=utf-8", "a_metric 1\n"),
            ("GET /", "200 OK", "text/plain; charset=utf-8", "/livez /readyz /metrics\n"),
            ("HEAD /livez", "200 OK", "text/plain; charset=utf-8", "\r\n\r\n"),
            ("POST /livez", "405 Method Not Allowed", "text/plain; charset=utf-8", "only\n"),
            ("GET /healthz", "404 Not Found", "text/plain; charset=utf-8", "not here; see /\n"),
            ("GET /livez/", "404 Not Found", "text/plain; charset=utf-8", "not here; see /\n"),
        ] {
            let answer = ask(connect(&address), request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {answer}");
            assert!(answer.contains(&format!("content-type: {kind}\r\n")), "{request}: {answer}");
            assert!(answer.ends_with(body), "{request}: {answer}");
        }

        told.sick.store(true, Ordering::SeqCst);
        for request in ["GET /livez", "GET /readyz"] {
            let answer = ask(connect(&address), request);
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
            assert!(answer.ends_with("\r\n\r\nthe prober is stuck\n"), "{answer}");
        }
        assert!(ask(connect(&address), "GET /metrics").starts_with("HTTP/1.1 500 "));

        told.panics.store(true, Ordering::SeqCst);
        assert_eq!(ask(connect(&address), "GET /livez"), "");
        told.panics.store(false, Ordering::SeqCst);
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
        let admin = spawn(vec![unix, tcp], Arc::new(Told::default())).await.unwrap();
        let stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(ask(stream, "GET /readyz").ends_with("ok\n"));
        assert!(ask(connect(&address), "GET /readyz").ends_with("ok\n"));

        stopped(admin).await;
        assert!(!path.exists());
        let ListenAddress::Tcp(address) = address else { panic!("not TCP") };
        TcpStream::connect(address).unwrap_err();
    }

    #[tokio::test]
    async fn silent_and_greedy_clients_neither_lock_others_out_nor_hold_up_the_stop() {
        let bound = tcp().await;
        let address = bound.address().clone();
        let admin = spawn(vec![bound], Arc::new(Told::default())).await.unwrap();
        let mut silent: Vec<_> = (0..MAX_CONNECTIONS).map(|_| connect(&address)).collect();
        assert!(ask(connect(&address), "GET /livez").ends_with("ok\n"));
        // The first of them made room, well before the time for its request was over.
        silent[0].set_read_timeout(Some(HEADER_TIMEOUT / 2)).unwrap();
        match silent[0].read(&mut [0]) {
            Ok(read) => assert_eq!(read, 0),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }

        let mut greedy = connect(&address);
        let head = format!("GET / HTTP/1.1\r\nx: {}", "a".repeat(10 * BUFFER));
        // The server may close before it has read all of it.
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
    async fn a_port_is_shared_with_who_shares_it_and_stays_served_when_one_goes() {
        let first = bind(&"127.0.0.1:0".parse().unwrap(), true).await.unwrap();
        let address = first.address().clone();
        bind(&address, false).await.unwrap_err();
        let second = bind(&address, true).await.unwrap();
        let first = spawn(vec![first], Arc::new(Told::default())).await.unwrap();
        let second = spawn(vec![second], Arc::new(Told::default())).await.unwrap();
        assert!(ask(connect(&address), "GET /livez").ends_with("ok\n"));
        stopped(first).await;
        for _ in 0..20 {
            assert!(ask(connect(&address), "GET /livez").ends_with("ok\n"));
        }
        stopped(second).await;
    }

    #[tokio::test]
    async fn dropping_the_handle_stops_it_and_no_listener_is_fine() {
        stopped(spawn(Vec::new(), Arc::new(Told::default())).await.unwrap()).await;
        let bound = tcp().await;
        let ListenAddress::Tcp(address) = bound.address().clone() else { panic!("not TCP") };
        drop(spawn(vec![bound], Arc::new(Told::default())).await.unwrap());
        let deadline = std::time::Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_ok() {
            assert!(std::time::Instant::now() < deadline, "it still listens");
            thread::yield_now();
        }
    }
}
