//! From the wire's question to the body that an OpenAI-compatible server takes.

use proto::inference::v1::message::Content;
use proto::inference::v1::{Message, Parameters, StreamInferenceRequest};
use serde_json::value::RawValue;
use tonic::Status;

use crate::members::{Members, Writer};

/// Members that this side decides on.
const OURS: [&str; 12] = [
    "model",
    "messages",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "session_id",
    "user_id",
];
const OURS_IN_MESSAGE: [&str; 5] = ["role", "content", "name", "tool_call_id", "tool_calls"];

/// The body, asking for a stream with its usage.
pub(crate) fn body(ask: &StreamInferenceRequest, model: Option<&str>) -> Result<String, Status> {
    let said = ask.parameters.as_ref();
    let mut body = writer(model.unwrap_or(&ask.model), &ask.messages, said)?;
    streamed(&mut body, true);
    Ok(body.end())
}

/// Asks for a stream, and for an event with its usage where it is to have one.
pub(crate) fn streamed(body: &mut Writer, usage_event: bool) {
    body.raw("stream", "true");
    if usage_event {
        body.raw("stream_options", r#"{"include_usage":true}"#);
    }
}

/// The body without a word on how the answer is to come; more can be written to it.
pub(crate) fn writer(
    model: &str,
    messages: &[Message],
    said: Option<&Parameters>,
) -> Result<Writer, Status> {
    let mut body = Writer::new();
    body.value("model", model);
    let messages: Vec<String> = messages.iter().map(message).collect::<Result<_, _>>()?;
    body.raw("messages", &format!("[{}]", messages.join(",")));
    if let Some(said) = said {
        parameters(said, &mut body)?;
    }
    Ok(body)
}

fn parameters(said: &Parameters, body: &mut Writer) -> Result<(), Status> {
    if let Some(most) = said.max_tokens {
        body.value("max_tokens", &most);
    }
    for (key, number) in [("temperature", said.temperature), ("top_p", said.top_p)] {
        let Some(number) = number else { continue };
        if !number.is_finite() {
            return Err(Status::invalid_argument(format!("{key} must be a finite number")));
        }
        body.value(key, &number);
    }
    if let Some(seed) = said.seed {
        body.value("seed", &seed);
    }
    if !said.stop.is_empty() {
        body.value("stop", &said.stop);
    }
    rest(&said.extra_json, &OURS, "parameters.extra_json", body)
}

fn message(message: &Message) -> Result<String, Status> {
    if message.role.is_empty() {
        return Err(Status::invalid_argument("a message has no role"));
    }
    let mut written = Writer::new();
    written.value("role", &message.role);
    match &message.content {
        Some(Content::Text(text)) => written.value("content", text),
        Some(Content::PartsJson(parts)) => written.raw("content", list(parts, "parts_json")?),
        None => written.raw("content", "null"),
    }
    written.text("name", &message.name);
    written.text("tool_call_id", &message.tool_call_id);
    if !message.tool_calls_json.is_empty() {
        written.raw("tool_calls", list(&message.tool_calls_json, "tool_calls_json")?);
    }
    rest(&message.extra_json, &OURS_IN_MESSAGE, "a message's extra_json", &mut written)?;
    Ok(written.end())
}

/// JSON that is put in as it is must be JSON: otherwise it could say more than its field may.
fn list<'a>(text: &'a str, field: &str) -> Result<&'a str, Status> {
    let wrong = || Status::invalid_argument(format!("{field} must be a JSON array"));
    let value: &RawValue = serde_json::from_str(text).map_err(|_| wrong())?;
    Some(value.get()).filter(|value| value.starts_with('[')).ok_or_else(wrong)
}

/// All other members, except those that have a field of their own.
fn rest(text: &str, ours: &[&str], field: &str, into: &mut Writer) -> Result<(), Status> {
    let members = Members::read(text);
    let wrong = || Status::invalid_argument(format!("{field} must be a JSON object"));
    for (key, value) in members.ok_or_else(wrong)?.0 {
        if !ours.contains(&&*key) {
            into.raw(&key, value.get());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use serde_json::{Value, json};

    use super::*;

    fn user(text: &str) -> Message {
        let content = Some(Content::Text(text.to_owned()));
        Message { role: "user".to_owned(), content, ..Message::default() }
    }

    fn ask(messages: Vec<Message>, parameters: Parameters) -> StreamInferenceRequest {
        StreamInferenceRequest {
            model: "m".to_owned(),
            messages,
            parameters: Some(parameters),
            ..StreamInferenceRequest::default()
        }
    }

    #[test]
    fn every_field_finds_its_place() {
        let called = Message {
            role: "assistant".to_owned(),
            tool_calls_json: r#"[{"id":"c1"}]"#.to_owned(),
            extra_json: r#"{"refusal":"no","role":"system"}"#.to_owned(),
            ..Message::default()
        };
        let parameters = Parameters {
            max_tokens: Some(5),
            temperature: Some(0.5),
            seed: Some(-1),
            stop: vec!["x".to_owned()],
            extra_json: r#"{"tools":[1],"stream":false,"n":2}"#.to_owned(),
            ..Parameters::default()
        };
        let body =
            body(&ask(vec![user("hi \"you\""), called], parameters), Some("theirs")).unwrap();
        let expected = json!({
            "model": "theirs",
            "messages": [
                {"role": "user", "content": "hi \"you\""},
                {"role": "assistant", "content": null, "tool_calls": [{"id": "c1"}], "refusal": "no"},
            ],
            "stream": true,
            "stream_options": {"include_usage": true},
            "max_tokens": 5, "temperature": 0.5, "seed": -1, "stop": ["x"], "tools": [1], "n": 2,
        });
        assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);
    }

    #[test]
    fn what_is_not_the_json_it_should_be_is_refused() {
        let parts =
            |text: &str| Message { content: Some(Content::PartsJson(text.to_owned())), ..user("") };
        for bad in ["", "{}", "[", "[1],\"model\":\"x\"", "1"] {
            let refused = body(&ask(vec![parts(bad)], Parameters::default()), None).unwrap_err();
            assert!(refused.message().contains("parts_json"), "{bad}: {refused}");
        }
        let extra = Parameters { extra_json: "[1]".to_owned(), ..Parameters::default() };
        let refused = body(&ask(vec![user("hi")], extra), None).unwrap_err();
        assert!(refused.message().contains("extra_json"), "{refused}");
        let endless = Parameters { top_p: Some(f64::NAN), ..Parameters::default() };
        assert!(body(&ask(vec![user("hi")], endless), None).is_err());
    }
}
