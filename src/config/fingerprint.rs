//! Hashes for comparisons.

use std::fmt;

use sha2::{Digest, Sha256};

/// A SHA-256 for comparisons. It is never printed: with the rest of the file, it would allow tests of guesses
/// of a weak token.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Hashes each part with its length, so that different lists of parts never have the same input.
    pub(super) fn of<'a>(parts: impl IntoIterator<Item = Option<&'a [u8]>>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            match part {
                Some(bytes) => {
                    hash.update([1]);
                    hash.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
                    hash.update(bytes);
                }
                None => hash.update([0]),
            }
        }
        Self(hash.finalize().into())
    }
}

impl Fingerprint {
    /// Changes with each of the two.
    pub(super) fn and(self, other: Self) -> Self {
        Self::of([Some(&self.0[..]), Some(&other.0[..])])
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(..)")
    }
}
