//! Answers that come in one piece.

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName};
use http::{Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use control::outcome::{Failure, Stage};
use control::units::{Tokens, Usage};

use super::chunk::{Chunk, Finish};
use super::failed::Failed;
use super::{Limits, Path};

/// A whole, successful answer.
#[derive(Clone, Debug)]
pub struct Whole {
    /// The endpoint's status: a 2xx.
    pub status: StatusCode,
    /// Those of its headers that may reach the caller: `content-type`, `openai-version`, `openai-processing-ms`.
    pub headers: HeaderMap,
    /// The endpoint's `x-request-id`, for the logs.
    pub upstream_request_id: Option<String>,
    /// Its body, byte for byte.
    pub body: Bytes,
    /// What the endpoint says it used.
    pub usage: Option<Usage>,
    /// The completion's tokens by our own count, for when `usage` is absent.
    pub estimated: Tokens,
    /// Whether every choice says why it ended. True for embeddings.
    pub finished: bool,
}

/// Reads and judges the body of a success.
pub(super) async fn read(
    response: Response<Incoming>,
    path: Path,
    limits: &Limits,
) -> Result<Whole, Failed> {
    let (head, body) = response.into_parts();
    if let Some(kind) = content_type(&head.headers)
        && !kind.contains("json")
    {
        return Err(Failed::new(Failure::Garbage, "the answer is not JSON by its content-type"));
    }
    let body = collect(body, limits).await?;
    judge(body, path, head.status, &head.headers)
}

/// Whether it is an answer, and what it says of itself.
pub(super) fn judge(
    body: Bytes,
    path: Path,
    status: StatusCode,
    headers: &HeaderMap,
) -> Result<Whole, Failed> {
    let chunk = Chunk::read(&body).map_err(|why| Failed::new(Failure::Garbage, why))?;
    if chunk.is_error() {
        return Err(Failed::in_answer(body.clone()));
    }
    let is_answer = match path {
        Path::ChatCompletions => chunk.choices.is_some(),
        Path::Embeddings => chunk.data.is_some(),
    };
    if !is_answer {
        return Err(Failed::new(Failure::Garbage, "JSON without choices or data"));
    }
    let finished = chunk.choices().iter().all(|choice| choice.finish_reason == Finish::Finished);
    let (usage, estimated) = (chunk.usage(), chunk.tokens());
    Ok(Whole {
        status,
        upstream_request_id: upstream_request_id(headers),
        headers: passed_on(headers),
        usage,
        estimated,
        finished,
        body,
    })
}

/// All of a body, within the limits. No copy where it arrives in one piece.
pub(super) async fn collect(mut body: Incoming, limits: &Limits) -> Result<Bytes, Failed> {
    let too_large =
        || Failed::new(Failure::TooLarge, format!("more than {} bytes", limits.answer_bytes_max));
    if body.size_hint().lower() > limits.answer_bytes_max as u64 {
        return Err(too_large());
    }
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    loop {
        let due = Instant::now() + limits.between_tokens;
        let frame = match timeout_at(due.min(limits.deadline), body.frame()).await {
            Err(_) if limits.deadline < due => {
                return Err(Failed::new(Failure::Timeout(Stage::Deadline), "in the answer's body"));
            }
            Err(_) => {
                return Err(Failed::new(
                    Failure::Timeout(Stage::BetweenTokens),
                    "in the answer's body",
                ));
            }
            Ok(None) => break,
            Ok(Some(Err(error))) => {
                return Err(Failed::new(
                    Failure::Truncated,
                    format!("in the answer's body: {error}"),
                ));
            }
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + rest.len() + data.len() > limits.answer_bytes_max {
            return Err(too_large());
        }
        if first.is_empty() {
            first = data;
        } else {
            rest.extend_from_slice(&data);
        }
    }
    if rest.is_empty() {
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(first.len() + rest.len());
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&rest);
    Ok(whole.freeze())
}

/// The headers that say something about the answer and nothing about our account there (`x-ratelimit-*` would).
pub(super) fn passed_on(headers: &HeaderMap) -> HeaderMap {
    const PASSED: [HeaderName; 3] = [
        header::CONTENT_TYPE,
        HeaderName::from_static("openai-version"),
        HeaderName::from_static("openai-processing-ms"),
    ];
    PASSED.into_iter().filter_map(|name| Some((headers.get(&name)?.clone(), name))).fold(
        HeaderMap::new(),
        |mut passed, (value, name)| {
            passed.insert(name, value);
            passed
        },
    )
}

pub(super) fn upstream_request_id(headers: &HeaderMap) -> Option<String> {
    // Longer ones are no ids, and logs are not for them.
    const LENGTH_MAX: usize = 128;
    let id = headers.get("x-request-id")?.to_str().ok()?;
    (id.len() <= LENGTH_MAX).then(|| id.to_owned())
}

/// The media type, in lower case; `None` where nothing is said.
pub(super) fn content_type(headers: &HeaderMap) -> Option<String> {
    Some(headers.get(header::CONTENT_TYPE)?.to_str().unwrap_or("?").to_ascii_lowercase())
}
