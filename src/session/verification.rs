//! Verifies a session: reads the keys, encrypts and decrypts, and decrypts the canary.
//!
//! The health checker verifies the session in use, the session manager a candidate. Nothing is published here.

use std::fmt;

use futures_util::future::join_all;
use rand::Rng;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};
use transit_client::{
    ErrorKind, Transit, TransitError,
    ciphertext::Ciphertext,
    key::KeyRef,
    key_id::{KeyVersion, Scope},
    transit::{Call, KeyDescription},
};
use zeroize::Zeroizing;

use super::{
    keyring::{KeyEntry, Keyring},
    local_kek::{self, LocalKek},
};

/// A ciphertext of the session before, with its plaintext. A successor must be able to decrypt it. In mode
/// `local-kek`, the plaintext is also a local KEK.
pub struct Canary {
    ciphertext: Ciphertext,
    plaintext: Zeroizing<Vec<u8>>,
}

impl Canary {
    /// The canary as a KEK of the key in `scope`; `None` would be a bug.
    #[must_use]
    pub fn local_kek(&self, scope: Scope) -> Option<LocalKek> {
        LocalKek::new(&self.plaintext, self.ciphertext.clone(), scope).ok()
    }
}

impl fmt::Debug for Canary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Canary").field(&self.ciphertext).finish()
    }
}

/// What a successful verification has shown.
#[derive(Debug)]
pub struct Verification {
    /// The key_id that was published when the verification began. If another one is published by the time of
    /// the report, the verification was compared with the wrong state, and does not count.
    pub against: Option<String>,
    /// The canary that the current version has encrypted.
    pub canary: Canary,
    /// The keys; its current version is the one that has encrypted and decrypted.
    pub keyring: Keyring,
}

/// The published state that a verification is compared with.
#[derive(Clone, Copy, Debug)]
pub struct PreviousState<'a> {
    /// What was encrypted last, and must be decrypted now. Vault reports only the second in which a key was
    /// created. Only the canary detects a key that was recreated within that second.
    pub canary: &'a Canary,
    /// The session in use is healthy, so refusing a candidate loses nothing.
    pub is_healthy: bool,
    /// The session in use has found its key lost, so a session without that key loses nothing.
    pub key_lost: bool,
    /// The published keys.
    pub keyring: &'a Keyring,
    /// The verified session is the one in use, which has encrypted the canary itself.
    pub same_session: bool,
}

/// Why a verification failed.
#[derive(Debug, thiserror::Error)]
pub enum VerificationError {
    /// Vault refused or did not answer, or the keys are not the published ones.
    #[error(transparent)]
    Failed(#[from] TransitError),
    /// The active node knows only versions older than the published one.
    #[error(
        "Vault's active node knows only version {0} of the key, older than the one in use: was a backup restored?"
    )]
    Older(KeyVersion),
}

impl From<VerificationError> for TransitError {
    fn from(failure: VerificationError) -> Self {
        match failure {
            VerificationError::Failed(error) => error,
            VerificationError::Older(_) => Self::new(ErrorKind::VersionUnavailable, failure.to_string()),
        }
    }
}

/// Reads the keys, then encrypts and decrypts with the newest version.
///
/// With `before`, there are further checks:
/// - The version moves back only with `accept_older`, and only if an active node reports it.
/// - A key that was recreated is detected.
/// - If the newest version cannot be used yet, the published one is verified instead and stays.
///
/// # Errors
/// See [`VerificationError`].
pub async fn verify(
    transit: &dyn Transit,
    before: Option<PreviousState<'_>>,
    accept_older: bool,
    deadline: Instant,
) -> Result<Verification, VerificationError> {
    let uid = format!("health-check-{:016x}", rand::rng().next_u64());
    let call = Call { deadline, uid: &uid };

    let primary = transit.keys().primary();
    let description = transit.read_key(primary, call).await?;
    check_usable(primary, &description)?;
    let mut entries = read_entries(transit, &description, before, call).await;
    let Some(before) = before else {
        let newest = Keyring::new(entries, description.latest)?;
        let (keyring, canary) = round_trip(transit, newest, call).await?;
        return Ok(Verification { against: None, keyring, canary });
    };

    check_same_keys(before, &mut entries)?;
    let newest = Keyring::new(entries.clone(), description.latest)?;
    let current = before.keyring.current();
    // Versions can be compared only if they are of the same key.
    let published = before
        .keyring
        .entries()
        .first()
        .is_some_and(|old| old.scope == Scope::of(primary))
        .then_some(current.version);
    let verified = if published.is_some_and(|published| description.latest < published) {
        check_going_back(transit, before, &entries, &description, accept_older, call).await?;
        round_trip(transit, newest, call).await
    } else {
        check_canary(transit, before, &entries, call).await?;
        match (round_trip(transit, newest, call).await, published) {
            (Err(error), Some(published)) if description.latest > published => {
                warn!(version = %description.latest, %error, "a new key version cannot be used yet");
                round_trip(transit, Keyring::new(entries, published)?, call).await
            }
            (verified, _) => verified,
        }
    };
    let (keyring, canary) = verified?;
    Ok(Verification { against: Some(current.key_id.clone()), keyring, canary })
}

