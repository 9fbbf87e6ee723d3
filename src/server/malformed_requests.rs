//! Finds requests that the HTTP/2 library rejects before the service sees them.
//!
//! The library answers a request with malformed headers with RST_STREAM and the code PROTOCOL_ERROR, and does not
//! report it to the program. The usual cause is an `:authority` that is the path of the socket. This module therefore
//! reads the frames on the wire: it looks for such a reset among the outgoing frames, and for an `:authority` that
//! looks like a path among the incoming ones.
//!
//! Source: RFC 9113, sections 4.1, 6.2 and 6.4; RFC 7541, section 6 and appendices A and B.

use tracing::{debug, warn};

use super::peer::{FirstOccurrences, Peer};
use crate::observe::{labels::MalformedRequest, metrics::Metrics};

/// The length of the client's connection preface; source: RFC 9113, section 3.4.
pub(super) const PREFACE_BYTES: usize = 24;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const PROTOCOL_ERROR: [u8; 4] = [0, 0, 0, 1];
const FRAME_HEADER_BYTES: usize = 9;
/// How much of a payload is kept. The `:authority` of a call is within these bytes of its headers.
const MAX_PAYLOAD: usize = 1024;

/// Finds the frames of one type in one direction of a connection.
#[derive(Debug)]
struct FrameScanner {
    frame_type: u8,
    /// The part of the current frame's header that has been read.
    header: Vec<u8>,
    payload: Vec<u8>,
    /// Bytes of the current payload that have not been read.
    remaining: usize,
    /// Bytes before the first frame that have not been read.
    skip: usize,
}

impl FrameScanner {
    fn new(frame_type: u8, skip: usize) -> Self {
        Self {
            frame_type,
            header: Vec::with_capacity(FRAME_HEADER_BYTES),
            payload: Vec::new(),
            remaining: 0,
            skip,
        }
    }

    /// Reads the next bytes. Calls `found` with the beginning of each payload, once the frame is complete.
    fn scan(&mut self, mut bytes: &[u8], mut found: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                bytes = take(bytes, &mut self.skip).1;
                continue;
            }
            if self.remaining == 0 {
                let mut missing = FRAME_HEADER_BYTES - self.header.len();
                let (part, rest) = take(bytes, &mut missing);
                self.header.extend_from_slice(part);
                bytes = rest;
                if let [a, b, c, ..] = *self.header
                    && missing == 0
                {
                    self.remaining = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                } else {
                    continue;
                }
            }
            let matches = self.header.get(3) == Some(&self.frame_type);
            let (part, rest) = take(bytes, &mut self.remaining);
            bytes = rest;
            if matches {
                let room = MAX_PAYLOAD.saturating_sub(self.payload.len());
                self.payload.extend(part.iter().take(room));
            }
            if self.remaining == 0 {
                if matches {
                    found(&self.payload);
                }
                self.payload.clear();
                self.header.clear();
            }
        }
    }
}

/// Splits off up to `missing` bytes, and subtracts them from `missing`.
fn take<'a>(bytes: &'a [u8], missing: &mut usize) -> (&'a [u8], &'a [u8]) {
    let (part, rest) = bytes.split_at(bytes.len().min(*missing));
    *missing -= part.len();
    (part, rest)
}

/// Returns true if HPACK-encoded headers contain an `:authority` that is empty or looks like a path.
///
/// This is an approximation: it does not decode, so bytes within another value may look the same. It only serves to
/// name the cause of a rejection.
fn authority_is_a_path(headers: &[u8]) -> bool {
    // The literal name, as the C core of gRPC writes it; other clients write its index.
    const NAME: &[u8] = b"\x0a:authority";
    (0..headers.len()).any(|at| {
        let Some(field) = headers.get(at..) else { return false };
        let value = match field {
            // A literal with the name of index 1: with indexing, without, never indexed.
            [0x41 | 0x01 | 0x11, value @ ..] => value,
            _ => field.strip_prefix(NAME).unwrap_or_default(),
        };
        let [length, value @ ..] = value else { return false };
        let (huffman, length) = (length & 0x80 != 0, usize::from(length & 0x7f));
        match (value.first(), huffman) {
            _ if length == 0 => true,
            // The Huffman codes of `%` and `/` are 010101 and 011000.
            (Some(first), true) => matches!(first >> 2, 0b01_0101 | 0b01_1000),
            (Some(_), false) => value.iter().take(length).any(|byte| b"%/".contains(byte)),
            (None, _) => false,
        }
    })
}

