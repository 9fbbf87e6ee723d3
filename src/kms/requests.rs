//! One call, of either API: its limits, its deadline, one session, one call of [`Transit`].
//!
//! The faces are [`v1`](super::v1) and [`v2`](super::v2); everything that they have in common is
//! here.
//!
//! A call first does what needs no Vault: it refuses what cannot be, and it uses a local KEK. Only
//! what is left takes a place at the [`Gate`].
//!
//! [`Transit`]: transit_client::Transit

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use tonic::{Code, Response, Status};
use tracing::debug;
use transit_client::{
    ErrorKind, TransitError,
    ciphertext::Ciphertext,
    key_id::key_id_hash,
    metrics::RetryReason,
    transit::{Call, Decrypted},
};

use super::concurrency_limit::{Gate, Place};
use crate::{
    config::Encryption,
    observe::{labels::HealthState, metrics::Metrics},
    session::{
        keyring::{KeyEntry, Route},
        local_kek::{self, ANNOTATION, LocalKek},
        state::{CallReporter, Published, Snapshot, StateStore},
    },
};

/// With any type of key this still makes a ciphertext of at most 1024 bytes; a seed or a DEK has 32.
const MAX_PLAINTEXT_BYTES: usize = 700;
/// kube-apiserver sends a UUID of 36 characters.
const MAX_UID_BYTES: usize = 256;
/// A new token usually follows the old one's death within moments, and calls wait for it;
/// once it has been away for so long they fail at once, with the reason.
const PATIENCE_WITH_DEAD_TOKEN: Duration = Duration::from_secs(10);
/// What a retry on a new session needs at least.
const TIME_FOR_A_RETRY: Duration = Duration::from_millis(100);

const LATE: &str = "Vault did not answer before the caller's deadline";

/// Answers calls from what the store says.
#[derive(Clone)]
pub(super) struct Calls {
    pub(super) store: Arc<StateStore>,
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
    reporter: CallReporter,
}

