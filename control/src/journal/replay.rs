//! Replay: the same inputs, and the proof that they led to the same effects.

use alloc::vec::Vec;
use core::fmt;

use super::record::{DecodeError, Record, Recorder, decode};
use crate::machine::Machine;
use crate::plane::{ControlPlane, Effect, Input, Keyed};

/// A plane that is fed from a journal.
#[derive(Debug)]
pub struct Replay {
    plane: ControlPlane,
    recorder: Recorder,
    effects: Vec<Effect>,
    keyed: Keyed,
}

impl Replay {
    /// Begins at the plane's first step.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::from(ControlPlane::new(seed))
    }

    /// Begins at a snapshot that [`Replay::snapshot`] made.
    ///
    /// # Errors
    /// Where the bytes are no snapshot of this format and logic.
    pub fn restore(snapshot: &[u8]) -> Result<Self, RestoreError> {
        match postcard::take_from_bytes::<ControlPlane>(snapshot) {
            Ok((plane, [])) => Ok(Self::from(plane)),
            Ok(_) | Err(_) => Err(RestoreError),
        }
    }

    /// The whole state, as bytes: what is restored from them has the same future.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        postcard::to_allocvec(&self.plane).expect("the plane's state is plain data")
    }

    /// Takes one recorded step and compares what follows with what followed then.
    ///
    /// # Errors
    /// Where the record cannot be read, or the effects differ.
    pub fn apply(&mut self, bytes: &[u8]) -> Result<&[Effect], Divergence> {
        let record = decode(bytes).map_err(Divergence::Undecodable)?;
        self.recorder.begin(record.now, &record.input);
        self.plane.handle(record.now, record.input);
        self.effects.clear();
        self.effects.extend(core::iter::from_fn(|| self.plane.poll_effect()));
        let same = self.recorder.finish(&self.effects) == bytes;
        let (recorded, replayed) = (record.digest, self.recorder.digest());
        if same {
            Ok(&self.effects)
        } else if recorded != replayed {
            Err(Divergence::Effects { recorded, replayed })
        } else {
            Err(Divergence::Facts)
        }
    }

    /// Takes only the facts of a step that another logic decided: the ledger's entries and the sessions' homes, with
    /// the configuration and the membership that name them, and the idempotency keys of what was charged.
    ///
    /// # Errors
    /// Where the record cannot be read.
    pub fn apply_facts(&mut self, bytes: &[u8]) -> Result<(), Divergence> {
        let Record { now, input, durables, .. } = decode(bytes).map_err(Divergence::Undecodable)?;
        let ends_a_life = matches!(input, Input::Restarted { .. });
        self.plane.restore_step(now, input, &mut self.keyed);
        for durable in &durables {
            self.plane.restore_fact(durable, &mut self.keyed);
        }
        if ends_a_life {
            self.keyed.forget();
        }
        while self.plane.poll_effect().is_some() {}
        Ok(())
    }

    /// The plane as of the last step.
    #[must_use]
    pub fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// The plane as of the last step, for its observations.
    pub fn plane_mut(&mut self) -> &mut ControlPlane {
        &mut self.plane
    }

    /// Ends the replay: the plane goes on from here.
    #[must_use]
    pub fn into_plane(mut self) -> ControlPlane {
        while self.plane.poll_observation().is_some() {}
        self.plane
    }
}

impl From<ControlPlane> for Replay {
    fn from(plane: ControlPlane) -> Self {
        let (recorder, effects, keyed) = Default::default();
        Self { plane, recorder, effects, keyed }
    }
}

/// The replay and the record do not agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divergence {
    /// The record cannot be read.
    Undecodable(DecodeError),
    /// Other effects followed than were recorded.
    Effects {
        /// Digest then.
        recorded: u64,
        /// Digest now.
        replayed: u64,
    },
    /// The same effects followed, but the record does not hold the facts among them as they are.
    Facts,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undecodable(error) => write!(f, "the record cannot be read: {error}"),
            Self::Effects { recorded, replayed } => write!(
                f,
                "other effects followed than were recorded (digest {recorded:016x} then, {replayed:016x} now)"
            ),
            Self::Facts => f.write_str("the recorded facts are not those that followed"),
        }
    }
}

impl core::error::Error for Divergence {}

/// The bytes are no snapshot of this format and logic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreError;

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the bytes are no snapshot of this format and logic")
    }
}

impl core::error::Error for RestoreError {}
