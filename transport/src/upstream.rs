//! Calls to endpoints, OpenAI-compatible ones and workers: one attempt, from the connection to the last byte.
//!
//! The plane decides whom to ask and what a failure means; this module asks, and says **exactly how it ended**, because
//! breaker, retry and bill all hang on that one word ([`Failed::failure`]). Gateways get this wrong in known ways, and
//! each is ruled out here: an answer is not a success when its head arrives (a 200 may carry an error object, stall, or
//! break off), a revoked key is not the caller's 401, an empty account that answers 429 is not "full, come back later", a
//! comment is not a token, and a slow reader is not a stalled replica.
//!
//! What an end means, where the protocol leaves room:
//! - **Timers.** `connect` runs until there is a connection (TLS included); `first_token` from the start of the call to
//!   the first chunk with content, so accepting and never answering is caught, and so are keep-alive comments without end;
//!   `between_tokens` from chunk to chunk after that. Comments and empty chunks do not reset it: a replica that only says
//!   "still here" is stalled. Time that our own caller spends between two calls of [`Stream::next`] is not counted.
//!   An answer that does not stream shows nothing before its end; its head may take `whole_answer`.
//! - **The end of a stream** is `[DONE]`. Without it, the stream is complete if every choice had its `finish_reason`; then a
//!   `[DONE]` is supplied and [`Stream::done_was_missing`] says so. Otherwise it is `Truncated`, and so is a stream whose
//!   `[DONE]` comes without a single choice before it.
//! - **An error object** in a 200 or inside a stream is `ErrorInAnswer`, unless it names an empty account or an unknown model
//!   (endpoint fault), a rate limit or overload (backpressure), or the request itself as at fault (client error: otherwise
//!   one bad request would open the breakers of every replica in turn).
//! - **Statuses**: see `classify`.
//! - **Reused connections.** A request that was not yet written when a pooled connection turned out closed is sent again
//!   on another by hyper. Once written it is not: the replica may have begun to work. That is `ConnectionLost`, and whether to
//!   ask again is the plane's decision.
//!
//! A worker (`grpc://`, `quic://`) speaks our own wire; what comes from it is turned into the same events, and its ends into the same
//! words (see `wire`).
//!
//! Dropping a call or a [`Stream`] cancels it upstream at once: HTTP/1.1 by closing the connection, HTTP/2 by a reset.
//! Nothing here logs; [`Failed::detail`] is made of our words, statuses and error codes, never of prompt, answer or key.

pub mod body;
mod chunk;
mod classify;
mod connect;
mod failed;
mod get;
mod models;
mod retry_after;
mod stream;
mod target;
mod timer;
mod whole;
mod wire;

use core::fmt;
use core::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::capture_connection;
use tokio::time::{Instant, sleep_until};

use control::outcome::{Failure, Stage};
use control::units::Tokens;

use crate::exchange::Behalf;
pub use connect::{Client, Settings, SetupError};
pub use failed::{Failed, UPSTREAM_ERROR_BYTES_MAX, UpstreamError, Verdict};
pub use get::Got;
pub use models::{Described, ModelInfo};
use stream::SseStream;
pub use stream::{Event, EventKind, Piece, Stream};
pub use target::{BadSecret, BadUrl, BaseUrl, Secret, Target};
pub use whole::Whole;
pub use wire::WorkerLoad;
pub(crate) use wire::{SESSION_ID, STREAM_ID};

/// Which operation of the API is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// `POST /chat/completions`.
    ChatCompletions,
    /// `POST /embeddings`.
    Embeddings,
}

