//! The table of answers without Vault's error body: a page of a proxy, a captive portal, another program.
//!
//! A proxy may send its own page although Vault has processed the request, for example if the answer of Vault
//! comes too late.

use super::{
    Consequence::{Eject, Next},
    Processed::{No, Unknown},
    row::{
        ALL, ANY_STATUS, RATE_LIMITED, REQUEST_TOO_LARGE, Row,
        Words::{Any, Contain},
    },
};
use crate::ErrorKind::{InvalidResponse, Unreachable};

/// Answers without Vault's error body. Only two of them say something about the request: a limit of its size, and a limit of the rate.
pub(super) const FOREIGN_ANSWERS: &[Row] = &[
    // A standby passes the request on to the active node. If that fails, even after the active node has processed
    // the request, the standby answers with a redirect (`forwardRequest` in `http/handler.go`).
    Row {
        operations: ALL,
        statuses: &[301..=308],
        words: Any,
        consequence: Eject,
        processed: Unknown,
        kind: Unreachable,
        cause: "Vault answered with a redirect ({status}), which is not followed",
        remedy: "name the nodes themselves in vault.addresses, not a proxy or a standby that sends clients on",
    },
    // Vault's answer, with an empty object, before it processes the request, while it does not have the state that a header asks for.
    Row {
        operations: ALL,
        statuses: &[412..=412],
        words: Any,
        consequence: Next,
        processed: No,
        kind: Unreachable,
        cause: "this Vault node has not caught up with the others (412)",
        remedy: "if this lasts, look at the replication of Vault",
    },
    REQUEST_TOO_LARGE,
    RATE_LIMITED,
    // The answers of a TLS port to plain HTTP: of Go, and so of Vault, and of nginx.
    Row {
        operations: ALL,
        statuses: &[400..=400],
        words: Contain(&["HTTP request to an HTTPS server", "HTTP request was sent to HTTPS port"]),
        consequence: Eject,
        processed: No,
        kind: InvalidResponse,
        cause: "the port speaks TLS",
        remedy: "write https:// in the address, not http://",
    },
    Row {
        operations: ALL,
        statuses: &[401..=401, 407..=407],
        words: Any,
        consequence: Eject,
        processed: Unknown,
        kind: InvalidResponse,
        cause: NOT_VAULT,
        remedy: "is a proxy in between? It wants a login of its own: let it pass transit-kms, or name Vault's \
                 nodes themselves",
    },
    Row {
        operations: ALL,
        statuses: &[403..=403],
        words: Any,
        consequence: Eject,
        processed: Unknown,
        kind: InvalidResponse,
        cause: NOT_VAULT,
        remedy: "is a proxy or a web filter in between? Let it pass transit-kms, or name Vault's nodes themselves",
    },
    Row {
        operations: ALL,
        statuses: &[404..=404],
        words: Any,
        consequence: Eject,
        processed: Unknown,
        kind: InvalidResponse,
        cause: NOT_VAULT,
        remedy: "is a proxy in between, or is the path in the address wrong?",
    },
    Row {
        operations: ALL,
        statuses: &[502..=504],
        words: Any,
        consequence: Eject,
        processed: Unknown,
        kind: InvalidResponse,
        cause: NOT_VAULT,
        remedy: "is a proxy in between? It does not reach Vault: look at its backends",
    },
];

pub(super) const OTHER_FOREIGN_ANSWER: Row = Row {
    operations: ALL,
    statuses: ANY_STATUS,
    words: Any,
    consequence: Eject,
    processed: Unknown,
    kind: InvalidResponse,
    cause: NOT_VAULT,
    remedy: "is a proxy in between, or another program on that port?",
};

const NOT_VAULT: &str = "something that is not Vault answered {status} to {operation}";
