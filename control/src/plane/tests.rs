#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "tests may panic, and name what they expect"
)]

mod admission;
mod attempts;
mod breakers;

mod lives;
mod membership;
mod phases;

mod quota;

mod turns;
pub(crate) mod world;
