//! Decrypt: with a local KEK, or with the Transit keys that the key_id leads to.

use std::sync::Arc;

use tonic::Status;
use tracing::debug;
use transit_client::{
    ErrorKind, TransitError,
    ciphertext::Ciphertext,
    transit::{Call, Decrypted},
};
use zeroize::Zeroizing;

use super::requests::{LocalAttempt, Operation, Requests, check_uid};
use crate::session::{
    keyring::{KeyEntry, Route},
    local_kek::{self, ANNOTATION, LocalKek},
    state::{CallReporter, Snapshot},
};

/// The result of a Decrypt.
pub(super) struct DecryptOutput {
    /// Wiped when dropped.
    pub(super) plaintext: Zeroizing<Vec<u8>>,
    /// The `request.id` of the entry in Vault's audit log. `None` if no request was sent to Vault.
    pub(super) vault_request_id: Option<String>,
}

/// Decrypts a ciphertext that Transit made.
struct DecryptWithTransit<'a> {
    ciphertext: Ciphertext,
    key_id: &'a str,
}

/// Decrypts a ciphertext that a local KEK made.
struct DecryptWithLocalKek<'a> {
    key_id: &'a str,
    sealed: &'a [u8],
    wrapped_kek: Ciphertext,
}

impl Requests {
    /// Decrypts `ciphertext`. `wrapped_kek` is the value of the annotation, if there is one.
    pub(super) async fn decrypt(
        &self,
        key_id: &str,
        ciphertext: &[u8],
        wrapped_kek: Option<&[u8]>,
        call: Call<'_>,
    ) -> Result<DecryptOutput, Status> {
        check_uid(call)?;
        let (output, _) = match (wrapped_kek, local_kek::is_sealed(ciphertext)) {
            (None, false) => {
                let ciphertext = parse(ciphertext)?;
                self.with_session(&DecryptWithTransit { ciphertext, key_id }, call).await?
            }
            (Some(wrapped_kek), true) => {
                let wrapped_kek = parse(wrapped_kek)?;
                let operation = DecryptWithLocalKek { key_id, sealed: ciphertext, wrapped_kek };
                self.with_session(&operation, call).await?
            }
            (None, true) => {
                return Err(Status::invalid_argument(format!(
                    "a local KEK made the ciphertext, but the annotation {ANNOTATION} with this KEK is missing"
                )));
            }
            (Some(_), false) => {
                return Err(Status::invalid_argument(format!(
                    "there is an annotation {ANNOTATION}, but no local KEK made the ciphertext: they do not \
                     belong together"
                )));
            }
        };
        Ok(output)
    }
}

fn parse(ciphertext: &[u8]) -> Result<Ciphertext, Status> {
    Ciphertext::parse(ciphertext).map_err(|error| Status::invalid_argument(error.to_string()))
}

impl Operation for DecryptWithTransit<'_> {
    type Output = DecryptOutput;

    fn attempt_locally(
        &self,
        snapshot: &Snapshot,
        _: &CallReporter,
    ) -> Result<LocalAttempt<DecryptOutput>, TransitError> {
        // Refuses a key_id that belongs to no key of the session.
        snapshot.keyring.route(self.key_id, &self.ciphertext)?;
        Ok(LocalAttempt::NeedsVault)
    }

    async fn send_to_vault(
        &self,
        snapshot: &Snapshot,
        reporter: &CallReporter,
        call: Call<'_>,
    ) -> Result<DecryptOutput, TransitError> {
        let ciphertext = &self.ciphertext;
        let entries = match snapshot.keyring.route(self.key_id, ciphertext)? {
            Route::InOrder(entries) => entries,
            Route::Named { entry, unseen } => {
                if unseen {
                    debug!(key = %entry.key, version = %ciphertext.version(), "another node has seen a newer key version");
                    reporter.request_health_check();
                }
                vec![entry]
            }
        };
        let mut failures = Failures::default();
        for entry in entries {
            if let Some(reason) = &entry.unusable {
                failures.unusable.push(reason);
                continue;
            }
            match snapshot.coalescer.decrypt(&entry.key, ciphertext, call).await {
                // A local KEK must not leave the process, because it decrypts all seeds that it has wrapped.
                Ok(decrypted) if local_kek::is_payload(&decrypted.plaintext) => {
                    let message = "the ciphertext is a wrapped local KEK, not a seed";
                    return Err(TransitError::new(ErrorKind::BadCiphertext, message));
                }
                Ok(Decrypted { plaintext, request_id }) => {
                    return Ok(DecryptOutput { plaintext, vault_request_id: request_id });
                }
                Err(error) => {
                    let error = reporter.decrypt_failed(snapshot, entry, error);
                    let stop = excludes_other_keys(error.kind, snapshot);
                    failures.add(entry, error);
                    if stop {
                        failures.stopped_early = true;
                        break;
                    }
                }
            }
        }
        Err(failures.into_error())
    }
}

/// Whether a Decrypt with another key would fail too, or do harm.
fn excludes_other_keys(kind: ErrorKind, snapshot: &Snapshot) -> bool {
    match kind {
        // There is no time left, more requests make it worse, or the token is invalid for all keys.
        ErrorKind::DeadlineExceeded | ErrorKind::Throttled | ErrorKind::TokenInvalid => true,
        // While a node is healthy, this is no outage: only this key cannot be used.
        ErrorKind::Unreachable => {
            let nodes = snapshot.nodes.as_ref().map(|nodes| nodes.health()).unwrap_or_default();
            !nodes.is_empty() && !nodes.iter().any(|(_, is_up)| *is_up)
        }
        _ => false,
    }
}

