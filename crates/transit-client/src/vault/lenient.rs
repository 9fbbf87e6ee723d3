//! A JSON value of any type, for optional fields of answers.
//!
//! Servers, versions and proxies differ in optional fields: a field is absent, null, or a number in quotes.
//! Such a field must not make an answer unusable.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// The value of a field, if it has one of the types that are used here.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) enum Lenient {
    Bool(bool),
    List(Vec<Self>),
    /// Null, absent, or of another type, such as an object.
    #[default]
    Nothing,
    Number(i64),
    Text(String),
}

impl Lenient {
    /// Whether the field has a value of one of these types.
    pub(super) fn is_there(&self) -> bool {
        *self != Self::Nothing
    }

    /// The number, which may be in quotes.
    pub(super) fn number(&self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    /// The boolean, which may be in quotes.
    pub(super) fn bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            Self::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    /// The text; `None` if it is empty.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    /// The texts of a list. A text alone counts as a list of one.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        let list = match self {
            Self::List(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        list.iter().filter_map(Self::text)
    }
}

impl<'de> Deserialize<'de> for Lenient {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyType)
    }
}

struct AnyType;

impl<'de> Visitor<'de> for AnyType {
    type Value = Lenient;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Lenient, E> {
        Ok(Lenient::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Lenient, E> {
        Ok(Lenient::Number(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Lenient, E> {
        Ok(Lenient::Number(i64::try_from(value).unwrap_or(i64::MAX)))
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the cast saturates, and fractions of a second do not matter"
    )]
    fn visit_f64<E>(self, value: f64) -> Result<Lenient, E> {
        Ok(Lenient::Number(value as i64))
    }

    fn visit_str<E>(self, value: &str) -> Result<Lenient, E> {
        Ok(Lenient::Text(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Lenient, E> {
        Ok(Lenient::Nothing)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Lenient, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element()? {
            list.push(item);
        }
        Ok(Lenient::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Lenient, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Lenient::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_accepted_and_the_used_ones_are_kept() {
        let read = |json: &str| serde_json::from_str::<Lenient>(json).unwrap();
        for json in ["null", "{}", r#"{"a":[1,{"b":2}]}"#] {
            assert!(!read(json).is_there(), "{json}");
        }
        for (json, number) in [
            ("59", Some(59)),
            ("-1", Some(-1)),
            ("59.9", Some(59)),
            (r#""59""#, Some(59)),
            ("1e300", Some(i64::MAX)),
            ("18446744073709551615", Some(i64::MAX)),
            (r#""soon""#, None),
            ("true", None),
            ("[1]", None),
        ] {
            assert_eq!(read(json).number(), number, "{json}");
        }
        for (json, value) in [("true", Some(true)), (r#""false""#, Some(false)), ("1", None), ("null", None)]
        {
            assert_eq!(read(json).bool(), value, "{json}");
        }
        for (json, texts) in
            [(r#"["a",null,1,"b"]"#, &["a", "b"][..]), (r#""a""#, &["a"]), ("null", &[]), (r#"[[]]"#, &[])]
        {
            assert_eq!(read(json).texts().collect::<Vec<_>>(), texts, "{json}");
        }
    }
}
