//! The few fields of a body that routing, quota and stickiness need.
//!
//! The body is checked as JSON once and its values are kept as slices of it; only what is ours to know is then read,
//! each with an error of its own that names the field and what was expected. Everything else goes upstream as it
//! came. A field that is named twice is refused: parsers differ in which one they keep, and so a gateway and its
//! replica could read two different requests.
//!
//! No error repeats the body: it may hold a prompt or a key, and errors end up in logs.

use std::fmt;

use control::units::Tokens;
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::error::{self, ApiError};
use super::scan;
use crate::config::KEY_OWNER;
use crate::exchange::Operation;
use crate::tokens::estimate_prompt;

/// What a body asks.
#[derive(Debug, PartialEq)]
pub(super) struct Ask<'a> {
    pub(super) model: String,
    pub(super) stream: bool,
    /// Most completion tokens over all choices.
    pub(super) output_max: Option<Tokens>,
    /// Estimated prompt tokens.
    pub(super) prompt: Tokens,
    pub(super) session_id: Option<String>,
    pub(super) user_id: Option<String>,
    /// Answers asked for at once.
    pub(super) choices: u64,
    /// A chat's messages up to and including the first of the user: the same in every turn of a conversation.
    pub(super) opening: Option<&'a str>,
}

/// Longest session or user id, in bytes: longer than any UUID, URL-safe digest or e-mail address in use.
pub(super) const ID_BYTES_MAX: usize = 256;

/// OpenAI's own bound on `n`.
const CHOICES_MAX: u64 = 128;

/// Above any model's output; times `n` it stays below 2^53, where shared stores count exactly.
const OUTPUT_MAX: u64 = u32::MAX as u64;

/// Reads a body.
pub(super) fn parse(operation: Operation, body: &[u8]) -> Result<Ask<'_>, ApiError> {
    let json = text_of(body)?;
    let depth = scan::depth(json);
    if depth > scan::DEPTH_MAX {
        let words = format!(
            "The body is nested {depth} levels deep; at most {} are allowed. Flatten it.",
            scan::DEPTH_MAX
        );
        return Err(error::invalid("body_too_deep", words));
    }
    let wire = wire_of(json)?;
    let model = text(wire.model, "model")?.ok_or_else(|| {
        missing("model", "a string naming one of the models that GET /v1/models lists")
    })?;
    let choices = choices(&wire)?;
    let (opening, output_max) = match operation {
        Operation::ChatCompletions => (opening(&wire)?, output_max(&wire, choices)?),
        Operation::Embeddings => {
            check_input(wire.input)?;
            (None, Some(Tokens::ZERO))
        }
    };
    check_stream_options(wire.stream_options)?;
    Ok(Ask {
        model,
        stream: operation == Operation::ChatCompletions
            && flag(wire.stream, "stream")?.unwrap_or(false),
        output_max,
        prompt: estimate_prompt(body),
        session_id: id(wire.session_id, "session_id")?,
        user_id: user(wire.user_id)?,
        choices,
        opening,
    })
}

/// The fields that are looked at, as slices of the body. JSON's null counts as absent, as with OpenAI.
#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow, default)]
    model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    messages: Option<&'a RawValue>,
    #[serde(borrow, default)]
    input: Option<&'a RawValue>,
    #[serde(borrow, default)]
    stream: Option<&'a RawValue>,
    #[serde(borrow, default)]
    stream_options: Option<&'a RawValue>,
    #[serde(borrow, default)]
    max_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    max_completion_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    n: Option<&'a RawValue>,
    #[serde(borrow, default)]
    session_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    user_id: Option<&'a RawValue>,
}

fn text_of(body: &[u8]) -> Result<&str, ApiError> {
    std::str::from_utf8(body).map_err(|error| {
        let (line, column) = scan::position(body, error.valid_up_to());
        let words = format!(
            "The body is not UTF-8 (first at line {line}, column {column}). JSON must be sent as UTF-8."
        );
        error::invalid("invalid_json", words)
    })
}

fn wire_of(json: &str) -> Result<Wire<'_>, ApiError> {
    let first = json.trim_start().as_bytes().first();
    if first.is_none() {
        let words = "The body is empty. Send a JSON object such as \
                     {\"model\": \"...\", \"messages\": [{\"role\": \"user\", \"content\": \"...\"}]}.";
        return Err(error::invalid("invalid_json", words));
    }
    serde_json::from_str(json).map_err(|failure| syntax(&failure)).and_then(|wire| {
        // A derived struct also reads an array, by position.
        if first == Some(&b'{') { Ok(wire) } else { Err(not_an_object()) }
    })
}

