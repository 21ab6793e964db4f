//! The headers that mean something here.
//!
//! A header that carries an identity or a promise (`Authorization`, `X-Session-Id`, `Idempotency-Key`) must come at
//! most once: proxies differ in which of two they keep, and a caller must not be one person to the proxy and another
//! to us.

use std::time::Duration;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};

use super::ask;
use super::error::{self, ApiError};
use crate::trace::Incoming;

/// What the head of a request says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Head {
    pub(super) bearer: Option<String>,
    pub(super) session_id: Option<String>,
    pub(super) idempotency_key: Option<String>,
    pub(super) patience: Option<Duration>,
}

/// Longest idempotency key, in characters, as in the IETF draft's widest implementations.
const IDEMPOTENCY_CHARS_MAX: usize = 255;

/// Longest patience: a day. Whatever waits longer has no client any more.
const PATIENCE_MAX_SECONDS: f64 = 86_400.0;

impl Head {
    /// Reads what every operation needs.
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, ApiError> {
        let session_id = single(headers, "x-session-id")?.map(str::to_owned);
        if let Some(id) = &session_id {
            ask::check_id("X-Session-Id", id)?;
        }
        Ok(Self {
            bearer: bearer(headers)?,
            session_id,
            idempotency_key: idempotency_key(headers)?,
            patience: patience(headers)?,
        })
    }
}

/// The one value of a header, as UTF-8.
pub(super) fn single<'a>(
    headers: &'a HeaderMap,
    name: &'static str,
) -> Result<Option<&'a str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        let words = format!("The header '{name}' came more than once. Send it once.");
        return Err(error::invalid("duplicate_header", words).param(name));
    }
    let text = std::str::from_utf8(value.as_bytes()).map_err(|_| {
        let words = format!("The header '{name}' is not UTF-8. Send plain text.");
        error::invalid("invalid_header", words).param(name)
    })?;
    if text.trim().is_empty() {
        let words = format!("The header '{name}' is empty. Leave it out or send a value.");
        return Err(error::invalid("empty_header", words).param(name));
    }
    Ok(Some(text.trim()))
}

