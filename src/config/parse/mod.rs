//! From text to [`Config`]: Trousseau's two shapes, and ours.

mod tree;

use std::{collections::HashSet, path::Path};

use transit_client::{
    endpoint::Address,
    key::{KeyName, KeyNames, KeyRef, MountPath, Namespace},
    rule::BrokenRule,
    token::Token,
};

use self::tree::{Key, Node, Step};
use super::{
    ConfigError, ConfigErrorKind,
    settings::{
        Config, Credentials, DEFAULT_CONNECT_TIMEOUT, Encryption, LOGIN_METHODS, LocalKekLimits, TlsFiles,
        absolute_path, age, connect_timeout, server_name,
    },
};

/// The longest config file in bytes.
pub const MAX_FILE_BYTES: usize = 64 * 1024;

/// The settings, apart from `provider` and the wrapper, in lower case.
const SETTINGS: &[&str] = &[
    "address",
    "addresses",
    "auth",
    "authpath",
    "clientcert",
    "clientkey",
    "connect_timeout",
    "keynames",
    "namespace",
    "roleid",
    "secretid",
    "tls",
    "tlsservername",
    "token",
    "transitpath",
    "vaultcacert",
];
const TLS_SETTINGS: &[&str] = &["ca_file", "client_cert_file", "client_key_file", "server_name"];
/// What may be named in errors of an `auth:` block; other keys are let pass, unseen.
const AUTH_SETTINGS: &[&str] = &[
    "jwt_file",
    "method",
    "mount",
    "role",
    "role_id",
    "secret_id",
    "secret_id_file",
    "token_file",
    "wrapped",
];
/// Of an entry of `keynames`.
const KEY_SETTINGS: &[&str] = &["mount", "name", "namespace"];
const ENCRYPTION_SETTINGS: &[&str] =
    &["max_age", "max_age_in_outage", "mode", "renew_after", "renew_after_uses"];
const FLAT: &[&str] = &["encryption", "provider"];
const WRAPPED: &[&str] = &["encryption", "provider", "vault"];
/// YAML's merge key: what stands in its mappings counts as if it stood beside it.
const MERGE: &str = "<<";

/// What flags say about the file.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ParseOptions {
    /// Take `http://` addresses.
    pub allow_http: bool,
}

/// Reads a config. `path` is only for the errors.
///
/// Lenient with what templates do, and with what viper reads for Trousseau: a BOM, CRLF, blank
/// lines before `---`, `---` at the end, spaces around values, optional settings without a value,
/// numbers as names, merge keys. Strict with what they say.
///
/// # Errors
/// The line and the rule, never a value; the kind is always `Invalid`.
pub fn parse(text: &[u8], path: &Path, options: ParseOptions) -> Result<Config, ConfigError> {
    if text.len() > MAX_FILE_BYTES {
        return Err(ConfigError::invalid(path, None, "is larger than 64 KiB"));
    }
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let line_of = |offset| 1 + text.iter().take(offset).filter(|byte| **byte == b'\n').count();
    let text = std::str::from_utf8(text).map_err(|error| {
        ConfigError::invalid(path, Some(line_of(error.valid_up_to())), "is not UTF-8 text")
    })?;
    // The parser would refuse them as well, but without a line.
    if let Some(offset) = text.find(unprintable) {
        let rule = "has a control character; perhaps it is half written";
        return Err(ConfigError::invalid(path, Some(line_of(offset)), rule));
    }
    let tree = tree::read(text).map_err(|unreadable| ConfigError {
        kind: ConfigErrorKind::Invalid,
        path: path.to_owned(),
        line: unreadable.location.map(|(line, _)| line),
        column: unreadable.location.filter(|_| unreadable.syntax).map(|(_, column)| column),
        rule: unreadable.rule,
    })?;
    let entries = match &tree {
        Node::Map(entries) => entries,
        Node::Null => {
            return Err(ConfigError::invalid(path, None, "is empty; perhaps it is half written"));
        }
        Node::Plain { .. } | Node::Seq(_) | Node::Str(_) => {
            let rule = "must hold settings such as `address: https://...`; perhaps it is half written";
            return Err(ConfigError::invalid(path, None, rule));
        }
    };
    let root = Section::new(String::new(), Vec::new(), entries);
    let merged = merged_mappings(&tree);
    root.and_then(|root| config(&root.without_stores(&merged), options)).map_err(|broken| {
        let line = tree::locate(text, &broken.steps).map(|(line, _)| line);
        ConfigError::invalid(path, line, broken.rule)
    })
}

