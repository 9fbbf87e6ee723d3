//! The settings. A value of these types has passed its rules; the constructors
//! say which rule was broken, never by what.

use std::{
    fmt,
    hash::{Hash, Hasher},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use rustls::pki_types::ServerName;
use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};

/// The longest token in bytes. Batch tokens are a few hundred.
pub const MAX_TOKEN_BYTES: usize = 4096;

/// The login methods that are known by name; none is served yet.
pub const LOGIN_METHODS: [&str; 18] = [
    "alicloud",
    "approle",
    "aws",
    "azure",
    "cert",
    "gcp",
    "github",
    "jwt",
    "kerberos",
    "kubernetes",
    "ldap",
    "oci",
    "oidc",
    "okta",
    "radius",
    "spiffe",
    "token",
    "userpass",
];

/// A rule in words that follow the name of a key: "must not be empty".
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct BrokenRule(&'static str);

/// Everything that the file says. `Debug` is safe to print.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// Where Vault is, in the order in which to try; never empty, none twice.
    pub addresses: Vec<Address>,
    /// How long making a connection may take, TLS included.
    pub connect_timeout: Duration,
    /// The Vault namespace of the token; the root namespace if none is given.
    pub namespace: Namespace,
    /// The first encrypts, all decrypt.
    pub keys: KeyNames,
    /// What concerns TLS.
    pub tls: TlsFiles,
    /// How to be let in.
    pub credentials: Credentials,
    /// What wraps seeds.
    pub encryption: Encryption,
    /// What the operator should know though it is no error, each a sentence.
    /// The watch logs them, and `/readyz` shows them.
    pub warnings: Vec<String>,
}

/// A Vault server: `https://host[:port][/prefix]`. Displays so, without a slash at the end.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Address(Url);

impl Address {
    /// Takes `https://` URLs, and `http://` ones if `allow_http`; a path is
    /// kept as prefix, its slashes at the end are not.
    ///
    /// # Errors
    /// Another scheme, user information, a query, a fragment, dot segments,
    /// empty segments, percent signs, or no URL at all.
    pub fn new(text: &str, allow_http: bool) -> Result<Self, BrokenRule> {
        let text = text.trim();
        if text.is_empty() {
            return Err(BrokenRule("must not be empty"));
        }
        if text.contains(',') || text.matches("://").count() > 1 {
            return Err(BrokenRule(
                "must be one address: write several as a list, addresses: [https://…, https://…]",
            ));
        }
        // `Url` drops tabs and line breaks and turns `\` into `/`: it would read another
        // address than the operator does.
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.contains('\\') {
            return Err(BrokenRule("must be a URL of visible ASCII characters without spaces"));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(BrokenRule("must be a URL that begins with https://"));
        };
        if scheme.eq_ignore_ascii_case("http") {
            if !allow_http {
                return Err(BrokenRule(
                    "is http://, which would send the token in clear: use https://, or start with --allow-http",
                ));
            }
        } else if !scheme.eq_ignore_ascii_case("https") {
            return Err(BrokenRule("must be a URL that begins with https://"));
        }
        if rest.contains(['?', '#']) {
            return Err(BrokenRule("must not have a query or a fragment"));
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.contains('@') {
            return Err(BrokenRule("must not have a user name or password in it"));
        }
        let path = path.trim_end_matches('/');
        if path.contains('%') || path.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err(BrokenRule("must have a plain path: no %, no dot segments"));
        }
        if !path.is_empty() && path.split('/').any(str::is_empty) {
            return Err(BrokenRule("must not have two slashes in a row in its path"));
        }
        if matches!(path.rsplit('/').next(), Some("v1" | "ui")) {
            return Err(BrokenRule(
                "must end before /v1 and /ui: write the address alone, such as https://vault:8200",
            ));
        }
        let unreadable = BrokenRule("is not a URL: check the host and the port");
        let mut url = Url::parse(text).map_err(|_| unreadable)?;
        if !url.has_host() || authority.is_empty() {
            return Err(unreadable);
        }
        url.set_path(path);
        Ok(Self(url))
    }

