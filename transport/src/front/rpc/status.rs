//! What HTTP answers, in gRPC's words: a status for programs, and beside it the whole answer.

use axum::body::Body;
use axum::response::IntoResponse;
use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderMap, Response, StatusCode};
use serde::Deserialize;
use tonic::metadata::{BinaryMetadataKey, BinaryMetadataValue, MetadataMap};
use tonic::{Code, Status};

use crate::front::error::ApiError;

/// The HTTP status that stands beside a gRPC status.
pub(crate) const HTTP_STATUS: &str = "pointsman-http-status";
/// The JSON error that stands beside it.
pub(crate) const ERROR: &str = "pointsman-error-bin";
/// Milliseconds after which to ask again.
pub(crate) const RETRY_AFTER_MS: &str = "retry-after-ms";
/// Whether to ask again at all, `true` or `false`, where a status alone would mislead.
pub(crate) const SHOULD_RETRY: &str = "x-should-retry";

/// It travels in a header, and headers are bounded: a longer one is told without its body.
const ERROR_BYTES_MAX: usize = 8 << 10;

/// A refusal.
pub(super) async fn of_response(response: Response<Body>) -> Status {
    let (head, body) = response.into_parts();
    // Our own errors are small; an upstream's words are bounded to 64 KiB before they get here.
    let body = axum::body::to_bytes(body, 128 << 10).await.unwrap_or_default();
    of(head.status, &head.headers, &body)
}

/// A refusal that was made on this side.
pub(super) fn of_error(error: &ApiError) -> Status {
    let response = error.clone().into_response();
    of(response.status(), response.headers(), error.json().as_bytes())
}

/// An error inside a stream, which has no status of its own: its kind says which it would have been.
pub(super) fn of_event(error: &str) -> Status {
    let said: Said = serde_json::from_str(error).unwrap_or_default();
    let status = match said.kind.as_deref() {
        Some("insufficient_quota") => StatusCode::PAYMENT_REQUIRED,
        Some("rate_limit_error") => StatusCode::TOO_MANY_REQUESTS,
        Some(crate::front::error::INVALID) => StatusCode::BAD_REQUEST,
        _ if said.code.as_deref() == Some("timeout") => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::BAD_GATEWAY,
    };
    let whole = format!(r#"{{"error":{error}}}"#);
    of(status, &HeaderMap::new(), whole.as_bytes())
}

#[derive(Default, Deserialize)]
struct Said {
    #[serde(default)]
    message: Option<String>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    code: Option<String>,
}

#[derive(Deserialize)]
struct Wrapped {
    error: Said,
}

fn of(http: StatusCode, headers: &HeaderMap, body: &[u8]) -> Status {
    let message = serde_json::from_slice::<Wrapped>(body).ok().and_then(|said| said.error.message);
    let message = message.unwrap_or_else(|| format!("HTTP would have answered {http}"));
    let mut metadata = MetadataMap::new();
    metadata.insert(HTTP_STATUS, http.as_u16().into());
    if body.len() <= ERROR_BYTES_MAX {
        let key = BinaryMetadataKey::from_static(ERROR);
        metadata.insert_bin(key, BinaryMetadataValue::from_bytes(body));
    }
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    if let Some(seconds) = seconds {
        metadata.insert(RETRY_AFTER_MS, u64::saturating_mul(seconds, 1_000).into());
    }
    let again = headers.get(SHOULD_RETRY).and_then(|value| value.to_str().ok()?.parse().ok());
    if let Some(again) = again {
        metadata.insert(SHOULD_RETRY, again);
    }
    Status::with_details_and_metadata(code(http), message, Bytes::new(), metadata)
}

fn code(http: StatusCode) -> Code {
    match http.as_u16() {
        401 => Code::Unauthenticated,
        402 | 429 => Code::ResourceExhausted,
        403 => Code::PermissionDenied,
        404 => Code::NotFound,
        409 => Code::Aborted,
        499 => Code::Cancelled,
        400..=498 => Code::InvalidArgument,
        503 => Code::Unavailable,
        504 => Code::DeadlineExceeded,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use std::time::Duration;

    use super::*;
    use crate::front::error;

    #[test]
    fn a_refusal_keeps_all_that_http_would_have_said() {
        let spent = error::new(
            StatusCode::PAYMENT_REQUIRED,
            "insufficient_quota",
            "spent",
            "All is spent.",
        )
        .retry_after(Duration::from_secs(5))
        .should_retry(false);
        let status = of_error(&spent);
        assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "All is spent."));
        let said = status.metadata();
        assert_eq!(said.get(HTTP_STATUS).unwrap(), "402");
        assert_eq!(said.get(RETRY_AFTER_MS).unwrap(), "5000");
        assert_eq!(said.get(SHOULD_RETRY).unwrap(), "false");
        let body = said.get_bin(ERROR).unwrap().to_bytes().unwrap();
        assert_eq!(&body[..], spent.json().as_bytes());
    }

    #[test]
    fn an_error_inside_a_stream_gets_the_status_it_would_have_had() {
        for (kind, code, expected) in [
            ("insufficient_quota", "insufficient_quota", Code::ResourceExhausted),
            ("server_error", "timeout", Code::DeadlineExceeded),
            ("server_error", "replica_lost", Code::Internal),
        ] {
            let error = format!(r#"{{"message":"m","type":"{kind}","code":"{code}"}}"#);
            let status = of_event(&error);
            assert_eq!((status.code(), status.message()), (expected, "m"), "{code}");
        }
    }
}
