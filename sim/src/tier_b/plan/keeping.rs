//! Streams that are kept for a client which goes away, as data: how it reads, when and how it comes back.

use serde::{Deserialize, Serialize};

/// How the client of a resumable stream reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keeping {
    /// It breaks its first connection off after so many events; else it reads as long as that lasts.
    pub breaks_off: Option<u32>,
    /// How it comes back, one time after the other.
    pub visits: Vec<Visit>,
    /// Somebody else with the same key, beside all this.
    pub rival: Option<Rival>,
}

/// One time that somebody comes for the rest of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visit {
    /// So long after the connection before was over.
    pub away_ms: u64,
    /// The gateway, or the door, that is asked.
    pub gateway: u8,
    /// As whom.
    pub guise: Guise,
    /// It breaks off after so many events.
    pub breaks_off: Option<u32>,
}

/// As whom somebody asks for a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Guise {
    /// As its client, from the last event that it has.
    Honest,
    /// As its client, from the beginning.
    FromTheStart,
    /// With a number that no event has.
    TooHigh,
    /// With what is no number.
    Nonsense,
    /// With another tenant's key.
    Stranger,
}

/// A second reader. It reads from the beginning to the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rival {
    /// So long after the stream began.
    pub after_ms: u64,
    /// The gateway, or the door, that it asks.
    pub gateway: u8,
}