/// Finds malformed requests on one connection.
#[derive(Debug)]
pub(super) struct RequestMonitor {
    /// Kept for the whole connection: a client sends the same `:authority` with each request, in full
    /// only the first time.
    authority_is_a_path: bool,
    incoming: FrameScanner,
    outgoing: FrameScanner,
}

impl RequestMonitor {
    pub(super) fn new() -> Self {
        Self {
            authority_is_a_path: false,
            incoming: FrameScanner::new(HEADERS, PREFACE_BYTES),
            outgoing: FrameScanner::new(RST_STREAM, 0),
        }
    }

    /// Inspects bytes that the client has sent.
    pub(super) fn read(&mut self, bytes: &[u8]) {
        let found = &mut self.authority_is_a_path;
        self.incoming.scan(bytes, |headers| *found |= authority_is_a_path(headers));
    }

    /// Inspects bytes that were sent to the client. Calls `rejected` for each request that the library rejected.
    pub(super) fn written(&mut self, bytes: &[u8], mut rejected: impl FnMut(MalformedRequest)) {
        let kind =
            if self.authority_is_a_path { MalformedRequest::Authority } else { MalformedRequest::Other };
        self.outgoing.scan(bytes, |code| {
            if code == PROTOCOL_ERROR {
                rejected(kind);
            }
        });
    }
}

/// Logs malformed requests: a warning for the first of a process, debug lines for the others.
#[derive(Debug, Default)]
pub(super) struct MalformedRequestLog(FirstOccurrences<(u32, Option<i32>, MalformedRequest)>);

impl MalformedRequestLog {
    pub(super) fn log(&self, peer: &Peer, kind: MalformedRequest, metrics: &Metrics) {
        metrics.server.malformed_request(kind);
        let (uid, pid) = (peer.uid, peer.pid);
        let cause = match kind {
            MalformedRequest::Authority => {
                "its HTTP/2 :authority is the path of the socket; kube-apiserver before 1.32 and some gRPC clients \
                 send that; configure the client to send `localhost`"
            }
            MalformedRequest::Other => "its headers violate the HTTP/2 specification",
        };
        if self.0.is_first((uid, pid, kind)) {
            warn!(uid, pid, "rejected a malformed request (PROTOCOL_ERROR): {cause}");
        } else {
            debug!(uid, pid, "rejected another malformed request (PROTOCOL_ERROR): {cause}");
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

    #[test]
    fn frames_are_found_however_the_bytes_are_split() {
        let all =
            [frame(0, b"data"), frame(3, &[0, 0, 0, 1]), frame(3, b""), frame(3, &[0, 0, 0, 8])].concat();
        for size in 1..all.len() {
            let mut scanner = FrameScanner::new(RST_STREAM, 5);
            let mut found = Vec::new();
            for piece in [b"12345".to_vec(), all.clone()].concat().chunks(size) {
                scanner.scan(piece, |payload| found.push(payload.to_vec()));
            }
            assert_eq!(found, [vec![0, 0, 0, 1], vec![], vec![0, 0, 0, 8]], "{size}");
        }
    }

    #[test]
    fn an_authority_that_is_a_path_is_recognized() {
        // grpc-go writes `%2F` and `localhost` in Huffman code; Python's grpc writes a literal path.
        for path in [
            &[0x41, 0x8a, 0x54, 0x58][..],
            b"\x41\x03%2F",
            b"\x01\x02/a",
            b"\x41\x00\x86",
            b"@\x0a:authority\x0crun%2Fa.sock\x83",
            &[0x41, 0x84, 0x60],
        ] {
            assert!(authority_is_a_path(path), "{path:x?}");
        }
        for fine in [
            &[0x41, 0x86, 0xa0, 0xe4][..],
            b"\x41\x09localhost",
            b"\x04\x03/v2",
            b"@\x0a:authority\x09localhost\x04\x02/a",
            b"\x41",
        ] {
            assert!(!authority_is_a_path(fine), "{fine:x?}");
        }
    }

    #[test]
    fn only_a_reset_with_protocol_error_counts() {
        let mut monitor = RequestMonitor::new();
        let mut seen = Vec::new();
        monitor.written(&frame(3, &[0, 0, 0, 8]), |what| seen.push(what));
        monitor.written(&frame(3, &PROTOCOL_ERROR), |what| seen.push(what));
        monitor.read(&[0; PREFACE_BYTES]);
        monitor.read(&frame(1, b"\x41\x03%2F"));
        monitor.written(&frame(3, &PROTOCOL_ERROR), |what| seen.push(what));
        assert_eq!(seen, [MalformedRequest::Other, MalformedRequest::Authority]);
    }
}
