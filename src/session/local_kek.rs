//! A local KEK: a key in memory that Transit has wrapped, and that wraps seeds.
//!
//! A wrapped seed consists of `lk1:`, a nonce of 12 bytes, and the ciphertext and tag of AES-256-GCM. The wrapped
//! KEK is stored beside it, in the annotation [`ANNOTATION`]. The format, the key_id and the wrapped KEK are
//! authenticated with the seed, so none of them can be exchanged.
//!
//! Transit wraps a mark with the key, so that no seed can be used as a KEK, and no KEK is returned as a seed.
//!
//! The format must not change, because etcd stores it for years. `docs/local-kek.md` describes it, and
//! `tests/golden/local_kek.tsv` has vectors.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use rand::Rng;
use tokio::time::Instant;
use transit_client::{ErrorKind, TransitError, ciphertext::Ciphertext, key_id::Scope};
use zeroize::Zeroizing;

use crate::config::LocalKekLimits;

/// The annotation that holds the wrapped KEK. kube-apiserver accepts only lower-case domain names of two or more
/// labels, without a slash.
pub const ANNOTATION: &str = "local-kek.transit-kms";

const FORMAT: &[u8] = b"lk1:";
const MARK: &[u8; 16] = b"transit-kms lk1\0";
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;

/// A key that wraps seeds; it is wiped when dropped.
pub struct LocalKek {
    key: Zeroizing<Vec<u8>>,
    made: Instant,
    scope: Scope,
    uses: AtomicU64,
    wrapped: Ciphertext,
}

impl fmt::Debug for LocalKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LocalKek").field(&self.wrapped).finish()
    }
}

/// Returns a new key with the mark of a KEK, for Transit to wrap.
#[must_use]
pub fn new_payload() -> Zeroizing<Vec<u8>> {
    let mut payload = Zeroizing::new(vec![0; MARK.len() + KEY_BYTES]);
    let (mark, key) = payload.split_at_mut(MARK.len());
    mark.copy_from_slice(MARK);
    rand::rng().fill_bytes(key);
    payload
}

/// Whether this plaintext is a KEK.
#[must_use]
pub fn is_payload(plaintext: &[u8]) -> bool {
    plaintext.starts_with(MARK) && plaintext.len() == MARK.len() + KEY_BYTES
}

/// Whether a local KEK has made this ciphertext. If so, the annotation must exist.
#[must_use]
pub fn is_sealed(ciphertext: &[u8]) -> bool {
    ciphertext.starts_with(FORMAT)
}

impl LocalKek {
    /// Creates the KEK in `payload`, which the Transit key in `scope` has wrapped as `wrapped`.
    ///
    /// # Errors
    /// [`ErrorKind::BadCiphertext`] if something else was wrapped.
    pub fn new(payload: &[u8], wrapped: Ciphertext, scope: Scope) -> Result<Self, TransitError> {
        let key = payload.strip_prefix(MARK).filter(|key| key.len() == KEY_BYTES).ok_or_else(|| {
            let message = format!("the value of the annotation {ANNOTATION} is not a local KEK");
            TransitError::new(ErrorKind::BadCiphertext, message)
        })?;
        let key = Zeroizing::new(key.to_vec());
        Ok(Self { key, made: Instant::now(), scope, uses: AtomicU64::new(0), wrapped })
    }

    /// The Transit key that has wrapped it.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// The value of the annotation.
    #[must_use]
    pub fn wrapped(&self) -> &Ciphertext {
        &self.wrapped
    }

    /// Whether another KEK is to encrypt, because this one has encrypted for too long or too often.
    #[must_use]
    pub fn is_worn(&self, limits: LocalKekLimits) -> bool {
        self.made.elapsed() >= limits.renew_after
            || self.uses.load(Ordering::Relaxed) >= limits.renew_after_uses
    }

    /// Wraps a seed.
    ///
    /// # Errors
    /// Only if the cryptographic library fails, which no input is known to cause.
    pub fn seal(&self, key_id: &str, seed: &[u8]) -> Result<Vec<u8>, TransitError> {
        self.uses.fetch_add(1, Ordering::Relaxed);
        let failed =
            |_| TransitError::new(ErrorKind::InvalidResponse, "the local KEK cannot encrypt: this is a bug");
        // Has its final capacity from the start: a vector that grows leaves unwiped copies of the seed.
        let mut sealed = Zeroizing::new(Vec::with_capacity(seed.len() + TAG_BYTES));
        sealed.extend_from_slice(seed);
        let nonce = self
            .cipher()
            .and_then(|cipher| cipher.seal_in_place_append_tag(self.aad(key_id), &mut *sealed))
            .map_err(failed)?;
        Ok([FORMAT, nonce.as_ref(), &sealed].concat())
    }

