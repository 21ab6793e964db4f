//! The prompt of a request, counted while its JSON is read: nothing is built, nothing is copied.

use core::fmt;

use control::units::Tokens;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::estimate;

/// About how many prompt tokens a request body (chat or embeddings) stands for.
///
/// Counts the texts of `messages`, `tools`, `functions`, `response_format`, `input` and `prompt`, plus what chat templates
/// add: 4 tokens per message (role and delimiters) and 3 that open the answer. An attached image counts 765 tokens (what
/// OpenAI bills for 1024 x 1024 in high detail), an attached sound or file 1 for every 4 characters it is sent as, at
/// most 4,096. Token ids in `input` count one each. A body that is no JSON object counts a token for every 4 bytes.
#[must_use]
pub fn estimate_prompt(body: &[u8]) -> Tokens {
    match serde_json::from_slice::<Body>(body) {
        Ok(body) => body.0,
        Err(_) => Tokens(body.len().div_ceil(4) as u64),
    }
}

/// The same of one message of a chat.
#[must_use]
pub fn estimate_message(message: &str) -> Tokens {
    let mut reader = serde_json::Deserializer::from_str(message);
    match MESSAGES.inside().deserialize(&mut reader) {
        Ok(tokens) => tokens + PER_MESSAGE,
        Err(_) => Tokens(message.len().div_ceil(4) as u64),
    }
}

const PER_MESSAGE: Tokens = Tokens(4);
const PER_CHAT: Tokens = Tokens(3);
const PER_IMAGE: Tokens = Tokens(765);
/// A long sound or a book as PDF: beyond this we would rather be corrected by the replica's own count than deny.
const PER_ATTACHMENT_MAX: Tokens = Tokens(4_096);

struct Body(Tokens);

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(BodyVisitor).map(Self)
    }
}

struct BodyVisitor;

impl<'de> Visitor<'de> for BodyVisitor {
    type Value = Tokens;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request body")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tokens, A::Error> {
        let mut tokens = Tokens::ZERO;
        while let Some(key) = map.next_key::<Key>()? {
            tokens += match key {
                Key::Messages => map.next_value_seed(MESSAGES)? + PER_CHAT,
                Key::Text | Key::Wrapped => map.next_value_seed(PROMPT)?,
                Key::Image | Key::Attachment | Key::Label | Key::Other => {
                    map.next_value::<IgnoredAny>()?;
                    Tokens::ZERO
                }
            };
        }
        Ok(tokens)
    }
}

/// What a key says about the value behind it.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Key {
    Messages,
    #[serde(alias = "tools", alias = "functions", alias = "response_format")]
    Wrapped,
    #[serde(alias = "input", alias = "prompt", alias = "content", alias = "text")]
    Text,
    #[serde(alias = "image_url", alias = "image")]
    Image,
    #[serde(alias = "input_audio", alias = "file", alias = "video_url")]
    Attachment,
    #[serde(alias = "type", alias = "role", alias = "id", alias = "tool_call_id", alias = "index")]
    Label,
    #[serde(other)]
    Other,
}

/// The tokens a piece of an answer adds: all texts inside any JSON value; labels (`type`, `role`, `id`, ...) are not text.
/// A piece that is not empty has at least one token, be it a lone space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted(pub(crate) Tokens);

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        PIECE.deserialize(deserializer).map(Self)
    }
}

/// How one value is counted. Recursion is bounded by the JSON reader's own limit of 128 levels.
#[derive(Clone, Copy)]
struct Counting {
    /// On top for each element, where the value is a list (not the lists inside it).
    per_element: Tokens,
    /// On top for each key of an object: names inside a schema reach the model as text too, about one token each.
    per_key: Tokens,
    /// At least so many for a text that is not empty.
    per_text_min: Tokens,
}

const PROMPT: Counting =
    Counting { per_element: Tokens::ZERO, per_key: Tokens(1), per_text_min: Tokens::ZERO };
const MESSAGES: Counting = Counting { per_element: PER_MESSAGE, ..PROMPT };
const PIECE: Counting =
    Counting { per_element: Tokens::ZERO, per_key: Tokens::ZERO, per_text_min: Tokens(1) };

impl Counting {
    const fn inside(self) -> Self {
        Self { per_element: Tokens::ZERO, ..self }
    }
}

impl<'de> DeserializeSeed<'de> for Counting {
    type Value = Tokens;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tokens, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counting {
    type Value = Tokens;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Tokens, E> {
        Ok(if text.is_empty() { Tokens::ZERO } else { estimate(text).max(self.per_text_min) })
    }

    fn visit_bool<E>(self, _: bool) -> Result<Tokens, E> {
        Ok(Tokens(1))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Tokens, E> {
        Ok(Tokens(1))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Tokens, E> {
        Ok(Tokens(1))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Tokens, E> {
        Ok(Tokens(1))
    }

    fn visit_unit<E>(self) -> Result<Tokens, E> {
        Ok(Tokens::ZERO)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tokens, A::Error> {
        let mut tokens = Tokens::ZERO;
        while let Some(element) = seq.next_element_seed(self.inside())? {
            tokens += element + self.per_element;
        }
        Ok(tokens)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tokens, A::Error> {
        let mut tokens = Tokens::ZERO;
        while let Some(key) = map.next_key::<Key>()? {
            tokens += match key {
                Key::Label => {
                    map.next_value::<IgnoredAny>()?;
                    Tokens::ZERO
                }
                Key::Image => {
                    map.next_value::<IgnoredAny>()?;
                    PER_IMAGE
                }
                Key::Attachment => map.next_value_seed(Length)?.min(PER_ATTACHMENT_MAX),
                Key::Other => map.next_value_seed(self.inside())? + self.per_key,
                Key::Messages | Key::Wrapped | Key::Text => map.next_value_seed(self.inside())?,
            };
        }
        Ok(tokens)
    }
}

/// A token for every 4 bytes of an attachment, as sent.
struct Length;

impl<'de> DeserializeSeed<'de> for Length {
    type Value = Tokens;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tokens, D::Error> {
        let raw = <&serde_json::value::RawValue>::deserialize(deserializer)?;
        Ok(Tokens(raw.get().len().div_ceil(4) as u64))
    }
}
