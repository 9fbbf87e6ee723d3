use super::*;
use crate::server::socket::{self, SocketOptions};

#[tokio::test]
async fn a_call_in_flight_at_shutdown_is_finished() {
    let running = Running::start(TestOptions::default());
    let mut client = running.client().await;
    let call = tokio::spawn(async move { client.encrypt(seed(7)).await });
    until("the call is in flight", || running.kms.entered() == 1).await;

    running.shutdown.cancel();
    let path = running.path.clone();
    until("new connections are refused", || std::os::unix::net::UnixStream::connect(&path).is_err()).await;
    // This is several times the linger, and a call in flight outlives it.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!running.server.is_finished());

    running.kms.finish_one();
    let answer = soon("the answer comes", call).await.unwrap().unwrap();
    assert_eq!(answer.into_inner().ciphertext, vec![7; 32]);
    assert_eq!(running.stop().await, CutOff::default());
}

/// A body whose data the test provides.
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
    let running = Running::start_with(TestOptions::default(), service, TestKms::default());
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
async fn a_silent_client_does_not_delay_a_shutdown() {
    let running = Running::start(TestOptions::default());
    let mut silent = running.silent().await;
    let mut half = running.raw().await;
    half.write_all(&PREFACE[..5]).await.unwrap();
    until("both are there", || running.metrics.server.connections_open.get() == 2).await;
    let start = Instant::now();
    assert_eq!(running.stop().await, CutOff::default());
    // The grace is 20 seconds.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let frames = frames(&rest(&mut silent).await);
    assert!(frames.contains(&GOAWAY), "{frames:?}");
}

#[tokio::test]
async fn calls_that_exceed_the_grace_are_cut_off() {
    let running = Running::start(TestOptions { grace: Duration::from_millis(100), ..TestOptions::default() });
    let kms = running.kms.clone();
    let mut client = running.client().await;
    let call = tokio::spawn(async move { client.encrypt(seed(7)).await });
    until("the call is in flight", || kms.entered() == 1).await;
    let start = Instant::now();
    assert_eq!(running.stop().await, CutOff { calls: 1, connections: 1 });
    // When serve returns, the call has been dropped, not only abandoned.
    assert_eq!(kms.left(), 1);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    soon("the client notices", call).await.unwrap().unwrap_err();
}

#[tokio::test]
async fn dropping_the_server_ends_its_calls() {
    let running = Running::start(TestOptions::default());
    let mut client = running.client().await;
    let _call = tokio::spawn(async move { client.encrypt(seed(7)).await });
    until("the call is in flight", || running.kms.entered() == 1).await;
    running.server.abort();
    until("the call has ended", || running.kms.left() == 1).await;
}

/// Runs on several threads, from bind to the removal of the file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_bind_to_removal() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.sock");
    let address = kms_plugin::address::UnixAddress::Path(path.clone());
    let bound = socket::bind(&address, SocketOptions::default()).await.unwrap();
    let (listener, file) = bound.into_listener().unwrap();
    let metrics = Arc::new(Metrics::new().unwrap());
    let shutdown = CancellationToken::new();
    let service = KeyManagementServiceServer::new(TestKms::default());
    let server = tokio::spawn(serve(listener, service, options(&metrics), shutdown.clone()));
    let mut client = soon("a client connects", client(&path)).await.unwrap();
    client.status(proto::StatusRequest {}).await.unwrap();

    // Stops while calls follow each other: each one is answered or fails.
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
    assert!(file.remove_if_own().await.unwrap());
    assert!(!path.exists());
}
