//! The `rate` room: how fast an account may ask, and how much at once a model takes.
//!
//! [`Rate`] holds accounts to requests and tokens per minute; [`Concurrency`] finds out how many requests at once a model's
//! replicas bear. The first is a promise to operators and is kept exactly; the second is an estimate that only bites when
//! replicas push back.

mod bucket;
mod concurrency;
mod limiter;

pub(crate) use bucket::at_least_one;
pub use concurrency::{Concurrency, ConcurrencyConfig, Overloaded, Signal};
pub use limiter::{Config, Rate, RateLimits, RateUnit, Refusal, RefusalReason};

#[cfg(test)]
mod tests;
