//! From the events of a streamed answer to the pieces of a call.

use std::collections::{BTreeMap, VecDeque};

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt, unfold};
use http::header::HeaderName;
use http::{HeaderMap, Response};
use proto::chat::v1::{Begun, StreamChatResponse};
use proto::inference::v1::{Parameters, StreamInferenceResponse as Chunk};
use serde::Deserialize;
use serde_json::value::RawValue;
use tonic::Status;

use super::status;
use crate::exchange::Resumed;
use crate::front::answer::{ATTEMPTS, REPLICA, REQUEST_ID};
use crate::front::resumable::Bill;
use crate::sse;
use crate::translate::Reader;
use crate::upstream::{SESSION_ID, STREAM_ID, usage_in};

/// The pieces of an answer. Dropping them ends the request, as a client does that leaves.
pub(super) fn of(
    response: Response<Body>,
    said: Option<&Parameters>,
    whole: bool,
) -> BoxStream<'static, Result<StreamChatResponse, Status>> {
    let (head, body) = response.into_parts();
    let pieces = Pieces {
        body: body.into_data_stream(),
        events: sse::Parser::default(),
        reader: Reader::new(said),
        begun: Some(begun(&head.headers)),
        resumed: None,
        next: BTreeMap::new(),
        is_kept: head.headers.contains_key(STREAM_ID),
        bill: head.extensions.get().cloned().unwrap_or_default(),
        held: None,
        ready: VecDeque::new(),
        at_end: None,
        over: false,
        whole,
    };
    unfold(pieces, async |mut pieces| Some((pieces.next().await?, pieces))).boxed()
}

/// Who answers, as HTTP's headers say it.
pub(super) fn begun(headers: &HeaderMap) -> Begun {
    let text = |name: HeaderName| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    Begun {
        request_id: text(REQUEST_ID),
        replica: text(REPLICA),
        attempts: text(ATTEMPTS).parse().unwrap_or_default(),
        session_id: text(SESSION_ID),
        stream_id: text(STREAM_ID),
    }
}

struct Pieces {
    body: BodyDataStream,
    events: sse::Parser,
    reader: Reader,
    /// Told with the first piece.
    begun: Option<Begun>,
    /// Told with the first piece behind it.
    resumed: Option<Resumed>,
    /// The place of each choice's next token.
    next: BTreeMap<u32, u64>,
    /// It is a resumable stream, whose events are told as they are kept, each with the last of its chunks.
    is_kept: bool,
    /// What that came to, once it is over.
    bill: Bill,
    /// The last chunk of any other answer waits for the bill, which comes behind it.
    held: Option<Chunk>,
    ready: VecDeque<Result<(Chunk, Bytes), Status>>,
    /// `[DONE]`, once it was there. What the body has behind it is for its own end: dropped before, it would count as left.
    at_end: Option<Bytes>,
    over: bool,
    /// No events come but one answer.
    whole: bool,
}

impl Drop for Pieces {
    fn drop(&mut self) {
        // Planted: the answer is read on for nobody.
        if control::planted!(LeaverNotHeard) && !self.over {
            let mut body = std::mem::replace(&mut self.body, Body::empty().into_data_stream());
            tokio::spawn(async move { while let Some(Ok(_)) = body.next().await {} });
        }
    }
}

#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

