//! How much of anything a client may ask of the front before it was heard.

use std::time::Duration;

/// Bounds of the HTTP front, all of them enforced before or around the exchange itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, over all listeners. Beyond it nothing is accepted: further clients wait in the kernel's
    /// backlog until somebody leaves, which is back-pressure they understand.
    pub connections_max: usize,
    /// From a connection's start, or from the first byte of a later request, to the end of its head. TLS handshakes
    /// have the same time.
    pub header_time: Duration,
    /// HTTP/1.1: how long a connection without a request is kept.
    pub idle_time: Duration,
    /// Largest request head, in bytes (HTTP/2: the sum of its header list).
    pub header_max: usize,
    /// Largest request body, in bytes (413 beyond it).
    pub body_max: usize,
    /// From the head to the last byte of the body (408 beyond it).
    pub body_time: Duration,
    /// The longest one exchange over HTTP may take, streams included (504 beyond it); `None`: as long as its model's timeouts
    /// let it. A call over gRPC brings its own deadline.
    pub exchange_time: Option<Duration>,
    /// Longest time a client may leave an answer unread, with nothing moving, before it counts as gone.
    pub write_stall: Duration,
    /// HTTP/2: requests at once on one connection.
    pub streams_max: u32,
    /// HTTP/2: idle connections are pinged so often, and cut where no pong comes within the same time.
    pub ping_interval: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Some 30 KiB each when idle: 300 MiB at the very most; ulimit -n is usually higher.
            connections_max: 10_000,
            exchange_time: None,
            // A head is a few KiB: on any working line it is here in one round trip.
            header_time: Duration::from_secs(10),
            // Longer than load balancers keep theirs (60 s is usual): who closes first must not be the server.
            idle_time: Duration::from_secs(75),
            // Twice what nginx takes (4 x 8 KiB); also the size of HTTP/1.1 buffers, so not smaller.
            header_max: 64 * 1024,
            // A conversation with several pictures as base64; all of a 1 M token context as text.
            body_max: 16 * 1024 * 1024,
            // 16 MiB at 5 Mbit/s.
            body_time: Duration::from_secs(30),
            // Longer than a phone is in a tunnel; a reader stuck for longer holds tokens that nobody reads.
            write_stall: Duration::from_secs(60),
            // Above the 100 that RFC 9113 names as the least to allow; a client with more opens a second connection.
            streams_max: 250,
            // Under the shortest usual idle timeout of a load balancer (60 s), twice.
            ping_interval: Duration::from_secs(25),
        }
    }
}