    /// Unwraps a seed.
    ///
    /// # Errors
    /// [`ErrorKind::BadCiphertext`] if seed, key_id and this KEK do not belong together.
    pub fn open(&self, key_id: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, TransitError> {
        let mismatch = || {
            let message = format!(
                "ciphertext, key_id and the annotation {ANNOTATION} do not belong together, or are damaged"
            );
            TransitError::new(ErrorKind::BadCiphertext, message)
        };
        let rest = sealed.strip_prefix(FORMAT).ok_or_else(mismatch)?;
        let (nonce, body) = rest.split_at_checked(NONCE_LEN).ok_or_else(mismatch)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| mismatch())?;
        let mut seed = Zeroizing::new(body.to_vec());
        let length = self
            .cipher()
            .and_then(|cipher| Ok(cipher.open_in_place(nonce, self.aad(key_id), &mut seed)?.len()))
            .map_err(|_| mismatch())?;
        seed.truncate(length);
        Ok(seed)
    }

    /// Created for each use, so that only the copy of the key that is wiped stays in memory.
    fn cipher(&self) -> Result<RandomizedNonceKey, aws_lc_rs::error::Unspecified> {
        RandomizedNonceKey::new(&AES_256_GCM, &self.key)
    }

    fn aad(&self, key_id: &str) -> Aad<Vec<u8>> {
        Aad::from(self.associated_data(key_id))
    }

    /// The data that is authenticated with a seed.
    fn associated_data(&self, key_id: &str) -> Vec<u8> {
        let mut data = FORMAT.to_vec();
        for part in [key_id, self.wrapped.as_str()] {
            // Both are at most 1024 bytes long.
            data.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            data.extend_from_slice(part.as_bytes());
        }
        data
    }
}

#[cfg(test)]
mod tests {
    use transit_client::key::KeyRef;

    use super::*;

    fn wrapped(body: &str) -> Ciphertext {
        Ciphertext::parse(format!("vault:v1:{body}").as_bytes()).unwrap()
    }

    fn kek(payload: &[u8], body: &str) -> LocalKek {
        let scope = Scope::of(&KeyRef::in_transit("kms"));
        LocalKek::new(payload, wrapped(body), scope).unwrap()
    }

    #[test]
    fn it_opens_what_it_seals_and_no_two_ciphertexts_are_equal() {
        let kek = kek(&new_payload(), "QUJD");
        let (one, two) = (kek.seal("id", b"seed").unwrap(), kek.seal("id", b"seed").unwrap());
        assert!(is_sealed(&one) && one != two && one.len() == 4 + 12 + 4 + 16);
        assert_eq!(*kek.open("id", &one).unwrap(), b"seed");
    }

    /// The vectors were computed by `tests/golden/local_kek.py`, without this code.
    #[test]
    fn golden_vectors() {
        let table = include_str!("../../tests/golden/local_kek.tsv");
        let bytes = |digits| hex::decode(digits).unwrap();
        let mut rows = 0;
        for row in table.lines().filter(|row| !row.starts_with('#')) {
            let fields: Vec<&str> = row.split('\t').collect();
            let [payload, key_id, wrapped, seed, aad, sealed] = fields[..] else { panic!("six fields") };
            let (payload, sealed) = (bytes(payload), bytes(sealed));
            assert!(is_payload(&payload) && is_sealed(&sealed));
            let scope = kek(&payload, "QUJD").scope();
            let wrapped = Ciphertext::parse(wrapped.as_bytes()).unwrap();
            let kek = LocalKek::new(&payload, wrapped, scope).unwrap();
            assert_eq!(kek.associated_data(key_id), bytes(aad));
            assert_eq!(*kek.open(key_id, &sealed).unwrap(), bytes(seed));
            assert_eq!(kek.seal(key_id, &bytes(seed)).unwrap().len(), sealed.len());
            rows += 1;
        }
        assert_eq!(rows, 4);
        assert_eq!(ANNOTATION, "local-kek.transit-kms");
    }

    #[test]
    fn everything_is_bound_together() {
        let payload = new_payload();
        let own = kek(&payload, "QUJD");
        let sealed = own.seal("id", b"seed").unwrap();
        assert!(own.open("another", &sealed).is_err(), "key_id");
        assert!(kek(&payload, "QUJE").open("id", &sealed).is_err(), "wrapped KEK");
        assert!(kek(&new_payload(), "QUJD").open("id", &sealed).is_err(), "KEK");
        for index in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[index] ^= 1;
            assert_eq!(own.open("id", &damaged).unwrap_err().kind, ErrorKind::BadCiphertext, "byte {index}");
            assert!(own.open("id", &sealed[..index]).is_err(), "{index} bytes");
        }
    }

    #[test]
    fn a_seed_is_no_kek() {
        for other in [&[7; 32][..], b"", MARK, &[&MARK[..], &[7; 33]].concat()] {
            assert!(!is_payload(other));
            let scope = kek(&new_payload(), "QUJD").scope();
            assert!(LocalKek::new(other, wrapped("QUJD"), scope).is_err());
        }
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", kek(&new_payload(), "QUJD")), "LocalKek(Ciphertext(v1, 13 bytes))");
    }
}
