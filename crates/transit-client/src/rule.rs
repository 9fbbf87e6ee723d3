//! The rules for values of settings.

/// A rule that a value breaks, in words that follow the name of the setting, such as "must not be empty". It
/// never quotes the value, which may be a secret.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct BrokenRule(pub &'static str);