/// Checks a version older than the published one: the node may be a standby that lags, or Vault was restored
/// from a backup.
///
/// The backup lacks the version that encrypted the canary. So the creation times of the remaining versions have
/// to show that this is the same key.
async fn check_going_back(
    transit: &dyn Transit,
    before: PreviousState<'_>,
    entries: &[KeyEntry],
    description: &KeyDescription,
    accept_older: bool,
    call: Call<'_>,
) -> Result<(), VerificationError> {
    if !transit.is_active(description.reported_by, call).await? {
        let message = "a standby node of Vault has not caught up with the versions of the key";
        return Err(TransitError::new(ErrorKind::VersionUnavailable, message).into());
    }
    if !accept_older {
        return Err(VerificationError::Older(description.latest));
    }
    match before.keyring.entries().first() {
        Some(old) if !shares_a_version(old, entries) => Err(another_key(&old.key).into()),
        _ => Ok(()),
    }
}

fn shares_a_version(old: &KeyEntry, entries: &[KeyEntry]) -> bool {
    entries.iter().any(|entry| old.shares_a_version_with(entry))
}

/// Refuses keys that cannot encrypt and decrypt seeds, and names the remedy.
fn check_usable(name: &KeyRef, key: &KeyDescription) -> Result<(), TransitError> {
    if key.soft_deleted {
        return Err(TransitError::new(
            ErrorKind::KeyNotFound,
            format!(
                "key `{name}` is soft-deleted: restore it (write to <mount>/keys/{name}/soft-delete-restore)"
            ),
        ));
    }
    let refuse = |why: &str| {
        Err(TransitError::new(
            ErrorKind::Denied,
            format!(
                "key `{name}` {why}: create a key of type aes256-gcm96 and name it first in vault.keynames"
            ),
        ))
    };
    if key.derived {
        return refuse("is derived and would need a context with every call");
    }
    if !matches!(
        key.kind.as_str(),
        "aes128-gcm96" | "aes256-gcm96" | "chacha20-poly1305" | "xchacha20-poly1305"
    ) {
        return refuse(&format!("is of type {}, not of an authenticated symmetric type", key.kind));
    }
    if key.min_decryption > key.latest.number() {
        return Err(TransitError::new(
            ErrorKind::VersionTooOld,
            format!("key `{name}` has min_decryption_version above its latest version: lower it"),
        ));
    }
    Ok(())
}

/// Returns why an additional key cannot decrypt and what to do, or `None` if it can.
fn why_unusable(key: &KeyRef, description: &KeyDescription) -> Option<String> {
    let why = if description.derived {
        "is derived and would need a context with every call".to_owned()
    } else if !description.decrypts {
        format!("is of type {}, which cannot decrypt", description.kind)
    } else {
        return None;
    };
    Some(format!("key `{key}` {why}: take it out of vault.keynames"))
}

/// Reads all keys. A failure with an additional key is noted in its entry and never fails the verification.
/// Even an invalid token may be invalid only in the namespace of that key.
async fn read_entries(
    transit: &dyn Transit,
    primary: &KeyDescription,
    before: Option<PreviousState<'_>>,
    call: Call<'_>,
) -> Vec<KeyEntry> {
    let now = Instant::now();
    // If no answer comes about the additional keys, half of the time is left for the rest of the verification.
    let call = Call { deadline: now + call.deadline.saturating_duration_since(now) / 2, ..call };
    let read = async |key: &KeyRef| match timeout_at(call.deadline, transit.read_key(key, call)).await {
        Ok(Ok(description)) => {
            KeyEntry::described(key.clone(), &description).unusable_if(why_unusable(key, &description))
        }
        failed => {
            let reason = match failed {
                Ok(Err(error)) => error.message,
                _ => "Vault did not answer in time".into(),
            };
            let known = before.and_then(|before| before.keyring.entry(Scope::of(key)));
            KeyEntry::unread(key.clone(), known, &reason)
        }
    };
    let additional = join_all(transit.keys().iter().skip(1).map(read)).await;
    let first = KeyEntry::described(transit.keys().primary().clone(), primary);
    std::iter::once(first).chain(additional).collect()
}