impl Calls {
    pub(super) fn new(reporter: CallReporter, metrics: Arc<Metrics>) -> Self {
        Self { store: Arc::clone(reporter.store()), gate: Arc::new(Gate::new()), metrics, reporter }
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
        let record =
            Record { began: Instant::now(), ended: false, key_id, method, metrics: &self.metrics, uid };
        let outcome = match timeout_at(record.began + patience, work).await {
            Ok(outcome) => outcome,
            Err(_) => {
                // Nobody knows why it took so long; the health_checker is to find out.
                self.store.request_health_check();
                Err(Status::deadline_exceeded(LATE))
            }
        };
        match outcome {
            Ok((message, told)) => {
                record.answered(&told);
                Ok(Response::new(message))
            }
            Err(status) => {
                record.failed(code_name(status.code()), status.message());
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
        match self.on_a_session(call, Work::Encrypt { plaintext, keeps_annotation }).await? {
            (Done::Encrypted(encrypted), snapshot) => Ok((encrypted, snapshot)),
            (Done::Decrypted(_), _) => Err(mixed_up()),
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
    ) -> Result<Decrypted, Status> {
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
        match self.on_a_session(call, Work::Decrypt { key_id, sealed, transits: &transits }).await? {
            (Done::Decrypted(opened), _) => Ok(opened),
            (Done::Encrypted(_), _) => Err(mixed_up()),
        }
    }

    /// Does `work` on the session in use. If that session is replaced meanwhile, or its token turns
    /// out dead, does it once more, on the next session's snapshot alone.
    async fn on_a_session(&self, call: Call<'_>, work: Work<'_>) -> Result<(Done, Arc<Snapshot>), Status> {
        let mut now = self.store.read();
        let mut place = None;
        let mut tried = false;
        loop {
            let Some(snapshot) = now.snapshot.clone() else {
                return Err(Status::unavailable(now.answer.reason().unwrap_or_default()));
            };
            if let (Work::Encrypt { .. }, Some(reason)) = (work, &now.key_lost) {
                return Err(Status::failed_precondition(&**reason));
            }
            if now.token_invalid_for.is_some() {
                // Asking Vault again would only add to its log: nothing loops on 403.
                self.resting_place(&mut place)?;
                now = self.next_session(&now, call).await?;
                continue;
            }
            match work.without_vault(&snapshot, &self.reporter).map_err(into_status)? {
                Attempt::Done(done) => return Ok((done, snapshot)),
                Attempt::NeedsKek => {
                    self.resting_place(&mut place)?;
                    now = self.next_kek(&now, call).await?;
                    continue;
                }
                Attempt::NeedsVault => {}
            }
            let entered = match place.take() {
                Some(entered) => entered,
                None => self.gate.place()?,
            };
            let place = place.insert(entered);
            if place.may_ask_vault(call.deadline).await? {
                // What was read before the wait is old news.
                now = self.store.read();
                continue;
            }
            let asking = timeout_at(call.deadline, work.with_vault(&snapshot, &self.reporter, call));
            let mut error = match asking.await {
                Ok(Ok(done)) => return Ok((done, snapshot)),
                Ok(Err(error)) => error,
                Err(_) => {
                    let error = TransitError::new(ErrorKind::DeadlineExceeded, LATE);
                    self.reporter.call_failed(snapshot.generation, &error);
                    error
                }
            };
            place.explain(&mut error);
            now = self.store.read();
            let replaced = now.generation() > Some(snapshot.generation);
            let again = match error.kind {
                ErrorKind::TokenInvalid => Some(RetryReason::TokenInvalid),
                // The session that is in use now may be allowed to, or know the key.
                ErrorKind::Denied | ErrorKind::KeyNotFound if replaced => Some(RetryReason::SessionReplaced),
                _ => None,
            };
            match again {
                Some(reason) if !tried => self.metrics.client.retry(reason),
                _ => return Err(into_status(error)),
            }
            tried = true;
        }
    }

    /// Sees to it that a call which is about to wait has a place, and keeps no other from asking Vault.
    fn resting_place<'a>(&'a self, place: &mut Option<Place<'a>>) -> Result<(), Status> {
        match place {
            Some(place) => place.rest(),
            none => *none = Some(self.gate.place()?),
        }
        Ok(())
    }

    /// Waits for a session newer than that of `dead`, as long as it makes sense.
    async fn next_session(&self, dead: &Published, call: Call<'_>) -> Result<Published, Status> {
        let dead_for = dead.token_invalid_for.unwrap_or_default();
        let until = call
            .deadline
            .checked_sub(TIME_FOR_A_RETRY)
            .unwrap_or(call.deadline)
            .min(Instant::now() + PATIENCE_WITH_DEAD_TOKEN.saturating_sub(dead_for));
        timeout_at(until, self.store.valid_token_after(dead.generation())).await.map_err(|_| {
            let (answer, _) = self.store.status();
            Status::permission_denied(
                answer.reason().unwrap_or("the Vault token is dead and no new one has come"),
            )
        })
    }

    /// Waits for a local KEK that may be used, if Vault is well: then the next probe brings one.
    async fn next_kek(&self, lacking: &Published, call: Call<'_>) -> Result<Published, Status> {
        self.store.request_health_check();
        if !lacking.is_healthy() {
            let kind = match lacking.answer.state() {
                HealthState::Refused => ErrorKind::Denied,
                _ => ErrorKind::Unreachable,
            };
            let reason = lacking.answer.reason().or(lacking.outage.as_deref());
            let reason = reason.unwrap_or("Vault has to wrap a new one");
            let message = format!("the local KEK may not be used any longer: {reason}");
            return Err(into_status(TransitError::new(kind, message)));
        }
        timeout_at(call.deadline, self.store.usable_kek_or_reason()).await.map_err(|_| {
            Status::deadline_exceeded(
                "the local KEK may not be used any longer, and Vault has wrapped no new one before the caller's \
                 deadline",
            )
        })
    }
}

/// A call that is being answered. If it is dropped before that, its caller has gone away.
struct Record<'a> {
    began: Instant,
    ended: bool,
    key_id: &'a str,
    method: &'static str,
    metrics: &'a Metrics,
    uid: &'a str,
}

impl Record<'_> {
    fn answered(mut self, told: &Told) {
        self.ended = true;
        let (method, took) = (self.method, self.began.elapsed());
        self.metrics.call(method, code_name(Code::Ok), took);
        debug!(
            method,
            uid = printable(self.uid),
            key_id_hash = told.key_id_hash,
            vault_request_id = told.request_id,
            ?took,
            "answered"
        );
    }

    fn failed(mut self, code: &'static str, reason: &str) {
        self.ended = true;
        self.note(code, reason, "answered with an error");
    }

    fn note(&self, code: &'static str, reason: &str, what: &'static str) {
        let (method, took) = (self.method, self.began.elapsed());
        self.metrics.call(method, code, took);
        let key_id_hash = key_id_hash(self.key_id);
        debug!(method, uid = printable(self.uid), key_id_hash, code, reason, ?took, "{what}");
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.note(
                code_name(Code::Cancelled),
                "the caller has gone away, or the process ends",
                "not answered",
            );
        }
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
    Decrypted(Decrypted),
}

/// What became of a plaintext.
pub(super) struct Encrypted {
    pub(super) ciphertext: Vec<u8>,
    /// Empty if Vault was not asked.
    pub(super) request_id: String,
    /// What must be there, in the annotation, to decrypt it.
    pub(super) wrapped_kek: Option<Vec<u8>>,
}

