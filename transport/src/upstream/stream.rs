//! Answers that come token by token.

use bytes::Bytes;
use core::time::Duration;
use http::Response;
use http::header::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};

use control::outcome::Failure;
use control::units::{Tokens, Usage};

use crate::sse;

use super::chunk::{Chunk, Finish};
use super::failed::Failed;
use super::timer::Patience;
use super::whole::{content_type, passed_on, upstream_request_id};
use super::wire::WireStream;
use super::{Limits, Origin};

/// A stream that has begun. Dropping it cancels the call upstream at once.
#[derive(Debug)]
pub struct Stream(Inner);

#[derive(Debug)]
enum Inner {
    Sse(Box<SseStream>),
    Wire(Box<WireStream>),
}

impl From<SseStream> for Stream {
    fn from(stream: SseStream) -> Self {
        Self(Inner::Sse(Box::new(stream)))
    }
}

impl From<WireStream> for Stream {
    fn from(stream: WireStream) -> Self {
        Self(Inner::Wire(Box::new(stream)))
    }
}

impl Stream {
    /// The next block; `None` after [`EventKind::Done`] or a failure. Cancel-safe.
    ///
    /// # Errors
    /// [`Failed`], once, with what had been produced until then.
    pub async fn next(&mut self) -> Option<Result<Event, Failed>> {
        match &mut self.0 {
            Inner::Sse(stream) => stream.next().await,
            Inner::Wire(stream) => stream.next().await,
        }
    }

    /// Completion tokens that have arrived so far: as the replica says, else by our own count.
    #[must_use]
    pub fn produced(&self) -> Tokens {
        match &self.0 {
            Inner::Sse(stream) => stream.produced(),
            Inner::Wire(stream) => stream.produced(),
        }
    }

    /// The last usage the replica reported.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        match &self.0 {
            Inner::Sse(stream) => stream.usage(),
            Inner::Wire(stream) => stream.usage(),
        }
    }

    /// Whether every choice seen has said why it ended.
    #[must_use]
    pub fn finished(&self) -> bool {
        match &self.0 {
            Inner::Sse(stream) => stream.finished(),
            Inner::Wire(stream) => stream.finished(),
        }
    }

    /// The stream was complete, but its `[DONE]` never came and was supplied here: worth a word to its operator. Never so
    /// for a worker, whose wire has another end.
    #[must_use]
    pub fn done_was_missing(&self) -> bool {
        match &self.0 {
            Inner::Sse(stream) => stream.done_was_missing,
            Inner::Wire(_) => false,
        }
    }

    /// Those of the endpoint's headers that may reach the caller, as for [`Whole`](super::Whole).
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        match &self.0 {
            Inner::Sse(stream) => &stream.headers,
            Inner::Wire(stream) => stream.headers(),
        }
    }

    /// Where the answer comes from, of a worker that says whose streams it continues.
    #[must_use]
    pub fn origin(&self) -> Option<Origin> {
        match &self.0 {
            Inner::Sse(_) => None,
            Inner::Wire(stream) => stream.origin(),
        }
    }

    /// The endpoint's `x-request-id`, for the logs. A worker has the gateway's.
    #[must_use]
    pub fn upstream_request_id(&self) -> Option<&str> {
        match &self.0 {
            Inner::Sse(stream) => stream.upstream_request_id.as_deref(),
            Inner::Wire(_) => None,
        }
    }
}

/// A stream of server-sent events.
#[derive(Debug)]
pub(super) struct SseStream {
    /// `None` once the stream is over.
    body: Option<Incoming>,
    headers: HeaderMap,
    upstream_request_id: Option<String>,
    parser: sse::Parser,
    patience: Patience,
    received: usize,
    received_max: usize,
    tally: Tally,
    done_was_missing: bool,
}

/// One block of the stream.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its bytes as they arrived, to be forwarded.
    pub raw: Bytes,
    /// What it is.
    pub kind: EventKind,
    /// The usage it carries. Some servers send one with every chunk; the last counts.
    pub usage: Option<Usage>,
    /// What it says, for whoever keeps it to hand it over; only of a worker's chunks, and only where it is nothing but text
    /// of the first choice.
    pub piece: Option<Box<Piece>>,
}

/// Some tokens of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Their text; it lags behind where a character spans tokens.
    pub text: String,
    /// Their ids, where the worker tells them.
    pub token_ids: Vec<u32>,
    /// Nobody has counted them.
    pub estimated: bool,
}