/// What YAML does not allow in a text.
fn unprintable(letter: char) -> bool {
    let allowed = matches!(letter, '\t' | '\n' | '\r' | '\u{85}') || !letter.is_control();
    !allowed || matches!(letter, '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

fn config(root: &Section<'_>, options: ParseOptions) -> Result<Config, Broken> {
    if let Some(provider) = root.find("provider") {
        let text = provider.string()?;
        if !["vault", "openbao", "bao"].iter().any(|known| text.eq_ignore_ascii_case(known)) {
            return Err(provider.broken("must be vault (openbao and bao mean the same)"));
        }
    }
    let encryption = encryption(root)?;
    let below_tls = |key: &str| TLS_SETTINGS.contains(&key).then_some("belongs below tls:");
    match root.entry("vault") {
        Some(wrapped) => {
            root.refuse_unknown(&[WRAPPED], |key| SETTINGS.contains(&key).then_some("belongs below vault:"))?;
            let section = wrapped.section()?;
            section.refuse_unknown(&[SETTINGS], below_tls)?;
            settings(&section, encryption, options)
        }
        None => {
            root.refuse_unknown(&[SETTINGS, FLAT], below_tls)?;
            settings(root, encryption, options)
        }
    }
}

/// It stands beside `vault:`, in both shapes: it says what is done with Vault, not how it is reached.
fn encryption(root: &Section<'_>) -> Result<Encryption, Broken> {
    let Some(section) = root.find("encryption").map(|value| value.section()).transpose()? else {
        return Ok(Encryption::default());
    };
    section.refuse_unknown(&[ENCRYPTION_SETTINGS], |_| None)?;
    let mode = section.required("mode", "transit or local-kek")?;
    let unset = LocalKekLimits::default();
    let limits = LocalKekLimits {
        max_age: section.parsed("max_age", age)?.unwrap_or(unset.max_age),
        max_age_in_outage: section.parsed("max_age_in_outage", age)?.unwrap_or(unset.max_age_in_outage),
        renew_after: section.parsed("renew_after", age)?.unwrap_or(unset.renew_after),
        renew_after_uses: match section.find("renew_after_uses") {
            Some(uses) => uses.count()?,
            None => unset.renew_after_uses,
        },
    };
    if limits.max_age_in_outage < limits.max_age {
        let rule = "max_age_in_outage must not be shorter than max_age (1h unless set)";
        return Err(Broken { steps: section.steps.clone(), rule: format!("{}: {rule}", section.name) });
    }
    match mode.string()? {
        text if text.eq_ignore_ascii_case("local-kek") => Ok(Encryption::LocalKek(limits)),
        text if text.eq_ignore_ascii_case("transit") => Ok(Encryption::Transit),
        _ => Err(mode.broken("must be transit or local-kek")),
    }
}

fn settings(section: &Section<'_>, encryption: Encryption, options: ParseOptions) -> Result<Config, Broken> {
    let mut warnings = Vec::new();
    let addresses = addresses(section, options, &mut warnings)?;
    let namespace = section.parsed("namespace", Namespace::new)?.unwrap_or_default();
    let mount = section.parsed("transitpath", MountPath::new)?.unwrap_or_default();
    Ok(Config {
        addresses,
        connect_timeout: section
            .parsed("connect_timeout", connect_timeout)?
            .unwrap_or(DEFAULT_CONNECT_TIMEOUT),
        keys: keys(section, &mount, &namespace)?,
        namespace,
        tls: tls(section)?,
        credentials: credentials(section, &mut warnings)?,
        encryption,
        warnings,
    })
}

fn addresses(
    section: &Section<'_>,
    options: ParseOptions,
    warnings: &mut Vec<String>,
) -> Result<Vec<Address>, Broken> {
    let (place, values) = match (section.find("addresses"), section.find("address")) {
        (Some(_), Some(single)) => {
            return Err(single.broken("must not stand beside addresses: keep one of them"));
        }
        (Some(several), None) => {
            let values = several.one_or_more()?;
            (several, values)
        }
        (None, Some(single)) => (single.clone(), vec![single]),
        (None, None) => {
            let key = if section.entry("addresses").is_some() { "addresses" } else { "address" };
            return Err(section.absent(key, "where Vault is, such as https://vault:8200"));
        }
    };
    let mut addresses = Vec::new();
    for value in values {
        let address = value.parsed(|text| Address::new(text, options.allow_http))?;
        if addresses.contains(&address) {
            warnings.push(format!("{}: an address stands there twice; it counts once", place.name));
        } else {
            addresses.push(address);
        }
    }
    if addresses.is_empty() { Err(place.broken("must name at least one address")) } else { Ok(addresses) }
}

/// `mount` and `namespace` are where a key is whose entry does not say so.
fn keys(section: &Section<'_>, mount: &MountPath, namespace: &Namespace) -> Result<KeyNames, Broken> {
    let place = section.required("keynames", "the names of Transit keys, the first of which encrypts")?;
    let mut keys = Vec::new();
    if let Node::Str(names) = place.node
        && names.contains(',')
    {
        // One string with commas is a list to viper, and no key has a comma in its name.
        for name in names.split(',') {
            let name = KeyName::new(name).map_err(|rule| place.broken(rule))?;
            keys.push(KeyRef::new(name, mount.clone(), namespace.clone()));
        }
        return KeyNames::new(keys).map_err(|rule| place.broken(rule));
    }
    for value in place.one_or_more()? {
        keys.push(key(&value, mount, namespace)?);
    }
    KeyNames::new(keys).map_err(|rule| place.broken(rule))
}

/// A name, or a mapping that also says where the key is.
fn key(value: &Value<'_>, mount: &MountPath, namespace: &Namespace) -> Result<KeyRef, Broken> {
    if !matches!(value.node, Node::Map(_)) {
        return Ok(KeyRef::new(value.parsed(KeyName::new)?, mount.clone(), namespace.clone()));
    }
    let section = value.section()?;
    section.refuse_unknown(&[KEY_SETTINGS], |key| {
        (key == "transitpath").then_some("is called mount in an entry of keynames")
    })?;
    let name = section.required("name", "the name of a Transit key")?.parsed(KeyName::new)?;
    let own_mount = section.parsed("mount", MountPath::new)?;
    let own_namespace = section.parsed("namespace", Namespace::new)?;
    if own_mount.is_none() && own_namespace.is_none() {
        return Ok(KeyRef::new(name, mount.clone(), namespace.clone()));
    }
    Ok(KeyRef::in_own_mount(
        name,
        own_mount.unwrap_or_else(|| mount.clone()),
        own_namespace.unwrap_or_else(|| namespace.clone()),
    ))
}

fn tls(section: &Section<'_>) -> Result<TlsFiles, Broken> {
    let inner = section.find("tls").map(|tls| tls.section()).transpose()?;
    if let Some(inner) = &inner {
        inner.refuse_unknown(&[TLS_SETTINGS], |_| None)?;
    }
    let find = |key| inner.as_ref().and_then(|inner| inner.find(key));
    let files = TlsFiles {
        ca_file: one_spelling(find("ca_file"), section.find("vaultcacert"))?
            .map(|value| value.parsed(absolute_path))
            .transpose()?,
        server_name: one_spelling(find("server_name"), section.find("tlsservername"))?
            .map(|value| value.parsed(server_name))
            .transpose()?,
        client_cert_file: find("client_cert_file").map(|value| value.parsed(absolute_path)).transpose()?,
        client_key_file: find("client_key_file").map(|value| value.parsed(absolute_path)).transpose()?,
    };
    match (find("client_cert_file"), find("client_key_file")) {
        (Some(lonely), None) => Err(lonely.broken("needs client_key_file beside it")),
        (None, Some(lonely)) => Err(lonely.broken("needs client_cert_file beside it")),
        _ => Ok(files),
    }
}

fn one_spelling<'a>(ours: Option<Value<'a>>, theirs: Option<Value<'a>>) -> Result<Option<Value<'a>>, Broken> {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) => {
            Err(theirs.broken(format!("means the same as {}: keep one of them", ours.name)))
        }
        (ours, theirs) => Ok(ours.or(theirs)),
    }
}

