use super::*;

#[tokio::test]
async fn a_panic_is_answered_and_affects_no_other_call() {
    let running = Running::start(TestOptions::default());
    let client = running.client().await;
    let call = tokio::spawn({
        let mut client = client.clone();
        async move { client.encrypt(seed(1)).await }
    });
    until("the other call is in flight", || running.kms.entered() == 1).await;
    let status = client.clone().decrypt(proto::DecryptRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(!status.message().contains("on purpose"), "{status}");
    running.kms.finish_one();
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
    let running = Running::start_with(TestOptions::default(), service, TestKms::default());
    let mut client = running.client().await;
    for _ in 0..2 {
        let status = client.status(proto::StatusRequest {}).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal);
    }
    assert_eq!(running.metrics.server.connections_open.get(), 1);
}

#[tokio::test]
async fn a_caller_that_gives_up_ends_its_call() {
    let running = Running::start(TestOptions::default());
    let mut client = running.client().await;
    {
        let mut call = Box::pin(client.encrypt(seed(1)));
        let given_up = timeout(Duration::from_millis(50), &mut call).await;
        assert!(given_up.is_err());
        until("the call is in flight", || running.kms.entered() == 1).await;
    }
    until("the call has ended", || running.kms.left() == 1).await;
    // A call whose connection is closed ends too.
    let call = tokio::spawn(async move { client.encrypt(seed(2)).await });
    until("the call is in flight", || running.kms.entered() == 2).await;
    call.abort();
    until("the call has ended", || running.kms.left() == 2).await;
}

#[tokio::test]
async fn only_post_reaches_the_service() {
    let running = Running::start(TestOptions::default());
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
