//! key_id: the public name of one version of one Transit key.
//!
//! `tk1.<scope>.<version>.<birth>`, where
//!
//! - *scope* is the first 16 bytes, in hex, of SHA-256 over the path of the mount
//!   and the name of the key, each after its length as four bytes, big-endian.
//!   The path is namespace and mount, joined by a slash, without slashes around
//!   it. The root namespace adds nothing, whether it is written as `root` or left
//!   out. So the mount `transit` of namespace `team-a` and the mount
//!   `team-a/transit` of the root namespace, which are the same mount, have the
//!   same scope;
//! - *version* is the key version, decimal, without leading zeros;
//! - *birth* is the first 8 bytes, in hex, of SHA-256 over the 16 bytes of the
//!   scope, the version as four bytes and the Unix time in seconds at which
//!   Transit created that version as eight, both big-endian.
//!
//! It depends on the key only, so it is the same on every node and after every
//! restart. It reveals neither the path nor the name of the key. A key that is
//! deleted and created again under the same name has another birth.
//!
//! The format cannot change: key_ids are stored beside every value in etcd. The
//! tests compare it with the golden vectors in `tests/golden/key_id.tsv`.

use std::{fmt, num::NonZeroU32, str::FromStr};

use sha2::{Digest, Sha256};

use crate::key::KeyRef;

const FORMAT: &str = "tk1";

/// The number of a key version. Transit counts from 1.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyVersion(NonZeroU32);

impl KeyVersion {
    /// `None` for 0, which Transit reads as version 1.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// The number.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0.get()
    }

    /// Reads decimal digits in their canonical form: without sign and leading zeros.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
        text.parse().ok().filter(|_| canonical).and_then(Self::new)
    }
}

impl fmt::Display for KeyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A hash that stands for a Transit key: see the [module](self).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Scope([u8; 16]);

impl Scope {
    /// The scope of a key.
    #[must_use]
    pub fn of(key: &KeyRef) -> Self {
        let mut hash = Sha256::new();
        for part in [key.path(), key.name().as_str()] {
            // The conversion cannot fail: the whole config file is at most 64 KiB.
            let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
            hash.update(length.to_be_bytes());
            hash.update(part);
        }
        Self(first_bytes(hash))
    }
}

/// A hash that stands for the creation time of a key version: see the [module](self).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Birth([u8; 8]);

impl Birth {
    /// The birth of a key version. `created` is in Unix seconds, as in the field `keys` of the key.
    #[must_use]
    pub fn of(scope: Scope, version: KeyVersion, created: i64) -> Self {
        let hash = Sha256::new()
            .chain_update(scope.0)
            .chain_update(version.number().to_be_bytes())
            .chain_update(created.to_be_bytes());
        Self(first_bytes(hash))
    }
}

fn first_bytes<const N: usize>(hash: Sha256) -> [u8; N] {
    let mut first = [0; N];
    first.iter_mut().zip(hash.finalize()).for_each(|(to, from)| *to = from);
    first
}

/// The parts of a key_id.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct KeyId {
    /// The key.
    pub scope: Scope,
    /// The version of the key.
    pub version: KeyVersion,
    /// When that version was created.
    pub birth: Birth,
}

impl KeyId {
    /// The key_id of `version` of the key with this scope, created at `created` (Unix seconds).
    #[must_use]
    pub fn new(scope: Scope, version: KeyVersion, created: i64) -> Self {
        Self { scope, version, birth: Birth::of(scope, version, created) }
    }

    /// Whether `text` begins as a key_id of transit-kms, well-formed or not.
    #[must_use]
    pub fn has_prefix(text: &str) -> bool {
        text.strip_prefix(FORMAT).is_some_and(|rest| rest.starts_with('.'))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scope, birth) = (hex::encode(self.scope.0), hex::encode(self.birth.0));
        write!(f, "{FORMAT}.{scope}.{}.{birth}", self.version)
    }
}

/// The text is not a well-formed key_id of transit-kms.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a key_id of the form tk1.<scope>.<version>.<birth>")]
pub struct InvalidKeyId;

impl FromStr for KeyId {
    type Err = InvalidKeyId;

    /// Accepts the canonical form only, so that no two texts name the same version.
    fn from_str(text: &str) -> Result<Self, InvalidKeyId> {
        let mut parts = text.split('.');
        let (Some(FORMAT), Some(scope), Some(version), Some(birth), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidKeyId);
        };
        Ok(Self {
            scope: Scope(parse_hex(scope).ok_or(InvalidKeyId)?),
            version: KeyVersion::parse(version).ok_or(InvalidKeyId)?,
            birth: Birth(parse_hex(birth).ok_or(InvalidKeyId)?),
        })
    }
}