    /// As a URL. Its path is the prefix, or `/`.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

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
    #[cfg(test)]
    pub(crate) fn in_transit(name: &str) -> Self {
        let name = KeyName::new(name).expect("a test names a key");
        Self::new(name, MountPath::default(), Namespace::default())
    }

    /// The key `name` in a place that the config names for it alone.
    #[must_use]
    pub fn elsewhere(name: KeyName, mount: MountPath, namespace: Namespace) -> Self {
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
    pub fn entry(&self) -> String {
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

/// The files and names of TLS. Paths are absolute; certificate and key are both there or both not.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct TlsFiles {
    /// PEM bundle of the authorities to trust, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The name that the server's certificate must hold, if it is not the address's host.
    pub server_name: Option<String>,
    /// PEM chain of our certificate.
    pub client_cert_file: Option<PathBuf>,
    /// PEM key of our certificate.
    pub client_key_file: Option<PathBuf>,
}

/// An absolute path.
pub(super) fn absolute_path(text: &str) -> Result<PathBuf, BrokenRule> {
    if text.is_empty() {
        return Err(BrokenRule("must not be empty"));
    }
    // Paths are shown in errors, so they must not be able to forge a line of the log.
    if text.chars().any(char::is_control) {
        return Err(BrokenRule("must be a path without control characters"));
    }
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(BrokenRule("must be an absolute path")) }
}

/// A name that a certificate can hold. It stands in URLs as their host, so it must not be one of the
/// many texts that URLs take for an IP address, such as `127.1`.
pub(super) fn server_name(text: &str) -> Result<String, BrokenRule> {
    match (ServerName::try_from(text), Host::parse(text)) {
        (Ok(ServerName::DnsName(_)), Ok(Host::Domain(_))) => Ok(text.to_owned()),
        _ => Err(BrokenRule(
            "must be a DNS name, not an IP address: for an address whose certificate names its IP, leave it out",
        )),
    }
}

/// How we are let in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Credentials {
    /// A token that somebody renders.
    Token(Token),
    /// A login that is recognised but not served yet.
    Unsupported {
        /// One of [`LOGIN_METHODS`].
        method: &'static str,
    },
}

/// What wraps seeds.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Encryption {
    /// A local KEK, which Transit wraps.
    LocalKek(LocalKekLimits),
    /// Transit, each.
    #[default]
    Transit,
}

/// How long and how often local KEKs are used.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct LocalKekLimits {
    /// Transit must have unwrapped a KEK within this time.
    pub max_age: Duration,
    /// The same while Vault is unreachable.
    pub max_age_in_outage: Duration,
    /// A KEK encrypts for so long.
    pub renew_after: Duration,
    /// And so many seeds.
    pub renew_after_uses: u64,
}

impl Default for LocalKekLimits {
    fn default() -> Self {
        Self {
            max_age: Duration::from_secs(60 * 60),
            max_age_in_outage: Duration::from_secs(24 * 60 * 60),
            renew_after: Duration::from_secs(24 * 60 * 60),
            renew_after_uses: 100_000,
        }
    }
}

/// The shortest time in which KEKs can be looked after.
const SHORTEST_AGE: Duration = Duration::from_secs(60);
/// Longer than this nothing that Vault has not confirmed is used.
const LONGEST_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How long making a connection may take unless the file says it. A handshake costs two or three round trips, and
/// a lost packet another second.
pub(super) const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const SHORTEST_CONNECT_TIMEOUT: Duration = Duration::from_millis(100);
const LONGEST_CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// A time such as `500ms`.
pub(super) fn connect_timeout(text: &str) -> Result<Duration, BrokenRule> {
    match humantime::parse_duration(text) {
        Ok(time) if (SHORTEST_CONNECT_TIMEOUT..=LONGEST_CONNECT_TIMEOUT).contains(&time) => Ok(time),
        Ok(_) => Err(BrokenRule("must be between 100ms and 30s")),
        Err(_) => Err(BrokenRule("must be a time such as 500ms or 3s")),
    }
}

/// A time such as `90m`.
pub(super) fn age(text: &str) -> Result<Duration, BrokenRule> {
    match humantime::parse_duration(text) {
        Ok(age) if (SHORTEST_AGE..=LONGEST_AGE).contains(&age) => Ok(age),
        Ok(_) => Err(BrokenRule("must be between 1m and 30d")),
        Err(_) => Err(BrokenRule("must be a time such as 90m or 12h")),
    }
}

