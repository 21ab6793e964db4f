//! From the client's body to the upstream's: only what must change is changed.
//!
//! Parsing into a map and writing it out again would reorder fields, reformat numbers (1e2, 1.0, integers above 2^53)
//! and lose what a map cannot hold. So the body is cut at the edges of its top-level members, and those that need no
//! change are copied as they are, with the white space inside them. A body that needs no change at all is not copied.
//!
//! - **Duplicate keys.** JSON readers disagree on which one counts; for a key that we act upon this would let the caller be
//!   checked on one value and served on another. So a duplicate of such a key is refused; of other keys, it passes.
//!   Keys are compared after decoding, so `"mod\u0065l"` is `model`.
//! - **Depth** is bounded by [`DEPTH_MAX`], before anything recurses on it, here or upstream.

use bytes::Bytes;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use control::units::Tokens;

/// The deepest nesting of arrays and objects passed on: the limit most JSON readers have.
pub const DEPTH_MAX: usize = 127;

/// What to change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewrite<'a> {
    /// The endpoint's own name for the model, where it differs.
    pub model: Option<&'a str>,
    /// The most tokens the completion may have, over all choices that are asked for (`n`). The API's limit is for each
    /// choice: a larger one in the body is lowered to an equal part, an absent one is added.
    pub completion_max: Option<Tokens>,
    /// The key under which an absent limit is added.
    pub completion_max_key: CompletionMaxKey,
    /// The body asks for a stream: have its usage reported (`stream_options.include_usage`).
    pub stream: bool,
}

/// What an endpoint calls the limit on a completion's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompletionMaxKey {
    /// `max_tokens`: understood by every server except OpenAI's reasoning models.
    #[default]
    MaxTokens,
    /// `max_completion_tokens`: OpenAI's newer name.
    MaxCompletionTokens,
}

/// A body ready to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// The upstream's body: the very same bytes where nothing changed.
    pub body: Bytes,
    /// Whether the client itself asked for the usage of its stream. If not, the usage chunk is not for it.
    pub usage_asked: bool,
}

/// Why a body cannot be sent on. All are the client's to mend (400).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBody {
    /// Not JSON.
    #[error("the body is not valid JSON (line {line}, column {column})")]
    Malformed {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// JSON, but no object.
    #[error("the body must be a JSON object")]
    NotAnObject,
    /// Nested too deeply.
    #[error("the body is nested more than {DEPTH_MAX} levels deep")]
    TooDeep,
    /// A key that decides something is there twice.
    #[error("`{0}` is given more than once")]
    Duplicate(&'static str),
    /// A key that decides something has a value of another type.
    #[error("`{0}` has a value of the wrong type")]
    WrongType(&'static str),
}

/// The upstream's body for the client's.
///
/// Takes out `session_id` and `user_id`, which are ours, and applies `rewrite`. All other members stay byte for byte and in
/// order; added ones come last.
///
/// # Errors
/// [`BadBody`].
pub fn rewrite(body: &Bytes, rewrite: &Rewrite<'_>) -> Result<Rewritten, BadBody> {
    let text = checked(body)?;
    let members = Members::read(text)?;
    members.refuse_duplicates()?;
    let mut plan = Plan::new(text, &members);
    for (index, member) in members.0.iter().enumerate() {
        if OURS.contains(&member.key.as_ref()) {
            plan.remove(index);
        }
    }
    if let Some(model) = rewrite.model {
        plan.set("model", json_string(model));
    }
    if let Some(most) = rewrite.completion_max {
        plan.cap_completion(most, rewrite.completion_max_key)?;
    }
    let usage_asked = rewrite.stream && plan.ask_for_usage()?;
    let body = plan.changed().then(|| plan.write()).map_or_else(|| body.clone(), Bytes::from);
    Ok(Rewritten { body, usage_asked })
}

/// Fields of our own API, which no upstream knows.
const OURS: [&str; 2] = ["session_id", "user_id"];

/// The keys that somebody, here or in the front, decides by.
const DECIDING: [&str; 8] = [
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "n",
    "session_id",
    "user_id",
];

/// One member of an object, as slices of its text.
struct Member<'a> {
    key: std::borrow::Cow<'a, str>,
    value: &'a str,
    /// From the first byte of its key to the last of its value.
    span: core::ops::Range<usize>,
}

struct Members<'a>(Vec<Member<'a>>);

