//! A client that also waits for a Status.

use std::time::Duration;

use kms_plugin::v2::{EncryptResponse, StatusResponse};
use tonic::Status;

use crate::{
    daemon::process::{Daemon, Kms},
    kms::calls,
    wait::eventually,
};

/// A client on its own connection. A clone shares the connection.
#[derive(Clone)]
pub struct Caller {
    kms: Kms,
}

impl Caller {
    /// Connects to this daemon.
    pub async fn of(daemon: &Daemon) -> Self {
        Self { kms: daemon.kms().await }
    }

    pub async fn status(&self) -> Result<StatusResponse, Status> {
        calls::status(&self.kms).await
    }

    pub async fn encrypt(&self, plaintext: &[u8]) -> Result<EncryptResponse, Status> {
        calls::encrypt(&self.kms, plaintext, "test-encrypt").await
    }

    pub async fn decrypt(&self, sealed: &EncryptResponse) -> Result<Vec<u8>, Status> {
        calls::open(&self.kms, sealed, "test-decrypt").await
    }

    /// The result of Status in one line: `ok`, a reason, or `Code: message` of a gRPC error.
    pub async fn health(&self) -> String {
        match self.status().await {
            Ok(status) => status.healthz,
            Err(error) => format!("{:?}: {}", error.code(), error.message()),
        }
    }

    /// Waits until the result of Status, as of [`Caller::health`], contains `part`.
    pub async fn wait_health(&self, part: &str, within: Duration) {
        eventually(&format!("Status says {part:?}"), within, async || {
            let said = self.health().await;
            if said.contains(part) { Ok(()) } else { Err(said) }
        })
        .await;
    }

    /// Waits until Status is `ok`.
    pub async fn wait_ok(&self, within: Duration) {
        eventually("Status is ok", within, async || {
            let said = self.health().await;
            if said == "ok" { Ok(()) } else { Err(said) }
        })
        .await;
    }

    /// The key_id of Status.
    ///
    /// # Panics
    /// If Status is an error.
    pub async fn key_id(&self) -> String {
        self.status().await.unwrap().key_id
    }

    /// Waits until Status has another key_id than `old`, and returns it.
    pub async fn wait_key_id_after(&self, old: &str, within: Duration) -> String {
        eventually("Status has another key_id", within, async || match self.status().await {
            Ok(status) if status.key_id != old => Ok(status.key_id),
            answer => Err(format!("{answer:?}")),
        })
        .await
    }

    /// Encrypts and decrypts a new seed.
    ///
    /// # Panics
    /// If a call fails.
    pub async fn round_trip(&self) -> EncryptResponse {
        let seed: [u8; 32] = rand::random();
        let sealed = self.encrypt(&seed).await.unwrap();
        assert_eq!(self.decrypt(&sealed).await.unwrap(), seed[..]);
        sealed
    }
}

/// The version in a key_id of transit-kms.
pub fn version_of_key_id(key_id: &str) -> u64 {
    key_id.split('.').nth(2).and_then(|version| version.parse().ok()).unwrap_or_else(|| panic!("{key_id}"))
}

/// The version in a ciphertext `vault:vN:...`.
pub fn version_of_ciphertext(ciphertext: &[u8]) -> u64 {
    let text = std::str::from_utf8(ciphertext).unwrap();
    let version = text.strip_prefix("vault:v").and_then(|rest| rest.split_once(':'));
    version.and_then(|(version, _)| version.parse().ok()).unwrap_or_else(|| panic!("{text}"))
}
