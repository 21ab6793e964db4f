//! What is in force, and who said so: `check --print`.

use std::fmt;

use super::problem::Origin;

/// Every value in force, in the order of the schema. Secrets are redacted when they are entered here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effective {
    /// One entry a key.
    pub entries: Vec<Entry>,
}

/// One value in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key's path.
    pub path: String,
    /// The value, as it could be written; `[redacted]` for a secret.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

impl Effective {
    /// The entry of a key.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.path == path)
    }
}

impl fmt::Display for Effective {
    /// `path = value  # origin`, the origins below each other.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Beyond it one long value would push every origin off the screen.
        const WIDTH_MAX: usize = 60;
        let width = |entry: &Entry| entry.path.chars().count() + entry.value.chars().count() + 3;
        let widest = self.entries.iter().map(width).max().unwrap_or(0).min(WIDTH_MAX);
        for entry in &self.entries {
            let pad = widest.saturating_sub(width(entry)) + 2;
            writeln!(f, "{} = {}{:pad$}# {}", entry.path, entry.value, "", entry.origin)?;
        }
        Ok(())
    }
}
