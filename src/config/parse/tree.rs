//! YAML as a tree without opinions, and the way back from a place in the tree
//! to a line.
//!
//! serde_yaml's own messages print mistyped values, so none of them is ever
//! shown: the tree takes every type, the rules are ours, and the line of a
//! broken rule is found by walking the text again and failing on purpose where
//! the rule broke ([`locate`]).

use std::{
    cell::{Cell, RefCell},
    fmt,
};

use serde::{
    Deserialize,
    de::{self, DeserializeSeed, EnumAccess, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use zeroize::Zeroizing;

/// Aliases can make a small text a huge tree; a real config has some twenty nodes.
const MAX_NODES: usize = 4096;

/// A value of any type.
#[derive(Eq, PartialEq)]
pub(super) enum Node {
    Map(Vec<(Key, Node)>),
    Null,
    /// A number or a truth. Its text is kept as it was written: what a program makes of `0x10` or
    /// `1_000` depends on the program, and where a name is wanted, the text is the name.
    Plain {
        /// What it counts, if it can count anything.
        count: Option<u64>,
        text: Zeroizing<String>,
    },
    Seq(Vec<Node>),
    Str(Zeroizing<String>),
}

/// A key, trimmed and in lower case, which is how keys are compared. A mangled
/// file can have a secret here, so it is wiped like one, and shown to nobody
/// unless it is a key that we know.
pub(super) type Key = Zeroizing<String>;

/// One step from a node to something within.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// The nth entry of a mapping.
    Entry(usize),
    /// The nth item of a sequence.
    Item(usize),
}

/// A line and a column, both from 1.
pub(super) type Location = (usize, usize);

/// Why there is no tree.
pub(super) struct Unreadable {
    pub location: Option<Location>,
    pub rule: String,
    /// The text is not YAML at all, so that the column helps.
    pub syntax: bool,
}

/// Reads the only document of `text`.
pub(super) fn read(text: &str) -> Result<Node, Unreadable> {
    let building =
        Building { left: Cell::new(MAX_NODES), plain: Cell::new(false), refused: RefCell::new(None) };
    let mut documents = serde_yaml::Deserializer::from_str(text);
    let Some(document) = documents.next() else {
        return Ok(Node::Null);
    };
    let mut node = Build(&building).deserialize(document).map_err(|error| building.explain(&error))?;
    for document in documents {
        // A `---` at the end begins a document in which nothing stands.
        if Build(&building).deserialize(document).map_err(|error| building.explain(&error))? != Node::Null {
            return Err(Unreadable {
                location: None,
                rule: "must hold one YAML document, not several: remove the second ---".to_owned(),
                syntax: false,
            });
        }
    }
    if building.plain.get()
        && let Some(document) = serde_yaml::Deserializer::from_str(text).next()
    {
        Fill(&mut node).deserialize(document).map_err(|error| building.explain(&error))?;
    }
    Ok(node)
}

/// The line of a key (`Entry`) or an item (`Item`) of the tree that [`read`] made of `text`.
pub(super) fn locate(text: &str, steps: &[Step]) -> Option<Location> {
    if steps.is_empty() {
        return None;
    }
    let document = serde_yaml::Deserializer::from_str(text).next()?;
    location(&Locate(steps).deserialize(document).err()?)
}

/// What all visitors of one reading share.
struct Building {
    left: Cell<usize>,
    /// There are values whose text is still to be filled in.
    plain: Cell<bool>,
    /// Our own rule, when we and not the parser said no.
    refused: RefCell<Option<String>>,
}

impl Building {
    fn count<E: de::Error>(&self) -> Result<(), E> {
        match self.left.get().checked_sub(1) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => Err(self.refuse("has more values than any config needs".to_owned())),
        }
    }

    fn plain(&self, count: Option<u64>) -> Node {
        self.plain.set(true);
        Node::Plain { count, text: Zeroizing::default() }
    }

    /// The error only carries the location out; the words are kept here.
    fn refuse<E: de::Error>(&self, rule: String) -> E {
        self.refused.replace(Some(rule));
        E::custom("refused")
    }

    fn explain(&self, error: &serde_yaml::Error) -> Unreadable {
        let location = location(error);
        match self.refused.take() {
            Some(rule) => Unreadable { location, rule, syntax: false },
            None => Unreadable { location, rule: syntax_rule(error), syntax: true },
        }
    }
}

fn location(error: &serde_yaml::Error) -> Option<Location> {
    error.location().map(|location| (location.line(), location.column()))
}

/// The parser's message decides which of our own words are said; it is never said itself.
fn syntax_rule(error: &serde_yaml::Error) -> String {
    const HINTS: [(&str, &str); 10] = [
        (
            "block sequence entries are not allowed",
            "a list item stands where none can be: check the indentation",
        ),
        ("could not find expected ':'", "a line is no `key: value`; perhaps the file is half written"),
        ("did not find expected '-' indicator", "check the indentation of the list"),
        ("did not find expected ',' or", "a { or [ that is not closed; perhaps the file is half written"),
        ("did not find expected key", "check the indentation and the quotes"),
        ("did not find expected node content", "a value is missing; perhaps the file is half written"),
        ("found a tab character", "a tab: indent with spaces"),
        ("found character that cannot start any token", "a tab, @, ` or % begins a value: put it in quotes"),
        ("found unexpected end of stream", "a quote that is not closed; perhaps the file is half written"),
        ("mapping values are not allowed", "a colon where none can be: check the indentation, or use quotes"),
    ];
    let message = Zeroizing::new(error.to_string());
    match HINTS.iter().find(|(start, _)| message.starts_with(start)) {
        Some((_, hint)) => format!("is not valid YAML: {hint}"),
        None => "is not valid YAML".to_owned(),
    }
}

