//! What is read of an answer: errors, ends, usage, and how many tokens a piece adds. Everything else is skipped.
//!
//! This runs once per token, so nothing is built: texts are counted where they lie in the buffer, unknown fields are
//! passed over, and only the choices' marks (usually one) are kept.

use core::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use control::units::{Tokens, Usage};

use crate::tokens::Counted;

/// A chunk of a stream, or a whole answer: their fields are the same where they matter.
#[derive(Deserialize)]
pub(super) struct Chunk<'a> {
    #[serde(borrow, default)]
    pub(super) error: Option<&'a RawValue>,
    /// Some servers put `"object": "error"` and its fields where the answer belongs.
    #[serde(default)]
    object: Object,
    #[serde(default)]
    pub(super) choices: Option<Vec<Choice>>,
    #[serde(default)]
    usage: Option<UsageSaid>,
    /// The vectors of an embeddings answer, present or not.
    #[serde(default)]
    pub(super) data: Option<IgnoredAny>,
}

/// One of the answer's choices.
#[derive(Deserialize)]
pub(super) struct Choice {
    #[serde(default)]
    pub(super) index: u32,
    #[serde(default)]
    delta: Option<Piece>,
    #[serde(default)]
    message: Option<Piece>,
    #[serde(default)]
    pub(super) finish_reason: Finish,
}

/// What the model wrote: reasoning, tool calls and refusals are tokens as any others.
#[derive(Deserialize)]
struct Piece {
    #[serde(default)]
    content: Counted,
    #[serde(default)]
    reasoning_content: Counted,
    #[serde(default)]
    reasoning: Counted,
    #[serde(default)]
    refusal: Counted,
    #[serde(default)]
    tool_calls: Counted,
    #[serde(default)]
    function_call: Counted,
}

impl Chunk<'_> {
    /// # Errors
    /// Where and how the text is no such JSON, without quoting it.
    pub(super) fn read(data: &[u8]) -> Result<Chunk<'_>, String> {
        // Derived readers take an array for an object with its fields in order.
        if data.trim_ascii_start().first() == Some(&b'[') {
            return Err("JSON, but no answer (an array)".to_owned());
        }
        serde_json::from_slice(data).map_err(|error| {
            // The library's own message quotes what it met.
            let kind = match error.classify() {
                serde_json::error::Category::Eof => "it ends too early",
                serde_json::error::Category::Syntax => "no JSON",
                serde_json::error::Category::Data | serde_json::error::Category::Io => {
                    "JSON, but no answer"
                }
            };
            format!("{kind} (line {}, column {})", error.line(), error.column())
        })
    }

    pub(super) fn is_error(&self) -> bool {
        self.error.is_some()
            || self.object.is_error
            || self.choices().iter().any(|choice| choice.finish_reason == Finish::Error)
    }

    pub(super) fn choices(&self) -> &[Choice] {
        self.choices.as_deref().unwrap_or_default()
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        self.usage.as_ref()?.usage()
    }

    /// How many tokens its choices add.
    pub(super) fn tokens(&self) -> Tokens {
        self.choices().iter().fold(Tokens::ZERO, |sum, choice| sum + choice.tokens())
    }
}

impl Choice {
    fn tokens(&self) -> Tokens {
        let pieces = [self.delta.as_ref(), self.message.as_ref()];
        pieces.into_iter().flatten().fold(Tokens::ZERO, |sum, piece| sum + piece.tokens())
    }
}

impl Piece {
    fn tokens(&self) -> Tokens {
        // Servers that know both names for reasoning send the same text under both.
        self.content.0
            + self.reasoning_content.0.max(self.reasoning.0)
            + self.refusal.0
            + self.tool_calls.0
            + self.function_call.0
    }
}

/// Whether a choice has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Finish {
    /// Not yet: absent, null, or (some servers) empty.
    #[default]
    NotYet,
    /// `stop`, `length`, `tool_calls`, `content_filter` or any other reason.
    Finished,
    /// `error`: some routers put a broken upstream here.
    Error,
}

#[derive(Default)]
struct Object {
    is_error: bool,
}

#[derive(Deserialize)]
struct UsageSaid {
    #[serde(default)]
    prompt_tokens: Count,
    #[serde(default)]
    completion_tokens: Count,
    #[serde(default)]
    total_tokens: Count,
}

impl UsageSaid {
    /// What was said, if it is said and possible. An embeddings answer has no completion.
    fn usage(&self) -> Option<Usage> {
        let prompt = self.prompt_tokens.0?;
        let rest = self.total_tokens.0.map_or(0, |total| total.saturating_sub(prompt));
        let completion = self.completion_tokens.0.unwrap_or(rest);
        Some(Usage { prompt: Tokens(prompt), completion: Tokens(completion) })
    }
}

