//! Payloads that are sealed for one node: encrypted to the node's own RSA key, so that only this node can read them.
//!
//! The node makes a [`NodeKey`] and gives its public key away. A sender seals a payload with [`seal`], and any courier
//! carries it to the node, which opens it with [`NodeKey::open`].
//!
//! The format is CMS AuthEnvelopedData ([RFC 5083](https://www.rfc-editor.org/rfc/rfc5083)) in PEM, which `openssl
//! cms` of OpenSSL 3.0 and newer reads and writes. Of the many forms of CMS, exactly one is accepted:
//!
//! - one recipient, named by its subject key identifier: the SHA-1 hash of its public key (the first method of
//!   [RFC 5280, 4.2.1.2](https://www.rfc-editor.org/rfc/rfc5280#section-4.2.1.2)). It is only a name;
//! - RSA-OAEP with SHA-256, also in MGF1, encrypts the content key
//!   ([RFC 4055](https://www.rfc-editor.org/rfc/rfc4055));
//! - AES-256-GCM with a tag of 16 bytes encrypts the content ([RFC 5084](https://www.rfc-editor.org/rfc/rfc5084));
//! - DER, and PEM with lines of 64 characters.
//!
//! AES-GCM authenticates the content only, and CMS leaves the name of the recipient and the algorithms
//! unauthenticated. As all of them have one permitted value, every change of a payload is detected.

mod der;
mod envelope;
mod key;
mod pem;
#[cfg(test)]
mod tests;

pub use self::key::{NodeKey, NodePublicKey};

/// The longest content of a payload, in bytes.
pub const MAX_CONTENT_BYTES: usize = 4096;
/// The longest payload that [`NodeKey::open`] reads, in bytes. It holds the longest content under the largest key.
pub const MAX_PAYLOAD_BYTES: usize = 8192;

/// Why a payload cannot be sealed or opened. No variant contains a part of a content or of a private key.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SealedPayloadError {
    /// The content has no bytes, or more than [`MAX_CONTENT_BYTES`].
    #[error("the content to seal has {found} bytes: seal between 1 and {MAX_CONTENT_BYTES} bytes")]
    ContentLength {
        /// The length of the content.
        found: usize,
    },
    /// It is a sealed payload for this node, but not as it was made.
    #[error(
        "the sealed payload is damaged: it was changed or cut after it was sealed. Deliver it again. If the new copy \
         has the same error, seal a new payload"
    )]
    Damaged,
    /// The cryptographic library fails, for example because the system has no random numbers.
    #[error("the cryptographic library cannot {0}: try again")]
    Library(&'static str),
    /// It is not a payload of this format.
    #[error(
        "this is not a sealed payload: {0}. Seal it with `transit-kmsctl seal`, or with openssl as \
         docs/auth/trusted-introduction.md shows"
    )]
    NotSealed(&'static str),
    /// It is sealed for another key.
    #[error(
        "the payload is sealed for the key {found}, and the key of this node is {own}: seal it again, for the public \
         key that `transit-kms keygen` prints on this node"
    )]
    OtherKey {
        /// The identifier of the key that can open the payload.
        found: String,
        /// The identifier of this node's key.
        own: String,
    },
    /// The file is not a usable RSA key.
    #[error("the key cannot be used: {0}")]
    UnusableKey(&'static str),
}

/// Seals `content` for the holder of a key. `key` is a public key (SPKI) or a certificate, in PEM. The other fields of
/// a certificate, such as its validity, are not used.
///
/// # Errors
/// [`SealedPayloadError::UnusableKey`] and [`SealedPayloadError::ContentLength`].
pub fn seal(key: &[u8], content: &[u8]) -> Result<String, SealedPayloadError> {
    NodePublicKey::from_pem(key)?.seal(content)
}
