//! The tables of Vault's answers to a session without a token of its own: an agent adds one, or a login travels with
//! each request.
//!
//! Vault answers a request without a token with 400 `missing client token` or 403 `permission denied`, which are also
//! its words for an invalid token.

use super::{
    Consequence::{Eject, Final},
    Processed::{Unknown, Yes},
    row::{
        ALL, ANY_STATUS, Row,
        Words::{Any, Contain, Equal},
    },
    table::WITH_TOKEN,
};
use crate::ErrorKind::{Denied, TokenInvalid, Unreachable};

/// Answers through an agent or a proxy that adds its token.
pub(super) const AGENT_ANSWERS: &[Row] = &[
    Row {
        operations: WITH_TOKEN,
        statuses: &[400..=400, 403..=403],
        words: Contain(&["missing client token", "invalid token", "bad token"]),
        ..AGENT_TOKEN
    },
    Row { operations: WITH_TOKEN, statuses: &[403..=403], words: Equal("permission denied"), ..AGENT_TOKEN },
    // Source: `command/agentproxyshared/cache/handler.go` of OpenBao
    Row {
        operations: ALL,
        statuses: &[500..=599],
        words: Contain(&["failed to get the response"]),
        consequence: Eject,
        processed: Unknown,
        kind: Unreachable,
        cause: "the agent does not reach Vault ({status})",
        remedy: "its own log says why",
    },
];

const AGENT_TOKEN: Row = Row {
    operations: WITH_TOKEN,
    statuses: &[],
    words: Any,
    consequence: Final,
    processed: Yes,
    kind: TokenInvalid,
    cause: "the agent adds no token to the request, or one that Vault does not accept any more",
    remedy: "set use_auto_auth_token in its block api_proxy, and look in its log whether its auto_auth has logged \
             in{namespace_hint}",
};

/// Answers to a request with a login in its headers, if they do not say that the login has failed.
pub(super) const INLINE_ANSWERS: &[Row] = &[
    Row {
        operations: WITH_TOKEN,
        statuses: ANY_STATUS,
        words: Contain(&["failed to perform inline authentication"]),
        ..INLINE_LOGIN_FAILED
    },
    Row {
        operations: WITH_TOKEN,
        statuses: &[400..=400],
        words: Contain(&["missing client token"]),
        ..INLINE_UNKNOWN
    },
    Row {
        operations: WITH_TOKEN,
        statuses: &[403..=403],
        words: Equal("permission denied"),
        ..INLINE_UNKNOWN
    },
];

/// [`InlineLogin`](crate::vault::auth::InlineLogin) replaces the message with the meaning of the refusal.
pub(super) const INLINE_LOGIN_FAILED: Row = Row {
    operations: ALL,
    statuses: ANY_STATUS,
    words: Any,
    consequence: Final,
    processed: Yes,
    kind: TokenInvalid,
    cause: "OpenBao refuses the login that travels with each request",
    remedy: "see that the auth method is enabled there, and that role and credentials are right: see docs/auth",
};

const INLINE_UNKNOWN: Row = Row {
    operations: ALL,
    statuses: ANY_STATUS,
    words: Any,
    consequence: Final,
    processed: Yes,
    kind: Denied,
    cause: "the server ignores the login that travels with each request",
    remedy: "inline authentication needs OpenBao 2.6.2 or newer, and Vault does not have it: configure the login \
             below auth.login as auth itself",
};
