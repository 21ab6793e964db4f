//! The store's side of the rates: GCRA with holds, as [`Rate`](crate::rate::Rate) does it for one plane.
//!
//! The rule and its reasons are that room's: tokens are held when a request is admitted and used when it ends, because what
//! was charged at once and is returned later has drained meanwhile, and would be granted twice. What differs is what a
//! store needs: amounts are microseconds of draining, and what is held stands under the end of its lease, in coarse slots,
//! so that it goes with whoever died.
//!
//! | a limit's bucket | take, it fits            | take, it does not | correction                      | the slot's time is over |
//! |------------------|--------------------------|-------------------|---------------------------------|-------------------------|
//! | requests         | used: `tat` runs ahead   | nothing, for all  | -                               | -                       |
//! | tokens           | held in its slot         | nothing, for all  | let go from the slot, then used | let go                  |

use alloc::collections::BTreeMap;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::{RateCorrection, RateTake, RatesAnswer};
use crate::id::AccountId;
use crate::rate::RateUnit;

/// Holds are told apart by the five minutes in which they end: at the longest lease, an hour, thirteen slots.
pub const SLOT_MICROS: u64 = 300_000_000;

/// Amounts stay below this, so that a script with doubles for numbers computes the same: 35 years.
const MICROS_MAX: u64 = 1 << 50;

const MINUTE_MICROS: u128 = 60_000_000;

/// How long `amount` takes to drain at `limit` a minute: whole microseconds, rounded up, so that rounding grants nothing.
#[must_use]
pub fn drain_micros(limit: u64, amount: u64) -> u64 {
    let micros = (u128::from(amount) * MINUTE_MICROS).div_ceil(u128::from(limit.max(1)));
    u64::try_from(micros).map_or(MICROS_MAX, |micros| micros.min(MICROS_MAX))
}

/// A duration in whole microseconds, rounded up, at most what a script can count.
#[must_use]
pub fn micros(duration: Duration) -> u64 {
    let micros = duration.as_nanos().div_ceil(1_000);
    u64::try_from(micros).map_or(MICROS_MAX, |micros| micros.min(MICROS_MAX))
}

/// The buckets of all accounts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    buckets: BTreeMap<(AccountId, RateUnit), Bucket>,
}

/// One limit of one account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Bucket {
    /// When all that was used will have drained.
    tat: u64,
    /// What is held, by the end of its slot.
    held: BTreeMap<u64, u64>,
}

impl Rates {
    /// Takes all of `takes` for a request that runs for at most `lease`, or none.
    pub fn take(&mut self, now: u64, lease: u64, takes: &[RateTake]) -> RatesAnswer {
        let refused = takes.iter().filter_map(|take| self.refusal(now, take));
        // Of equal ones the last.
        if let Some((_, _, answer)) = refused.max_by_key(|(never, wait, _)| (*never, *wait)) {
            return answer;
        }
        let until = now.saturating_add(lease).div_ceil(SLOT_MICROS) * SLOT_MICROS;
        for take in takes {
            let bucket = self.buckets.entry((take.account, take.unit)).or_default();
            match take.unit {
                RateUnit::Rpm => bucket.tat = bucket.tat.max(now) + take.drain,
                RateUnit::Tpm => *bucket.held.entry(until).or_default() += take.drain,
            }
            bucket.let_go(now);
        }
        RatesAnswer::Taken { until }
    }

    /// A request is over: what it held is let go, what it used is used. Where its slot is gone, nothing is let go.
    pub fn correct(&mut self, now: u64, corrections: &[RateCorrection]) {
        for correction in corrections {
            let bucket = self.buckets.entry((correction.account, correction.unit)).or_default();
            if let Some(held) = bucket.held.get_mut(&correction.until) {
                *held = held.saturating_sub(correction.held);
            }
            bucket.tat = bucket.tat.max(now) + correction.used;
            bucket.let_go(now);
        }
    }

    /// Forgets what grants nothing when it is forgotten.
    pub fn expire(&mut self, now: u64) {
        self.buckets.retain(|_, bucket| {
            bucket.let_go(now);
            bucket.tat > now || !bucket.held.is_empty()
        });
    }

    /// What requests that run hold of one limit, in microseconds.
    #[must_use]
    pub fn held(&self, now: u64, account: AccountId, unit: RateUnit) -> u64 {
        self.buckets.get(&(account, unit)).map_or(0, |bucket| bucket.held(now))
    }

    /// How far the use of one limit runs ahead of the clock, what is held not counted, in microseconds.
    #[must_use]
    pub fn ahead(&self, now: u64, account: AccountId, unit: RateUnit) -> u64 {
        self.buckets.get(&(account, unit)).map_or(0, |bucket| bucket.tat.saturating_sub(now))
    }

    /// How many buckets are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Whether it never fits, how long until it does, and that in words. `None`: it fits.
    fn refusal(&self, now: u64, take: &RateTake) -> Option<(bool, u64, RatesAnswer)> {
        let RateTake { account, unit, limit, drain, burst } = *take;
        let (never, wait) = if drain > burst {
            (true, 0)
        } else {
            let runs = self.ahead(now, account, unit) + self.held(now, account, unit);
            (false, (runs + drain).saturating_sub(burst))
        };
        let retry_after = Duration::from_micros(wait);
        let answer = RatesAnswer::Refused { account, unit, limit, retry_after };
        (never || wait > 0).then_some((never, wait, answer))
    }
}

impl Bucket {
    fn held(&self, now: u64) -> u64 {
        self.held.range(now.saturating_add(1)..).map(|(_, held)| held).sum()
    }

    fn let_go(&mut self, now: u64) {
        self.held.retain(|until, held| *until > now && *held > 0);
    }
}
