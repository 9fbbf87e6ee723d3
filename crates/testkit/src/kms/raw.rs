//! A client that sends single HTTP/2 frames or any bytes, for requests that no real client sends.

use std::{path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use crate::{daemon::process::connect, wait::eventually};

/// The client preface of HTTP/2.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An empty SETTINGS frame, which follows the preface.
pub const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// Types and flags of frames.
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

const WAIT_TIMEOUT: Duration = Duration::from_secs(10);

/// One HTTP/2 frame.
#[derive(Debug, Eq, PartialEq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The frame in its wire format.
    pub fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).unwrap().to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([self.kind, self.flags]);
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }
}

/// A connection that sends only the bytes that the test writes.
pub struct RawClient(UnixStream);

impl RawClient {
    /// Connects and sends nothing. Waits while the queue of the listener is full.
    pub async fn silent(socket: &Path) -> Self {
        Self(eventually("a connection", WAIT_TIMEOUT, async || connect(socket).await).await)
    }

    /// Connects, and sends the preface and SETTINGS.
    pub async fn greeted(socket: &Path) -> Self {
        let mut client = Self::silent(socket).await;
        client.send(&[PREFACE, SETTINGS].concat()).await;
        client
    }

    /// Writes these bytes, or a part of them if the daemon closes the connection.
    pub async fn send(&mut self, bytes: &[u8]) {
        drop(timeout(WAIT_TIMEOUT, self.0.write_all(bytes)).await.expect("the daemon reads"));
    }

    /// The next frame, or `None` at the end of the connection.
    pub async fn frame(&mut self) -> Option<Frame> {
        timeout(WAIT_TIMEOUT, self.read_frame()).await.expect("a frame, or the end of the connection")
    }

    /// Waits until the daemon has closed the connection, for at most `within`.
    pub async fn closed(&mut self, within: Duration) {
        let mut rest = Vec::new();
        // A reset counts as closed, too.
        drop(timeout(within, self.0.read_to_end(&mut rest)).await.expect("the daemon closes the connection"));
    }

    async fn read_frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap()];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
    }
}

/// The headers of a call with the bytes of kube-apiserver 1.32 and later, but without Huffman codes and without entries
/// of the dynamic table.
pub fn call_headers(method: &str, authority: &str) -> Frame {
    // Indices of RFC 7541, appendix A.
    let (post, http) = (0x83, 0x86);
    let mut payload = vec![post, http];
    payload.extend(field(&[0x04], &format!("/v2.KeyManagementService/{method}")));
    payload.extend(field(&[0x01], authority));
    payload.extend(field(&[0x0f, 31 - 15], "application/grpc"));
    payload.extend(field(&[0x0f, 58 - 15], "grpc-go/1.79.3"));
    payload.extend(field(&[0, 2, b't', b'e'], "trailers"));
    payload.extend(field(&[&[0, 12], &b"grpc-timeout"[..]].concat(), "2999870u"));
    Frame { kind: HEADERS, flags: END_HEADERS, stream: 1, payload }
}

/// The message of a call, with the end of the stream.
pub fn call_message(message: &[u8]) -> Frame {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    Frame { kind: DATA, flags: END_STREAM, stream: 1, payload: [&[0], &length[..], message].concat() }
}

/// A PING. Its response shows that the daemon has read everything before it.
pub fn ping() -> Frame {
    Frame { kind: PING, flags: 0, stream: 0, payload: vec![0; 8] }
}

fn field(name: &[u8], value: &str) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap();
    assert!(length < 127, "longer lengths are written otherwise");
    [name, &[length], value.as_bytes()].concat()
}