/// One request to an endpoint.
#[derive(Clone)]
pub struct Ask {
    /// The operation.
    pub path: Path,
    /// The JSON body, ready to send (see [`body::rewrite`]).
    pub body: Bytes,
    /// Whether the body asks for a stream: the answer must then be one.
    pub stream: bool,
    /// Sent as `x-request-id`.
    pub request_id: String,
    /// Headers of the caller to pass on (`traceparent`, ...). Ours win over them.
    pub headers: HeaderMap,
    /// What the client has of the answer already, where another endpoint began it. Only workers continue answers, and targets of
    /// which it is said.
    pub resume: Option<Box<Resume>>,
    /// For whom, where the chat role is asked.
    pub behalf: Option<Box<Behalf>>,
}

/// The part of an answer that its client has.
#[derive(Clone, PartialEq, Eq)]
pub struct Resume {
    /// How many tokens.
    pub seq: Tokens,
    /// How many there are at least, where that was estimated.
    pub least: Tokens,
    /// Their ids: all of them, or none.
    pub token_ids: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Who began it, and when: the answer goes on as the same one.
    pub origin: Origin,
}

/// Counts only: the text is the client's.
impl fmt::Debug for Resume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seq, token_ids, text, origin, .. } = self;
        let (ids, bytes) = (token_ids.len(), text.len());
        write!(f, "Resume({} tokens, {ids} ids, {bytes} bytes, {origin:?})", seq.0)
    }
}

/// Where an answer comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The worker's mark: another with the same can continue what it began.
    pub fingerprint: String,
    /// The answer's `created`, in Unix seconds.
    pub created: u64,
}

/// The usage that an event's data tells, where it is possible.
pub(crate) fn usage_in(data: &[u8]) -> Option<control::units::Usage> {
    chunk::Chunk::read(data).ok()?.usage()
}

/// How long an answer may take and how large it may be. The plane's policy, passed with each call.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// To a usable connection, name lookup and TLS included.
    pub connect: Duration,
    /// From the start of the call to the first chunk with content, for streams.
    pub first_token: Duration,
    /// From one chunk with content to the next; for an answer that does not stream, between two pieces of its body.
    pub between_tokens: Duration,
    /// From the start of the call to the head of an answer that does not stream, all of which is generated before.
    pub whole_answer: Duration,
    /// When the whole request ends, however it stands.
    pub deadline: Instant,
    /// The most bytes an answer may have.
    pub answer_bytes_max: usize,
}

/// A successful answer, or the beginning of one.
#[derive(Debug)]
pub enum Answer {
    /// All of it.
    Whole(Whole),
    /// A stream that has begun: its success is known at its end.
    Stream(Box<Stream>),
}

impl Client {
    /// Asks `target` and waits for the whole answer, or for the head of a stream.
    ///
    /// # Errors
    /// [`Failed`], with nothing produced except where an answer that does not stream broke off.
    pub async fn call(&self, target: &Target, ask: Ask, limits: Limits) -> Result<Answer, Failed> {
        let began = Instant::now();
        if target.base_url.is_worker() {
            return wire::call(self, target, ask, limits).await;
        }
        if let Some(question) = wire::direct::question(target, &ask, &limits)? {
            return wire::direct::call(self, target, question, &ask, limits).await;
        }
        let (stream, path) = (ask.stream, ask.path);
        let head_within = if stream { limits.first_token } else { limits.whole_answer };
        let request = request(target, ask)?;
        let response = self.exchange(target, request, head_within, &limits).await?;
        if !response.status().is_success() {
            return Err(failed::refused(response, limits.deadline).await);
        }
        if stream {
            let stream = SseStream::open(response, began, limits)?;
            return Ok(Answer::Stream(Box::new(stream.into())));
        }
        whole::read(response, path, &limits).await.map(Answer::Whole)
    }

