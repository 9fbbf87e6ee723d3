//! PEM ([RFC 7468](https://www.rfc-editor.org/rfc/rfc7468)).

use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

/// Characters of base64 in a line.
const LINE: usize = 64;

/// A block of PEM.
pub(crate) struct PemBlock<'a> {
    pub(crate) label: &'a str,
    /// The decoded contents, or `None` if they are not base64.
    pub(crate) contents: Option<Zeroizing<Vec<u8>>>,
}

/// The blocks of `text`. The text around them is not used.
pub(crate) fn blocks(text: &[u8]) -> impl Iterator<Item = PemBlock<'_>> {
    let mut rest = str::from_utf8(text).unwrap_or_default();
    std::iter::from_fn(move || {
        let (_, after) = rest.split_once("-----BEGIN ")?;
        let (label, after) = after.split_once("-----")?;
        let (body, after) = after.split_once("-----END ")?;
        rest = after;
        Some(PemBlock { label, contents: decoded(body) })
    })
}

fn decoded(body: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut packed = Zeroizing::new(Vec::with_capacity(body.len()));
    packed.extend(body.bytes().filter(|byte| !byte.is_ascii_whitespace()));
    // With the right capacity from the start, no part is copied and left in memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(packed.len()));
    STANDARD.decode_vec(&packed, &mut bytes).ok()?;
    Some(bytes)
}

/// Encodes a block as openssl does. The text ends with a line break.
pub(crate) fn encoded(label: &str, bytes: &[u8]) -> Zeroizing<String> {
    let packed = Zeroizing::new(STANDARD.encode(bytes));
    let lines = packed.len().div_ceil(LINE);
    let mut text = Zeroizing::new(String::with_capacity(packed.len() + lines + 2 * label.len() + 40));
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = packed.as_str();
    while let Some((line, after)) = rest.split_at_checked(LINE) {
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    if !rest.is_empty() {
        text.push_str(rest);
        text.push('\n');
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let text = format!("a comment\n{}after", *encoded("A KEY", &bytes));
            let found: Vec<_> = blocks(text.as_bytes()).collect();
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(found[0].label, "A KEY");
            prop_assert_eq!(found[0].contents.as_deref(), Some(&bytes));
            prop_assert!(text.lines().all(|line| line.len() <= LINE));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "(-----(BEGIN|END) |-----|[A-Za-z= ]{0,9}|\n){0,20}") {
            prop_assert!(blocks(text.as_bytes()).count() <= text.len());
        }
    }
}
