use super::*;

#[tokio::test]
async fn several_clients_are_served_and_requests_carry_their_peer() {
    let running = Running::start(TestOptions::default());
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
    let running = Running::start(TestOptions { limits, ..TestOptions::default() });
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

    // Both are older, so their handshake timeout has passed too.
    assert_eq!(running.metrics.server.connections_open.get(), 2);
    whole.status(proto::StatusRequest {}).await.unwrap();
    assert_eq!(running.metrics.server.connections_open.get(), 2);
}

#[tokio::test]
async fn garbage_closes_only_its_own_connection() {
    let running = Running::start(TestOptions::default());
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
async fn a_foreign_uid_is_rejected_and_counted() {
    let peers = AllowedPeers::new([rustix::process::geteuid().as_raw() + 1]);
    let running = Running::start(TestOptions { peers, ..TestOptions::default() });
    let mut stream = running.raw().await;
    assert_eq!(rest(&mut stream).await, b"");
    assert_eq!(running.metrics.server.connections_rejected.get(), 1);
    let rejected = soon("an answer", async {
        client(&running.path).await?.status(proto::StatusRequest {}).await.map_err(Into::into)
    });
    rejected.await.map_err(|error: Box<dyn std::error::Error + Send + Sync>| error).unwrap_err();
    // The client tries more than once.
    assert!(running.metrics.server.connections_rejected.get() >= 2);
    assert_eq!(running.metrics.server.connections_open.get(), 0);
}

#[tokio::test]
async fn silent_clients_cannot_lock_out_one_that_works() {
    let limits = Limits { max_connections: 2, linger: Duration::from_millis(50), ..Limits::default() };
    let running = Running::start(TestOptions { limits, ..TestOptions::default() });
    let mut first = running.silent().await;
    let _second = running.silent().await;
    let mut client = running.client().await;
    client.status(proto::StatusRequest {}).await.unwrap();
    let frames = frames(&rest(&mut first).await);
    assert!(frames.contains(&GOAWAY), "{frames:?}");
    client.status(proto::StatusRequest {}).await.unwrap();
    assert_eq!(running.metrics.server.connections_open.get(), 2);
}
