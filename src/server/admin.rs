//! Answers `/livez`, `/readyz` and `/metrics` over HTTP/1.1.
//!
//! It has a thread and a runtime of its own, so that `/livez` can report that the daemon's runtime is
//! stuck.

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
    backoff::AcceptBackoff,
    listener::Listener,
    socket::{self, BindError, BoundSocket, SocketFile, SocketOptions},
};

/// Connections that may wait for accept.
const BACKLOG: i32 = 128;
const MAX_CONNECTIONS: usize = 64;
const MAX_HEADERS: usize = 64;
const BUFFER: usize = 16 * 1024;
/// The time in which the headers of a request must arrive; also the longest idle time of a connection
/// that is kept open.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// The time for responses in progress when the thread stops. They are already in memory and only have to
/// be written.
const STOP_GRACE: Duration = Duration::from_millis(500);
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// What the admin endpoints report. No method may block: all listeners share one thread.
pub trait AdminReport: Send + Sync + 'static {
    /// Returns `Ok` if this process works, independent of Vault.
    ///
    /// # Errors
    /// Returns why the process should be restarted, as a line of text.
    fn live(&self) -> Result<(), String>;

    /// Returns all metrics in the Prometheus text format.
    ///
    /// # Errors
    /// Returns why the metrics cannot be rendered, as a line of text.
    fn metrics(&self) -> Result<String, String>;

    /// Returns a line of text about the session in use if calls would succeed.
    ///
    /// # Errors
    /// Returns why calls would fail, as a line of text.
    fn ready(&self) -> Result<String, String>;
}

/// An admin listener that is bound. Its clients wait in the queue until it is served.
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
    /// Returns the address it listens on, with the port that the kernel chose.
    #[must_use]
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }
}

/// Binds an admin listener. A unix socket gets mode 0600 and follows the rules of [`socket::bind`]. TCP
/// port 0 means any free port.
///
/// With `overlap`, another process may listen on the same TCP port (`SO_REUSEPORT`), if it also allows
/// this and has the same uid. A client then reaches one process or the other. That is good enough for
/// scrapes, which would fail otherwise, but not for probes of one process: those need a unix socket that
/// belongs to this process. `overlap` should be off unless an upgrade needs it, because a port that is
/// used by mistake would go unnoticed.
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

/// Does what the standard library does, but can set `SO_REUSEPORT`, which must happen before bind.
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

/// Controls the admin thread, which stops when this is dropped.
#[derive(Debug)]
pub struct AdminHandle {
    stop: CancellationToken,
    stopped: oneshot::Receiver<()>,
}

impl AdminHandle {
    /// Stops the thread: closes the listeners, finishes responses in progress and removes the unix sockets
    /// that this process has created. Takes at most two seconds.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if timeout(STOP_TIMEOUT, &mut self.stopped).await.is_err() {
            warn!("the admin thread does not stop; exiting without waiting for it");
        }
    }
}

impl Drop for AdminHandle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Serves the listeners on a new thread.
///
/// # Errors
/// Fails if the thread or its runtime cannot be created.
pub async fn spawn(listeners: Vec<BoundAdmin>, report: Arc<dyn AdminReport>) -> io::Result<AdminHandle> {
    let stop = CancellationToken::new();
    let (stopped_sender, stopped) = oneshot::channel();
    let (started_sender, started) = oneshot::channel();
    let stopping = stop.clone();
    thread::Builder::new().name("admin".into()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                drop(started_sender.send(Err(error)));
                return;
            }
        };
        runtime.block_on(async {
            let mut loops = JoinSet::new();
            let files = match start(listeners, &report, &stopping, &mut loops) {
                Ok(files) => files,
                Err(error) => {
                    drop(started_sender.send(Err(error)));
                    return;
                }
            };
            drop(started_sender.send(Ok(())));
            stopping.cancelled().await;
            for file in files {
                if let Err(error) = file.remove_if_own().await {
                    debug!(socket = %file.address(), %error, "cannot remove the admin socket");
                }
            }
            while loops.join_next().await.is_some() {}
        });
        drop(runtime);
        let _ = stopped_sender.send(());
    })?;
    started.await.map_err(|_| io::Error::other("the admin thread ended while it started"))??;
    Ok(AdminHandle { stop, stopped })
}

fn start(
    listeners: Vec<BoundAdmin>,
    report: &Arc<dyn AdminReport>,
    stop: &CancellationToken,
    loops: &mut JoinSet<()>,
) -> io::Result<Vec<SocketFile>> {
    let mut files = Vec::new();
    for BoundAdmin { address, listener } in listeners {
        info!(%address, "serving /livez, /readyz and /metrics");
        let backoff = AcceptBackoff::new(format!("admin {address}"));
        let report = Arc::clone(report);
        match listener {
            Bound::Tcp(listener) => {
                let listener = TcpListener::from_std(listener)?;
                loops.spawn(serve(listener, report, stop.clone(), backoff));
            }
            Bound::Unix(socket) => {
                let (listener, file) = socket.into_listener()?;
                files.push(file);
                loops.spawn(serve(listener, report, stop.clone(), backoff));
            }
        }
    }
    Ok(files)
}

async fn serve<L>(
    mut listener: L,
    report: Arc<dyn AdminReport>,
    stop: CancellationToken,
    mut backoff: AcceptBackoff,
) where
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
                backoff.succeeded();
                // The oldest connection has had the most time; a new probe must get an answer.
                if oldest_first.len() >= MAX_CONNECTIONS
                    && let Some(oldest) = oldest_first.pop_front()
                {
                    debug!("too many admin connections: closed the oldest");
                    oldest.abort();
                }
                let connection = connection(stream, Arc::clone(&report), stop.clone());
                oldest_first.push_back(connections.spawn(connection));
            }
            Err(error) => {
                let delay = backoff.failed(&error);
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    () = sleep(delay) => {}
                }
            }
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    // Dropping the set aborts the connections that remain.
    drop(timeout(STOP_GRACE, all).await);
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    report: Arc<dyn AdminReport>,
    stop: CancellationToken,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), report.as_ref());
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

fn answer(method: &Method, path: &str, report: &dyn AdminReport) -> Response<Full<Bytes>> {
    const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
    const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    if !["/", "/healthz", "/livez", "/metrics", "/readyz"].contains(&path) {
        return respond(StatusCode::NOT_FOUND, TEXT, "not found; see /\n".into());
    }
    if method != Method::GET && method != Method::HEAD {
        let mut rejected = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET and HEAD only\n".into());
        rejected.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return rejected;
    }
    match path {
        // Probes that were written for vault-kube-kms request /healthz.
        "/healthz" | "/livez" => match report.live() {
            Ok(()) => respond(StatusCode::OK, TEXT, "ok\n".into()),
            Err(reason) => respond(unavailable, TEXT, format!("{reason}\n")),
        },
        "/metrics" => match report.metrics() {
            Ok(metrics) => respond(StatusCode::OK, METRICS, metrics),
            Err(reason) => respond(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{reason}\n")),
        },
        "/readyz" => match report.ready() {
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
mod tests;
