//! Workers over real loopback sockets: asked directly, and by a whole gateway in front of them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod asked;
mod discovering;
mod failing;
mod gateway;
mod lines;
mod lying;
mod outliving;
mod quic;
mod quic_lines;
mod reporting;
mod resuming;
mod roles;
mod serving;
mod telling;
mod world;