/// The hash by which kube-apiserver's metrics and logs name a key_id; empty for an empty key_id.
///
/// Source: `GetHashIfNotEmpty` in k8s.io/apiserver
/// `pkg/storage/value/encrypt/envelope/metrics/metrics.go`.
#[must_use]
pub fn key_id_hash(key_id: &str) -> String {
    if key_id.is_empty() {
        return String::new();
    }
    format!("sha256:{}", hex::encode(Sha256::digest(key_id)))
}

fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    // `hex` also accepts capital letters, which would give one key version two names.
    if text.bytes().any(|digit| digit.is_ascii_uppercase()) {
        return None;
    }
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key::{KeyName, MountPath, Namespace};

    fn scope(namespace: &str, mount: &str, key: &str) -> Scope {
        Scope::of(&KeyRef::new(
            KeyName::new(key).unwrap(),
            MountPath::new(mount).unwrap(),
            Namespace::new(namespace).unwrap(),
        ))
    }

    fn key_id(namespace: &str, mount: &str, key: &str, version: u32, created: i64) -> String {
        KeyId::new(scope(namespace, mount, key), KeyVersion::new(version).unwrap(), created).to_string()
    }

    /// The vectors were computed by `tests/golden/key_id.py`, independently of this code.
    #[test]
    fn golden_vectors() {
        for line in
            include_str!("../../../tests/golden/key_id.tsv").lines().filter(|line| !line.starts_with('#'))
        {
            let fields: Vec<&str> = line.split('\t').collect();
            let [namespace, mount, key, version, created, expected, hash] = fields[..] else {
                panic!("a vector has seven fields: {line}");
            };
            let made = key_id(namespace, mount, key, version.parse().unwrap(), created.parse().unwrap());
            assert_eq!(made, expected, "{line}");
            assert_eq!(key_id_hash(&made), hash, "{line}");
            assert_eq!(expected.parse::<KeyId>().unwrap().to_string(), expected);
        }
    }

    #[test]
    fn one_mount_has_one_scope_however_it_is_written() {
        assert_eq!(scope("", "transit", "kms"), scope("root", "/transit/", "kms"));
        assert_eq!(scope("team-a", "transit", "kms"), scope("/team-a/", "transit", "kms"));
        assert_ne!(scope("", "transit", "kms"), scope("team-a", "transit", "kms"));
        // One mount, reached in three ways.
        assert_eq!(scope("a", "b/c", "d"), scope("a/b", "c", "d"));
        assert_eq!(scope("a", "b/c", "d"), scope("", "a/b/c", "d"));
        assert_ne!(scope("ab", "c", "d"), scope("a", "bc", "d"));
        // Without length prefixes these two would collide.
        assert_ne!(scope("", "ab", "c"), scope("", "a", "bc"));
    }

    #[test]
    fn only_the_canonical_form_is_read() {
        let good = key_id("", "transit", "kms", 7, 1_700_000_000);
        assert!(good.parse::<KeyId>().is_ok());
        for bad in [
            String::new(),
            "1".into(),
            good.to_uppercase(),
            // Capital digits in the last field only.
            good.rsplit_once('.').map(|(rest, birth)| format!("{rest}.{}", birth.to_uppercase())).unwrap(),
            good.replace(".7.", ".07."),
            good.replace(".7.", ".+7."),
            good.replace(".7.", ".0."),
            good.replace(".7.", ".4294967296."),
            good.replace("tk1.", "tk2."),
            format!("{good}."),
            format!("{good}0"),
            format!(" {good}"),
        ] {
            assert_eq!(bad.parse::<KeyId>(), Err(InvalidKeyId), "{bad}");
        }
    }

    #[test]
    fn hashes_as_kube_apiserver_does() {
        // printf 1 | sha256sum
        assert_eq!(
            key_id_hash("1"),
            "sha256:6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
        );
        assert_eq!(key_id_hash(""), "");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            namespace in "[a-z]{0,8}", mount in "[a-z]{1,8}", key in "[a-z]{1,8}",
            version in 1..=u32::MAX, created in any::<i64>(),
        ) {
            let text = key_id(&namespace, &mount, &key, version, created);
            let read: KeyId = text.parse().unwrap();
            prop_assert_eq!(read.to_string(), text.clone());
            prop_assert_eq!(read.version.number(), version);
            prop_assert!(text.len() <= 1024 && text.is_ascii());
        }

        #[test]
        fn another_time_or_version_is_another_key_id(
            version in 1..u32::MAX, created in 0..i64::MAX,
        ) {
            let it = key_id("", "transit", "kms", version, created);
            prop_assert_ne!(&it, &key_id("", "transit", "kms", version, created + 1));
            prop_assert_ne!(&it, &key_id("", "transit", "kms", version + 1, created));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = text.parse::<KeyId>();
            let _ = KeyVersion::parse(&text);
        }
    }
}
