//! What happened, as a hash that is always made and as lines that are made on demand.
//!
//! The hash takes in every record of every machine (instant, input, effects), everything the store noted, and every
//! fault: two runs with one hash saw and did the same. Lines are for people and for [`diff`](crate::diff): each carries
//! the hash as it was then, so that two traces part where their lines do.

mod tail;
mod words;

use std::io::Write;

use control::plane::Effect;
use control::quota::Entry;
use control::rng::hash_bytes;

pub use tail::Tail;
pub(crate) use words::plain;

/// A trace in the making.
pub struct Trace<'a> {
    hash: u64,
    events: u64,
    sink: Sink<'a>,
}

/// What is made besides the hash.
enum Sink<'a> {
    Nothing,
    Lines(&'a mut dyn Write),
    Words(&'a mut Tail),
}

impl<'a> Trace<'a> {
    /// The hash alone.
    #[must_use]
    pub fn hashed() -> Self {
        Self { hash: 0, events: 0, sink: Sink::Nothing }
    }

    /// The hash, and a line for everything that goes into it. What cannot be written is left out of the file, not of the
    /// hash.
    pub fn written(lines: &'a mut dyn Write) -> Self {
        Self { hash: 0, events: 0, sink: Sink::Lines(lines) }
    }

    /// The hash, and the last of what happens in words.
    #[must_use]
    pub fn told(tail: &'a mut Tail) -> Self {
        Self { hash: 0, events: 0, sink: Sink::Words(tail) }
    }

    /// The hash so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Events so far.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    pub(crate) fn event(&mut self) {
        self.events += 1;
    }

    /// A gateway's machine took a step.
    pub(crate) fn step(&mut self, at: u64, gateway: u32, record: &[u8], effects: &[Effect]) {
        self.hash = hash_bytes(self.hash ^ at ^ u64::from(gateway) << 48, record);
        if matches!(self.sink, Sink::Nothing) {
            return;
        }
        let decoded = match control::journal::decode(record) {
            Ok(decoded) => decoded,
            Err(why) => return self.line(at, &format!("gateway-{gateway} {why}")),
        };
        match &mut self.sink {
            Sink::Words(tail) => tail.step(at, gateway, &decoded.input, effects),
            Sink::Lines(_) | Sink::Nothing => {
                let (input, digest) = (decoded.input, decoded.digest);
                self.line(at, &format!("gateway-{gateway} {input:?} => {effects:?} {digest:016x}"));
            }
        }
    }

    /// The store noted something.
    pub(crate) fn store(&mut self, at: u64, made: &[Entry]) {
        for entry in made {
            let bytes = postcard::to_allocvec(entry).expect("an entry is plain data");
            self.hash = hash_bytes(self.hash ^ at, &bytes);
            match &mut self.sink {
                Sink::Nothing => {}
                Sink::Words(tail) => tail.store(at, entry),
                Sink::Lines(_) => self.line(at, &format!("store {:?}", entry.fact)),
            }
        }
    }

    /// A fault began or ended.
    pub(crate) fn fault(&mut self, at: u64, fault: u32, began: bool) {
        self.hash = hash_bytes(self.hash ^ at, &[fault as u8, u8::from(began)]);
        match &mut self.sink {
            Sink::Nothing => {}
            Sink::Words(tail) => tail.fault(at, fault, began),
            Sink::Lines(_) => {
                let verb = if began { "begins" } else { "ends" };
                self.line(at, &format!("fault {fault} {verb}"));
            }
        }
    }

    fn line(&mut self, at: u64, text: &str) {
        let hash = self.hash;
        if let Sink::Lines(lines) = &mut self.sink {
            // A trace that cannot be written is told by whoever closes the file.
            let _ = writeln!(lines, "{:>13.6} {hash:016x} {text}", at as f64 / 1e9);
        }
    }
}