#[derive(Clone, Copy)]
struct Build<'a>(&'a Building);

impl<'de> DeserializeSeed<'de> for Build<'_> {
    type Value = Node;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        self.0.count()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Build<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Node, E> {
        Ok(self.0.plain(None))
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Node, E> {
        Ok(self.0.plain(None))
    }

    fn visit_i128<E: de::Error>(self, _: i128) -> Result<Node, E> {
        Ok(self.0.plain(None))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Node, E> {
        Ok(self.0.plain(Some(number)))
    }

    fn visit_u128<E: de::Error>(self, _: u128) -> Result<Node, E> {
        Ok(self.0.plain(None))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Node, E> {
        Ok(self.0.plain(None))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Str(Zeroizing::new(text.to_owned())))
    }

    /// A text without any value.
    fn visit_none<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = items.next_element_seed(self)? {
            nodes.push(node);
        }
        Ok(Node::Seq(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key_seed(BuildKey(self.0))? {
            let node = map.next_value_seed(self)?;
            entries.push((key, node));
        }
        Ok(Node::Map(entries))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Node, A::Error> {
        Err(self
            .0
            .refuse("has a YAML tag (!...), which means nothing here: put the value in quotes".to_owned()))
    }
}

/// Walks the text once more, beside the tree that was made of it, and fills in what plain values
/// look like: asked for a string, the parser tells the text of a value of any type.
struct Fill<'a>(&'a mut Node);

impl<'de> DeserializeSeed<'de> for Fill<'_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.0 {
            Node::Map(_) => deserializer.deserialize_map(self),
            Node::Plain { .. } => deserializer.deserialize_str(self),
            Node::Seq(_) => deserializer.deserialize_seq(self),
            Node::Null | Node::Str(_) => IgnoredAny::deserialize(deserializer).map(drop),
        }
    }
}

impl<'de> Visitor<'de> for Fill<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the same as before")
    }

    fn visit_str<E: de::Error>(self, written: &str) -> Result<(), E> {
        if let Node::Plain { text, .. } = self.0 {
            *text = Zeroizing::new(written.to_owned());
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if let Node::Map(entries) = self.0 {
            for (_, node) in entries {
                map.next_key::<IgnoredAny>()?;
                map.next_value_seed(Fill(node))?;
            }
        }
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        if let Node::Seq(nodes) = self.0 {
            for node in nodes {
                items.next_element_seed(Fill(node))?;
            }
        }
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct BuildKey<'a>(&'a Building);

impl BuildKey<'_> {
    fn no_word<E: de::Error>(self) -> Result<Key, E> {
        Err(self.0.refuse("has a key that is not a word".to_owned()))
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
        f.write_str("a word")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Key, E> {
        self.no_word()
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Key, E> {
        self.no_word()
    }

    fn visit_i128<E: de::Error>(self, _: i128) -> Result<Key, E> {
        self.no_word()
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Key, E> {
        self.no_word()
    }

    fn visit_u128<E: de::Error>(self, _: u128) -> Result<Key, E> {
        self.no_word()
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Key, E> {
        self.no_word()
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Key, E> {
        Ok(Zeroizing::new(text.trim().to_ascii_lowercase()))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Key, E> {
        self.no_word()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Key, A::Error> {
        self.no_word()
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Key, A::Error> {
        self.no_word()
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Key, A::Error> {
        self.no_word()
    }
}

/// Walks to the end of the steps and fails there: the error has the location.
///
/// Whatever it meets on the way that does not fit the steps makes it fail too,
/// by the default visitors; the message is never looked at.
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
    fn places_in_the_tree_have_lines() {
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
    fn plain_values_keep_the_text_that_was_written() {
        let text = "a: 1\nb: [0x10, 1_000, 1e3, +7, 007, true, True, .5, 18446744073709551616, -1, *x]\n";
        let text = format!("z: &x 0o17\n{text}c: {{ d: {{ e: 1.50 }} }}\nf: 12 # comment\n");
        let Ok(Node::Map(entries)) = read(&text) else { panic!("it is a mapping") };
        let mut told = Vec::new();
        fn tell(node: &Node, told: &mut Vec<String>) {
            match node {
                Node::Map(entries) => entries.iter().for_each(|(_, node)| tell(node, told)),
                Node::Seq(nodes) => nodes.iter().for_each(|node| tell(node, told)),
                Node::Plain { text, .. } | Node::Str(text) => told.push(text.to_string()),
                Node::Null => told.push("null".into()),
            }
        }
        entries.iter().for_each(|(_, node)| tell(node, &mut told));
        let written = "0o17 1 0x10 1_000 1e3 +7 007 true True .5 18446744073709551616 -1 0o17 1.50 12";
        assert_eq!(told.join(" "), written);
    }

    #[test]
    fn an_alias_bomb_is_a_rule_not_a_meal() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let before = format!("*a{}, ", level - 1).repeat(10);
            text += &format!("a{level}: &a{level} [{before}]\n");
        }
        let error = read(&text).err().unwrap();
        assert!(error.rule.contains("more values"), "{}", error.rule);
    }
}
