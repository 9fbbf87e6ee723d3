//! The KMS v2 API: Status, Encrypt, Decrypt.

use std::sync::Arc;

use bytes::Bytes;
use kms_plugin::{
    grpc_timeout::call_timeout,
    v2::{
        API_VERSION, DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, HEALTHZ_OK,
        MAX_ANNOTATIONS_BYTES, MAX_KEY_ID_BYTES, StatusRequest, StatusResponse,
        key_management_service_server::{KeyManagementService, KeyManagementServiceServer},
    },
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use transit_client::{key_id::key_id_hash, transit::Call};

use super::{
    call_log::{AnswerIds, Method, RequestIds},
    requests::{Requests, check_size},
};
use crate::{
    observe::metrics::Metrics,
    session::{CallReporter, health::StatusAnswer, local_kek::ANNOTATION},
};

/// A longer message is refused before it is decoded. The longest of kube-apiserver is a Decrypt with 1 KiB of
/// ciphertext, 1 KiB of key_id and 32 KiB of annotations.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// The service for kube-apiserver.
#[derive(Clone)]
pub struct KmsV2 {
    requests: Requests,
}

impl KmsV2 {
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

    async fn encrypt_request(
        &self,
        request: &EncryptRequest,
        call: Call<'_>,
    ) -> Result<(EncryptResponse, AnswerIds), Status> {
        let annotations = true;
        let (encrypted, snapshot) = self.requests.encrypt(&request.plaintext, annotations, call).await?;
        // The snapshot is the one that encrypted, so this is the key_id of the version in the ciphertext. The
        // session has checked the version of the ciphertext.
        let current = snapshot.keyring.current();
        let ids = AnswerIds {
            key_id_hash: Some(current.key_id_hash.clone()),
            vault_request_id: encrypted.vault_request_id,
        };
        let annotations = encrypted.wrapped_kek.map(|wrapped| (ANNOTATION.to_owned(), wrapped.into()));
        let response = EncryptResponse {
            annotations: annotations.into_iter().collect(),
            ciphertext: encrypted.ciphertext.into(),
            key_id: current.key_id.clone(),
        };
        Ok((response, ids))
    }

    async fn decrypt_request(
        &self,
        request: &DecryptRequest,
        call: Call<'_>,
    ) -> Result<(DecryptResponse, AnswerIds), Status> {
        check_size("key_id", request.key_id.len(), MAX_KEY_ID_BYTES)?;
        let annotations_bytes = request.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        check_size("annotations", annotations_bytes, MAX_ANNOTATIONS_BYTES)?;
        let wrapped_kek = request.annotations.get(ANNOTATION).map(|wrapped| &**wrapped);
        let decrypted =
            self.requests.decrypt(&request.key_id, &request.ciphertext, wrapped_kek, call).await?;
        let ids = AnswerIds {
            key_id_hash: Some(key_id_hash(&request.key_id)),
            vault_request_id: decrypted.vault_request_id,
        };
        // `from_owner` keeps the plaintext in its buffer, which is wiped once the answer has been sent.
        Ok((DecryptResponse { plaintext: Bytes::from_owner(decrypted.plaintext) }, ids))
    }
}

#[tonic::async_trait]
impl KeyManagementService for KmsV2 {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let status = async {
            let (answer, snapshot) = self.requests.store.status();
            match (answer, snapshot) {
                (StatusAnswer::KeyLost(reason), _) => Err(Status::failed_precondition(reason)),
                (StatusAnswer::Unknown(reason), _) => Err(Status::unavailable(reason)),
                (answer, Some(snapshot)) => {
                    let current = snapshot.keyring.current();
                    let response = StatusResponse {
                        version: API_VERSION.into(),
                        healthz: answer.reason().unwrap_or(HEALTHZ_OK).to_owned(),
                        key_id: current.key_id.clone(),
                    };
                    let key_id_hash = Some(current.key_id_hash.clone());
                    Ok((response, AnswerIds { key_id_hash, vault_request_id: None }))
                }
                (_, None) => Err(Status::unavailable("nothing is known yet")),
            }
        };
        let timeout = call_timeout(request.metadata());
        self.requests.answer(Method::Status, RequestIds::default(), timeout, status).await
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        let timeout = call_timeout(request.metadata());
        let request = request.into_inner();
        let call = Call { deadline: Instant::now() + timeout, uid: &request.uid };
        let ids = RequestIds { key_id: Some(&request.key_id), uid: Some(&request.uid) };
        self.requests.answer(Method::Decrypt, ids, timeout, self.decrypt_request(&request, call)).await
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        let timeout = call_timeout(request.metadata());
        let request = request.into_inner();
        let call = Call { deadline: Instant::now() + timeout, uid: &request.uid };
        let ids = RequestIds { key_id: None, uid: Some(&request.uid) };
        self.requests.answer(Method::Encrypt, ids, timeout, self.encrypt_request(&request, call)).await
    }
}
