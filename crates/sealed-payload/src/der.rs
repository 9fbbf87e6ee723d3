//! DER, as far as payloads, public keys and certificates need it.
//!
//! Every accepted encoding is the only one of its value: tags have one byte, and lengths are definite and minimal.

pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;
/// `[0]` of a primitive type with an implicit tag.
pub(crate) const IMPLICIT_0: u8 = 0x80;
/// `[0]` with an explicit tag, or of a constructed type.
pub(crate) const EXPLICIT_0: u8 = 0xa0;

/// Reads elements one after the other. `None` means that the input is not what the caller expects.
#[derive(Clone, Copy)]
pub(crate) struct DerReader<'a>(&'a [u8]);

impl<'a> DerReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether everything is read.
    pub(crate) fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }

    /// Whether the next element has this tag.
    pub(crate) fn is_next(self, tag: u8) -> bool {
        self.0.first() == Some(&tag)
    }

    /// The contents of the next element, which must have this tag.
    pub(crate) fn element(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (&found, after_tag) = self.0.split_first()?;
        let (length, after_length) = length(after_tag)?;
        let (contents, rest) = after_length.split_at_checked(length)?;
        if found != tag {
            return None;
        }
        self.0 = rest;
        Some(contents)
    }

    /// A reader of the contents of the next element, which must have this tag.
    pub(crate) fn nested(&mut self, tag: u8) -> Option<Self> {
        self.element(tag).map(Self)
    }

    /// The next element with its tag and length, if it has this tag.
    pub(crate) fn whole(&mut self, tag: u8) -> Option<&'a [u8]> {
        let before = self.0;
        self.element(tag)?;
        before.get(..before.len() - self.0.len())
    }

    /// Skips exactly these bytes.
    pub(crate) fn exactly(&mut self, bytes: &[u8]) -> Option<()> {
        self.0 = self.0.strip_prefix(bytes)?;
        Some(())
    }
}

/// Splits off a length of at most three bytes, which is enough for 64 KiB.
fn length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (length, minimum, rest) = match bytes {
        [0x81, low, rest @ ..] => (usize::from(*low), 0x80, rest),
        [0x82, high, low, rest @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), 0x100, rest),
        [short @ 0..=0x7f, rest @ ..] => (usize::from(*short), 0, rest),
        _ => return None,
    };
    (length >= minimum).then_some((length, rest))
}

/// Encodes an element whose contents are these parts. They must have less than 64 KiB together.
pub(crate) fn encoded(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let [.., high, low] = length.to_be_bytes();
    let mut bytes = vec![tag];
    match length {
        0..0x80 => bytes.push(low),
        0x80..0x100 => bytes.extend([0x81, low]),
        _ => bytes.extend([0x82, high, low]),
    }
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_length_has_one_encoding() {
        for size in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff] {
            let bytes = encoded(SEQUENCE, &[&vec![7; size]]);
            let mut reader = DerReader::new(&bytes);
            assert_eq!(reader.element(SEQUENCE).map(<[u8]>::len), Some(size));
            assert_eq!(reader.end(), Some(()));
        }
        for longer in [&[0x30, 0x81, 1, 7][..], &[0x30, 0x82, 0, 1, 7], &[0x30, 0x80, 7, 0, 0], &[0x30]] {
            assert_eq!(DerReader::new(longer).element(SEQUENCE), None, "{longer:x?}");
        }
    }

    proptest! {
        #[test]
        fn accepted_bytes_are_encoded_the_same(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut reader = DerReader::new(&bytes);
            let tag = bytes.first().copied().unwrap_or_default();
            if let Some(contents) = reader.element(tag) {
                let same = encoded(tag, &[contents]);
                prop_assert_eq!(bytes.get(..same.len()), Some(same.as_slice()));
            }
        }
    }
}