/// The token wins; of the logins the first named here does. What loses is warned about.
fn credentials(section: &Section<'_>, warnings: &mut Vec<String>) -> Result<Credentials, Broken> {
    // Only a prefix of a login's path; its type is checked all the same.
    section.find("authpath").map(|value| value.string()).transpose()?;
    let token = section.parsed("token", Token::new)?;
    let mut logins = Vec::new();
    if let Some(auth) = section.find("auth") {
        logins.push((auth.name.clone(), method(&auth.section()?)?));
    }
    for (keys, method) in [(["roleid", "secretid"], "approle"), (["clientcert", "clientkey"], "cert")] {
        for key in keys {
            if let Some(value) = section.find(key) {
                value.string()?;
                logins.push((value.name, method));
            }
        }
    }
    let (credentials, winner) = match (token, logins.first()) {
        (Some(token), _) => (Credentials::Token(token), None),
        (None, Some((_, method))) => (Credentials::Unsupported { method }, Some(*method)),
        (None, None) => {
            return Err(section.absent("token", "no token and no auth: one of them must be there"));
        }
    };
    for (name, _) in logins.iter().filter(|(_, method)| Some(*method) != winner) {
        let reason = if winner.is_some() { "another login" } else { "a token" };
        warnings.push(format!("{name}: is ignored, because {reason} stands beside it"));
    }
    Ok(credentials)
}

/// The method of an `auth:` block. What else is in it is not served yet, so only its shape is checked.
fn method(auth: &Section<'_>) -> Result<&'static str, Broken> {
    for value in auth.values() {
        if matches!(value.node, Node::Map(_) | Node::Seq(_)) {
            return Err(value.broken("must be one value, not a list or a mapping"));
        }
    }
    let method = auth.required("method", "the login method, such as approle")?;
    let text = method.string()?;
    let known = LOGIN_METHODS.iter().find(|known| text.eq_ignore_ascii_case(known));
    known.copied().ok_or_else(|| {
        method.broken(format!("must be a login method that is known: {}", LOGIN_METHODS.join(", ")))
    })
}

/// A rule and where it broke.
struct Broken {
    steps: Vec<Step>,
    rule: String,
}

/// A mapping and its name, such as `vault.tls`; the root has none.
struct Section<'a> {
    name: String,
    steps: Vec<Step>,
    /// What stands in it, and then what is merged into it.
    entries: Vec<Entry<'a>>,
}

struct Entry<'a> {
    key: &'a str,
    node: &'a Node,
    steps: Vec<Step>,
}

impl<'a> Section<'a> {
    /// No key may stand there twice. What is merged in counts only where nothing stands, and of
    /// several that are merged the first counts, as YAML has it.
    fn new(name: String, steps: Vec<Step>, map: &'a [(Key, Node)]) -> Result<Self, Broken> {
        let mut section = Self { name, steps, entries: Vec::with_capacity(map.len()) };
        let mut seen = HashSet::new();
        let mut merged = Vec::new();
        for (index, (key, node)) in map.iter().enumerate() {
            let entry = Entry { key, node, steps: with_step(&section.steps, Step::Entry(index)) };
            if !seen.insert(entry.key) {
                let rule = "stands there twice (upper and lower case are the same)";
                return Err(section.value(&entry).broken(rule));
            }
            if entry.key == MERGE {
                merged = section.value(&entry).one_or_more()?;
            } else {
                section.entries.push(entry);
            }
        }
        for value in merged {
            let Node::Map(map) = value.node else {
                return Err(value.broken("must be a mapping, or a list of mappings"));
            };
            for entry in Section::new(section.name.clone(), value.steps, map)?.entries {
                if seen.insert(entry.key) {
                    section.entries.push(entry);
                }
            }
        }
        Ok(section)
    }

    /// Without what is there only to be merged elsewhere: keys that begin with `x-`, and unknown ones
    /// whose mapping is one of `merged`.
    fn without_stores(mut self, merged: &[&Node]) -> Self {
        let known = [SETTINGS, FLAT, WRAPPED].concat();
        self.entries.retain(|entry| {
            let is_store = entry.key.starts_with("x-") || merged.contains(&entry.node);
            known.contains(&entry.key) || !is_store
        });
        self
    }

    fn value(&self, entry: &Entry<'a>) -> Value<'a> {
        let lists = [SETTINGS, TLS_SETTINGS, AUTH_SETTINGS, KEY_SETTINGS, ENCRYPTION_SETTINGS, WRAPPED];
        let known = entry.key == MERGE || lists.iter().any(|list| list.contains(&entry.key));
        Value {
            name: self.within(if known { entry.key } else { "(a key)" }),
            steps: entry.steps.clone(),
            node: entry.node,
        }
    }

    fn values(&self) -> impl Iterator<Item = Value<'a>> {
        self.entries.iter().map(|entry| self.value(entry))
    }

    /// What stands there, even if it is nothing.
    fn entry(&self, key: &str) -> Option<Value<'a>> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| self.value(entry))
    }

    /// A setting. One without a value, as templates leave it, is not there: this rule is for every
    /// setting, because all of them are found here or by [`Self::required`].
    fn find(&self, key: &str) -> Option<Value<'a>> {
        self.entry(key).filter(|value| !value.is_blank())
    }

    /// A setting that must be there.
    fn required(&self, key: &str, what: &str) -> Result<Value<'a>, Broken> {
        self.find(key).ok_or_else(|| self.absent(key, what))
    }

    /// Why [`Self::find`] found nothing.
    fn absent(&self, key: &str, what: &str) -> Broken {
        match self.entry(key) {
            Some(value) => value.absent(),
            None => {
                let rule = format!("{}: is missing: {what}", self.within(key));
                Broken { steps: self.steps.clone(), rule }
            }
        }
    }

    fn parsed<T>(
        &self,
        key: &str,
        rule: impl Fn(&str) -> Result<T, BrokenRule>,
    ) -> Result<Option<T>, Broken> {
        self.find(key).map(|value| value.parsed(rule)).transpose()
    }

    /// `elsewhere` says where a key that is known, but not here, belongs.
    ///
    /// An unknown key is named only if it is a known one with a slip, because
    /// in a mangled file a secret, or a piece of one, can stand in its place.
    fn refuse_unknown(
        &self,
        known: &[&[&'static str]],
        elsewhere: impl Fn(&str) -> Option<&'static str>,
    ) -> Result<(), Broken> {
        let known = known.concat();
        let Some(entry) = self.entries.iter().find(|entry| !known.contains(&entry.key)) else {
            return Ok(());
        };
        let key = entry.key;
        let rule = if let Some(place) = elsewhere(key) {
            format!("{}: unknown key here; it {place}", self.within(key))
        } else if let Some(nearest) = nearest(key, &known) {
            format!("{}: unknown key; did you mean {nearest}?", self.within(key))
        } else {
            let place = if self.name.is_empty() { String::new() } else { format!("{}: ", self.name) };
            let known = known.join(", ");
            format!("{place}unknown key (not named, as it may be a secret); known here: {known}")
        };
        Err(Broken { steps: entry.steps.clone(), rule })
    }

    fn within(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }
}

/// A value and its name, such as `vault.keynames[1]`.
#[derive(Clone)]
struct Value<'a> {
    name: String,
    steps: Vec<Step>,
    node: &'a Node,
}

