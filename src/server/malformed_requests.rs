//! Requests that the HTTP/2 library refuses before the service sees them, found in what goes over the wire.
//!
//! The library answers a request whose headers it cannot take with RST_STREAM and the code PROTOCOL_ERROR, and tells
//! the program nothing. The usual cause is an `:authority` that is a socket's path. So the frames are looked at as
//! they pass: a reset of that kind going out, and an `:authority` that begins as a path does coming in.
//!
//! Source: RFC 9113, sections 4.1, 6.2 and 6.4; RFC 7541, section 6 and appendices A and B.

use tracing::{debug, warn};

use super::peer::{FirstTimes, Peer};
use crate::observe::{labels::MalformedRequest, metrics::Metrics};

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const PROTOCOL_ERROR: [u8; 4] = [0, 0, 0, 1];
const FRAME_HEAD: usize = 9;
/// The client's connection begins with this many bytes that are no frame.
const PREFACE: usize = 24;
/// The `:authority` of a call stands within these bytes of its headers.
const MOST_PAYLOAD: usize = 1024;

/// The frames of one type that go by in one direction.
#[derive(Debug)]
struct Frames {
    head: Vec<u8>,
    /// Bytes of the payload that are still to come.
    left: usize,
    payload: Vec<u8>,
    /// Bytes before the first frame.
    skip: usize,
    wanted: u8,
}

impl Frames {
    fn new(wanted: u8, skip: usize) -> Self {
        Self { head: Vec::with_capacity(FRAME_HEAD), left: 0, payload: Vec::new(), skip, wanted }
    }

    /// Tells the beginning of each payload that is wanted, once all of it has gone by.
    fn see(&mut self, mut bytes: &[u8], mut found: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                bytes = take(bytes, &mut self.skip).1;
                continue;
            }
            if self.left == 0 {
                let mut missing = FRAME_HEAD - self.head.len();
                let (part, rest) = take(bytes, &mut missing);
                self.head.extend_from_slice(part);
                bytes = rest;
                if let [a, b, c, ..] = *self.head
                    && missing == 0
                {
                    self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                } else {
                    continue;
                }
            }
            let wanted = self.head.get(3) == Some(&self.wanted);
            let (part, rest) = take(bytes, &mut self.left);
            bytes = rest;
            if wanted {
                let room = MOST_PAYLOAD.saturating_sub(self.payload.len());
                self.payload.extend(part.iter().take(room));
            }
            if self.left == 0 {
                if wanted {
                    found(&self.payload);
                }
                self.payload.clear();
                self.head.clear();
            }
        }
    }
}

/// As many bytes as are wanted, and the others.
fn take<'a>(bytes: &'a [u8], wanted: &mut usize) -> (&'a [u8], &'a [u8]) {
    let (part, rest) = bytes.split_at(bytes.len().min(*wanted));
    *wanted -= part.len();
    (part, rest)
}

/// Whether headers, as HPACK has them, hold an `:authority` that is empty or looks like a path. An approximation: it does
/// not decode, so bytes within another value may look the same. It says the cause of a refusal, and refuses nothing.
fn names_a_path(headers: &[u8]) -> bool {
    // The name as grpc's C core writes it; others write its index.
    const NAME: &[u8] = b"\x0a:authority";
    (0..headers.len()).any(|at| {
        let Some(field) = headers.get(at..) else { return false };
        let value = match field {
            // A literal by the name of index 1: kept, not kept, never kept.
            [0x41 | 0x01 | 0x11, value @ ..] => value,
            _ => field.strip_prefix(NAME).unwrap_or_default(),
        };
        let [length, value @ ..] = value else { return false };
        let (huffman, length) = (length & 0x80 != 0, usize::from(length & 0x7f));
        match (value.first(), huffman) {
            _ if length == 0 => true,
            // The codes of `%` and `/` are 010101 and 011000.
            (Some(first), true) => matches!(first >> 2, 0b01_0101 | 0b01_1000),
            (Some(_), false) => value.iter().take(length).any(|byte| b"%/".contains(byte)),
            (None, _) => false,
        }
    })
}

/// What has been refused on one connection.
#[derive(Debug)]
pub(super) struct Refusals {
    incoming: Frames,
    /// A client sends one `:authority`, in full only the first time.
    path_as_authority: bool,
    outgoing: Frames,
}

