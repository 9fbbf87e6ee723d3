//! A server that answers with whatever bytes a test gives it.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
    time::Duration,
};

use prometheus::Registry;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};

use crate::{
    Transit, TransitError,
    endpoint::{Address, Endpoint, TlsMaterial},
    key::{KeyName, KeyNames, KeyRef, MountPath, Namespace},
    key_id::KeyVersion,
    metrics::ClientMetrics,
    token::Token,
    transit::Call,
    vault::{Access, Pool, Session},
};

/// An answer to Encrypt under version 2.
pub const GOOD: &str = r#"{"request_id":"r","data":{"ciphertext":"vault:v2:QUJD","key_version":2}}"#;

/// An answer to a look at its health, whatever the status.
pub const HEALTH: &str = r#"{"initialized":true,"sealed":false,"standby":false}"#;

/// Answers each call with the next of its answers, and the last one for ever. Looks at its health
/// are no calls.
pub struct Fake {
    pub address: String,
    pub port: u16,
    seen: Arc<Seen>,
    _serving: tokio_util::task::AbortOnDropHandle<()>,
}

struct Seen {
    answers: Vec<Answer>,
    connections: AtomicUsize,
    /// Calls whose connection was closed while they waited for an answer.
    forsaken: AtomicUsize,
    heads: Mutex<Vec<String>>,
    health: AtomicU16,
    looks: AtomicUsize,
}

#[derive(Clone)]
pub enum Answer {
    Bytes(Vec<u8>),
    /// Closes the connection without a word.
    Close,
    /// After a while.
    Late(Duration, Box<Self>),
    Silence,
}

impl Fake {
    pub async fn with(answers: Vec<Answer>) -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into(), 0, answers).await
    }

    /// At this address of the loopback; port 0 stands for any.
    pub async fn at(ip: IpAddr, port: u16, answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind((ip, port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen {
            answers,
            connections: AtomicUsize::new(0),
            forsaken: AtomicUsize::new(0),
            heads: Mutex::default(),
            health: AtomicU16::new(200),
            looks: AtomicUsize::new(0),
        });
        let serving = serve(listener, Arc::clone(&seen));
        Self {
            address: format!("http://{address}"),
            port: address.port(),
            seen,
            _serving: tokio_util::task::AbortOnDropHandle::new(tokio::spawn(serving)),
        }
    }

    /// The heads of all calls so far, in lower case.
    pub fn heads(&self) -> Vec<String> {
        self.seen.heads.lock().unwrap().clone()
    }

    /// Calls so far.
    pub fn requests(&self) -> usize {
        self.seen.heads.lock().unwrap().len()
    }

    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::Relaxed)
    }

    pub fn forsaken(&self) -> usize {
        self.seen.forsaken.load(Ordering::Relaxed)
    }

    pub fn looks(&self) -> usize {
        self.seen.looks.load(Ordering::Relaxed)
    }

    /// What looks are answered from now on; 0 stands for nothing.
    pub fn set_health(&self, status: u16) {
        self.seen.health.store(status, Ordering::Relaxed);
    }
}

async fn serve(listener: TcpListener, seen: Arc<Seen>) {
    // Connections end with the server.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        seen.connections.fetch_add(1, Ordering::Relaxed);
        connections.spawn(connection(stream, Arc::clone(&seen)));
    }
}

async fn connection(mut stream: TcpStream, seen: Arc<Seen>) {
    while let Some(head) = read_request(&mut stream).await {
        let answer = if head.contains("/v1/sys/health ") && !head.contains("content-type") {
            seen.looks.fetch_add(1, Ordering::Relaxed);
            match seen.health.load(Ordering::Relaxed) {
                0 => Answer::Silence,
                status => json(status, HEALTH),
            }
        } else {
            let mut heads = seen.heads.lock().unwrap();
            heads.push(head);
            seen.answers.get(heads.len() - 1).or(seen.answers.last()).cloned().unwrap_or(Answer::Close)
        };
        let answer = match answer {
            Answer::Late(pause, answer) => {
                tokio::time::sleep(pause).await;
                *answer
            }
            answer => answer,
        };
        match answer {
            Answer::Bytes(bytes) => stream.write_all(&bytes).await.unwrap_or_default(),
            Answer::Silence => {
                drop(stream.read_u8().await);
                seen.forsaken.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Answer::Close | Answer::Late(..) => return,
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |it| it.parse().unwrap());
    stream.read_exact(&mut vec![0; length]).await.ok()?;
    Some(head)
}

pub fn json(status: u16, body: &str) -> Answer {
    json_with(status, "", body)
}

/// With further headers, each with its line end.
pub fn json_with(status: u16, headers: &str, body: &str) -> Answer {
    let length = body.len();
    let text = format!("HTTP/1.1 {status} X\r\n{headers}content-length: {length}\r\n\r\n{body}");
    Answer::Bytes(text.into_bytes())
}

pub fn good() -> Answer {
    json(200, GOOD)
}

pub async fn session(addresses: &[&str]) -> Session {
    session_in("", addresses).await
}

/// A session whose token and key are in `namespace`.
pub async fn session_in(namespace: &str, addresses: &[&str]) -> Session {
    let pool = Pool::new(&endpoint(addresses)).await.unwrap();
    session_on(&access(namespace), pool, metrics(addresses))
}

pub fn endpoint(addresses: &[&str]) -> Endpoint {
    Endpoint {
        addresses: addresses.iter().map(|address| Address::new(address, true).unwrap()).collect(),
        connect_timeout: Duration::from_secs(3),
        server_name: None,
        tls: TlsMaterial::default(),
    }
}

pub fn access(namespace: &str) -> Access {
    let namespace = Namespace::new(namespace).unwrap();
    let key = KeyRef::new(KeyName::new("kms").unwrap(), MountPath::default(), namespace.clone());
    Access { keys: KeyNames::new([key]).unwrap(), namespace, token: Token::new("fake").unwrap() }
}

/// Metrics in a registry of their own, for these addresses.
pub fn metrics(addresses: &[&str]) -> Arc<ClientMetrics> {
    let metrics = ClientMetrics::register(&Registry::new()).unwrap();
    metrics.set_nodes(addresses.iter().map(|address| (*address).to_owned()));
    Arc::new(metrics)
}

pub fn session_on(access: &Access, pool: Pool, metrics: Arc<ClientMetrics>) -> Session {
    Session::new(access, Arc::new(pool), metrics).unwrap()
}

pub fn call() -> Call<'static> {
    Call { deadline: Instant::now() + Duration::from_secs(5), uid: "uid" }
}

/// The deadline of a caller that has little time, for calls that cannot succeed.
pub fn soon() -> Instant {
    Instant::now() + Duration::from_millis(300)
}

pub async fn encrypt(session: &Session) -> Result<String, TransitError> {
    encrypt_by(session, call().deadline).await
}

pub async fn encrypt_by(session: &Session, deadline: Instant) -> Result<String, TransitError> {
    let call = Call { deadline, uid: "uid" };
    let sealed =
        session.encrypt(session.keys().primary(), KeyVersion::new(2).unwrap(), b"seed", call).await?;
    Ok(sealed.ciphertext.as_str().to_owned())
}
