//! The YAML of the config file as a tree, and the line of each node.
//!
//! The messages of serde_yaml contain values of the wrong type, so no message of it is shown. The tree accepts
//! every type, and the parser of the config checks its own rules. To find the line of a broken rule, [`locate`]
//! walks the text again and fails deliberately at that node: the error contains the line.

use std::{
    cell::{Cell, RefCell},
    fmt,
};

use serde::{
    Deserialize,
    de::{self, DeserializeSeed, EnumAccess, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use zeroize::Zeroizing;

/// Aliases can expand a small text to a huge tree. A real config has about twenty nodes.
const MAX_NODES: usize = 4096;

/// A value of any type.
#[derive(Eq, PartialEq)]
pub(super) enum YamlNode {
    Map(Vec<(Key, YamlNode)>),
    Null,
    /// A number or a boolean, with its original text. Programs interpret `0x10` and `1_000` differently, and
    /// where a name is expected, the text is the name.
    Plain {
        /// The number, if it is an unsigned integer.
        count: Option<u64>,
        text: Zeroizing<String>,
    },
    Seq(Vec<YamlNode>),
    Str(Zeroizing<String>),
}

/// A key, trimmed and in lower case, because keys are not case-sensitive. In a damaged file, a secret can be read
/// as a key, so keys are wiped, and only known keys are shown.
pub(super) type Key = Zeroizing<String>;

/// One step from a node to one of its children.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// The nth entry of a mapping.
    Entry(usize),
    /// The nth item of a sequence.
    Item(usize),
}

/// A line and a column, both from 1.
pub(super) type Location = (usize, usize);

/// Why a text cannot be read as a tree.
pub(super) struct TreeError {
    pub location: Option<Location>,
    pub rule: String,
    /// The text is not YAML, so the column is shown too.
    pub is_syntax: bool,
}

/// Reads the only document of `text`.
pub(super) fn read(text: &str) -> Result<YamlNode, TreeError> {
    let state = ReadState {
        left: Cell::new(MAX_NODES),
        has_plain: Cell::new(false),
        broken_rule: RefCell::new(None),
    };
    let mut documents = serde_yaml::Deserializer::from_str(text);
    let Some(document) = documents.next() else {
        return Ok(YamlNode::Null);
    };
    let mut node = Build(&state).deserialize(document).map_err(|error| state.explain(&error))?;
    for document in documents {
        // A `---` at the end begins an empty document.
        if Build(&state).deserialize(document).map_err(|error| state.explain(&error))? != YamlNode::Null {
            return Err(TreeError {
                location: None,
                rule: "must contain one YAML document, not several: remove the second ---".to_owned(),
                is_syntax: false,
            });
        }
    }
    if state.has_plain.get()
        && let Some(document) = serde_yaml::Deserializer::from_str(text).next()
    {
        Fill(&mut node).deserialize(document).map_err(|error| state.explain(&error))?;
    }
    Ok(node)
}

/// Returns the location of a key (`Entry`) or an item (`Item`) in the tree that [`read`] returns for `text`.
pub(super) fn locate(text: &str, steps: &[Step]) -> Option<Location> {
    if steps.is_empty() {
        return None;
    }
    let document = serde_yaml::Deserializer::from_str(text).next()?;
    location(&Locate(steps).deserialize(document).err()?)
}

/// The state that all visitors of one read share.
struct ReadState {
    left: Cell<usize>,
    /// There are plain values, whose text must be filled in.
    has_plain: Cell<bool>,
    /// The broken rule, if the error is not from the YAML parser.
    broken_rule: RefCell<Option<String>>,
}

impl ReadState {
    fn count<E: de::Error>(&self) -> Result<(), E> {
        match self.left.get().checked_sub(1) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => Err(self.refuse(format!("contains more than {MAX_NODES} values"))),
        }
    }

    fn plain(&self, count: Option<u64>) -> YamlNode {
        self.has_plain.set(true);
        YamlNode::Plain { count, text: Zeroizing::default() }
    }

    /// The returned error only transports the location. Its message is kept here.
    fn refuse<E: de::Error>(&self, rule: String) -> E {
        self.broken_rule.replace(Some(rule));
        E::custom("refused")
    }

    fn explain(&self, error: &serde_yaml::Error) -> TreeError {
        let location = location(error);
        match self.broken_rule.take() {
            Some(rule) => TreeError { location, rule, is_syntax: false },
            None => TreeError { location, rule: syntax_rule(error), is_syntax: true },
        }
    }
}