/// How far a call comes without Vault.
enum Attempt {
    Done(Done),
    /// Until there is a local KEK that may be used.
    NeedsKek,
    NeedsVault,
}

impl Work<'_> {
    /// Does what needs no Vault, or refuses it; waits for nothing.
    fn without_vault(self, snapshot: &Snapshot, reporter: &CallReporter) -> Result<Attempt, TransitError> {
        match self {
            Self::Encrypt { keeps_annotation, plaintext } => {
                let Some(kek) = snapshot.local_kek.as_ref().filter(|_| keeps_annotation) else {
                    return Ok(Attempt::NeedsVault);
                };
                if !reporter.keks().is_usable(kek) {
                    return Ok(Attempt::NeedsKek);
                }
                encrypt_locally(snapshot, reporter, kek, plaintext)
                    .map(|encrypted| Attempt::Done(Done::Encrypted(encrypted)))
            }
            Self::Decrypt { key_id, sealed: None, transits } => {
                snapshot.keyring.route(key_id, transits)?;
                Ok(Attempt::NeedsVault)
            }
            Self::Decrypt { key_id, sealed: Some(sealed), transits } => {
                entry_of_kek(snapshot, reporter, key_id, transits)?;
                let Some(kek) = reporter.keks().get(transits) else { return Ok(Attempt::NeedsVault) };
                let plaintext = kek.open(key_id, sealed)?;
                Ok(Attempt::Done(Done::Decrypted(Decrypted { plaintext, request_id: String::new() })))
            }
        }
    }

    /// Everything that the answer consists of comes from `snapshot`.
    async fn with_vault(
        self,
        snapshot: &Snapshot,
        reporter: &CallReporter,
        call: Call<'_>,
    ) -> Result<Done, TransitError> {
        match self {
            Self::Encrypt { plaintext, .. } => {
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
                    .inspect_err(|error| reporter.call_failed(snapshot.generation, error))
            }
            Self::Decrypt { key_id, sealed, transits } => match sealed {
                Some(sealed) => decrypt_sealed(snapshot, reporter, key_id, sealed, transits, call).await,
                None => decrypt(snapshot, reporter, key_id, transits, call).await,
            }
            .map(Done::Decrypted),
        }
    }
}

fn encrypt_locally(
    snapshot: &Snapshot,
    reporter: &CallReporter,
    kek: &LocalKek,
    plaintext: &[u8],
) -> Result<Encrypted, TransitError> {
    if let Encryption::LocalKek(limits) = snapshot.encryption
        && kek.is_worn(limits)
    {
        // The verification of a probe brings a new one; until then, and in an outage, this one serves on.
        reporter.request_health_check();
    }
    Ok(Encrypted {
        ciphertext: kek.seal(&snapshot.keyring.current().key_id, plaintext)?,
        request_id: String::new(),
        wrapped_kek: Some(kek.wrapped().as_str().as_bytes().to_vec()),
    })
}

/// The Transit key that has wrapped the local KEK, if that KEK may be used at all.
fn entry_of_kek<'a>(
    snapshot: &'a Snapshot,
    reporter: &CallReporter,
    key_id: &str,
    wrapped: &Ciphertext,
) -> Result<&'a KeyEntry, TransitError> {
    let Route::Named { entry, unseen } = snapshot.keyring.route(key_id, wrapped)? else {
        let message = "a local KEK made the ciphertext, but the key_id is of another provider";
        return Err(TransitError::new(ErrorKind::BadCiphertext, message));
    };
    if unseen {
        reporter.request_health_check();
    }
    if wrapped.version().number() < entry.min_decryption {
        let message = "the key version that wrapped the local KEK is below min_decryption_version of the key: \
                       lower it to read this value again";
        return Err(TransitError::new(ErrorKind::VersionTooOld, message));
    }
    Ok(entry)
}

/// Has Transit unwrap a local KEK, which decrypts from then on.
async fn decrypt_sealed(
    snapshot: &Snapshot,
    reporter: &CallReporter,
    key_id: &str,
    sealed: &[u8],
    wrapped: &Ciphertext,
    call: Call<'_>,
) -> Result<Decrypted, TransitError> {
    let entry = entry_of_kek(snapshot, reporter, key_id, wrapped)?;
    let stamp = reporter.keks().stamp(snapshot.generation);
    let unwrapped = snapshot.coalescer.decrypt(&entry.key, wrapped, call).await.map_err(|error| {
        let error = reporter.decrypt_failed(snapshot, entry, error);
        reporter.keks().unwrap_failed(wrapped, entry.scope, &error, stamp);
        error
    })?;
    let kek = Arc::new(LocalKek::new(&unwrapped.plaintext, wrapped.clone(), entry.scope)?);
    reporter.keks().insert(Arc::clone(&kek), stamp);
    Ok(Decrypted { plaintext: kek.open(key_id, sealed)?, request_id: unwrapped.request_id })
}