/// A Vault token: a legal header value, wiped when the last clone goes.
#[derive(Clone)]
pub struct Token(Arc<SecretString>);

impl Token {
    /// Trims white space around the token.
    ///
    /// # Errors
    /// Nothing left, more than [`MAX_TOKEN_BYTES`], or what is not visible ASCII.
    pub fn new(text: &str) -> Result<Self, BrokenRule> {
        let text = text.trim();
        if text.is_empty() {
            Err(BrokenRule("must not be empty"))
        } else if text.len() > MAX_TOKEN_BYTES {
            Err(BrokenRule("must not be longer than 4096 bytes"))
        } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Err(BrokenRule("must be visible ASCII characters without spaces"))
        } else {
            Ok(Self(Arc::new(SecretString::from(text))))
        }
    }

    /// The token itself. Whoever calls this keeps it out of logs and errors.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

impl Eq for Token {}

impl PartialEq for Token {
    /// Both sides are ours: nobody measures how long this takes.
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_a_prefix_and_lose_slashes() {
        for (text, shown) in [
            ("https://vault:8200", "https://vault:8200"),
            ("HTTPS://Vault:8200/", "https://vault:8200"),
            (" https://vault/a/b// ", "https://vault/a/b"),
            ("https://[::1]:8200", "https://[::1]:8200"),
            ("https://10.0.0.1", "https://10.0.0.1"),
            ("https://vault:443", "https://vault"),
        ] {
            assert_eq!(Address::new(text, false).unwrap().to_string(), shown, "{text}");
        }
        assert_eq!(Address::new("http://v:1", true).unwrap().to_string(), "http://v:1");
    }

    #[test]
    fn addresses_that_mean_two_things_are_refused() {
        for text in [
            "",
            "vault:8200",
            "http://vault:8200",
            "unix:///run/agent.sock",
            "https:vault",
            "https://",
            "https:///path",
            "https://user@vault",
            "https://user:pass@vault",
            "https://@vault",
            "https://vault?x=1",
            "https://vault/#x",
            "https://vault/a//b",
            "https://vault//a",
            "https://vault/../a",
            "https://vault/%2e%2e/a",
            "https://vault\\a",
            "https://va ult",
            "https://vault:99999",
            "https://va\nult",
            "https://vault:8200/v1",
            "https://vault/prefix/v1//",
            "https://vault/ui/",
            "https://a,https://b",
            "https://a https://b",
        ] {
            assert!(Address::new(text, false).is_err(), "{text}");
        }
        assert!(Address::new("http://vault", false).unwrap_err().to_string().contains("--allow-http"));
    }

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
        KeyRef::elsewhere(
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

    #[test]
    fn tokens_are_header_values_and_stay_hidden() {
        let token = Token::new(" hvs.abc \n").unwrap();
        assert_eq!(token.expose(), "hvs.abc");
        assert_eq!(
            format!("{token:?} {:?}", Credentials::Token(token.clone())),
            "Token(***) Token(Token(***))"
        );
        assert_eq!(token, Token::new("hvs.abc").unwrap());
        assert_ne!(token, Token::new("hvs.abd").unwrap());
        for text in ["", "  ", "a b", "a\nb", "a\u{0}b", "\u{e9}", &"x".repeat(MAX_TOKEN_BYTES + 1)] {
            assert!(Token::new(text).is_err());
        }
        assert!(Token::new(&"x".repeat(MAX_TOKEN_BYTES)).is_ok());
    }

    #[test]
    fn paths_are_absolute_and_names_are_names() {
        assert!(absolute_path("/etc/ca.pem").is_ok());
        for text in ["", "ca.pem", "./ca.pem", "~/ca.pem", "/a\nb", "/a\0b"] {
            assert!(absolute_path(text).is_err(), "{text}");
        }
        assert!(server_name("vault.example").is_ok());
        for text in ["", "https://vault", "10.0.0.1", "127.1", "0x7f.1", "::1", "[::1]", "a b", "vault:8200"]
        {
            assert!(server_name(text).is_err(), "{text}");
        }
    }
}
