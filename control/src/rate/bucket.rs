//! One GCRA bucket with holds.

use alloc::collections::VecDeque;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Instant;

/// What one account has used of one limit. See [`super::Rate`] for the rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Bucket {
    /// GCRA's theoretical arrival time: when everything used so far has drained.
    tat: Instant,
    /// Held by requests that run, by when they began: coarse, so that it is short.
    held: VecDeque<Held>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    since: Instant,
    amount: u64,
}

/// Limit and burst in the terms of GCRA.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Per minute.
    pub limit: u64,
    /// How far use may run ahead of the clock.
    pub burst: Duration,
    /// A hold older than this was leaked and is let go.
    pub hold_max: Duration,
}

/// Why something does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    /// Not now; perhaps after this.
    Wait(Duration),
    /// Not even into an idle bucket.
    Never,
}

const MINUTE_NANOS: u128 = 60_000_000_000;

/// Holds are told apart by an eighth of `hold_max`: a leaked one is let go at most so much late.
const HOLD_SLOTS: u32 = 8;

impl Pace {
    /// How long `amount` takes to drain; rounded up, so that rounding never grants more.
    fn drain(self, amount: u64) -> Duration {
        let nanos = (u128::from(amount) * MINUTE_NANOS).div_ceil(u128::from(self.limit.max(1)));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn slot(self) -> Duration {
        (self.hold_max / HOLD_SLOTS).max(Duration::from_nanos(1))
    }
}

impl Bucket {
    /// Whether `amount` more may be held at `now`.
    pub fn fits(&self, now: Instant, pace: Pace, amount: u64) -> Result<(), Misfit> {
        if pace.limit == 0 || pace.drain(amount) > pace.burst {
            return Err(Misfit::Never);
        }
        let ahead = self.tat.since(now) + pace.drain(self.held(now, pace).saturating_add(amount));
        if ahead <= pace.burst { Ok(()) } else { Err(Misfit::Wait(ahead - pace.burst)) }
    }

    /// Counts `amount` as used, at most so much as drains in `hold_max`: an answer that claims to have used more than
    /// anybody could shall not lock its account for ever.
    pub fn use_up(&mut self, now: Instant, pace: Pace, amount: u64) {
        self.tat = self.tat.max(now) + pace.drain(amount).min(pace.hold_max);
    }

    /// Holds `amount` for a request that begins.
    pub fn hold(&mut self, now: Instant, pace: Pace, amount: u64) {
        self.let_go(now, pace);
        match self.held.back_mut() {
            Some(last) if now.since(last.since) < pace.slot() => {
                last.amount = last.amount.saturating_add(amount);
            }
            _ => self.held.push_back(Held { since: now, amount }),
        }
    }

    /// Ends a hold that began at `since`. What was let go already is not there any more.
    pub fn release(&mut self, now: Instant, pace: Pace, since: Instant, amount: u64) {
        if let Some(held) = self.held.iter_mut().rev().find(|held| held.since <= since) {
            held.amount = held.amount.saturating_sub(amount);
        }
        self.let_go(now, pace);
    }

    /// Forgetting it grants nothing.
    pub fn idle(&self, now: Instant, pace: Pace) -> bool {
        self.tat <= now && self.held(now, pace) == 0
    }

    /// What runs at `now`.
    pub fn held(&self, now: Instant, pace: Pace) -> u64 {
        let live = self.held.iter().filter(|held| !leaked(held, now, pace));
        live.fold(0, |sum, held| sum.saturating_add(held.amount))
    }

    pub fn invariants(&self) {
        assert!(self.held.iter().map(|h| h.since).is_sorted(), "holds stand in order");
        assert!(self.held.len() <= HOLD_SLOTS as usize + 2, "holds are coarse");
    }

    fn let_go(&mut self, now: Instant, pace: Pace) {
        while self.held.front().is_some_and(|held| held.amount == 0 || leaked(held, now, pace)) {
            self.held.pop_front();
        }
    }
}

fn leaked(held: &Held, now: Instant, pace: Pace) -> bool {
    now.since(held.since) > pace.hold_max + pace.slot()
}

/// The burst, lengthened to what one unit takes to drain: a shorter one would admit nothing, ever.
pub(crate) fn at_least_one(limit: u64, burst: Duration) -> Duration {
    let one = MINUTE_NANOS.div_ceil(u128::from(limit.max(1)));
    burst.max(Duration::from_nanos(u64::try_from(one).unwrap_or(u64::MAX)))
}
