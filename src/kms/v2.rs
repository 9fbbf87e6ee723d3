//! The KMS v2 API: Status, Encrypt, Decrypt.

use std::sync::Arc;

use bytes::Bytes;
use kms_plugin::{
    grpc_timeout::call_timeout,
    v2::{
        DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
        key_management_service_server::{KeyManagementService, KeyManagementServiceServer},
    },
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use transit_client::{key_id::key_id_hash, transit::Call};

use super::requests::{Calls, Told, at_most};
use crate::{
    observe::metrics::Metrics,
    session::{CallReporter, Snapshot, health::StatusAnswer, local_kek::ANNOTATION},
};

/// The version of the API, as Status answers it; it must never change while we run.
const API_VERSION: &str = "v2";
/// A longer request is not read at all. kube-apiserver's largest is a Decrypt with
/// 1 KiB of ciphertext, 1 KiB of key_id and 32 KiB of annotations.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// Source: `keyIDMaxSize` in k8s.io/apiserver
/// `pkg/storage/value/encrypt/envelope/kmsv2/envelope.go`.
const MAX_KEY_ID_BYTES: usize = 1024;
/// Source: `annotationsMaxSize`, in the same file.
const MAX_ANNOTATIONS_BYTES: usize = 32 * 1024;

/// Answers kube-apiserver.
#[derive(Clone)]
pub struct KmsV2 {
    calls: Calls,
}

impl KmsV2 {
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

    async fn encrypt_within(
        &self,
        request: &EncryptRequest,
        call: Call<'_>,
    ) -> Result<(EncryptResponse, Told), Status> {
        let (encrypted, snapshot) = self.calls.encrypt(&request.plaintext, true, call).await?;
        let current = snapshot.keyring.current();
        // What leaves is named after what was asked for; the session has checked the two.
        let told = Told { key_id_hash: current.key_id_hash.clone(), request_id: encrypted.request_id };
        let annotations = encrypted.wrapped_kek.map(|wrapped| (ANNOTATION.to_owned(), wrapped.into()));
        let response = EncryptResponse {
            annotations: annotations.into_iter().collect(),
            ciphertext: encrypted.ciphertext.into(),
            key_id: current.key_id.clone(),
        };
        Ok((response, told))
    }

    async fn decrypt_within(
        &self,
        request: &DecryptRequest,
        call: Call<'_>,
    ) -> Result<(DecryptResponse, Told), Status> {
        at_most("key_id", request.key_id.len(), MAX_KEY_ID_BYTES)?;
        let annotations = request.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        at_most("annotations", annotations, MAX_ANNOTATIONS_BYTES)?;
        let wrapped_kek = request.annotations.get(ANNOTATION).map(|wrapped| &**wrapped);
        let opened = self.calls.decrypt(&request.key_id, &request.ciphertext, wrapped_kek, call).await?;
        let told = Told { key_id_hash: key_id_hash(&request.key_id), request_id: opened.request_id };
        // `from_owner` keeps the wiping buffer behind the bytes until they are sent.
        Ok((DecryptResponse { plaintext: Bytes::from_owner(opened.plaintext) }, told))
    }
}

#[tonic::async_trait]
impl KeyManagementService for KmsV2 {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let status = async {
            let (answer, snapshot) = self.calls.store.status();
            let told = |snapshot: &Snapshot| Told {
                key_id_hash: snapshot.keyring.current().key_id_hash.clone(),
                request_id: String::new(),
            };
            match (answer, snapshot) {
                (StatusAnswer::KeyLost(reason), _) => Err(Status::failed_precondition(reason)),
                (StatusAnswer::Unknown(reason), _) => Err(Status::unavailable(reason)),
                (answer, Some(snapshot)) => Ok((
                    StatusResponse {
                        version: API_VERSION.into(),
                        healthz: answer.reason().unwrap_or("ok").to_owned(),
                        key_id: snapshot.keyring.current().key_id.clone(),
                    },
                    told(&snapshot),
                )),
                (_, None) => Err(Status::unavailable("nothing is known yet")),
            }
        };
        self.calls.answer("status", "", "", call_timeout(request.metadata()), status).await
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        let patience = call_timeout(request.metadata());
        let request = request.into_inner();
        let call = Call { deadline: Instant::now() + patience, uid: &request.uid };
        self.calls
            .answer("decrypt", &request.uid, &request.key_id, patience, self.decrypt_within(&request, call))
            .await
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        let patience = call_timeout(request.metadata());
        let request = request.into_inner();
        let call = Call { deadline: Instant::now() + patience, uid: &request.uid };
        self.calls.answer("encrypt", &request.uid, "", patience, self.encrypt_within(&request, call)).await
    }
}