impl Operation for DecryptWithLocalKek<'_> {
    type Output = DecryptOutput;

    fn attempt_locally(
        &self,
        snapshot: &Snapshot,
        reporter: &CallReporter,
    ) -> Result<LocalAttempt<DecryptOutput>, TransitError> {
        self.entry(snapshot, reporter)?;
        let Some(kek) = reporter.keks().get(&self.wrapped_kek) else { return Ok(LocalAttempt::NeedsVault) };
        let plaintext = kek.open(self.key_id, self.sealed)?;
        Ok(LocalAttempt::Done(DecryptOutput { plaintext, vault_request_id: None }))
    }

    /// Unwraps the local KEK and stores it, so that the next Decrypts need no request to Vault.
    async fn send_to_vault(
        &self,
        snapshot: &Snapshot,
        reporter: &CallReporter,
        call: Call<'_>,
    ) -> Result<DecryptOutput, TransitError> {
        let wrapped = &self.wrapped_kek;
        let entry = self.entry(snapshot, reporter)?;
        let stamp = reporter.keks().stamp(snapshot.generation);
        let unwrapped = snapshot.coalescer.decrypt(&entry.key, wrapped, call).await.map_err(|error| {
            let error = reporter.decrypt_failed(snapshot, entry, error);
            reporter.keks().unwrap_failed(wrapped, entry.scope, &error, stamp);
            error
        })?;
        let kek = Arc::new(LocalKek::new(&unwrapped.plaintext, wrapped.clone(), entry.scope)?);
        reporter.keks().insert(Arc::clone(&kek), stamp);
        Ok(DecryptOutput {
            plaintext: kek.open(self.key_id, self.sealed)?,
            vault_request_id: unwrapped.request_id,
        })
    }
}

impl DecryptWithLocalKek<'_> {
    /// Returns the Transit key that wrapped the local KEK, if this KEK may be used.
    fn entry<'s>(
        &self,
        snapshot: &'s Snapshot,
        reporter: &CallReporter,
    ) -> Result<&'s KeyEntry, TransitError> {
        let Route::Named { entry, unseen } = snapshot.keyring.route(self.key_id, &self.wrapped_kek)? else {
            let message = "a local KEK made the ciphertext, but the key_id is of another provider";
            return Err(TransitError::new(ErrorKind::BadCiphertext, message));
        };
        if unseen {
            reporter.request_health_check();
        }
        if self.wrapped_kek.version().number() < entry.min_decryption {
            let message = "the key version that wrapped the local KEK is below min_decryption_version of the key: \
                           lower it to read this value again";
            return Err(TransitError::new(ErrorKind::VersionTooOld, message));
        }
        Ok(entry)
    }
}

/// The failures of a Decrypt with each key that was tried.
#[derive(Default)]
struct Failures<'a> {
    /// The most informative error, and its key.
    best: Option<(&'a KeyEntry, TransitError)>,
    /// Whether some keys were not tried because of the last error.
    stopped_early: bool,
    tried: usize,
    /// For each key that cannot decrypt, the reason why.
    unusable: Vec<&'a str>,
}

impl<'a> Failures<'a> {
    fn add(&mut self, entry: &'a KeyEntry, error: TransitError) {
        self.tried += 1;
        if self.best.as_ref().is_none_or(|(_, best)| informativeness(error.kind) > informativeness(best.kind))
        {
            self.best = Some((entry, error));
        }
    }

    fn into_error(self) -> TransitError {
        let mut error = match self.best {
            None if self.unusable.is_empty() => {
                TransitError::new(ErrorKind::InvalidResponse, "no key is configured")
            }
            None => return TransitError::new(ErrorKind::KeyNotFound, self.unusable.join("; ")),
            Some((_, error)) if self.stopped_early => return error,
            Some((_, error)) if self.tried + self.unusable.len() == 1 => return error,
            Some((_, error)) if error.kind == ErrorKind::BadCiphertext => {
                TransitError::new(error.kind, "none of the keys in vault.keynames decrypts this ciphertext")
            }
            Some((entry, TransitError { kind, message, .. })) => TransitError::new(
                kind,
                format!(
                    "key `{}`: {message}; no other key in vault.keynames decrypts this ciphertext",
                    entry.key
                ),
            ),
        };
        for reason in self.unusable {
            error.message.push_str(&format!("; {reason}"));
        }
        error
    }
}

/// How much the failure of one key tells an operator when several keys were tried and failed in different ways.
/// The caller gets the most informative error.
fn informativeness(kind: ErrorKind) -> u8 {
    match kind {
        // All wrong keys fail like this.
        ErrorKind::BadCiphertext => 0,
        // The key never had this version, so the ciphertext probably belongs to another key.
        ErrorKind::VersionUnavailable => 1,
        // A fault of Vault or a proxy, which says nothing about the key.
        ErrorKind::InvalidResponse | ErrorKind::BatchTooLarge => 2,
        // The operator can remove or restore the key.
        ErrorKind::KeyNotFound => 3,
        // The key exists, and the operator can allow its use.
        ErrorKind::Config | ErrorKind::Denied => 4,
        // The key is the right one, and the operator can lower its min_decryption_version.
        ErrorKind::VersionTooOld => 5,
        // The key may be the right one, and a retry may succeed. No other error may hide this.
        ErrorKind::Unreachable => 6,
        // These end the Decrypt, so they are always the last error.
        ErrorKind::DeadlineExceeded | ErrorKind::Throttled | ErrorKind::TokenInvalid => 7,
    }
}
