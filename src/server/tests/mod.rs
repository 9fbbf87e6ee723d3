//! The accept loop, its connections and its drain, in this process.

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kms_plugin::v2::{
    self as proto,
    key_management_service_client::KeyManagementServiceClient,
    key_management_service_server::{KeyManagementService, KeyManagementServiceServer},
};
use rustix::io::Errno;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

use super::{
    accept::{CutOff, GrpcService, Limits, Listener, Settings, serve},
    peer::{AllowedPeers, Peer},
};
use crate::observe::metrics::Metrics;

/// Far longer than anything takes here; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(20);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const GOAWAY: u8 = 7;

/// Waits for what another task will bring about.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// A KMS whose Encrypt waits for a permit and whose Decrypt panics.
#[derive(Clone, Default)]
struct Kms {
    entered: Arc<AtomicUsize>,
    gate: Arc<Gate>,
    left: Arc<AtomicUsize>,
}

struct Gate(Semaphore);

impl Default for Gate {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl Kms {
    fn entered(&self) -> usize {
        self.entered.load(Ordering::SeqCst)
    }

    fn left(&self) -> usize {
        self.left.load(Ordering::SeqCst)
    }

    fn open(&self) {
        self.gate.0.add_permits(1);
    }
}

struct Left(Arc<AtomicUsize>);

impl Drop for Left {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait::async_trait]
impl KeyManagementService for Kms {
    async fn status(
        &self,
        request: tonic::Request<proto::StatusRequest>,
    ) -> Result<tonic::Response<proto::StatusResponse>, tonic::Status> {
        let peer = request.extensions().get::<Peer>().expect("every request carries its peer");
        Ok(tonic::Response::new(proto::StatusResponse {
            version: "v2".into(),
            healthz: "ok".into(),
            key_id: peer.uid.to_string(),
        }))
    }

    async fn decrypt(
        &self,
        _: tonic::Request<proto::DecryptRequest>,
    ) -> Result<tonic::Response<proto::DecryptResponse>, tonic::Status> {
        panic!("a test panics on purpose")
    }

    async fn encrypt(
        &self,
        request: tonic::Request<proto::EncryptRequest>,
    ) -> Result<tonic::Response<proto::EncryptResponse>, tonic::Status> {
        let _left = Left(Arc::clone(&self.left));
        self.entered.fetch_add(1, Ordering::SeqCst);
        self.gate.0.acquire().await.unwrap().forget();
        Ok(tonic::Response::new(proto::EncryptResponse {
            ciphertext: request.into_inner().plaintext,
            ..Default::default()
        }))
    }
}

struct Running {
    _directory: TempDir,
    kms: Kms,
    metrics: Arc<Metrics>,
    path: PathBuf,
    server: JoinHandle<CutOff>,
    shutdown: CancellationToken,
}

struct Options {
    grace: Duration,
    limits: Limits,
    peers: AllowedPeers,
}

impl Default for Options {
    fn default() -> Self {
        let limits = Limits { linger: Duration::from_millis(50), ..Limits::default() };
        Self { grace: PATIENCE, limits, peers: AllowedPeers::default() }
    }
}

impl Running {
    fn start(options: Options) -> Self {
        let kms = Kms::default();
        Self::start_with(options, KeyManagementServiceServer::new(kms.clone()), kms)
    }

    fn start_with(options: Options, service: impl GrpcService + Sync, kms: Kms) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kms.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let shutdown = CancellationToken::new();
        let settings = Settings {
            grace: options.grace,
            limits: options.limits,
            metrics: Arc::clone(&metrics),
            peers: options.peers,
        };
        let server = tokio::spawn(serve(listener, service, settings, shutdown.clone()));
        Self { _directory: directory, kms, metrics, path, server, shutdown }
    }

    async fn client(&self) -> KeyManagementServiceClient<Channel> {
        soon("a client connects", client(&self.path)).await.unwrap()
    }

    async fn raw(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.unwrap()
    }

