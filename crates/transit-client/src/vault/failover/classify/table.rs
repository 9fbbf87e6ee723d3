//! The tables of answers that are not a success.
//!
//! Many cases differ only in Vault's words. Read the tables beside `tests/golden/vault_errors.tsv`, which has
//! the words that OpenBao 2.7.2 was observed to use, and those in the sources of Vault and OpenBao
//! (`sdk/helper/keysutil/policy.go`, `builtin/logical/transit`, `vault/request_handling.go`).

use std::ops::RangeInclusive;

use super::Consequence::{self, Eject, Final, Next};
use crate::{
    ErrorKind::{
        self, BadCiphertext, BatchTooLarge, Denied, InvalidResponse, KeyNotFound, Throttled, TokenInvalid,
        Unreachable, VersionTooOld, VersionUnavailable,
    },
    operation::VaultOperation::{self, Decrypt, Encrypt},
};
use Words::{Any, Contain, Equal};

/// One row of a table: the answers that it matches, and their meaning. The first row that matches counts.
///
/// In `cause` and `remedy`, these are replaced: `{capability}`, `{namespace_hint}`, `{operation}`, `{path}`
/// and `{status}`. The message is `cause: remedy`, and a quote of Vault's words.
pub(super) struct Row {
    /// Empty for all operations.
    pub(super) operations: &'static [VaultOperation],
    /// Empty for all statuses.
    pub(super) statuses: &'static [RangeInclusive<u16>],
    pub(super) words: Words,
    pub(super) consequence: Consequence,
    pub(super) kind: ErrorKind,
    pub(super) cause: &'static str,
    pub(super) remedy: &'static str,
}

/// The words that an answer must have.
pub(super) enum Words {
    Any,
    /// At least one of these occurs.
    Contain(&'static [&'static str]),
    /// One of Vault's errors consists of this and nothing else.
    Equal(&'static str),
}

const ALL: &[VaultOperation] = &[];
const ANY_STATUS: &[RangeInclusive<u16>] = &[];

