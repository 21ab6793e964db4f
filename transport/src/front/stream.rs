//! A streamed answer on its way out: bytes as they came, and an honest end.
//!
//! A clean end (`[DONE]`) means a whole answer, so a broken one must never have it: it gets an error event instead,
//! and then the body ends. The official SDKs raise such an event as an exception. Should the last bytes not end an
//! event, a blank line comes first, so that the error is an event of its own.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame};
use tokio::sync::mpsc::Receiver;

use super::error::{self, ApiError};
use super::record::Record;
use super::refusal;
use super::resumable::Bill;
use crate::exchange::{End, Part};

/// The body of a streamed answer. Dropping it drops the receiver: the chat role then knows that the client has gone.
pub(super) struct Events {
    parts: Receiver<Part>,
    record: Record,
    tail: Tail,
    /// Where somebody wants to know what it came to.
    bill: Option<Bill>,
    over: bool,
}

impl Events {
    pub(super) fn new(parts: Receiver<Part>, record: Record, bill: Option<Bill>) -> Self {
        Self { parts, record, tail: Tail::default(), bill, over: false }
    }

    fn event(&self, error: &ApiError) -> Bytes {
        Bytes::from(format!("{}data: {}\n\n", self.tail.closing(), error.line()))
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let last = match ready!(self.parts.poll_recv(cx)) {
            Some(Part::Bytes(bytes)) => {
                self.tail.push(&bytes);
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Some(Part::End(end)) => {
                self.bill.iter().for_each(|bill| bill.set(end.usage));
                ended(&mut self.record, &end)
            }
            Some(Part::Unrecorded(end)) => Some(unrecorded(&mut self.record, &end)),
            None => Some(lost(&mut self.record)),
        };
        self.over = true;
        Poll::Ready(last.map(|error| Ok(Frame::data(self.event(&error)))))
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }
}

/// What an ended answer has to say for itself, where it did not end well.
pub(super) fn ended(record: &mut Record, end: &End) -> Option<ApiError> {
    let mut error = refusal::of_outcome(&end.outcome, end.detail.as_deref());
    if let Some(error) = &mut error {
        error.verbatim = end.error.clone();
    }
    let status = error.as_ref().map_or(StatusCode::OK, |error| error.status);
    record.ended(status.as_u16(), end);
    error
}

/// What was delivered is owed for, and nobody knows whether a restart will remember it: no clean end.
pub(super) fn unrecorded(record: &mut Record, end: &End) -> ApiError {
    let words = "The gateway cannot write its journal, so this answer ends without its record; what arrived is all \
                 there was of it. The gateway's operator finds the cause in GET /ready.";
    let mut error =
        error::new(StatusCode::SERVICE_UNAVAILABLE, error::SERVER, "answer_not_recorded", words);
    // A stored session says it in its own words.
    error.verbatim = end.error.clone();
    record.ended(error.status.as_u16(), end);
    error
}

/// The chat role went away without a word: a bug or a crash on our side, told as such.
pub(super) fn lost(record: &mut Record) -> ApiError {
    let words = "The gateway lost this answer. What arrived is incomplete; send the request again.";
    let error = error::new(StatusCode::INTERNAL_SERVER_ERROR, error::SERVER, "answer_lost", words);
    record.refused(error.status.as_u16(), error.code);
    error
}

/// The last bytes of a stream of events: enough to tell whether it stands between two events.
#[derive(Clone, Copy, Debug, Default)]
struct Tail {
    /// Up to four: the longest blank line with its predecessor's end is `\r\n\r\n`.
    bytes: [u8; 4],
    any: bool,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        for &byte in &bytes[bytes.len().saturating_sub(4)..] {
            self.bytes.rotate_left(1);
            self.bytes[3] = byte;
            self.any = true;
        }
    }

    /// What has to be written before another event can begin.
    fn closing(self) -> &'static str {
        let ends = |end: &[u8]| self.bytes.ends_with(end);
        if !self.any || ends(b"\n\n") || ends(b"\r\r") || ends(b"\r\n\r\n") || ends(b"\n\r\n") {
            ""
        } else if ends(b"\n") {
            "\n"
        } else {
            "\n\n"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closing(pieces: &[&str]) -> &'static str {
        let mut tail = Tail::default();
        pieces.iter().for_each(|piece| tail.push(piece.as_bytes()));
        tail.closing()
    }

    #[test]
    fn an_event_is_closed_with_as_little_as_it_needs() {
        assert_eq!(closing(&[]), "");
        assert_eq!(closing(&["data: x\n\n"]), "");
        assert_eq!(closing(&["data: x\r\n", "\r", "\n"]), "");
        assert_eq!(closing(&["data: x\r\r"]), "");
        assert_eq!(closing(&["data: x\n", ""]), "\n");
        assert_eq!(closing(&["data: x"]), "\n\n");
        // After a lone CR the first LF still belongs to the same line's end.
        assert_eq!(closing(&["data: x\r"]), "\n\n");
    }
}
