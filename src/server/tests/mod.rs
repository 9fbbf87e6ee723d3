//! Tests of the accept loop, its connections and its drain, with a service in this process.

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
    accept::{CutOff, GrpcService, ServeOptions, serve},
    limits::Limits,
    listener::Listener,
    peer::{AllowedPeers, Peer},
};
use crate::observe::metrics::Metrics;

mod accept_errors;
mod calls;
mod connections;
mod shutdown;

/// Far longer than any step takes; a test that reaches it fails.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const GOAWAY: u8 = 7;

/// Waits until `holds` returns true.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    timeout(TEST_TIMEOUT, future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// A service whose Encrypt waits for a permit and whose Decrypt panics.
#[derive(Clone, Default)]
struct TestKms {
    entered: Arc<AtomicUsize>,
    permits: Arc<Permits>,
    left: Arc<AtomicUsize>,
}

struct Permits(Semaphore);

impl Default for Permits {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl TestKms {
    fn entered(&self) -> usize {
        self.entered.load(Ordering::SeqCst)
    }

    fn left(&self) -> usize {
        self.left.load(Ordering::SeqCst)
    }

    fn finish_one(&self) {
        self.permits.0.add_permits(1);
    }
}

struct CountOnDrop(Arc<AtomicUsize>);

impl Drop for CountOnDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait::async_trait]
impl KeyManagementService for TestKms {
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
        let _left = CountOnDrop(Arc::clone(&self.left));
        self.entered.fetch_add(1, Ordering::SeqCst);
        self.permits.0.acquire().await.unwrap().forget();
        Ok(tonic::Response::new(proto::EncryptResponse {
            ciphertext: request.into_inner().plaintext,
            ..Default::default()
        }))
    }
}

struct Running {
    _directory: TempDir,
    kms: TestKms,
    metrics: Arc<Metrics>,
    path: PathBuf,
    server: JoinHandle<CutOff>,
    shutdown: CancellationToken,
}

struct TestOptions {
    grace: Duration,
    limits: Limits,
    peers: AllowedPeers,
}

impl Default for TestOptions {
    fn default() -> Self {
        let limits = Limits { linger: Duration::from_millis(50), ..Limits::default() };
        Self { grace: TEST_TIMEOUT, limits, peers: AllowedPeers::default() }
    }
}

impl Running {
    fn start(options: TestOptions) -> Self {
        let kms = TestKms::default();
        Self::start_with(options, KeyManagementServiceServer::new(kms.clone()), kms)
    }

    fn start_with(options: TestOptions, service: impl GrpcService + Sync, kms: TestKms) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kms.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let shutdown = CancellationToken::new();
        let options = ServeOptions {
            grace: options.grace,
            limits: options.limits,
            metrics: Arc::clone(&metrics),
            peers: options.peers,
        };
        let server = tokio::spawn(serve(listener, service, options, shutdown.clone()));
        Self { _directory: directory, kms, metrics, path, server, shutdown }
    }

    async fn client(&self) -> KeyManagementServiceClient<Channel> {
        soon("a client connects", client(&self.path)).await.unwrap()
    }

    async fn raw(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.unwrap()
    }

    /// A client that sends the preface and its settings, and then nothing.
    async fn silent(&self) -> UnixStream {
        let mut stream = self.raw().await;
        stream.write_all(PREFACE).await.unwrap();
        stream.write_all(EMPTY_SETTINGS).await.unwrap();
        // Once SETTINGS of the server arrive, it has read the preface.
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

/// Reads until the server closes the connection.
async fn rest(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset also counts: the server sends one if it has not read everything.
    drop(soon("the server closes", stream.read_to_end(&mut bytes)).await);
    bytes
}

/// Returns the types of the frames in `bytes`, whose first byte was read before.
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

fn options(metrics: &Arc<Metrics>) -> ServeOptions {
    ServeOptions {
        grace: Duration::from_secs(1),
        limits: Limits::default(),
        metrics: Arc::clone(metrics),
        peers: AllowedPeers::default(),
    }
}