    /// A client that says hello and then nothing any more.
    async fn silent(&self) -> UnixStream {
        let mut stream = self.raw().await;
        stream.write_all(PREFACE).await.unwrap();
        stream.write_all(EMPTY_SETTINGS).await.unwrap();
        // The server's SETTINGS: it has read the preface.
        let mut byte = [0];
        soon("SETTINGS come", stream.read_exact(&mut byte)).await.unwrap();
        stream
    }

    async fn stop(self) -> CutOff {
        self.shutdown.cancel();
        soon("the server stops", self.server).await.unwrap()
    }
}

async fn client(path: &Path) -> Result<KeyManagementServiceClient<Channel>, tonic::transport::Error> {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
    Ok(KeyManagementServiceClient::new(channel))
}

fn seed(byte: u8) -> proto::EncryptRequest {
    proto::EncryptRequest { plaintext: vec![byte; 32].into(), uid: String::new() }
}

/// Reads until the server closes; everything that came.
async fn rest(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is a close too: it comes if we wrote what the server did not read.
    drop(soon("the server closes", stream.read_to_end(&mut bytes)).await);
    bytes
}

/// Frame types in `bytes`, of which the first byte was read before.
fn frames(bytes: &[u8]) -> Vec<u8> {
    let whole = [&[0], bytes].concat();
    let mut rest = whole.as_slice();
    let mut types = Vec::new();
    while rest.len() >= 9 {
        let length = usize::from(rest[0]) << 16 | usize::from(rest[1]) << 8 | usize::from(rest[2]);
        types.push(rest[3]);
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    types
}

#[tokio::test]
async fn several_clients_are_served_at_once_and_requests_name_their_peer() {
    let running = Running::start(Options::default());
    let own = rustix::process::geteuid().as_raw().to_string();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut client = running.client().await;
        let own = own.clone();
        clients.spawn(async move {
            for _ in 0..20 {
                let status = client.status(proto::StatusRequest {}).await.unwrap().into_inner();
                assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &own));
            }
            client
        });
    }
    let clients = soon("all are answered", clients.join_all()).await;
    assert_eq!(running.metrics.server.connections_open.get(), 8);
    drop(clients);
    until("all have left", || running.metrics.server.connections_open.get() == 0).await;
    assert_eq!(running.stop().await, CutOff::default());
}

#[tokio::test]
async fn half_a_preface_times_out_and_a_whole_one_does_not() {
    let limits = Limits { handshake_timeout: Duration::from_millis(400), ..Limits::default() };
    let running = Running::start(Options { limits, ..Options::default() });
    let mut whole = running.client().await;
    whole.status(proto::StatusRequest {}).await.unwrap();
    let _silent = running.silent().await;

    let mut half = running.raw().await;
    half.write_all(&PREFACE[..23]).await.unwrap();
    rest(&mut half).await;
    assert_eq!(running.metrics.server.handshake_timeouts.get(), 1);

    let mut nothing = running.raw().await;
    rest(&mut nothing).await;
    assert_eq!(running.metrics.server.handshake_timeouts.get(), 2);

    // Both were there before, so their time was over too.
    assert_eq!(running.metrics.server.connections_open.get(), 2);
    whole.status(proto::StatusRequest {}).await.unwrap();
    assert_eq!(running.metrics.server.connections_open.get(), 2);
}

#[tokio::test]
async fn garbage_closes_only_its_own_connection() {
    let running = Running::start(Options::default());
    let mut client = running.client().await;
    for garbage in [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        vec![0xff; 4096],
        [PREFACE, &[0xff; 64]].concat(),
    ] {
        let mut stream = running.raw().await;
        stream.write_all(&garbage).await.unwrap();
        rest(&mut stream).await;
    }
    client.status(proto::StatusRequest {}).await.unwrap();
    until("they are gone", || running.metrics.server.connections_open.get() == 1).await;
}

#[tokio::test]
async fn a_foreign_uid_is_refused_and_counted() {
    let peers = AllowedPeers::new([rustix::process::geteuid().as_raw() + 1]);
    let running = Running::start(Options { peers, ..Options::default() });
    let mut stream = running.raw().await;
    assert_eq!(rest(&mut stream).await, b"");
    assert_eq!(running.metrics.server.connections_rejected.get(), 1);
    let refused = soon("an answer", async {
        client(&running.path).await?.status(proto::StatusRequest {}).await.map_err(Into::into)
    });
    refused.await.map_err(|error: Box<dyn std::error::Error + Send + Sync>| error).unwrap_err();
    // The client tries more than once.
    assert!(running.metrics.server.connections_rejected.get() >= 2);
    assert_eq!(running.metrics.server.connections_open.get(), 0);
}

