//! A server that answers with the bytes that a test gives it.

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
    vault::{Access, Pool, RequestAuth, Session},
};

/// An answer to Encrypt under version 2.
pub const GOOD: &str = r#"{"request_id":"r","data":{"ciphertext":"vault:v2:QUJD","key_version":2}}"#;

/// The body of an answer to a health check, whatever the status.
pub const HEALTH: &str = r#"{"initialized":true,"sealed":false,"standby":false}"#;

/// Answers each call with the next of its answers, and repeats the last one. Health checks do not count as calls.
pub struct FakeVault {
    pub address: String,
    pub port: u16,
    recorded: Arc<Recorded>,
    _serving: tokio_util::task::AbortOnDropHandle<()>,
}

struct Recorded {
    answers: Vec<Answer>,
    connections: AtomicUsize,
    /// Calls whose connection the client closed before an answer.
    abandoned: AtomicUsize,
    heads: Mutex<Vec<String>>,
    health: AtomicU16,
    health_checks: AtomicUsize,
}

#[derive(Clone)]
pub enum Answer {
    Bytes(Vec<u8>),
    /// Closes the connection without an answer.
    Close,
    /// Answers after a pause.
    Late(Duration, Box<Self>),
    Silence,
}

impl FakeVault {
    pub async fn with(answers: Vec<Answer>) -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into(), 0, answers).await
    }

    /// A server at this loopback address. Port 0 means any free port.
    pub async fn at(ip: IpAddr, port: u16, answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind((ip, port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let recorded = Arc::new(Recorded {
            answers,
            connections: AtomicUsize::new(0),
            abandoned: AtomicUsize::new(0),
            heads: Mutex::default(),
            health: AtomicU16::new(200),
            health_checks: AtomicUsize::new(0),
        });
        let serving = serve(listener, Arc::clone(&recorded));
        Self {
            address: format!("http://{address}"),
            port: address.port(),
            recorded,
            _serving: tokio_util::task::AbortOnDropHandle::new(tokio::spawn(serving)),
        }
    }

    /// The request lines and headers of all calls so far, in lower case.
    pub fn heads(&self) -> Vec<String> {
        self.recorded.heads.lock().unwrap().clone()
    }

    /// The number of calls so far.
    pub fn requests(&self) -> usize {
        self.recorded.heads.lock().unwrap().len()
    }

    pub fn connections(&self) -> usize {
        self.recorded.connections.load(Ordering::Relaxed)
    }

    pub fn abandoned(&self) -> usize {
        self.recorded.abandoned.load(Ordering::Relaxed)
    }

    pub fn health_checks(&self) -> usize {
        self.recorded.health_checks.load(Ordering::Relaxed)
    }

    /// Sets the status of health checks from now on. With 0, they get no answer.
    pub fn set_health(&self, status: u16) {
        self.recorded.health.store(status, Ordering::Relaxed);
    }
}

async fn serve(listener: TcpListener, recorded: Arc<Recorded>) {
    // Dropping the set closes the connections.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        recorded.connections.fetch_add(1, Ordering::Relaxed);
        connections.spawn(connection(stream, Arc::clone(&recorded)));
    }
}

async fn connection(mut stream: TcpStream, recorded: Arc<Recorded>) {
    while let Some(head) = read_request(&mut stream).await {
        let answer = if head.contains("/v1/sys/health ") && !head.contains("content-type") {
            recorded.health_checks.fetch_add(1, Ordering::Relaxed);
            match recorded.health.load(Ordering::Relaxed) {
                0 => Answer::Silence,
                status => json(status, HEALTH),
            }
        } else {
            let mut heads = recorded.heads.lock().unwrap();
            heads.push(head);
            recorded
                .answers
                .get(heads.len() - 1)
                .or(recorded.answers.last())
                .cloned()
                .unwrap_or(Answer::Close)
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
                recorded.abandoned.fetch_add(1, Ordering::Relaxed);
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

/// As [`json`], with further headers, each with its line end.
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

/// A session with token and key in `namespace`.
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
    Access {
        keys: KeyNames::new([key]).unwrap(),
        namespace,
        auth: RequestAuth::Token(Token::new("fake").unwrap()),
    }
}

/// Metrics for these addresses, in a registry of their own.
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

/// A short deadline, for calls that cannot succeed.
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
