//! The table of Vault's answers that are not a success, except for those to a login: see [`super::login`].
//!
//! Many cases differ only in Vault's words. Read the tables beside `tests/golden/vault_errors.tsv`, which has
//! the words that OpenBao 2.7.2 was observed to use, and those in the sources of Vault and OpenBao
//! (`sdk/helper/keysutil/policy.go`, `builtin/logical/transit`, `vault/request_handling.go`).

use super::{
    Consequence::{Eject, Final, Next},
    Processed::{No, Unknown, Yes},
    row::{
        ALL, ANY_STATUS, RATE_LIMITED, REQUEST_TOO_LARGE, Row,
        Words::{Any, Contain, Equal},
    },
};
use crate::{
    ErrorKind::{
        BadCiphertext, BatchTooLarge, Denied, InvalidResponse, KeyNotFound, Throttled, TokenInvalid,
        Unreachable, VersionTooOld, VersionUnavailable,
    },
    operation::VaultOperation::{self, Decrypt, Encrypt, LookupSelf, ReadKey, RenewSelf, RevokeSelf},
};

/// The operations that carry the token of a session.
pub(super) const WITH_TOKEN: &[VaultOperation] =
    &[Decrypt, Encrypt, LookupSelf, ReadKey, RenewSelf, RevokeSelf];

/// Answers with Vault's error body. Only what is [`Final`] here ends a call.
pub(super) const VAULT_ANSWERS: &[Row] = &[
    Row {
        operations: ALL,
        statuses: &[400..=400],
        words: Contain(&["version is too new", "higher than the latest key version"]),
        consequence: Next,
        processed: Unknown,
        kind: VersionUnavailable,
        cause: "this Vault node does not know the key version",
        remedy: "it lags behind the others, or an older Vault was restored",
    },
    Row {
        operations: ALL,
        statuses: &[400..=400],
        words: Contain(&["minimum encryption key version"]),
        consequence: Final,
        processed: Yes,
        kind: VersionTooOld,
        cause: "min_encryption_version of the key was raised above the version in use",
        remedy: "transit-kms reads the key again, and the next Encrypt uses the newer version",
    },
    Row {
        operations: ALL,
        statuses: &[400..=400],
        words: Contain(&["too old"]),
        consequence: Final,
        processed: Yes,
        kind: VersionTooOld,
        cause: "the ciphertext's key version is below min_decryption_version of the key",
        remedy: "lower it to read this value again",
    },
    Row {
        operations: ALL,
        statuses: &[400..=400],
        words: Contain(&["soft-deleted"]),
        consequence: Final,
        processed: Yes,
        kind: KeyNotFound,
        cause: "the key is soft-deleted ({path})",
        remedy: "restore it (write to its soft-delete-restore)",
    },
    Row {
        operations: ALL,
        statuses: &[400..=400],
        words: Contain(&["encryption key not found"]),
        consequence: Final,
        processed: Yes,
        kind: KeyNotFound,
        cause: "the key does not exist ({path})",
        remedy: "restore it, or correct vault.keynames",
    },
    Row {
        operations: ALL,
        statuses: &[400..=400],
        words: Contain(&["message authentication failed", "invalid ciphertext"]),
        consequence: Final,
        processed: Yes,
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
        processed: Yes,
        kind: BadCiphertext,
        cause: BAD_CIPHERTEXT,
        remedy: CHECK_CIPHERTEXT,
    },
    Row {
        operations: ALL,
        statuses: &[400..=400],
        words: Contain(&["missing 'context'"]),
        consequence: Final,
        processed: Yes,
        kind: Denied,
        cause: "the key is derived ({path})",
        remedy: "use a key of type aes256-gcm96 that is not derived",
    },
    Row {
        operations: ALL,
        statuses: &[400..=400],
        words: Contain(&["high complexity"]),
        consequence: Final,
        processed: Yes,
        kind: BatchTooLarge,
        cause: "the batch is larger than Vault accepts",
        remedy: "transit-kms sends smaller batches from now on; the limits are max_request_json_strings and \
                 max_request_json_memory of Vault's listener",
    },
    Row {
        operations: WITH_TOKEN,
        statuses: &[400..=400],
        words: Contain(&["missing client token"]),
        consequence: Final,
        processed: Yes,
        kind: TokenInvalid,
        cause: "the request reached Vault without a token",
        remedy: "does a proxy in between remove the header X-Vault-Token?",
    },
    Row {
        operations: ALL,
        statuses: &[400..=400],
        words: Contain(&["decryption not supported for key type"]),
        consequence: Final,
        processed: Yes,
        kind: Denied,
        cause: "the key is of a type that cannot decrypt ({path})",
        remedy: "name a key of type aes256-gcm96 in vault.keynames",
    },
    // Vault refuses an invalid token in these words, before it evaluates a policy. The refusal of a policy is a
    // multierror, and begins with `1 error occurred:`.
    Row {
        operations: WITH_TOKEN,
        statuses: &[403..=403],
        words: Equal("permission denied"),
        consequence: Final,
        processed: Yes,
        kind: TokenInvalid,
        cause: TOKEN_INVALID,
        remedy: NEXT_TOKEN,
    },
    Row {
        operations: WITH_TOKEN,
        statuses: &[403..=403],
        words: Contain(&["invalid token", "bad token"]),
        consequence: Final,
        processed: Yes,
        kind: TokenInvalid,
        cause: TOKEN_INVALID,
        remedy: NEXT_TOKEN,
    },
    // Vault answers an Encrypt with a key that does not exist in the same way: it would have to create it.
    Row {
        operations: &[Encrypt],
        statuses: &[403..=403],
        words: Any,
        consequence: Final,
        processed: Yes,
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
        processed: Yes,
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
        processed: Yes,
        kind: Denied,
        cause: POLICY,
        remedy: "grant `{capability}` on {path}{namespace_hint}",
    },
    Row {
        operations: ALL,
        statuses: &[404..=404],
        words: Contain(&["namespace not found"]),
        consequence: Final,
        processed: Yes,
        kind: KeyNotFound,
        cause: "not found: {path}",
        remedy: "create the namespace, or correct vault.namespace",
    },
    Row {
        operations: ALL,
        statuses: &[404..=404],
        words: Contain(&["no handler for route", "unsupported path"]),
        consequence: Final,
        processed: Yes,
        kind: KeyNotFound,
        cause: "not found: {path}",
        remedy: "nothing is mounted there: mount Transit, or correct vault.transitpath and vault.namespace",
    },
    Row {
        operations: ALL,
        statuses: &[404..=404],
        words: Any,
        consequence: Final,
        processed: Yes,
        kind: KeyNotFound,
        cause: "not found: {path}",
        remedy: "create or restore it, or check vault.keynames, vault.transitpath and vault.namespace",
    },
    REQUEST_TOO_LARGE,
    // A login is counted when Vault has accepted the credentials: they may be used up.
    Row {
        operations: ALL,
        statuses: &[429..=429],
        words: Contain(&["lease count quota exceeded"]),
        consequence: Final,
        processed: Unknown,
        kind: Throttled,
        cause: "Vault limits the number of leases (429)",
        remedy: "raise the lease count quota, or let tokens live for a shorter time",
    },
    RATE_LIMITED,
    // Vault checks the seal before it processes a request, and finishes the requests in flight before it seals
    // itself (`switchedLockHandleRequest` in `vault/request_handling.go`, `sealInternal` in `vault/core.go`).
    // Other errors with this word may come from within a request.
    Row {
        operations: ALL,
        statuses: &[503..=503],
        words: Equal("Vault is sealed"),
        consequence: Eject,
        processed: No,
        kind: Unreachable,
        cause: ANSWERED,
        remedy: "unseal it",
    },
    Row {
        operations: ALL,
        statuses: &[412..=412, 500..=599],
        words: Contain(&["sealed"]),
        consequence: Eject,
        processed: Unknown,
        kind: Unreachable,
        cause: ANSWERED,
        remedy: "unseal it",
    },
    Row {
        operations: ALL,
        statuses: &[412..=412, 500..=599],
        words: Contain(&["not initialized", "not yet initialized"]),
        consequence: Eject,
        processed: No,
        kind: Unreachable,
        cause: ANSWERED,
        remedy: "initialize it, or correct the address",
    },
    // A standby says so before it passes the request on. If it has passed it on, and finds no leader afterwards,
    // it says `no active Vault instance found` (`forwardRequest` in `http/handler.go`).
    Row {
        operations: ALL,
        statuses: &[412..=412, 500..=599],
        words: Contain(&["node not active"]),
        consequence: Eject,
        processed: No,
        kind: Unreachable,
        cause: ANSWERED,
        remedy: "the cluster has no leader: look at its nodes",
    },
    // Vault compares its state with the one that a header asks for before it processes the request.
    Row {
        operations: ALL,
        statuses: &[412..=412],
        words: Any,
        consequence: Next,
        processed: No,
        kind: Unreachable,
        cause: ANSWERED,
        remedy: "Vault's own log says why",
    },
    Row {
        operations: ALL,
        statuses: &[500..=599],
        words: Any,
        consequence: Next,
        processed: Unknown,
        kind: Unreachable,
        cause: ANSWERED,
        remedy: "Vault's own log says why",
    },
    DR_SECONDARY,
];

