//! Chunks as the events of OpenAI's API.

use bytes::Bytes;
use control::Wall;
use control::units::Usage;
use proto::inference::v1::StreamInferenceResponse as Chunk;
use serde_json::value::RawValue;

use super::tally::garbage;
use crate::members::{Members, Writer};
use crate::upstream::failed::Failed;

/// What every event of an answer, or the whole answer, begins with.
#[derive(Debug)]
pub(super) struct Envelope {
    id: String,
    model: String,
    created: u64,
}

/// Members that belong to a choice. All others that a worker passes on belong to its delta or message.
const OF_CHOICE: [&str; 4] = ["logprobs", "stop_reason", "matched_stop", "content_filter_results"];

pub(super) fn belongs_to_choice(key: &str) -> bool {
    OF_CHOICE.contains(&key)
}

impl Envelope {
    pub fn new(request_id: &str, model: &str, now: Wall) -> Self {
        let id = format!("chatcmpl-{request_id}");
        Self { id, model: model.to_owned(), created: now.as_millis() / 1_000 }
    }

    /// The answer's `created`.
    pub fn created(&self) -> u64 {
        self.created
    }

    /// The same, as part of an answer that began then.
    pub fn since(mut self, created: u64) -> Self {
        self.created = created;
        self
    }

    pub fn open(&self, object: &str) -> Writer {
        let mut writer = Writer::new();
        writer.value("id", &self.id);
        writer.value("object", object);
        writer.value("created", &self.created);
        writer.value("model", &self.model);
        writer
    }

    /// The event that says what a chunk says. `first`: of its choice.
    ///
    /// # Errors
    /// `Garbage` where the chunk's JSON is none.
    pub fn event(&self, chunk: &Chunk, first: bool) -> Result<Bytes, Failed> {
        let extra = Members::read(&chunk.extra_json);
        let extra = extra.ok_or_else(|| garbage("extra_json is no JSON object"))?;
        let mut choice = Writer::new();
        choice.value("index", &chunk.choice);
        choice.raw("delta", &delta(chunk, &extra, first)?);
        for (key, value) in extra.0.iter().filter(|(key, _)| belongs_to_choice(key)) {
            choice.raw(key, value.get());
        }
        match chunk.finish_reason.as_str() {
            "" => choice.raw("finish_reason", "null"),
            reason => choice.value("finish_reason", reason),
        }
        let mut event = self.open("chat.completion.chunk");
        event.raw("choices", &format!("[{}]", choice.end()));
        Ok(framed(&event.end()))
    }

    /// The event with the bill.
    pub fn bill(&self, usage: Usage, cached: u64) -> Bytes {
        let mut event = self.open("chat.completion.chunk");
        event.raw("choices", "[]");
        event.raw("usage", &usage_text(usage, cached));
        framed(&event.end())
    }
}

fn delta(chunk: &Chunk, extra: &Members<'_>, first: bool) -> Result<String, Failed> {
    let mut delta = Writer::new();
    if first {
        delta.value("role", "assistant");
    }
    // A token that is not a whole character yet still is one: clients see an empty piece of text.
    if !chunk.text.is_empty() || (chunk.token_count > 0 && !super::tally::has_text(chunk)) {
        delta.value("content", &chunk.text);
    }
    delta.text("reasoning_content", &chunk.reasoning);
    delta.text("refusal", &chunk.refusal);
    if !chunk.tool_calls_json.is_empty() {
        delta.raw("tool_calls", tool_calls(chunk)?);
    }
    for (key, value) in extra.0.iter().filter(|(key, _)| !belongs_to_choice(key)) {
        delta.raw(key, value.get());
    }
    Ok(delta.end())
}

/// What is passed on as it is must be the JSON it claims to be, on one line.
pub(super) fn tool_calls(chunk: &Chunk) -> Result<&str, Failed> {
    let list: Result<&RawValue, _> = serde_json::from_str(&chunk.tool_calls_json);
    let list = list.ok().map(RawValue::get).filter(|list| list.starts_with('['));
    list.ok_or_else(|| garbage("tool_calls_json is no JSON array"))
}

pub(super) fn usage_text(usage: Usage, cached: u64) -> String {
    let mut text = Writer::new();
    text.value("prompt_tokens", &usage.prompt.0);
    text.value("completion_tokens", &usage.completion.0);
    text.value("total_tokens", &(usage.prompt.0 + usage.completion.0));
    if cached > 0 {
        text.raw("prompt_tokens_details", &format!("{{\"cached_tokens\":{cached}}}"));
    }
    text.end()
}

/// An event. JSON may be spread over lines; an event's data may not.
fn framed(json: &str) -> Bytes {
    let one_line =
        if json.contains(['\n', '\r']) { json.replace(['\n', '\r'], " ") } else { String::new() };
    let json = if one_line.is_empty() { json } else { &one_line };
    let mut event = String::with_capacity(json.len() + 8);
    event.push_str("data: ");
    event.push_str(json);
    event.push_str("\n\n");
    event.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use control::units::Tokens;
    use serde_json::{Value, json};

    use super::*;

    fn said(chunk: &Chunk, first: bool) -> Value {
        let envelope = Envelope::new("req_1", "m", Wall::from_millis(1_700_000_000_123));
        let event = envelope.event(chunk, first).unwrap();
        let text = core::str::from_utf8(&event).unwrap();
        let data = text.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
        assert!(!data.contains('\n'), "{data}");
        serde_json::from_str(data).unwrap()
    }

    #[test]
    fn a_chunk_reads_as_clients_of_the_api_expect() {
        let chunk = Chunk {
            token_count: 3,
            text: "a\n\"b\"".to_owned(),
            reasoning: "hm".to_owned(),
            tool_calls_json: "[{\n\"index\":0}]".to_owned(),
            finish_reason: "stop".to_owned(),
            choice: 1,
            extra_json: "{\"logprobs\":{\"a\":\r\n1e0},\"odd\":[1]}".to_owned(),
            ..Chunk::default()
        };
        let expected = json!({
            "id": "chatcmpl-req_1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "m",
            "choices": [{
                "index": 1,
                "delta": {
                    "role": "assistant", "content": "a\n\"b\"", "reasoning_content": "hm",
                    "tool_calls": [{"index": 0}], "odd": [1],
                },
                "logprobs": {"a": 1.0},
                "finish_reason": "stop",
            }],
        });
        assert_eq!(said(&chunk, true), expected);
        let split = Chunk { token_count: 1, ..Chunk::default() };
        let expected = json!([{"index": 0, "delta": {"content": ""}, "finish_reason": null}]);
        assert_eq!(said(&split, false)["choices"], expected);
    }

    #[test]
    fn json_that_is_none_does_not_pass() {
        let envelope = Envelope::new("req_1", "m", Wall::from_millis(0));
        for (calls, extra) in [("{}", ""), ("[1],\"a\":1", ""), ("", "[1]"), ("", "{}}")] {
            let chunk = Chunk {
                tool_calls_json: calls.to_owned(),
                extra_json: extra.to_owned(),
                ..Chunk::default()
            };
            assert!(envelope.event(&chunk, false).is_err(), "{calls} {extra}");
        }
    }

    #[test]
    fn the_bill_adds_up() {
        let usage = Usage { prompt: Tokens(3), completion: Tokens(4) };
        let text = usage_text(usage, 2);
        let expected = json!({
            "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 2},
        });
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
    }
}
