//! What happened, as a hash that is always made and as lines that are made on demand.
//!
//! The hash takes in every record of every machine (instant, input, effects), everything the store noted, and every
//! fault: two runs with one hash saw and did the same. Lines are for people and for [`diff`](crate::diff): each carries
//! the hash as it was then, so that two traces part where their lines do.

use std::io::Write;

use control::plane::Durable;
use control::quota::Entry;
use control::rng::hash_bytes;

/// A trace in the making.
pub struct Trace<'a> {
    hash: u64,
    events: u64,
    lines: Option<&'a mut dyn Write>,
}

/// A fact in few words.
fn fact(durable: &Durable) -> String {
    match durable {
        Durable::Entry(entry) => format!("{:?}", entry.fact),
        Durable::Binding { session, binding } => {
            format!("{session:?} at {:?} epoch {}", binding.endpoint, binding.epoch)
        }
        Durable::Released { session } => format!("{session:?} nowhere"),
    }
}

impl<'a> Trace<'a> {
    /// The hash alone.
    #[must_use]
    pub fn hashed() -> Self {
        Self { hash: 0, events: 0, lines: None }
    }

    /// The hash, and a line for everything that goes into it. What cannot be written is left out of the file, not of the
    /// hash.
    pub fn written(lines: &'a mut dyn Write) -> Self {
        Self { hash: 0, events: 0, lines: Some(lines) }
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
    pub(crate) fn step(&mut self, at: u64, gateway: u32, record: &[u8]) {
        self.hash = hash_bytes(self.hash ^ at ^ u64::from(gateway) << 48, record);
        if self.lines.is_some() {
            let said = match control::journal::decode(record) {
                Ok(record) => {
                    let facts: Vec<String> = record.durables.iter().map(fact).collect();
                    format!("{:?} -> {:016x} {}", record.input, record.digest, facts.join("; "))
                }
                Err(why) => why.to_string(),
            };
            self.line(at, &format!("gateway-{gateway} {said}"));
        }
    }

    /// The store noted something.
    pub(crate) fn store(&mut self, at: u64, made: &[Entry]) {
        for entry in made {
            let bytes = postcard::to_allocvec(entry).expect("an entry is plain data");
            self.hash = hash_bytes(self.hash ^ at, &bytes);
            if self.lines.is_some() {
                self.line(at, &format!("store {:?}", entry.fact));
            }
        }
    }

    /// A fault began or ended.
    pub(crate) fn fault(&mut self, at: u64, fault: u32, began: bool) {
        self.hash = hash_bytes(self.hash ^ at, &[fault as u8, u8::from(began)]);
        self.line(at, &format!("fault {fault} {}", if began { "begins" } else { "ends" }));
    }

    fn line(&mut self, at: u64, text: &str) {
        let hash = self.hash;
        if let Some(lines) = &mut self.lines {
            // A trace that cannot be written is told by whoever closes the file.
            let _ = writeln!(lines, "{:>13.6} {hash:016x} {text}", at as f64 / 1e9);
        }
    }
}