/// Answers with Vault's error body. Only what is [`Final`] here ends a call.
pub(super) const VAULT_ANSWERS: &[Row] = &[
    Row {
        operations: ALL,
        statuses: &[400..=400],
        words: Contain(&["version is too new", "higher than the latest key version"]),
        consequence: Next,
        kind: VersionUnavailable,
        cause: "this Vault node does not know the key version",
        remedy: "it lags behind the others, or an older Vault was restored",
    },
    Row {
        operations: ALL,
        statuses: &[400..=400],
        words: Contain(&["minimum encryption key version"]),
        consequence: Final,
        kind: VersionTooOld,
        cause: "min_encryption_version of the key was raised above the version in use",
        remedy: "transit-kms reads the key again, and the next Encrypt uses the newer version",
    },
    Row {
        operations: ALL,
        statuses: &[400..=400],
        words: Contain(&["too old"]),
        consequence: Final,
        kind: VersionTooOld,
        cause: "the ciphertext's key version is below min_decryption_version of the key",
        remedy: "lower it to read this value again",
    },
    Row {
        operations: ALL,
        statuses: &[400..=400],
        words: Contain(&["soft-deleted"]),
        consequence: Final,
        kind: KeyNotFound,
        cause: "the key is soft-deleted ({path})",
        remedy: "restore it (write to its soft-delete-restore)",
    },
    Row {
        operations: ALL,
        statuses: &[400..=400],
        words: Contain(&["encryption key not found"]),
        consequence: Final,
        kind: KeyNotFound,
        cause: "the key does not exist ({path})",
        remedy: "restore it, or correct vault.keynames",
    },
    Row {
        operations: ALL,
        statuses: &[400..=400],
        words: Contain(&["message authentication failed", "invalid ciphertext"]),
        consequence: Final,
        kind: BadCiphertext,
        cause: BAD_CIPHERTEXT,
        remedy: CHECK_CIPHERTEXT,
    },
    // The answer of an RSA key to the ciphertext of another key.
    Row {
        operations: ALL,
        statuses: &[500..=500],
        words: Contain(&["failed to RSA decrypt"]),
        consequence: Final,
        kind: BadCiphertext,
        cause: BAD_CIPHERTEXT,
        remedy: CHECK_CIPHERTEXT,
    },
    Row {
        operations: ALL,
        statuses: &[400..=400],
        words: Contain(&["missing 'context'"]),
        consequence: Final,
        kind: Denied,
        cause: "the key is derived ({path})",
        remedy: "use a key of type aes256-gcm96 that is not derived",
    },
    Row {
        operations: ALL,
        statuses: &[400..=400],
        words: Contain(&["high complexity"]),
        consequence: Final,
        kind: BatchTooLarge,
        cause: "the batch is larger than Vault accepts",
        remedy: "transit-kms sends smaller batches from now on; the limits are max_request_json_strings and \
                 max_request_json_memory of Vault's listener",
    },
    Row {
        operations: ALL,
        statuses: &[400..=400],
        words: Contain(&["missing client token"]),
        consequence: Final,
        kind: TokenInvalid,
        cause: "the request reached Vault without a token",
        remedy: "does a proxy in between remove the header X-Vault-Token?",
    },
    Row {
        operations: ALL,
        statuses: &[400..=400],
        words: Contain(&["decryption not supported for key type"]),
        consequence: Final,
        kind: Denied,
        cause: "the key is of a type that cannot decrypt ({path})",
        remedy: "name a key of type aes256-gcm96 in vault.keynames",
    },
    // Vault refuses an invalid token in these words, before it evaluates a policy. The refusal of a policy is a
    // multierror, and begins with `1 error occurred:`.
    Row {
        operations: ALL,
        statuses: &[403..=403],
        words: Equal("permission denied"),
        consequence: Final,
        kind: TokenInvalid,
        cause: TOKEN_INVALID,
        remedy: RENDER_A_TOKEN,
    },
    Row {
        operations: ALL,
        statuses: &[403..=403],
        words: Contain(&["invalid token", "bad token"]),
        consequence: Final,
        kind: TokenInvalid,
        cause: TOKEN_INVALID,
        remedy: RENDER_A_TOKEN,
    },
    // Vault answers an Encrypt with a key that does not exist in the same way: it would have to create it.
    Row {
        operations: &[Encrypt],
        statuses: &[403..=403],
        words: Any,
        consequence: Final,
        kind: Denied,
        cause: POLICY,
        remedy: "grant `{capability}` on {path}, see that the key exists, and that `allowed_parameters` of the \
                 policy, if it has them, name `plaintext` and `key_version`{namespace_hint}",
    },
    Row {
        operations: &[Decrypt],
        statuses: &[403..=403],
        words: Any,
        consequence: Final,
        kind: Denied,
        cause: POLICY,
        remedy: "grant `{capability}` on {path}, and see that `allowed_parameters` of the policy, if it has \
                 them, name `ciphertext` and `batch_input`{namespace_hint}",
    },
    Row {
        operations: ALL,
        statuses: &[403..=403],
        words: Any,
        consequence: Final,
        kind: Denied,
        cause: POLICY,
        remedy: "grant `{capability}` on {path}{namespace_hint}",
    },
    Row {
        operations: ALL,
        statuses: &[404..=404],
        words: Contain(&["namespace not found"]),
        consequence: Final,
        kind: KeyNotFound,
        cause: "not found: {path}",
        remedy: "create the namespace, or correct vault.namespace",
    },
    Row {
        operations: ALL,
        statuses: &[404..=404],
        words: Contain(&["no handler for route", "unsupported path"]),
        consequence: Final,
        kind: KeyNotFound,
        cause: "not found: {path}",
        remedy: "nothing is mounted there: mount Transit, or correct vault.transitpath and vault.namespace",
    },
    Row {
        operations: ALL,
        statuses: &[404..=404],
        words: Any,
        consequence: Final,
        kind: KeyNotFound,
        cause: "not found: {path}",
        remedy: "create or restore it, or check vault.keynames, vault.transitpath and vault.namespace",
    },
    REQUEST_TOO_LARGE,
    RATE_LIMITED,
    Row {
        operations: ALL,
        statuses: &[412..=412, 500..=599],
        words: Contain(&["sealed"]),
        consequence: Eject,
        kind: Unreachable,
        cause: ANSWERED,
        remedy: "unseal it",
    },
    Row {
        operations: ALL,
        statuses: &[412..=412, 500..=599],
        words: Contain(&["not initialized", "not yet initialized"]),
        consequence: Eject,
        kind: Unreachable,
        cause: ANSWERED,
        remedy: "initialize it, or correct the address",
    },
    Row {
        operations: ALL,
        statuses: &[412..=412, 500..=599],
        words: Contain(&["node not active"]),
        consequence: Eject,
        kind: Unreachable,
        cause: ANSWERED,
        remedy: "the cluster has no leader: look at its nodes",
    },
    Row {
        operations: ALL,
        statuses: &[412..=412, 500..=599],
        words: Any,
        consequence: Next,
        kind: Unreachable,
        cause: ANSWERED,
        remedy: "Vault's own log says why",
    },
    Row {
        operations: ALL,
        statuses: ANY_STATUS,
        words: Contain(&["replication DR secondary"]),
        consequence: Eject,
        kind: InvalidResponse,
        cause: ANSWERED,
        remedy: "it is a secondary for disaster recovery: name the nodes of the primary in vault.addresses",
    },
];

