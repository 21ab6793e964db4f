#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    reason = "a test may panic; proptest's macros use Arc"
)]

mod eligibility;
mod membership;
mod reference;
mod reports;
mod shares;
mod stickiness;
mod story;
mod support;
