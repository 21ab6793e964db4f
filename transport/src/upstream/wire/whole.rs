//! An answer in one piece, put together from chunks.

use std::collections::BTreeMap;

use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use proto::inference::v1::StreamInferenceResponse as Chunk;
use serde_json::{Map, Value};

use super::SESSION_ID;
use super::stream::WireStream;
use super::tally::garbage;
use super::text::{belongs_to_choice, tool_calls, usage_text};
use crate::members::Writer;
use crate::upstream::failed::Failed;
use crate::upstream::whole::Whole;

/// Waits for all of it.
pub(super) async fn collect(mut stream: WireStream) -> Result<Whole, Failed> {
    let mut choices: BTreeMap<u32, Choice> = BTreeMap::new();
    while let Some(chunk) = stream.chunk().await {
        let Some((chunk, _)) = chunk? else { break };
        let choice = choices.entry(chunk.choice).or_default();
        if let Err(failed) = choice.insert(chunk) {
            return Err(stream.broken(failed));
        }
    }
    let usage = stream.usage();
    let mut body = stream.envelope().open("chat.completion");
    let written: Vec<String> =
        choices.into_iter().map(|(index, choice)| choice.write(index)).collect();
    body.raw("choices", &format!("[{}]", written.join(",")));
    if let Some(usage) = usage {
        body.raw("usage", &usage_text(usage, stream.cached()));
    }
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let session = stream.headers().get(SESSION_ID).cloned();
    headers.extend(session.map(|session| (SESSION_ID, session)));
    Ok(Whole {
        status: StatusCode::OK,
        headers,
        upstream_request_id: None,
        body: body.end().into(),
        usage,
        estimated: stream.produced(),
        finished: stream.finished(),
    })
}

/// One of the answer's choices, as far as it has come.
#[derive(Default)]
struct Choice {
    text: String,
    reasoning: String,
    refusal: String,
    calls: BTreeMap<u64, Value>,
    /// The other members, of the choice and of its message.
    extra: Map<String, Value>,
    finish_reason: String,
}

impl Choice {
    fn insert(&mut self, chunk: Chunk) -> Result<(), Failed> {
        if !chunk.tool_calls_json.is_empty() {
            let pieces: Result<Vec<Map<String, Value>>, _> =
                serde_json::from_str(tool_calls(&chunk)?);
            for piece in pieces.map_err(|_| garbage("a tool call is no object"))? {
                self.call(piece);
            }
        }
        if !chunk.extra_json.is_empty() {
            let extra: Result<Map<String, Value>, _> = serde_json::from_str(&chunk.extra_json);
            for (key, value) in extra.map_err(|_| garbage("extra_json is no JSON object"))? {
                merge(self.extra.entry(key).or_insert(Value::Null), value);
            }
        }
        self.text.push_str(&chunk.text);
        self.reasoning.push_str(&chunk.reasoning);
        self.refusal.push_str(&chunk.refusal);
        self.finish_reason = chunk.finish_reason;
        Ok(())
    }

    /// Pieces of one call have its index; without one, a piece is a call of its own.
    fn call(&mut self, mut piece: Map<String, Value>) {
        let index = piece.remove("index").and_then(|index| index.as_u64());
        let behind = || self.calls.last_key_value().map_or(0, |(last, _)| last.saturating_add(1));
        let index = index.unwrap_or_else(behind);
        merge_call(self.calls.entry(index).or_insert(Value::Null), Value::Object(piece));
    }

    fn write(self, index: u32) -> String {
        let mut message = Writer::new();
        message.value("role", "assistant");
        let says_nothing =
            self.text.is_empty() && (!self.calls.is_empty() || !self.refusal.is_empty());
        message.value("content", &(!says_nothing).then_some(self.text));
        message.text("reasoning_content", &self.reasoning);
        message.text("refusal", &self.refusal);
        if !self.calls.is_empty() {
            message.value("tool_calls", &self.calls.into_values().collect::<Vec<_>>());
        }
        let mut choice = Writer::new();
        choice.value("index", &index);
        for (key, value) in &self.extra {
            let place = if belongs_to_choice(key) { &mut choice } else { &mut message };
            place.value(key, value);
        }
        choice.raw("message", &message.end());
        choice.value("finish_reason", &self.finish_reason);
        choice.end()
    }
}

/// Lists grow (`logprobs` come piece by piece), objects are merged, and of anything else the last counts.
fn merge(into: &mut Value, piece: Value) {
    match (into, piece) {
        (Value::Object(into), Value::Object(piece)) => {
            for (key, value) in piece {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(piece)) => into.extend(piece),
        (_, Value::Null) => {}
        (into, piece) => *into = piece,
    }
}

/// As [`merge`], except that the texts of a function's arguments are one text in pieces.
fn merge_call(into: &mut Value, piece: Value) {
    let mut grown = into.pointer("/function/arguments").and_then(Value::as_str).map(str::to_owned);
    let more = piece.pointer("/function/arguments").and_then(Value::as_str).map(str::to_owned);
    if let (Some(grown), Some(more)) = (&mut grown, more) {
        grown.push_str(&more);
    }
    merge(into, piece);
    if let (Some(grown), Some(place)) = (grown, into.pointer_mut("/function/arguments")) {
        *place = Value::String(grown);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use serde_json::json;

    use super::*;

    fn written(chunks: &[(&str, &str, &str, &str)]) -> Value {
        let mut choice = Choice::default();
        for (text, calls, extra, finish) in chunks {
            let chunk = Chunk {
                text: (*text).to_owned(),
                tool_calls_json: (*calls).to_owned(),
                extra_json: (*extra).to_owned(),
                finish_reason: (*finish).to_owned(),
                ..Chunk::default()
            };
            choice.insert(chunk).unwrap();
        }
        serde_json::from_str(&choice.write(0)).unwrap()
    }

    #[test]
    fn pieces_of_text_and_lists_of_logprobs_grow_together() {
        let whole = written(&[
            ("He", "", r#"{"logprobs":{"content":[{"logprob":-0.25}]}}"#, ""),
            ("y", "", r#"{"logprobs":{"content":[{"logprob":-1.5}]},"odd":1}"#, ""),
            ("", "", "", "stop"),
        ]);
        let expected = json!({
            "index": 0,
            "logprobs": {"content": [{"logprob": -0.25}, {"logprob": -1.5}]},
            "message": {"role": "assistant", "content": "Hey", "odd": 1},
            "finish_reason": "stop",
        });
        assert_eq!(whole, expected);
    }

    #[test]
    fn pieces_of_tool_calls_become_whole_calls() {
        let whole = written(&[
            (
                "",
                r#"[{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":""}}]"#,
                "",
                "",
            ),
            ("", r#"[{"index":0,"function":{"arguments":"{\"x\""}}]"#, "", ""),
            ("", r#"[{"index":1,"id":"b","function":{"name":"g","arguments":"{}"}}]"#, "", ""),
            ("", r#"[{"index":0,"function":{"arguments":":1}"}}]"#, "", "tool_calls"),
        ]);
        let expected = json!({"role": "assistant", "content": null, "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}},
            {"id": "b", "function": {"name": "g", "arguments": "{}"}},
        ]});
        assert_eq!(whole["message"], expected);
    }
}
