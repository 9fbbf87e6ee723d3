//! Mappings and values with their names and locations, for errors that show no value.

use std::{borrow::Cow, collections::HashSet, fmt};

use transit_client::rule::BrokenRule;

use super::{
    auth::keys::{AUTH_SETTINGS, WORKLOAD_API_SETTINGS},
    spelling::nearest,
    tree::{Key, Step, YamlNode},
};

/// The settings of Vault, in lower case.
pub(super) const SETTINGS: &[&str] = &[
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
pub(super) const TLS_SETTINGS: &[&str] = &["ca_file", "client_cert_file", "client_key_file", "server_name"];
/// The settings of an entry of `keynames`.
pub(super) const KEY_SETTINGS: &[&str] = &["mount", "name", "namespace"];
pub(super) const ENCRYPTION_SETTINGS: &[&str] =
    &["max_age", "max_age_in_outage", "mode", "renew_after", "renew_after_uses"];
/// The keys of the root in the flat shape, besides [`SETTINGS`].
pub(super) const FLAT: &[&str] = &["encryption", "provider"];
/// The keys of the root in the shape with `vault:`.
pub(super) const WRAPPED: &[&str] = &["encryption", "provider", "vault"];
/// YAML's merge key: the entries of its mappings are merged into the mapping that contains it.
const MERGE: &str = "<<";

/// A broken rule and its location.
pub(super) struct Broken {
    pub(super) steps: Vec<Step>,
    pub(super) rule: String,
}

/// A mapping and its name, such as `vault.tls`. The name of the root is empty.
pub(super) struct Section<'a> {
    pub(super) name: String,
    pub(super) steps: Vec<Step>,
    /// Its own entries, then those that are merged into it.
    entries: Vec<SectionEntry<'a>>,
}

struct SectionEntry<'a> {
    key: &'a str,
    node: &'a YamlNode,
    steps: Vec<Step>,
}

impl<'a> Section<'a> {
    /// Fails if a key is set twice. As in YAML, an own entry has precedence over a merged one, and an earlier merged
    /// mapping over a later one.
    pub(super) fn new(name: String, steps: Vec<Step>, map: &'a [(Key, YamlNode)]) -> Result<Self, Broken> {
        let mut section = Self { name, steps, entries: Vec::with_capacity(map.len()) };
        let mut seen = HashSet::new();
        let mut merged = Vec::new();
        for (index, (key, node)) in map.iter().enumerate() {
            let entry = SectionEntry { key, node, steps: with_step(&section.steps, Step::Entry(index)) };
            if !seen.insert(entry.key) {
                let rule = "is set twice (keys are not case-sensitive)";
                return Err(section.value(&entry).broken(rule));
            }
            if entry.key == MERGE {
                merged = section.value(&entry).one_or_more()?;
            } else {
                section.entries.push(entry);
            }
        }
        for value in merged {
            let YamlNode::Map(map) = value.node else {
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

    /// Removes entries that only define mappings for merge keys: keys that begin with `x-`, and unknown keys whose
    /// mapping is one of `merged`.
    pub(super) fn without_definitions(mut self, merged: &[&YamlNode]) -> Self {
        let known = [SETTINGS, FLAT, WRAPPED].concat();
        self.entries.retain(|entry| {
            let is_definition = entry.key.starts_with("x-") || merged.contains(&entry.node);
            known.contains(&entry.key) || !is_definition
        });
        self
    }

    fn value(&self, entry: &SectionEntry<'a>) -> Value<'a> {
        let lists = [
            SETTINGS,
            TLS_SETTINGS,
            AUTH_SETTINGS,
            KEY_SETTINGS,
            ENCRYPTION_SETTINGS,
            WORKLOAD_API_SETTINGS,
            WRAPPED,
        ];
        let known = entry.key == MERGE || lists.iter().any(|list| list.contains(&entry.key));
        Value {
            name: self.within(if known { entry.key } else { "(a key)" }),
            steps: entry.steps.clone(),
            node: entry.node,
        }
    }

    /// Returns all entries of a mapping whose keys are data. The names of the values do not show the keys.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        self.entries.iter().map(|entry| (entry.key, self.value(entry)))
    }

    /// Returns the value of a key, also if it is blank.
    pub(super) fn entry(&self, key: &str) -> Option<Value<'a>> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| self.value(entry))
    }

    /// Returns a setting. Templates leave settings without a value, so a blank setting counts as absent. This holds
    /// for every setting, because all of them are read by this method or by [`Self::required`].
    pub(super) fn find(&self, key: &str) -> Option<Value<'a>> {
        self.entry(key).filter(|value| !value.is_blank())
    }

    /// Returns a setting that must not be absent.
    pub(super) fn required(&self, key: &str, what: &str) -> Result<Value<'a>, Broken> {
        self.find(key).ok_or_else(|| self.absent(key, what))
    }

    /// The error for a setting that breaks a rule although the section does not contain it.
    pub(super) fn broken(&self, key: &str, rule: impl fmt::Display) -> Broken {
        Broken { steps: self.steps.clone(), rule: format!("{}: {rule}", self.within(key)) }
    }

