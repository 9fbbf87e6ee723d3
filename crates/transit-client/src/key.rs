//! Transit keys, and the mounts and namespaces that hold them.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use crate::rule::BrokenRule;

/// A Vault namespace without slashes around it. `root` and nothing are the same.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Namespace(String);

impl Namespace {
    /// Trims slashes; `root` becomes the empty name.
    ///
    /// # Errors
    /// Empty or dot segments, and characters that cannot stand in a path.
    pub fn new(text: &str) -> Result<Self, BrokenRule> {
        let text = text.trim().trim_matches('/');
        if text.is_empty() || text == "root" {
            return Ok(Self::default());
        }
        plain_path(text)?;
        Ok(Self(text.to_owned()))
    }

    /// The name, empty for the root namespace.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True for the root namespace.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

/// Where a secrets engine is mounted, without slashes around it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct MountPath(String);

impl MountPath {
    /// Trims slashes.
    ///
    /// # Errors
    /// Nothing left, empty or dot segments, and characters that cannot stand in a path.
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
    /// `transit`, as Vault itself has it.
    fn default() -> Self {
        Self("transit".to_owned())
    }
}

/// Whatever needs an escape in a URL, or might be normalised away on its way, is refused:
/// what the operator wrote, what key_id hashes and what Vault sees must be one text.
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

/// The name of a Transit key; cheap to clone.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyName(Arc<str>);

impl KeyName {
    /// Takes what Vault takes: letters, digits and `_` anywhere, `.` and `-` within.
    ///
    /// # Errors
    /// Anything else, with the rule.
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

/// A key and where it is; cheap to clone.
///
/// Two of them are equal if they are the same key, however its place is spelled: the mount
/// `transit` of namespace `team-a` is the mount `team-a/transit` of the root namespace.
/// Displays as its name, or as its whole path if it is not in the place of the session.
#[derive(Clone, Debug)]
pub struct KeyRef(Arc<Place>);

#[derive(Debug)]
struct Place {
    /// The config names this place for this key alone.
    elsewhere: bool,
    mount: MountPath,
    name: KeyName,
    namespace: Namespace,
    /// Namespace and mount as one path, which is the same for every spelling.
    path: String,
}

impl KeyRef {
    /// The key `name` in the place of the session.
    #[must_use]
    pub fn new(name: KeyName, mount: MountPath, namespace: Namespace) -> Self {
        Self::placed(name, mount, namespace, false)
    }

    /// The key `name` in the mount `transit` of the root namespace.
    ///
    /// # Panics
    /// If `name` is no name of a key.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    #[allow(clippy::expect_used, reason = "for tests")]
    pub fn in_transit(name: &str) -> Self {
        let name = KeyName::new(name).expect("a test names a key");
        Self::new(name, MountPath::default(), Namespace::default())
    }

    /// The key `name` in a place that the config names for it alone.
    #[must_use]
    pub fn in_own_mount(name: KeyName, mount: MountPath, namespace: Namespace) -> Self {
        Self::placed(name, mount, namespace, true)
    }

    fn placed(name: KeyName, mount: MountPath, namespace: Namespace, elsewhere: bool) -> Self {
        let path = if namespace.is_root() {
            mount.as_str().to_owned()
        } else {
            format!("{}/{}", namespace.as_str(), mount.as_str())
        };
        Self(Arc::new(Place { elsewhere, mount, name, namespace, path }))
    }

    /// Where the Transit engine of the key is mounted in its namespace.
    #[must_use]
    pub fn mount(&self) -> &MountPath {
        &self.0.mount
    }

    /// Its name in the mount.
    #[must_use]
    pub fn name(&self) -> &KeyName {
        &self.0.name
    }

    /// The namespace of the mount.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.0.namespace
    }

    /// Namespace and mount as one path without slashes around it, the same for every spelling.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.0.path
    }

    /// As an entry of `keynames` that names its place in full.
    #[must_use]
    pub fn config_entry(&self) -> String {
        // No name or path has a character that needs an escape within double quotes.
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
        if self.0.elsewhere { write!(f, "{}/{}", self.path(), self.name()) } else { self.name().fmt(f) }
    }
}

/// One key or more, none twice.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct KeyNames {
    primary: KeyRef,
    others: Vec<KeyRef>,
}

impl KeyNames {
    /// The first key encrypts.
    ///
    /// # Errors
    /// No key, or one twice.
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

    /// All of them, the primary first.
    pub fn iter(&self) -> impl Iterator<Item = &KeyRef> {
        std::iter::once(&self.primary).chain(&self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_no_namespace() {
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
    fn key_names_are_what_vault_takes() {
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
    fn one_key_is_one_key_however_its_place_is_spelled() {
        let one = key("kms", "transit", "team-a");
        for same in [
            key("kms", "team-a/transit", ""),
            key("kms", "/team-a/transit/", "root"),
            key("kms", "transit", "/team-a/"),
        ] {
            assert_eq!(one, same);
            assert_eq!(same.to_string(), "team-a/transit/kms");
            assert!(KeyNames::new([one.clone(), same]).is_err(), "it would stand there twice");
        }
        let others =
            [key("kms", "transit", ""), key("other", "transit", "team-a"), key("kms", "transit", "team-b")];
        for other in others {
            assert_ne!(one, other);
        }
        // A mount below a mount is another place, though the bare texts join to one.
        assert_ne!(key("kms", "transit", "team"), key("kms", "a/transit", "team"));
    }
}
