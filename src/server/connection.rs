//! One HTTP/2 connection, from its first byte to its last.

use std::{
    convert::Infallible,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
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
    accept::Limits,
    connection_tracker::{CallGuard, Connection, Place},
    malformed_requests::{MalformedLog, Refusals},
    peer::Peer,
};
use crate::observe::metrics::Metrics;

/// `PRI * HTTP/2.0`, `SM` and their line ends.
const PREFACE_BYTES: usize = 24;
/// The service knows better why a call takes too long, and ends it before the caller's deadline;
/// but it hears of a call only once the request is complete, which half a request never is.
const PATIENCE_WITH_SERVICE: Duration = Duration::from_secs(1);
const MAX_HEADER_LIST: u32 = 16 * 1024;
/// A message is a few KiB; a window lets one caller fill no more than this.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const SEND_BUFFER: usize = 64 * 1024;

/// What a connection serves: what tonic generates fits.
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

/// What all connections share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    /// Ends every connection and call at once.
    pub(super) kill: CancellationToken,
    pub(super) limits: Limits,
    pub(super) malformed: Arc<MalformedLog>,
    pub(super) metrics: Arc<Metrics>,
    /// Every connection and every call is a task here.
    pub(super) tasks: TaskTracker,
}

/// Serves until the client leaves, is silent at the beginning, or is asked to
/// leave and has no call in flight.
pub(super) async fn serve<S: GrpcService>(stream: UnixStream, service: S, place: Place, shared: Shared) {
    let peer = place.connection.peer;
    let (uid, pid) = (peer.uid, peer.pid);
    let (stream, preface) = Watched::new(stream, peer, &shared);
    let service = Calls { connection: Arc::clone(&place.connection), service };
    let connection = http2::Builder::new(CallExecutor(shared.tasks.clone()))
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .max_concurrent_streams(shared.limits.max_streams)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buf_size(SEND_BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);

    tokio::select! {
        biased;
        () = shared.kill.cancelled() => return,
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                debug!(uid, pid, %error, "a connection broke");
            }
            return;
        }
        () = place.connection.leave.cancelled() => {}
        () = preface.overdue(shared.limits.handshake_timeout) => {
            shared.metrics.server.handshake_timeouts.inc();
            debug!(uid, pid, "dropped a connection: no HTTP/2 preface in time");
            return;
        }
    }

    // GOAWAY. A client that behaves closes once its calls are answered; one that does not even
    // answer the ping behind GOAWAY would keep hyper waiting for ever, hence the linger.
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        biased;
        () = shared.kill.cancelled() => {}
        _ended = connection.as_mut() => {}
        () = place.connection.idle_for(shared.limits.linger) => {
            debug!(uid, pid, "dropped a connection that had no call in flight and did not leave");
        }
    }
}

/// Spawns calls so that they can be waited for. A call ends with its
/// connection: its stream is reset, and hyper drops it.
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

/// The service of one connection: counts calls and survives their panics.
#[derive(Clone, Debug)]
struct Calls<S> {
    connection: Arc<Connection>,
    service: S,
}

impl<S: GrpcService> hyper::service::Service<Request<Incoming>> for Calls<S> {
    type Response = Response<GuardedBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let guard = self.connection.call();
        let service = self.service.clone();
        let patience = requested_timeout(request.headers()) + PATIENCE_WITH_SERVICE;
        request.extensions_mut().insert(self.connection.peer);
        // Nothing of the service runs before the future is polled, in a task of its own: here a
        // panic would take the connection with it.
        Box::pin(async move {
            let answer = if request.method() == Method::POST {
                let answer = caught(async move { service.oneshot(request).await });
                timeout(patience, answer).await.unwrap_or_else(|_| {
                    let late = "the call did not end before the caller's deadline: was its request complete?";
                    tonic::Status::deadline_exceeded(late).into_http()
                })
            } else {
                // Among others CONNECT, which would make a tunnel of the stream.
                let mut refused = Response::new(tonic::body::Body::empty());
                *refused.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
                refused
            };
            Ok(answer.map(|body| GuardedBody { body, _guard: guard }))
        })
    }
}

/// The answer of `call`, or `Internal` if it panics.
async fn caught<F>(call: F) -> Response<tonic::body::Body>
where
    F: Future<Output = Result<Response<tonic::body::Body>, Infallible>>,
{
    let mut call = pin!(call);
    // Whatever the call left half done, it is the only one that knows it: shared state lies
    // behind locks that report a panic, or is replaced whole.
    let polled = std::future::poll_fn(|context| {
        match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    });
    match polled.await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        // The panic's message may hold what must not be logged.
        Err(_message) => {
            error!("a call panicked; this is a bug; other calls and the connection go on");
            tonic::Status::internal("internal error, see the log of transit-kms").into_http()
        }
    }
}

/// Keeps its call counted until the whole answer has been handed over.
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

/// A stream whose bytes are counted, up to a preface, and looked at for requests that are refused.
#[derive(Debug)]
struct Watched {
    malformed: Arc<MalformedLog>,
    metrics: Arc<Metrics>,
    peer: Peer,
    read: Arc<AtomicUsize>,
    refusals: Refusals,
    stream: UnixStream,
}

/// How much of the preface has come.
#[derive(Debug)]
struct Preface(Arc<AtomicUsize>);

impl Watched {
    fn new(stream: UnixStream, peer: Peer, shared: &Shared) -> (Self, Preface) {
        let read = Arc::new(AtomicUsize::new(0));
        let watched = Self {
            malformed: Arc::clone(&shared.malformed),
            metrics: Arc::clone(&shared.metrics),
            peer,
            read: Arc::clone(&read),
            refusals: Refusals::new(),
            stream,
        };
        (watched, Preface(read))
    }

    fn written(&mut self, bytes: &[u8]) {
        let Self { malformed, metrics, peer, refusals, .. } = self;
        refusals.written(bytes, |what| malformed.refused(peer, what, metrics));
    }
}

impl Preface {
    /// Returns if the preface is not complete after `patience`; otherwise never.
    async fn overdue(&self, patience: Duration) {
        sleep(patience).await;
        if self.0.load(Ordering::Relaxed) >= PREFACE_BYTES {
            std::future::pending().await
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.refusals.read(buffer.filled().get(before..).unwrap_or_default());
        let read = self.read.load(Ordering::Relaxed);
        if read < PREFACE_BYTES {
            let came = buffer.filled().len().saturating_sub(before);
            self.read.store(read.saturating_add(came), Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
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
        let mut left = written;
        for slice in slices {
            let part = slice.get(..left.min(slice.len())).unwrap_or_default();
            left -= part.len();
            self.written(part);
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