#[tokio::test]
async fn a_panic_is_answered_and_touches_no_other_call() {
    let running = Running::start(Options::default());
    let client = running.client().await;
    let call = tokio::spawn({
        let mut client = client.clone();
        async move { client.encrypt(seed(1)).await }
    });
    until("the other call is in flight", || running.kms.entered() == 1).await;
    let status = client.clone().decrypt(proto::DecryptRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(!status.message().contains("on purpose"), "{status}");
    running.kms.open();
    soon("the other call ends", call).await.unwrap().unwrap();
    assert_eq!(running.metrics.server.connections_open.get(), 1);
}

#[tokio::test]
async fn a_panic_before_the_first_await_is_answered_too() {
    let service = tower::service_fn(|_: Request<Incoming>| {
        if true {
            panic!("a test panics on purpose");
        }
        async { Ok(Response::new(tonic::body::Body::empty())) }
    });
    let running = Running::start_with(Options::default(), service, Kms::default());
    let mut client = running.client().await;
    for _ in 0..2 {
        let status = client.status(proto::StatusRequest {}).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal);
    }
    assert_eq!(running.metrics.server.connections_open.get(), 1);
}

#[tokio::test]
async fn a_caller_that_gives_up_ends_its_call() {
    let running = Running::start(Options::default());
    let mut client = running.client().await;
    {
        let mut call = Box::pin(client.encrypt(seed(1)));
        let given_up = timeout(Duration::from_millis(50), &mut call).await;
        assert!(given_up.is_err());
        until("the call is in flight", || running.kms.entered() == 1).await;
    }
    until("the call has ended", || running.kms.left() == 1).await;
    // So does one whose connection is gone.
    let call = tokio::spawn(async move { client.encrypt(seed(2)).await });
    until("the call is in flight", || running.kms.entered() == 2).await;
    call.abort();
    until("the call has ended", || running.kms.left() == 2).await;
}

#[tokio::test]
async fn only_post_reaches_the_service() {
    let running = Running::start(Options::default());
    let stream = TokioIo::new(running.raw().await);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = "http://localhost/v2.KeyManagementService/Status".parse().unwrap();
    let response = soon("an answer", sender.send_request(request)).await.unwrap();
    assert_eq!(response.status(), http::StatusCode::METHOD_NOT_ALLOWED);
    connection.abort();
}

#[tokio::test]
async fn a_call_in_flight_at_shutdown_is_finished() {
    let running = Running::start(Options::default());
    let mut client = running.client().await;
    let call = tokio::spawn(async move { client.encrypt(seed(7)).await });
    until("the call is in flight", || running.kms.entered() == 1).await;

    running.shutdown.cancel();
    let path = running.path.clone();
    until("new connections are refused", || std::os::unix::net::UnixStream::connect(&path).is_err()).await;
    // Several lingers pass; a call in flight outlives them.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!running.server.is_finished());

    running.kms.open();
    let answer = soon("the answer comes", call).await.unwrap().unwrap();
    assert_eq!(answer.into_inner().ciphertext, vec![7; 32]);
    assert_eq!(running.stop().await, CutOff::default());
}

/// An answer that comes when the test wants it to.
struct SlowBody(mpsc::Receiver<Bytes>);

impl Body for SlowBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[tokio::test]
async fn an_answer_counts_as_in_flight_until_its_last_byte() {
    let bodies: Arc<Mutex<Vec<_>>> = Arc::default();
    let sent = Arc::clone(&bodies);
    let service = tower::service_fn(move |_: Request<Incoming>| {
        let (sender, body) = mpsc::channel(1);
        sent.lock().unwrap().push(sender);
        async { Ok(Response::new(tonic::body::Body::new(SlowBody(body)))) }
    });
    let running = Running::start_with(Options::default(), service, Kms::default());
    let stream = TokioIo::new(running.raw().await);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::post("http://localhost/").body(Empty::<Bytes>::new()).unwrap();
    let answer = soon("the headers come", sender.send_request(request)).await.unwrap();

    running.shutdown.cancel();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!running.server.is_finished());
    let body = bodies.lock().unwrap().pop().unwrap();
    body.send(Bytes::from_static(b"all of it")).await.unwrap();
    drop(body);
    let whole = soon("the body comes", answer.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(whole, "all of it");
    assert_eq!(running.stop().await, CutOff::default());
    connection.abort();
}

