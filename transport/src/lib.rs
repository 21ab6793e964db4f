//! Pointsman's hands: everything that touches the world. It performs what [`control`] decides and decides nothing.

pub mod accounts;
pub mod admin;
pub mod cache;
pub mod catalog;
pub mod chat;
pub mod config;
pub mod convert;
pub mod driver;
pub mod exchange;
pub mod front;
pub mod gateway;
pub mod health;
pub mod inspect;
pub mod journal;
pub mod keys;
pub mod logs;
mod members;
pub mod quic;
pub mod redis;
pub mod seam;
pub mod sources;
pub mod sse;
pub mod tls;
pub mod tokens;
pub mod upstream;
pub mod wall;
pub mod worker;