/// A count of tokens as peers write it: a whole number, a float, or nothing of use.
#[derive(Default)]
struct Count(Option<u64>);

/// Far above every context window; what claims more is an error, and no ledger should be charged with it.
const COUNT_MAX: u64 = 1 << 32;

macro_rules! scalar {
    ($name:ident, $what:literal, { $($method:item)* }) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Reader;
                impl<'de> Visitor<'de> for Reader {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }

                    fn visit_unit<E>(self) -> Result<$name, E> {
                        Ok($name::default())
                    }

                    $($method)*
                }
                deserializer.deserialize_any(Reader)
            }
        }
    };
}

scalar!(Finish, "a reason to finish", {
    fn visit_str<E>(self, reason: &str) -> Result<Finish, E> {
        Ok(match reason {
            "" => Finish::NotYet,
            "error" => Finish::Error,
            _ => Finish::Finished,
        })
    }
});

scalar!(Object, "the kind of an object", {
    fn visit_str<E>(self, kind: &str) -> Result<Object, E> {
        Ok(Object { is_error: kind == "error" })
    }
});

scalar!(Count, "a count of tokens", {
    fn visit_u64<E>(self, count: u64) -> Result<Count, E> {
        Ok(Count((count <= COUNT_MAX).then_some(count)))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Count, E> {
        Ok(Count(None))
    }

    fn visit_f64<E>(self, count: f64) -> Result<Count, E> {
        let possible = count >= 0.0 && count <= COUNT_MAX as f64;
        Ok(Count(possible.then_some(count.ceil() as u64)))
    }

    fn visit_str<E>(self, _: &str) -> Result<Count, E> {
        Ok(Count(None))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Count, E> {
        Ok(Count(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Count, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Count(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Count, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Count(None))
    }
});

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use super::*;

    fn tokens(data: &str) -> u64 {
        Chunk::read(data.as_bytes()).unwrap().tokens().0
    }

    fn usage(data: &str) -> Option<(u64, u64)> {
        let usage = Chunk::read(data.as_bytes()).unwrap().usage()?;
        Some((usage.prompt.0, usage.completion.0))
    }

    #[test]
    fn every_kind_of_piece_adds_tokens_and_an_empty_one_adds_none() {
        for (delta, count) in [
            (r#"{"role":"assistant","content":""}"#, 0),
            (r#"{"role":"assistant","content":null}"#, 0),
            (r#"{}"#, 0),
            (r#"{"content":" "}"#, 1),
            (r#"{"content":"Hello"}"#, 1),
            (r#"{"content":"a \"b\" c"}"#, 5),
            (r#"{"reasoning_content":"hm","reasoning":"hm"}"#, 1),
            (r#"{"refusal":"no"}"#, 1),
            (
                r#"{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"look","arguments":""}}]}"#,
                1,
            ),
            (r#"{"tool_calls":[{"index":0,"function":{"arguments":"{\"a"}}]}"#, 3),
        ] {
            let chunk =
                format!(r#"{{"choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]}}"#);
            assert_eq!(tokens(&chunk), count, "{delta}");
        }
    }

    #[test]
    fn errors_are_seen_wherever_servers_put_them() {
        for data in [
            r#"{"error":{"message":"x"}}"#,
            r#"{"error":"x"}"#,
            r#"{"object":"error","message":"x"}"#,
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"error"}]}"#,
        ] {
            assert!(Chunk::read(data.as_bytes()).unwrap().is_error(), "{data}");
        }
        let fine = r#"{"object":"chat.completion.chunk","error":null,"choices":[{"delta":{}}]}"#;
        assert!(!Chunk::read(fine.as_bytes()).unwrap().is_error());
    }

    #[test]
    fn usage_is_believed_only_where_it_is_possible() {
        assert_eq!(
            usage(r#"{"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}"#),
            Some((3, 4))
        );
        assert_eq!(usage(r#"{"usage":{"prompt_tokens":3,"total_tokens":3}}"#), Some((3, 0)));
        assert_eq!(usage(r#"{"usage":{"prompt_tokens":3.0,"completion_tokens":4}}"#), Some((3, 4)));
        for said in [
            "null",
            "{}",
            r#"{"prompt_tokens":-1}"#,
            r#"{"prompt_tokens":"3"}"#,
            r#"{"prompt_tokens":[1]}"#,
            r#"{"prompt_tokens":18446744073709551615}"#,
        ] {
            assert_eq!(usage(&format!(r#"{{"usage":{said}}}"#)), None, "{said}");
        }
    }

    #[test]
    fn what_is_no_answer_is_refused_without_quoting_it() {
        for data in
            ["my secret", "\"my secret\"", "{\"choices\":\"my secret\"}", "[1]", "{\"choices\":"]
        {
            let why = Chunk::read(data.as_bytes()).err().unwrap();
            assert!(!why.contains("secret"), "{why}");
        }
    }
}