#[tokio::test]
async fn a_silent_client_does_not_hold_up_a_shutdown() {
    let running = Running::start(Options::default());
    let mut silent = running.silent().await;
    let mut half = running.raw().await;
    half.write_all(&PREFACE[..5]).await.unwrap();
    until("both are there", || running.metrics.server.connections_open.get() == 2).await;
    let start = Instant::now();
    assert_eq!(running.stop().await, CutOff::default());
    // The grace is twenty seconds.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let frames = frames(&rest(&mut silent).await);
    assert!(frames.contains(&GOAWAY), "{frames:?}");
}

#[tokio::test]
async fn the_grace_ends_what_does_not_end_by_itself() {
    let running = Running::start(Options { grace: Duration::from_millis(100), ..Options::default() });
    let kms = running.kms.clone();
    let mut client = running.client().await;
    let call = tokio::spawn(async move { client.encrypt(seed(7)).await });
    until("the call is in flight", || kms.entered() == 1).await;
    let start = Instant::now();
    assert_eq!(running.stop().await, CutOff { calls: 1, connections: 1 });
    // When serve returns, the call is over, not merely unheard or given up on.
    assert_eq!(kms.left(), 1);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    soon("the client notices", call).await.unwrap().unwrap_err();
}

#[tokio::test]
async fn dropping_the_server_ends_its_calls() {
    let running = Running::start(Options::default());
    let mut client = running.client().await;
    let _call = tokio::spawn(async move { client.encrypt(seed(7)).await });
    until("the call is in flight", || running.kms.entered() == 1).await;
    running.server.abort();
    until("the call has ended", || running.kms.left() == 1).await;
}

#[tokio::test]
async fn silent_clients_cannot_lock_out_one_that_works() {
    let limits = Limits { max_connections: 2, linger: Duration::from_millis(50), ..Limits::default() };
    let running = Running::start(Options { limits, ..Options::default() });
    let mut first = running.silent().await;
    let _second = running.silent().await;
    let mut client = running.client().await;
    client.status(proto::StatusRequest {}).await.unwrap();
    let frames = frames(&rest(&mut first).await);
    assert!(frames.contains(&GOAWAY), "{frames:?}");
    client.status(proto::StatusRequest {}).await.unwrap();
    assert_eq!(running.metrics.server.connections_open.get(), 2);
}

/// A listener that fails as often as told, then yields what it holds, then nothing.
struct Failing {
    accepts: Arc<Mutex<Vec<Instant>>>,
    error: Errno,
    failures: usize,
    first: Vec<UnixStream>,
    then: Vec<UnixStream>,
}

impl Listener for Failing {
    type Stream = UnixStream;

    async fn accept(&mut self) -> io::Result<UnixStream> {
        if let Some(stream) = self.first.pop() {
            return Ok(stream);
        }
        self.accepts.lock().unwrap().push(Instant::now());
        if self.failures > 0 {
            self.failures -= 1;
            return Err(self.error.into());
        }
        match self.then.pop() {
            Some(stream) => Ok(stream),
            None => std::future::pending().await,
        }
    }
}

fn settings(metrics: &Arc<Metrics>) -> Settings {
    Settings {
        grace: Duration::from_secs(1),
        limits: Limits::default(),
        metrics: Arc::clone(metrics),
        peers: AllowedPeers::default(),
    }
}

