//! One probe: is this session able to wrap and unwrap, and under which version?
//!
//! The health_checker asks it of the session in use, the keeper of a candidate. Nothing is
//! published here.

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

/// A value wrapped by a session that worked, for its successor to unwrap; it may serve as a local KEK.
pub struct Canary {
    ciphertext: Ciphertext,
    plaintext: Zeroizing<Vec<u8>>,
}

impl Canary {
    /// The KEK that it is, of the key in `scope`; `None` would be a bug.
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

/// What a good probe has shown.
#[derive(Debug)]
pub struct Verification {
    /// The key_id that was published when the probe began. If another one is by the time
    /// the verification is posted, it was held against the wrong thing, and does not count.
    pub against: Option<String>,
    /// The keys, with the version that was proven as the current one.
    pub keyring: Keyring,
    /// Wrapped with that version.
    pub canary: Canary,
}

/// What was published before, against which a probe is held.
#[derive(Clone, Copy, Debug)]
pub struct PreviousState<'a> {
    /// The keys as published.
    pub keyring: &'a Keyring,
    /// Whether the session in use is well, so that nothing is lost by insisting on the canary.
    pub insist: bool,
    /// Whether the session in use has found its key gone, so that a session without it loses
    /// nothing that could still be read.
    pub lost: bool,
    /// Whether the session that is checked wrapped the canary itself.
    pub own: bool,
    /// What was wrapped last, to be unwrapped now: Vault tells only the second in which a key
    /// was made, so that one made anew at once is known by nothing else.
    pub canary: &'a Canary,
}

/// How a probe may fail.
#[derive(Debug, thiserror::Error)]
pub enum VerificationError {
    /// Vault could not do it.
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
/// With `before`, the published version moves back only with `accept_older` and on the word of an
/// active node; a key that was made anew is found out; and if the newest version cannot be used
/// yet, the published one is proven instead and stays.
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
    // The version published so far binds us only if it is of the same key.
    let published = before
        .keyring
        .entries()
        .first()
        .is_some_and(|old| old.scope == Scope::of(primary))
        .then_some(current.version);
    let proven = if published.is_some_and(|published| description.latest < published) {
        check_going_back(transit, before, &entries, &description, accept_older, call).await?;
        round_trip(transit, newest, call).await
    } else {
        check_canary(transit, before, &entries, call).await?;
        match (round_trip(transit, newest, call).await, published) {
            (Err(error), Some(published)) if description.latest > published => {
                warn!(version = %description.latest, %error, "a new key version cannot be used yet");
                round_trip(transit, Keyring::new(entries, published)?, call).await
            }
            (proven, _) => proven,
        }
    };
    let (keyring, canary) = proven?;
    Ok(Verification { against: Some(current.key_id.clone()), keyring, canary })
}

/// An older version than the published one: a standby that lags, or a restored backup.
///
/// The backup has lost the version that the canary was made with, so what shows that this is
/// the same key is the birth of the versions that are left.
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

/// Refuses keys that can not do what is asked of them, with the remedy.
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

/// Why an additional key cannot decrypt, and what to do, if it cannot.
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

/// All keys. An additional one never keeps the first from working: whatever is wrong with it is
/// noted in its entry. Even a refusal of the token may be meant for its place alone.
async fn read_entries(
    transit: &dyn Transit,
    primary: &KeyDescription,
    before: Option<PreviousState<'_>>,
    call: Call<'_>,
) -> Vec<KeyEntry> {
    let now = Instant::now();
    // What is silent about them leaves time for the rest of the probe.
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

/// A key that encrypts, or did, must be the one it was. An additional one that was made anew is
/// no reason to stop: what is known of the old one stays, so that its key_ids are still refused.
fn check_same_keys(before: PreviousState<'_>, entries: &mut [KeyEntry]) -> Result<(), TransitError> {
    let encrypted = before.keyring.entries().first().map(|old| old.scope);
    for (index, entry) in entries.iter_mut().enumerate() {
        let Some(old) = before.keyring.entry(entry.scope).filter(|old| old.contradicts(entry)) else {
            continue;
        };
        if index == 0 || Some(entry.scope) == encrypted {
            return Err(another_key(&entry.key));
        }
        if before.own {
            debug!(key = %entry.key, "an additional key was made anew");
        } else {
            warn!(key = %entry.key, "an additional key was made anew: what the old one encrypted cannot be read");
        }
        entry.clone_from(old);
    }
    Ok(())
}

/// A session must unwrap what was wrapped under the published key, in the place where that key is:
/// what kube-apiserver has stored names that place in its key_ids.
async fn check_canary(
    transit: &dyn Transit,
    before: PreviousState<'_>,
    entries: &[KeyEntry],
    call: Call<'_>,
) -> Result<(), TransitError> {
    let PreviousState { keyring, insist, own, canary, .. } = before;
    let Some(old) = keyring.entries().first() else { return Ok(()) };
    let Some(name) = transit.keys().iter().find(|key| Scope::of(key) == old.scope) else {
        return check_loss(transit, before, &old.key, call).await;
    };
    match transit.decrypt(name, &canary.ciphertext, call).await {
        Ok(opened) if *opened.plaintext == *canary.plaintext => Ok(()),
        Ok(_) => Err(another_key(name)),
        Err(error) if error.kind == ErrorKind::BadCiphertext => Err(another_key(name)),
        // Its version is too old, or gone with a restored backup: the versions themselves tell
        // what follows from that. A session that is new must do better.
        Err(error)
            if own && matches!(error.kind, ErrorKind::VersionUnavailable | ErrorKind::VersionTooOld) =>
        {
            Ok(())
        }
        // min_decryption_version was raised above what the old session used last. While that one
        // works, it soon makes a newer canary; when it does not, nobody will, and the birth of
        // the versions that both know has to do.
        Err(error) if error.kind == ErrorKind::VersionTooOld && !insist && shares_a_version(old, entries) => {
            warn!(key = %name, %error, "that the key is the one used so far shows only in its creation times");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// A session without the published key strands what was encrypted under it. It is taken only where
/// that makes nothing worse: the key is gone, or no other place has it any more.
async fn check_loss(
    transit: &dyn Transit,
    before: PreviousState<'_>,
    published: &KeyRef,
    call: Call<'_>,
) -> Result<(), TransitError> {
    if before.lost {
        warn!(
            key = %published,
            "the key that encrypted so far is no longer configured: what it encrypted cannot be read \
             until it is in vault.keynames again"
        );
        return Ok(());
    }
    if !before.insist {
        let canary = before.canary;
        for key in transit.keys().iter() {
            let opened = transit.decrypt(key, &canary.ciphertext, call).await;
            if opened.is_ok_and(|opened| *opened.plaintext == *canary.plaintext) {
                warn!(
                    from = published.path(), to = key.path(), key = %key.name(),
                    "the key that encrypted so far is in another place now, and so has another key_id: have \
                     everything rewritten; what names the old place cannot be read after kube-apiserver restarts"
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
            "key `{name}` is not the one that was in use under that name: it was deleted and made anew, or \
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
    // Every verification brings a KEK along, so that no version is published without one.
    let sample = local_kek::new_payload();
    let current = keyring.current();
    let sealed = transit.encrypt(&current.key, current.version, &sample, call).await?;
    let opened = transit.decrypt(&current.key, &sealed.ciphertext, call).await?;
    if *opened.plaintext != *sample {
        return Err(TransitError::new(
            ErrorKind::InvalidResponse,
            "Transit did not decrypt to what was encrypted",
        ));
    }
    Ok((keyring, Canary { ciphertext: sealed.ciphertext, plaintext: sample }))
}
