//! Whether to try again, when, and until when.
//!
//! Retries turn a slow pool into a dead one: each layer that retries multiplies the load of the layers above it, just
//! when there is least to spare. So there is one layer (this), one [`Budget`] for everything that goes through the
//! plane, and one deadline for the request, which every attempt inherits.
//!
//! The rules, in the order they are asked:
//! 1. After a byte of the answer went to the client, nothing is begun anew: it would see two beginnings.
//! 2. What another endpoint would answer alike is not asked again; nor is an endpoint that an operator must mend, where
//!    it is the only one.
//! 3. Attempts are counted, also those that never reached anybody.
//! 4. An attempt that failed late has cost a generation's worth of a replica's time. Doing that again is what a
//!    struggling pool can bear least.
//! 5. The first retry on another endpoint goes at once: a single dead replica should cost its callers nothing. Later
//!    ones, and those to the same endpoint, wait with full jitter (exponential backoff, uniform from zero; M. Brooker,
//!    "Exponential Backoff and Jitter", 2015). An upstream's `retry_after` says when *it* may be asked: it delays only
//!    where the same endpoint must be asked again, and is then a floor, with the jitter on top.
//! 6. What could not finish before the deadline is not begun.
//! 7. The budget is asked last, so that a refusal for another reason costs nothing. A refused connection carried no
//!    work upstream and needs no budget: a pool half of which is down still serves everybody at once.
//!
//! A second attempt beside one that is silent has its own module, [`hedge`], and the same budget.
//!
//! Rejected: a budget per request ("three attempts each"). It bounds nothing: with everything failing, load triples.

mod budget;
mod hedge;
mod timeouts;

use core::fmt;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::outcome::Failure;
use crate::rng::Rng;
use crate::time::{Instant, saturating_nanos};

pub use budget::Budget;
pub use hedge::{NoHedge, SAVED_MAX as HEDGES_SAVED_MAX, Waiting};
pub use timeouts::{AttemptDeadlines, Timeouts};

/// Policy of retries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Attempts of one request, the first included.
    pub attempts_max: u32,
    /// The first backoff lies between zero and this; each that follows has twice the range.
    pub backoff_base: Duration,
    /// The range grows no further.
    pub backoff_max: Duration,
    /// Retries earned by each 100 requests.
    pub budget_ratio_percent: u32,
    /// Retries earned by each second, so that at low traffic there is something to retry with.
    pub budget_floor_per_second: u32,
    /// Retries that can be saved up; what there is at the start.
    pub budget_burst: u32,
    /// An attempt that failed only after so long is not repeated.
    pub slow_failure_after: Duration,
    /// No attempt is begun with less time than this left.
    pub attempt_time_min: Duration,
    /// A second attempt is made beside one that has brought no token after so long, where a model has no wait of its own.
    /// Zero: never, as where a configuration was written down before there were hedges.
    #[serde(default)]
    pub hedge_after: Duration,
    /// Hedges earned by each 100 requests that may be hedged.
    #[serde(default)]
    pub hedge_share_percent: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            attempts_max: 3,
            // Longer than a network's hiccup, shorter than anybody notices before a model answers.
            backoff_base: Duration::from_millis(50),
            // Beyond that, the caller's own retry is the better one.
            backoff_max: Duration::from_secs(2),
            // A tenth more load is what a pool that is sized at all can carry.
            budget_ratio_percent: 10,
            budget_floor_per_second: 10,
            // One replica's death fails at most its in-flight attempts: about this many, each worth a retry.
            budget_burst: 100,
            // Twice the timeout to the first token: silence is retried, a generation that broke is not.
            slow_failure_after: Duration::from_secs(120),
            // No model answers within a tenth of a second.
            attempt_time_min: Duration::from_millis(100),
            // Off: it costs replicas' time, and how long a first token may take only the operator knows.
            hedge_after: Duration::ZERO,
            // One in twenty is what is slower than the 95th percentile.
            hedge_share_percent: 5,
        }
    }
}

/// Decides retries, for all requests of the plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Retry {
    config: Config,
    #[cfg_attr(feature = "mutants", serde(deserialize_with = "crate::mutant::reseeded"))]
    rng: Rng,
    budget: Budget,
    hedges: hedge::Share,
}

/// What is known when an attempt has failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Attempts so far, the failed one included.
    pub attempts: u32,
    /// A byte of the answer went to the client.
    pub committed: bool,
    /// The request's one deadline.
    pub deadline: Instant,
    /// How long the failed attempt took.
    pub elapsed_in_attempt: Duration,
    /// How it failed.
    pub failure: Failure,
    /// How long its endpoint asked us to stay away.
    pub retry_after: Option<Duration>,
    /// Whether an endpoint that was not tried yet could be asked.
    pub other_eligible: bool,
}

/// What to do about a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decision {
    /// Try again.
    Retry {
        /// Not before.
        at: Instant,
        /// What set the time.
        cause: RetryCause,
    },
    /// The failure is the request's outcome.
    GiveUp(Why),
}

