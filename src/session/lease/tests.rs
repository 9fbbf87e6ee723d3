//! Tests of the lease against a server that answers all requests with one answer, or not at all.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use transit_client::{
    endpoint::{Address, Endpoint, TlsMaterial},
    key::{KeyName, KeyNames, KeyRef, MountPath, Namespace},
    token::Token,
    vault::{Access, Pool, RequestAuth},
};

use super::*;
use crate::session::testing::SETTINGS;

/// Longer than any step of these tests takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the server has seen.
#[derive(Default)]
struct Seen {
    /// Requests whose connection was closed before they were answered.
    cancelled: AtomicUsize,
    requests: AtomicUsize,
}

/// A lease, and the server that it sends its requests to.
struct Bench {
    lease: Option<RunningLease>,
    metrics: Arc<Metrics>,
    seen: Arc<Seen>,
    store: Arc<StateStore>,
    _server: AbortOnDropHandle<()>,
}

impl Bench {
    /// Starts the lease of a token that could not be looked up, so that it is renewed at once. Without an answer,
    /// the server stays silent.
    async fn start(answer: Option<(u16, &'static str)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Seen::default());
        let server = AbortOnDropHandle::new(tokio::spawn(serve(listener, answer, Arc::clone(&seen))));
        let endpoint = Endpoint {
            addresses: vec![Address::new(&address, true).unwrap()],
            connect_timeout: PATIENCE,
            server_name: None,
            tls: TlsMaterial::default(),
        };
        let namespace = Namespace::new("").unwrap();
        let key = KeyRef::new(KeyName::new("kms").unwrap(), MountPath::default(), namespace.clone());
        let keys = KeyNames::new([key]).unwrap();
        let access = Access { auth: RequestAuth::Token(Token::new("fake").unwrap()), keys, namespace };
        let metrics = Arc::new(Metrics::new().unwrap());
        let pool = Arc::new(Pool::new(&endpoint).await.unwrap());
        let session = Arc::new(Session::new(&access, pool, Arc::clone(&metrics.client)).unwrap());
        let (store, _) = StateStore::new(SETTINGS, Arc::clone(&metrics)).share();
        let token = SessionToken { info: Err(ErrorKind::Denied), origin: TokenOrigin::Rendered };
        let lease = Lease::start(session, 1, Some(token), Arc::clone(&store), Arc::clone(&metrics));
        Self { lease, metrics, seen, store, _server: server }
    }

    /// Waits until the metrics have a line that begins like this.
    async fn wait_for(&self, line: &str) {
        let shows = async {
            while !self.metrics.render().unwrap().lines().any(|it| it.starts_with(line)) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, shows)
            .await
            .unwrap_or_else(|_| panic!("{line}: {}", self.metrics.render().unwrap()));
    }
}

async fn serve(listener: TcpListener, answer: Option<(u16, &'static str)>, seen: Arc<Seen>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(serve_connection(stream, answer, Arc::clone(&seen)));
    }
}

async fn serve_connection(mut stream: TcpStream, answer: Option<(u16, &'static str)>, seen: Arc<Seen>) {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).await.is_ok_and(|bytes| bytes > 0) {
        seen.requests.fetch_add(1, Ordering::SeqCst);
        let Some((status, body)) = answer else {
            if stream.read(&mut buffer).await.is_ok_and(|bytes| bytes == 0) {
                seen.cancelled.fetch_add(1, Ordering::SeqCst);
            }
            return;
        };
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} -\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        drop(stream.write_all((head + body).as_bytes()).await);
    }
}

#[tokio::test]
async fn a_renewed_token_is_measured() {
    let renewed = r#"{"request_id":"r","auth":{"lease_duration":3600,"renewable":true}}"#;
    let bench = Bench::start(Some((200, renewed))).await;
    bench.wait_for("transit_kms_token_renewals_total{result=\"renewed\"} 1").await;
    bench.wait_for("transit_kms_token_lease_seconds 3599.").await;
}

/// The lease itself does not change the health: only a check decides whether calls still work.
#[tokio::test]
async fn an_invalid_token_requests_a_health_check() {
    let refused = r#"{"errors":["permission denied","invalid token"]}"#;
    let bench = Bench::start(Some((403, refused))).await;
    timeout(PATIENCE, bench.store.health_check_requested()).await.unwrap();
    bench.wait_for("transit_kms_token_renewals_total{result=\"failed\"} 1").await;
}

#[tokio::test]
async fn the_end_of_a_lease_does_not_cancel_its_request() {
    let mut bench = Bench::start(None).await;
    let sent = async {
        while bench.seen.requests.load(Ordering::SeqCst) == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, sent).await.unwrap();
    drop(bench.lease.take());
    sleep(Duration::from_millis(300)).await;
    assert_eq!(bench.seen.cancelled.load(Ordering::SeqCst), 0);
}
