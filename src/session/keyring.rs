//! The configured keys as Vault described them, and which of them decrypts a ciphertext.

use std::{collections::BTreeMap, sync::Arc};

use transit_client::{
    ErrorKind, TransitError,
    ciphertext::Ciphertext,
    key::KeyRef,
    key_id::{KeyId, KeyVersion, Scope, key_id_hash},
    transit::KeyDescription,
};

/// One configured key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyEntry {
    /// Its name and path.
    pub key: KeyRef,
    /// The part of its key_ids that identifies the key.
    pub scope: Scope,
    /// Transit does not decrypt with versions older than this one.
    pub min_decryption: u32,
    /// Why it could not be read, if so. It may decrypt nevertheless.
    pub unread: Option<Arc<str>>,
    /// Why it can never decrypt, and what to do, if so.
    pub unusable: Option<Arc<str>>,
    /// The creation times of the versions that Transit has reported, in Unix seconds. Empty if the key could not be read.
    versions: BTreeMap<KeyVersion, i64>,
}

impl KeyEntry {
    /// The entry of a key that Transit has described.
    #[must_use]
    pub fn described(key: KeyRef, description: &KeyDescription) -> Self {
        Self {
            scope: Scope::of(&key),
            key,
            min_decryption: description.min_decryption,
            unread: None,
            unusable: None,
            versions: description.versions.clone(),
        }
    }

    /// The entry of a key that could not be read, for this reason. The versions of the `known` entry stay, so that a
    /// key_id that was refused is not accepted while Vault does not answer.
    #[must_use]
    pub fn unread(key: KeyRef, known: Option<&Self>, reason: &str) -> Self {
        let scope = Scope::of(&key);
        let known = known.filter(|known| known.scope == scope);
        Self {
            key,
            scope,
            min_decryption: known.map_or(0, |known| known.min_decryption),
            unread: Some(reason.into()),
            unusable: known.and_then(|known| known.unusable.clone()),
            versions: known.map(|known| known.versions.clone()).unwrap_or_default(),
        }
    }

    /// Adds the reason why the key can never decrypt, if there is one.
    #[must_use]
    pub fn unusable_if(self, reason: Option<String>) -> Self {
        Self { unusable: reason.map(Into::into), ..self }
    }

    fn key_id(&self, version: KeyVersion) -> Option<KeyId> {
        self.versions.get(&version).map(|created| KeyId::new(self.scope, version, *created))
    }

    /// Whether `now`, which Vault has just described, has a version with the same creation time.
    #[must_use]
    pub fn shares_a_version_with(&self, now: &Self) -> bool {
        let same = |(version, created)| now.versions.get(version) == Some(created);
        now.unread.is_none() && self.scope == now.scope && self.versions.iter().any(same)
    }

    /// Whether a version of both has different creation times: the key was deleted and recreated, or the other is in
    /// another Vault.
    #[must_use]
    pub fn contradicts(&self, other: &Self) -> bool {
        self.scope == other.scope
            && self
                .versions
                .iter()
                .any(|(version, created)| other.versions.get(version).is_some_and(|theirs| theirs != created))
    }
}

/// The version that encrypts, under its public name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CurrentKey {
    /// The key that encrypts.
    pub key: KeyRef,
    /// The version that every Encrypt uses.
    pub version: KeyVersion,
    /// The key_id that Status and Encrypt return.
    pub key_id: String,
    /// The key_id as metrics of kube-apiserver show it.
    pub key_id_hash: String,
}

/// The configured keys at one moment; immutable.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Keyring {
    current: CurrentKey,
    /// In the order of `keynames`; never empty. The first one encrypts.
    entries: Vec<KeyEntry>,
}

/// The keys to decrypt a ciphertext with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Route<'a> {
    /// The ciphertext of another provider: these keys, in this order.
    InOrder(Vec<&'a KeyEntry>),
    /// The key that the key_id names.
    Named {
        /// That key.
        entry: &'a KeyEntry,
        /// The version is newer than all in this keyring: another node has published it already.
        unseen: bool,
    },
}