pub(super) const OTHER_VAULT_ANSWER: Row = Row {
    operations: ALL,
    statuses: ANY_STATUS,
    words: Any,
    consequence: Eject,
    kind: InvalidResponse,
    cause: ANSWERED,
    remedy: "Vault's own log may say why",
};

/// Answers without Vault's error body: a page of a proxy, a captive portal, another program. Only two of them
/// say something about the request: a limit of its size, and a limit of the rate.
pub(super) const FOREIGN_ANSWERS: &[Row] = &[
    Row {
        operations: ALL,
        statuses: &[301..=308],
        words: Any,
        consequence: Eject,
        kind: Unreachable,
        cause: "Vault answered with a redirect ({status}), which is not followed",
        remedy: "name the nodes themselves in vault.addresses, not a proxy or a standby that sends clients on",
    },
    // Vault's answer, with an empty object, while it does not have the state that a header asks for.
    Row {
        operations: ALL,
        statuses: &[412..=412],
        words: Any,
        consequence: Next,
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
        kind: InvalidResponse,
        cause: "the port speaks TLS",
        remedy: "write https:// in the address, not http://",
    },
    Row {
        operations: ALL,
        statuses: &[401..=401, 407..=407],
        words: Any,
        consequence: Eject,
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
        kind: InvalidResponse,
        cause: NOT_VAULT,
        remedy: "is a proxy or a web filter in between? Let it pass transit-kms, or name Vault's nodes themselves",
    },
    Row {
        operations: ALL,
        statuses: &[404..=404],
        words: Any,
        consequence: Eject,
        kind: InvalidResponse,
        cause: NOT_VAULT,
        remedy: "is a proxy in between, or is the path in the address wrong?",
    },
    Row {
        operations: ALL,
        statuses: &[502..=504],
        words: Any,
        consequence: Eject,
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
    kind: InvalidResponse,
    cause: NOT_VAULT,
    remedy: "is a proxy in between, or another program on that port?",
};

const REQUEST_TOO_LARGE: Row = Row {
    operations: ALL,
    statuses: &[413..=413],
    words: Any,
    consequence: Final,
    kind: BatchTooLarge,
    cause: "the request is longer than Vault, or a proxy in between, accepts",
    remedy: "raise max_request_size of Vault's listener, or the limit of the proxy",
};

/// It is final, because asking another node would evade a limit that an operator has set.
const RATE_LIMITED: Row = Row {
    operations: ALL,
    statuses: &[429..=429],
    words: Any,
    consequence: Final,
    kind: Throttled,
    cause: "Vault limits the rate of requests (429)",
    remedy: "raise the quota, or call less often",
};

const ANSWERED: &str = "Vault answered {status} to {operation}";
const BAD_CIPHERTEXT: &str = "the ciphertext is damaged or was made with another key ({path})";
const CHECK_CIPHERTEXT: &str = "compare the value with a snapshot of etcd, or name the other key in \
                                vault.keynames, behind the first";
const NOT_VAULT: &str = "something that is not Vault answered {status} to {operation}";
const POLICY: &str = "the token's policy does not allow {operation}";
const RENDER_A_TOKEN: &str = "the agent has to render a new one{namespace_hint}";
const TOKEN_INVALID: &str = "Vault does not accept the token any more (it is expired, revoked, of another Vault \
                             or namespace, used from outside its bound CIDRs, or its entity is disabled)";
