//! The journal's words: what one step leaves behind, how a run is replayed from them, and why it went as it did.
//!
//! A record holds the instant, the input, a digest of the effects and the durable facts among them. Replaying feeds the
//! inputs to a plane and compares digests: production's own runs prove, all the time, that the plane is deterministic.
//! The facts are there for the day when a newer plane would decide otherwise: then they are applied, not re-decided.
//!
//! Writing effects out in full was rejected: they follow from the inputs, and would triple the journal.

mod explain;
mod record;
mod replay;

pub use explain::{Explanation, Line};
pub use record::{DecodeError, Record, Recorder, decode};
pub use replay::{Divergence, Replay, RestoreError};

/// How records and snapshots are laid out. A directory of another format is refused, untouched.
pub const FORMAT_VERSION: u32 = 4;

/// Grows whenever the same inputs may lead to other effects than before. Records of another logic are applied as facts,
/// not replayed.
pub const LOGIC_VERSION: u32 = 5;

#[cfg(test)]
mod tests;