impl Keyring {
    /// Creates a keyring whose first entry encrypts with `version`.
    ///
    /// # Errors
    /// If the first entry does not have `version`, so that it has no key_id.
    pub fn new(entries: Vec<KeyEntry>, version: KeyVersion) -> Result<Self, TransitError> {
        let primary = entries.first();
        let key_id = primary.and_then(|entry| entry.key_id(version)).ok_or_else(|| {
            TransitError::new(
                ErrorKind::InvalidResponse,
                format!("Transit did not report when version {version} of the key was created"),
            )
        })?;
        let key_id = key_id.to_string();
        let key = primary
            .map(|entry| entry.key.clone())
            .ok_or_else(|| TransitError::new(ErrorKind::InvalidResponse, "no key is configured"))?;
        let key_id_hash = key_id_hash(&key_id);
        Ok(Self { current: CurrentKey { key, version, key_id, key_id_hash }, entries })
    }

    /// The key and version that encrypt.
    #[must_use]
    pub fn current(&self) -> &CurrentKey {
        &self.current
    }

    /// All keys, the one that encrypts first.
    #[must_use]
    pub fn entries(&self) -> &[KeyEntry] {
        &self.entries
    }

    /// The entry of the key in `scope`.
    #[must_use]
    pub fn entry(&self, scope: Scope) -> Option<&KeyEntry> {
        self.entries.iter().find(|entry| entry.scope == scope)
    }