/// Words for what the parser says. Its own texts for syntax are fixed; those for data may quote the body.
fn syntax(failure: &serde_json::Error) -> ApiError {
    match failure.classify() {
        serde_json::error::Category::Data => {
            let words = failure.to_string();
            match words.strip_prefix("duplicate field `").and_then(|rest| rest.split_once('`')) {
                Some((name, _)) => {
                    let words = format!(
                        "The field '{name}' appears twice. Send it once: which one counts would be a guess."
                    );
                    error::invalid("duplicate_field", words).param(name.to_owned())
                }
                None => not_an_object(),
            }
        }
        serde_json::error::Category::Syntax
        | serde_json::error::Category::Eof
        | serde_json::error::Category::Io => {
            error::invalid("invalid_json", format!("The body is not valid JSON: {failure}."))
        }
    }
}

fn not_an_object() -> ApiError {
    error::invalid("invalid_json", "The body must be a JSON object, {\"model\": ..., ...}.")
}

fn kind_of(value: &RawValue) -> &'static str {
    match value.get().as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

fn wrong(name: &'static str, expected: &str, value: &RawValue) -> ApiError {
    let words = format!("'{name}' must be {expected}; it is {}.", kind_of(value));
    error::invalid("invalid_type", words).param(name)
}

fn bad_value(name: &'static str, words: String) -> ApiError {
    error::invalid("invalid_value", words).param(name)
}

fn missing(name: &'static str, expected: &str) -> ApiError {
    let words = format!("'{name}' is missing. It must be {expected}.");
    error::invalid("missing_required_parameter", words).param(name)
}

fn text(value: Option<&RawValue>, name: &'static str) -> Result<Option<String>, ApiError> {
    let Some(value) = value else { return Ok(None) };
    if kind_of(value) != "a string" {
        return Err(wrong(name, "a string", value));
    }
    let broken = |_| {
        bad_value(
            name,
            format!(
                "'{name}' holds half of a surrogate pair (\\uD800 to \\uDFFF). Send whole characters."
            ),
        )
    };
    serde_json::from_str(value.get()).map(Some).map_err(broken)
}

fn id(value: Option<&RawValue>, name: &'static str) -> Result<Option<String>, ApiError> {
    let Some(text) = text(value, name)? else { return Ok(None) };
    check_id(name, &text)?;
    Ok(Some(text))
}

fn user(value: Option<&RawValue>) -> Result<Option<String>, ApiError> {
    let Some(text) = text(value, USER)? else { return Ok(None) };
    check_user(&text)?;
    Ok(Some(text))
}

/// Where a body and a query name a user.
const USER: &str = "user_id";

/// Holds for users in bodies and in queries.
pub(super) fn check_user(text: &str) -> Result<(), ApiError> {
    check_id(USER, text)?;
    if text.starts_with(KEY_OWNER) {
        let words = format!(
            "'{USER}' must not begin with '{KEY_OWNER}': the sessions of a key that names no user are called that. Leave it \
             out for the key's own, or send another name."
        );
        return Err(bad_value(USER, words));
    }
    Ok(())
}

/// Holds for ids in bodies and in headers.
pub(super) fn check_id(name: &'static str, text: &str) -> Result<(), ApiError> {
    if text.is_empty() {
        return Err(bad_value(name, format!("'{name}' is empty. Leave it out or send a name.")));
    }
    if text.len() > ID_BYTES_MAX {
        let words = format!(
            "'{name}' has {} bytes; at most {ID_BYTES_MAX} are allowed. Send a shorter name, or a hash of it.",
            text.len()
        );
        return Err(bad_value(name, words));
    }
    Ok(())
}

fn flag(value: Option<&RawValue>, name: &'static str) -> Result<Option<bool>, ApiError> {
    let Some(value) = value else { return Ok(None) };
    serde_json::from_str(value.get()).map(Some).map_err(|_| wrong(name, "true or false", value))
}

fn count(value: Option<&RawValue>, name: &'static str) -> Result<Option<u64>, ApiError> {
    let Some(value) = value else { return Ok(None) };
    if kind_of(value) != "a number" {
        return Err(wrong(name, "a whole number, 0 or more", value));
    }
    serde_json::from_str::<u64>(value.get())
        .ok()
        .filter(|&count| count <= OUTPUT_MAX)
        .map(Some)
        .ok_or_else(|| {
            bad_value(name, format!("'{name}' must be a whole number from 0 to {OUTPUT_MAX}."))
        })
}

