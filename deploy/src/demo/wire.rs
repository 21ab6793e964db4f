//! The API's shapes, as far as a demo replica needs them.

use serde::Deserialize;
use serde_json::{Value, json};

use control::rng::hash_bytes;

use super::Options;
use super::text::Words;

/// A request for a chat completion. Unknown fields (tools, temperature, ...) are ignored.
#[derive(Debug, Deserialize)]
pub(super) struct ChatAsk {
    pub(super) model: Option<String>,
    #[serde(default)]
    messages: Vec<Message>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    n: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(default)]
    role: String,
    #[serde(default)]
    content: Value,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

impl StreamOptions {
    fn usage(&self) -> bool {
        self.include_usage == Some(true)
    }
}

impl ChatAsk {
    /// # Errors
    /// What is wrong with the request, for its sender.
    pub(super) fn read(body: &[u8]) -> Result<Self, String> {
        let ask: Self = serde_json::from_slice(body)
            .map_err(|error| format!("the body is no chat request: {error}"))?;
        if ask.messages.is_empty() {
            return Err("'messages' must hold at least one message".to_owned());
        }
        if ask.n.is_some_and(|n| n != 1) {
            return Err("this replica writes one choice only: leave out 'n'".to_owned());
        }
        if ask.limit() == Some(0) {
            return Err("'max_tokens' must be at least 1".to_owned());
        }
        Ok(ask)
    }

    pub(super) fn streams(&self) -> bool {
        self.stream == Some(true)
    }

    pub(super) fn wants_usage(&self) -> bool {
        !self.streams() || self.stream_options.as_ref().is_some_and(StreamOptions::usage)
    }

    fn limit(&self) -> Option<u64> {
        [self.max_tokens, self.max_completion_tokens].into_iter().flatten().min()
    }

    /// The text of the last message by a user.
    fn prompt(&self) -> String {
        let by_user = self.messages.iter().rev().find(|message| message.role == "user");
        match by_user.map(|message| &message.content) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => {
                let texts = parts.iter().filter_map(|part| part.get("text")?.as_str());
                texts.collect::<Vec<_>>().join(" ")
            }
            _ => String::new(),
        }
    }
}

/// An answer, written in advance and handed out at its pace.
pub(super) struct ChatAnswer {
    id: String,
    model: String,
    created: u64,
    prompt_tokens: u64,
    pub(super) tokens: Vec<String>,
    finish_reason: &'static str,
}

impl ChatAnswer {
    pub(super) fn new(
        options: &Options,
        ask: &ChatAsk,
        body: &[u8],
        number: u64,
        started: u64,
    ) -> Self {
        let limit = ask.limit().unwrap_or(u64::MAX);
        let length = options.tokens.min(limit);
        // An answer is held in memory; nobody tries things with a longer one.
        const LENGTH_MAX: u64 = 1_000_000;
        let length = usize::try_from(length.min(LENGTH_MAX)).unwrap_or(0);
        let tokens = Words::new(&ask.prompt(), options.seed).take(length).collect();
        let unique = hash_bytes(options.seed ^ started, &number.to_le_bytes());
        Self {
            id: format!("chatcmpl-{unique:016x}"),
            model: ask.model.clone().unwrap_or_default(),
            created: started,
            prompt_tokens: transport::tokens::estimate_prompt(body).0,
            tokens,
            finish_reason: if options.tokens > limit { "length" } else { "stop" },
        }
    }

    /// One chunk of a stream.
    pub(super) fn chunk(&self, delta: &Value, finish_reason: Option<&str>) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason}],
        })
    }

    pub(super) fn last_chunk(&self) -> Value {
        self.chunk(&json!({}), Some(self.finish_reason))
    }

    /// The chunk that reports what was used.
    pub(super) fn usage_chunk(&self) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [],
            "usage": self.usage(),
        })
    }

    /// The whole answer in one piece.
    pub(super) fn whole(&self, with_usage: bool) -> Value {
        let message =
            json!({"role": "assistant", "content": self.tokens.concat(), "refusal": null});
        let mut whole = json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [{
                "index": 0,
                "message": message,
                "logprobs": null,
                "finish_reason": self.finish_reason,
            }],
        });
        if with_usage {
            whole["usage"] = self.usage();
        }
        whole
    }

    fn usage(&self) -> Value {
        let completion = self.tokens.len() as u64;
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
        })
    }
}

/// An error object, as it stands in the middle of an answer.
pub(super) fn error_object() -> Value {
    let message = "the demo replica was told to fail here";
    json!({"error": {"message": message, "type": "server_error", "param": null, "code": null}})
}
