//! One call, of whichever API: its limits, its deadline, one session, one call of [`Transit`].
//!
//! The faces are [`v1`](super::v1) and [`v2`](super::v2); everything that they have in common is
//! here.
//!
//! [`Transit`]: super::transit::Transit

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use tonic::{Code, Response, Status};
use tracing::{debug, warn};

use super::{
    board::{Board, Snapshot},
    ciphertext::Ciphertext,
    gate::Gate,
    key_id::key_id_hash,
    keyring::{KeyEntry, Route},
    local_kek::{self, ANNOTATION, LocalKek},
    transit::{Call, Fault, Opened, TransitError},
};
use crate::{config::Encryption, observe::metrics::Metrics};

/// With any type of key this still makes a ciphertext of at most 1024 bytes; a seed or a DEK has 32.
const MAX_PLAINTEXT_BYTES: usize = 700;
/// kube-apiserver sends a UUID of 36 characters.
const MAX_UID_BYTES: usize = 256;
/// A new token usually follows the old one's death within moments, and calls wait for it;
/// once it has been away for so long they fail at once, with the reason.
const PATIENCE_WITH_DEAD_TOKEN: Duration = Duration::from_secs(10);
/// What a retry on a new session needs at least.
const TIME_FOR_A_RETRY: Duration = Duration::from_millis(100);

/// Answers calls from what the board says.
#[derive(Clone)]
pub(super) struct Calls {
    pub(super) board: Arc<Board>,
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
}

impl Calls {
    pub(super) fn new(board: Arc<Board>, metrics: Arc<Metrics>) -> Self {
        Self { board, gate: Arc::new(Gate::new()), metrics }
    }

    /// Runs `work` within the caller's deadline, and records how it ended.
    pub(super) async fn answer<T>(
        &self,
        method: &'static str,
        uid: &str,
        key_id: &str,
        patience: Duration,
        work: impl Future<Output = Result<(T, Told), Status>>,
    ) -> Result<Response<T>, Status> {
        let began = Instant::now();
        let outcome = match timeout_at(began + patience, work).await {
            Ok(outcome) => outcome,
            Err(_) => {
                // Nobody knows why it took so long; the prober is to find out.
                self.board.probe_soon();
                Err(Status::deadline_exceeded("Vault did not answer before the caller's deadline"))
            }
        };
        let took = began.elapsed();
        match outcome {
            Ok((message, told)) => {
                self.metrics.call(method, code_name(Code::Ok), took);
                debug!(
                    method,
                    uid = printable(uid),
                    key_id_hash = told.key_id_hash,
                    vault_request_id = told.request_id,
                    ?took,
                    "answered"
                );
                Ok(Response::new(message))
            }
            Err(status) => {
                self.metrics.call(method, code_name(status.code()), took);
                debug!(
                    method,
                    uid = printable(uid),
                    key_id_hash = key_id_hash(key_id),
                    code = code_name(status.code()),
                    reason = status.message(),
                    ?took,
                    "answered with an error"
                );
                Err(status)
            }
        }
    }

    /// Wraps `plaintext` with the current key version; the answer is to be named after the snapshot
    /// that comes with it. Only a caller that keeps an annotation can have a local KEK do it.
    pub(super) async fn encrypt(
        &self,
        plaintext: &[u8],
        keeps_annotation: bool,
        call: Call<'_>,
    ) -> Result<(Encrypted, Arc<Snapshot>), Status> {
        at_most("uid", call.uid.len(), MAX_UID_BYTES)?;
        at_most("plaintext", plaintext.len(), MAX_PLAINTEXT_BYTES)?;
        if plaintext.is_empty() {
            return Err(Status::invalid_argument("the plaintext is empty"));
        }
        let _admission = self.gate.enter().await?;
        match self.on_a_session(call, Work::Encrypt { plaintext, keeps_annotation }).await? {
            (Done::Encrypted(encrypted), snapshot) => Ok((encrypted, snapshot)),
            (Done::Opened(_), _) => Err(mixed_up()),
        }
    }

