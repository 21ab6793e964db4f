//! Requests and tokens per minute, per account.
//!
//! **The problem.** Fixed windows let twice the limit through at their seam, N gateways with a bucket each let N times the
//! limit through, and a worst-case estimate that stays charged after a short answer locks an account out (a `max_tokens` of
//! 8,000 is not a use of 8,000).
//!
//! **The rule.** GCRA, the generic cell rate algorithm (ITU-T I.371, annex A; as "virtual scheduling"): one instant per
//! bucket says when all that was used will have drained, and use may run ahead of the clock by at most the burst. So in any
//! window of length `w` no more is used than `limit * w / 60 s + burst`, where the burst in units is
//! `limit * Config::burst / 60 s`, at least one. Tokens are *held* when a request is admitted and *used* when it ends, when
//! their number is known: ahead of the clock count the used and the held together, so the bound holds for what is used, by
//! the time its request ended, plus what an answer used beyond its estimate (which is charged, as debt, of at most
//! [`Config::hold_max`]).
//!
//! **Rejected:** to charge the estimate at once and subtract the difference later. Returning what has drained meanwhile
//! would grant it twice; not returning it holds an account to a fraction of its limit.
//!
//! **Edge cases.** Tokens beyond what even an idle bucket holds are refused for good, with that reason, not admitted into
//! an idle bucket: the bound has no exception. A limit of zero admits nothing. All accounts and both units are asked before
//! any is charged. A hold nobody ended is let go after [`Config::hold_max`]. When the table is full of buckets that are in
//! use, a new account is refused: fullness must not be a way around a limit.

use alloc::collections::BTreeMap;
use core::fmt;
use core::ops::Bound;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::bucket::{Bucket, Misfit, Pace, at_least_one};
use crate::id::AccountId;
use crate::time::Instant;
use crate::units::Tokens;

/// Policy of the limiter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// How far use may run ahead of the clock: a minute lets a whole minute's limit through at once (and so at most twice
    /// the limit in any one minute); ten seconds a sixth of it.
    pub burst: Duration,
    /// Buckets kept, two for an account with both limits. 65,536 are some 8 MB.
    pub buckets_max: usize,
    /// A request that never ended stops counting after this: longer than any request may take.
    pub hold_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            burst: Duration::from_secs(60),
            buckets_max: 1 << 16,
            hold_max: Duration::from_secs(3_600),
        }
    }
}

/// An account's limits; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimits {
    /// Requests per minute.
    pub rpm: Option<u32>,
    /// Tokens per minute.
    pub tpm: Option<u64>,
}

/// What is counted per minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RateUnit {
    /// Requests per minute.
    Rpm,
    /// Tokens per minute.
    Tpm,
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Whose limit.
    pub account: AccountId,
    /// Which.
    pub unit: RateUnit,
    /// The limit, per minute.
    pub limit: u64,
    /// When asking again may succeed, if nothing else is used meanwhile. Zero where it never will.
    pub retry_after: Duration,
    /// Why.
    pub reason: RefusalReason,
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalReason {
    /// Too much in too short a time.
    TooFast,
    /// The request alone is more than the limit and its burst ever let through.
    TooLarge,
    /// The table is full of accounts in use.
    Full,
}

/// The limiter: a GCRA bucket per account and unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    config: Config,
    buckets: BTreeMap<Key, Bucket>,
    /// Where the search for idle buckets goes on.
    hand: Option<Key>,
}

type Key = (AccountId, RateUnit);

/// Buckets looked at to find idle ones when the table is full: some 5 us.
const LOOKED_AT_MAX: usize = 64;

/// How soon to ask again when the table is full.
const FULL_RETRY: Duration = Duration::from_secs(1);

