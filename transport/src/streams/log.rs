//! One stream's log: numbered events, bounded, with three marks on them.
//!
//! An event is *written* when it is in the log, *shown* when readers may have it (at once, or when a store that other
//! gateways read has it too), and *sent* when a reader took it. What was sent makes room for what comes; what was not is
//! never dropped: where it fills the log there is no room, and whoever fills it has to wait. So a reader who keeps up can
//! resume from anywhere within the bounds, and one who does not slows the answer down, as without a log.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// How much of a stream is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub entries_max: usize,
    /// Passed by one event at most.
    pub bytes_max: usize,
}

/// Whether more will come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// The last event is in it.
    Ended,
    /// Nobody will ever write the last event.
    Lost,
}

/// What a reader finds behind the event it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Events, one after the other, up to and including the one with this number.
    Events(Bytes, u64),
    /// Nothing yet.
    Nothing,
    /// Nothing any more: it had the last event.
    End,
    /// Nothing any more, though the last event never came.
    Lost,
    /// Events that are no longer kept; those from this number on are.
    Gone(u64),
}

/// The events of one stream, numbered from 1.
#[derive(Debug)]
pub(super) struct Log {
    bounds: Bounds,
    /// Each with its `id` line.
    events: VecDeque<Bytes>,
    /// The number of the first of them.
    first: u64,
    bytes: usize,
    /// Comments that stand before the event that comes next.
    before: BytesMut,
    shown: u64,
    sent: u64,
    phase: Phase,
}

impl Log {
    pub fn new(bounds: Bounds) -> Self {
        let (events, before) = (VecDeque::new(), BytesMut::new());
        Self { bounds, events, first: 1, bytes: 0, before, shown: 0, sent: 0, phase: Phase::Open }
    }

    /// The number of the last event written; 0 where there is none.
    pub fn head(&self) -> u64 {
        self.first + self.events.len() as u64 - 1
    }

    /// The number of the first event kept.
    pub fn first(&self) -> u64 {
        self.first
    }

    pub fn shown(&self) -> u64 {
        self.shown
    }

    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether `after` is the number of the last event that will ever be.
    pub fn is_end(&self, after: u64) -> bool {
        self.phase == Phase::Ended && after == self.head()
    }

    /// Whether an event may be written. Makes room for it where it can.
    pub fn has_room(&mut self) -> bool {
        while self.is_full() && self.first <= self.sent {
            let Some(gone) = self.events.pop_front() else { break };
            self.bytes -= gone.len();
            self.first += 1;
        }
        !self.is_full()
    }

    /// Whether whoever fills it waits.
    pub fn is_full(&self) -> bool {
        self.events.len() >= self.bounds.entries_max || self.bytes >= self.bounds.bytes_max
    }

    /// Writes an event, which is a block of the stream, and returns its number. The end of a stream is written whether or
    /// not there is room for it.
    pub fn push(&mut self, block: &[u8]) -> u64 {
        let number = self.head() + 1;
        let digits = Digits::of(number);
        let digits = digits.as_bytes();
        let before = std::mem::take(&mut self.before);
        let length = before.len() + ID.len() + digits.len() + 1 + block.len();
        let mut event = BytesMut::with_capacity(length);
        for part in [&before, ID, digits, b"\n", block] {
            event.extend_from_slice(part);
        }
        self.bytes += event.len();
        self.events.push_back(event.freeze());
        number
    }

    /// A comment that is told in its place: with the event behind it, to whoever has not got that one yet. It has no number of
    /// its own.
    pub fn note(&mut self, comment: &[u8]) {
        self.before.extend_from_slice(comment);
    }

    /// Readers may have the events up to this one.
    pub fn show(&mut self, number: u64) {
        self.shown = self.shown.max(number.min(self.head()));
    }

    /// A reader took the events up to this one.
    pub fn sent(&mut self, number: u64) {
        self.sent = self.sent.max(number.min(self.shown));
    }

    /// A reader begins behind this event: what was sent to another is not sent to it.
    pub fn rewind(&mut self, number: u64) {
        self.sent = number.min(self.shown);
    }

    /// What its events take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The last event is in it.
    pub fn end(&mut self) {
        self.phase = Phase::Ended;
    }

    /// The last event will never come, unless it is here.
    pub fn lose(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Lost;
            self.shown = self.head();
        }
    }

    /// What is shown behind the event `after`, up to so many bytes and one event.
    pub fn read(&self, after: u64, bytes_max: usize) -> Found {
        if after + 1 < self.first {
            return Found::Gone(self.first);
        }
        let from = usize::try_from(after + 1 - self.first).unwrap_or(usize::MAX);
        let count = usize::try_from(self.shown.saturating_sub(after)).unwrap_or(usize::MAX);
        let mut events = self.events.iter().skip(from).take(count);
        let Some(one) = events.next() else {
            return match self.phase {
                Phase::Ended if after >= self.head() => Found::End,
                Phase::Lost => Found::Lost,
                Phase::Open | Phase::Ended => Found::Nothing,
            };
        };
        let (mut last, mut many) = (after + 1, BytesMut::new());
        for event in events {
            if many.len().max(one.len()) + event.len() > bytes_max {
                break;
            }
            if many.is_empty() {
                many.extend_from_slice(one);
            }
            many.extend_from_slice(event);
            last += 1;
        }
        // One event alone, as in a stream that nobody lags behind, is not copied.
        Found::Events(if many.is_empty() { one.clone() } else { many.freeze() }, last)
    }

    /// The events behind `after`, shown or not, with the number of the first of them: so many at most, and so many bytes.
    pub fn unshipped(&self, after: u64, count_max: usize, bytes_max: usize) -> (u64, Vec<Bytes>) {
        let from = (after + 1).max(self.first);
        let skipped = usize::try_from(from - self.first).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let fits = |event: &&Bytes| {
            let before = bytes;
            bytes += event.len();
            before == 0 || bytes <= bytes_max
        };
        let events = self.events.iter().skip(skipped).take(count_max).take_while(fits);
        (from, events.cloned().collect())
    }
}

/// What stands before an event's number.
pub(super) const ID: &[u8] = b"id: ";

/// A number's digits, without an allocation: this is done for every token.
struct Digits([u8; 20], usize);

impl Digits {
    fn of(mut number: u64) -> Self {
        let mut digits = Self([b'0'; 20], 20);
        loop {
            digits.1 -= 1;
            digits.0[digits.1] = b'0' + u8::try_from(number % 10).unwrap_or(0);
            number /= 10;
            if number == 0 {
                return digits;
            }
        }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.0[self.1..]
    }
}

#[cfg(test)]
mod tests;
