//! An answer, put together as it is delivered: the message that a session keeps of it.
//!
//! Kept are the members that a server takes back as part of a conversation: text, refusal, calls of tools. What a model
//! thought aloud is not kept, because servers that tell it refuse to be told.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::members::{Members, Writer, present};

/// An answer so far.
#[derive(Default)]
pub(crate) struct Said {
    content: String,
    refusal: String,
    calls: BTreeMap<u64, Call>,
    has_content: bool,
    /// The model has said why it stopped: what comes behind that is no part of the message.
    finished: bool,
    room: Room,
}

/// What is left of [`ANSWER_BYTES_MAX`], for all parts of an answer together, as they will be written.
struct Room {
    left: usize,
    /// More came than is kept.
    cut: bool,
}

#[derive(Default)]
struct Call {
    id: String,
    kind: String,
    name: String,
    arguments: String,
}

/// The most of one answer that is kept: above what models write, and bounded, because it stands in memory till the end.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// Calls of tools in one answer.
const CALLS_MAX: usize = 1_024;

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default)]
    index: u64,
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
    #[serde(borrow, default)]
    finish_reason: Option<&'a RawValue>,
    #[serde(borrow, default)]
    message: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Piece {
    #[serde(default)]
    index: Option<u64>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    function: Option<Function>,
}

#[derive(Deserialize)]
struct Function {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    arguments: Option<String>,
}

impl Said {
    /// A block of a stream of events.
    pub fn add(&mut self, block: &[u8]) {
        for line in block.split(|byte| *byte == b'\n') {
            let Some(data) = line.strip_prefix(b"data:") else { continue };
            // What is no chunk is the replica's own business.
            let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(data.trim_ascii()) else {
                continue;
            };
            for choice in chunk.choices {
                if choice.index != 0 {
                    continue;
                }
                if let Some(delta) = choice.delta {
                    self.delta(delta);
                }
                self.finished |= choice.finish_reason.and_then(present).is_some();
            }
        }
    }

    fn delta(&mut self, delta: Delta<'_>) {
        if let Some(text) = delta.content {
            self.has_content = true;
            self.room.push(&mut self.content, &text);
        }
        if let Some(text) = delta.refusal {
            self.room.push(&mut self.refusal, &text);
        }
        let list = delta.tool_calls.and_then(present).unwrap_or("[]");
        let pieces: Vec<Piece> = serde_json::from_str(list).unwrap_or_default();
        for piece in pieces {
            let behind = self.calls.last_key_value().map_or(0, |(last, _)| last.saturating_add(1));
            let index = piece.index.unwrap_or(behind);
            if self.calls.len() >= CALLS_MAX && !self.calls.contains_key(&index) {
                self.room.cut = true;
                continue;
            }
            let (call, room) = (self.calls.entry(index).or_default(), &mut self.room);
            room.push(&mut call.id, &piece.id.unwrap_or_default());
            if call.kind.is_empty() {
                room.push(&mut call.kind, &piece.kind.unwrap_or_default());
            }
            if let Some(function) = piece.function {
                room.push(&mut call.name, &function.name.unwrap_or_default());
                room.push(&mut call.arguments, &function.arguments.unwrap_or_default());
            }
        }
    }

    /// Whether all of the message was there, though its stream may have gone on.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// The message, and whether that is all that was said; nothing where nothing was.
    pub fn message(&self) -> Option<(Box<RawValue>, bool)> {
        let nothing = self.content.is_empty() && self.refusal.is_empty() && self.calls.is_empty();
        if nothing && !self.has_content {
            return None;
        }
        let mut written = Writer::new();
        written.value("role", "assistant");
        // Beside calls an empty text is none.
        if self.content.is_empty() && !self.calls.is_empty() || !self.has_content {
            written.raw("content", "null");
        } else {
            written.value("content", &self.content);
        }
        written.text("refusal", &self.refusal);
        if !self.calls.is_empty() {
            let calls: Vec<String> = self.calls.values().map(Call::write).collect();
            written.raw("tool_calls", &format!("[{}]", calls.join(",")));
        }
        Some((RawValue::from_string(written.end()).ok()?, !self.room.cut))
    }

    /// The message of an answer that came at once, and whether that is all of it.
    pub fn whole(body: &[u8]) -> Option<(Box<RawValue>, bool)> {
        const KEPT: [&str; 4] = ["content", "refusal", "tool_calls", "function_call"];
        let answer: Chunk<'_> = serde_json::from_slice(body).ok()?;
        let first = answer.choices.into_iter().find(|choice| choice.index == 0)?;
        let message = Members::read(first.message?.get())?;
        let mut written = Writer::new();
        written.value("role", "assistant");
        let mut room = Room::default();
        for (key, value) in &message.0 {
            let is_kept = KEPT.contains(&&**key);
            if !is_kept || (present(value).is_none() && &**key != "content") {
                continue;
            }
            if room.takes(value.get().len()) {
                written.raw(key, value.get());
            } else if let Ok(text) = serde_json::from_str::<String>(value.get()) {
                let mut kept = String::new();
                room.fill(&mut kept, &text);
                written.value(key, &kept);
            }
        }
        Some((RawValue::from_string(written.end()).ok()?, !room.cut))
    }
}

impl Call {
    fn write(&self) -> String {
        let kind = if self.kind.is_empty() { "function" } else { &*self.kind };
        let (name, arguments) = (&*self.name, &*self.arguments);
        let call: Value = serde_json::json!({
            "id": self.id, "type": kind, "function": {"name": name, "arguments": arguments},
        });
        call.to_string()
    }
}

