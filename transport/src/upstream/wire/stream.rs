//! An answer of a worker, chunk by chunk.

use std::collections::VecDeque;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use proto::inference::v1::StreamInferenceResponse as Chunk;
use tokio::time::Instant;

use control::outcome::Failure;
use control::units::{Tokens, Usage};

use super::Asking;
use super::chunks::{self, Chunks};
use super::kept;
use super::line::Line;
use super::tally::{Tally, has_text, is_silent};
use super::text::Envelope;
use crate::convert;
use crate::upstream::failed::Failed;
use crate::upstream::stream::{DONE, Event, EventKind, Piece};
use crate::upstream::timer::Patience;
use crate::upstream::{Limits, Origin};

/// A call that a worker has begun to answer.
pub(super) struct Opened {
    first: Chunk,
    rest: Chunks,
}

/// Asks, and waits for the first chunk.
///
/// # Errors
/// Where there is none: the worker refused, or could not be reached.
pub(super) async fn open(line: &Line, asking: Asking, limits: &Limits) -> Result<Opened, Failed> {
    begun(chunks::stream(line, asking, limits).await?, limits).await
}

/// The same of chunks that are on their way.
pub(super) async fn begun(mut rest: Chunks, limits: &Limits) -> Result<Opened, Failed> {
    let first = rest.next(false, limits).await?;
    let first =
        first.ok_or_else(|| Failed::new(Failure::Truncated, "an answer without a chunk"))?;
    Ok(Opened { first, rest })
}

/// A stream of chunks, told as events of OpenAI's API. Dropping it cancels the call.
#[derive(Debug)]
pub(in crate::upstream) struct WireStream {
    /// `None` once the stream is over.
    chunks: Option<Chunks>,
    first: Option<Chunk>,
    /// Where its worker's load is told; none where it comes from no worker.
    line: Option<Line>,
    envelope: Envelope,
    tally: Tally,
    patience: Patience,
    limits: Limits,
    /// Events that are known and not yet asked for: what follows a seam; at the end, the bill and `[DONE]`.
    ready: VecDeque<Event>,
    received: usize,
    headers: HeaderMap,
    /// What the first chunk said of it.
    fingerprint: String,
    /// The chat role keeps it: what it tells are events already.
    is_kept: bool,
    /// Its `[DONE]`, until the call has ended well.
    done: Option<Event>,
}

