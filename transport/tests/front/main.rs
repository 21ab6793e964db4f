//! The HTTP front over real loopback sockets, with a chat role that plays a script.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod asking;
mod logging;
mod looking;
mod refusing;
mod resuming;
mod sockets;
mod streaming;
mod world;
