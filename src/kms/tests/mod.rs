//! The rules of the KMS API, end to end from the gRPC request to a Transit engine in memory. The rules that need no
//! gRPC are tested in `session::tests`.

mod decrypt;
mod interleaving;
mod limits;
mod local_kek;
mod rotation;
mod status;
mod tokens;
mod v1;

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use kms_plugin::v2::{
    DecryptRequest, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
    key_management_service_server::KeyManagementService,
};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, advance},
};
use tonic::{Code, Request, Status};
use transit_client::{
    ErrorKind, TransitError, ciphertext::Ciphertext, key_id::KeyId, testing::fake_transit::FakeKey,
};

use super::{v1::KmsV1, v2::KmsV2};
use crate::{
    config::Encryption,
    observe::metrics::Metrics,
    session::{
        local_kek::ANNOTATION,
        testing::{Model, SessionBench, pass, settle},
        verification::{PreviousState, verify},
    },
};

/// A KMS service on a session.
struct Bench {
    service: KmsV2,
    sessions: SessionBench,
}

impl Deref for Bench {
    type Target = SessionBench;

    fn deref(&self) -> &SessionBench {
        &self.sessions
    }
}

impl DerefMut for Bench {
    fn deref_mut(&mut self) -> &mut SessionBench {
        &mut self.sessions
    }
}

impl Bench {
    fn of(sessions: SessionBench) -> Self {
        let service = KmsV2::new(sessions.writers.calls.clone(), Arc::clone(&sessions.metrics));
        Self { service, sessions }
    }

    /// Without a session.
    fn bare(model: Model) -> Self {
        Self::of(SessionBench::bare(model))
    }

    /// With a published session.
    async fn ready(model: Model, keys: &[&str]) -> Self {
        Self::of(SessionBench::ready(model, keys).await)
    }

    /// With a published session and a health checker.
    async fn with_health_checker(model: Model) -> Self {
        Self::of(SessionBench::with_health_checker(model).await)
    }

    /// Encrypts in a task of its own.
    fn begin_encrypt(&self) -> JoinHandle<Result<EncryptResponse, Status>> {
        let service = self.service.clone();
        let request = EncryptRequest { plaintext: Bytes::from_static(b"seed"), uid: "uid".into() };
        tokio::spawn(async move { Ok(service.encrypt(Request::new(request)).await?.into_inner()) })
    }

    /// Decrypts in a task of its own.
    fn begin_open(&self, sealed: &EncryptResponse) -> JoinHandle<Result<Bytes, Status>> {
        let service = self.service.clone();
        let request = decrypt_request(sealed);
        tokio::spawn(async move { Ok(service.decrypt(Request::new(request)).await?.into_inner().plaintext) })
    }

    /// How many calls of `method` ended with `code`.
    fn calls(&self, method: &str, code: &str) -> u64 {
        let line = format!("transit_kms_requests_total{{code=\"{code}\",method=\"{method}\"}} ");
        let text = self.metrics.render().unwrap();
        text.lines().find_map(|it| it.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
    }

    async fn status(&self) -> Result<StatusResponse, Status> {
        Ok(self.service.status(Request::new(StatusRequest {})).await?.into_inner())
    }

    async fn healthz(&self) -> String {
        self.status().await.unwrap().healthz
    }

    async fn encrypt(&self, plaintext: &[u8]) -> Result<EncryptResponse, Status> {
        let request = EncryptRequest { plaintext: Bytes::copy_from_slice(plaintext), uid: "uid".into() };
        Ok(self.service.encrypt(Request::new(request)).await?.into_inner())
    }

    /// Decrypts as kube-apiserver does, with all that it has stored.
    async fn open(&self, sealed: &EncryptResponse) -> Result<Bytes, Status> {
        Ok(self.service.decrypt(Request::new(decrypt_request(sealed))).await?.into_inner().plaintext)
    }

    async fn decrypt(&self, ciphertext: &[u8], key_id: &str) -> Result<Bytes, Status> {
        let request = DecryptRequest {
            ciphertext: Bytes::copy_from_slice(ciphertext),
            uid: "uid".into(),
            key_id: key_id.into(),
            annotations: [("other.provider.example".to_owned(), Bytes::from_static(b"1"))].into(),
        };
        Ok(self.service.decrypt(Request::new(request)).await?.into_inner().plaintext)
    }
}

fn decrypt_request(sealed: &EncryptResponse) -> DecryptRequest {
    DecryptRequest {
        ciphertext: sealed.ciphertext.clone(),
        uid: "uid".into(),
        key_id: sealed.key_id.clone(),
        annotations: sealed.annotations.clone(),
    }
}
