//! From what an endpoint says to what it means.
//!
//! | status | means |
//! |---|---|
//! | any 4xx whose error code says the account is empty, 402 | endpoint fault: account empty |
//! | 400, 404 whose error names the model as unknown | endpoint fault: unknown model |
//! | 401 | endpoint fault: key refused |
//! | 403 | endpoint fault: forbidden |
//! | other 429, 503 | backpressure |
//! | 405, 406, 407, 408, 415, 421, 425, 426 | the replica's failure: our requests never deserve these |
//! | all other 4xx | client error |
//! | all other 5xx | the replica's failure |
//! | anything else that is not 2xx | garbage (redirects are not followed: a key must not travel) |
//!
//! Codes were collected from OpenAI, vLLM, SGLang, Ollama, DeepSeek and DashScope. Messages decide only where there is no
//! code, and only for the unknown model: a refusal's wording may quote the prompt, and a prompt must not decide.

use core::fmt;

use serde_json::Value;

use control::outcome::{Failure, Fault};

/// What an error object says. All empty where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    kind: String,
    code: String,
    param: String,
    message: String,
}

impl Said {
    /// Reads the usual shapes: `{"error": {...}}`, `{"error": "text"}`, and the same fields without the envelope.
    pub(super) fn read(body: &[u8]) -> Self {
        let Ok(Value::Object(body)) = serde_json::from_slice(body) else { return Self::default() };
        match body.get("error") {
            Some(Value::Object(error)) => Self::fields(error),
            Some(Value::String(message)) => {
                Self { message: message.clone(), ..Self::fields(&body) }
            }
            _ => Self::fields(&body),
        }
    }

    /// Whether its code is this one, in lower case.
    pub(super) fn is_called(&self, code: &str) -> bool {
        self.code == code
    }

    fn fields(object: &serde_json::Map<String, Value>) -> Self {
        let text = |name| match object.get(name) {
            Some(Value::String(text)) => text.to_ascii_lowercase(),
            Some(Value::Number(number)) => number.to_string(),
            _ => String::new(),
        };
        Self {
            kind: text("type"),
            code: text("code"),
            param: text("param"),
            message: text("message"),
        }
    }

    fn account_empty(&self) -> bool {
        let known = ["insufficient_quota", "billing_hard_limit_reached", "arrearage", "402"];
        known.contains(&self.code.as_str()) || known.contains(&self.kind.as_str())
    }

    /// `when_unclear`: what an error that speaks of the model, without a code that says so, is taken for.
    fn unknown_model(&self, when_unclear: bool) -> bool {
        if matches!(self.code.as_str(), "model_not_found" | "model_not_exist" | "modelnotfound") {
            return true;
        }
        if self.message == "model not exist" {
            return true;
        }
        let speaks_of_it = self.param == "model"
            || (self.message.contains("model")
                && ["not exist", "not found", "unknown", "no such", "not supported"]
                    .iter()
                    .any(|words| self.message.contains(words)));
        when_unclear && speaks_of_it
    }

    fn full(&self) -> bool {
        let full = |text: &str| {
            matches!(text, "429" | "503")
                || ["rate_limit", "ratelimit", "overloaded", "throttling", "too_many_requests"]
                    .iter()
                    .any(|words| text.contains(words))
        };
        full(&self.code) || full(&self.kind)
    }

    fn blames_the_request(&self) -> Option<u16> {
        match (self.code.as_str(), self.kind.as_str()) {
            ("400", _) => Some(400),
            ("413", _) => Some(413),
            ("422", _) => Some(422),
            (_, "invalid_request_error" | "badrequesterror") => Some(400),
            _ => None,
        }
    }
}

/// Type and code only, cut to what a code may look like: a message may quote the prompt or the key.
impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (label(&self.kind), label(&self.code)) {
            (None, None) => f.write_str("no error code"),
            (Some(kind), None) => write!(f, "type {kind}"),
            (None, Some(code)) => write!(f, "code {code}"),
            (Some(kind), Some(code)) => write!(f, "type {kind}, code {code}"),
        }
    }
}

fn label(text: &str) -> Option<&str> {
    // Longer than every known code; whatever is longer is a sentence.
    const LENGTH_MAX: usize = 64;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let fits = !text.is_empty() && text.len() <= LENGTH_MAX && text.bytes().all(allowed);
    // A key in the place of a code would be odd, and must not be printed either.
    (fits && !text.starts_with("sk-")).then_some(text)
}

/// What a refusal means. See the table above.
pub(super) fn of_status(status: u16, said: &Said) -> Failure {
    match status {
        402 => Failure::EndpointFault(Fault::AccountEmpty),
        400..=499 if said.account_empty() => Failure::EndpointFault(Fault::AccountEmpty),
        400 if said.unknown_model(false) => Failure::EndpointFault(Fault::UnknownModel),
        404 if said.unknown_model(true) => Failure::EndpointFault(Fault::UnknownModel),
        401 => Failure::EndpointFault(Fault::KeyRefused),
        403 => Failure::EndpointFault(Fault::Forbidden),
        429 | 503 => Failure::Backpressure(status),
        405..=408 | 415 | 421 | 425 | 426 => Failure::Status(status),
        400..=499 => Failure::ClientError(status),
        500..=599 => Failure::Status(status),
        _ => Failure::Garbage,
    }
}

/// What an error object inside a success means, and the status it stands for.
pub(super) fn in_answer(said: &Said) -> (Failure, u16) {
    if said.account_empty() {
        return (Failure::EndpointFault(Fault::AccountEmpty), 402);
    }
    if said.unknown_model(said.code == "404") {
        return (Failure::EndpointFault(Fault::UnknownModel), 404);
    }
    if said.full() {
        let status = if said.code == "503" { 503 } else { 429 };
        return (Failure::Backpressure(status), status);
    }
    match said.blames_the_request() {
        Some(status) => (Failure::ClientError(status), status),
        None => (Failure::ErrorInAnswer, 200),
    }
}

#[cfg(test)]
mod tests;