/// Checks that the key that encrypts, and the one that encrypted before, were not recreated. If an additional
/// key was recreated, the entry of the old one stays, so that its key_ids are still refused.
fn check_same_keys(before: PreviousState<'_>, entries: &mut [KeyEntry]) -> Result<(), TransitError> {
    let encrypted = before.keyring.entries().first().map(|old| old.scope);
    for (index, entry) in entries.iter_mut().enumerate() {
        let Some(old) = before.keyring.entry(entry.scope).filter(|old| old.contradicts(entry)) else {
            continue;
        };
        if index == 0 || Some(entry.scope) == encrypted {
            return Err(another_key(&entry.key));
        }
        if before.same_session {
            debug!(key = %entry.key, "an additional key was recreated");
        } else {
            warn!(key = %entry.key, "an additional key was recreated: data that the old one has encrypted cannot be read");
        }
        entry.clone_from(old);
    }
    Ok(())
}

/// Checks that the session decrypts the canary with the published key, and under the same path: the key_ids that
/// kube-apiserver has stored depend on that path.
async fn check_canary(
    transit: &dyn Transit,
    before: PreviousState<'_>,
    entries: &[KeyEntry],
    call: Call<'_>,
) -> Result<(), TransitError> {
    let PreviousState { canary, is_healthy, keyring, same_session, .. } = before;
    let Some(old) = keyring.entries().first() else { return Ok(()) };
    let Some(name) = transit.keys().iter().find(|key| Scope::of(key) == old.scope) else {
        return check_loss(transit, before, &old.key, call).await;
    };
    match transit.decrypt(name, &canary.ciphertext, call).await {
        Ok(opened) if *opened.plaintext == *canary.plaintext => Ok(()),
        Ok(_) => Err(another_key(name)),
        Err(error) if error.kind == ErrorKind::BadCiphertext => Err(another_key(name)),
        // The version of the canary is too old, or Vault was restored from a backup that lacks it. For the session
        // in use, the comparison of versions decides what follows. A new session must decrypt it.
        Err(error)
            if same_session
                && matches!(error.kind, ErrorKind::VersionUnavailable | ErrorKind::VersionTooOld) =>
        {
            Ok(())
        }
        // min_decryption_version was raised above the version of the canary. If the session in use is healthy, its
        // next health check makes a newer canary, so it is enough to wait. Otherwise the creation times of the
        // common versions have to show that this is the same key.
        Err(error)
            if error.kind == ErrorKind::VersionTooOld && !is_healthy && shares_a_version(old, entries) =>
        {
            warn!(key = %name, %error, "only the creation times show that the key is the one used so far");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Checks a session whose config does not have the published key. It is accepted only if that loses nothing: the
/// key is lost already, or it has moved to another path.
async fn check_loss(
    transit: &dyn Transit,
    before: PreviousState<'_>,
    published: &KeyRef,
    call: Call<'_>,
) -> Result<(), TransitError> {
    if before.key_lost {
        warn!(
            key = %published,
            "the key that encrypted so far is no longer configured: what it encrypted cannot be read \
             until it is in vault.keynames again"
        );
        return Ok(());
    }
    if !before.is_healthy {
        let canary = before.canary;
        for key in transit.keys().iter() {
            let opened = transit.decrypt(key, &canary.ciphertext, call).await;
            if opened.is_ok_and(|opened| *opened.plaintext == *canary.plaintext) {
                warn!(
                    from = published.path(), to = key.path(), key = %key.name(),
                    "the key that encrypted so far has another path now, and so another key_id: rewrite all \
                     resources; data with the old key_id cannot be read after kube-apiserver restarts"
                );
                return Ok(());
            }
        }
    }
    Err(TransitError::new(
        ErrorKind::KeyNotFound,
        format!(
            "the key that encrypted so far is not in vault.keynames, so what it encrypted could not be read: \
             add {} behind the new key, or restart transit-kms to accept the loss",
            published.config_entry()
        ),
    ))
}

fn another_key(name: &KeyRef) -> TransitError {
    TransitError::new(
        ErrorKind::KeyNotFound,
        format!(
            "key `{name}` is not the one that was in use under that name: it was deleted and recreated, or \
             this is another Vault; restore the key, or restart transit-kms to accept the loss of what the \
             old one encrypted"
        ),
    )
}

async fn round_trip(
    transit: &dyn Transit,
    keyring: Keyring,
    call: Call<'_>,
) -> Result<(Keyring, Canary), TransitError> {
    // The sample can serve as a local KEK, so that no version is published without a KEK.
    let sample = local_kek::new_payload();
    let current = keyring.current();
    let sealed = transit.encrypt(&current.key, current.version, &sample, call).await?;
    let opened = transit.decrypt(&current.key, &sealed.ciphertext, call).await?;
    if *opened.plaintext != *sample {
        return Err(TransitError::new(
            ErrorKind::InvalidResponse,
            "Transit did not return the plaintext that was encrypted",
        ));
    }
    Ok((keyring, Canary { ciphertext: sealed.ciphertext, plaintext: sample }))
}