#[tokio::test(start_paused = true)]
async fn errors_of_accept_are_waited_out_without_a_hot_loop() {
    for error in [Errno::MFILE, Errno::NFILE, Errno::CONNABORTED, Errno::NOBUFS] {
        let metrics = Arc::new(Metrics::new().unwrap());
        let accepts: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let listener = Failing {
            accepts: Arc::clone(&accepts),
            error,
            failures: 20,
            first: Vec::new(),
            then: vec![theirs],
        };
        let shutdown = CancellationToken::new();
        let service = KeyManagementServiceServer::new(Kms::default());
        let server = tokio::spawn(serve(listener, service, settings(&metrics), shutdown.clone()));
        // The clock only moves when nobody has anything to do: a loop without pauses would never
        // let it, and one that gives up never counts to 20.
        until("the failures are over", || accepts.lock().unwrap().len() == 22).await;
        let accepts: Vec<_> = accepts.lock().unwrap().clone();
        let pauses: Vec<_> = accepts.windows(2).take(20).map(|two| (two[1] - two[0]).as_millis()).collect();
        assert_eq!(pauses[..7], [10, 20, 40, 80, 160, 320, 640], "{error:?}");
        assert!(pauses[7..].iter().all(|&pause| pause == 1000), "{error:?}: {pauses:?}");
        assert_eq!(metrics.server.accept_errors.get(), 20);
        assert_eq!(metrics.server.connections_open.get(), 1);
        shutdown.cancel();
        server.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_for_a_pause() {
    let metrics = Arc::new(Metrics::new().unwrap());
    let listener = Failing {
        accepts: Arc::default(),
        error: Errno::MFILE,
        failures: usize::MAX,
        first: Vec::new(),
        then: Vec::new(),
    };
    let shutdown = CancellationToken::new();
    let service = KeyManagementServiceServer::new(Kms::default());
    let server = tokio::spawn(serve(listener, service, settings(&metrics), shutdown.clone()));
    until("pauses are long", || metrics.server.accept_errors.get() == 10).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    let start = Instant::now();
    shutdown.cancel();
    server.await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn when_descriptors_run_out_an_idle_connection_gives_its_own() {
    let metrics = Arc::new(Metrics::new().unwrap());
    let (mut idle, theirs) = UnixStream::pair().unwrap();
    let listener = Failing {
        accepts: Arc::default(),
        error: Errno::MFILE,
        failures: 1,
        first: vec![theirs],
        then: Vec::new(),
    };
    // Else the missing preface would end it too, with the clock that jumps.
    let limits = Limits { handshake_timeout: Duration::from_secs(3600), ..Limits::default() };
    let settings = Settings { limits, ..settings(&metrics) };
    let service = KeyManagementServiceServer::new(Kms::default());
    let server = tokio::spawn(serve(listener, service, settings, CancellationToken::new()));
    let mut bytes = Vec::new();
    idle.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(metrics.server.connections_open.get(), 0);
    assert_eq!(metrics.server.handshake_timeouts.get(), 0);
    server.abort();
}

/// On threads, with the whole way from bind to removal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_bind_to_removal() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.sock");
    let address = kms_plugin::address::UnixAddress::Path(path.clone());
    let bound = super::socket::bind(&address, super::socket::SocketOptions::default()).await.unwrap();
    let (listener, file) = bound.into_listener().unwrap();
    let metrics = Arc::new(Metrics::new().unwrap());
    let shutdown = CancellationToken::new();
    let service = KeyManagementServiceServer::new(Kms::default());
    let server = tokio::spawn(serve(listener, service, settings(&metrics), shutdown.clone()));
    let mut client = soon("a client connects", client(&path)).await.unwrap();
    client.status(proto::StatusRequest {}).await.unwrap();

    // Stopping while calls come one after the other: each is answered, or fails as a whole.
    let stopped = Arc::new(AtomicBool::new(false));
    let caller = tokio::spawn({
        let stopped = Arc::clone(&stopped);
        async move {
            while client.status(proto::StatusRequest {}).await.is_ok() {}
            assert!(stopped.load(Ordering::SeqCst), "a call failed before the shutdown");
        }
    });
    stopped.store(true, Ordering::SeqCst);
    shutdown.cancel();
    assert_eq!(soon("the server stops", server).await.unwrap(), CutOff::default());
    soon("the caller notices", caller).await.unwrap();
    assert!(file.remove_if_ours().await.unwrap());
    assert!(!path.exists());
}
