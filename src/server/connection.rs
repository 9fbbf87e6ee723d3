//! Serves one HTTP/2 connection.

use std::{
    convert::Infallible,
    io,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Method, Request, Response, StatusCode};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    rt::Executor,
    server::conn::http2,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use kms_plugin::grpc_timeout::requested_timeout;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;
use tracing::{debug, error};

use super::{
    connection_tracker::{CallGuard, ConnectionSlot, TrackedConnection},
    limits::Limits,
    malformed_requests::{MalformedRequestLog, PREFACE_BYTES, RequestMonitor},
    peer::Peer,
};
use crate::observe::metrics::Metrics;

/// The time after the caller's deadline at which this module ends a call. Usually the service ends it
/// before the deadline and says why. But the service sees only complete requests, so it cannot end a
/// call whose request never completes.
const DEADLINE_MARGIN: Duration = Duration::from_secs(1);
const MAX_HEADER_LIST: u32 = 16 * 1024;
/// Messages have a few KiB. The windows bound how much memory one caller can fill.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const SEND_BUFFER: usize = 64 * 1024;

/// The service that a connection serves. The servers that tonic generates implement it.
pub trait GrpcService:
    tower::Service<
        Request<Incoming>,
        Response = Response<tonic::body::Body>,
        Error = Infallible,
        Future: Send + 'static,
    > + Clone
    + Send
    + 'static
{
}

impl<S> GrpcService for S where
    S: tower::Service<
            Request<Incoming>,
            Response = Response<tonic::body::Body>,
            Error = Infallible,
            Future: Send + 'static,
        > + Clone
        + Send
        + 'static
{
}

/// What the connections of one listener share.
#[derive(Clone, Debug)]
pub(super) struct ConnectionContext {
    /// Aborts every connection and call.
    pub(super) abort: CancellationToken,
    pub(super) limits: Limits,
    pub(super) malformed: Arc<MalformedRequestLog>,
    pub(super) metrics: Arc<Metrics>,
    /// Every connection and every call is a task of this tracker.
    pub(super) tasks: TaskTracker,
}

/// Serves until the client closes the connection, sends no preface in time, or is asked to close and
/// has no call in flight.
pub(super) async fn serve<S: GrpcService>(
    stream: UnixStream,
    service: S,
    slot: ConnectionSlot,
    context: ConnectionContext,
) {
    let peer = slot.connection.peer;
    let (uid, pid) = (peer.uid, peer.pid);
    let (stream, preface) = MonitoredStream::new(stream, peer, &context);
    let service = CountedService { connection: Arc::clone(&slot.connection), service };
    let connection = http2::Builder::new(CallExecutor(context.tasks.clone()))
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .max_concurrent_streams(context.limits.max_streams)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buf_size(SEND_BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);

    tokio::select! {
        biased;
        () = context.abort.cancelled() => return,
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                debug!(uid, pid, %error, "a connection failed");
            }
            return;
        }
        () = slot.connection.close.cancelled() => {}
        () = preface.overdue(context.limits.handshake_timeout) => {
            context.metrics.server.handshake_timeouts.inc();
            debug!(uid, pid, "closed a connection: its HTTP/2 preface did not arrive in time");
            return;
        }
    }

    // Sends GOAWAY. A conforming client closes the connection when its calls are answered. hyper
    // waits without limit for a client that does not answer the ping behind GOAWAY; hence the linger.
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        biased;
        () = context.abort.cancelled() => {}
        _ended = connection.as_mut() => {}
        () = slot.connection.idle_for(context.limits.linger) => {
            debug!(uid, pid, "closed a connection that had no call in flight and stayed open after GOAWAY");
        }
    }
}

/// Spawns calls on the tracker, so that a shutdown can wait for them. A call ends with its connection:
/// its stream is reset, and hyper drops the call.
#[derive(Clone, Debug)]
struct CallExecutor(TaskTracker);

impl<F> Executor<F> for CallExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, call: F) {
        self.0.spawn(call);
    }
}

/// The service of one connection: counts calls in flight, limits their time and catches their panics.
#[derive(Clone, Debug)]
struct CountedService<S> {
    connection: Arc<TrackedConnection>,
    service: S,
}

