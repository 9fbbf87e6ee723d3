//! The KMS v1 API, for a migration to KMS v2: Version, Encrypt, Decrypt.
//!
//! kube-apiserver requests the DEK of each object that was written with KMS v1. With KMS v2, one request
//! covers many objects. KMS v1 has no key_id and no uid, so each ciphertext is tried with the configured keys
//! in order.

use std::{borrow::Cow, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use kms_plugin::{
    grpc_timeout::call_timeout,
    v1beta1::{
        API_VERSION, DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, VersionRequest,
        VersionResponse,
        key_management_service_server::{KeyManagementService, KeyManagementServiceServer},
    },
};
use rand::Rng;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use transit_client::transit::Call;

use super::{
    call_log::{AnswerIds, Method, RequestIds},
    requests::Requests,
};
use crate::{observe::metrics::Metrics, session::CallReporter};

/// A longer message is refused before it is decoded. The longest is a Decrypt with 1 KiB of ciphertext.
const MAX_MESSAGE_BYTES: usize = 4 * 1024;

/// The service for a kube-apiserver with data of KMS v1.
#[derive(Clone)]
pub struct KmsV1 {
    requests: Requests,
}

impl KmsV1 {
    /// Creates a service that answers from the published state, and reports failed calls.
    #[must_use]
    pub fn new(reporter: CallReporter, metrics: Arc<Metrics>) -> Self {
        Self { requests: Requests::new(reporter, metrics) }
    }

    /// Returns the tower service for the socket, with limits for the size of messages.
    #[must_use]
    pub fn into_server(self) -> KeyManagementServiceServer<Self> {
        KeyManagementServiceServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
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
            Ok((response, AnswerIds::default()))
        };
        let timeout = call_timeout(request.metadata());
        self.requests.answer(Method::V1Version, RequestIds::default(), timeout, version).await
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        let timeout = call_timeout(request.metadata());
        let cipher = request.into_inner().cipher;
        let uid = new_uid();
        let ids = RequestIds { key_id: None, uid: Some(&uid) };
        let call = Call { deadline: Instant::now() + timeout, uid: &uid };
        let work = async {
            let decrypted = self.requests.decrypt("", &transit_ciphertext(&cipher), None, call).await?;
            let ids = AnswerIds { key_id_hash: None, vault_request_id: decrypted.vault_request_id };
            Ok((DecryptResponse { plain: Bytes::from_owner(decrypted.plaintext) }, ids))
        };
        self.requests.answer(Method::V1Decrypt, ids, timeout, work).await
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        let timeout = call_timeout(request.metadata());
        let plain = request.into_inner().plain;
        let uid = new_uid();
        let ids = RequestIds { key_id: None, uid: Some(&uid) };
        let call = Call { deadline: Instant::now() + timeout, uid: &uid };
        let work = async {
            // KMS v1 stores none.
            let annotations = false;
            let (encrypted, snapshot) = self.requests.encrypt(&plain, annotations, call).await?;
            let key_id_hash = Some(snapshot.keyring.current().key_id_hash.clone());
            let ids = AnswerIds { key_id_hash, vault_request_id: encrypted.vault_request_id };
            Ok((EncryptResponse { cipher: encrypted.ciphertext.into() }, ids))
        };
        self.requests.answer(Method::V1Encrypt, ids, timeout, work).await
    }
}

/// Returns the Transit ciphertext in `cipher`. Usually, that is all of `cipher`.
///
/// Trousseau's v2 preview stored a line for each of its providers: the name of the provider, `:-:`, and the
/// answer of the provider in base64.
fn transit_ciphertext(cipher: &[u8]) -> Cow<'_, [u8]> {
    let wrapped = || {
        let lines = str::from_utf8(cipher).ok()?.lines();
        let encoded = lines.filter_map(|line| line.strip_prefix("vault:-:")).next()?;
        BASE64.decode(encoded.trim()).ok()
    };
    wrapped().map_or(Cow::Borrowed(cipher), Cow::Owned)
}

/// Creates a uid for a call that has none, so that its entries in the logs of transit-kms and Vault can be matched.
fn new_uid() -> String {
    format!("v1-{:016x}", rand::rng().next_u64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ciphertext_of_trousseaus_v2_preview_is_found() {
        let encoded = BASE64.encode("vault:v3:QUJD");
        let alone = format!("vault:-:{encoded}\n");
        let among_others = format!("debug:-:QUJD\nvault:-:{encoded}\nawskms:-:QUJD\n");
        for stored in [&alone, &among_others, "vault:v3:QUJD"] {
            assert_eq!(&*transit_ciphertext(stored.as_bytes()), b"vault:v3:QUJD", "{stored}");
        }
        for other in [&b"vault:-:!"[..], b"debug:-:QUJD\n", b"\xff\xfe", b""] {
            assert_eq!(&*transit_ciphertext(other), other);
        }
    }
}
