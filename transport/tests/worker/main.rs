//! Workers over real loopback sockets: asked directly, and by a whole gateway in front of them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../redis/server.rs"]
#[allow(dead_code, reason = "shared with tests that need more of it")]
mod server;

mod asked;
mod auth;
mod certificates;
mod discovering;
mod embedding;
mod failing;
mod gateway;
mod kept;
mod lagging;
mod lines;
mod lying;
mod outliving;
mod prefixing;
mod quic;
mod quic_lines;
mod reflecting;
mod reporting;
mod resuming;
mod roles;
mod seams;
mod services;
mod serving;
mod skewed;
mod telling;
mod world;
