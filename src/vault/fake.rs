//! A server that answers with whatever bytes a test gives it.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};

use super::{pool::Pool, session::Session};
use crate::{
    config::{self, Credentials, ParseOptions, Reading},
    kms::{Transit, TransitError, key_id::KeyVersion, transit::Call},
    observe::metrics::Metrics,
};

/// An answer to Encrypt under version 2.
pub(super) const GOOD: &str = r#"{"request_id":"r","data":{"ciphertext":"vault:v2:QUJD","key_version":2}}"#;

/// An answer to a look at its health, whatever the status.
pub(super) const HEALTH: &str = r#"{"initialized":true,"sealed":false,"standby":false}"#;

/// Answers each call with the next of its answers, and the last one for ever. Looks at its health
/// are no calls.
pub(super) struct Fake {
    pub(super) address: String,
    pub(super) port: u16,
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
pub(super) enum Answer {
    Bytes(Vec<u8>),
    /// Closes the connection without a word.
    Close,
    /// After a while.
    Late(Duration, Box<Self>),
    Silence,
}

impl Fake {
    pub(super) async fn with(answers: Vec<Answer>) -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into(), 0, answers).await
    }

    /// At this address of the loopback; port 0 stands for any.
    pub(super) async fn at(ip: IpAddr, port: u16, answers: Vec<Answer>) -> Self {
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
    pub(super) fn heads(&self) -> Vec<String> {
        self.seen.heads.lock().unwrap().clone()
    }

    /// Calls so far.
    pub(super) fn requests(&self) -> usize {
        self.seen.heads.lock().unwrap().len()
    }

    pub(super) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::Relaxed)
    }

    pub(super) fn forsaken(&self) -> usize {
        self.seen.forsaken.load(Ordering::Relaxed)
    }

    pub(super) fn looks(&self) -> usize {
        self.seen.looks.load(Ordering::Relaxed)
    }

    /// What looks are answered from now on; 0 stands for nothing.
    pub(super) fn set_health(&self, status: u16) {
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

pub(super) fn json(status: u16, body: &str) -> Answer {
    json_with(status, "", body)
}

/// With further headers, each with its line end.
pub(super) fn json_with(status: u16, headers: &str, body: &str) -> Answer {
    let length = body.len();
    let text = format!("HTTP/1.1 {status} X\r\n{headers}content-length: {length}\r\n\r\n{body}");
    Answer::Bytes(text.into_bytes())
}

pub(super) fn good() -> Answer {
    json(200, GOOD)
}

pub(super) async fn session(addresses: &[&str]) -> Session {
    session_with(&format!("vault: {{ addresses: [{}], keynames: [kms], token: fake }}", addresses.join(", ")))
        .await
}

pub(super) async fn session_with(text: &str) -> Session {
    let reading = reading(text).await;
    let pool = Pool::new(&reading).await.unwrap();
    session_on(&reading, pool)
}

/// What the file `text` says.
pub(super) async fn reading(text: &str) -> Reading {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    config::read(file.path().to_owned(), ParseOptions { allow_http: true }).await.unwrap()
}

pub(super) fn session_on(reading: &Reading, pool: Pool) -> Session {
    let Credentials::Token(token) = &reading.config.credentials else { panic!("it has a token") };
    let metrics = Arc::new(Metrics::new().unwrap());
    metrics.vault_nodes(reading.config.addresses.iter().map(ToString::to_string));
    Session::new(reading, token, Arc::new(pool), metrics).unwrap()
}

pub(super) fn call() -> Call<'static> {
    Call { deadline: Instant::now() + Duration::from_secs(5), uid: "uid" }
}

/// The deadline of a caller that has little time, for calls that cannot succeed.
pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_millis(300)
}

pub(super) async fn encrypt(session: &Session) -> Result<String, TransitError> {
    encrypt_by(session, call().deadline).await
}

pub(super) async fn encrypt_by(session: &Session, deadline: Instant) -> Result<String, TransitError> {
    let call = Call { deadline, uid: "uid" };
    let sealed =
        session.encrypt(session.keys().primary(), KeyVersion::new(2).unwrap(), b"seed", call).await?;
    Ok(sealed.ciphertext.as_str().to_owned())
}