impl<'a> Value<'a> {
    fn broken(&self, rule: impl std::fmt::Display) -> Broken {
        Broken { steps: self.steps.clone(), rule: format!("{}: {rule}", self.name) }
    }

    fn is_blank(&self) -> bool {
        match self.node {
            Node::Null => true,
            Node::Str(text) => text.trim().is_empty(),
            Node::Map(_) | Node::Plain { .. } | Node::Seq(_) => false,
        }
    }

    fn absent(&self) -> Broken {
        self.broken(match self.node {
            Node::Null => "has no value; perhaps the file is half written",
            _ => "must not be empty",
        })
    }

    /// Without spaces around it.
    fn string(&self) -> Result<&'a str, Broken> {
        match self.node {
            Node::Str(text) => match text.trim() {
                // What Go's templates write for a value that is not there.
                "<no value>" => Err(self.broken("is <no value>: the agent's template found nothing there")),
                text => Ok(text),
            },
            Node::Plain { text, .. } => Ok(text.trim()),
            Node::Null => Err(self.absent()),
            Node::Map(_) | Node::Seq(_) => Err(self.broken("must be a string, not a list or a mapping")),
        }
    }

    fn parsed<T>(&self, rule: impl Fn(&str) -> Result<T, BrokenRule>) -> Result<T, Broken> {
        rule(self.string()?).map_err(|rule| self.broken(rule))
    }

    /// A number of things, at least one.
    fn count(&self) -> Result<u64, Broken> {
        match self.node {
            Node::Plain { count: Some(number), .. } if *number > 0 => Ok(*number),
            Node::Null => Err(self.absent()),
            _ => Err(self.broken("must be a whole number above 0, without quotes")),
        }
    }

    /// The items of a list; one value is a list of one.
    fn one_or_more(&self) -> Result<Vec<Value<'a>>, Broken> {
        match self.node {
            Node::Seq(items) => Ok(items
                .iter()
                .enumerate()
                .map(|(index, node)| Value {
                    name: format!("{}[{index}]", self.name),
                    steps: with_step(&self.steps, Step::Item(index)),
                    node,
                })
                .collect()),
            Node::Map(_) | Node::Null | Node::Plain { .. } | Node::Str(_) => Ok(vec![self.clone()]),
        }
    }

    fn section(&self) -> Result<Section<'a>, Broken> {
        match self.node {
            Node::Map(entries) => Section::new(self.name.clone(), self.steps.clone(), entries),
            Node::Null => Err(self.absent()),
            Node::Plain { .. } | Node::Seq(_) | Node::Str(_) => {
                Err(self.broken("must be a mapping of keys to values"))
            }
        }
    }
}

fn with_step(steps: &[Step], step: Step) -> Vec<Step> {
    steps.iter().copied().chain([step]).collect()
}

/// All mappings that are merged into others.
fn merged_mappings(tree: &Node) -> Vec<&Node> {
    let mut merged = Vec::new();
    let mut ahead = vec![tree];
    while let Some(node) = ahead.pop() {
        match node {
            Node::Map(entries) => {
                for (key, value) in entries {
                    if key.as_str() == MERGE {
                        match value {
                            Node::Seq(several) => merged.extend(several),
                            one => merged.push(one),
                        }
                    }
                    ahead.push(value);
                }
            }
            Node::Seq(nodes) => ahead.extend(nodes),
            Node::Null | Node::Plain { .. } | Node::Str(_) => {}
        }
    }
    merged.retain(|node| matches!(node, Node::Map(_)));
    merged
}

/// The known key that `key` is a slip of: a third of its letters may differ, but never more than three.
fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let bare = |name: &str| name.chars().filter(|letter| letter.is_alphanumeric()).collect::<Vec<_>>();
    let key = bare(key);
    let slips = known.iter().map(|name| (distance(&key, &bare(name)), *name));
    let (slips, name) = slips.min_by_key(|(slips, _)| *slips)?;
    (slips <= (name.len() / 3).clamp(1, 3)).then_some(name)
}