impl Refusals {
    pub(super) fn new() -> Self {
        Self {
            incoming: Frames::new(HEADERS, PREFACE),
            path_as_authority: false,
            outgoing: Frames::new(RST_STREAM, 0),
        }
    }

    pub(super) fn read(&mut self, bytes: &[u8]) {
        let path_as_authority = &mut self.path_as_authority;
        self.incoming.see(bytes, |headers| *path_as_authority |= names_a_path(headers));
    }

    /// Tells each request that was refused.
    pub(super) fn written(&mut self, bytes: &[u8], mut refused: impl FnMut(MalformedRequest)) {
        let what = if self.path_as_authority { MalformedRequest::Authority } else { MalformedRequest::Other };
        self.outgoing.see(bytes, |code| {
            if code == PROTOCOL_ERROR {
                refused(what);
            }
        });
    }
}

/// Logs refusals: a warning for the first of a process, debug for the others.
#[derive(Debug, Default)]
pub(super) struct MalformedLog(FirstTimes<(u32, Option<i32>, MalformedRequest)>);

impl MalformedLog {
    pub(super) fn refused(&self, peer: &Peer, what: MalformedRequest, metrics: &Metrics) {
        metrics.server.malformed_request(what);
        let (uid, pid) = (peer.uid, peer.pid);
        let why = match what {
            MalformedRequest::Authority => {
                "its HTTP/2 :authority is the path of the socket, as kube-apiserver before 1.32 and some gRPC clients send \
                 it; have the client send `localhost`"
            }
            MalformedRequest::Other => "its headers break the rules of HTTP/2",
        };
        if self.0.is_first((uid, pid, what)) {
            warn!(uid, pid, "refused a request (PROTOCOL_ERROR): {why}");
        } else {
            debug!(uid, pid, "refused a request again (PROTOCOL_ERROR): {why}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, u8::try_from(payload.len()).unwrap(), kind, 0, 0, 0, 0, 1];
        bytes.extend(payload);
        bytes
    }

    /// However the bytes are cut.
    #[test]
    fn frames_are_found_in_any_pieces() {
        let all =
            [frame(0, b"data"), frame(3, &[0, 0, 0, 1]), frame(3, b""), frame(3, &[0, 0, 0, 8])].concat();
        for size in 1..all.len() {
            let mut frames = Frames::new(RST_STREAM, 5);
            let mut found = Vec::new();
            for piece in [b"12345".to_vec(), all.clone()].concat().chunks(size) {
                frames.see(piece, |payload| found.push(payload.to_vec()));
            }
            assert_eq!(found, [vec![0, 0, 0, 1], vec![], vec![0, 0, 0, 8]], "{size}");
        }
    }

    #[test]
    fn an_authority_that_is_a_path_is_told_from_others() {
        // As grpc-go writes `%2F` and `localhost`, in Huffman's code, and as Python's grpc writes a path.
        for path in [
            &[0x41, 0x8a, 0x54, 0x58][..],
            b"\x41\x03%2F",
            b"\x01\x02/a",
            b"\x41\x00\x86",
            b"@\x0a:authority\x0crun%2Fa.sock\x83",
            &[0x41, 0x84, 0x60],
        ] {
            assert!(names_a_path(path), "{path:x?}");
        }
        for fine in [
            &[0x41, 0x86, 0xa0, 0xe4][..],
            b"\x41\x09localhost",
            b"\x04\x03/v2",
            b"@\x0a:authority\x09localhost\x04\x02/a",
            b"\x41",
        ] {
            assert!(!names_a_path(fine), "{fine:x?}");
        }
    }

    #[test]
    fn only_a_reset_for_a_broken_protocol_is_a_refusal() {
        let mut refusals = Refusals::new();
        let mut seen = Vec::new();
        refusals.written(&frame(3, &[0, 0, 0, 8]), |what| seen.push(what));
        refusals.written(&frame(3, &PROTOCOL_ERROR), |what| seen.push(what));
        refusals.read(&[0; PREFACE]);
        refusals.read(&frame(1, b"\x41\x03%2F"));
        refusals.written(&frame(3, &PROTOCOL_ERROR), |what| seen.push(what));
        assert_eq!(seen, [MalformedRequest::Other, MalformedRequest::Authority]);
    }
}
