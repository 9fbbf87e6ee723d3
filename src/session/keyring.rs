//! What is known of the configured keys, and which of them a Decrypt is for.

use std::{collections::BTreeMap, sync::Arc};

use transit_client::{
    ErrorKind, TransitError,
    ciphertext::Ciphertext,
    key::KeyRef,
    key_id::{KeyId, KeyVersion, Scope, key_id_hash},
    transit::KeyDescription,
};

/// What is known of one configured key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyEntry {
    /// Its name, and where it is.
    pub key: KeyRef,
    /// Which key it is.
    pub scope: Scope,
    /// Transit refuses to decrypt older versions than this one.
    pub min_decryption: u32,
    /// Why it could not be read, if it could not. It may decrypt all the same.
    pub unread: Option<Arc<str>>,
    /// Why it cannot decrypt, whatever is asked of it, and what to do.
    pub unusable: Option<Arc<str>>,
    /// When each version was made, as far as Transit tells; empty if it could not be read.
    versions: BTreeMap<KeyVersion, i64>,
}

impl KeyEntry {
    /// A key that Transit has described.
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

    /// A key that could not be read, for this reason. What was `known` of it stays: a key_id that was
    /// refused must not be taken because Vault does not tell today.
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

    /// The same, unless there is a reason why it cannot decrypt.
    #[must_use]
    pub fn unusable_if(self, reason: Option<String>) -> Self {
        Self { unusable: reason.map(Into::into), ..self }
    }

    fn key_id(&self, version: KeyVersion) -> Option<KeyId> {
        self.versions.get(&version).map(|created| KeyId::new(self.scope, version, *created))
    }

    /// Whether `now`, as Vault has just described it, knows a version that was made at the same time.
    #[must_use]
    pub fn shares_a_version_with(&self, now: &Self) -> bool {
        let same = |(version, created)| now.versions.get(version) == Some(created);
        now.unread.is_none() && self.scope == now.scope && self.versions.iter().any(same)
    }

    /// Whether some version that both know was made at different times: the key was
    /// deleted and made anew, or the other is in another Vault.
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
    /// Pinned in every Encrypt.
    pub version: KeyVersion,
    /// What Status and Encrypt answer.
    pub key_id: String,
    /// How kube-apiserver's metrics name it.
    pub key_id_hash: String,
}

/// The configured keys at one moment; immutable.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Keyring {
    current: CurrentKey,
    /// In the order of `keynames`; never empty, the first is the one that encrypts.
    entries: Vec<KeyEntry>,
}

/// What to do with a Decrypt.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Route<'a> {
    /// Another provider's ciphertext: try the keys in order.
    InOrder(Vec<&'a KeyEntry>),
    /// The key_id says which key.
    Named {
        /// That key.
        entry: &'a KeyEntry,
        /// The version was not known when this keyring was made: another node was faster.
        unseen: bool,
    },
}

impl Keyring {
    /// A keyring whose first entry encrypts with `version`.
    ///
    /// # Errors
    /// If the first entry does not know `version`, so that no key_id can be made for it.
    pub fn new(entries: Vec<KeyEntry>, version: KeyVersion) -> Result<Self, TransitError> {
        let primary = entries.first();
        let key_id = primary.and_then(|entry| entry.key_id(version)).ok_or_else(|| {
            TransitError::new(
                ErrorKind::InvalidResponse,
                format!("Transit did not tell when version {version} of the key was made"),
            )
        })?;
        let key_id = key_id.to_string();
        let key = primary
            .map(|entry| entry.key.clone())
            .ok_or_else(|| TransitError::new(ErrorKind::InvalidResponse, "no key is configured"))?;
        let key_id_hash = key_id_hash(&key_id);
        Ok(Self { current: CurrentKey { key, version, key_id, key_id_hash }, entries })
    }

    /// What encrypts.
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

    /// Decides, without asking Vault, what a Decrypt is for.
    ///
    /// # Errors
    /// [`ErrorKind::BadCiphertext`] if key_id and ciphertext contradict each other or what is
    /// known of the key, [`ErrorKind::KeyNotFound`] if the key_id is of a key that is not configured.
    pub fn route(&self, key_id: &str, ciphertext: &Ciphertext) -> Result<Route<'_>, TransitError> {
        if !KeyId::has_prefix(key_id) {
            // Whoever made it, it is a bare Transit ciphertext: users moving in keep their data.
            // Those that cannot know the version yet come last, as the one asked would look for it.
            let mut entries: Vec<&KeyEntry> = self.entries.iter().collect();
            entries.sort_by_key(|entry| {
                entry.versions.keys().next_back().is_some_and(|newest| *newest < ciphertext.version())
            });
            return Ok(Route::InOrder(entries));
        }
        let refuse = |message: String| Err(TransitError::new(ErrorKind::BadCiphertext, message));
        let Ok(id) = key_id.parse::<KeyId>() else {
            return refuse("the key_id begins like one of ours but is damaged".into());
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
                "version {} of key `{}` was made at another time than the key_id says: the key was \
                 deleted and made anew, or this is another Vault; restore the key from a backup",
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
    fn a_version_above_the_snapshot_is_tried_and_said_to_be_unseen() {
        let keyring = keyring();
        let route = keyring.route(&named("kms", 4, 400), &ciphertext(4)).unwrap();
        assert!(matches!(route, Route::Named { unseen: true, .. }));
        // Below the oldest that Transit tells of: tried, but nothing new.
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
    fn other_providers_key_ids_lead_to_all_keys_in_order() {
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
    fn what_was_known_of_a_key_that_cannot_be_read_stays_and_proves_nothing() {
        let known = entry("kms-old", &[(1, 50)]);
        let unread = KeyEntry::unread(known.key.clone(), Some(&known), "500");
        let keyring = Keyring::new(vec![entry("kms", &[(3, 300)]), unread.clone()], v(3)).unwrap();
        assert!(keyring.route(&named("kms-old", 1, 50), &ciphertext(1)).is_ok());
        assert!(keyring.route(&named("kms-old", 1, 51), &ciphertext(1)).is_err());
        assert!(known.shares_a_version_with(&known) && !known.shares_a_version_with(&unread));
    }

    #[test]
    fn a_key_made_anew_contradicts_the_old_one() {
        let old = entry("kms", &[(1, 100), (2, 200)]);
        assert!(!old.contradicts(&entry("kms", &[(2, 200), (3, 300)])));
        assert!(old.contradicts(&entry("kms", &[(1, 101)])));
        assert!(!old.contradicts(&entry("other", &[(1, 101)])));
        assert!(!old.contradicts(&entry("kms", &[(3, 300)])));
    }
}