impl Default for Room {
    fn default() -> Self {
        Self { left: ANSWER_BYTES_MAX, cut: false }
    }
}

impl Room {
    /// Whether there is room for so many bytes. Behind a cut there is none for anything.
    fn takes(&mut self, bytes: usize) -> bool {
        self.cut |= bytes > self.left;
        self.left -= if self.cut { 0 } else { bytes };
        !self.cut
    }

    fn push(&mut self, into: &mut String, text: &str) {
        if self.takes(text.chars().map(written).sum()) {
            into.push_str(text);
        }
    }

    /// As much of a text that is too long as there is room for.
    fn fill(&mut self, into: &mut String, text: &str) {
        for letter in text.chars() {
            let Some(left) = self.left.checked_sub(written(letter)) else { return };
            self.left = left;
            into.push(letter);
        }
    }
}

/// Bytes of a letter in a JSON string.
fn written(letter: char) -> usize {
    match letter {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        other => other.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    fn told(events: &[&str]) -> Option<(String, bool)> {
        let mut said = Said::default();
        events.iter().for_each(|event| said.add(event.as_bytes()));
        said.message().map(|(message, whole)| (message.get().to_owned(), whole))
    }

    #[test]
    fn pieces_of_text_become_one_message() {
        let events = [
            "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
            ": a comment\n\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\\n\"}}]}\r\n\r\n",
            "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"other\"}}]}\n\n",
            "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\\ud83d\\ude00\"},\"finish_reason\":\"stop\"}]}\n\n",
            "data: {\"choices\":[],\"usage\":{}}\n\ndata: [DONE]\n\n",
        ];
        let (message, whole) = told(&events).unwrap();
        assert_eq!(message, "{\"role\":\"assistant\",\"content\":\"a\\n\u{1f600}\"}");
        assert!(whole);
        assert_eq!(told(&["data: [DONE]\n\n"]), None);
    }

    #[test]
    fn pieces_of_calls_become_calls() {
        let piece = |json: &str| {
            format!(
                "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"tool_calls\":[{json}]}}}}]}}\n\n"
            )
        };
        let events = [
            piece(
                r#"{"index":0,"id":"c1","type":"function","function":{"name":"f","arguments":""}}"#,
            ),
            piece(r#"{"index":0,"function":{"arguments":"{\"a\""}}"#),
            piece(r#"{"index":0,"function":{"arguments":":1}"}}"#),
        ];
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        let (message, _) = told(&events).unwrap();
        let read: Value = serde_json::from_str(&message).unwrap();
        assert_eq!(read["content"], Value::Null);
        assert_eq!(read["tool_calls"][0]["id"], "c1");
        assert_eq!(read["tool_calls"][0]["function"]["arguments"], "{\"a\":1}");
    }

    #[test]
    fn a_whole_answer_keeps_what_can_be_told_again() {
        let body = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"\u00e9","refusal":null,"reasoning_content":"hm","annotations":[]}}]}"#;
        let kept = Said::whole(body.as_bytes()).unwrap();
        assert_eq!(kept.0.get(), r#"{"role":"assistant","content":"\u00e9"}"#);
        assert!(kept.1);
        assert!(Said::whole(b"{}").is_none());
    }

    #[test]
    fn an_answer_beyond_what_is_kept_is_cut_and_says_so() {
        let mut said = Said::default();
        let text = "x".repeat(ANSWER_BYTES_MAX / 2 + 1);
        let event = format!(
            "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n"
        );
        said.add(event.as_bytes());
        said.add(event.as_bytes());
        let (message, whole) = said.message().unwrap();
        assert!(!whole && message.get().len() < ANSWER_BYTES_MAX);
    }

    #[test]
    fn all_parts_of_an_answer_share_one_bound() {
        let text = "\\u0001".repeat(ANSWER_BYTES_MAX / 24);
        let call = |index: usize| {
            let call = format!("{{\"index\":{index},\"function\":{{\"arguments\":\"{text}\"}}}}");
            format!(
                "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"tool_calls\":[{call}]}}}}]}}\n\n"
            )
        };
        let mut said = Said::default();
        for index in 0..10 {
            said.add(call(index).as_bytes());
        }
        let (message, whole) = said.message().unwrap();
        assert!(!whole);
        let bytes = message.get().len();
        assert!((ANSWER_BYTES_MAX / 2..ANSWER_BYTES_MAX + 2_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_whole_answer_beyond_what_is_kept_is_cut_too() {
        let half = "y\\n".repeat(ANSWER_BYTES_MAX / 6 + 1);
        let of = |content: &str| {
            let message = format!("{{\"refusal\":\"{half}\",\"content\":\"{content}\"}}");
            format!("{{\"choices\":[{{\"index\":0,\"message\":{message}}}]}}")
        };
        assert!(Said::whole(of("short").as_bytes()).unwrap().1);
        let (message, whole) = Said::whole(of(&half).as_bytes()).unwrap();
        let read: Value = serde_json::from_str(message.get()).unwrap();
        let kept = read["content"].as_str().unwrap();
        assert!(!whole && kept.starts_with("y\ny\n"));
        assert!((ANSWER_BYTES_MAX - 10..=ANSWER_BYTES_MAX + 100).contains(&message.get().len()));
    }
}
