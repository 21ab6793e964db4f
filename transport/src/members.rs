//! JSON objects, member by member: read as slices of their text and written the same way, so that what is only passed
//! on keeps its numbers, its order and its spelling.

use std::borrow::Cow;

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The members of an object, in order, duplicates included.
#[derive(Debug, Default)]
pub(crate) struct Members<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// The members of the object that `text` is; `None` where it is none. Empty text has no members.
    pub fn read(text: &'a str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::default());
        }
        serde_json::from_str(text).ok()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((Key(key), value)) = map.next_entry::<Key<'de>, &RawValue>()? {
                    members.push((key, value));
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(Reader).map(Self)
    }
}

/// A key without a copy, unless it holds escapes.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// The text of a value, unless it is `null`: a field that is null is a field that is not there.
pub(crate) fn present(value: &RawValue) -> Option<&str> {
    Some(value.get()).filter(|text| *text != "null")
}

/// An object as it is written.
#[derive(Clone, Debug)]
pub(crate) struct Writer(String);

impl Writer {
    pub fn new() -> Self {
        Self("{".to_owned())
    }

    /// A member whose value is JSON already.
    pub fn raw(&mut self, key: &str, json: &str) {
        self.key(key);
        self.0.push_str(json);
    }

    pub fn value(&mut self, key: &str, value: &(impl Serialize + ?Sized)) {
        self.raw(key, &text_of(value));
    }

    /// A member where there is something to say.
    pub fn text(&mut self, key: &str, text: &str) {
        if !text.is_empty() {
            self.value(key, text);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.len() == 1
    }

    pub fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }

    /// The object, or nothing at all where it has no members.
    pub fn end_if_any(self) -> String {
        if self.is_empty() { String::new() } else { self.end() }
    }

    fn key(&mut self, key: &str) {
        if !self.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(&text_of(key));
        self.0.push(':');
    }
}

fn text_of(value: &(impl Serialize + ?Sized)) -> String {
    // Texts, numbers and lists of them: nothing that JSON cannot say.
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use super::*;

    #[test]
    fn what_is_read_and_written_again_keeps_its_spelling() {
        let text = r#"{"a\u0062":1e2,"b":{"deep":[1.0, null]},"b":null}"#;
        let members = Members::read(text).unwrap();
        let mut writer = Writer::new();
        for (key, value) in &members.0 {
            writer.raw(key, value.get());
        }
        assert_eq!(writer.end(), text.replace("a\\u0062", "ab"));
        assert_eq!(members.0.iter().filter_map(|(_, value)| present(value)).count(), 2);
    }

    #[test]
    fn what_is_no_object_has_no_members_to_read() {
        for text in ["[1]", "\"a\"", "{", "{} {}", "1"] {
            assert!(Members::read(text).is_none(), "{text}");
        }
        assert!(Members::read("").unwrap().0.is_empty());
        assert_eq!(Writer::new().end_if_any(), "");
    }
}
