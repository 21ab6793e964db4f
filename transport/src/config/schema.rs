//! The list of every key there is, taken from the code that reads them.

use super::reader::{Section, Sink};

/// One key of the schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaKey {
    /// Its path; `<name>` stands for a name of the user's choice, `[]` for an entry of a list.
    pub path: String,
    /// What it takes, with an example.
    pub expected: String,
    /// What holds where it is not given.
    pub absent: Absent,
    /// Least and most, where it has bounds.
    pub bounds: Option<(String, String)>,
    /// Whether its value is never shown.
    pub secret: bool,
}

/// What holds where a key is not given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absent {
    /// This value.
    Default(String),
    /// No value, which means this.
    Meaning(&'static str),
    /// It must be given.
    Required,
}

/// Every key, in the order in which it is read. A key that is read in two shapes is listed once.
#[must_use]
pub fn schema() -> Vec<SchemaKey> {
    let sink = Sink::describing();
    Section::root(&sink, None, super::read);
    let mut keys: Vec<SchemaKey> = Vec::new();
    for key in sink.into_gathered().schema {
        if !keys.iter().any(|known| known.path == key.path) {
            keys.push(key);
        }
    }
    keys
}
