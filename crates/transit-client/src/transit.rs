//! What callers need of a Transit engine.

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

/// The identity and the deadline of one call.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The call returns at this time at the latest, retries and waiting included.
    pub deadline: Instant,
    /// Names the call in logs and in Vault's audit log. A value that cannot be sent in a header is left out
    /// there.
    pub uid: &'a str,
}

/// A node of Vault, as a session knows it. The id is unique in the session's pool, and is not reused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NodeId(pub usize);

/// What Transit reports about a key.
///
/// Source: <https://developer.hashicorp.com/vault/api-docs/secret/transit#read-key>
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyDescription {
    /// Whether keys of this type decrypt at all.
    pub decrypts: bool,
    /// Whether the key is derived: every call would need a context.
    pub derived: bool,
    /// The type, such as `aes256-gcm96`.
    pub kind: String,
    /// The newest version.
    pub latest: KeyVersion,
    /// Decrypt refuses versions below this one. Transit counts versions from 1, so 0 and 1 mean the same.
    pub min_decryption: u32,
    /// The node that answered.
    pub reported_by: NodeId,
    /// The key is marked as deleted: it encrypts and decrypts nothing until it is restored.
    pub soft_deleted: bool,
    /// The creation time of each version from `min_decryption` up, in Unix seconds. It is empty for types of
    /// keys whose versions have no creation time.
    pub versions: BTreeMap<KeyVersion, i64>,
}

/// What Transit encrypted.
#[derive(Debug)]
pub struct Encrypted {
    /// The ciphertext. Its version is the one that was asked for.
    pub ciphertext: Ciphertext,
    /// `request.id` of the entry in Vault's audit log; `None` if Vault has not sent it.
    pub request_id: Option<String>,
}

/// What Transit decrypted.
#[derive(Clone)]
pub struct Decrypted {
    /// The plaintext. It is wiped on drop.
    pub plaintext: Zeroizing<Vec<u8>>,
    /// `request.id` of the entry in Vault's audit log; `None` if Vault has not sent it.
    pub request_id: Option<String>,
}

impl fmt::Debug for Decrypted {
    /// Shows the length of the plaintext only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decrypted")
            .field("plaintext_bytes", &self.plaintext.len())
            .field("request_id", &self.request_id)
            .finish()
    }
}

/// A session with a Transit engine: one token, and the keys that it is for.
///
/// Callers may rely on this:
///
/// - Every method returns by the deadline of its [`Call`]. Retries, failover to other nodes and waiting for a
///   node all end before it.
/// - A method may send its request more than once. That is safe: Encrypt, Decrypt and reading a key change
///   nothing in Vault.
/// - A future may be dropped at any time. Its requests are cancelled.
/// - An error of one call says nothing about the next one, except for [`ErrorKind::TokenInvalid`]: then only
///   another session helps.
/// - Every error names its cause and the next step, and contains no secret. An error with
///   [`ErrorKind::Denied`], [`ErrorKind::KeyNotFound`] or [`ErrorKind::TokenInvalid`] comes from Vault itself: an
///   answer of a proxy or of another cluster never becomes one of these.
///
/// [`ErrorKind::Denied`]: crate::ErrorKind::Denied
/// [`ErrorKind::KeyNotFound`]: crate::ErrorKind::KeyNotFound
/// [`ErrorKind::TokenInvalid`]: crate::ErrorKind::TokenInvalid
#[async_trait]
pub trait Transit: Send + Sync + 'static {
    /// Decrypts `ciphertext` with the version of `key` that it names.
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind). [`BadCiphertext`](crate::ErrorKind::BadCiphertext) if another key
    /// made the ciphertext.
    async fn decrypt(
        &self,
        key: &KeyRef,
        ciphertext: &Ciphertext,
        call: Call<'_>,
    ) -> Result<Decrypted, TransitError>;

    /// Decrypts several ciphertexts in one request. Returns one result for each ciphertext, in the same
    /// order.
    ///
    /// # Errors
    /// An error of the request as a whole. It is [`BatchTooLarge`](crate::ErrorKind::BatchTooLarge) if a
    /// smaller batch may succeed.
    async fn decrypt_batch(
        &self,
        key: &KeyRef,
        ciphertexts: &[&Ciphertext],
        call: Call<'_>,
    ) -> Result<Vec<Result<Decrypted, TransitError>>, TransitError>;

    /// Encrypts `plaintext` with exactly `version` of `key`. An answer with another version is an error.
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind). [`VersionTooOld`](crate::ErrorKind::VersionTooOld) or
    /// [`VersionUnavailable`](crate::ErrorKind::VersionUnavailable) if the version cannot be used.
    async fn encrypt(
        &self,
        key: &KeyRef,
        version: KeyVersion,
        plaintext: &[u8],
        call: Call<'_>,
    ) -> Result<Encrypted, TransitError>;

    /// Whether `node` is the active node of its cluster. If another node is, later calls may ask that one
    /// first, so that reading a key again reaches the active node.
    ///
    /// # Errors
    /// If no node says whether it is active or a standby.
    async fn is_active(&self, node: NodeId, call: Call<'_>) -> Result<bool, TransitError>;

    /// The keys of the session: the first one encrypts, all decrypt.
    fn keys(&self) -> &KeyNames;

    /// Describes a key. A standby node may answer, and lag behind: see [`Self::is_active`].
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind). [`KeyNotFound`](crate::ErrorKind::KeyNotFound) only after a second
    /// answer confirmed it.
    async fn read_key(&self, key: &KeyRef, call: Call<'_>) -> Result<KeyDescription, TransitError>;
}
