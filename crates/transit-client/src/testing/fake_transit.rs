//! A Transit engine in memory.
//!
//! Tests use it for faults and orders of events that a real server does not produce on demand. `tests/it` tests the
//! rest against a real server.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use crate::{
    ErrorKind, Transit, TransitError,
    ciphertext::Ciphertext,
    key::{KeyNames, KeyRef},
    key_id::KeyVersion,
    transit::{Call, Decrypted, Encrypted, KeyDescription, NodeId},
};

/// One key of the engine.
#[derive(Clone)]
pub struct FakeKey {
    pub derived: bool,
    /// All operations with the key fail with this kind.
    pub fails: Option<ErrorKind>,
    pub kind: &'static str,
    /// Stands for the secret key material: keys with different values cannot decrypt each other's ciphertexts.
    pub material: u64,
    pub min_decryption: u32,
    pub min_encryption: u32,
    pub soft_deleted: bool,
    /// The creation time of each version in Unix seconds, from version 1.
    pub versions: Vec<i64>,
}

impl FakeKey {
    pub fn new(material: u64, versions: &[i64]) -> Self {
        Self {
            derived: false,
            fails: None,
            kind: "aes256-gcm96",
            material,
            min_decryption: 1,
            min_encryption: 0,
            soft_deleted: false,
            versions: versions.to_vec(),
        }
    }

    fn latest(&self) -> u32 {
        u32::try_from(self.versions.len()).unwrap()
    }
}

/// The state of the engine. Tests change it while calls run.
#[derive(Default)]
pub struct State {
    /// Each call takes the next value, and yields that many times before it reads the state, and again before it
    /// answers.
    pub delays: VecDeque<u8>,
    pub fails: BTreeMap<&'static str, ErrorKind>,
    pub keys: BTreeMap<String, FakeKey>,
    /// Larger batches fail with `BatchTooLarge`.
    pub largest_batch: Option<usize>,
    /// How many of the newest versions the answering node does not know.
    pub lag: u32,
    /// The engine does not answer.
    pub silent: bool,
}

/// A fake cluster. Its sessions share its state.
#[derive(Clone, Default)]
pub struct FakeTransit {
    calls: Arc<AtomicUsize>,
    state: Arc<Mutex<State>>,
}