impl Rate {
    /// A limiter that has seen nothing yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config, buckets: BTreeMap::new(), hand: None }
    }

    /// New policy. What was used stays used.
    pub fn set_config(&mut self, config: Config) {
        self.config = config;
    }

    /// Admits one request that may use `tokens`, against every limit of every account, or charges nothing.
    ///
    /// Each admission must be ended by one [`adjust`](Self::adjust) per account, whatever becomes of the request.
    ///
    /// # Errors
    /// The limit that stands longest in the way; one that will always do so comes first.
    pub fn check(
        &mut self,
        now: Instant,
        accounts: &[(AccountId, RateLimits)],
        tokens: Tokens,
    ) -> Result<(), Refusal> {
        let asked = || accounts.iter().flat_map(move |(account, limits)| asks(*account, limits));
        let refusals = asked().filter_map(|ask| self.refusal(now, ask, tokens));
        if let Some(refusal) = refusals.max_by_key(|refusal| (refusal.never(), refusal.retry_after))
        {
            return Err(refusal);
        }
        for ask in asked() {
            self.make_room(now, ask)?;
        }
        for Ask { key, limit } in asked() {
            let pace = self.pace(limit);
            let bucket = self.buckets.entry(key).or_default();
            match key.1 {
                RateUnit::Rpm => bucket.use_up(now, pace, 1),
                RateUnit::Tpm => bucket.hold(now, pace, tokens.0),
            }
        }
        Ok(())
    }

    /// Ends what was admitted at `since` with `reserved` tokens: `actual` of them were used, possibly more, or none.
    pub fn adjust(
        &mut self,
        now: Instant,
        (account, limits): (AccountId, RateLimits),
        since: Instant,
        reserved: Tokens,
        actual: Tokens,
    ) {
        let Some(limit) = limits.tpm else { return };
        let (pace, key) = (self.pace(limit), (account, RateUnit::Tpm));
        // A limit that came while the request ran, or a bucket lost to a cold start, in a full table: not counted.
        if self.make_room(now, Ask { key, limit }).is_err() {
            return;
        }
        let bucket = self.buckets.entry(key).or_default();
        bucket.release(now, pace, since, reserved.0);
        bucket.use_up(now, pace, actual.0);
    }

    /// Tokens held by requests that run, of one account.
    #[must_use]
    pub fn held(&self, now: Instant, account: AccountId) -> Tokens {
        let bucket = self.buckets.get(&(account, RateUnit::Tpm));
        Tokens(bucket.map_or(0, |bucket| bucket.held(now, self.pace(1))))
    }

    /// How many buckets are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// True where none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Asserts what must always hold.
    pub fn invariants(&self) {
        // One admission may need six buckets, and finds room for each before it takes any.
        assert!(self.buckets.len() <= self.config.buckets_max + 5, "too many buckets");
        self.buckets.values().for_each(Bucket::invariants);
    }

    fn refusal(&self, now: Instant, ask: Ask, tokens: Tokens) -> Option<Refusal> {
        let Ask { key, limit } = ask;
        let amount = match key.1 {
            RateUnit::Rpm => 1,
            RateUnit::Tpm => tokens.0,
        };
        let pace = self.pace(limit);
        let nothing = Bucket::default();
        let bucket = self.buckets.get(&key).unwrap_or(&nothing);
        let (reason, retry_after) = match bucket.fits(now, pace, amount).err()? {
            Misfit::Wait(wait) => (RefusalReason::TooFast, wait),
            Misfit::Never => (RefusalReason::TooLarge, Duration::ZERO),
        };
        Some(Refusal { account: key.0, unit: key.1, limit, retry_after, reason })
    }

    /// Makes room for a bucket, if it is new: only what has fully recovered is dropped.
    fn make_room(&mut self, now: Instant, ask: Ask) -> Result<(), Refusal> {
        let Ask { key: (account, unit), limit } = ask;
        if self.buckets.contains_key(&ask.key) || self.buckets.len() < self.config.buckets_max {
            return Ok(());
        }
        let pace = self.pace(limit);
        for _ in 0..LOOKED_AT_MAX {
            let from = self.hand.map_or(Bound::Unbounded, Bound::Excluded);
            let next = self.buckets.range((from, Bound::Unbounded)).next();
            self.hand = next.map(|(key, _)| *key);
            if let Some((key, bucket)) = next
                && bucket.idle(now, pace)
            {
                let key = *key;
                self.buckets.remove(&key);
                return Ok(());
            }
        }
        let reason = RefusalReason::Full;
        Err(Refusal { account, unit, limit, retry_after: FULL_RETRY, reason })
    }

    fn pace(&self, limit: u64) -> Pace {
        Pace {
            limit,
            burst: at_least_one(limit, self.config.burst),
            hold_max: self.config.hold_max,
        }
    }
}

#[derive(Clone, Copy)]
struct Ask {
    key: Key,
    limit: u64,
}

fn asks(account: AccountId, limits: &RateLimits) -> impl Iterator<Item = Ask> + use<> {
    let payer = if planted!(SharedRateBucket) { AccountId(0) } else { account };
    let rpm = limits.rpm.map(|rpm| Ask { key: (payer, RateUnit::Rpm), limit: u64::from(rpm) });
    let tpm = limits.tpm.map(|tpm| Ask { key: (account, RateUnit::Tpm), limit: tpm });
    rpm.into_iter().chain(tpm)
}

impl Refusal {
    fn never(&self) -> bool {
        self.reason == RefusalReason::TooLarge
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            RateUnit::Rpm => "requests",
            RateUnit::Tpm => "tokens",
        };
        match self.reason {
            RefusalReason::TooFast => {
                let wait = self.retry_after.as_millis().div_ceil(1_000);
                write!(f, "more than {} {unit} per minute; ask again in {wait} s", self.limit)
            }
            RefusalReason::TooLarge => {
                write!(f, "more at once than {} {unit} per minute allow; ask for less", self.limit)
            }
            RefusalReason::Full => f.write_str("too many accounts at once; ask again"),
        }
    }
}