/// Levenshtein's distance, where two neighbours that swap count once.
fn distance(left: &[char], right: &[char]) -> usize {
    let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=right.len()).collect();
    for (i, &l) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &r) in right.iter().enumerate() {
            let mut cost =
                (at(&above, j) + usize::from(l != r)).min(at(&above, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = i > 0 && j > 0 && left.get(i - 1) == Some(&r) && right.get(j - 1) == Some(&l);
            if swapped {
                cost = cost.min(at(&before, j - 1) + 1);
            }
            row.push(cost);
        }
        before = std::mem::replace(&mut above, row);
    }
    at(&above, right.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SENTINEL: &str = "hvs.QZ7XJWQ0ZJX9WZQJ1XWZ3QJ-XQ_ZWqzJx4wQjZ";

    const OURS: &str = "\
provider: vault
vault:
  addresses: [https://vault-0:8200, https://vault-1:8200/prefix/]
  namespace: /team-a/
  transitpath: transit/
  keynames: [kms, kms-old]
  tls: { ca_file: /etc/ca.pem, server_name: vault.internal, client_cert_file: /c.pem, client_key_file: /k.pem }
  token: hvs.QZ7XJWQ0ZJX9WZQJ1XWZ3QJ-XQ_ZWqzJx4wQjZ
";

    #[test]
    fn seeds_are_wrapped_by_transit_unless_a_local_kek_is_asked_for() {
        let with = |encryption: &str| format!("encryption: {encryption}\n{OURS}");
        assert_eq!(good(OURS).encryption, Encryption::Transit);
        assert_eq!(good(&with("{ mode: Transit, max_age: 2h }")).encryption, Encryption::Transit);
        let unset = LocalKekLimits::default();
        assert_eq!(good(&with("{ mode: local-kek }")).encryption, Encryption::LocalKek(unset));
        let all =
            "{ mode: local-kek, max_age: 90m, max_age_in_outage: 2d, renew_after: 1m, renew_after_uses: 7 }";
        let minutes = |count: u64| std::time::Duration::from_secs(count * 60);
        let limits = LocalKekLimits {
            max_age: minutes(90),
            max_age_in_outage: minutes(2 * 24 * 60),
            renew_after: minutes(1),
            renew_after_uses: 7,
        };
        assert_eq!(good(&with(all)).encryption, Encryption::LocalKek(limits));
        // In Trousseau's flat shape, too.
        let flat = "address: https://v\nkeynames: [k]\ntoken: t\nencryption: { mode: local-kek }";
        assert_eq!(good(flat).encryption, Encryption::LocalKek(unset));
        for (encryption, words) in [
            ("{}", "encryption.mode: is missing: transit or local-kek"),
            ("{ mode: local }", "encryption.mode: must be transit or local-kek"),
            ("{ mode: local-kek, max_age: 30s }", "encryption.max_age: must be between 1m and 30d"),
            ("{ mode: local-kek, renew_after: 31d }", "encryption.renew_after: must be between 1m and 30d"),
            ("{ mode: local-kek, max_age: 1 }", "encryption.max_age: must be a time such as 90m or 12h"),
            ("{ mode: }", "encryption.mode: has no value"),
            ("{ mode: local-kek, max_age: soon }", "encryption.max_age: must be a time such as 90m or 12h"),
            ("{ mode: local-kek, max_age: 25h }", "max_age_in_outage must not be shorter than max_age"),
            ("{ mode: local-kek, renew_after_uses: 0 }", "renew_after_uses: must be a whole number above 0"),
            (
                "{ mode: local-kek, renew_after_uses: '5' }",
                "renew_after_uses: must be a whole number above 0",
            ),
            ("{ mode: local-kek, renew_after_uses: -5 }", "renew_after_uses: must be a whole number above 0"),
            ("{ mode: local-kek, maxage: 2h }", "did you mean max_age"),
            ("local-kek", "encryption: must be a mapping"),
        ] {
            let error = refused(&with(encryption));
            assert!(error.contains(words) && error.starts_with("/etc/x.yaml:1: "), "{encryption}: {error}");
        }
        let below_vault = OURS.replace("  namespace", "  encryption: { mode: local-kek }\n  namespace");
        assert!(refused(&below_vault).contains("unknown key"), "it stands beside vault:");
    }

    fn read(text: &str) -> Result<Config, ConfigError> {
        parse(text.as_bytes(), Path::new("/etc/x.yaml"), ParseOptions::default())
    }

    fn good(text: &str) -> Config {
        read(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    fn refused(text: &str) -> String {
        let error = read(text).expect_err(text).to_string();
        assert!(error.starts_with("/etc/x.yaml:"), "{error}");
        error
    }

    /// A flat config with lines in place of the token's.
    fn with(lines: &str) -> String {
        format!("address: https://v\nkeynames: k\n{lines}\n")
    }

    fn token(config: &Config) -> &str {
        match &config.credentials {
            Credentials::Token(token) => token.expose(),
            Credentials::Unsupported { method } => panic!("{method}"),
        }
    }

    #[test]
    fn our_shape() {
        let config = good(OURS);
        assert_eq!(
            config.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["https://vault-0:8200", "https://vault-1:8200/prefix"]
        );
        assert_eq!(config.namespace.as_str(), "team-a");
        assert_eq!(config.keys.primary().mount().as_str(), "transit");
        assert_eq!(config.keys.iter().map(|key| key.name().as_str()).collect::<Vec<_>>(), ["kms", "kms-old"]);
        assert_eq!(config.tls.ca_file.as_deref(), Some(Path::new("/etc/ca.pem")));
        assert_eq!(config.tls.server_name.as_deref(), Some("vault.internal"));
        assert_eq!(config.tls.client_cert_file.as_deref(), Some(Path::new("/c.pem")));
        assert_eq!(config.tls.client_key_file.as_deref(), Some(Path::new("/k.pem")));
        assert_eq!(token(&config), SENTINEL);
        assert!(config.warnings.is_empty());
        assert!(!format!("{config:?}").contains(SENTINEL));
    }

    #[test]
    fn trousseau_v1_as_an_agent_renders_it() {
        let config = good(
            "\r\n--- \r\nprovider: vault \r\nvault: \r\n  keynames: \r\n  - vault-kms-demo \r\n  \
             address: https://vault:8200 \r\n  token: \" s.abcdef \" \r\n  vaultcacert: /ca.crt \r\n  \
             tlsservername: vault.loc \r\n  transitpath: transit \r\n  authpath: auth \r\n \r\n",
        );
        assert_eq!(config.keys.primary().name().as_str(), "vault-kms-demo");
        assert_eq!(token(&config), "s.abcdef");
        assert_eq!(config.tls.ca_file.as_deref(), Some(Path::new("/ca.crt")));
        assert_eq!(config.tls.server_name.as_deref(), Some("vault.loc"));
        assert!(config.namespace.is_root());
    }

    #[test]
    fn trousseau_v2_without_a_wrapper() {
        let config = good(
            "\u{feff}--- \nkeyNames:\n- kms\naddress: https://v\ntoken: root\nvaultCACert: /ca.crt\ntlsServerName: v\n",
        );
        assert_eq!(token(&config), "root");
        assert_eq!(config.keys.primary().mount().as_str(), "transit");
        assert_eq!(config.tls.ca_file.as_deref(), Some(Path::new("/ca.crt")));
        assert_eq!(good(&with("provider: OpenBao\nTOKEN: t")).keys.primary().name().as_str(), "k");
    }

    /// Each is read by viper, as Trousseau uses it.
    #[test]
    fn what_viper_reads_is_read() {
        let config = good(&with("token: t\n--- \n# the end\n"));
        assert_eq!(token(&config), "t");
        assert_eq!(good(&with("token: t # comment\n...\n---\n---")), config);
        // Every optional setting may be left without a value, in each way in which YAML can say so.
        let optional = [
            "addresses",
            "auth",
            "authpath",
            "clientcert",
            "clientkey",
            "encryption",
            "namespace",
            "provider",
            "roleid",
            "secretid",
            "tls",
            "tlsservername",
            "transitpath",
            "vaultcacert",
            "VaultCACert",
        ];
        for empty in ["", "''", "' '", "null", "~", "# comment"] {
            for key in optional {
                assert_eq!(good(&with(&format!("token: t\n{key}: {empty}"))), config, "{key}: {empty}");
            }
            for key in TLS_SETTINGS {
                assert_eq!(
                    good(&with(&format!("token: t\ntls:\n  {key}: {empty}"))),
                    config,
                    "{key}: {empty}"
                );
            }
            for key in ["max_age", "max_age_in_outage", "renew_after", "renew_after_uses"] {
                let lines = format!("token: t\nencryption:\n  mode: transit\n  {key}: {empty}");
                assert_eq!(good(&with(&lines)), config, "{key}: {empty}");
            }
            let addresses = format!("addresses: [https://v]\naddress: {empty}\nkeynames: k\ntoken: t\n");
            assert_eq!(good(&addresses), config);
            for key in ["mount", "namespace"] {
                let object =
                    format!("address: https://v\ntoken: t\nkeynames:\n- name: k\n  {key}: {empty}\n");
                assert_eq!(good(&object), config, "{key}: {empty}");
            }
            let login = good(&with(&format!("token: {empty}\nroleid: r"))).credentials;
            assert_eq!(login, Credentials::Unsupported { method: "approle" }, "{empty}");
        }
        // Numbers and truths are the text that was written.
        let config = good(
            "address: https://v\ntoken: 0123\nnamespace: 2024\nkeynames: [1, 0x10, 1_000, 1e3, true, 007]\n",
        );
        let names: Vec<_> = config.keys.iter().map(|key| key.name().as_str()).collect();
        assert_eq!(names, ["1", "0x10", "1_000", "1e3", "true", "007"]);
        assert_eq!((token(&config), config.namespace.as_str()), ("0123", "2024"));
        assert_eq!(good("address: https://v\ntoken: t\nkeynames: 5\n").keys.primary().name().as_str(), "5");
        let config = good("address: https://v\ntoken: t\nkeynames: a, b\n");
        assert_eq!(config.keys.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn merge_keys_merge_as_in_yaml() {
        let config = good(
            "defaults: &defaults\n  namespace: from-defaults\n  transitpath: from-defaults\n  \
             tls: &tls { ca_file: /ca.pem, server_name: v }\n\
             more: &more { <<: *defaults, namespace: from-more, address: https://v }\n\
             x-nothing: [1, 2]\n\
             vault:\n  <<: [*more, *defaults]\n  transitpath: own\n  keynames: [k]\n  token: t\n  \
             tls: { <<: *tls, server_name: w }\n",
        );
        assert_eq!(config.addresses.len(), 1);
        assert_eq!(config.namespace.as_str(), "from-more");
        assert_eq!(config.keys.primary().mount().as_str(), "own");
        assert_eq!(config.tls.ca_file.as_deref(), Some(Path::new("/ca.pem")));
        assert_eq!(config.tls.server_name.as_deref(), Some("w"));
        // In the flat shape, too; and what stands there without a value is not what is merged.
        let flat =
            "x-v: &v { address: https://v, namespace: a, token: t }\n<<: *v\nkeynames: k\nnamespace:\n";
        assert!(good(flat).namespace.is_root());
    }

    #[test]
    fn logins_are_recognised() {
        for (lines, expected) in [
            ("roleid: r\nsecretid: s", "approle"),
            ("roleID: r", "approle"),
            ("clientCert: /c\nclientKey: /k", "cert"),
            (
                "auth: { method: AppRole, mount: approle, role_id: r, secret_id_file: /s, wrapped: true }",
                "approle",
            ),
            ("auth: { method: jwt, anything: 1 }\nroleid: r", "jwt"),
        ] {
            let Credentials::Unsupported { method } = good(&with(lines)).credentials else {
                panic!("{lines}");
            };
            assert_eq!(method, expected, "{lines}");
        }
    }

    #[test]
    fn the_token_wins_and_the_rest_is_warned_about() {
        let config = good(&with("token: t\nroleid: r\nsecretid: ''\nauth: { method: cert }"));
        assert_eq!(token(&config), "t");
        assert_eq!(
            config.warnings,
            [
                "auth: is ignored, because a token stands beside it",
                "roleid: is ignored, because a token stands beside it"
            ]
        );
        let config = good(&with("auth: { method: jwt }\nclientcert: /c\nclientkey: /k"));
        assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
        assert!(good(&with("roleid: r\nsecretid: s")).warnings.is_empty());
        assert!(refused(&with("roleid: ''\nsecretid: ' '")).contains("no token and no auth"));
    }

    #[test]
    fn a_key_may_say_where_it_is() {
        let with = |keynames: &str| {
            format!(
                "address: https://v\ntoken: t\nnamespace: team-a\ntransitpath: new\nkeynames: {keynames}\n"
            )
        };
        let config = good(&with(
            "[kms, { name: kms, mount: /old/ }, { NAME: kms, namespace: root }, { name: b, namespace: team-a/x, mount: t }, { name: c }]",
        ));
        let told: Vec<_> = config
            .keys
            .iter()
            .map(|key| {
                (key.to_string(), key.namespace().as_str().to_owned(), key.mount().as_str().to_owned())
            })
            .collect();
        let told: Vec<_> =
            told.iter().map(|(key, namespace, mount)| [&**key, &**namespace, &**mount]).collect();
        assert_eq!(
            told,
            [
                ["kms", "team-a", "new"],
                ["team-a/old/kms", "team-a", "old"],
                ["new/kms", "", "new"],
                ["team-a/x/t/b", "team-a/x", "t"],
                ["c", "team-a", "new"],
            ]
        );
        assert_eq!(good(&with("{ name: kms, mount: old }")).keys.primary().to_string(), "team-a/old/kms");
        // What an error tells to write is read as what it was.
        for key in config.keys.iter() {
            let again = good(&with(&format!("[{}]", key.config_entry())));
            assert_eq!(again.keys.primary(), key, "{}", key.config_entry());
        }
        let odd = good(&with("{ name: kms, mount: 'a:,[*/b' }"));
        assert_eq!(good(&with(&odd.keys.primary().config_entry())).keys, odd.keys);

        for (keynames, words) in [
            ("[kms, { mount: old }]", "keynames[1].name: is missing"),
            ("[{ name: kms, path: old }]", "keynames[0]: unknown key (not named"),
            ("[{ name: kms, mont: old }]", "keynames[0].mont: unknown key; did you mean mount?"),
            (
                "[{ name: kms, transitpath: a }]",
                "keynames[0].transitpath: unknown key here; it is called mount",
            ),
            ("[{ name: a/b }]", "keynames[0].name: must be a key name"),
            ("[{ name: kms, mount: a//b }]", "keynames[0].mount: must not have empty"),
            ("[{ name: kms, namespace: a b }]", "keynames[0].namespace: must be a plain path"),
            ("[kms, { name: kms }]", "keynames: must not name a key twice"),
            ("[kms, { name: kms, mount: new }]", "keynames: must not name a key twice"),
            (
                "[kms, { name: kms, mount: team-a/new, namespace: root }]",
                "keynames: must not name a key twice",
            ),
        ] {
            let error = refused(&with(keynames));
            assert!(error.starts_with("/etc/x.yaml:5: ") && error.contains(words), "{keynames}: {error}");
        }
    }

    #[test]
    fn an_address_twice_counts_once() {
        let config = good("addresses: [https://v, https://v/]\nkeynames: k\ntoken: t\n");
        assert_eq!((config.addresses.len(), config.warnings.len()), (1, 1));
    }

    /// Each text, and what the error must say after the path.
    #[test]
    fn errors_name_line_key_and_rule() {
        let mut wrong = Vec::new();
        for (text, expected) in [
            ("vault:\n  address: http://v\n  keynames: k\n  token: t\n", ":2: vault.address: is http://"),
            (&with("token: ''"), ":3: token: must not be empty"),
            (&with("token:"), ":3: token: has no value"),
            (&with("token: [t]"), ":3: token: must be a string, not a list"),
            (&with("token: a b"), ":3: token: must be visible ASCII"),
            (&with("token: <no value>"), ":3: token: is <no value>"),
            (&with(""), ": token: is missing: no token and no auth"),
            ("vault:\n  keynames: k\n  token: t\n", ":1: vault.address: is missing"),
            ("vault:\n  address: https://v\n  token: t\n", ":1: vault.keynames: is missing"),
            (&with("token: t\ntls:\n  ca_file: ca.pem"), ":5: tls.ca_file: must be an absolute path"),
            (&with("token: t\nvaultcacert: ca.pem"), ":4: vaultcacert: must be an absolute path"),
            (
                &with("token: t\nvaultcacert: /a\ntls: { ca_file: /a }"),
                ":4: vaultcacert: means the same as tls.ca_file",
            ),
            (
                &with("token: t\ntls:\n  client_cert_file: /a"),
                ":5: tls.client_cert_file: needs client_key_file",
            ),
            (
                &with("token: t\ntls:\n  client_key_file: /a"),
                ":5: tls.client_key_file: needs client_cert_file",
            ),
            (&with("token: t\ntls: x"), ":4: tls: must be a mapping"),
            (&with("token: t\ntls: { server_name: 'a b' }"), ":4: tls.server_name: must be a DNS name"),
            (&with("token: t\naddresses: [https://v]"), ":1: address: must not stand beside addresses"),
            (&with("token: t\ntransitpath: a//b"), ":4: transitpath: must not have empty"),
            (&with("token: t\nnamespace: a b"), ":4: namespace: must be a plain path"),
            (&with("tokn: t"), ":3: tokn: unknown key; did you mean token?"),
            (&with("token: t\nkey_names: [k]"), ":4: key_names: unknown key; did you mean keynames?"),
            (&with("token: t\nca_file: /a"), ":4: ca_file: unknown key here; it belongs below tls:"),
            (
                &with("token: t\nlisten: x"),
                ":4: unknown key (not named, as it may be a secret); known here: address, ",
            ),
            (
                "provider: vault\ntoken: t\nvault:\n  a: b\n",
                ":2: token: unknown key here; it belongs below vault:",
            ),
            ("provider: awskms\n", ":1: provider: must be vault"),
            ("provider: 1\n", ":1: provider: must be vault"),
            ("provider: vault\nvault:\n", ":2: vault: has no value; perhaps the file is half written"),
            (&with("token: t\nTOKEN: t"), ":4: token: stands there twice"),
            (&with("token: t\ntls: {ca_file: /a, CA_FILE: /b}"), ":4: tls.ca_file: stands there twice"),
            (
                "address: https://v\ntoken: t\nkeynames:\n- a\n- b\n- a/b\n",
                ":6: keynames[2]: must be a key name",
            ),
            ("address: https://v\ntoken: t\nkeynames:\n- a\n- 1.\n", ":5: keynames[1]: must be a key name"),
            ("address: https://v\ntoken: t\nkeynames:\n- a\n-\n", ":5: keynames[1]: has no value"),
            ("address: https://v\ntoken: t\nkeynames: ''\n", ":3: keynames: must not be empty"),
            ("address: https://v\ntoken: t\nkeynames: a,\n", ":3: keynames: must not be empty"),
            ("address:\ntoken: t\nkeynames: k\n", ":1: address: has no value"),
            ("addresses: ''\ntoken: t\nkeynames: k\n", ":1: addresses: must not be empty"),
            (
                "addresses: 'https://a, https://b'\ntoken: t\nkeynames: k\n",
                ":1: addresses: must be one address: write several as a list, addresses: [https://…",
            ),
            (
                "address: https://v/v1/\ntoken: t\nkeynames: k\n",
                ":1: address: must end before /v1 and /ui: write the address alone, such as https://vault:8200",
            ),
            (&with("token: t\ntls: { server_name: 10.0.0.1 }"), ":4: tls.server_name: must be a DNS name"),
            (&with("token: t\ntlsservername: '::1'"), ":4: tlsservername: must be a DNS name"),
            (&with("token: t\n<<: x"), ":4: <<: must be a mapping, or a list of mappings"),
            (&with("token: t\n<<: [{namespace: a}, x]"), ":4: <<[1]: must be a mapping"),
            (&with("token: t\n<<: {tokn: a}"), ":4: tokn: unknown key; did you mean token?"),
            (
                "x-v: &v\n  namespace: a b\nvault:\n  <<: *v\n  address: https://v\n  keynames: k\n  token: t\n",
                ":2: vault.namespace: must be a plain path",
            ),
            ("a: &a { token: t }\naddress: https://v\nkeynames: k\ntoken: t\n", ":1: unknown key"),
            ("a: b\n---\n# c\n---\nc: d\n", ": must hold one YAML document"),
            (
                "address: https://v\ntoken: t\nkeynames: [a, b, a]\n",
                ":3: keynames: must not name a key twice",
            ),
            ("address: https://v\ntoken: t\nkeynames: []\n", ":3: keynames: must name at least one key"),
            ("address: https://v\ntoken: t\nkeynames: {a: b}\n", ":3: keynames: unknown key (not named"),
            ("addresses: []\ntoken: t\nkeynames: k\n", ":1: addresses: must name at least one address"),
            (&with("auth: {}"), ":3: auth.method: is missing"),
            (&with("auth: { method: 1 }"), ":3: auth.method: must be a login method"),
            (
                &with("auth: { method: magic }"),
                ":3: auth.method: must be a login method that is known: alicloud, ",
            ),
            (&with("auth:\n  method: jwt\n  role: [a]"), ":5: auth.role: must be one value"),
            (&with("auth:\n  method: jwt\n  x: a\n  x: b"), ":6: auth.(a key): stands there twice"),
            (&with("token: t\ntls:\n  cafile: /a"), ":5: tls.cafile: unknown key; did you mean ca_file?"),
            (&with("auth: jwt"), ":3: auth: must be a mapping"),
            ("", ": is empty; perhaps it is half written"),
            (" \n\n", ": is empty"),
            ("# only a comment\n", ": is empty"),
            ("--- \n", ": is empty"),
            ("provid", ": must hold settings"),
            ("- a\n", ": must hold settings"),
            ("a: b\n---\nc: d\n", ": must hold one YAML document"),
            ("a: b\n c: d\n", ":2:3: is not valid YAML: a colon where none can be"),
            ("a: 'b\n", ":2:1: is not valid YAML: a quote that is not closed"),
            ("a: {b: c\n", ":2:1: is not valid YAML: a { or [ that is not closed"),
            ("a:\n\tb: c\n", ":2:1: is not valid YAML: a tab"),
            ("a: @b\n", ":1:4: is not valid YAML: a tab, @, ` or % begins a value"),
            ("a: b\nc: d\0e\n", ":2: has a control character"),
            ("a: *b\n", ":1:4: is not valid YAML"),
            ("a: !secret b\n", ":1: has a YAML tag"),
            ("1: b\n", ":1: has a key that is not a word"),
            ("[a]: b\n", ":1: has a key that is not a word"),
        ] {
            let error = refused(text);
            if !error.starts_with(&format!("/etc/x.yaml{expected}")) {
                wrong.push(format!("{text}\nexpected {expected}\nbut said {error}\n"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn http_needs_the_flag() {
        let text = "address: http://v\nkeynames: k\ntoken: t\n";
        assert!(refused(text).contains("--allow-http"));
        assert!(parse(text.as_bytes(), Path::new("/x"), ParseOptions { allow_http: true }).is_ok());
    }

    #[test]
    fn size_and_encoding_are_checked() {
        let path = Path::new("/x");
        let mut text = OURS.to_owned();
        text += &"#".repeat(MAX_FILE_BYTES - text.len());
        assert!(parse(text.as_bytes(), path, ParseOptions::default()).is_ok());
        text.push('#');
        let error = parse(text.as_bytes(), path, ParseOptions::default()).unwrap_err();
        assert_eq!(error.to_string(), "/x: is larger than 64 KiB");
        let error = parse(b"a: b\nc: \xff\n", path, ParseOptions::default()).unwrap_err();
        assert_eq!(error.to_string(), "/x:2: is not UTF-8 text");
    }

    #[test]
    fn a_secret_where_a_key_should_be_is_not_shown() {
        for text in [
            with(&format!("{SENTINEL}: x")),
            with(&format!("token: t\ntls:\n  {SENTINEL}: x")),
            with(&format!("{SENTINEL}: x\n{SENTINEL}: y")),
            with(&format!("token: !!int {SENTINEL}")),
            with(&format!("token: t\nauth:\n  {SENTINEL}: [x]")),
            format!("vault: {SENTINEL}\n"),
            format!("{SENTINEL}\n"),
            format!("vault:\n  {SENTINEL}: x\n"),
            format!("keynames: {SENTINEL}\naddress: {SENTINEL}\n"),
        ] {
            let error = read(&text).expect_err(&text);
            assert!(
                !format!("{error} {error:?}").contains(SENTINEL) && !format!("{error}").contains("qz7"),
                "{error}"
            );
        }
    }

    /// One way of damaging a text.
    #[derive(Clone, Debug)]
    enum Damage {
        Cut(usize, usize),
        Insert(usize, &'static str),
        Swap(usize, usize),
    }

    fn damage() -> impl Strategy<Value = Damage> {
        let pieces = prop::sample::select(vec![
            "\n",
            ": ",
            " ",
            "\"",
            "'",
            "- ",
            "#",
            "[",
            "{",
            "}",
            "]",
            ",",
            "!",
            "!!int ",
            "&a ",
            "*a",
            "|\n",
            "\t",
            "\0",
            "\r",
            "---\n",
            "? ",
            "%",
            "@",
            "\u{feff}",
            "<no value>",
            "!!binary ",
            "token: ",
            "<<: ",
        ]);
        prop_oneof![
            (0..400_usize, 0..60_usize).prop_map(|(at, length)| Damage::Cut(at, length)),
            (0..400_usize, pieces).prop_map(|(at, piece)| Damage::Insert(at, piece)),
            (0..400_usize, 0..400_usize).prop_map(|(a, b)| Damage::Swap(a, b)),
        ]
    }

    fn damaged(text: &str, damages: &[Damage]) -> Vec<u8> {
        let mut bytes = text.as_bytes().to_vec();
        for damage in damages {
            let end = bytes.len();
            match *damage {
                Damage::Cut(at, length) => drop(bytes.drain(at.min(end)..(at + length).min(end))),
                Damage::Insert(at, piece) => {
                    drop(bytes.splice(at.min(end)..at.min(end), piece.bytes()).collect::<Vec<_>>());
                }
                Damage::Swap(a, b) if a < end && b < end => bytes.swap(a, b),
                Damage::Swap(..) => {}
            }
        }
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, Path::new("/x"), ParseOptions::default());
        }

        #[test]
        fn no_text_makes_it_panic(text in "[ -~\n\t\r\u{e9}\u{feff}]{0,200}") {
            let _ = parse(text.as_bytes(), Path::new("/x"), ParseOptions::default());
        }

        /// Whatever damage the file took, no four characters of the secret are shown in a row.
        /// The secret is made of letters that no word of ours has in such a row.
        #[test]
        fn damaged_files_tell_no_secret(damages in prop::collection::vec(damage(), 1..6)) {
            if let Err(error) = parse(&damaged(OURS, &damages), Path::new("/x"), ParseOptions::default()) {
                let said = format!("{error} {error:?}").to_lowercase();
                let secret = SENTINEL.to_lowercase();
                for piece in secret.as_bytes()["hvs.".len()..].windows(4) {
                    let piece = str::from_utf8(piece).unwrap();
                    prop_assert!(!said.contains(piece), "{piece} in {said}");
                }
            }
        }
    }
}
