#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod eligibility;
mod membership;
mod reference;
mod shares;
mod stickiness;
mod story;
mod support;
