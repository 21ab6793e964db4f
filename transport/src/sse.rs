//! Server-Sent Events, read as they arrive (WHATWG HTML, section 9.2, "Server-sent events").
//!
//! A gateway forwards what it does not need to change, so every event comes out with the very bytes it came in with.
//! Where an event lies in one chunk these are a slice of that chunk: nothing is copied or written anew. Parsing whole
//! lines into strings, as most clients do, was rejected for that reason, and because a chunk may end anywhere, even
//! inside a character or between CR and LF.
//!
//! What comes out is a **block**: everything up to and including an empty line. A block without a `data` field (a
//! comment, a keep-alive, a lone empty line) is not an event by the standard, yet it is yielded too, because it has to be
//! forwarded; its [`Event::data`] is `None`.
//!
//! Edge cases, all independent of how the bytes were cut:
//! - Lines end in LF, CRLF or CR, also mixed. An empty line that ends in CR is complete only when we know that no LF
//!   follows, so it waits for one more byte, unless the line before it ended in a bare CR: then the stream is of that
//!   kind and nobody waits. (Always waiting would hold such a stream's events back by one; never waiting would leave the
//!   LF of a CRLF stream to the next event, and clients that look for CRLFCRLF would lag by one.)
//! - One byte order mark at the very beginning is dropped, also from the raw bytes.
//! - Bytes that are not UTF-8 pass unchanged: whoever reads `data` as JSON will refuse them.
//! - A block that the end of the stream cuts off is not an event. [`Parser::finish`] hands it out all the same, because
//!   some servers do not end their last event properly; the caller decides.

use core::time::Duration;
use std::mem;

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr2;

/// The largest block accepted unless said otherwise: 4 MiB. A chunk of a chat answer is some hundred bytes; the largest
/// legitimate ones carry base64 audio or images, which stay below this.
pub const EVENT_BYTES_MAX: usize = 4 << 20;

/// Everything up to and including one empty line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The block's bytes as they arrived, its empty line included.
    pub raw: Bytes,
    /// The `data` lines joined by LF. `None` where there was none: then the standard dispatches nothing.
    pub data: Option<Bytes>,
    /// The `event` field (the event's type), the last one if there are several.
    pub name: Option<Bytes>,
    /// The `id` field, the last one without a NUL.
    pub id: Option<Bytes>,
    /// The `retry` field: how long a client should wait before it reconnects.
    pub retry: Option<Duration>,
}

/// A block was larger than the parser's maximum. The parser yields nothing after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is larger than {max} bytes")]
pub struct TooLarge {
    /// The maximum that was passed, in bytes.
    pub max: usize,
}

/// An incremental parser: chunks go in by [`insert`](Self::insert), blocks come out of [`poll_event`](Self::poll_event).
///
/// Holds at most one unfinished block (bounded) and the chunks not yet polled, so drain it after every `insert`.
#[derive(Debug)]
pub struct Parser {
    /// The beginning of the current block, from chunks before this one.
    carry: BytesMut,
    /// What has arrived and is not yet in a block.
    chunk: Bytes,
    /// How much of `chunk` the scanner has already looked at.
    scanned: usize,
    scanner: Scanner,
    mark: ByteOrderMark,
    event_bytes_max: usize,
    failed: bool,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new(EVENT_BYTES_MAX)
    }
}

impl Parser {
    /// A parser that refuses blocks of more than `event_bytes_max` bytes.
    #[must_use]
    pub fn new(event_bytes_max: usize) -> Self {
        Self {
            carry: BytesMut::new(),
            chunk: Bytes::new(),
            scanned: 0,
            scanner: Scanner::default(),
            mark: ByteOrderMark::Matched(0),
            event_bytes_max,
            failed: false,
        }
    }

    /// Takes the next bytes of the stream.
    pub fn insert(&mut self, chunk: Bytes) {
        let chunk = self.without_mark(chunk);
        if self.chunk.is_empty() {
            self.chunk = chunk;
            self.scanned = 0;
        } else if !chunk.is_empty() {
            // The caller did not drain before it came back: legal, and worth a copy rather than a queue.
            let mut joined = BytesMut::with_capacity(self.chunk.len() + chunk.len());
            joined.extend_from_slice(&self.chunk);
            joined.extend_from_slice(&chunk);
            self.chunk = joined.freeze();
        }
    }

    /// The next whole block, if one has arrived.
    ///
    /// # Errors
    /// [`TooLarge`], from then on always, when a block passes the maximum, whether or not its end has been seen.
    pub fn poll_event(&mut self) -> Result<Option<Event>, TooLarge> {
        let too_large = TooLarge { max: self.event_bytes_max };
        if self.failed {
            return Err(too_large);
        }
        let end = self.scanner.block_end(&self.chunk, &mut self.scanned);
        let size = self.carry.len() + end.unwrap_or(self.chunk.len());
        if size > self.event_bytes_max {
            self.failed = true;
            self.carry = BytesMut::new();
            self.chunk = Bytes::new();
            return Err(too_large);
        }
        let Some(end) = end else {
            self.carry.extend_from_slice(&mem::take(&mut self.chunk));
            self.scanned = 0;
            return Ok(None);
        };
        self.scanned = 0;
        let tail = self.chunk.split_to(end);
        Ok(Some(Event::parse(self.block(tail))))
    }

    /// What the end of the stream cut off: a block without its empty line. By the standard it is to be dropped.
    #[must_use]
    pub fn finish(mut self) -> Option<Event> {
        if self.failed {
            return None;
        }
        let rest = mem::take(&mut self.chunk);
        let raw = self.block(rest);
        let event = Event::parse(raw);
        (!event.raw.iter().all(|byte| matches!(byte, b'\r' | b'\n'))).then_some(event)
    }

