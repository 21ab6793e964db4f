//! What keeps requests of one caller in order: turns of a stored session, and idempotency keys.
//!
//! Two turns of one conversation that run at once each answer a history without the other; the one stored last wins,
//! and a message is lost. So a named, stored session has [`Turns`]: one runs, a few wait, the rest are told. A key
//! derived from a conversation's prefix is only a hint for affinity: it never comes here.
//!
//! A client that never saw its answer asks again, and is charged again. With an `Idempotency-Key` it is not: see
//! [`Idempotency`].
//!
//! What of a stored session goes upstream is a [`window`] over it: a function, not a machine. The shell calls it once the
//! turn has come, with what is stored by then.

mod idempotency;
mod turns;
mod window;

use core::time::Duration;

use serde::{Deserialize, Serialize};

pub use idempotency::{Begun, Idempotency};
pub use turns::{Turn, TurnRefused, Turns};
pub use window::{Line, Part, window};

/// Bounds of the room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Turns that may wait for one session's running turn. Read as at most 1,024.
    pub waiting_max: u32,
    /// How long a turn waits before it is refused.
    pub wait_max: Duration,
    /// Sessions with a turn under way.
    pub sessions_max: u32,
    /// Idempotency keys that are remembered, over all tenants.
    pub idempotency_keys_max: u32,
    /// How long a key is remembered after its request succeeded.
    pub idempotency_ttl: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            // A person with the same conversation in a few windows; more is a loop.
            waiting_max: 4,
            // Longer, and the client has hung up or asks again.
            wait_max: Duration::from_secs(30),
            // Each holds a request under way, and connections run out before.
            sessions_max: 100_000,
            // About 10 MB; at one keyed request per second, a whole day.
            idempotency_keys_max: 100_000,
            // What payment interfaces made customary.
            idempotency_ttl: Duration::from_secs(24 * 60 * 60),
        }
    }
}
