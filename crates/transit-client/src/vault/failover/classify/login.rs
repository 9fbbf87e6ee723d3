//! The table of Vault's answers to a login, and to the requests that fetch the credentials for it. These requests
//! carry no token of a session, so no answer to them says that a token is invalid.
//!
//! Vault's words say which credential is wrong, and why: messages quote them.

use super::{
    Consequence::Final,
    Processed::Yes,
    row::{
        Row,
        Words::{Any, Contain},
    },
    table::DR_SECONDARY,
};
use crate::{
    ErrorKind::{Denied, KeyNotFound},
    operation::VaultOperation::{self, Login, ReadCubbyhole, Unwrap, WrappingLookup},
};

/// The operations of this table.
const LOGIN: &[VaultOperation] = &[Login, ReadCubbyhole, Unwrap, WrappingLookup];

/// Answers with Vault's error body to [`LOGIN`]. Every answer with the status 400, 403 or 404 has a row here.
pub(super) const LOGIN_ANSWERS: &[Row] = &[
    Row { operations: LOGIN, ..DR_SECONDARY },
    // OpenBao answers a login below a path where nothing is mounted with 403 `permission denied`.
    Row {
        operations: &[Login],
        statuses: &[400..=400, 403..=403],
        words: Any,
        consequence: Final,
        processed: Yes,
        kind: Denied,
        cause: "Vault refuses the login at {path}",
        remedy: "see that the auth method is enabled there, and that role and credentials are right: see docs/auth",
    },
    Row {
        operations: LOGIN,
        statuses: &[400..=400, 403..=403],
        words: Any,
        consequence: Final,
        processed: Yes,
        kind: Denied,
        cause: "Vault refuses {operation} at {path}",
        remedy: "the token that was delivered is expired, used up or revoked, or does not allow it: deliver a new one",
    },
    Row {
        operations: LOGIN,
        statuses: &[404..=404],
        words: Contain(&["namespace not found"]),
        consequence: Final,
        processed: Yes,
        kind: KeyNotFound,
        cause: "not found: {path}",
        remedy: "create the namespace, or correct vault.auth.namespace",
    },
    Row {
        operations: LOGIN,
        statuses: &[404..=404],
        words: Contain(&["no handler for route", "unsupported path"]),
        consequence: Final,
        processed: Yes,
        kind: KeyNotFound,
        cause: "nothing is mounted at {path}",
        remedy: "enable the auth method, or correct vault.auth.mount",
    },
    Row {
        operations: LOGIN,
        statuses: &[404..=404],
        words: Any,
        consequence: Final,
        processed: Yes,
        kind: KeyNotFound,
        cause: "not found: {path}",
        remedy: "nothing is stored there: correct the path, or deliver the credentials again",
    },
];