impl WireStream {
    pub(super) fn new(
        opened: Opened,
        line: Option<Line>,
        envelope: Envelope,
        tally: Tally,
        began: Instant,
        limits: &Limits,
    ) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        if let Chunks::Chat(answer) = &opened.rest
            && let Some(begun) = &answer.begun
        {
            let id = HeaderValue::from_str(&begun.request_id).ok();
            headers.extend(id.map(|id| (HeaderName::from_static("x-request-id"), id)));
            let session = HeaderValue::from_str(&begun.session_id).ok();
            let session = session.filter(|session| !session.is_empty());
            headers.extend(session.map(|session| (super::SESSION_ID, session)));
            let stream = answer.stream_id().and_then(|id| HeaderValue::from_str(id).ok());
            headers.extend(stream.map(|stream| (super::STREAM_ID, stream)));
        }
        let is_kept = headers.contains_key(super::STREAM_ID);
        let fingerprint = opened.first.fingerprint.clone();
        Self {
            fingerprint,
            is_kept,
            done: None,
            chunks: Some(opened.rest),
            first: Some(opened.first),
            line,
            envelope,
            tally,
            patience: Patience::new(began, limits),
            limits: *limits,
            ready: VecDeque::new(),
            received: 0,
            headers,
        }
    }

    pub(in crate::upstream) async fn next(&mut self) -> Option<Result<Event, Failed>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            match self.chunk().await? {
                Ok(None) => self.end(),
                Ok(Some((chunk, first))) => {
                    let seam = self.seam();
                    self.ready.extend(seam);
                    match self.event(chunk, first) {
                        Ok(event) if event.kind == EventKind::Done => self.done = Some(event),
                        Ok(event) => self.ready.push_back(event),
                        Err(failed) => return Some(Err(self.broken(failed))),
                    }
                }
                Err(failed) => return Some(Err(failed)),
            }
        }
    }

    /// The next chunk that says something of the answer, and whether it is the first of its choice. `Ok(None)`: the
    /// answer is whole. `None`: it was over before.
    pub(super) async fn chunk(&mut self) -> Option<Result<Option<(Chunk, bool)>, Failed>> {
        self.chunks.as_ref()?;
        self.patience.resume();
        let result = self.advance().await;
        self.patience.pause();
        Some(match result {
            Ok(None) => {
                self.chunks = None;
                Ok(None)
            }
            Ok(some) => Ok(some),
            Err(failed) => Err(self.broken(failed)),
        })
    }

    async fn advance(&mut self) -> Result<Option<(Chunk, bool)>, Failed> {
        self.patience.check(Instant::now())?;
        loop {
            let Some(chunk) = self.receive().await? else {
                if self.tally.finished() {
                    return Ok(None);
                }
                return Err(Failed::new(Failure::Truncated, "the stream ended without a reason"));
            };
            if let (Some(load), Some(line)) = (&chunk.load, &self.line) {
                line.tell(load);
            }
            let first = self.tally.insert(&chunk)?;
            if !is_silent(&chunk) {
                self.patience.moved();
                return Ok(Some((chunk, first)));
            }
            if self.has_event() {
                return Ok(Some((chunk, first)));
            }
        }
    }

    async fn receive(&mut self) -> Result<Option<Chunk>, Failed> {
        let chunk = match (self.first.take(), &mut self.chunks) {
            (Some(first), _) => Some(first),
            (None, None) => None,
            // What has arrived in time is not late because we were.
            (None, Some(chunks)) => tokio::select! {
                biased;
                chunk = chunks.next(true, &self.limits) => chunk?,
                failed = self.patience.over() => return Err(failed),
            },
        };
        self.received += chunk.as_ref().map_or(0, size);
        let most = self.limits.answer_bytes_max;
        if self.received > most {
            return Err(Failed::new(Failure::TooLarge, format!("more than {most} bytes")));
        }
        Ok(chunk)
    }

    fn event(&mut self, chunk: Chunk, first: bool) -> Result<Event, Failed> {
        if self.is_kept {
            return Ok(self.kept(&chunk));
        }
        let raw = self.envelope.event(&chunk, first)?;
        Ok(Event { raw, kind: kind(&chunk), usage: None, piece: piece(chunk) })
    }

    /// The event as the chat role keeps it: whoever resumes the stream sees the same, under the same number. None is left
    /// out, not even one that brings nothing but the usage.
    fn kept(&mut self, chunk: &Chunk) -> Event {
        let raw = self.take_event();
        let usage = chunk.usage.as_ref().and_then(convert::usage).map(|(usage, _)| usage);
        let kind = if kept::is_done(&raw) {
            EventKind::Done
        } else if is_silent(chunk) {
            EventKind::Other
        } else {
            kind(chunk)
        };
        Event { raw, kind, usage, piece: None }
    }

    fn has_event(&self) -> bool {
        matches!(&self.chunks, Some(Chunks::Chat(answer)) if !answer.event.is_empty())
    }

    fn take_event(&mut self) -> Bytes {
        let Some(Chunks::Chat(answer)) = &mut self.chunks else { return Bytes::new() };
        core::mem::take(&mut answer.event)
    }

    /// The comment that the answer went on at another replica behind the chat role, before what follows it.
    fn seam(&mut self) -> Option<Event> {
        let Some(Chunks::Chat(answer)) = &mut self.chunks else { return None };
        let raw = answer.resumed.take()?.comment();
        Some(Event { raw, kind: EventKind::Other, usage: None, piece: None })
    }

    fn end(&mut self) {
        if let Some(done) = self.done.take() {
            return self.ready.push_back(done);
        }
        if let Some(usage) = self.tally.usage() {
            let raw = self.envelope.bill(usage, self.tally.cached);
            self.ready.push_back(Event {
                raw,
                kind: EventKind::Usage,
                usage: Some(usage),
                piece: None,
            });
        }
        let raw = Bytes::from_static(DONE);
        self.ready.push_back(Event { raw, kind: EventKind::Done, usage: None, piece: None });
    }

    /// Nothing follows a failure, and the call is cancelled.
    pub(super) fn broken(&mut self, failed: Failed) -> Failed {
        self.chunks = None;
        failed.with_produced(self.tally.produced())
    }

    pub(in crate::upstream) fn origin(&self) -> Option<Origin> {
        let (fingerprint, created) = (self.fingerprint.clone(), self.envelope.created());
        (!fingerprint.is_empty()).then_some(Origin { fingerprint, created })
    }

    pub(super) fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    pub(super) fn cached(&self) -> u64 {
        self.tally.cached
    }

    pub(in crate::upstream) fn produced(&self) -> Tokens {
        self.tally.produced()
    }

    pub(in crate::upstream) fn usage(&self) -> Option<Usage> {
        self.tally.usage()
    }

    pub(in crate::upstream) fn finished(&self) -> bool {
        self.tally.finished()
    }

    pub(in crate::upstream) fn headers(&self) -> &HeaderMap {
        &self.headers
    }
}

fn kind(chunk: &Chunk) -> EventKind {
    let count = Tokens(u64::from(chunk.token_count));
    if count > Tokens::ZERO || has_text(chunk) {
        EventKind::Tokens { count }
    } else if chunk.finish_reason.is_empty() {
        EventKind::Opening
    } else {
        EventKind::Finish
    }
}

/// What a chunk says, where that is nothing but text of the first choice.
fn piece(chunk: Chunk) -> Option<Box<Piece>> {
    let Chunk { choice, text, token_ids, reasoning, tool_calls_json, refusal, extra_json, .. } =
        chunk;
    let estimated = chunk.estimated;
    let more = [reasoning, tool_calls_json, refusal, extra_json];
    let plain = choice == 0 && more.iter().all(String::is_empty);
    plain.then(|| Box::new(Piece { text, token_ids, estimated }))
}

fn size(chunk: &Chunk) -> usize {
    chunk.text.len()
        + chunk.reasoning.len()
        + chunk.refusal.len()
        + chunk.tool_calls_json.len()
        + chunk.extra_json.len()
}
