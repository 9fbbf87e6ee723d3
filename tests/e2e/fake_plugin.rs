//! Fake plugins that respond as Trousseau v1 and vault-kubernetes-kms do, from which users migrate.
//!
//! The real ones cannot be used in a test: Trousseau does not build any more, and vault-kubernetes-kms is in no package
//! registry. According to their sources, both store the ciphertext of Transit unchanged.

use std::{path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use kms_plugin::{v1beta1, v2 as proto};
use reqwest::{Certificate, Client};
use serde_json::{Value, json};
use testkit::{Bao, KEY, MOUNT, http::client};
use tokio::{net::UnixListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use transit_kms::{
    observe::metrics::Metrics,
    server::{
        accept::{self, GrpcService, ServeOptions},
        limits::Limits,
        peer::AllowedPeers,
    },
};

/// A plugin that listens on a socket. It stops when it is dropped.
pub(crate) struct FakePlugin {
    serving: JoinHandle<()>,
}

impl FakePlugin {
    /// Serves KMS v1 as Trousseau does: the ciphertext is Transit's.
    pub(crate) fn trousseau(bao: &Bao, socket: &Path) -> Self {
        let service =
            v1beta1::key_management_service_server::KeyManagementServiceServer::new(Forwarder::of(bao));
        Self::serve(service, socket)
    }

    /// Serves KMS v2 as vault-kubernetes-kms does: the ciphertext is Transit's, and the key_id is the key version.
    pub(crate) fn vault_kubernetes_kms(bao: &Bao, socket: &Path) -> Self {
        let service =
            proto::key_management_service_server::KeyManagementServiceServer::new(Forwarder::of(bao));
        Self::serve(service, socket)
    }

    fn serve<S: GrpcService>(service: S, socket: &Path) -> Self {
        let listener = match socket.to_str().and_then(|text| text.strip_prefix('@')) {
            None => std::os::unix::net::UnixListener::bind(socket).unwrap(),
            Some(name) => {
                use std::os::linux::net::SocketAddrExt;
                let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
                std::os::unix::net::UnixListener::bind_addr(&address).unwrap()
            }
        };
        listener.set_nonblocking(true).unwrap();
        let listener = UnixListener::from_std(listener).unwrap();
        let options = ServeOptions {
            grace: std::time::Duration::ZERO,
            limits: Limits::default(),
            metrics: Arc::new(Metrics::new().unwrap()),
            peers: AllowedPeers::new([]),
        };
        let serving = async move {
            accept::serve(listener, service, options, CancellationToken::new()).await;
        };
        Self { serving: tokio::spawn(serving) }
    }
}

impl Drop for FakePlugin {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Forwards each call to Transit without any change.
struct Forwarder {
    address: String,
    client: Client,
    token: String,
}

impl Forwarder {
    fn of(bao: &Bao) -> Self {
        let ca = Certificate::from_pem(&std::fs::read(bao.ca_file()).unwrap()).unwrap();
        let client = client().tls_certs_only([ca]).build().unwrap();
        Self { address: bao.address(), client, token: bao.root_token().to_owned() }
    }

    async fn request(&self, operation: &str, request: Value) -> Result<Value, Status> {
        let url = format!("{}/v1/{MOUNT}/{operation}/{KEY}", self.address);
        let request = self.client.post(url).header("X-Vault-Token", &self.token).body(request.to_string());
        let failed = |error: reqwest::Error| Status::unavailable(error.to_string());
        let answer = request.send().await.map_err(failed)?.error_for_status().map_err(failed)?;
        let answer = answer.bytes().await.map_err(failed)?;
        Ok(serde_json::from_slice::<Value>(&answer).unwrap()["data"].take())
    }

    async fn encrypt(&self, plaintext: &[u8]) -> Result<Vec<u8>, Status> {
        let answer = self.request("encrypt", json!({"plaintext": BASE64.encode(plaintext)})).await?;
        Ok(answer["ciphertext"].as_str().unwrap().as_bytes().to_vec())
    }

    async fn decrypt(&self, ciphertext: &[u8]) -> Result<Vec<u8>, Status> {
        let ciphertext = std::str::from_utf8(ciphertext).unwrap();
        let answer = self.request("decrypt", json!({"ciphertext": ciphertext})).await?;
        Ok(BASE64.decode(answer["plaintext"].as_str().unwrap()).unwrap())
    }
}

#[tonic::async_trait]
impl v1beta1::key_management_service_server::KeyManagementService for Forwarder {
    async fn version(
        &self,
        _: Request<v1beta1::VersionRequest>,
    ) -> Result<Response<v1beta1::VersionResponse>, Status> {
        Ok(Response::new(v1beta1::VersionResponse {
            version: "v1beta1".into(),
            runtime_name: "vault".into(),
            runtime_version: "1".into(),
        }))
    }

    async fn decrypt(
        &self,
        request: Request<v1beta1::DecryptRequest>,
    ) -> Result<Response<v1beta1::DecryptResponse>, Status> {
        let plain = Self::decrypt(self, &request.into_inner().cipher).await?.into();
        Ok(Response::new(v1beta1::DecryptResponse { plain }))
    }

    async fn encrypt(
        &self,
        request: Request<v1beta1::EncryptRequest>,
    ) -> Result<Response<v1beta1::EncryptResponse>, Status> {
        let cipher = Self::encrypt(self, &request.into_inner().plain).await?.into();
        Ok(Response::new(v1beta1::EncryptResponse { cipher }))
    }
}

#[tonic::async_trait]
impl proto::key_management_service_server::KeyManagementService for Forwarder {
    async fn status(
        &self,
        _: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusResponse>, Status> {
        Ok(Response::new(proto::StatusResponse {
            version: "v2".into(),
            healthz: "ok".into(),
            key_id: "1".into(),
        }))
    }

    async fn decrypt(
        &self,
        request: Request<proto::DecryptRequest>,
    ) -> Result<Response<proto::DecryptResponse>, Status> {
        let plaintext = Self::decrypt(self, &request.into_inner().ciphertext).await?.into();
        Ok(Response::new(proto::DecryptResponse { plaintext }))
    }

    async fn encrypt(
        &self,
        request: Request<proto::EncryptRequest>,
    ) -> Result<Response<proto::EncryptResponse>, Status> {
        let ciphertext = Self::encrypt(self, &request.into_inner().plaintext).await?.into();
        Ok(Response::new(proto::EncryptResponse {
            ciphertext,
            key_id: "1".into(),
            annotations: std::collections::HashMap::new(),
        }))
    }
}