    /// Sends `request` and waits for the answer's head: `connect` for a connection, `head_within` for all of it.
    async fn exchange(
        &self,
        target: &Target,
        mut request: Request<Full<Bytes>>,
        head_within: Duration,
        limits: &Limits,
    ) -> Result<Response<Incoming>, Failed> {
        let began = Instant::now();
        let mut captured = capture_connection(&mut request);
        let connected = async move { drop(captured.wait_for_connection_metadata().await) };
        // Boxed: the future of a whole connection set-up is large, and lives in every call otherwise.
        let mut exchange = Box::pin(self.send(target, request));
        tokio::select! {
            biased;
            result = &mut exchange => return result,
            () = connected => {}
            () = sleep_until(limits.deadline.min(began + limits.connect)) => {
                return Err(late(began + limits.connect, limits.deadline, Failure::Connect));
            }
        }
        tokio::select! {
            biased;
            result = &mut exchange => result,
            () = sleep_until(limits.deadline.min(began + head_within)) => {
                let no_head = Failure::Timeout(Stage::FirstToken);
                Err(late(began + head_within, limits.deadline, no_head))
            }
        }
    }
}

/// Which of two timers passed: `due` (then `failure`), or the deadline. Where both did it was the deadline: an answer that
/// does not stream has until then for its head, and a deadline that the client chose is no failure of the endpoint's.
fn late(due: Instant, deadline: Instant, failure: Failure) -> Failed {
    if deadline <= due {
        return Failed::new(Failure::Timeout(Stage::Deadline), "before the answer's head");
    }
    Failed::new(failure, "not in time")
}

fn request(target: &Target, ask: Ask) -> Result<Request<Full<Bytes>>, Failed> {
    let accept = if ask.stream { "text/event-stream" } else { "application/json" };
    let path = match ask.path {
        Path::ChatCompletions => "/chat/completions",
        Path::Embeddings => "/embeddings",
    };
    let uri = target.base_url.join(path);
    let mut request = bare_request(target, Method::POST, uri, ask.body, ask.headers)?;
    let headers = request.headers_mut();
    headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(id) = HeaderValue::from_str(&ask.request_id) {
        headers.insert(HeaderName::from_static("x-request-id"), id);
    }
    Ok(request)
}

/// A request with the headers that every call to `target` carries, laid over `headers`.
fn bare_request(
    target: &Target,
    method: Method,
    uri: Result<Uri, http::Error>,
    body: Bytes,
    headers: HeaderMap,
) -> Result<Request<Full<Bytes>>, Failed> {
    let headers = laid_over(headers, target);
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() =
        uri.map_err(|_| Failed::new(Failure::Connect, "the endpoint's URL cannot be used"))?;
    *request.headers_mut() = headers;
    Ok(request)
}

/// The headers that every call to `target` carries, laid over those of the caller.
fn laid_over(mut headers: HeaderMap, target: &Target) -> HeaderMap {
    for hop in HOP_BY_HOP {
        headers.remove(hop);
    }
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    if let Some(key) = &target.api_key {
        headers.insert(header::AUTHORIZATION, key.bearer());
    }
    for (name, value) in &target.headers {
        headers.insert(name, value.clone());
    }
    headers
}

const USER_AGENT: &str = concat!("pointsman/", env!("CARGO_PKG_VERSION"));

/// What belongs to the caller's connection, body or credentials and must not reach an endpoint, should a caller of this
/// module forward too much. `accept-encoding` too: events are read, so they must not be compressed.
const HOP_BY_HOP: [HeaderName; 12] = [
    header::CONNECTION,
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::EXPECT,
    header::ACCEPT_ENCODING,
    header::AUTHORIZATION,
    header::COOKIE,
    header::PROXY_AUTHORIZATION,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn where_two_timers_pass_at_once_it_was_the_deadline() {
        let now = Instant::now();
        let no_head = Failure::Timeout(Stage::FirstToken);
        let ended = |due, deadline| late(now + due, now + deadline, no_head).failure;
        let (soon, later) = (Duration::from_secs(1), Duration::from_secs(2));
        assert_eq!(ended(soon, later), no_head);
        assert_eq!(ended(soon, soon), Failure::Timeout(Stage::Deadline));
        assert_eq!(ended(later, soon), Failure::Timeout(Stage::Deadline));
    }
}
