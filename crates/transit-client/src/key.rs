//! Transit keys, and the mounts and namespaces that hold them.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use crate::rule::BrokenRule;

/// A Vault namespace, without slashes around it. `root` and the empty text are the root namespace.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Namespace(String);

impl Namespace {
    /// Trims slashes. `root` becomes the empty text.
    ///
    /// # Errors
    /// If it has empty or dot segments, or characters that need an escape in a URL.
    pub fn new(text: &str) -> Result<Self, BrokenRule> {
        let text = text.trim().trim_matches('/');
        if text.is_empty() || text == "root" {
            return Ok(Self::default());
        }
        plain_path(text)?;
        Ok(Self(text.to_owned()))
    }

    /// The path of the namespace; empty for the root namespace.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the root namespace.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

/// The path on which a secrets engine is mounted, without slashes around it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct MountPath(String);

impl MountPath {
    /// Trims slashes.
    ///
    /// # Errors
    /// If it is empty, has empty or dot segments, or characters that need an escape in a URL.
    pub fn new(text: &str) -> Result<Self, BrokenRule> {
        let text = text.trim().trim_matches('/');
        if text.is_empty() {
            return Err(BrokenRule("must not be empty"));
        }
        plain_path(text)?;
        Ok(Self(text.to_owned()))
    }

    /// The path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for MountPath {
    /// `transit`, the default of `vault secrets enable`.
    fn default() -> Self {
        Self("transit".to_owned())
    }
}

/// Refuses characters that need an escape in a URL, and segments that a URL library may normalise: the text in the
/// config, the text that the key_id hashes and the path that Vault sees must be the same.
fn plain_path(text: &str) -> Result<(), BrokenRule> {
    if text.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(BrokenRule("must not have empty, . or .. segments"));
    }
    let escaped = ['?', '#', '%', '\\', '"', '<', '>', '^', '`', '{', '|', '}'];
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.contains(escaped) {
        return Err(BrokenRule(
            "must be a plain path: visible ASCII, no spaces, none of ? # % \\ \" < > ^ ` { | }",
        ));
    }
    Ok(())
}

/// The name of a Transit key. It is cheap to clone.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyName(Arc<str>);

impl KeyName {
    /// Accepts the names that Vault accepts: letters, digits and `_`, and `.` and `-` except at both ends.
    ///
    /// # Errors
    /// If the name breaks this rule.
    pub fn new(text: &str) -> Result<Self, BrokenRule> {
        let text = text.trim();
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let ends_well = text.bytes().next().is_some_and(word) && text.bytes().next_back().is_some_and(word);
        if text.is_empty() {
            Err(BrokenRule("must not be empty"))
        } else if !text.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-')) {
            Err(BrokenRule("must be a key name of letters, digits, _, - and ."))
        } else if !ends_well {
            Err(BrokenRule("must be a key name that neither begins nor ends with - or ."))
        } else {
            Ok(Self(Arc::from(text)))
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A Transit key: its name, mount and namespace. It is cheap to clone.
///
/// Two values are equal if they name the same key, however mount and namespace are written: the mount `transit`
/// of namespace `team-a` is the mount `team-a/transit` of the root namespace. A key is displayed as its name, or
/// as its whole path if it has a mount of its own.
#[derive(Clone, Debug)]
pub struct KeyRef(Arc<KeyIdentity>);

#[derive(Debug)]
struct KeyIdentity {
    /// The config names mount and namespace for this key, and not for all keys.
    has_own_mount: bool,
    mount: MountPath,
    name: KeyName,
    namespace: Namespace,
    /// Namespace and mount as one path. It is the same however they are written.
    path: String,
}

impl KeyRef {
    /// The key `name` in the mount of all keys.
    #[must_use]
    pub fn new(name: KeyName, mount: MountPath, namespace: Namespace) -> Self {
        Self::with(name, mount, namespace, false)
    }

    /// The key `name` in the mount `transit` of the root namespace.
    ///
    /// # Panics
    /// If `name` is not the name of a key.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    #[allow(clippy::expect_used, reason = "for tests")]
    pub fn in_transit(name: &str) -> Self {
        let name = KeyName::new(name).expect("the test names a valid key");
        Self::new(name, MountPath::default(), Namespace::default())
    }

    /// The key `name` in a mount of its own.
    #[must_use]
    pub fn in_own_mount(name: KeyName, mount: MountPath, namespace: Namespace) -> Self {
        Self::with(name, mount, namespace, true)
    }

    fn with(name: KeyName, mount: MountPath, namespace: Namespace, has_own_mount: bool) -> Self {
        let path = if namespace.is_root() {
            mount.as_str().to_owned()
        } else {
            format!("{}/{}", namespace.as_str(), mount.as_str())
        };
        Self(Arc::new(KeyIdentity { has_own_mount, mount, name, namespace, path }))
    }

    /// The mount of the key's Transit engine, in the namespace.
    #[must_use]
    pub fn mount(&self) -> &MountPath {
        &self.0.mount
    }

    /// The name of the key in its mount.
    #[must_use]
    pub fn name(&self) -> &KeyName {
        &self.0.name
    }

    /// The namespace of the mount.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.0.namespace
    }

    /// Namespace and mount as one path, without slashes around it. It is the same however they are written.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.0.path
    }