impl<S: GrpcService> hyper::service::Service<Request<Incoming>> for CountedService<S> {
    type Response = Response<GuardedBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let guard = self.connection.start_call();
        let service = self.service.clone();
        let max_time = requested_timeout(request.headers()) + DEADLINE_MARGIN;
        request.extensions_mut().insert(self.connection.peer);
        // The service must not run before the future is polled, which happens in a task of its own: a
        // panic here would end the connection.
        Box::pin(async move {
            let response = if request.method() == Method::POST {
                let response = catch_panic(async move { service.oneshot(request).await });
                timeout(max_time, response).await.unwrap_or_else(|_| {
                    let late = "the call did not end before the caller's deadline: was its request complete?";
                    tonic::Status::deadline_exceeded(late).into_http()
                })
            } else {
                // This includes CONNECT, which would turn the stream into a tunnel.
                let mut rejected = Response::new(tonic::body::Body::empty());
                *rejected.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
                rejected
            };
            Ok(response.map(|body| GuardedBody { body, _guard: guard }))
        })
    }
}

/// Returns the response of `call`, or `Internal` if it panics.
async fn catch_panic<F>(call: F) -> Response<tonic::body::Body>
where
    F: Future<Output = Result<Response<tonic::body::Body>, Infallible>>,
{
    // `AssertUnwindSafe` holds: state that calls share is behind locks that report a panic, or is
    // replaced as a whole, so no other call sees what this one left half done.
    match AssertUnwindSafe(call).catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        // The message of the panic may contain secrets.
        Err(_message) => {
            error!("a call panicked: this is a bug; other calls and the connection continue");
            tonic::Status::internal("internal error, see the log of transit-kms").into_http()
        }
    }
}

/// Counts its call as in flight until hyper has taken the whole body.
#[derive(Debug)]
struct GuardedBody {
    body: tonic::body::Body,
    _guard: CallGuard,
}

impl Body for GuardedBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream that counts the bytes of the preface and finds malformed requests.
#[derive(Debug)]
struct MonitoredStream {
    malformed: Arc<MalformedRequestLog>,
    metrics: Arc<Metrics>,
    monitor: RequestMonitor,
    peer: Peer,
    /// Bytes read; counted until the preface is complete.
    read: Arc<AtomicUsize>,
    stream: UnixStream,
}

/// How much of the preface has arrived.
#[derive(Debug)]
struct Preface(Arc<AtomicUsize>);

impl MonitoredStream {
    fn new(stream: UnixStream, peer: Peer, context: &ConnectionContext) -> (Self, Preface) {
        let read = Arc::new(AtomicUsize::new(0));
        let monitored = Self {
            malformed: Arc::clone(&context.malformed),
            metrics: Arc::clone(&context.metrics),
            monitor: RequestMonitor::new(),
            peer,
            read: Arc::clone(&read),
            stream,
        };
        (monitored, Preface(read))
    }

    fn written(&mut self, bytes: &[u8]) {
        let Self { malformed, metrics, monitor, peer, .. } = self;
        monitor.written(bytes, |kind| malformed.log(peer, kind, metrics));
    }
}

impl Preface {
    /// Returns if the preface is not complete after `timeout`; otherwise never.
    async fn overdue(&self, timeout: Duration) {
        sleep(timeout).await;
        if self.0.load(Ordering::Relaxed) >= PREFACE_BYTES {
            std::future::pending().await
        }
    }
}

impl AsyncRead for MonitoredStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.monitor.read(buffer.filled().get(before..).unwrap_or_default());
        let read = self.read.load(Ordering::Relaxed);
        if read < PREFACE_BYTES {
            let added = buffer.filled().len().saturating_sub(before);
            self.read.store(read.saturating_add(added), Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MonitoredStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.written(bytes.get(..written).unwrap_or_default());
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices))?;
        let mut remaining = written;
        for slice in slices {
            let part = slice.get(..remaining.min(slice.len())).unwrap_or_default();
            remaining -= part.len();
            self.written(part);
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