impl Pieces {
    async fn next(&mut self) -> Option<Result<StreamChatResponse, Status>> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Some(chunk.map(|(chunk, event)| self.piece(chunk, event)));
            }
            if self.over {
                return None;
            }
            if self.whole {
                self.collect().await;
                continue;
            }
            match self.events.poll_event() {
                Ok(Some(event)) => self.read(&event),
                Ok(None) => match self.body.next().await {
                    Some(Ok(bytes)) => self.events.insert(bytes),
                    None if self.at_end.is_some() => self.end(Ok(())),
                    Some(Err(_)) | None => self.end(Err(lost())),
                },
                Err(error) => self.end(Err(Status::internal(error.to_string()))),
            }
        }
    }

    fn read(&mut self, event: &sse::Event) {
        let Some(data) = &event.data else {
            self.resumed = Resumed::read(&event.raw).or(self.resumed.take());
            return;
        };
        if &data[..] == b"[DONE]" {
            self.at_end = Some(event.raw.clone());
            return;
        }
        let said: Said<'_> = serde_json::from_slice(data).unwrap_or(Said { error: None });
        if let Some(error) = said.error.filter(|error| error.get().starts_with('{')) {
            return self.end(Err(status::of_event(error.get())));
        }
        let taken = if self.is_kept { self.keep(data, &event.raw) } else { self.take(data) };
        if let Err(status) = taken {
            self.end(Err(status));
        }
    }

    /// An event of a stream that is kept: nothing of it waits for what follows, or it would be shown without its number.
    fn keep(&mut self, data: &[u8], event: &Bytes) -> Result<(), Status> {
        let usage = usage_in(data);
        let mut chunks = self.reader.read_data(data, usage)?;
        let mut last = chunks.pop().unwrap_or_default();
        if usage.is_some() {
            last.usage = self.reader.usage();
        }
        self.ready.extend(chunks.into_iter().map(|chunk| Ok((chunk, Bytes::new()))));
        self.ready.push_back(Ok((last, event.clone())));
        Ok(())
    }

    /// The end of a stream that is kept. The usage is told here, too: its client may not have asked for it.
    fn done(&mut self, event: Bytes) {
        let mut last = self.reader.unsaid_end().unwrap_or_default();
        let bill = || self.bill.usage().map(|usage| crate::convert::usage_said(usage, 0));
        last.usage = self.reader.usage().or_else(bill);
        self.ready.push_back(Ok((last, event)));
    }

    /// All of an answer that comes at once.
    async fn collect(&mut self) {
        let mut answer = Vec::new();
        while let Some(Ok(bytes)) = self.body.next().await {
            answer.extend_from_slice(&bytes);
        }
        let taken = self.take(&answer);
        self.end(taken);
    }

    fn take(&mut self, data: &[u8]) -> Result<(), Status> {
        for chunk in self.reader.read_data(data, usage_in(data))? {
            let ends = !chunk.finish_reason.is_empty();
            let ready = if ends { self.held.replace(chunk) } else { Some(chunk) };
            self.ready.extend(ready.map(|chunk| Ok((chunk, Bytes::new()))));
        }
        Ok(())
    }

    /// Nothing follows.
    fn end(&mut self, how: Result<(), Status>) {
        self.over = true;
        match how {
            Err(status) => {
                self.ready.extend(self.held.take().map(|held| Ok((held, Bytes::new()))));
                self.ready.push_back(Err(status));
            }
            Ok(()) if self.is_kept => {
                let event = self.at_end.take().unwrap_or_default();
                self.done(event);
            }
            Ok(()) => {
                let last = self.held.take().or_else(|| self.reader.unsaid_end());
                let mut last = last.unwrap_or_default();
                last.usage = self.reader.usage();
                self.ready.push_back(Ok((last, Bytes::new())));
            }
        }
    }

    fn piece(&mut self, mut chunk: Chunk, event: Bytes) -> StreamChatResponse {
        let next = self.next.entry(chunk.choice).or_default();
        chunk.seq = *next;
        *next += u64::from(chunk.token_count);
        let resumed = self.resumed.take().map(crate::convert::resumed_said);
        let (begun, event) = (self.begun.take(), event.into());
        StreamChatResponse { begun, chunk: Some(chunk), resumed, event }
    }
}

/// The body ended without `[DONE]` and without a word.
pub(super) fn lost() -> Status {
    let error = r#"{"message":"The answer broke off. Send the request again.","type":"server_error","code":"answer_lost","param":null}"#;
    status::of_event(error)
}
