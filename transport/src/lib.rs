//! Pointsman's hands: everything that touches the world. It performs what [`control`] decides and decides nothing.

pub mod config;
pub mod front;
pub mod journal;
pub mod keys;
pub mod sse;
pub mod upstream;