fn location(error: &serde_yaml::Error) -> Option<Location> {
    error.location().map(|location| (location.line(), location.column()))
}

/// The parser's message can contain values, so it only selects a message of this table.
fn syntax_rule(error: &serde_yaml::Error) -> String {
    const HINTS: [(&str, &str); 10] = [
        ("block sequence entries are not allowed", "a list item is not allowed here: check the indentation"),
        (
            "could not find expected ':'",
            "a line is not of the form `key: value`; the file may be half written",
        ),
        ("did not find expected '-' indicator", "check the indentation of the list"),
        ("did not find expected ',' or", "a { or [ is not closed; the file may be half written"),
        ("did not find expected key", "check the indentation and the quotes"),
        ("did not find expected node content", "a value is missing; the file may be half written"),
        ("found a tab character", "a tab is used for indentation: use spaces"),
        (
            "found character that cannot start any token",
            "a value begins with a tab, @, ` or %: put it in quotes",
        ),
        ("found unexpected end of stream", "a quote is not closed; the file may be half written"),
        (
            "mapping values are not allowed",
            "a colon is not allowed here: check the indentation, or use quotes",
        ),
    ];
    let message = Zeroizing::new(error.to_string());
    match HINTS.iter().find(|(start, _)| message.starts_with(start)) {
        Some((_, hint)) => format!("is not valid YAML: {hint}"),
        None => "is not valid YAML".to_owned(),
    }
}

#[derive(Clone, Copy)]
struct Build<'a>(&'a ReadState);