/// The larger of both names for it, for each choice: replicas differ in which one they obey.
fn output_max(wire: &Wire<'_>, choices: u64) -> Result<Option<Tokens>, ApiError> {
    let old = count(wire.max_tokens, "max_tokens")?;
    let new = count(wire.max_completion_tokens, "max_completion_tokens")?;
    Ok(old.max(new).map(|each| Tokens(each.saturating_mul(choices))))
}

fn choices(wire: &Wire<'_>) -> Result<u64, ApiError> {
    let choices = count(wire.n, "n")?.unwrap_or(1);
    if !(1..=CHOICES_MAX).contains(&choices) {
        return Err(bad_value("n", format!("'n' must be from 1 to {CHOICES_MAX}.")));
    }
    Ok(choices)
}

fn check_stream_options(value: Option<&RawValue>) -> Result<(), ApiError> {
    #[derive(Deserialize)]
    struct Options<'a> {
        #[serde(borrow, default)]
        include_usage: Option<&'a RawValue>,
    }
    let Some(value) = value else { return Ok(()) };
    if kind_of(value) != "an object" {
        return Err(wrong("stream_options", "an object", value));
    }
    let options: Options<'_> =
        serde_json::from_str(value.get()).map_err(|failure| syntax(&failure))?;
    flag(options.include_usage, "stream_options.include_usage").map(drop)
}

fn check_input(value: Option<&RawValue>) -> Result<(), ApiError> {
    let expected = "a string, or a non-empty array of strings or of token ids";
    let value = value.ok_or_else(|| missing("input", expected))?;
    let empty = |rest: &str| rest.trim_start().starts_with(']');
    match value.get() {
        array if array.strip_prefix('[').is_some_and(empty) => {
            Err(bad_value("input", "'input' is an empty array. Send at least one text.".to_owned()))
        }
        text if text.starts_with(['"', '[']) => Ok(()),
        _ => Err(wrong("input", expected, value)),
    }
}

/// Checks `messages` and finds the conversation's opening.
fn opening<'a>(wire: &Wire<'a>) -> Result<Option<&'a str>, ApiError> {
    let expected =
        "a non-empty array of objects such as {\"role\": \"user\", \"content\": \"...\"}";
    let value = wire.messages.ok_or_else(|| missing("messages", expected))?;
    if kind_of(value) != "an array" {
        return Err(wrong("messages", expected, value));
    }
    let mut json = serde_json::Deserializer::from_str(value.get());
    let walk = json.deserialize_seq(Messages).map_err(|failure| syntax(&failure))?;
    if let Some((place, kind)) = walk.stranger {
        let words =
            format!("'messages[{place}]' must be an object with a role and content; it is {kind}.");
        return Err(error::invalid("invalid_type", words).param(format!("messages[{place}]")));
    }
    if walk.count == 0 {
        let words = format!("'messages' is empty. It must be {expected}.");
        return Err(bad_value("messages", words));
    }
    // The pieces are slices of one text: the distance of their addresses is the distance in it.
    Ok(walk.first.zip(walk.user).map(|(first, user)| {
        let start = first.as_ptr() as usize - value.get().as_ptr() as usize;
        let end = user.as_ptr() as usize - value.get().as_ptr() as usize + user.len();
        &value.get()[start..end]
    }))
}

/// What one walk over the messages found; nothing of them is kept, so that a million empty ones cost no memory.
#[derive(Default)]
struct Walk<'a> {
    count: usize,
    first: Option<&'a str>,
    user: Option<&'a str>,
    stranger: Option<(usize, &'static str)>,
}

struct Messages;

impl<'de> Visitor<'de> for Messages {
    type Value = Walk<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of messages")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut walk = Walk::default();
        while let Some(message) = seq.next_element::<&'de RawValue>()? {
            let text = message.get();
            if !text.starts_with('{') && walk.stranger.is_none() {
                walk.stranger = Some((walk.count, kind_of(message)));
            }
            walk.first = walk.first.or(Some(text));
            if walk.user.is_none() && is_user(text) {
                walk.user = Some(text);
            }
            walk.count += 1;
        }
        Ok(walk)
    }
}

fn is_user(message: &str) -> bool {
    #[derive(Deserialize)]
    struct Message<'a> {
        #[serde(borrow, default)]
        role: Option<&'a RawValue>,
    }
    serde_json::from_str::<Message<'_>>(message)
        .ok()
        .and_then(|message| message.role)
        .is_some_and(|role| role.get() == "\"user\"")
}

#[cfg(test)]
mod tests;
