//! The trace: what passed over the network and what the machines decided, in order.
//!
//! Two runs of a plan are the same when their traces are. The network is seen by its shape (when, from, to, what, how
//! long) and the gateways by their journals' digests, which cover instants, inputs and effects. Everything goes into one
//! running hash; text is made only where somebody reads it, and for the last events, which a failure shows.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use control::rng::hash_bytes;

/// Enough to see what led to a failure, and no more than fits on a screen.
const LAST_EVENTS: usize = 40;

/// Something that went into the trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes, or the end of them, at one end of a connection.
    Net {
        /// Whose end.
        host: u8,
        /// Who is at the other.
        peer: u8,
        /// What.
        kind: Net,
        /// How many bytes.
        length: u64,
    },
    /// A journal record was written.
    Record {
        /// By which gateway.
        gateway: u8,
        /// At which position.
        position: u64,
        /// The record's digest.
        digest: u64,
    },
    /// Anything else, in words.
    Word(String),
}

/// What happened on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Net {
    /// It was made.
    Connected = 1,
    /// It could not be made.
    Refused,
    /// It came in.
    Accepted,
    /// Bytes went out.
    Wrote,
    /// Bytes came in.
    Read,
    /// The other end will send no more.
    Eof,
    /// The other end broke it.
    Reset,
    /// This end will send no more.
    Shut,
    /// This end is gone.
    Closed,
    /// A datagram went out.
    Sent,
    /// A datagram came in.
    Got,
}

/// The trace of one run.
#[derive(Debug)]
pub struct Tape {
    hash: u64,
    events: u64,
    names: Vec<String>,
    last: VecDeque<(Duration, Event)>,
    text: Option<Vec<u8>>,
}

impl Tape {
    /// An empty trace; `names` are those of the hosts by number.
    #[must_use]
    pub fn new(names: Vec<String>, with_text: bool) -> Self {
        let text = with_text.then(Vec::new);
        Self { hash: 0, events: 0, names, last: VecDeque::with_capacity(LAST_EVENTS), text }
    }

    /// Writes an event down.
    pub fn note(&mut self, at: Duration, event: Event) {
        self.events += 1;
        self.hash = hash_bytes(self.hash, &bytes_of(at, &event));
        if let Some(text) = &mut self.text {
            let line = Line { at, event: &event, names: &self.names };
            text.extend_from_slice(format!("{line}\n").as_bytes());
        }
        if self.last.len() == LAST_EVENTS {
            self.last.pop_front();
        }
        self.last.push_back((at, event));
    }

    /// How many events there were, and the hash over all of them.
    #[must_use]
    pub fn sum(&self) -> (u64, u64) {
        (self.events, self.hash)
    }

    /// The last events, in words.
    #[must_use]
    pub fn last_words(&self) -> Vec<String> {
        let line = |(at, event): &(Duration, Event)| {
            Line { at: *at, event, names: &self.names }.to_string()
        };
        self.last.iter().map(line).collect()
    }

    /// All of it as text, where that was asked for.
    pub fn take_text(&mut self) -> Vec<u8> {
        self.text.take().unwrap_or_default()
    }

    /// The number of a host.
    #[must_use]
    pub fn host(&self, name: &str) -> u8 {
        let at = self.names.iter().position(|known| known == name);
        at.and_then(|at| u8::try_from(at).ok()).unwrap_or(u8::MAX)
    }
}

fn bytes_of(at: Duration, event: &Event) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32);
    bytes.extend_from_slice(&(at.as_micros() as u64).to_le_bytes());
    match event {
        Event::Net { host, peer, kind, length } => {
            bytes.extend_from_slice(&[1, *host, *peer, *kind as u8]);
            bytes.extend_from_slice(&length.to_le_bytes());
        }
        Event::Record { gateway, position, digest } => {
            bytes.extend_from_slice(&[2, *gateway]);
            bytes.extend_from_slice(&position.to_le_bytes());
            bytes.extend_from_slice(&digest.to_le_bytes());
        }
        Event::Word(text) => {
            bytes.push(3);
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

struct Line<'a> {
    at: Duration,
    event: &'a Event,
    names: &'a [String],
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name =
            |host: &u8| self.names.get(usize::from(*host)).map_or("somebody", String::as_str);
        write!(f, "{:>10.3} ", self.at.as_secs_f64())?;
        match self.event {
            Event::Net { host, peer, kind, length } => {
                write!(f, "{} {} {} {length}", name(host), name(peer), kind.word())
            }
            Event::Record { gateway, position, digest } => {
                write!(f, "gateway-{gateway} record {position} {digest:016x}")
            }
            Event::Word(text) => f.write_str(text),
        }
    }
}

impl Net {
    const fn word(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Refused => "refused",
            Self::Accepted => "accepted",
            Self::Wrote => "wrote",
            Self::Read => "read",
            Self::Eof => "eof",
            Self::Reset => "reset",
            Self::Shut => "shut",
            Self::Closed => "closed",
            Self::Sent => "sent",
            Self::Got => "got",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_an_event_changes_the_hash() {
        let hash = |events: &[(u64, Event)]| {
            let mut tape = Tape::new(vec!["a".into(), "b".into()], false);
            for (at, event) in events {
                tape.note(Duration::from_millis(*at), event.clone());
            }
            tape.sum().1
        };
        let net = |host, peer, kind, length| Event::Net { host, peer, kind, length };
        let seen = [
            hash(&[(1, net(0, 1, Net::Wrote, 5))]),
            hash(&[(2, net(0, 1, Net::Wrote, 5))]),
            hash(&[(1, net(1, 0, Net::Wrote, 5))]),
            hash(&[(1, net(0, 1, Net::Read, 5))]),
            hash(&[(1, net(0, 1, Net::Wrote, 6))]),
            hash(&[(1, Event::Record { gateway: 0, position: 1, digest: 5 })]),
            hash(&[(1, Event::Record { gateway: 0, position: 1, digest: 6 })]),
        ];
        let different: std::collections::BTreeSet<u64> = seen.iter().copied().collect();
        assert_eq!(different.len(), seen.len());
    }

    #[test]
    fn a_trace_reads_as_a_line_for_each_event() {
        let mut tape = Tape::new(vec!["gateway-0".into(), "client-0".into()], true);
        let event = Event::Net { host: 1, peer: 0, kind: Net::Wrote, length: 120 };
        tape.note(Duration::from_millis(1_500), event);
        assert_eq!(tape.last_words(), ["     1.500 client-0 gateway-0 wrote 120"]);
        assert_eq!(tape.take_text(), b"     1.500 client-0 gateway-0 wrote 120\n");
    }
}
