//! The shape of the tables of answers, and the rows that several tables share.

use std::ops::RangeInclusive;

use super::{
    Consequence::{self, Final},
    Processed::{self, No},
};
use crate::{
    ErrorKind::{self, BatchTooLarge, Throttled},
    operation::VaultOperation,
};
use Words::Any;

/// One row of a table: the answers that it matches, and their meaning. The first row that matches counts.
///
/// In `cause` and `remedy`, these are replaced: `{capability}`, `{namespace_hint}`, `{next_token}`, `{operation}`, `{path}`
/// and `{status}`. The message is `cause: remedy`, and a quote of Vault's words.
pub(super) struct Row {
    /// Empty for all operations.
    pub(super) operations: &'static [VaultOperation],
    /// Empty for all statuses.
    pub(super) statuses: &'static [RangeInclusive<u16>],
    pub(super) words: Words,
    pub(super) consequence: Consequence,
    pub(super) processed: Processed,
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

pub(super) const ALL: &[VaultOperation] = &[];
pub(super) const ANY_STATUS: &[RangeInclusive<u16>] = &[];

pub(super) const REQUEST_TOO_LARGE: Row = Row {
    operations: ALL,
    statuses: &[413..=413],
    words: Any,
    consequence: Final,
    processed: No,
    kind: BatchTooLarge,
    cause: "the request is longer than Vault, or a proxy in between, accepts",
    remedy: "raise max_request_size of Vault's listener, or the limit of the proxy",
};

/// It is final, because asking another node would evade a limit that an operator has set. A rate limit is checked before
/// the request reaches its handler.
///
/// Source: `rateLimitQuotaWrapping` in `http/util.go`
pub(super) const RATE_LIMITED: Row = Row {
    operations: ALL,
    statuses: &[429..=429],
    words: Any,
    consequence: Final,
    processed: No,
    kind: Throttled,
    cause: "Vault limits the rate of requests (429)",
    remedy: "raise the quota, or call less often",
};