    fn block(&mut self, tail: Bytes) -> Bytes {
        if self.carry.is_empty() {
            return tail;
        }
        self.carry.extend_from_slice(&tail);
        self.carry.split().freeze()
    }

    fn without_mark(&mut self, mut chunk: Bytes) -> Bytes {
        while let ByteOrderMark::Matched(matched) = self.mark {
            let Some(&byte) = chunk.first() else { break };
            if byte != MARK[matched] {
                // It was no mark after all: the bytes swallowed so far belong to the stream.
                self.carry.extend_from_slice(&MARK[..matched]);
                self.scanner.line_has_bytes |= matched > 0;
                self.mark = ByteOrderMark::Decided;
            } else {
                chunk.advance(1);
                self.mark = match matched + 1 {
                    3 => ByteOrderMark::Decided,
                    more => ByteOrderMark::Matched(more),
                };
            }
        }
        chunk
    }
}

const MARK: [u8; 3] = [0xEF, 0xBB, 0xBF];

#[derive(Clone, Copy, Debug)]
enum ByteOrderMark {
    /// So many bytes of it were seen, and nothing else yet.
    Matched(usize),
    /// It was dropped, or is not there.
    Decided,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineEnd {
    Lf,
    Cr,
    CrLf,
}

/// Finds empty lines. Its state is what a cut between two chunks must not lose.
#[derive(Debug, Default)]
struct Scanner {
    /// The current line is not empty.
    line_has_bytes: bool,
    /// The last byte was a CR, and an LF may follow.
    after_cr: bool,
    /// How the line before the current one ended.
    last: Option<LineEnd>,
    /// A bare CR ended the block: an LF right behind it is no further line, it rides at the head of the next block.
    lf_belongs_to_last: bool,
}

impl Scanner {
    /// Where the current block ends in `chunk`, looking on from `scanned`.
    fn block_end(&mut self, chunk: &[u8], scanned: &mut usize) -> Option<usize> {
        loop {
            if self.after_cr {
                let line_end = match chunk.get(*scanned)? {
                    b'\n' => {
                        *scanned += 1;
                        LineEnd::CrLf
                    }
                    _ => LineEnd::Cr,
                };
                self.after_cr = false;
                if self.line_ends(line_end) {
                    return Some(*scanned);
                }
            }
            let Some(at) = memchr2(b'\r', b'\n', &chunk[*scanned..]) else {
                if *scanned < chunk.len() {
                    self.line_has_bytes = true;
                    self.lf_belongs_to_last = false;
                    *scanned = chunk.len();
                }
                return None;
            };
            self.line_has_bytes |= at > 0;
            self.lf_belongs_to_last &= at == 0;
            let line_end = chunk[*scanned + at];
            *scanned += at + 1;
            if self.take_line_end(line_end) {
                return Some(*scanned);
            }
        }
    }

    /// Takes a CR or LF; true where the block ends with it.
    fn take_line_end(&mut self, byte: u8) -> bool {
        let lf_belongs_to_last = mem::take(&mut self.lf_belongs_to_last);
        if byte == b'\n' {
            return !lf_belongs_to_last && self.line_ends(LineEnd::Lf);
        }
        if !self.line_has_bytes && self.last == Some(LineEnd::Cr) {
            self.lf_belongs_to_last = true;
            return self.line_ends(LineEnd::Cr);
        }
        self.after_cr = true;
        false
    }

    fn line_ends(&mut self, line_end: LineEnd) -> bool {
        self.last = Some(line_end);
        !mem::take(&mut self.line_has_bytes)
    }
}

impl Event {
    /// Reads the fields of one block.
    fn parse(raw: Bytes) -> Self {
        let mut event = Self { raw: Bytes::new(), data: None, name: None, id: None, retry: None };
        let mut joined: Option<BytesMut> = None;
        let mut from = 0;
        while from < raw.len() {
            let end = memchr2(b'\r', b'\n', &raw[from..]).map_or(raw.len(), |at| from + at);
            if end > from {
                event.take_line(raw.slice(from..end), &mut joined);
            }
            from = end + 1;
        }
        if let Some(joined) = joined {
            event.data = Some(joined.freeze());
        }
        event.raw = raw;
        event
    }

    fn take_line(&mut self, line: Bytes, joined: &mut Option<BytesMut>) {
        let colon = memchr::memchr(b':', &line).unwrap_or(line.len());
        let mut value = line.slice((colon + 1).min(line.len())..);
        if value.first() == Some(&b' ') {
            value.advance(1);
        }
        match &line[..colon] {
            b"data" => self.take_data(value, joined),
            b"event" => self.name = Some(value),
            b"id" if memchr::memchr(0, &value).is_none() => self.id = Some(value),
            b"retry" => self.retry = milliseconds(&value).or(self.retry),
            // A comment begins with the colon; an unknown field is ignored.
            _ => {}
        }
    }

    fn take_data(&mut self, value: Bytes, joined: &mut Option<BytesMut>) {
        match (&self.data, &mut *joined) {
            (_, Some(joined)) => {
                joined.extend_from_slice(b"\n");
                joined.extend_from_slice(&value);
            }
            (Some(first), None) => {
                let mut lines = BytesMut::with_capacity(first.len() + 1 + value.len());
                lines.extend_from_slice(first);
                lines.extend_from_slice(b"\n");
                lines.extend_from_slice(&value);
                *joined = Some(lines);
            }
            (None, None) => self.data = Some(value),
        }
    }
}

/// ASCII digits only, by the standard; what does not fit is ignored.
fn milliseconds(value: &[u8]) -> Option<Duration> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests;