impl<'a> Members<'a> {
    fn read(text: &'a str) -> Result<Self, BadBody> {
        let mut reader = serde_json::Deserializer::from_str(text);
        let members = reader
            .deserialize_map(MembersVisitor { text })
            .and_then(|members| reader.end().map(|()| members));
        members.map_err(|error| {
            if error.is_data() && !text.trim_ascii_start().starts_with('{') {
                return BadBody::NotAnObject;
            }
            BadBody::Malformed { line: error.line(), column: error.column() }
        })
    }

    fn refuse_duplicates(&self) -> Result<(), BadBody> {
        for key in DECIDING {
            if self.0.iter().filter(|member| member.key == key).count() > 1 {
                return Err(BadBody::Duplicate(key));
            }
        }
        Ok(())
    }

    fn position(&self, key: &str) -> Option<usize> {
        self.0.iter().position(|member| member.key == key)
    }
}

struct MembersVisitor<'a> {
    text: &'a str,
}

impl<'a> Visitor<'a> for MembersVisitor<'a> {
    type Value = Members<'a>;

    fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Members<'a>, A::Error> {
        let mut members = Vec::new();
        while let Some((key, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            let (key, value) = (key.get(), value.get());
            let decoded = match key.contains('\\') {
                // Decoding refuses nothing here that the upstream would accept: it is a JSON string already.
                true => {
                    serde_json::from_str::<String>(key).map_err(serde::de::Error::custom)?.into()
                }
                false => key.trim_matches('"').into(),
            };
            let start = key.as_ptr().addr() - self.text.as_ptr().addr();
            let end = value.as_ptr().addr() - self.text.as_ptr().addr() + value.len();
            members.push(Member { key: decoded, value, span: start..end });
        }
        Ok(Members(members))
    }
}

/// What becomes of each member of an object.
struct Plan<'a> {
    text: &'a str,
    members: &'a Members<'a>,
    fates: Vec<Fate>,
    added: Vec<(&'static str, String)>,
}

#[derive(Clone, PartialEq, Eq)]
enum Fate {
    Kept,
    Removed,
    Replaced(String),
}

impl<'a> Plan<'a> {
    fn new(text: &'a str, members: &'a Members<'a>) -> Self {
        let fates = vec![Fate::Kept; members.0.len()];
        Self { text, members, fates, added: Vec::new() }
    }

    fn changed(&self) -> bool {
        !self.added.is_empty() || self.fates.iter().any(|fate| *fate != Fate::Kept)
    }

    fn remove(&mut self, index: usize) {
        self.fates[index] = Fate::Removed;
    }

    fn set(&mut self, key: &'static str, value: String) {
        match self.members.position(key) {
            Some(index) if self.members.0[index].value == value => {}
            Some(index) => self.fates[index] = Fate::Replaced(value),
            None => self.added.push((key, value)),
        }
    }

