//! The generated wire types of `proto/kms/v2/api.proto`.
//!
//! Their `Debug` shows sizes, never bytes: prost's own would print plaintext.

#![allow(missing_docs, unreachable_pub, unused_qualifications, reason = "generated code")]
#![allow(clippy::all, reason = "generated code")]

use std::fmt;

tonic::include_proto!("v2");

impl fmt::Debug for StatusRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusRequest").finish()
    }
}

impl fmt::Debug for StatusResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusResponse")
            .field("version", &self.version)
            .field("healthz", &self.healthz)
            .field("key_id", &self.key_id)
            .finish()
    }
}

impl fmt::Debug for EncryptRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncryptRequest")
            .field("plaintext_bytes", &self.plaintext.len())
            .field("uid", &self.uid)
            .finish()
    }
}

impl fmt::Debug for EncryptResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncryptResponse")
            .field("ciphertext_bytes", &self.ciphertext.len())
            .field("key_id", &self.key_id)
            .field("annotations", &self.annotations.len())
            .finish()
    }
}

impl fmt::Debug for DecryptRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecryptRequest")
            .field("ciphertext_bytes", &self.ciphertext.len())
            .field("uid", &self.uid)
            .field("key_id", &self.key_id)
            .field("annotations", &self.annotations.len())
            .finish()
    }
}

impl fmt::Debug for DecryptResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecryptResponse").field("plaintext_bytes", &self.plaintext.len()).finish()
    }
}