    /// Unwraps `ciphertext`, with the key that `key_id` names, and the local KEK that was in the
    /// annotation, if there was one.
    pub(super) async fn decrypt(
        &self,
        key_id: &str,
        ciphertext: &[u8],
        wrapped_kek: Option<&[u8]>,
        call: Call<'_>,
    ) -> Result<Opened, Status> {
        at_most("uid", call.uid.len(), MAX_UID_BYTES)?;
        let (transits, sealed) = match (wrapped_kek, local_kek::is_sealed(ciphertext)) {
            (None, false) => (ciphertext, None),
            (Some(wrapped), true) => (wrapped, Some(ciphertext)),
            (None, true) => {
                return Err(Status::invalid_argument(format!(
                    "a local KEK made the ciphertext, but the annotation {ANNOTATION} that held it is gone"
                )));
            }
            (Some(_), false) => {
                return Err(Status::invalid_argument(format!(
                    "the annotation {ANNOTATION} is there, but no local KEK made the ciphertext: they do not \
                     belong together"
                )));
            }
        };
        let transits =
            Ciphertext::parse(transits).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let _admission = self.gate.enter().await?;
        match self.on_a_session(call, Work::Decrypt { key_id, sealed, transits: &transits }).await? {
            (Done::Opened(opened), _) => Ok(opened),
            (Done::Encrypted(_), _) => Err(mixed_up()),
        }
    }

    /// Does `work` on the session in use. If its token turns out dead, waits for the next
    /// session and does it once more, on that session's snapshot alone.
    async fn on_a_session(&self, call: Call<'_>, work: Work<'_>) -> Result<(Done, Arc<Snapshot>), Status> {
        let mut snapshot = match self.board.status() {
            (_, Some(snapshot)) => snapshot,
            (answer, None) => return Err(Status::unavailable(answer.reason().unwrap_or_default())),
        };
        if let Some(reason) = self.board.key_lost().filter(|_| matches!(work, Work::Encrypt { .. })) {
            return Err(Status::failed_precondition(&*reason));
        }
        if self.board.token_dead_for(snapshot.generation).is_some() {
            // Asking Vault again would only add to its log: nothing loops on 403.
            snapshot = self.next_session(&snapshot, call).await?;
        }
        match work.on(&snapshot, &self.board, call).await {
            Err(error) if error.fault == Fault::TokenDead => {
                snapshot = self.next_session(&snapshot, call).await?;
                self.metrics.retry("token_dead");
                let done = work.on(&snapshot, &self.board, call).await;
                done.map(|done| (done, snapshot)).map_err(into_status)
            }
            done => done.map(|done| (done, snapshot)).map_err(into_status),
        }
    }

    /// Waits for a session newer than that of `dead`, as long as it makes sense.
    async fn next_session(&self, dead: &Snapshot, call: Call<'_>) -> Result<Arc<Snapshot>, Status> {
        let dead_for = self.board.token_dead_for(dead.generation).unwrap_or_default();
        let until = call
            .deadline
            .checked_sub(TIME_FOR_A_RETRY)
            .unwrap_or(call.deadline)
            .min(Instant::now() + PATIENCE_WITH_DEAD_TOKEN.saturating_sub(dead_for));
        timeout_at(until, self.board.after_death_of(dead.generation)).await.map_err(|_| {
            let (answer, _) = self.board.status();
            Status::permission_denied(
                answer.reason().unwrap_or("the Vault token is dead and no new one has come"),
            )
        })
    }
}

/// What to do on a session.
#[derive(Clone, Copy)]
enum Work<'a> {
    /// `transits` is what Transit has wrapped: the seed, or the local KEK that `sealed` is for.
    Decrypt {
        key_id: &'a str,
        sealed: Option<&'a [u8]>,
        transits: &'a Ciphertext,
    },
    Encrypt {
        keeps_annotation: bool,
        plaintext: &'a [u8],
    },
}

