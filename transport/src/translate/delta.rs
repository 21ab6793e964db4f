//! From the events of an OpenAI-compatible stream to chunks.

use std::collections::BTreeMap;

use proto::inference::v1::{Parameters, StreamInferenceResponse, Usage};
use serde::Deserialize;
use serde_json::value::RawValue;
use tonic::Status;

use crate::members::{Members, Writer, present};
use crate::sse;
use crate::tokens::estimate;
use crate::upstream::Event;

/// Reads one stream.
pub(crate) struct Reader {
    /// The most tokens of each choice.
    most: u64,
    choices: BTreeMap<u32, Choice>,
    usage: Option<Usage>,
    /// The server counts the tokens of its only choice, event by event.
    counted: bool,
}

#[derive(Default)]
struct Choice {
    produced: u64,
    finished: bool,
}

#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow, default)]
    choices: Option<Vec<Members<'a>>>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
}

/// Only what the event does not tell already.
#[derive(Deserialize)]
struct UsageSaid {
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

impl Reader {
    /// Of an answer to a question with these parameters.
    pub fn new(said: Option<&Parameters>) -> Self {
        let most = said.and_then(|said| said.max_tokens).map_or(u64::MAX, u64::from);
        Self { most, choices: BTreeMap::new(), usage: None, counted: false }
    }

    /// The same of a server that was asked to tell its usage with every event, if it does: then nothing is estimated.
    pub fn counted(self) -> Self {
        Self { counted: true, ..self }
    }

    /// The chunks of one event, one for each of its choices that says something.
    pub fn read(&mut self, event: &Event) -> Result<Vec<StreamInferenceResponse>, Status> {
        let data = data(event).ok_or_else(not_understood)?;
        self.read_data(&data, event.usage)
    }

    /// The same of an event's data, and of the usage it tells.
    pub fn read_data(
        &mut self,
        data: &[u8],
        usage: Option<control::units::Usage>,
    ) -> Result<Vec<StreamInferenceResponse>, Status> {
        let said: Said<'_> = serde_json::from_slice(data).map_err(|_| not_understood())?;
        if let Some(usage) = usage {
            let details: Option<UsageSaid> =
                said.usage.and_then(|usage| serde_json::from_str(usage.get()).ok());
            let cached = details.and_then(|said| said.prompt_tokens_details?.cached_tokens);
            self.usage = Some(crate::convert::usage_said(usage, cached.unwrap_or(0)));
        }
        let so_far = usage.filter(|_| self.counted).map(|usage| usage.completion.0);
        let mut chunks = Vec::new();
        for choice in said.choices.unwrap_or_default() {
            let chunk = self.choice(&choice, so_far).ok_or_else(not_understood)?;
            if says_something(&chunk) {
                chunks.push(chunk);
            }
        }
        Ok(chunks)
    }

    /// The bill, where the server told one.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// The end of an answer whose server ended it without a reason: `stop`.
    pub fn unsaid_end(&self) -> Option<StreamInferenceResponse> {
        let (choice, _) = self.choices.iter().find(|(_, choice)| !choice.finished)?;
        let finish_reason = "stop".to_owned();
        Some(StreamInferenceResponse { choice: *choice, finish_reason, ..Default::default() })
    }

