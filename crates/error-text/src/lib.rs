//! Text from error chains and from peers, for messages.

use std::{error::Error, io, iter};

/// The longest line, in characters, that a peer can put into a log.
const MAX_CHARS: usize = 300;

/// The errors of the chain, the outermost first. It includes the error within an [`io::Error`], which
/// [`Error::source`] skips.
pub fn chain<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> + use<'a> {
    iter::successors(Some(error), |&error: &&'a (dyn Error + 'static)| {
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(held) => Some(held),
            None => error.source(),
        }
    })
}

/// The innermost error of the chain, on one line: that of the operating system or of the peer. The errors around
/// it only say which library passed it on, and some of them repeat whole URLs.
#[must_use]
pub fn root_cause(error: &(dyn Error + 'static)) -> String {
    chain(error).last().map(|cause| one_line(&cause.to_string())).unwrap_or_default()
}

/// The words of a peer on one line of bounded length, without control characters.
#[must_use]
pub fn one_line(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_CHARS).collect();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_cause_is_found_within_io_errors_and_is_on_one_line() {
        let inner = io::Error::other(io::Error::other("a\n\tb\u{1b}[31m"));
        assert_eq!(root_cause(&inner), "a b [31m");
        assert_eq!(chain(&inner).count(), 3);
        assert_eq!(one_line(&"x".repeat(5000)).len(), MAX_CHARS);
    }
}
