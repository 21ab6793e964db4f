//! The one retry budget: a bucket that requests and time fill, and retries empty.
//!
//! Over any stretch of time, retries <= burst + ratio x requests + floor x seconds.

use serde::{Deserialize, Serialize};

use super::Config;
use crate::time::{Instant, saturating_nanos};

/// One retry. With this unit a floor of one per second is one unit per nanosecond, and a percent of a retry is whole:
/// nothing is ever rounded.
const RETRY: u64 = 1_000_000_000;
const PERCENT: u64 = RETRY / 100;

/// What retries are saved up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// In billionths of a retry.
    saved: u64,
    /// Until when the floor was paid.
    paid_until: Instant,
}

impl Budget {
    pub(super) const fn full(config: &Config) -> Self {
        Self { saved: burst(config), paid_until: Instant::ZERO }
    }

    pub(super) fn deposit(&mut self, now: Instant, config: &Config) {
        self.refill(now, config);
        self.add(u64::from(config.budget_ratio_percent).saturating_mul(PERCENT), config);
    }

    /// Takes one retry, if there is one.
    pub(super) fn withdraw(&mut self, now: Instant, config: &Config) -> bool {
        self.refill(now, config);
        let left = self.saved.checked_sub(RETRY);
        self.saved = left.unwrap_or(self.saved);
        left.is_some()
    }

    pub(super) fn refill(&mut self, now: Instant, config: &Config) {
        let nanos = saturating_nanos(now.since(self.paid_until));
        self.paid_until = self.paid_until.max(now);
        self.add(nanos.saturating_mul(u64::from(config.budget_floor_per_second)), config);
    }

    pub(super) fn whole(&self) -> u32 {
        u32::try_from(self.saved / RETRY).unwrap_or(u32::MAX)
    }

    pub(super) fn invariants(&self, config: &Config) {
        assert!(self.saved <= burst(config), "more is saved than may be");
    }

    fn add(&mut self, units: u64, config: &Config) {
        self.saved = self.saved.saturating_add(units).min(burst(config));
    }
}

const fn burst(config: &Config) -> u64 {
    // 2^32 retries of 10^9 units stay below 2^62.
    config.budget_burst as u64 * RETRY
}