    /// `so_far`: all tokens up to here, where the server says so.
    fn choice(
        &mut self,
        said: &Members<'_>,
        so_far: Option<u64>,
    ) -> Option<StreamInferenceResponse> {
        let mut chunk = StreamInferenceResponse::default();
        let mut extra = Writer::new();
        let mut delta = Members::default();
        for (key, value) in &said.0 {
            let Some(text) = present(value) else { continue };
            match &**key {
                "index" => chunk.choice = text.parse().ok()?,
                // An answer that came at once has its message where a stream has deltas.
                "delta" | "message" => delta = Members::read(text)?,
                "finish_reason" => chunk.finish_reason = serde_json::from_str(text).ok()?,
                _ => extra.raw(key, text),
            }
        }
        for (key, value) in &delta.0 {
            let Some(text) = present(value) else { continue };
            match &**key {
                "role" => {}
                "content" => chunk.text = serde_json::from_str(text).ok()?,
                // Servers that know both names say the same under both.
                "reasoning_content" | "reasoning" => {
                    chunk.reasoning = serde_json::from_str(text).ok()?;
                }
                "refusal" => chunk.refusal = serde_json::from_str(text).ok()?,
                "tool_calls" if text != "[]" => chunk.tool_calls_json = text.to_owned(),
                "tool_calls" => {}
                _ => extra.raw(key, text),
            }
        }
        chunk.extra_json = extra.end_if_any();
        let state = self.choices.entry(chunk.choice).or_default();
        let left = self.most - state.produced;
        let count = match (count(&chunk), so_far) {
            // What shows nothing is told with what comes next.
            (0, _) => 0,
            (_, Some(so_far)) => so_far.saturating_sub(state.produced),
            (estimated, None) => {
                chunk.estimated = true;
                estimated
            }
        };
        chunk.token_count = u32::try_from(count.min(left)).unwrap_or(u32::MAX);
        state.produced += u64::from(chunk.token_count);
        state.finished |= !chunk.finish_reason.is_empty();
        Some(chunk)
    }
}

fn not_understood() -> Status {
    Status::internal("the backend's answer was not understood")
}

/// About how many tokens: the server does not say.
fn count(chunk: &StreamInferenceResponse) -> u64 {
    let texts = [&chunk.text, &chunk.reasoning, &chunk.tool_calls_json, &chunk.refusal];
    let tokens = |text: &&String| if text.is_empty() { 0 } else { estimate(text).0.max(1) };
    texts.iter().map(tokens).sum()
}

fn says_something(chunk: &StreamInferenceResponse) -> bool {
    count(chunk) > 0 || !chunk.finish_reason.is_empty() || !chunk.extra_json.is_empty()
}

fn data(event: &Event) -> Option<bytes::Bytes> {
    let mut parser = sse::Parser::default();
    parser.insert(event.raw.clone());
    parser.poll_event().ok()??.data
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use bytes::Bytes;
    use control::units::Tokens;

    use super::*;
    use crate::upstream::EventKind;

    fn event(data: &str) -> Event {
        let usage = data.contains("prompt_tokens");
        Event {
            piece: None,
            raw: Bytes::from(format!("data: {data}\n\n")),
            kind: EventKind::Opening,
            usage: usage
                .then_some(control::units::Usage { prompt: Tokens(3), completion: Tokens(2) }),
        }
    }

    fn reader(max_tokens: Option<u32>) -> Reader {
        Reader::new(Some(&Parameters { max_tokens, ..Parameters::default() }))
    }

    #[test]
    fn a_delta_becomes_a_chunk_with_everything_it_said() {
        let said = r#"{"choices":[{"index":1,"delta":{"role":"assistant","content":"Hi","reasoning":"hm","tool_calls":[{"index":0}],"odd":[1]},"logprobs":{"a":1.0},"finish_reason":null}],"usage":null}"#;
        let chunks = reader(None).read(&event(said)).unwrap();
        let [chunk] = &chunks[..] else { panic!("{chunks:?}") };
        assert_eq!((chunk.choice, &*chunk.text, &*chunk.reasoning), (1, "Hi", "hm"));
        assert_eq!(chunk.tool_calls_json, r#"[{"index":0}]"#);
        assert_eq!(chunk.extra_json, r#"{"logprobs":{"a":1.0},"odd":[1]}"#);
        assert!(chunk.token_count >= 3 && chunk.finish_reason.is_empty() && chunk.estimated);
    }

    #[test]
    fn counts_never_pass_what_was_allowed_and_empty_deltas_say_nothing() {
        let mut reader = reader(Some(2));
        let said =
            |text: &str| format!(r#"{{"choices":[{{"index":0,"delta":{{"content":"{text}"}}}}]}}"#);
        let mut counts = Vec::new();
        for text in ["", "one two", "three"] {
            counts.extend(reader.read(&event(&said(text))).unwrap().iter().map(|c| c.token_count));
        }
        assert_eq!(counts, [2, 0]);
        assert_eq!(reader.unsaid_end().unwrap().finish_reason, "stop");
    }

    #[test]
    fn where_the_server_counts_nothing_is_estimated() {
        let mut reader = reader(Some(9)).counted();
        let said = |text: &str, completion: u64| {
            let choice = format!(r#"{{"index":0,"delta":{{"content":"{text}"}}}}"#);
            let usage = control::units::Usage { prompt: Tokens(7), completion: Tokens(completion) };
            (format!(r#"{{"choices":[{choice}]}}"#), usage)
        };
        let mut counts = Vec::new();
        for (text, so_far) in [("incomprehensibilities", 1), ("", 2), ("a b c", 5), ("d", 12)] {
            let (data, usage) = said(text, so_far);
            let chunks = reader.read_data(data.as_bytes(), Some(usage)).unwrap();
            counts.extend(chunks.iter().map(|chunk| chunk.token_count));
            assert!(chunks.iter().all(|chunk| !chunk.estimated));
        }
        assert_eq!(counts, [1, 4, 4], "and never more than was allowed");
    }

    #[test]
    fn the_bill_is_read_with_what_was_cached() {
        let mut reader = reader(None);
        let said = r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}}}"#;
        assert!(reader.read(&event(said)).unwrap().is_empty());
        let usage = reader.usage().unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens), (3, 2, 1));
    }
}
