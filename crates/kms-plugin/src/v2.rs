//! KMS v2: the generated types of `proto/kms/v2/api.proto`, and the limits of kube-apiserver.
//!
//! `Debug` shows the sizes of byte fields, never their contents: the `Debug` that prost derives would print
//! plaintext.

#![allow(missing_docs, unreachable_pub, unused_qualifications, reason = "generated code")]
#![allow(clippy::all, reason = "generated code")]

use std::fmt;

tonic::include_proto!("v2");

/// The version in the answer of Status. kube-apiserver also accepts `v2beta1`. A plugin must not change its
/// version while it runs.
///
/// Source: `isKMSv2ProviderHealthyAndMaybeRotateDEK` in k8s.io/apiserver
/// `pkg/server/options/encryptionconfig/config.go`.
pub const API_VERSION: &str = "v2";
/// The value of `healthz` in the answer of Status if the plugin is healthy. Any other value is the reason why
/// it is not.
///
/// Source: `StatusResponse` in k8s.io/kms `apis/v2/api.proto`.
pub const HEALTHZ_OK: &str = "ok";
/// kube-apiserver rejects a longer key_id, and an empty one.
///
/// Source: `KeyIDMaxSize` in k8s.io/apiserver `pkg/storage/value/encrypt/envelope/kmsv2/envelope.go`.
pub const MAX_KEY_ID_BYTES: usize = 1024;
/// kube-apiserver rejects annotations whose names and values are longer than this in total.
///
/// Source: `annotationsMaxSize`, in the same file.
pub const MAX_ANNOTATIONS_BYTES: usize = 32 * 1024;

/// Why kube-apiserver does not consider a plugin healthy.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum StatusError {
    /// The key_id is empty or too long.
    #[error("the key_id has {0} bytes, not 1 to {MAX_KEY_ID_BYTES}")]
    KeyIdSize(usize),
    /// The plugin reports this reason.
    #[error("{0}")]
    Unhealthy(String),
    /// The plugin answers with another version of the API.
    #[error("the version is \"{0}\", not \"{API_VERSION}\"")]
    Version(String),
}

impl StatusResponse {
    /// Checks what kube-apiserver requires of an answer.
    ///
    /// # Errors
    /// The first requirement that the answer does not meet.
    pub fn check(&self) -> Result<(), StatusError> {
        if self.healthz != HEALTHZ_OK {
            return Err(StatusError::Unhealthy(self.healthz.clone()));
        }
        if self.version != API_VERSION {
            return Err(StatusError::Version(self.version.clone()));
        }
        if !(1..=MAX_KEY_ID_BYTES).contains(&self.key_id.len()) {
            return Err(StatusError::KeyIdSize(self.key_id.len()));
        }
        Ok(())
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn status(version: &str, healthz: &str, key_id_bytes: usize) -> StatusResponse {
        StatusResponse { version: version.into(), healthz: healthz.into(), key_id: "k".repeat(key_id_bytes) }
    }

    #[test]
    fn a_status_is_healthy_if_it_meets_the_requirements_of_kube_apiserver() {
        assert_eq!(status("v2", "ok", 1).check(), Ok(()));
        assert_eq!(status("v2", "ok", 1024).check(), Ok(()));
        for (status, message) in [
            (status("v2", "no token", 1), "no token"),
            (status("v1", "ok", 1), "the version is \"v1\", not \"v2\""),
            (status("v2", "ok", 0), "the key_id has 0 bytes, not 1 to 1024"),
            (status("v2", "ok", 1025), "the key_id has 1025 bytes, not 1 to 1024"),
        ] {
            assert_eq!(status.check().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn debug_prints_no_plaintext() {
        let request = EncryptRequest { plaintext: "secret".into(), uid: "uid".into() };
        let response = DecryptResponse { plaintext: "secret".into() };
        let printed = format!("{request:?} {response:?}");
        assert!(printed.contains("plaintext_bytes: 6") && !printed.contains("secret"), "{printed}");
    }
}
