//! Pointsman's hands: everything that touches the world. It performs what [`control`] decides and decides nothing.

pub mod config;
pub mod exchange;
pub mod front;
pub mod journal;
pub mod logs;
pub mod sse;
pub mod upstream;
