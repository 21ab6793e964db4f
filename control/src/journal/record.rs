//! One step as bytes: `postcard` of (instant, input), then of (digest of the effects, durable facts).

use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::plane::{Durable, Effect, Input};
use crate::rng::hash_bytes;
use crate::time::Instant;

/// One step of a plane.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// When it was taken.
    pub now: Instant,
    /// What happened.
    pub input: Input,
    /// Digest of the instant, the input and the effects that followed, in order.
    pub digest: u64,
    /// The facts among them.
    pub durables: Vec<Durable>,
}

#[derive(Serialize, Deserialize)]
struct Head<I> {
    now: Instant,
    input: I,
}

#[derive(Deserialize)]
struct Tail {
    digest: u64,
    durables: Vec<Durable>,
}

/// What the number of a variant takes: one byte, for fewer than 128 variants.
const VARIANT_BYTES: usize = 1;

/// Encodes steps, reusing its memory.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    record: Vec<u8>,
    effects: Vec<u8>,
    facts: Vec<u8>,
    digest: u64,
}

impl Recorder {
    /// Before the step: what is about to happen.
    pub fn begin(&mut self, now: Instant, input: &Input) {
        self.record.clear();
        encode(&Head { now, input }, &mut self.record);
    }

    /// What was taken since [`begin`](Self::begin), for a crash file: the step that it began never ended.
    #[must_use]
    pub fn begun(&self) -> &[u8] {
        &self.record
    }

    /// After the step: what followed. Returns the record's bytes.
    pub fn finish(&mut self, effects: &[Effect]) -> &[u8] {
        self.effects.clear();
        self.facts.clear();
        let mut facts = 0_usize;
        for effect in effects {
            let start = self.effects.len();
            encode(effect, &mut self.effects);
            if let Effect::Persist(_) = effect {
                // Encoded once: the effect's bytes are its variant's number and then the fact's own.
                self.facts.extend_from_slice(&self.effects[start + VARIANT_BYTES..]);
                facts += 1;
            }
        }
        // Over what happened as well as what followed: an input that was altered where it decides nothing is found too.
        let digest = hash_bytes(hash_bytes(effects.len() as u64, &self.record), &self.effects);
        // What follows is a `Tail`: a sequence is its length and its elements.
        encode(&(digest, facts), &mut self.record);
        self.record.extend_from_slice(&self.facts);
        self.digest = digest;
        &self.record
    }

    /// The digest in the latest record.
    #[must_use]
    pub const fn digest(&self) -> u64 {
        self.digest
    }
}

/// Reads a record back.
///
/// # Errors
/// Where the bytes are not a whole record of this format.
pub fn decode(bytes: &[u8]) -> Result<Record, DecodeError> {
    let (Head { now, input }, rest) = postcard::take_from_bytes(bytes)?;
    let (Tail { digest, durables }, rest) = postcard::take_from_bytes(rest)?;
    if rest.is_empty() { Ok(Record { now, input, digest, durables }) } else { Err(DecodeError) }
}

/// The bytes are not a whole record of this format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError;

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the bytes are not a whole record of this format")
    }
}

impl core::error::Error for DecodeError {}

impl From<postcard::Error> for DecodeError {
    fn from(_: postcard::Error) -> Self {
        Self
    }
}

fn encode<T: Serialize>(value: &T, into: &mut Vec<u8>) {
    struct Append<'a>(&'a mut Vec<u8>);
    impl postcard::ser_flavors::Flavor for Append<'_> {
        type Output = ();
        fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
            self.0.push(byte);
            Ok(())
        }
        fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
            // Most are numbers of one to three bytes: pushed one by one, they cost no call.
            if bytes.len() <= 3 {
                for byte in bytes {
                    self.0.push(*byte);
                }
            } else {
                self.0.extend_from_slice(bytes);
            }
            Ok(())
        }
        fn finalize(self) -> postcard::Result<()> {
            Ok(())
        }
    }
    postcard::serialize_with_flavor(value, Append(into))
        .expect("sequences have known lengths, and memory does not refuse");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::affinity::Binding;
    use crate::id::{CallerToken, EndpointId, Minted, RequestId, SessionKey};
    use crate::time::Wall;

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let mut recorder = Recorder::default();
        let input = Input::Restarted { incarnation: 1, wall: Wall::from_millis(7) };
        recorder.begin(Instant::from_nanos(5), &input);
        let bytes = recorder.finish(&[]).to_vec();
        let record = decode(&bytes).expect("whole");
        assert_eq!((record.now, record.input), (Instant::from_nanos(5), input));
        assert_eq!(record.digest, recorder.digest());
    }

    #[test]
    fn a_record_holds_the_facts_among_its_effects_in_order() {
        let (caller, request) =
            (CallerToken(300), RequestId(Minted { incarnation: 1, counter: 2 }));
        let facts = [7, 1_u64 << 40].map(|session| {
            let endpoint = EndpointId { slot: 3, generation: 4 };
            let binding = Binding { endpoint, epoch: session, last_used: Instant::ZERO };
            Durable::Binding { session: SessionKey(session), binding }
        });
        let effects = [
            Effect::Persist(facts[0].clone()),
            Effect::Admitted { caller, request },
            Effect::Persist(facts[1].clone()),
        ];
        let mut recorder = Recorder::default();
        for _ in 0..2 {
            recorder.begin(Instant::ZERO, &Input::Timeout);
            let record = decode(recorder.finish(&effects)).expect("whole");
            assert_eq!(record.durables, facts);
        }
    }

    #[test]
    fn bytes_that_are_cut_or_padded_are_no_record() {
        let mut recorder = Recorder::default();
        recorder.begin(Instant::ZERO, &Input::Timeout);
        let bytes = recorder.finish(&[]).to_vec();
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), Err(DecodeError), "cut at {cut}");
        }
        let padded = [bytes.as_slice(), &[0]].concat();
        assert_eq!(decode(&padded), Err(DecodeError));
    }
}
