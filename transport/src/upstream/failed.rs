//! How a call failed.

use core::fmt;
use core::time::Duration;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use http::{Response, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use control::outcome::Failure;
use control::units::Tokens;

use super::classify::{self, Said};
use super::retry_after::retry_after;

/// The most that is kept of what an endpoint says when it refuses: 64 KiB. Real ones have some hundred bytes.
pub const UPSTREAM_ERROR_BYTES_MAX: usize = 64 << 10;

/// A call's end, where it is not a success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// What went wrong, in the plane's words.
    pub failure: Failure,
    /// Completion tokens that had arrived by then.
    pub produced: Tokens,
    /// How long the endpoint asked us to stay away.
    pub retry_after: Option<Duration>,
    /// What the endpoint said, so that a refusal of the request itself can reach the caller as it was worded.
    pub upstream: Option<Box<UpstreamError>>,
    /// For operators: our own words, statuses and error codes. No prompt, no answer, no key.
    pub detail: String,
}

/// An endpoint's own words.
#[derive(Clone, PartialEq, Eq)]
pub struct UpstreamError {
    /// Its status; inside an answer, the status its error object names (or 200).
    pub status: u16,
    /// Its body, or the event's data; at most [`UPSTREAM_ERROR_BYTES_MAX`].
    pub body: Bytes,
    /// Its `content-type`.
    pub content_type: Option<String>,
    /// Set where our own chat role said it: the status and the body are then the caller's answer as they stand.
    pub verdict: Option<Verdict>,
}

/// What the chat role said beside an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// After how long to ask again.
    pub retry_after: Option<Duration>,
    /// Whether to ask again at all.
    pub should_retry: Option<bool>,
}

/// Without the body: it may quote the prompt.
impl fmt::Debug for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamError")
            .field("status", &self.status)
            .field("body", &format_args!("{} bytes", self.body.len()))
            .field("content_type", &self.content_type)
            .finish()
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.failure)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, " ({})", self.detail) }
    }
}

impl std::error::Error for Failed {}

impl Failed {
    /// A failure of our own side's, in our own words.
    #[must_use]
    pub fn of(failure: Failure, detail: &str) -> Self {
        Self::new(failure, detail)
    }

    pub(super) fn new(failure: Failure, detail: impl Into<String>) -> Self {
        Self {
            failure,
            produced: Tokens::ZERO,
            retry_after: None,
            upstream: None,
            detail: detail.into(),
        }
    }

    /// An error object inside an answer whose status was a success.
    pub(super) fn in_answer(object: Bytes) -> Self {
        let said = Said::read(&object);
        let (failure, status) = classify::in_answer(&said);
        let mut failed = Self::new(failure, format!("inside the answer: {said}"));
        let body = object.slice(..object.len().min(UPSTREAM_ERROR_BYTES_MAX));
        let content_type = Some("application/json".to_owned());
        failed.upstream =
            Some(Box::new(UpstreamError { status, body, content_type, verdict: None }));
        failed
    }

    /// The chat role says that another connection goes on with the stream.
    pub(crate) fn is_taken_over(&self) -> bool {
        let said = self.upstream.as_ref().filter(|said| said.verdict.is_some());
        said.is_some_and(|said| Said::read(&said.body).is_called("stream_taken_over"))
    }

    /// The body of what its endpoint said.
    pub(super) fn body(self) -> Bytes {
        self.upstream.map(|said| said.body).unwrap_or_default()
    }

    pub(super) fn with_produced(mut self, produced: Tokens) -> Self {
        self.produced = produced;
        self
    }
}

/// Reads what a refusal says, as far as it says it soon.
pub(super) async fn refused(response: Response<Incoming>, deadline: Instant) -> Failed {
    let (head, body) = response.into_parts();
    let status = head.status.as_u16();
    let body = first_bytes(body, deadline.min(Instant::now() + REFUSAL_WITHIN)).await;
    let said = Said::read(&body);
    let mut failed =
        Failed::new(classify::of_status(status, &said), format!("status {status}: {said}"));
    failed.retry_after = retry_after(&head.headers, SystemTime::now());
    let content_type = head.headers.get(header::CONTENT_TYPE);
    failed.upstream = Some(Box::new(UpstreamError {
        status,
        body,
        content_type: content_type.and_then(|value| Some(value.to_str().ok()?.to_owned())),
        verdict: None,
    }));
    failed
}

/// The status is known; its explanation is worth this much waiting and no more.
const REFUSAL_WITHIN: Duration = Duration::from_secs(2);

async fn first_bytes(mut body: Incoming, deadline: Instant) -> Bytes {
    let mut read = BytesMut::new();
    while let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await {
        if let Ok(data) = frame.into_data() {
            let room = UPSTREAM_ERROR_BYTES_MAX - read.len();
            read.extend_from_slice(&data[..data.len().min(room)]);
            if data.len() >= room {
                break;
            }
        }
    }
    read.freeze()
}