pub(super) const DR_SECONDARY: Row = Row {
    operations: ALL,
    statuses: ANY_STATUS,
    words: Contain(&["replication DR secondary"]),
    consequence: Eject,
    processed: No,
    kind: InvalidResponse,
    cause: ANSWERED,
    remedy: "it is a secondary for disaster recovery: name the nodes of the primary in vault.addresses",
};

pub(super) const OTHER_VAULT_ANSWER: Row = Row {
    operations: ALL,
    statuses: ANY_STATUS,
    words: Any,
    consequence: Eject,
    processed: Unknown,
    kind: InvalidResponse,
    cause: ANSWERED,
    remedy: "Vault's own log may say why",
};

const ANSWERED: &str = "Vault answered {status} to {operation}";
const BAD_CIPHERTEXT: &str = "the ciphertext is damaged or was made with another key ({path})";
const CHECK_CIPHERTEXT: &str = "compare the value with a snapshot of etcd, or name the other key in \
                                vault.keynames, behind the first";
const POLICY: &str = "the token's policy does not allow {operation}";
const NEXT_TOKEN: &str = "{next_token}{namespace_hint}";
const TOKEN_INVALID: &str = "Vault does not accept the token any more (it is expired, revoked, of another Vault \
                             or namespace, used from outside its bound CIDRs, or its entity is disabled)";