/// What a block of a stream is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A chunk without content: the role, an empty delta.
    Opening,
    /// A chunk with content (text, reasoning, a refusal, a piece of a tool call), by our own count. It may also carry the
    /// choice's `finish_reason`.
    Tokens {
        /// About how many tokens.
        count: Tokens,
    },
    /// A chunk that only says why a choice ended.
    Finish,
    /// The chunk with the usage and no choices, sent where `stream_options.include_usage` asked for it.
    Usage,
    /// `[DONE]`: the stream ended well.
    Done,
    /// A comment, a keep-alive, an event that is no part of the answer.
    Other,
}

impl SseStream {
    pub(super) fn open(
        response: Response<Incoming>,
        began: Instant,
        limits: Limits,
    ) -> Result<Self, Failed> {
        let (head, body) = response.into_parts();
        if let Some(kind) = content_type(&head.headers)
            && !kind.contains("text/event-stream")
        {
            return Err(Failed::new(Failure::Garbage, "a stream was asked for and is not one"));
        }
        Ok(Self {
            body: Some(body),
            upstream_request_id: upstream_request_id(&head.headers),
            headers: passed_on(&head.headers),
            parser: sse::Parser::default(),
            patience: Patience::new(began, &limits),
            received: 0,
            received_max: limits.answer_bytes_max,
            tally: Tally::default(),
            done_was_missing: false,
        })
    }

    /// The next block; `None` after [`EventKind::Done`] or a failure. Cancel-safe.
    ///
    /// # Errors
    /// [`Failed`], once, with what had been produced until then.
    pub(super) async fn next(&mut self) -> Option<Result<Event, Failed>> {
        self.body.as_ref()?;
        self.patience.resume();
        let result = self.advance().await;
        self.patience.pause();
        if let Err(failed) = result {
            self.body = None;
            return Some(Err(failed.with_produced(self.produced())));
        }
        Some(result)
    }

    /// Completion tokens that have arrived so far: as the replica says, else by our own count.
    pub(super) fn produced(&self) -> Tokens {
        self.tally.produced
    }

    /// The last usage the replica reported.
    pub(super) fn usage(&self) -> Option<Usage> {
        self.tally.usage
    }

    /// Whether every choice seen has said why it ended.
    pub(super) fn finished(&self) -> bool {
        self.tally.finished()
    }

    async fn advance(&mut self) -> Result<Event, Failed> {
        self.patience.check(Instant::now())?;
        loop {
            match self.parser.poll_event() {
                Ok(Some(event)) => return self.judge(event),
                Ok(None) => {}
                Err(too_large) => {
                    return Err(Failed::new(Failure::TooLarge, too_large.to_string()));
                }
            }
            match self.read().await? {
                Some(chunk) => self.parser.insert(chunk),
                None => return self.end(None),
            }
        }
    }

    /// The next bytes; `None` at the body's end.
    async fn read(&mut self) -> Result<Option<Bytes>, Failed> {
        loop {
            let Some(body) = &mut self.body else { return Ok(None) };
            // Data first: what has arrived in time is not late because we were.
            let frame = tokio::select! {
                biased;
                frame = body.frame() => frame,
                failed = self.patience.over() => return Err(failed),
            };
            let frame = match frame {
                None => return Ok(None),
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return self.broken(&error),
            };
            let Ok(data) = frame.into_data() else { continue };
            self.received += data.len();
            if self.received > self.received_max {
                let most = self.received_max;
                return Err(Failed::new(Failure::TooLarge, format!("more than {most} bytes")));
            }
            return Ok(Some(data));
        }
    }

    /// A body that broke off is no loss where everything but the `[DONE]` had come.
    fn broken(&self, error: &hyper::Error) -> Result<Option<Bytes>, Failed> {
        if self.tally.finished() {
            return Ok(None);
        }
        Err(Failed::new(Failure::Truncated, format!("while streaming: {error}")))
    }

