//! HTTP servers inside the test, for situations that a real Vault cannot produce: a proxy in between, a redirect, a
//! request that takes as long as the test wants.

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use reqwest::{Client, ClientBuilder};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use crate::{net::port, vault::server::Bao};

/// The builder of every HTTP client of the tests. It ignores the user's proxies.
#[expect(clippy::disallowed_methods, reason = "every client is created here")]
pub fn client() -> ClientBuilder {
    Client::builder().no_proxy()
}

/// A response of a server.
pub type Answer = Response<Full<Bytes>>;

/// A received request.
#[derive(Clone, Debug)]
pub struct Seen {
    pub headers: HeaderMap,
    pub path: String,
}

/// A plain HTTP server on the loopback, which stops when this value is dropped.
pub struct HttpServer {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    serving: JoinHandle<()>,
}

impl HttpServer {
    /// Starts a server that responds to each request with the result of `handler`.
    pub async fn start<F>(handler: impl Fn(Request<Bytes>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let port = port::unused();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let (seen, handler) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::new(handler));
        let kept = seen.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (kept, handler) = (kept.clone(), handler.clone());
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let (kept, handler) = (kept.clone(), handler.clone());
                    async move {
                        let (parts, body) = request.into_parts();
                        let (headers, path) = (parts.headers.clone(), parts.uri.path().to_owned());
                        kept.lock().unwrap().push(Seen { headers, path });
                        let body = body.collect().await?.to_bytes();
                        Ok::<_, hyper::Error>(handler(Request::from_parts(parts, body)).await)
                    }
                });
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { port, seen, serving }
    }

    /// `http://127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A reverse proxy: forwards requests below its path prefix to a server, without the prefix.
pub struct Proxy {
    held: Arc<watch::Sender<Option<String>>>,
    http: HttpServer,
    prefix: &'static str,
}

impl Proxy {
    /// Starts a proxy in front of `bao` for paths below `prefix`, such as `/prefix`, or for all paths if it is empty.
    /// Other paths get a 404.
    pub async fn start(bao: &Bao, prefix: &'static str) -> Self {
        let client = bao.http().clone();
        let to = bao.address();
        let held = Arc::new(watch::Sender::new(None::<String>));
        let holding = held.clone();
        let http = HttpServer::start(move |request| {
            let (client, to, mut holding) = (client.clone(), to.clone(), holding.subscribe());
            async move {
                let (parts, body) = request.into_parts();
                let Some(path) = parts.uri.path().strip_prefix(prefix) else {
                    return answer(StatusCode::NOT_FOUND, "nothing here");
                };
                let uid = parts.headers.get("x-kms-uid").and_then(|uid| uid.to_str().ok()).map(str::to_owned);
                let free = |held: &Option<String>| held.is_none() || *held != uid;
                drop(holding.wait_for(free).await);
                let url = format!("{to}{path}");
                forward(&client, &url, Request::from_parts(parts, body)).await
            }
        })
        .await;
        Self { held, http, prefix }
    }

    /// `http://127.0.0.1:port/prefix`.
    pub fn address(&self) -> String {
        format!("{}{}", self.http.address(), self.prefix)
    }

    /// Holds requests with this KMS uid until [`Proxy::release`].
    pub fn hold(&self, uid: &str) {
        self.held.send_replace(Some(uid.to_owned()));
    }

    /// Forwards all held requests.
    pub fn release(&self) {
        self.held.send_replace(None);
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.http.seen()
    }
}

/// Forwards TCP connections from `127.0.0.2` to a server, until this value is dropped.
pub struct Forwarder {
    port: u16,
    serving: JoinHandle<()>,
}

impl Forwarder {
    /// Starts a forwarder to `bao`, whose certificate is not valid for `127.0.0.2`.
    pub async fn start(bao: &Bao) -> Self {
        let port = port::unused();
        let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), port)).await.unwrap();
        let to = bao.address().trim_start_matches("https://").to_owned();
        let serving = tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let to = to.clone();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(to).await?;
                    tokio::io::copy_bidirectional(&mut near, &mut far).await
                });
            }
        });
        Self { port, serving }
    }

    /// `https://127.0.0.2:port`.
    pub fn address(&self) -> String {
        format!("https://127.0.0.2:{}", self.port)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// The response to this request at `url`, or a 502.
pub(crate) async fn forward(client: &Client, url: &str, request: Request<Bytes>) -> Answer {
    let (mut parts, body) = request.into_parts();
    parts.headers.remove(header::HOST);
    match client.request(parts.method, url).headers(parts.headers).body(body).send().await {
        Ok(forwarded) => {
            let status = forwarded.status();
            answer(status, forwarded.bytes().await.unwrap_or_default())
        }
        Err(error) => answer(StatusCode::BAD_GATEWAY, error.to_string()),
    }
}

/// A response with this status and body.
pub fn answer(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
}
