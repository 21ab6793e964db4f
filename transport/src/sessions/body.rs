//! A request's messages, and the body with stored ones before them.
//!
//! The body is cut at its `messages` and nowhere else: all other members, and each message, stay as they were written.

use bytes::Bytes;
use control::session::{Line, Part, window};
use control::units::Tokens;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::record::Entry;
use super::{SessionError, TURN_MESSAGES_MAX};
use crate::members::{Members, present};
use crate::tokens::estimate_message;

/// What a request brings.
pub(super) struct Asked {
    /// Its messages, as they are written.
    pub messages: Vec<Box<RawValue>>,
    /// Where they stand in the body.
    place: core::ops::Range<usize>,
}

impl Asked {
    /// The messages of a body that the front has checked.
    pub fn read(body: &[u8]) -> Result<Self, SessionError> {
        let text = core::str::from_utf8(body).unwrap_or_default();
        let members = Members::read(text).unwrap_or_default();
        let list =
            members.0.iter().find(|(key, _)| key == "messages").map(|(_, value)| value.get());
        let list = list.unwrap_or_default();
        let messages: Vec<Box<RawValue>> = serde_json::from_str(list).unwrap_or_default();
        if messages.len() > TURN_MESSAGES_MAX {
            return Err(SessionError::TooManyMessages);
        }
        let start = (list.as_ptr().addr()).saturating_sub(text.as_ptr().addr());
        Ok(Self { messages, place: start..start + list.len() })
    }

    /// The body with what goes upstream of what was stored: the last of it that fits.
    pub fn body(&self, body: &Bytes, stored: &[Entry], max: Tokens) -> Bytes {
        // A broken answer that called tools may hold half a call, which no server takes.
        let stored: Vec<&RawValue> = stored
            .iter()
            .filter(|entry| entry.whole || !calls_tools(&entry.message))
            .map(|entry| &*entry.message)
            .collect();
        if stored.is_empty() || self.place.is_empty() {
            return body.clone();
        }
        let all: Vec<&RawValue> =
            stored.iter().copied().chain(self.messages.iter().map(|m| &**m)).collect();
        let lines: Vec<Line> = all.iter().map(|message| line(message)).collect();
        let kept = window(&lines, stored.len(), max);
        let mut text = Vec::with_capacity(body.len() * 2);
        text.extend_from_slice(&body[..self.place.start]);
        text.push(b'[');
        for (nth, at) in kept.into_iter().enumerate() {
            if nth > 0 {
                text.push(b',');
            }
            text.extend_from_slice(all[at].get().as_bytes());
        }
        text.push(b']');
        text.extend_from_slice(&body[self.place.end..]);
        text.into()
    }
}

/// What a window has to know of a message.
pub(super) fn line(message: &RawValue) -> Line {
    Line { part: part(message), tokens: estimate_message(message.get()) }
}

fn part(message: &RawValue) -> Part {
    let head = Head::of(message);
    match head.role.as_deref() {
        Some("system" | "developer") => Part::System,
        Some("tool" | "function") => Part::Result,
        _ => match head.calls() {
            0 => Part::Plain,
            results => Part::Call { results },
        },
    }
}

fn calls_tools(message: &RawValue) -> bool {
    Head::of(message).calls() > 0
}

/// The text of a message that a person or a model wrote, with who did; nothing of all others.
pub(super) fn said(message: &RawValue) -> Option<(String, String)> {
    let head = Head::of(message);
    let role = head.role.filter(|role| matches!(&**role, "user" | "assistant"))?;
    let content = head.content.and_then(present)?;
    if content.starts_with('"') {
        return serde_json::from_str(content).ok().map(|text| (role, text));
    }
    #[derive(Deserialize)]
    struct Piece {
        #[serde(default)]
        text: Option<String>,
    }
    let pieces: Vec<Piece> = serde_json::from_str(content).ok()?;
    let texts: Vec<String> = pieces.into_iter().filter_map(|piece| piece.text).collect();
    (!texts.is_empty()).then(|| (role, texts.concat()))
}

#[derive(Default, Deserialize)]
struct Head<'a> {
    #[serde(default)]
    role: Option<String>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
    #[serde(borrow, default)]
    function_call: Option<&'a RawValue>,
}

impl<'a> Head<'a> {
    /// What cannot be read is a plain message: the replica is the judge of it.
    fn of(message: &'a RawValue) -> Self {
        serde_json::from_str(message.get()).unwrap_or_default()
    }

    fn calls(&self) -> u32 {
        let list = self.tool_calls.and_then(present).unwrap_or("[]");
        let calls: Vec<&RawValue> = serde_json::from_str(list).unwrap_or_default();
        let old = usize::from(self.function_call.and_then(present).is_some());
        u32::try_from(calls.len() + old).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::super::record::Totals;
    use super::*;

    fn entry(message: &str, whole: bool) -> Entry {
        let message = RawValue::from_string(message.to_owned()).unwrap();
        Entry { turn: String::new(), at: 0, totals: Totals::default(), whole, message }
    }

    fn put(body: &str, stored: &[Entry], max: u64) -> String {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let asked = Asked::read(&body).unwrap();
        String::from_utf8(asked.body(&body, stored, Tokens(max)).to_vec()).unwrap()
    }

    #[test]
    fn stored_messages_stand_before_new_ones_and_nothing_else_changes() {
        let body = r#"{"model" : "m", "messages":[ {"role":"user","content":"new"} ],"n":1.0}"#;
        let stored = [entry(r#"{"role":"user", "content":"old"}"#, true)];
        assert_eq!(
            put(body, &stored, 100),
            r#"{"model" : "m", "messages":[{"role":"user", "content":"old"},{"role":"user","content":"new"}],"n":1.0}"#
        );
        assert_eq!(put(body, &[], 100), body);
        assert_eq!(put(body, &stored, 1), body.replace("[ {", "[{").replace("} ]", "}]"));
    }

    #[test]
    fn a_broken_answer_goes_upstream_unless_it_called_tools() {
        let body = r#"{"messages":[{"role":"user"}]}"#;
        let text = entry(r#"{"role":"assistant","content":"half"}"#, false);
        let call = r#"{"role":"assistant","content":null,"tool_calls":[{"id":"c"}]}"#;
        assert!(put(body, &[text], 100).contains("half"));
        assert_eq!(put(body, &[entry(call, false)], 100), body);
    }

    #[test]
    fn a_message_is_told_by_its_role_and_its_calls() {
        let of = |text: &str| part(&RawValue::from_string(text.to_owned()).unwrap());
        assert_eq!(of(r#"{"role":"developer"}"#), Part::System);
        assert_eq!(of(r#"{"role":"tool"}"#), Part::Result);
        assert_eq!(of(r#"{"role":"assistant","tool_calls":null}"#), Part::Plain);
        assert_eq!(of(r#"{"role":"assistant","tool_calls":[1,2]}"#), Part::Call { results: 2 });
        assert_eq!(of(r#"{"role":5}"#), Part::Plain);
    }

    #[test]
    fn texts_are_what_people_and_models_said() {
        let of = |text: &str| said(&RawValue::from_string(text.to_owned()).unwrap());
        let two = r#"{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url"},{"text":"b"}]}"#;
        assert_eq!(of(two), Some(("user".to_owned(), "ab".to_owned())));
        assert_eq!(of(r#"{"role":"assistant","content":"x\n"}"#).unwrap().1, "x\n");
        assert_eq!(of(r#"{"role":"assistant","content":null}"#), None);
        assert_eq!(of(r#"{"role":"system","content":"x"}"#), None);
    }
}