/// The key of `Authorization: Bearer KEY` (RFC 6750; the scheme's name in any case).
pub(super) fn bearer(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = single(headers, "authorization")? else { return Ok(None) };
    let (scheme, key) = value.split_once(' ').unwrap_or((value, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        let words = "The Authorization header must read 'Bearer KEY'; another scheme was sent.";
        return Err(error::unauthorized(words));
    }
    if key.trim().is_empty() {
        let words = "The Authorization header names no key after 'Bearer'. Send 'Bearer KEY'.";
        return Err(error::unauthorized(words));
    }
    Ok(Some(key.trim().to_owned()))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let name = "idempotency-key";
    let Some(key) = single(headers, name)? else { return Ok(None) };
    if key.chars().count() > IDEMPOTENCY_CHARS_MAX {
        let words = format!(
            "The header '{name}' is longer than {IDEMPOTENCY_CHARS_MAX} characters. Send a UUID or a hash."
        );
        return Err(error::invalid("invalid_header", words).param(name));
    }
    Ok(Some(key.to_owned()))
}

fn patience(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let name = "x-request-timeout";
    let Some(text) = single(headers, name)? else { return Ok(None) };
    text.parse::<f64>()
        .ok()
        .filter(|&seconds| seconds > 0.0 && seconds <= PATIENCE_MAX_SECONDS)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .map(Some)
        .ok_or_else(|| {
            let words = format!(
                "The header '{name}' must be a number of seconds above 0 and at most {PATIENCE_MAX_SECONDS}."
            );
            error::invalid("invalid_header", words).param(name)
        })
}

/// What the caller says of its trace. Sent twice, it says nothing; a bad one is nobody's reason to refuse a request
/// (W3C Trace Context, 3.2.2.5).
pub(super) fn incoming(headers: &HeaderMap) -> Incoming {
    Incoming::read(|name| {
        let mut values = headers.get_all(name).iter();
        let value = values.next()?.to_str().ok()?;
        values.next().is_none().then_some(value)
    })
}

/// Refuses bodies that are certainly not JSON. A missing or odd type is let through: the parser is the judge.
pub(super) fn check_content(headers: &HeaderMap) -> Result<(), ApiError> {
    let unsupported = |code, words: &'static str| {
        error::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error::INVALID, code, words)
    };
    let encoded = headers.get(CONTENT_ENCODING).is_some_and(|value| value != "identity");
    if encoded {
        let words =
            "Compressed request bodies are not taken. Send the JSON without Content-Encoding.";
        return Err(unsupported("unsupported_content_encoding", words));
    }
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    match kind.as_str() {
        "application/x-www-form-urlencoded" | "multipart/form-data" => Err(unsupported(
            "unsupported_content_type",
            "The body came as a form. Send JSON with the header 'Content-Type: application/json' (curl -d needs -H \
             for that, or --json).",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use http::{HeaderName, HeaderValue};

    fn headers(pairs: &[(&'static str, &[u8])]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
        }
        map
    }

    #[test]
    fn a_header_that_identifies_comes_once_and_is_not_empty() {
        for name in ["authorization", "x-session-id", "idempotency-key", "x-request-timeout"] {
            let twice = Head::read(&headers(&[(name, b"Bearer 1"), (name, b"Bearer 1")]));
            assert_eq!(twice.unwrap_err().code, "duplicate_header", "{name}");
            let empty = Head::read(&headers(&[(name, b"  ")]));
            assert_eq!(empty.unwrap_err().code, "empty_header", "{name}");
            let odd = Head::read(&headers(&[(name, b"\xff")]));
            assert_eq!(odd.unwrap_err().code, "invalid_header", "{name}");
        }
    }

    #[test]
    fn only_a_bearer_key_authorizes() {
        let read = |value: &'static [u8]| bearer(&headers(&[("authorization", value)]));
        assert_eq!(read(b"Bearer k").unwrap().as_deref(), Some("k"));
        assert_eq!(read(b"bearer  k ").unwrap().as_deref(), Some("k"));
        for bad in [&b"Basic abc"[..], b"Bearer", b"k"] {
            assert_eq!(read(bad).unwrap_err().status, StatusCode::UNAUTHORIZED);
        }
    }

    #[test]
    fn patience_is_a_positive_number_of_seconds() {
        let read = |value: &'static [u8]| Head::read(&headers(&[("x-request-timeout", value)]));
        assert_eq!(read(b"1.5").unwrap().patience, Some(Duration::from_millis(1_500)));
        for bad in [&b"0"[..], b"-1", b"NaN", b"inf", b"86401", b"soon"] {
            assert_eq!(read(bad).unwrap_err().param.as_deref(), Some("x-request-timeout"));
        }
    }

    #[test]
    fn a_form_is_refused_in_clear_words_and_a_missing_type_is_fine() {
        assert!(check_content(&HeaderMap::new()).is_ok());
        assert!(check_content(&headers(&[("content-type", b"text/plain")])).is_ok());
        let form = headers(&[("content-type", b"Multipart/Form-Data; boundary=x")]);
        assert_eq!(check_content(&form).unwrap_err().status, 415);
        let gzip = headers(&[("content-encoding", b"gzip")]);
        assert_eq!(check_content(&gzip).unwrap_err().status, 415);
    }

    #[test]
    fn a_traceparent_is_taken_where_it_is_one_and_comes_once() {
        let good = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let read = |values: &[&[u8]]| {
            let pairs: Vec<_> = values.iter().map(|value| ("traceparent", *value)).collect();
            incoming(&headers(&pairs)) != Incoming::default()
        };
        assert!(read(&[good]));
        assert!(!read(&[b"hello"]) && !read(&[good, good]) && !read(&[b"\xff"]));
    }
}
