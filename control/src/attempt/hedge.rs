//! Whether a request that waits for its first token gets a second attempt beside the first.
//!
//! A replica that is slow, and not dead, costs its callers what no retry saves: nothing has failed. A second attempt beside
//! the silent one cuts that tail (J. Dean, L. A. Barroso, "The Tail at Scale", 2013) and costs a replica's time. What is to
//! be feared of it is what is to be feared of retries: when all replicas are slow, every request would ask for a second.
//! So it is a retry made early, and asks as one: it counts as an attempt, ends with the request's deadline, goes to an endpoint
//! that was not tried, and the retry budget pays for it. Beside that, hedges are at most a share of the requests that may be
//! hedged, whatever the budget has: over any number of them, hedges <= 1 + share x requests + [`SAVED_MAX`].
//!
//! Rejected: a percentile of what was measured as the wait. It follows a pool that becomes slow as a whole, so that hedging
//! hides what an operator should see; and two gateways would wait differently.

use core::fmt;

use serde::{Deserialize, Serialize};

use super::Retry;
use crate::time::Instant;

/// Hundredths of a hedge: a percent of one is whole, nothing is ever rounded.
const HEDGE: u64 = 100;

/// Hedges that can be saved up. One replica that stalls holds up about as many requests at once.
pub const SAVED_MAX: u64 = 10;

/// What hedges are saved up: a share of the requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Share(u64);

impl Share {
    /// One is there from the start, so that one slow request among few need not wait for a hundred others.
    pub const fn new() -> Self {
        Self(HEDGE)
    }

    pub fn deposit(&mut self, percent: u32) {
        self.0 = self.0.saturating_add(u64::from(percent)).min(SAVED_MAX * HEDGE);
    }

    pub fn invariants(&self) {
        assert!(self.0 <= SAVED_MAX * HEDGE, "more hedges are saved than may be");
    }
}

/// What is known of a request that waits for its first token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Attempts so far, the one that runs included.
    pub attempts: u32,
    /// The request's one deadline.
    pub deadline: Instant,
    /// Whether an endpoint that was not tried yet could be asked.
    pub other_eligible: bool,
}

/// Why a request that waits gets no second attempt beside the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoHedge {
    /// As often as may be.
    AttemptsSpent,
    /// There is no time left for it.
    DeadlineTooNear,
    /// All who could be asked were asked, are full, or are ejected.
    Nobody,
    /// Hedges have had their share of the requests.
    ShareSpent,
    /// Too much is being retried already.
    BudgetSpent,
}

impl Retry {
    /// A request arrived that may be hedged: it earns its share of a hedge.
    pub fn deposit_hedge(&mut self) {
        self.hedges.deposit(self.config.hedge_share_percent);
    }

    /// Whether a second attempt could be made at all. Costs nothing, not even a turn in the picks.
    ///
    /// # Errors
    /// Why not.
    pub fn may_hedge(&self, now: Instant, waiting: &Waiting) -> Result<(), NoHedge> {
        if waiting.attempts >= self.config.attempts_max {
            Err(NoHedge::AttemptsSpent)
        } else if now + self.config.attempt_time_min > waiting.deadline {
            Err(NoHedge::DeadlineTooNear)
        } else if !waiting.other_eligible {
            Err(NoHedge::Nobody)
        } else if self.hedges.0 < HEDGE && !planted!(HedgesUnbounded) {
            Err(NoHedge::ShareSpent)
        } else if self.budget(now) == 0 && !planted!(HedgesUnbounded) {
            Err(NoHedge::BudgetSpent)
        } else {
            Ok(())
        }
    }

    /// Pays for the second attempt of a request that may have one. Asked last, when it is known where it goes.
    ///
    /// # Errors
    /// Nothing is left to pay with; nothing was taken.
    pub fn pay_hedge(&mut self, now: Instant) -> Result<(), NoHedge> {
        if planted!(HedgesUnbounded) {
            return Ok(());
        }
        let left = self.hedges.0.checked_sub(HEDGE).ok_or(NoHedge::ShareSpent)?;
        if !self.budget.withdraw(now, &self.config) {
            return Err(NoHedge::BudgetSpent);
        }
        self.hedges.0 = left;
        Ok(())
    }
}

impl fmt::Display for NoHedge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AttemptsSpent => "all attempts are spent (routing.max_retries)",
            Self::DeadlineTooNear => "the request's deadline is too near",
            Self::Nobody => "nobody else can be asked",
            Self::ShareSpent => "hedges have had their share (routing.hedge.share_percent)",
            Self::BudgetSpent => "the retry budget is spent: too much is failing",
        })
    }
}
