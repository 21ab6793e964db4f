//! Errors in the OpenAI shape: `{"error": {"message", "type", "code", "param"}}`.
//!
//! Official SDKs choose their exception from the status, wait by `Retry-After` and obey `x-should-retry`; people read
//! `message`. So each error carries all of them, and each message says what to do next.

use std::borrow::Cow;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Serialize;

/// One refusal, ready to be written. Boxed: it is in the way of every `Result` of the good path.
#[derive(Clone, Debug)]
pub(super) struct ApiError(Box<Inside>);

/// What a refusal says.
#[derive(Clone, Debug)]
pub(super) struct Inside {
    pub(super) status: StatusCode,
    pub(super) kind: &'static str,
    pub(super) code: &'static str,
    pub(super) message: Cow<'static, str>,
    pub(super) param: Option<Cow<'static, str>>,
    pub(super) retry_after: Option<Duration>,
    pub(super) should_retry: Option<bool>,
    /// Upstream's own error body, sent instead of ours.
    pub(super) verbatim: Option<Bytes>,
}

/// `type` where the request is at fault.
pub(super) const INVALID: &str = "invalid_request_error";
/// `type` where the gateway or a replica is at fault.
pub(super) const SERVER: &str = "server_error";

/// An error without retry advice.
pub(super) fn new(
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    message: impl Into<Cow<'static, str>>,
) -> ApiError {
    ApiError(Box::new(Inside {
        status,
        kind,
        code,
        message: message.into(),
        param: None,
        retry_after: None,
        should_retry: None,
        verbatim: None,
    }))
}

/// 400: the request cannot be understood.
pub(super) fn invalid(code: &'static str, message: impl Into<Cow<'static, str>>) -> ApiError {
    new(StatusCode::BAD_REQUEST, INVALID, code, message)
}

/// 401, in the words of OpenAI's code, with the challenge RFC 9110 asks for.
pub(super) fn unauthorized(message: impl Into<Cow<'static, str>>) -> ApiError {
    new(StatusCode::UNAUTHORIZED, INVALID, "invalid_api_key", message)
}

/// 403: known, but not allowed this.
pub(super) fn forbidden(code: &'static str, message: impl Into<Cow<'static, str>>) -> ApiError {
    new(StatusCode::FORBIDDEN, "permission_error", code, message)
}

impl ApiError {
    /// Names the field or header at fault.
    pub(super) fn param(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.param = Some(name.into());
        self
    }

    /// Says when to come back.
    pub(super) fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Tells SDKs that would retry by status not to, or those that would not to do so.
    pub(super) fn should_retry(mut self, yes: bool) -> Self {
        self.should_retry = Some(yes);
        self
    }

    /// The body on one line, as an event's data must be.
    pub(super) fn line(&self) -> String {
        let own = self.verbatim.as_deref().and_then(|own| core::str::from_utf8(own).ok());
        own.filter(|own| !own.contains(['\n', '\r'])).map_or_else(|| self.json(), str::to_owned)
    }

    /// The body, in our own words.
    pub(super) fn json(&self) -> String {
        let detail = Detail {
            message: &self.message,
            kind: self.kind,
            param: self.param.as_deref(),
            code: self.code,
        };
        serde_json::to_string(&Wrapped { error: detail })
            .expect("strings and a fixed struct always serialize")
    }
}

impl Deref for ApiError {
    type Target = Inside;
    fn deref(&self) -> &Inside {
        &self.0
    }
}

impl DerefMut for ApiError {
    fn deref_mut(&mut self) -> &mut Inside {
        &mut self.0
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = self.verbatim.clone().unwrap_or_else(|| Bytes::from(self.json()));
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(wait) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        if let Some(yes) = self.should_retry {
            let value = HeaderValue::from_static(if yes { "true" } else { "false" });
            headers.insert(HeaderName::from_static("x-should-retry"), value);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"pointsman\"");
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// Whole seconds, rounded up and never zero: an SDK that waits less would be refused again.
pub(super) fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

/// A client's word inside one of our messages: quoted, bounded, without control characters.
pub(super) fn quoted(text: &str) -> String {
    // Long enough to recognize a model's or a path's name, too short to carry a conversation.
    const CHARS_MAX: usize = 96;
    let mut shown: String =
        text.chars().take(CHARS_MAX).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        shown.push('…');
    }
    format!("'{shown}'")
}

#[derive(Serialize)]
struct Wrapped<'a> {
    error: Detail<'a>,
}

#[derive(Serialize)]
struct Detail<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: &'a str,
}
