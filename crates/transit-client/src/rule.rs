//! Rules that values of settings must keep.

/// A rule in words that follow the name of a setting: "must not be empty". It never quotes the value.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct BrokenRule(pub &'static str);
