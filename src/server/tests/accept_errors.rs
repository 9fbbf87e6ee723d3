use super::*;

/// A listener that yields `first`, fails `failures` times, yields `then`, and then waits.
struct FailingListener {
    accepts: Arc<Mutex<Vec<Instant>>>,
    error: Errno,
    failures: usize,
    first: Vec<UnixStream>,
    then: Vec<UnixStream>,
}

impl Listener for FailingListener {
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

#[tokio::test(start_paused = true)]
async fn accept_is_retried_after_errors_without_a_busy_loop() {
    for error in [Errno::MFILE, Errno::NFILE, Errno::CONNABORTED, Errno::NOBUFS] {
        let metrics = Arc::new(Metrics::new().unwrap());
        let accepts: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let listener = FailingListener {
            accepts: Arc::clone(&accepts),
            error,
            failures: 20,
            first: Vec::new(),
            then: vec![theirs],
        };
        let shutdown = CancellationToken::new();
        let service = KeyManagementServiceServer::new(TestKms::default());
        let server = tokio::spawn(serve(listener, service, options(&metrics), shutdown.clone()));
        // The paused clock advances only when all tasks are idle, so a loop without delays would hang
        // here, and a loop that gives up would not reach this number.
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
    let listener = FailingListener {
        accepts: Arc::default(),
        error: Errno::MFILE,
        failures: usize::MAX,
        first: Vec::new(),
        then: Vec::new(),
    };
    let shutdown = CancellationToken::new();
    let service = KeyManagementServiceServer::new(TestKms::default());
    let server = tokio::spawn(serve(listener, service, options(&metrics), shutdown.clone()));
    until("pauses are long", || metrics.server.accept_errors.get() == 10).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    let start = Instant::now();
    shutdown.cancel();
    server.await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_when_file_descriptors_run_out() {
    let metrics = Arc::new(Metrics::new().unwrap());
    let (mut idle, theirs) = UnixStream::pair().unwrap();
    let listener = FailingListener {
        accepts: Arc::default(),
        error: Errno::MFILE,
        failures: 1,
        first: vec![theirs],
        then: Vec::new(),
    };
    // The paused clock jumps: the handshake timeout must not be what closes the connection.
    let limits = Limits { handshake_timeout: Duration::from_secs(3600), ..Limits::default() };
    let options = ServeOptions { limits, ..options(&metrics) };
    let service = KeyManagementServiceServer::new(TestKms::default());
    let server = tokio::spawn(serve(listener, service, options, CancellationToken::new()));
    let mut bytes = Vec::new();
    idle.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(metrics.server.connections_open.get(), 0);
    assert_eq!(metrics.server.handshake_timeouts.get(), 0);
    server.abort();
}
