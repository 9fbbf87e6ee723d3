//! What the KMS rules need of a Transit engine, and how it can fail them.

use std::{collections::BTreeMap, fmt};

use async_trait::async_trait;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::{
    ciphertext::Ciphertext,
    error::TransitError,
    key::{KeyNames, KeyRef},
    key_id::KeyVersion,
};

/// One call's identity and the time by which its answer must be there.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Everything below gives up at this moment.
    pub deadline: Instant,
    /// Names the call in our log and in Vault's audit log.
    pub uid: &'a str,
}

/// A node of Vault, as a session knows it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NodeId(pub usize);

/// What Transit tells of a key.
///
/// Source: <https://developer.hashicorp.com/vault/api-docs/secret/transit#read-key>
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyDescription {
    /// Whether keys of this type decrypt at all.
    pub decrypts: bool,
    /// The node that told it.
    pub reported_by: NodeId,
    /// Derived keys need a context with every call.
    pub derived: bool,
    /// The newest version.
    pub latest: KeyVersion,
    /// Versions below this one are refused by Decrypt.
    pub min_decryption: u32,
    /// Marked as deleted, and refusing work, but restorable.
    pub soft_deleted: bool,
    /// Such as `aes256-gcm96`.
    pub kind: String,
    /// Unix time in seconds at which each version was made, from `min_decryption` up.
    pub versions: BTreeMap<KeyVersion, i64>,
}

/// Bytes that Transit has wrapped.
#[derive(Debug)]
pub struct Encrypted {
    /// Its version is the one that was asked for.
    pub ciphertext: Ciphertext,
    /// The `request.id` of the entry in Vault's audit log.
    pub request_id: String,
}

/// Bytes that Transit has unwrapped.
#[derive(Clone)]
pub struct Decrypted {
    /// Wiped when dropped.
    pub plaintext: Zeroizing<Vec<u8>>,
    /// The `request.id` of the entry in Vault's audit log.
    pub request_id: String,
}

impl fmt::Debug for Decrypted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decrypted")
            .field("plaintext_bytes", &self.plaintext.len())
            .field("request_id", &self.request_id)
            .finish()
    }
}

/// A session with a Transit engine: one token.
#[async_trait]
pub trait Transit: Send + Sync + 'static {
    /// Unwraps with whichever version the ciphertext names.
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind).
    async fn decrypt(
        &self,
        key: &KeyRef,
        ciphertext: &Ciphertext,
        call: Call<'_>,
    ) -> Result<Decrypted, TransitError>;

    /// Unwraps many in one call: an answer for each, in their order.
    ///
    /// # Errors
    /// What failed the call as a whole; [`ErrorKind::BatchTooLarge`](crate::ErrorKind::BatchTooLarge) if it would not have with fewer.
    async fn decrypt_batch(
        &self,
        key: &KeyRef,
        ciphertexts: &[&Ciphertext],
        call: Call<'_>,
    ) -> Result<Vec<Result<Decrypted, TransitError>>, TransitError>;

    /// Wraps with exactly `version`, and has checked that the answer did.
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind).
    async fn encrypt(
        &self,
        key: &KeyRef,
        version: KeyVersion,
        plaintext: &[u8],
        call: Call<'_>,
    ) -> Result<Encrypted, TransitError>;

    /// Whether `node` is the active one of its cluster. If another one is, that one is asked first from
    /// now on.
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind).
    async fn is_active(&self, node: NodeId, call: Call<'_>) -> Result<bool, TransitError>;

    /// The keys that this session was configured with: the first encrypts, all decrypt.
    fn keys(&self) -> &KeyNames;

    /// Describes a key.
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind).
    async fn read_key(&self, key: &KeyRef, call: Call<'_>) -> Result<KeyDescription, TransitError>;
}