    fn value(&self, key: &str) -> Option<&'a str> {
        self.members.position(key).map(|index| self.members.0[index].value)
    }

    /// Lowers the limits that are there; adds one where none binds.
    fn cap_completion(&mut self, most: Tokens, added_as: CompletionMaxKey) -> Result<(), BadBody> {
        let choices = self.value("n").and_then(|n| n.parse().ok()).unwrap_or(1_u64).max(1);
        // A limit of zero is refused by most servers, so each choice gets a token at least.
        let most = Tokens((most.0 / choices).max(1));
        let mut bound = false;
        for key in ["max_tokens", "max_completion_tokens"] {
            let Some(value) = self.value(key).filter(|value| *value != "null") else { continue };
            let asked: u64 = value.parse().map_err(|_| BadBody::WrongType(key))?;
            if asked > most.0 {
                self.set(key, most.0.to_string());
            }
            bound = true;
        }
        if !bound {
            let key = match added_as {
                CompletionMaxKey::MaxTokens => "max_tokens",
                CompletionMaxKey::MaxCompletionTokens => "max_completion_tokens",
            };
            self.set(key, most.0.to_string());
        }
        Ok(())
    }

    /// Sees to it that the usage is reported; true where the client had asked for it.
    fn ask_for_usage(&mut self) -> Result<bool, BadBody> {
        const KEY: &str = "stream_options";
        const WRONG: BadBody = BadBody::WrongType(KEY);
        let options = match self.value(KEY) {
            None | Some("null") => {
                self.set(KEY, r#"{"include_usage":true}"#.to_owned());
                return Ok(false);
            }
            Some(options) => options,
        };
        let members = Members::read(options).map_err(|_| WRONG)?;
        let mut inner = Plan::new(options, &members);
        let mut values = members.0.iter().filter(|member| member.key == "include_usage");
        let asked = match (values.next().map(|member| member.value), values.next()) {
            (Some("true"), None) => true,
            (None | Some("false" | "null"), None) => false,
            _ => return Err(WRONG),
        };
        if !asked {
            inner.set("include_usage", "true".to_owned());
            let written = inner.write();
            self.set(KEY, written);
        }
        Ok(asked)
    }

    /// The object's text after all changes. Between two members that were neighbours, and around the first and the
    /// last, the text stays as it was.
    fn write(&self) -> String {
        let members = &self.members.0;
        let mut out = String::with_capacity(self.text.len() + 64);
        let head = members.first().map_or(0, |first| first.span.start);
        let mut last_kept: Option<usize> = None;
        match members.is_empty() {
            true => out.push('{'),
            false => out.push_str(&self.text[..head]),
        }
        for (index, (member, fate)) in members.iter().zip(&self.fates).enumerate() {
            let value = match fate {
                Fate::Removed => continue,
                Fate::Kept => member.value,
                Fate::Replaced(value) => value,
            };
            match last_kept {
                None => {}
                Some(last) if last + 1 == index => {
                    out.push_str(&self.text[members[last].span.end..member.span.start]);
                }
                Some(_) => out.push(','),
            }
            out.push_str(&self.text[member.span.start..member.span.end - member.value.len()]);
            out.push_str(value);
            last_kept = Some(index);
        }
        let mut comma = last_kept.is_some();
        for (key, value) in &self.added {
            if core::mem::replace(&mut comma, true) {
                out.push(',');
            }
            out.push_str(&format!("\"{key}\":{value}"));
        }
        match members.last() {
            Some(last) => out.push_str(&self.text[last.span.end..]),
            None => out.push('}'),
        }
        out
    }
}

fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The body as text, if it is UTF-8 and not nested too deeply.
fn checked(body: &[u8]) -> Result<&str, BadBody> {
    let text = core::str::from_utf8(body).map_err(|error| {
        let before = &body[..error.valid_up_to()];
        let line = 1 + memchr::memchr_iter(b'\n', before).count();
        let column = before.len() - memchr::memrchr(b'\n', before).map_or(0, |at| at + 1) + 1;
        BadBody::Malformed { line, column }
    })?;
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(&byte) = body.get(at) {
        at += 1;
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(BadBody::TooDeep);
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => at += string_length(&body[at..]),
            _ => {}
        }
    }
    Ok(text)
}

/// To behind a string's closing quote, from behind its opening one.
fn string_length(body: &[u8]) -> usize {
    let mut at = 0;
    while let Some(found) = memchr::memchr2(b'"', b'\\', &body[at..]) {
        at += found + 1;
        if body[at - 1] == b'"' {
            return at;
        }
        // Whatever is escaped, a quote above all, ends nothing.
        at = (at + 1).min(body.len());
    }
    body.len()
}

#[cfg(test)]
mod tests;