    /// The error if [`Self::find`] returns `None`.
    pub(super) fn absent(&self, key: &str, what: &str) -> Broken {
        match self.entry(key) {
            Some(value) => value.absent(),
            None => self.broken(key, format!("is missing: {what}")),
        }
    }

    pub(super) fn parsed<T>(
        &self,
        key: &str,
        rule: impl Fn(&str) -> Result<T, BrokenRule>,
    ) -> Result<Option<T>, Broken> {
        self.find(key).map(|value| value.parsed(rule)).transpose()
    }

    /// Fails if there is a key that is not in `known`. `elsewhere` returns a hint for a key of another section.
    ///
    /// The error shows an unknown key only if it is similar to a known one: in a damaged file, a part of a secret
    /// can be read as a key.
    pub(super) fn refuse_unknown(
        &self,
        known: &[&[&'static str]],
        elsewhere: impl Fn(&str) -> Option<Cow<'static, str>>,
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
            format!("{place}unknown key (not shown because it may be a secret); known keys: {known}")
        };
        Err(Broken { steps: entry.steps.clone(), rule })
    }

    /// Returns the name of a setting in this section.
    pub(super) fn within(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }
}

/// A value and its name, such as `vault.keynames[1]`.
#[derive(Clone)]
pub(super) struct Value<'a> {
    pub(super) name: String,
    steps: Vec<Step>,
    pub(super) node: &'a YamlNode,
}

impl<'a> Value<'a> {
    pub(super) fn broken(&self, rule: impl fmt::Display) -> Broken {
        Broken { steps: self.steps.clone(), rule: format!("{}: {rule}", self.name) }
    }

    fn is_blank(&self) -> bool {
        match self.node {
            YamlNode::Null => true,
            YamlNode::Str(text) => text.trim().is_empty(),
            YamlNode::Map(_) | YamlNode::Plain { .. } | YamlNode::Seq(_) => false,
        }
    }

    pub(super) fn absent(&self) -> Broken {
        self.broken(match self.node {
            YamlNode::Null => "has no value; the file may be half written",
            _ => "must not be empty",
        })
    }

    /// Returns the text without surrounding spaces.
    pub(super) fn string(&self) -> Result<&'a str, Broken> {
        match self.node {
            YamlNode::Str(text) => match text.trim() {
                // Go templates write this for a value that does not exist.
                "<no value>" => Err(self.broken("is <no value>: the agent's template found no value for it")),
                text => Ok(text),
            },
            YamlNode::Plain { text, .. } => Ok(text.trim()),
            YamlNode::Null => Err(self.absent()),
            YamlNode::Map(_) | YamlNode::Seq(_) => {
                Err(self.broken("must be a string, not a list or a mapping"))
            }
        }
    }

    pub(super) fn parsed<T>(&self, rule: impl Fn(&str) -> Result<T, BrokenRule>) -> Result<T, Broken> {
        rule(self.string()?).map_err(|rule| self.broken(rule))
    }

    /// Returns a positive integer.
    pub(super) fn count(&self) -> Result<u64, Broken> {
        match self.node {
            YamlNode::Plain { count: Some(number), .. } if *number > 0 => Ok(*number),
            YamlNode::Null => Err(self.absent()),
            _ => Err(self.broken("must be a positive integer without quotes")),
        }
    }

    /// Returns the items of a list. A value that is no list counts as a list of one item.
    pub(super) fn one_or_more(&self) -> Result<Vec<Value<'a>>, Broken> {
        match self.node {
            YamlNode::Seq(items) => Ok(items
                .iter()
                .enumerate()
                .map(|(index, node)| Value {
                    name: format!("{}[{index}]", self.name),
                    steps: with_step(&self.steps, Step::Item(index)),
                    node,
                })
                .collect()),
            YamlNode::Map(_) | YamlNode::Null | YamlNode::Plain { .. } | YamlNode::Str(_) => {
                Ok(vec![self.clone()])
            }
        }
    }

    pub(super) fn section(&self) -> Result<Section<'a>, Broken> {
        match self.node {
            YamlNode::Map(entries) => Section::new(self.name.clone(), self.steps.clone(), entries),
            YamlNode::Null => Err(self.absent()),
            YamlNode::Plain { .. } | YamlNode::Seq(_) | YamlNode::Str(_) => {
                Err(self.broken("must be a mapping of keys to values"))
            }
        }
    }
}

fn with_step(steps: &[Step], step: Step) -> Vec<Step> {
    steps.iter().copied().chain([step]).collect()
}

/// Returns all mappings that are merged into others.
pub(super) fn merged_mappings(tree: &YamlNode) -> Vec<&YamlNode> {
    let mut merged = Vec::new();
    let mut pending = vec![tree];
    while let Some(node) = pending.pop() {
        match node {
            YamlNode::Map(entries) => {
                for (key, value) in entries {
                    if key.as_str() == MERGE {
                        match value {
                            YamlNode::Seq(several) => merged.extend(several),
                            one => merged.push(one),
                        }
                    }
                    pending.push(value);
                }
            }
            YamlNode::Seq(nodes) => pending.extend(nodes),
            YamlNode::Null | YamlNode::Plain { .. } | YamlNode::Str(_) => {}
        }
    }
    merged.retain(|node| matches!(node, YamlNode::Map(_)));
    merged
}