enum Done {
    Encrypted(Encrypted),
    Opened(Opened),
}

/// What became of a plaintext.
pub(super) struct Encrypted {
    pub(super) ciphertext: Vec<u8>,
    /// Empty if Vault was not asked.
    pub(super) request_id: String,
    /// What must be there, in the annotation, to decrypt it.
    pub(super) wrapped_kek: Option<Vec<u8>>,
}

impl Work<'_> {
    /// Everything that the answer consists of comes from `snapshot`.
    async fn on(self, snapshot: &Snapshot, board: &Board, call: Call<'_>) -> Result<Done, TransitError> {
        match self {
            Self::Encrypt { keeps_annotation, plaintext } => {
                if let Some(kek) = snapshot.local_kek.as_ref().filter(|_| keeps_annotation) {
                    return encrypt_locally(snapshot, board, kek, plaintext).map(Done::Encrypted);
                }
                let current = snapshot.keyring.current();
                let sealed = snapshot.transit.encrypt(&current.key, current.version, plaintext, call).await;
                sealed
                    .map(|sealed| {
                        Done::Encrypted(Encrypted {
                            ciphertext: sealed.ciphertext.into_bytes(),
                            request_id: sealed.request_id,
                            wrapped_kek: None,
                        })
                    })
                    .inspect_err(|error| board.call_failed(snapshot.generation, error))
            }
            Self::Decrypt { key_id, sealed, transits } => match sealed {
                Some(sealed) => decrypt_locally(snapshot, board, key_id, sealed, transits, call).await,
                None => decrypt(snapshot, board, key_id, transits, call).await,
            }
            .map(Done::Opened),
        }
    }
}

fn encrypt_locally(
    snapshot: &Snapshot,
    board: &Board,
    kek: &LocalKek,
    plaintext: &[u8],
) -> Result<Encrypted, TransitError> {
    if !board.keks.is_usable(kek) {
        board.probe_soon();
        let answer = board.status().0;
        let fault = if answer.state() == "refused" { Fault::Denied } else { Fault::Unreachable };
        let reason = answer.reason().unwrap_or("a new one is being made");
        return Err(TransitError::new(fault, format!("the local KEK may not be used any longer: {reason}")));
    }
    if let Encryption::LocalKek(limits) = snapshot.transit.encryption()
        && kek.is_worn(limits)
    {
        // The proof of a probe brings a new one; until then, and in an outage, this one serves on.
        board.probe_soon();
    }
    Ok(Encrypted {
        ciphertext: kek.seal(&snapshot.keyring.current().key_id, plaintext)?,
        request_id: String::new(),
        wrapped_kek: Some(kek.wrapped().as_str().as_bytes().to_vec()),
    })
}

async fn decrypt_locally(
    snapshot: &Snapshot,
    board: &Board,
    key_id: &str,
    sealed: &[u8],
    wrapped: &Ciphertext,
    call: Call<'_>,
) -> Result<Opened, TransitError> {
    let Route::Named { entry, unseen } = snapshot.keyring.route(key_id, wrapped)? else {
        let message = "a local KEK made the ciphertext, but the key_id is of another provider";
        return Err(TransitError::new(Fault::BadCiphertext, message));
    };
    if unseen {
        board.probe_soon();
    }
    if wrapped.version().number() < entry.min_decryption {
        let message = "the key version that wrapped the local KEK is below min_decryption_version of the key: \
                       lower it to read this value again";
        return Err(TransitError::new(Fault::TooOld, message));
    }
    if let Some(kek) = board.keks.get(wrapped) {
        return Ok(Opened { plaintext: kek.open(key_id, sealed)?, request_id: String::new() });
    }
    let era = board.keks.era();
    let unwrapped = snapshot.decrypts.decrypt(&entry.key, wrapped, call).await.inspect_err(|error| {
        note_failure(snapshot, board, entry, error);
        board.keks.failed(wrapped, entry.scope, error);
    })?;
    let kek = Arc::new(LocalKek::new(&unwrapped.plaintext, wrapped.clone(), entry.scope)?);
    board.keks.put(Arc::clone(&kek), era);
    Ok(Opened { plaintext: kek.open(key_id, sealed)?, request_id: unwrapped.request_id })
}

