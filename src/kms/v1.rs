//! The KMS v1 API, for those who move in: Version, Encrypt, Decrypt.
//!
//! kube-apiserver asks it for a DEK of each object that was written under KMS v1; with KMS v2 it
//! asks but once for many. It knows neither key_id nor uid, so every ciphertext is tried with the
//! configured keys in order.

use std::{borrow::Cow, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use kms_plugin::{
    grpc_timeout::call_timeout,
    v1beta1::{
        DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, VersionRequest, VersionResponse,
        key_management_service_server::{KeyManagementService, KeyManagementServiceServer},
    },
};
use rand::Rng;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use transit_client::transit::Call;

use super::requests::{Calls, Told};
use crate::{observe::metrics::Metrics, session::CallReporter};

/// The version of the API. kube-apiserver takes no other.
///
/// Source: `kmsapiVersion` in k8s.io/apiserver `pkg/storage/value/encrypt/envelope/grpc_service.go`.
const API_VERSION: &str = "v1beta1";
/// A longer request is not read at all; the largest is a Decrypt with 1 KiB of ciphertext.
const MAX_REQUEST_BYTES: usize = 4 * 1024;

/// Answers a kube-apiserver that has data of KMS v1.
#[derive(Clone)]
pub struct KmsV1 {
    calls: Calls,
}

impl KmsV1 {
    /// Creates a service that answers from the published state, and reports failed calls.
    #[must_use]
    pub fn new(reporter: CallReporter, metrics: Arc<Metrics>) -> Self {
        Self { calls: Calls::new(reporter, metrics) }
    }

    /// The tower service for the socket, with its limits set.
    #[must_use]
    pub fn into_server(self) -> KeyManagementServiceServer<Self> {
        KeyManagementServiceServer::new(self)
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_REQUEST_BYTES)
    }
}

#[tonic::async_trait]
impl KeyManagementService for KmsV1 {
    async fn version(&self, request: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        let version = async {
            let response = VersionResponse {
                version: API_VERSION.into(),
                runtime_name: env!("CARGO_PKG_NAME").into(),
                runtime_version: env!("CARGO_PKG_VERSION").into(),
            };
            Ok((response, Told { key_id_hash: String::new(), request_id: String::new() }))
        };
        self.calls.answer("v1_version", "", "", call_timeout(request.metadata()), version).await
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        let patience = call_timeout(request.metadata());
        let cipher = request.into_inner().cipher;
        let uid = uid();
        let call = Call { deadline: Instant::now() + patience, uid: &uid };
        let work = async {
            let opened = self.calls.decrypt("", &bare(&cipher), None, call).await?;
            let told = Told { key_id_hash: String::new(), request_id: opened.request_id };
            Ok((DecryptResponse { plain: Bytes::from_owner(opened.plaintext) }, told))
        };
        self.calls.answer("v1_decrypt", &uid, "", patience, work).await
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        let patience = call_timeout(request.metadata());
        let plain = request.into_inner().plain;
        let uid = uid();
        let call = Call { deadline: Instant::now() + patience, uid: &uid };
        let work = async {
            // KMS v1 has no annotations.
            let (encrypted, snapshot) = self.calls.encrypt(&plain, false, call).await?;
            let key_id_hash = snapshot.keyring.current().key_id_hash.clone();
            let told = Told { key_id_hash, request_id: encrypted.request_id };
            Ok((EncryptResponse { cipher: encrypted.ciphertext.into() }, told))
        };
        self.calls.answer("v1_encrypt", &uid, "", patience, work).await
    }
}

/// The Transit ciphertext in `cipher`, which mostly is nothing else.
///
/// Trousseau's v2 preview stored a line for each of its providers: the provider's name, `:-:`, and what it
/// answered in base64.
fn bare(cipher: &[u8]) -> Cow<'_, [u8]> {
    let wrapped = || {
        let lines = str::from_utf8(cipher).ok()?.lines();
        let encoded = lines.filter_map(|line| line.strip_prefix("vault:-:")).next()?;
        BASE64.decode(encoded.trim()).ok()
    };
    wrapped().map_or(Cow::Borrowed(cipher), Cow::Owned)
}

/// A name for a call that has none, so that our log and Vault's can be held together.
fn uid() -> String {
    format!("v1-{:016x}", rand::rng().next_u64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ciphertext_is_taken_out_of_what_trousseaus_v2_preview_stored() {
        let encoded = BASE64.encode("vault:v3:QUJD");
        let alone = format!("vault:-:{encoded}\n");
        let among_others = format!("debug:-:QUJD\nvault:-:{encoded}\nawskms:-:QUJD\n");
        for stored in [&alone, &among_others, "vault:v3:QUJD"] {
            assert_eq!(&*bare(stored.as_bytes()), b"vault:v3:QUJD", "{stored}");
        }
        for other in [&b"vault:-:!"[..], b"debug:-:QUJD\n", b"\xff\xfe", b""] {
            assert_eq!(&*bare(other), other);
        }
    }
}
