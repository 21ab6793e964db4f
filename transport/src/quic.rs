//! QUIC between gateway and worker: what both ends share. `docs/quic.md` is the description for whoever writes another.
//!
//! The messages are those of gRPC. What QUIC adds is streams that do not wait for each other's lost packets, and what it
//! leaves out is HTTP: a call is one bidirectional stream of frames ([`frame`]), its headers and trailers are messages
//! too. HTTP/3 was not taken: its header compression and its extension frames would come for nothing.
//!
//! **No 0-RTT.** Early data can be replayed by whoever recorded it, and an inference costs money. The client never sends
//! any, the server accepts none (`max_early_data_size` is 0).

pub(crate) mod frame;
mod identity;
mod trust;

use core::time::Duration;
use std::sync::Arc;

use quinn::{IdleTimeout, TransportConfig, VarInt};

pub use identity::{Identity, IdentityError};
pub use trust::{BadPin, Pin, Trust};

/// What both ends must speak.
pub(crate) const ALPN: &[u8] = b"pointsman-inference/1";

/// Why a stream was reset or stopped.
pub(crate) mod code {
    use quinn::VarInt;

    /// Its other end is no longer wanted: the caller left, or the worker gave up writing to one who does not read.
    pub const CANCELLED: VarInt = VarInt::from_u32(1);
    /// The connection's end, in good order.
    pub const DONE: VarInt = VarInt::from_u32(0);
}

/// A caller says so often that it is still there. A port that nobody listens on any more answers that, so that the
/// death of a worker's process is noticed within this time.
const ALIVE_EVERY: Duration = Duration::from_millis(750);
/// A peer that is silent for so long, in milliseconds, is gone. Several of the above may get lost, and a machine may be
/// busy for a while: what it has not read yet counts as silence, too. A caller knows sooner.
const SILENT_MAX: u32 = 8_000;

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    /// Streams that the other side may have open at once.
    pub streams_max: u32,
    /// What the other side may send ahead on one stream.
    pub stream_window: u32,
    /// The same of all streams together.
    pub connection_window: u32,
    /// Whether this side says that it is still there.
    pub says_alive: bool,
}

impl Ends {
    pub fn transport(self) -> Arc<TransportConfig> {
        let mut config = TransportConfig::default();
        config
            .max_concurrent_bidi_streams(VarInt::from_u32(self.streams_max))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .stream_receive_window(VarInt::from_u32(self.stream_window))
            .receive_window(VarInt::from_u32(self.connection_window))
            // What waits to be sent or acknowledged, all streams together. Beyond that writers wait.
            .send_window(u64::from(self.connection_window))
            .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(SILENT_MAX))))
            .keep_alive_interval(self.says_alive.then_some(ALIVE_EVERY))
            .datagram_receive_buffer_size(None);
        Arc::new(config)
    }
}