impl<'de> DeserializeSeed<'de> for Build<'_> {
    type Value = YamlNode;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<YamlNode, D::Error> {
        self.0.count()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Build<'_> {
    type Value = YamlNode;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<YamlNode, E> {
        Ok(self.0.plain(None))
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<YamlNode, E> {
        Ok(self.0.plain(None))
    }

    fn visit_i128<E: de::Error>(self, _: i128) -> Result<YamlNode, E> {
        Ok(self.0.plain(None))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<YamlNode, E> {
        Ok(self.0.plain(Some(number)))
    }

    fn visit_u128<E: de::Error>(self, _: u128) -> Result<YamlNode, E> {
        Ok(self.0.plain(None))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<YamlNode, E> {
        Ok(self.0.plain(None))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<YamlNode, E> {
        Ok(YamlNode::Str(Zeroizing::new(text.to_owned())))
    }

    /// A text without a value.
    fn visit_none<E: de::Error>(self) -> Result<YamlNode, E> {
        Ok(YamlNode::Null)
    }

    fn visit_unit<E: de::Error>(self) -> Result<YamlNode, E> {
        Ok(YamlNode::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<YamlNode, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = items.next_element_seed(self)? {
            nodes.push(node);
        }
        Ok(YamlNode::Seq(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<YamlNode, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key_seed(BuildKey(self.0))? {
            let node = map.next_value_seed(self)?;
            entries.push((key, node));
        }
        Ok(YamlNode::Map(entries))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<YamlNode, A::Error> {
        Err(self
            .0
            .refuse("contains a YAML tag (!...), which is not supported: put the value in quotes".to_owned()))
    }
}

/// Walks the text a second time, together with the tree, and fills in the text of plain values. If a string is
/// requested, the parser returns the text of a value of any type.
struct Fill<'a>(&'a mut YamlNode);

impl<'de> DeserializeSeed<'de> for Fill<'_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.0 {
            YamlNode::Map(_) => deserializer.deserialize_map(self),
            YamlNode::Plain { .. } => deserializer.deserialize_str(self),
            YamlNode::Seq(_) => deserializer.deserialize_seq(self),
            YamlNode::Null | YamlNode::Str(_) => IgnoredAny::deserialize(deserializer).map(drop),
        }
    }
}

impl<'de> Visitor<'de> for Fill<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the same structure")
    }

    fn visit_str<E: de::Error>(self, written: &str) -> Result<(), E> {
        if let YamlNode::Plain { text, .. } = self.0 {
            *text = Zeroizing::new(written.to_owned());
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if let YamlNode::Map(entries) = self.0 {
            for (_, node) in entries {
                map.next_key::<IgnoredAny>()?;
                map.next_value_seed(Fill(node))?;
            }
        }
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        if let YamlNode::Seq(nodes) = self.0 {
            for node in nodes {
                items.next_element_seed(Fill(node))?;
            }
        }
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct BuildKey<'a>(&'a ReadState);

impl BuildKey<'_> {
    fn not_a_string<E: de::Error>(self) -> Result<Key, E> {
        Err(self.0.refuse("contains a key that is not a string".to_owned()))
    }
}

impl<'de> DeserializeSeed<'de> for BuildKey<'_> {
    type Value = Key;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for BuildKey<'_> {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Key, E> {
        self.not_a_string()
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Key, E> {
        self.not_a_string()
    }

    fn visit_i128<E: de::Error>(self, _: i128) -> Result<Key, E> {
        self.not_a_string()
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Key, E> {
        self.not_a_string()
    }

    fn visit_u128<E: de::Error>(self, _: u128) -> Result<Key, E> {
        self.not_a_string()
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Key, E> {
        self.not_a_string()
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Key, E> {
        Ok(Zeroizing::new(text.trim().to_ascii_lowercase()))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Key, E> {
        self.not_a_string()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Key, A::Error> {
        self.not_a_string()
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Key, A::Error> {
        self.not_a_string()
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Key, A::Error> {
        self.not_a_string()
    }
}

/// Follows the steps and fails at their end: the error contains the location. If the text does not fit the steps,
/// the default visitors fail too. The message of the error is not used.
struct Locate<'a>(&'a [Step]);

impl<'de> DeserializeSeed<'de> for Locate<'_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Locate<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the steps")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Step::Entry(index), rest)) = self.0.split_first() else {
            return Err(de::Error::custom("here"));
        };
        for _ in 0..*index {
            map.next_entry::<IgnoredAny, IgnoredAny>()?;
        }
        if rest.is_empty() {
            map.next_key_seed(Locate(rest))?;
        } else {
            map.next_key::<IgnoredAny>()?;
            map.next_value_seed(Locate(rest))?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Some((Step::Item(index), rest)) = self.0.split_first() else {
            return Err(de::Error::custom("here"));
        };
        for _ in 0..*index {
            items.next_element::<IgnoredAny>()?;
        }
        items.next_element_seed(Locate(rest))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, steps: &[Step]) -> Option<usize> {
        locate(text, steps).map(|(line, _)| line)
    }

    #[test]
    fn nodes_have_lines() {
        let text = "# c\na: 1\nb:\n  c: |\n    x\n    y\n  d: [1,\n    2]\n  e:\n    - f: 1\n      g: 2\n";
        assert!(read(text).is_ok());
        assert_eq!(line(text, &[Step::Entry(0)]), Some(2));
        assert_eq!(line(text, &[Step::Entry(1)]), Some(3));
        assert_eq!(line(text, &[Step::Entry(1), Step::Entry(0)]), Some(4));
        assert_eq!(line(text, &[Step::Entry(1), Step::Entry(1)]), Some(7));
        assert_eq!(line(text, &[Step::Entry(1), Step::Entry(1), Step::Item(1)]), Some(8));
        assert_eq!(line(text, &[Step::Entry(1), Step::Entry(2), Step::Item(0), Step::Entry(1)]), Some(11));
        assert_eq!(line(text, &[]), None);
    }

    #[test]
    fn plain_values_keep_their_text() {
        let text = "a: 1\nb: [0x10, 1_000, 1e3, +7, 007, true, True, .5, 18446744073709551616, -1, *x]\n";
        let text = format!("z: &x 0o17\n{text}c: {{ d: {{ e: 1.50 }} }}\nf: 12 # comment\n");
        let Ok(YamlNode::Map(entries)) = read(&text) else { panic!("it is a mapping") };
        let mut texts = Vec::new();
        fn collect(node: &YamlNode, texts: &mut Vec<String>) {
            match node {
                YamlNode::Map(entries) => entries.iter().for_each(|(_, node)| collect(node, texts)),
                YamlNode::Seq(nodes) => nodes.iter().for_each(|node| collect(node, texts)),
                YamlNode::Plain { text, .. } | YamlNode::Str(text) => texts.push(text.to_string()),
                YamlNode::Null => texts.push("null".into()),
            }
        }
        entries.iter().for_each(|(_, node)| collect(node, &mut texts));
        let written = "0o17 1 0x10 1_000 1e3 +7 007 true True .5 18446744073709551616 -1 0o17 1.50 12";
        assert_eq!(texts.join(" "), written);
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let before = format!("*a{}, ", level - 1).repeat(10);
            text += &format!("a{level}: &a{level} [{before}]\n");
        }
        let error = read(&text).err().unwrap();
        assert!(error.rule.contains("more than 4096 values"), "{}", error.rule);
    }
}