    /// The key as an entry of `keynames` in the config, with mount and namespace.
    #[must_use]
    pub fn config_entry(&self) -> String {
        // Names and paths have no characters that need an escape within double quotes.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'/' | b'-');
        let quoted = |text: &str| match text {
            "" => "root".to_owned(),
            text if text.bytes().all(plain) => text.to_owned(),
            text => format!("\"{text}\""),
        };
        let (name, mount, namespace) =
            (self.name().as_str(), self.mount().as_str(), self.namespace().as_str());
        format!("{{ name: {name}, mount: {}, namespace: {} }}", quoted(mount), quoted(namespace))
    }

    fn identity(&self) -> (&str, &KeyName) {
        (self.path(), self.name())
    }
}

impl Eq for KeyRef {}

impl Hash for KeyRef {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl PartialEq for KeyRef {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.has_own_mount { write!(f, "{}/{}", self.path(), self.name()) } else { self.name().fmt(f) }
    }
}

/// The keys of a session: at least one, and none twice.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct KeyNames {
    primary: KeyRef,
    others: Vec<KeyRef>,
}

impl KeyNames {
    /// The first key is the primary one.
    ///
    /// # Errors
    /// If there is no key, or one twice.
    pub fn new(keys: impl IntoIterator<Item = KeyRef>) -> Result<Self, BrokenRule> {
        let mut keys = keys.into_iter();
        let primary = keys.next().ok_or(BrokenRule("must name at least one key"))?;
        let mut all = Self { primary, others: Vec::new() };
        for key in keys {
            if all.iter().any(|known| *known == key) {
                return Err(BrokenRule("must not name a key twice (namespace and mount count as one path)"));
            }
            all.others.push(key);
        }
        Ok(all)
    }

    /// The key that encrypts.
    #[must_use]
    pub fn primary(&self) -> &KeyRef {
        &self.primary
    }

    /// All keys, the primary one first.
    pub fn iter(&self) -> impl Iterator<Item = &KeyRef> {
        std::iter::once(&self.primary).chain(&self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_the_empty_namespace() {
        for text in ["", "/", "root", "/root/", " root "] {
            assert!(Namespace::new(text).unwrap().is_root(), "{text}");
        }
        assert_eq!(Namespace::new("/team-a/sub/").unwrap().as_str(), "team-a/sub");
        for text in ["a//b", "a/../b", "a b", "a\nb", "a?", "\u{e9}"] {
            assert!(Namespace::new(text).is_err(), "{text}");
        }
    }

    #[test]
    fn mounts_are_plain_paths() {
        assert_eq!(MountPath::new("/a/transit/").unwrap().as_str(), "a/transit");
        for text in ["", "/", "..", "a/../b", "a//b", "a b", "a\tb", "a?b", "a#b", "a%2fb", "a\\b", "."] {
            assert!(MountPath::new(text).is_err(), "{text}");
        }
    }

    #[test]
    fn key_names_follow_the_rule_of_vault() {
        for text in ["k", "kms", "my-key.v1", "_x_", " kms "] {
            assert!(KeyName::new(text).is_ok(), "{text}");
        }
        for text in ["", ".", "..", "a/b", "-a", "a-", "a.", "a b", "\u{e9}", "a%b"] {
            assert!(KeyName::new(text).is_err(), "{text}");
        }
    }

    #[test]
    fn key_names_are_ordered_and_unique() {
        let keys = KeyNames::new([key("b", "transit", ""), key("a", "transit", "")]).unwrap();
        assert_eq!(keys.primary().name().as_str(), "b");
        assert_eq!(keys.iter().map(|key| key.name().as_str()).collect::<Vec<_>>(), ["b", "a"]);
        assert!(KeyNames::new([]).is_err());
        let twice = [key("a", "transit", ""), key("b", "transit", ""), key("a", "transit", "")];
        assert!(KeyNames::new(twice).is_err());
    }

    fn key(name: &str, mount: &str, namespace: &str) -> KeyRef {
        KeyRef::in_own_mount(
            KeyName::new(name).unwrap(),
            MountPath::new(mount).unwrap(),
            Namespace::new(namespace).unwrap(),
        )
    }

    #[test]
    fn one_key_is_equal_however_its_mount_is_written() {
        let one = key("kms", "transit", "team-a");
        for same in [
            key("kms", "team-a/transit", ""),
            key("kms", "/team-a/transit/", "root"),
            key("kms", "transit", "/team-a/"),
        ] {
            assert_eq!(one, same);
            assert_eq!(same.to_string(), "team-a/transit/kms");
            assert!(KeyNames::new([one.clone(), same]).is_err(), "the key would be there twice");
        }
        let others =
            [key("kms", "transit", ""), key("other", "transit", "team-a"), key("kms", "transit", "team-b")];
        for other in others {
            assert_ne!(one, other);
        }
        // Without the namespace, a mount below a mount is another mount.
        assert_ne!(key("kms", "transit", "team"), key("kms", "a/transit", "team"));
    }
}