impl FakeTransit {
    /// An engine with a key `kms` of one version.
    pub fn new() -> Self {
        let engine = Self::default();
        engine.change(|state| {
            state.keys.insert("kms".into(), FakeKey::new(1, &[100]));
        });
        engine
    }

    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.lock())
    }

    pub fn rotate(&self, key: &str) {
        self.change(|state| {
            let versions = &mut state.keys.get_mut(key).unwrap().versions;
            versions.push(versions.last().unwrap() + 100);
        });
    }

    /// The number of calls so far.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    pub fn session(&self, keys: &[&str]) -> Arc<FakeSession> {
        let keys = keys.iter().map(|key| KeyRef::in_transit(key));
        Arc::new(FakeSession {
            refused: Mutex::new(None),
            keys: KeyNames::new(keys).unwrap(),
            engine: self.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// A session with the fake engine.
pub struct FakeSession {
    /// All calls of this session fail with this kind.
    refused: Mutex<Option<ErrorKind>>,
    keys: KeyNames,
    engine: FakeTransit,
}

impl FakeSession {
    pub fn kill_token(&self) {
        self.refuse(ErrorKind::TokenInvalid);
    }

    /// All calls of this session fail with `kind` from now on. Other sessions are not affected.
    pub fn refuse(&self, kind: ErrorKind) {
        *self.refused.lock().unwrap() = Some(kind);
    }

    /// Runs one call: it waits as a request does, and reads the state at one moment.
    async fn run_call<T>(
        &self,
        what: &'static str,
        read: impl FnOnce(&State) -> Result<T, TransitError>,
    ) -> Result<T, TransitError> {
        self.engine.calls.fetch_add(1, Ordering::Relaxed);
        let delay = self.engine.lock().delays.pop_front().unwrap_or(0);
        for _ in 0..delay {
            tokio::task::yield_now().await;
        }
        if self.engine.lock().silent {
            std::future::pending::<()>().await;
        }
        let result = {
            let state = self.engine.lock();
            let refused = *self.refused.lock().unwrap();
            match refused.or_else(|| state.fails.get(what).copied()) {
                Some(ErrorKind::TokenInvalid) => {
                    Err(TransitError::new(ErrorKind::TokenInvalid, "the token is invalid"))
                }
                Some(kind) => Err(TransitError::new(kind, format!("{what}: {}", kind.name()))),
                None => read(&state),
            }
        };
        for _ in 0..delay {
            tokio::task::yield_now().await;
        }
        result
    }
}

fn visible<'a>(state: &'a State, key: &KeyRef) -> Result<(&'a FakeKey, u32), TransitError> {
    let key = state
        .keys
        .get(key.name().as_str())
        .ok_or_else(|| TransitError::new(ErrorKind::KeyNotFound, format!("key `{key}` does not exist")))?;
    if let Some(kind) = key.fails {
        return Err(TransitError::new(kind, kind.name()));
    }
    Ok((key, key.latest() - state.lag.min(key.latest() - 1)))
}

fn decrypt(state: &State, key: &KeyRef, ciphertext: &Ciphertext) -> Result<Decrypted, TransitError> {
    let (key, latest) = visible(state, key)?;
    let version = ciphertext.version().number();
    if version > latest {
        return Err(TransitError::new(ErrorKind::VersionUnavailable, "version is too new"));
    }
    if version < key.min_decryption {
        return Err(TransitError::new(ErrorKind::VersionTooOld, "too old"));
    }
    let body = ciphertext.as_str().rsplit(':').next().unwrap();
    let inner = STANDARD.decode(body).unwrap();
    let (material, plaintext) = inner.split_at(8);
    if material != key.material.to_be_bytes() {
        return Err(TransitError::new(ErrorKind::BadCiphertext, "message authentication failed"));
    }
    Ok(Decrypted { plaintext: Zeroizing::new(plaintext.to_vec()), request_id: Some("request".into()) })
}

#[async_trait]
impl Transit for FakeSession {
    async fn decrypt(
        &self,
        key: &KeyRef,
        ciphertext: &Ciphertext,
        _: Call<'_>,
    ) -> Result<Decrypted, TransitError> {
        self.run_call("decrypt", |state| decrypt(state, key, ciphertext)).await
    }

    async fn decrypt_batch(
        &self,
        key: &KeyRef,
        ciphertexts: &[&Ciphertext],
        _: Call<'_>,
    ) -> Result<Vec<Result<Decrypted, TransitError>>, TransitError> {
        self.run_call("decrypt_batch", |state| {
            if state.largest_batch.is_some_and(|largest| ciphertexts.len() > largest) {
                return Err(TransitError::new(ErrorKind::BatchTooLarge, "high complexity"));
            }
            visible(state, key)?;
            let ask = |ciphertext: &&Ciphertext| decrypt(state, key, ciphertext);
            Ok(ciphertexts.iter().map(ask).collect())
        })
        .await
    }

    async fn encrypt(
        &self,
        key: &KeyRef,
        version: KeyVersion,
        plaintext: &[u8],
        _: Call<'_>,
    ) -> Result<Encrypted, TransitError> {
        self.run_call("encrypt", |state| {
            let (key, latest) = visible(state, key)?;
            if key.soft_deleted {
                return Err(TransitError::new(ErrorKind::KeyNotFound, "soft-deleted"));
            }
            if version.number() > latest {
                return Err(TransitError::new(ErrorKind::VersionUnavailable, "higher than the latest"));
            }
            if version.number() < key.min_encryption {
                return Err(TransitError::new(ErrorKind::VersionTooOld, "less than the minimum"));
            }
            let body = STANDARD.encode([&key.material.to_be_bytes(), plaintext].concat());
            let ciphertext = Ciphertext::parse(format!("vault:v{version}:{body}").as_bytes()).unwrap();
            Ok(Encrypted { ciphertext, request_id: Some("request".into()) })
        })
        .await
    }

    async fn is_active(&self, _: NodeId, _: Call<'_>) -> Result<bool, TransitError> {
        self.run_call("is_active", |state| Ok(state.lag == 0)).await
    }

    fn keys(&self) -> &KeyNames {
        &self.keys
    }

    async fn read_key(&self, key: &KeyRef, _: Call<'_>) -> Result<KeyDescription, TransitError> {
        self.run_call("read_key", |state| {
            let (key, latest) = visible(state, key)?;
            let versions = key.versions.iter().zip(1..=latest);
            Ok(KeyDescription {
                decrypts: key.kind != "hmac",
                reported_by: NodeId(0),
                derived: key.derived,
                latest: KeyVersion::new(latest).unwrap(),
                min_decryption: key.min_decryption,
                soft_deleted: key.soft_deleted,
                kind: key.kind.into(),
                versions: versions
                    .filter(|(_, version)| *version >= key.min_decryption)
                    .map(|(created, version)| (KeyVersion::new(version).unwrap(), *created))
                    .collect(),
            })
        })
        .await
    }
}
