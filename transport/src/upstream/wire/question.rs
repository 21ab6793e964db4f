//! From the body that a client of the OpenAI API sent to the wire's question.
//!
//! What the wire has a field for is read; every other member travels as it is written, in `extra_json`. A member that is
//! `null` is one that is not there.

use bytes::Bytes;
use proto::inference::v1::message::Content;
use proto::inference::v1::{Message, Parameters, StreamInferenceRequest};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::refusal::of_request;
use crate::members::{Members, Writer, present};
use crate::upstream::failed::Failed;

/// The question that `body` asks. Its model is the endpoint's name for it already.
///
/// # Errors
/// A client error that says which member is wrong.
pub(super) fn read(body: &Bytes, request_id: &str) -> Result<StreamInferenceRequest, Failed> {
    let members = core::str::from_utf8(body).ok().and_then(Members::read);
    let members = members.ok_or_else(|| of_request("the body must be a JSON object", None))?;
    let mut ask = StreamInferenceRequest {
        request_id: request_id.to_owned(),
        ..StreamInferenceRequest::default()
    };
    let mut said = Parameters::default();
    let mut extra = Writer::new();
    for (key, value) in &members.0 {
        let Some(text) = present(value) else { continue };
        match &**key {
            "model" => ask.model = typed(text, "model", "a text")?,
            "messages" => ask.messages = messages(text)?,
            // The wire has no other form, and always tells its usage.
            "stream" | "stream_options" => {}
            "max_tokens" | "max_completion_tokens" => {
                let most: u64 = typed(text, key, "a whole number")?;
                let most = u32::try_from(most).unwrap_or(u32::MAX);
                said.max_tokens = Some(said.max_tokens.map_or(most, |other| other.min(most)));
            }
            "temperature" => said.temperature = Some(typed(text, key, "a number")?),
            "top_p" => said.top_p = Some(typed(text, key, "a number")?),
            "seed" => said.seed = Some(typed(text, key, "a whole number")?),
            "stop" => said.stop = stops(text)?,
            _ => extra.raw(key, text),
        }
    }
    if ask.messages.is_empty() {
        return Err(of_request("messages must be a list that is not empty", Some("messages")));
    }
    said.extra_json = extra.end_if_any();
    ask.parameters = Some(said);
    Ok(ask)
}

fn typed<T: DeserializeOwned>(text: &str, param: &str, what: &str) -> Result<T, Failed> {
    let wrong = || of_request(&format!("{param} must be {what}"), Some(param));
    serde_json::from_str(text).map_err(|_| wrong())
}

fn stops(text: &str) -> Result<Vec<String>, Failed> {
    if text.starts_with('"') {
        return Ok(vec![typed(text, "stop", "a text")?]);
    }
    typed(text, "stop", "a text or a list of texts")
}

fn messages(text: &str) -> Result<Vec<Message>, Failed> {
    let wrong = || of_request("messages must be a list of objects", Some("messages"));
    let list: Vec<&RawValue> = serde_json::from_str(text).map_err(|_| wrong())?;
    list.into_iter()
        .enumerate()
        .map(|(at, text)| {
            let members = Members::read(text.get()).ok_or_else(wrong)?;
            message(&members, &format!("messages[{at}]"))
        })
        .collect()
}