async fn decrypt(
    snapshot: &Snapshot,
    reporter: &CallReporter,
    key_id: &str,
    ciphertext: &Ciphertext,
    call: Call<'_>,
) -> Result<Decrypted, TransitError> {
    let entries = match snapshot.keyring.route(key_id, ciphertext)? {
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
            failures.not_asked.push(reason);
            continue;
        }
        match snapshot.coalescer.decrypt(&entry.key, ciphertext, call).await {
            // It must not leave: it would open every seed that it has wrapped.
            Ok(opened) if local_kek::is_payload(&opened.plaintext) => {
                let message = "the ciphertext is a wrapped local KEK, not a seed";
                return Err(TransitError::new(ErrorKind::BadCiphertext, message));
            }
            Ok(opened) => return Ok(opened),
            Err(error) => {
                let error = reporter.decrypt_failed(snapshot, entry, error);
                let ends_all = match error.kind {
                    // No time is left, or no other key has a better token, or it is made worse.
                    ErrorKind::DeadlineExceeded | ErrorKind::Throttled | ErrorKind::TokenInvalid => true,
                    // An outage, unless some node is well: then this key alone cannot be used.
                    ErrorKind::Unreachable => {
                        let nodes = snapshot.nodes.as_ref().map(|nodes| nodes.health()).unwrap_or_default();
                        !nodes.is_empty() && !nodes.iter().any(|(_, is_well)| *is_well)
                    }
                    _ => false,
                };
                failures.note(entry, error);
                if ends_all {
                    failures.cut_short = true;
                    break;
                }
            }
        }
    }
    Err(failures.conclusion())
}

/// What became of a Decrypt with each key that was tried.
#[derive(Default)]
struct Failures<'a> {
    /// Not every key was tried.
    cut_short: bool,
    /// Why some keys were not asked: they cannot decrypt.
    not_asked: Vec<&'a str>,
    tried: usize,
    /// From which an operator learns the most.
    worst: Option<(&'a KeyEntry, TransitError)>,
}

impl<'a> Failures<'a> {
    fn note(&mut self, entry: &'a KeyEntry, error: TransitError) {
        self.tried += 1;
        if self.worst.as_ref().is_none_or(|(_, worst)| usefulness(error.kind) > usefulness(worst.kind)) {
            self.worst = Some((entry, error));
        }
    }

    fn conclusion(self) -> TransitError {
        let mut error = match self.worst {
            None if self.not_asked.is_empty() => {
                TransitError::new(ErrorKind::InvalidResponse, "no key is configured")
            }
            None => return TransitError::new(ErrorKind::KeyNotFound, self.not_asked.join("; ")),
            Some((_, error)) if self.cut_short => return error,
            Some((_, error)) if self.tried + self.not_asked.len() == 1 => return error,
            Some((_, error)) if error.kind == ErrorKind::BadCiphertext => {
                TransitError::new(error.kind, "none of the keys in vault.keynames decrypts this ciphertext")
            }
            Some((entry, TransitError { kind, message })) => TransitError::new(
                kind,
                format!(
                    "key `{}`: {message}; no other key in vault.keynames decrypts this ciphertext",
                    entry.key
                ),
            ),
        };
        for reason in self.not_asked {
            error.message.push_str(&format!("; {reason}"));
        }
        error
    }
}

/// How much an operator learns from a key's failure, where several keys were tried and each failed in
/// its own way. "Not with this key" is what all the wrong ones say, so it tells the least.
fn usefulness(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::BadCiphertext => 0,
        // The ciphertext has a version that this key never had: probably it is another key's.
        ErrorKind::VersionUnavailable => 1,
        ErrorKind::InvalidResponse | ErrorKind::BatchTooLarge => 2,
        ErrorKind::KeyNotFound => 3,
        ErrorKind::Config | ErrorKind::Denied => 4,
        ErrorKind::VersionTooOld => 5,
        // It may be the right key: trying again may help, so no other reason may hide that.
        ErrorKind::Unreachable => 6,
        ErrorKind::DeadlineExceeded | ErrorKind::Throttled | ErrorKind::TokenInvalid => 7,
    }
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
    let code = match error.kind {
        ErrorKind::BadCiphertext => Code::InvalidArgument,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::Config | ErrorKind::Denied | ErrorKind::TokenInvalid => Code::PermissionDenied,
        ErrorKind::KeyNotFound | ErrorKind::VersionTooOld => Code::FailedPrecondition,
        ErrorKind::VersionUnavailable | ErrorKind::Unreachable => Code::Unavailable,
        ErrorKind::InvalidResponse | ErrorKind::BatchTooLarge => Code::Internal,
        ErrorKind::Throttled => Code::ResourceExhausted,
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
        Code::Cancelled => "Canceled",
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
