//! What an error chain has to say.

use std::error::Error;

/// The last error of the chain: what the operating system or the peer said. Those around it
/// say who passed it on, and some of them repeat whole URLs.
#[must_use]
pub fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