fn message(members: &Members<'_>, at: &str) -> Result<Message, Failed> {
    let mut message = Message::default();
    let mut extra = Writer::new();
    for (key, value) in &members.0 {
        let Some(text) = present(value) else { continue };
        let param = format!("{at}.{key}");
        match &**key {
            "role" => message.role = typed(text, &param, "a text")?,
            "content" if text.starts_with('[') => {
                message.content = Some(Content::PartsJson(text.to_owned()));
            }
            "content" => {
                let text = typed(text, &param, "a text or a list of parts")?;
                message.content = Some(Content::Text(text));
            }
            "name" => message.name = typed(text, &param, "a text")?,
            "tool_call_id" => message.tool_call_id = typed(text, &param, "a text")?,
            "tool_calls" if text.starts_with('[') => message.tool_calls_json = text.to_owned(),
            "tool_calls" => {
                return Err(of_request(&format!("{param} must be a list"), Some(&param)));
            }
            _ => extra.raw(key, text),
        }
    }
    if message.role.is_empty() {
        let param = format!("{at}.role");
        return Err(of_request(&format!("{param} is missing"), Some(&param)));
    }
    message.extra_json = extra.end_if_any();
    Ok(message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use super::*;

    fn asked(body: &str) -> StreamInferenceRequest {
        read(&Bytes::copy_from_slice(body.as_bytes()), "req_1").unwrap()
    }

    fn refused(body: &str) -> String {
        let failed = read(&Bytes::copy_from_slice(body.as_bytes()), "req_1").unwrap_err();
        String::from_utf8(failed.upstream.unwrap().body.to_vec()).unwrap()
    }

    #[test]
    fn every_member_finds_its_field_and_the_rest_travels_as_it_is() {
        let ask = asked(
            r#"{"model":"m","stream":true,"stream_options":{"include_usage":true},"max_tokens":9,
            "max_completion_tokens":7,"temperature":1,"seed":-3,"stop":"x","top_p":null,
            "tools":[ 1 ],"n":1e0,"messages":[{"role":"user","content":"a\n","name":"b"},
            {"role":"assistant","content":null,"tool_calls":[{"id":"c"}],"refusal":"no"},
            {"role":"tool","tool_call_id":"c","content":[{"type":"text"}]}]}"#,
        );
        assert_eq!((&*ask.model, &*ask.request_id), ("m", "req_1"));
        let said = ask.parameters.unwrap();
        assert_eq!((said.max_tokens, said.temperature, said.top_p), (Some(7), Some(1.0), None));
        assert_eq!((said.seed, said.stop), (Some(-3), vec!["x".to_owned()]));
        assert_eq!(said.extra_json, r#"{"tools":[ 1 ],"n":1e0}"#);
        let [user, called, tool] = &ask.messages[..] else { panic!() };
        assert_eq!(user.content, Some(Content::Text("a\n".to_owned())));
        assert_eq!((&*user.name, &*user.extra_json), ("b", ""));
        assert_eq!((&called.content, &*called.tool_calls_json), (&None, r#"[{"id":"c"}]"#));
        assert_eq!(called.extra_json, r#"{"refusal":"no"}"#);
        assert_eq!(tool.content, Some(Content::PartsJson(r#"[{"type":"text"}]"#.to_owned())));
    }

    #[test]
    fn what_cannot_be_asked_says_which_member() {
        for (body, word) in [
            ("[]", "JSON object"),
            (r#"{"model":"m"}"#, "messages"),
            (r#"{"model":1,"messages":[{"role":"user"}]}"#, "model"),
            (r#"{"messages":[1]}"#, "list of objects"),
            (r#"{"messages":[{"content":"x"}]}"#, "messages[0].role"),
            (r#"{"messages":[{"role":"user","content":1}]}"#, "messages[0].content"),
            (r#"{"messages":[{"role":"user","tool_calls":1}]}"#, "messages[0].tool_calls"),
            (r#"{"messages":[{"role":"user"}],"stop":[1]}"#, "stop"),
            (r#"{"messages":[{"role":"user"}],"max_tokens":-1}"#, "max_tokens"),
            (r#"{"messages":[{"role":"user"}],"temperature":"hot"}"#, "temperature"),
        ] {
            assert!(refused(body).contains(word), "{body}: {}", refused(body));
        }
    }

    #[test]
    fn no_cap_is_too_large_to_be_asked_for() {
        let ask = asked(r#"{"messages":[{"role":"user"}],"max_tokens":99999999999}"#);
        assert_eq!(ask.parameters.unwrap().max_tokens, Some(u32::MAX));
    }
}
