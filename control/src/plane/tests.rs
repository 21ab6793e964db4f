#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "tests may panic, and name what they expect"
)]

mod admission;
mod attempts;
mod breakers;
pub(crate) mod chaos;
pub(crate) mod gateways;
mod hedging;
mod lives;
mod membership;
mod phases;
mod properties;

mod quota;
mod reports;
mod resuming;
mod services;
mod silence;

mod transcripts;
mod turns;
mod upgrades;
pub(crate) mod world;