    /// Decides which keys decrypt `ciphertext`, without a request to Vault.
    ///
    /// # Errors
    /// [`ErrorKind::BadCiphertext`] if key_id and ciphertext contradict each other or the keyring, [`ErrorKind::KeyNotFound`] if the key_id is of a key that is not configured.
    pub fn route(&self, key_id: &str, ciphertext: &Ciphertext) -> Result<Route<'_>, TransitError> {
        if !KeyId::has_prefix(key_id) {
            // A bare Transit ciphertext is decrypted whichever provider has made it, so that data can be migrated. Keys
            // that do not have the version come last, because Vault would take long to look for it.
            let mut entries: Vec<&KeyEntry> = self.entries.iter().collect();
            entries.sort_by_key(|entry| {
                entry.versions.keys().next_back().is_some_and(|newest| *newest < ciphertext.version())
            });
            return Ok(Route::InOrder(entries));
        }
        let refuse = |message: String| Err(TransitError::new(ErrorKind::BadCiphertext, message));
        let Ok(id) = key_id.parse::<KeyId>() else {
            return refuse("the key_id begins like one of transit-kms but is damaged".into());
        };
        let Some(entry) = self.entry(id.scope) else {
            return Err(TransitError::new(
                ErrorKind::KeyNotFound,
                "the key_id is of a Transit key that is not configured here; if it was before \
                 (another namespace, mount or name), add it to vault.keynames again",
            ));
        };
        if ciphertext.version() != id.version {
            return refuse(format!(
                "the key_id names version {}, but the ciphertext was made with version {}: \
                 they do not belong together",
                id.version,
                ciphertext.version()
            ));
        }
        match entry.key_id(id.version) {
            Some(known) if known != id => refuse(format!(
                "version {} of key `{}` was created at another time than the key_id says: the key was \
                 deleted and recreated, or this is another Vault; restore the key from a backup",
                id.version, entry.key
            )),
            Some(_) => Ok(Route::Named { entry, unseen: false }),
            None => {
                let newest = entry.versions.keys().next_back();
                Ok(Route::Named { entry, unseen: newest.is_some_and(|newest| id.version > *newest) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, versions: &[(u32, i64)]) -> KeyEntry {
        let key = KeyRef::in_transit(name);
        let versions = versions.iter().map(|(version, created)| (v(*version), *created)).collect();
        KeyEntry { scope: Scope::of(&key), key, min_decryption: 1, unread: None, unusable: None, versions }
    }

    fn v(number: u32) -> KeyVersion {
        KeyVersion::new(number).unwrap()
    }

    fn keyring() -> Keyring {
        let old = entry("kms-old", &[(1, 50)]);
        Keyring::new(vec![entry("kms", &[(2, 200), (3, 300)]), old], v(3)).unwrap()
    }

    fn ciphertext(version: u32) -> Ciphertext {
        Ciphertext::parse(format!("vault:v{version}:QUJD").as_bytes()).unwrap()
    }

    fn named(key: &str, version: u32, created: i64) -> String {
        KeyId::new(entry(key, &[]).scope, v(version), created).to_string()
    }

    #[test]
    fn a_known_version_is_routed_to_its_key() {
        let keyring = keyring();
        for (key, version, created) in [("kms", 2, 200), ("kms", 3, 300), ("kms-old", 1, 50)] {
            let id = named(key, version, created);
            let Ok(Route::Named { entry, unseen: false }) = keyring.route(&id, &ciphertext(version)) else {
                panic!("{key} {version}");
            };
            assert_eq!(entry.key.name().as_str(), key);
        }
    }

    #[test]
    fn a_version_above_the_known_ones_is_tried_and_reported_as_unseen() {
        let keyring = keyring();
        let route = keyring.route(&named("kms", 4, 400), &ciphertext(4)).unwrap();
        assert!(matches!(route, Route::Named { unseen: true, .. }));
        // A version below the oldest that Transit reports is tried too, but it is not new.
        let route = keyring.route(&named("kms", 1, 100), &ciphertext(1)).unwrap();
        assert!(matches!(route, Route::Named { unseen: false, .. }));
    }

    #[test]
    fn contradictions_are_refused() {
        let keyring = keyring();
        for (id, version) in [
            (named("kms", 3, 301), 3),
            (named("kms", 3, 300), 2),
            (named("kms", 4, 400), 3),
            ("tk1.damaged".into(), 3),
        ] {
            let error = keyring.route(&id, &ciphertext(version)).unwrap_err();
            assert_eq!(error.kind, ErrorKind::BadCiphertext, "{id}");
        }
        let error = keyring.route(&named("foreign", 1, 1), &ciphertext(1)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::KeyNotFound);
    }

    #[test]
    fn key_ids_of_other_providers_lead_to_all_keys_in_order() {
        let keyring = keyring();
        for id in ["1", "1719830400", "kleidi-kms-plugin_1_1719830400", "", "tk10"] {
            assert_eq!(
                keyring.route(id, &ciphertext(1)).unwrap(),
                Route::InOrder(keyring.entries().iter().collect())
            );
            let Ok(Route::InOrder(entries)) = keyring.route(id, &ciphertext(2)) else { panic!("in order") };
            assert_eq!(entries.first().unwrap().key.name().as_str(), "kms");
        }
    }

    #[test]
    fn the_known_versions_of_a_key_that_cannot_be_read_stay_and_prove_nothing() {
        let known = entry("kms-old", &[(1, 50)]);
        let unread = KeyEntry::unread(known.key.clone(), Some(&known), "500");
        let keyring = Keyring::new(vec![entry("kms", &[(3, 300)]), unread.clone()], v(3)).unwrap();
        assert!(keyring.route(&named("kms-old", 1, 50), &ciphertext(1)).is_ok());
        assert!(keyring.route(&named("kms-old", 1, 51), &ciphertext(1)).is_err());
        assert!(known.shares_a_version_with(&known) && !known.shares_a_version_with(&unread));
    }

    #[test]
    fn a_recreated_key_contradicts_the_old_one() {
        let old = entry("kms", &[(1, 100), (2, 200)]);
        assert!(!old.contradicts(&entry("kms", &[(2, 200), (3, 300)])));
        assert!(old.contradicts(&entry("kms", &[(1, 101)])));
        assert!(!old.contradicts(&entry("other", &[(1, 101)])));
        assert!(!old.contradicts(&entry("kms", &[(3, 300)])));
    }
}
