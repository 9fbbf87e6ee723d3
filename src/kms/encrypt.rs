//! Encrypt: with the local KEK if there is one, otherwise with Transit.

use std::sync::Arc;

use tonic::Status;
use transit_client::{TransitError, transit::Call};

use super::requests::{LocalAttempt, Operation, Requests, check_size, check_uid};
use crate::{
    config::Encryption,
    session::{
        local_kek::LocalKek,
        state::{CallReporter, Published, Snapshot},
    },
};

/// With a key of any type, this makes a ciphertext of at most 1024 bytes. A DEK seed or a DEK has 32 bytes.
const MAX_PLAINTEXT_BYTES: usize = 700;

/// The result of an Encrypt.
pub(super) struct EncryptOutput {
    pub(super) ciphertext: Vec<u8>,
    /// The `request.id` of the entry in Vault's audit log. `None` if no request was sent to Vault.
    pub(super) vault_request_id: Option<String>,
    /// The value of the annotation that Decrypt needs, if a local KEK was used.
    pub(super) wrapped_kek: Option<Vec<u8>>,
}

struct Encrypt<'a> {
    /// Whether the API stores annotations. A local KEK needs one.
    annotations: bool,
    plaintext: &'a [u8],
}

impl Requests {
    /// Encrypts `plaintext` with the current key version. The returned snapshot has the key_id of the result.
    pub(super) async fn encrypt(
        &self,
        plaintext: &[u8],
        annotations: bool,
        call: Call<'_>,
    ) -> Result<(EncryptOutput, Arc<Snapshot>), Status> {
        check_uid(call)?;
        check_size("plaintext", plaintext.len(), MAX_PLAINTEXT_BYTES)?;
        if plaintext.is_empty() {
            return Err(Status::invalid_argument("the plaintext is empty"));
        }
        self.with_session(&Encrypt { annotations, plaintext }, call).await
    }
}

impl Operation for Encrypt<'_> {
    type Output = EncryptOutput;

    /// Nothing may be encrypted with a key that is lost, because it could not be decrypted again.
    fn check(&self, published: &Published) -> Result<(), Status> {
        match &published.key_lost {
            Some(reason) => Err(Status::failed_precondition(&**reason)),
            None => Ok(()),
        }
    }

    fn attempt_locally(
        &self,
        snapshot: &Snapshot,
        reporter: &CallReporter,
    ) -> Result<LocalAttempt<EncryptOutput>, TransitError> {
        let Some(kek) = snapshot.local_kek.as_ref().filter(|_| self.annotations) else {
            return Ok(LocalAttempt::NeedsVault);
        };
        if !reporter.keks().is_usable(kek) {
            return Ok(LocalAttempt::NeedsKek);
        }
        encrypt_with_local_kek(snapshot, reporter, kek, self.plaintext).map(LocalAttempt::Done)
    }

    async fn send_to_vault(
        &self,
        snapshot: &Snapshot,
        reporter: &CallReporter,
        call: Call<'_>,
    ) -> Result<EncryptOutput, TransitError> {
        let current = snapshot.keyring.current();
        let encrypted = snapshot
            .transit
            .encrypt(&current.key, current.version, self.plaintext, call)
            .await
            .inspect_err(|error| reporter.call_failed(snapshot.generation, error))?;
        Ok(EncryptOutput {
            ciphertext: encrypted.ciphertext.into_bytes(),
            vault_request_id: encrypted.request_id,
            wrapped_kek: None,
        })
    }
}

fn encrypt_with_local_kek(
    snapshot: &Snapshot,
    reporter: &CallReporter,
    kek: &LocalKek,
    plaintext: &[u8],
) -> Result<EncryptOutput, TransitError> {
    if let Encryption::LocalKek(limits) = snapshot.encryption
        && kek.is_worn(limits)
    {
        // The health check creates a new KEK. Until then, and during an outage, this one stays in use.
        reporter.request_health_check();
    }
    Ok(EncryptOutput {
        ciphertext: kek.seal(&snapshot.keyring.current().key_id, plaintext)?,
        vault_request_id: None,
        wrapped_kek: Some(kek.wrapped().as_str().as_bytes().to_vec()),
    })
}
