//! Stored sessions over real sockets: a gateway, its HTTP front, a scripted replica, and Redis where several share.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

#[path = "../redis/server.rs"]
#[allow(dead_code, reason = "shared with tests that do more to their servers")]
mod server;

mod keeping;
mod roles;
mod sharing;
mod spending;
mod turning;
mod world;