/// What sets the time of a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RetryCause {
    /// Nothing: another endpoint can be asked at once.
    OtherEndpoint,
    /// Backoff, with jitter.
    Backoff,
    /// The endpoint's own `retry_after`, for nobody else can be asked.
    RetryAfter,
}

/// Why a failed attempt is not repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// The client has seen the beginning of an answer.
    Committed,
    /// It would fail alike.
    NotRetryable,
    /// As often as may be.
    AttemptsSpent,
    /// It failed too late to do all of it again.
    SlowFailure,
    /// There is no time left for it.
    DeadlineTooNear,
    /// Too much is being retried already.
    BudgetSpent,
}

impl Retry {
    /// With a full budget at the plane's start. `rng` draws jitter.
    #[must_use]
    pub const fn new(config: Config, rng: Rng) -> Self {
        let budget = Budget::full(&config);
        Self { config, rng, budget, hedges: hedge::Share::new() }
    }

    /// Changes the policy. What was saved up stays, within the new burst.
    pub fn set_config(&mut self, now: Instant, config: Config) {
        self.budget.refill(now, &self.config);
        self.config = config;
        self.budget.refill(now, &self.config);
    }

    /// A request arrived: it earns its share of a retry.
    pub fn deposit(&mut self, now: Instant) {
        self.budget.deposit(now, &self.config);
    }

    /// Whether and when to repeat a failed attempt. Asked once for each; a [`Decision::Retry`] has paid already.
    pub fn decide(&mut self, now: Instant, history: &History) -> Decision {
        if let Some(why) = self.hopeless(history) {
            return Decision::GiveUp(why);
        }
        let (wait, cause) = self.pace(history);
        let at = now + wait;
        if at + self.config.attempt_time_min > history.deadline {
            return Decision::GiveUp(Why::DeadlineTooNear);
        }
        let free = history.failure == Failure::Connect || planted!(BudgetUnpaid);
        if !free && !self.budget.withdraw(now, &self.config) {
            return Decision::GiveUp(Why::BudgetSpent);
        }
        Decision::Retry { at, cause }
    }

    /// Whole retries that are saved up, for status.
    #[must_use]
    pub fn budget(&self, now: Instant) -> u32 {
        let mut budget = self.budget.clone();
        budget.refill(now, &self.config);
        budget.whole()
    }

    /// Asserts what must always hold.
    pub fn invariants(&self) {
        self.budget.invariants(&self.config);
        self.hedges.invariants();
    }

    fn hopeless(&self, history: &History) -> Option<Why> {
        let alone_at_fault =
            matches!(history.failure, Failure::EndpointFault(_)) && !history.other_eligible;
        let sent = history.failure != Failure::Connect;
        if history.committed && !planted!(SecondBeginning) {
            Some(Why::Committed)
        } else if !history.failure.retryable() || alone_at_fault {
            Some(Why::NotRetryable)
        } else if history.attempts >= self.attempts_max() {
            Some(Why::AttemptsSpent)
        } else if sent && history.elapsed_in_attempt >= self.config.slow_failure_after {
            Some(Why::SlowFailure)
        } else {
            None
        }
    }

    fn attempts_max(&self) -> u32 {
        let most = self.config.attempts_max;
        if planted!(RetryLayersMultiply) {
            return most.saturating_mul(most).min(crate::plane::ATTEMPTS_MAX);
        }
        most
    }

    fn pace(&mut self, history: &History) -> (Duration, RetryCause) {
        if history.other_eligible && history.attempts <= 1 {
            return (Duration::ZERO, RetryCause::OtherEndpoint);
        }
        let jitter = self.backoff(history.attempts);
        match history.retry_after {
            Some(floor) if !history.other_eligible => {
                (floor.saturating_add(jitter), RetryCause::RetryAfter)
            }
            Some(_) | None => (jitter, RetryCause::Backoff),
        }
    }

    fn backoff(&mut self, attempts: u32) -> Duration {
        // 2^31 times any backoff is above its cap; keeps the shift defined.
        let factor = 1_u64 << attempts.saturating_sub(1).min(31);
        let range = saturating_nanos(self.config.backoff_base).saturating_mul(factor);
        let range = range.min(saturating_nanos(self.config.backoff_max));
        Duration::from_nanos(self.rng.below(range.saturating_add(1)))
    }
}

impl fmt::Display for RetryCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherEndpoint => "at once, on another endpoint",
            Self::Backoff => "after a backoff",
            Self::RetryAfter => "when the endpoint asked for it, as nobody else is left",
        })
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Committed => "the client has seen the beginning of the answer",
            Self::NotRetryable => "it would fail alike",
            Self::AttemptsSpent => "all attempts are spent (routing.max_retries)",
            Self::SlowFailure => "it failed too late to do all of it again",
            Self::DeadlineTooNear => "the request's deadline is too near",
            Self::BudgetSpent => "the retry budget is spent: too much is failing",
        })
    }
}

#[cfg(test)]
mod tests;
