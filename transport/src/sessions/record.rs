//! What is kept of a session, and how it is written.
//!
//! A message is kept as its sender wrote it, byte for byte, inside an entry that says when it came and with which turn.
//! Entries carry running totals, so that counts need no second place that could disagree with the first: a session's
//! figures are those of its last entry, less those at the mark where its context was cleared.

use std::sync::Arc;

use control::Wall;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Whose a session is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The tenant's name.
    pub tenant: Arc<str>,
    /// The user within it: the one that the key or the request names, else the key itself.
    pub user: Arc<str>,
}

/// A session, without its messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub tenant: String,
    pub user: String,
    /// Milliseconds since 1970.
    pub created: u64,
    /// The same of its last turn.
    pub active: u64,
    /// Where its context begins.
    pub cleared: Totals,
}

/// Figures of all messages up to one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totals {
    #[serde(rename = "n")]
    pub messages: u64,
    #[serde(rename = "t")]
    pub tokens: u64,
    #[serde(rename = "b")]
    pub bytes: u64,
}

/// A message as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The turn it came with; no two turns have one name.
    pub turn: String,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// Up to and including it.
    pub totals: Totals,
    /// Whether it is all there: an answer may have broken off.
    pub whole: bool,
    /// As it was written.
    pub message: Box<RawValue>,
}

/// What is told of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub user_id: String,
    /// Messages of the conversation.
    pub message_count: u64,
    /// Estimated tokens of its context: of what came since that was cleared.
    pub token_count: u64,
    /// When it began.
    pub created: Wall,
    /// When its last turn ended.
    pub last_activity: Wall,
    /// Whether its last turn is less than `session.ttl` ago.
    pub is_active: bool,
}

/// What is told of a message.
#[derive(Clone, Debug)]
pub struct MessageInfo {
    /// Its place in the conversation, from 0.
    pub index: u64,
    /// When it was kept.
    pub created: Wall,
    /// Estimated tokens.
    pub tokens: u64,
    /// False for an answer that broke off.
    pub is_whole: bool,
    /// Whether it is before the mark where the context was cleared.
    pub is_cleared: bool,
    /// The JSON object, as it was sent.
    pub message: Box<RawValue>,
}

/// Part of a list.
#[derive(Clone, Debug)]
pub struct Paged<T> {
    /// The part.
    pub items: Vec<T>,
    /// How many there are in all.
    pub total: u64,
}

/// A line of what a user and the models said last, whichever session it was in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryLine {
    /// `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub text: String,
    /// The turn, so that no line is written twice.
    #[serde(default)]
    pub(crate) turn: String,
    /// Which session it was said in: it goes with that.
    #[serde(default)]
    pub(crate) session: String,
}

impl HistoryLine {
    /// One that somebody else keeps.
    pub(crate) const fn new(role: String, text: String) -> Self {
        Self { role, text, turn: String::new(), session: String::new() }
    }
}

/// Which part of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageOf {
    /// From 1.
    pub page: u64,
    /// At most [`PAGE_MAX`](super::PAGE_MAX).
    pub size: u64,
}

impl PageOf {
    /// Places before it.
    pub(crate) fn before(self) -> u64 {
        self.page.saturating_sub(1).saturating_mul(self.size)
    }
}

impl Owner {
    /// A name in a key that tenants share, so that no two owners ever meet.
    pub(crate) fn scoped(&self, name: &str) -> String {
        crate::redis::scoped_name(&self.tenant, name)
    }
}

impl Head {
    pub fn belongs_to(&self, owner: &Owner) -> bool {
        *self.tenant == *owner.tenant && *self.user == *owner.user
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[test]
    fn owners_never_meet_in_a_key() {
        let names = ["a", "b", "a:b", "default", "default:a", "", ":", "b:"];
        let mut seen = std::collections::BTreeSet::new();
        for tenant in ["default", "a", "b", "a:b", "a%3Ab", ":"] {
            for user in names {
                let owner = Owner { tenant: tenant.into(), user: user.into() };
                assert!(seen.insert(owner.scoped(user)), "{tenant} {user}");
            }
        }
        let ann = Owner { tenant: "default".into(), user: "ann".into() };
        assert_eq!(ann.scoped("ann"), "ann", "the documents' own form");
    }

    #[test]
    fn an_entry_keeps_its_message_byte_for_byte() {
        let message = r#"{ "role":"user",  "content":"\u00e9 \ud83d\ude00 1.0e2", "n": 1.00 }"#;
        let entry = Entry {
            turn: "t".to_owned(),
            at: 5,
            totals: Totals { messages: 1, tokens: 2, bytes: 3 },
            whole: true,
            message: RawValue::from_string(message.to_owned()).unwrap(),
        };
        let text = serde_json::to_string(&entry).unwrap();
        let read: Entry = serde_json::from_str(&text).unwrap();
        assert_eq!((read.message.get(), read.totals), (message, entry.totals));
    }
}
