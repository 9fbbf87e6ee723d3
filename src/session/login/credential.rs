//! Tells credentials apart without keeping them.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

/// Identifies a credential. It is kept in memory and, for credentials that cannot be guessed, on disk; it is never
/// printed.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub(super) struct CredentialHash([u8; 32]);

impl CredentialHash {
    /// Hashes the parts of a credential, each with its length.
    pub(super) fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"transit-kms credential");
        for part in parts {
            hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    /// Hashes secrets.
    pub(super) fn of_secrets<'a>(parts: impl IntoIterator<Item = &'a SecretString>) -> Self {
        Self::of(parts.into_iter().map(|part| part.expose_secret().as_bytes()))
    }

    /// The form in the ledger.
    pub(super) fn to_hex(self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Debug for CredentialHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CredentialHash(..)")
    }
}
