//! KMS v1: the generated types of `proto/kms/v1beta1/api.proto`.
//!
//! `Debug` shows the sizes of byte fields, never their contents.

#![allow(missing_docs, unreachable_pub, unused_qualifications, reason = "generated code")]
#![allow(clippy::all, reason = "generated code")]

use std::fmt;

tonic::include_proto!("v1beta1");

/// The only version that kube-apiserver accepts.
///
/// Source: `kmsapiVersion` in k8s.io/apiserver `pkg/storage/value/encrypt/envelope/grpc_service.go`.
pub const API_VERSION: &str = "v1beta1";

impl fmt::Debug for VersionRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VersionRequest").field("version", &self.version).finish()
    }
}

impl fmt::Debug for VersionResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VersionResponse")
            .field("version", &self.version)
            .field("runtime_name", &self.runtime_name)
            .field("runtime_version", &self.runtime_version)
            .finish()
    }
}

impl fmt::Debug for DecryptRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecryptRequest").field("cipher_bytes", &self.cipher.len()).finish()
    }
}

impl fmt::Debug for DecryptResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecryptResponse").field("plain_bytes", &self.plain.len()).finish()
    }
}

impl fmt::Debug for EncryptRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncryptRequest").field("plain_bytes", &self.plain.len()).finish()
    }
}

impl fmt::Debug for EncryptResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncryptResponse").field("cipher_bytes", &self.cipher.len()).finish()
    }
}