/// What the failure of a Decrypt with the key of `entry` says about the session.
fn note_failure(snapshot: &Snapshot, board: &Board, entry: &KeyEntry, error: &TransitError) {
    if entry.key == snapshot.keyring.current().key || error.fault == Fault::TokenDead {
        board.call_failed(snapshot.generation, error);
    } else if error.fault == Fault::Denied {
        warn!(key = %entry.key, %error, "the policy does not let us decrypt with an additional key");
    }
}

async fn decrypt(
    snapshot: &Snapshot,
    board: &Board,
    key_id: &str,
    ciphertext: &Ciphertext,
    call: Call<'_>,
) -> Result<Opened, TransitError> {
    let entries = match snapshot.keyring.route(key_id, ciphertext)? {
        Route::InOrder(entries) => entries,
        Route::Named { entry, unseen } => {
            if unseen {
                debug!(key = %entry.key, version = %ciphertext.version(), "another node has seen a newer key version");
                board.probe_soon();
            }
            vec![entry]
        }
    };
    let mut last = None;
    for entry in &entries {
        match snapshot.decrypts.decrypt(&entry.key, ciphertext, call).await {
            // It must not leave: it would open every seed that it has wrapped.
            Ok(opened) if local_kek::is_payload(&opened.plaintext) => {
                let message = "the ciphertext is a wrapped local KEK, not a seed";
                return Err(TransitError::new(Fault::BadCiphertext, message));
            }
            Ok(opened) => return Ok(opened),
            Err(error) => {
                note_failure(snapshot, board, entry, &error);
                // Only "not with this key" is a reason to try the next one.
                let next = matches!(
                    error.fault,
                    Fault::BadCiphertext | Fault::KeyLost | Fault::Lagging | Fault::TooOld
                );
                last = Some(error);
                if !next {
                    break;
                }
            }
        }
    }
    Err(match last {
        Some(error) if entries.len() > 1 && error.fault == Fault::BadCiphertext => {
            TransitError::new(error.fault, "none of the keys in vault.keynames decrypts this ciphertext")
        }
        Some(error) => error,
        None => TransitError::new(Fault::Nonsense, "no key is configured"),
    })
}

/// What the log tells of an answered call.
pub(super) struct Told {
    pub(super) key_id_hash: String,
    pub(super) request_id: String,
}

pub(super) fn at_most(what: &str, length: usize, most: usize) -> Result<(), Status> {
    if length > most {
        return Err(Status::invalid_argument(format!(
            "the {what} has {length} bytes; at most {most} are taken"
        )));
    }
    Ok(())
}

fn into_status(error: TransitError) -> Status {
    let code = match error.fault {
        Fault::BadCiphertext => Code::InvalidArgument,
        Fault::DeadlineExceeded => Code::DeadlineExceeded,
        Fault::Denied | Fault::TokenDead => Code::PermissionDenied,
        Fault::KeyLost | Fault::TooOld => Code::FailedPrecondition,
        Fault::Lagging | Fault::Unreachable => Code::Unavailable,
        Fault::Nonsense | Fault::TooMuch => Code::Internal,
        Fault::Throttled => Code::ResourceExhausted,
    };
    Status::new(code, error.message)
}

fn mixed_up() -> Status {
    Status::internal("the answer is not of the kind that was asked for")
}

/// The part of a uid that may stand in a log.
fn printable(uid: &str) -> String {
    uid.chars().filter(char::is_ascii_graphic).take(64).collect()
}

/// The name of a gRPC code as Prometheus labels have it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Internal => "Internal",
        Code::InvalidArgument => "InvalidArgument",
        Code::Ok => "OK",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::Unavailable => "Unavailable",
        _ => "Other",
    }
}
