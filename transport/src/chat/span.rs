//! One attempt, as a trace shows it: whom it asked, what it cost, how it ended.

use control::outcome::AttemptEnd;
use control::plane::Dispatch;
use control::units::Tokens;
use opentelemetry::KeyValue;
use tokio::time::Instant;

use crate::catalog::Catalog;
use crate::exchange::{Call, Operation};
use crate::members::Members;
use crate::trace::{Span, Trace, key};
use crate::upstream::Event;

/// A model's name of more bytes than this is not one.
const NAME_MAX: usize = 256;

/// The span of an attempt. One that is dropped before its end belongs to a client that left.
#[derive(Debug)]
pub(super) struct AttemptSpan {
    span: Span,
    /// Known where somebody will read of it.
    began: Option<Instant>,
    /// What others wrote of the answer before.
    before: Tokens,
    ended: bool,
}

impl AttemptSpan {
    pub fn new(call: &Call, dispatch: &Dispatch, catalog: &Catalog) -> Self {
        let operation = match call.operation {
            Operation::ChatCompletions => "chat",
            Operation::Embeddings => "embeddings",
        };
        let mut span = call.trace.call(|| format!("{operation} {}", call.model));
        let before = dispatch.resume.unwrap_or_default();
        if !span.is_read() {
            return Self { span, began: None, before, ended: false };
        }
        span.set(key::OPERATION, operation);
        span.set(key::REQUEST_ID, dispatch.request.to_string());
        span.set(key::ATTEMPT, i64::from(dispatch.number));
        span.set(key::REPLICA, dispatch.endpoint_name.to_string());
        span.maybe(key::RESUMED_AT, dispatch.resume.map(count));
        let route = catalog.route(&dispatch.endpoint_name);
        let own = route.and_then(|route| route.models.get(&*call.model)?.as_deref());
        span.set(key::REQUEST_MODEL, own.unwrap_or(&call.model).to_owned());
        if let Some(route) = route {
            let (host, port) = route.target.base_url.host_and_port();
            span.set(key::PROVIDER, route.provider.clone());
            span.set(key::SERVER_ADDRESS, host.to_owned());
            span.set(key::SERVER_PORT, i64::from(port));
        }
        Self { span, began: Some(Instant::now()), before, ended: false }
    }

    /// The place within it.
    pub fn trace(&self) -> &Trace {
        self.span.trace()
    }

    /// The first token is among these events.
    pub fn begins(&mut self, opening: &[Event]) {
        let Some(began) = self.began else { return };
        self.span.event(key::FIRST_TOKEN_EVENT, Vec::new());
        self.span.set(key::FIRST_CHUNK, began.elapsed().as_secs_f64());
        self.answered_by(opening.iter().find_map(|event| model_of(data(&event.raw)?)));
    }

    /// The whole answer is here.
    pub fn whole(&mut self, body: &[u8]) {
        if self.began.is_some() {
            self.answered_by(model_of(body));
        }
    }

    /// It goes on with an answer of which the client has so many tokens.
    pub fn seam(&mut self, delivered: Tokens) {
        if self.began.is_some() {
            let at = KeyValue::new(key::RESUMED_AT, count(delivered));
            self.span.event(key::SEAM_EVENT, vec![at]);
        }
    }

    fn answered_by(&mut self, model: Option<String>) {
        self.span.maybe(key::RESPONSE_MODEL, model);
    }

    /// It ends in this way.
    pub fn end(&mut self, end: &AttemptEnd) {
        match end {
            AttemptEnd::Completed { usage, .. } => {
                self.span.set(key::INPUT_TOKENS, count(usage.prompt));
                self.over("completed", usage.completion);
            }
            AttemptEnd::Failed { failure, produced, .. } => {
                self.span.fail(failure.name());
                self.over(failure.name(), *produced);
            }
            AttemptEnd::Cancelled { produced } => self.over("cancelled", *produced),
        }
    }

    /// Nobody waits for it any more.
    pub fn left(&mut self, answer: Tokens) {
        self.over("client_gone", answer);
    }

    /// `answer` is all that there is of it, whoever wrote it.
    fn over(&mut self, outcome: &'static str, answer: Tokens) {
        self.ended = true;
        self.span.set(key::OUTCOME, outcome);
        self.span.set(key::OUTPUT_TOKENS, count(answer.saturating_sub(self.before)));
        drop(std::mem::take(&mut self.span));
    }
}

impl Drop for AttemptSpan {
    fn drop(&mut self) {
        if !self.ended {
            self.left(self.before);
        }
    }
}

fn count(tokens: Tokens) -> i64 {
    i64::try_from(tokens.0).unwrap_or(i64::MAX)
}

/// What an event of a stream says.
fn data(event: &[u8]) -> Option<&[u8]> {
    event.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"data:"))
}

/// The model that an answer, or a piece of one, names.
fn model_of(json: &[u8]) -> Option<String> {
    let members = Members::read(core::str::from_utf8(json).ok()?.trim())?;
    let (_, text) = members.0.iter().find(|(key, _)| key == "model")?;
    let name: String = serde_json::from_str(text.get()).ok()?;
    (name.len() <= NAME_MAX).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_of_an_answer_is_found_and_nonsense_is_none() {
        let event = b": hello\nevent: x\ndata: {\"id\":1,\"model\":\"m-1\",\"choices\":[]}\n\n";
        assert_eq!(data(event).and_then(model_of).as_deref(), Some("m-1"));
        let long = format!("{{\"model\":\"{}\"}}", "m".repeat(NAME_MAX + 1));
        for nonsense in ["[DONE]", "{\"model\":1}", "{}", "", long.as_str()] {
            assert_eq!(model_of(nonsense.as_bytes()), None, "{nonsense}");
        }
        assert_eq!(data(b": a comment\n\n"), None);
    }
}