    fn judge(&mut self, event: sse::Event) -> Result<Event, Failed> {
        let sse::Event { raw, data, name, .. } = event;
        let other = |raw| Event { raw, kind: EventKind::Other, usage: None, piece: None };
        let Some(data) = data else { return Ok(other(raw)) };
        if name.as_deref() == Some(b"error") {
            return Err(Failed::in_answer(data));
        }
        match data.trim_ascii() {
            b"" => return Ok(other(raw)),
            b"[DONE]" => return self.end(Some(raw)),
            _ => {}
        }
        let chunk = Chunk::read(&data).map_err(|why| Failed::new(Failure::Garbage, why))?;
        if chunk.is_error() {
            return Err(Failed::in_answer(data));
        }
        let kind = self.tally.insert(&chunk)?;
        match kind {
            EventKind::Tokens { .. } | EventKind::Finish | EventKind::Usage => {
                self.patience.moved();
            }
            EventKind::Opening | EventKind::Done | EventKind::Other => {}
        }
        Ok(Event { raw, kind, usage: chunk.usage(), piece: None })
    }

    /// The stream is over, with `done` or without it.
    fn end(&mut self, done: Option<Bytes>) -> Result<Event, Failed> {
        let done = done.or_else(|| self.cut_off_done());
        let complete = match done {
            Some(_) => !self.tally.choices.is_empty(),
            None => self.tally.finished(),
        };
        if !complete {
            let what = if done.is_some() { "[DONE] without an answer" } else { "no [DONE]" };
            return Err(Failed::new(Failure::Truncated, what));
        }
        self.done_was_missing = done.is_none();
        if let Some(body) = self.body.take()
            && done.is_some()
        {
            tokio::spawn(drain(body));
        }
        let raw = done.unwrap_or(Bytes::from_static(DONE));
        Ok(Event { raw, kind: EventKind::Done, usage: None, piece: None })
    }

    /// A `[DONE]` whose last line end is missing is meant as one; forwarded, it gets its line end.
    fn cut_off_done(&mut self) -> Option<Bytes> {
        let rest = std::mem::take(&mut self.parser).finish()?;
        (rest.data?.trim_ascii() == b"[DONE]").then_some(Bytes::from_static(DONE))
    }
}

pub(super) const DONE: &[u8] = b"data: [DONE]\n\n";

/// Reads on to the body's end, so that the connection can be used again. What does not end soon is not worth keeping.
async fn drain(mut body: Incoming) {
    const WITHIN: Duration = Duration::from_millis(500);
    // A well-behaved server sends nothing more; a few frames allow for trailers and line ends.
    const FRAMES_MAX: usize = 8;
    let _ = timeout(WITHIN, async {
        for _ in 0..FRAMES_MAX {
            if !matches!(body.frame().await, Some(Ok(_))) {
                break;
            }
        }
    })
    .await;
}

/// What a stream has brought so far.
#[derive(Debug, Default)]
struct Tally {
    /// The completion of the last usage reported, and our own count of everything since.
    produced: Tokens,
    usage: Option<Usage>,
    /// Index of each choice seen, and whether it has ended.
    choices: Vec<(u32, bool)>,
}

impl Tally {
    /// OpenAI allows `n` up to 128; more indices than that are a peer's nonsense.
    const CHOICES_MAX: usize = 128;

    fn insert(&mut self, chunk: &Chunk<'_>) -> Result<EventKind, Failed> {
        let mut ended = false;
        for choice in chunk.choices() {
            let now_ended = choice.finish_reason == Finish::Finished;
            ended |= now_ended;
            let known = self.choices.iter().position(|(index, _)| *index == choice.index);
            match known {
                Some(at) => self.choices[at].1 |= now_ended,
                None if self.choices.len() < Self::CHOICES_MAX => {
                    self.choices.push((choice.index, now_ended));
                }
                None => return Err(Failed::new(Failure::Garbage, "more than 128 choices")),
            }
        }
        let count = chunk.tokens();
        self.produced += count;
        if let Some(usage) = chunk.usage() {
            self.usage = Some(usage);
            // Some servers send zeros until the end: what was delivered by then must not be forgotten.
            if usage.completion > Tokens::ZERO {
                self.produced = usage.completion;
            }
        }
        Ok(match (count, ended) {
            (Tokens(1..), _) => EventKind::Tokens { count },
            (Tokens::ZERO, true) => EventKind::Finish,
            (Tokens::ZERO, false) if !chunk.choices().is_empty() => EventKind::Opening,
            (Tokens::ZERO, false) if chunk.usage().is_some() => EventKind::Usage,
            (Tokens::ZERO, false) => EventKind::Other,
        })
    }

    fn finished(&self) -> bool {
        !self.choices.is_empty() && self.choices.iter().all(|(_, ended)| *ended)
    }
}
