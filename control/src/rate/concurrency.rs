//! How many requests at once a model's replicas bear, found out by asking.
//!
//! **The problem.** Replicas that are full say so (429, 503) or stall; sending them more only lengthens every queue. No
//! operator knows the right number, and it changes with the prompts.
//!
//! **The algorithm** is AIMD, as TCP does it (Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for
//! Congestion Avoidance", 1989; Jacobson, 1988): a success while at least half of the limit is in use adds `1 / limit`, so
//! one for each limit's worth of successes; overload multiplies by `decrease`, starting from what was in flight if that is
//! less, and at most once per `cooldown`, because one full moment is reported by many requests. **Rejected:** gradients on
//! latency, which for generated text follows the answer's length rather than the load.
//!
//! **Edge cases.** The limit begins at its maximum, so it bites only after overload was reported. Failures that are not
//! overload leave it alone: a broken replica is the breaker's matter. But one that never answers looks like a full one, and
//! what it never answers stays in flight until its deadline: a few of those would use up a small limit, and the replicas
//! that are well would idle behind it. So whoever asks says how many at once are no overload, however few the reports have
//! left: see [`Concurrency::admit`]. More models than the table holds go unlimited: this
//! protects replicas, it is nobody's entitlement. An idle model's limit stays as learned until there is room needed.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::outcome::{AttemptEnd, Failure, Stage};
use crate::time::Instant;

/// Policy of the adaptive limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConcurrencyConfig {
    /// The limit never falls below this. One would starve a model whose replicas recovered: nothing is asked, nothing learned.
    pub min: u32,
    /// Where it begins and never goes beyond: what a configuration may name at most, because it shall bite only after overload.
    pub max: u32,
    /// What overload multiplies it by, in (0, 1). 0.8 forgives a single report sooner than TCP's half.
    pub decrease: f64,
    /// Overload counts once in so long: about as long as it takes for less traffic to show.
    pub cooldown: Duration,
    /// Models kept apart.
    pub models_max: usize,
}

impl Default for ConcurrencyConfig {
    fn default() -> Self {
        Self {
            min: 2,
            max: 100_000,
            decrease: 0.8,
            cooldown: Duration::from_secs(1),
            // Far more than any gateway serves; a name is some 100 bytes.
            models_max: 1_024,
        }
    }
}

/// What a request's end says about load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Signal {
    /// It was borne.
    Success,
    /// It was too much: refused as such, or not answered in time.
    Overload,
    /// Neither.
    Neutral,
}

/// Refused: as many requests are in flight as the model's replicas bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overloaded {
    /// The limit just now.
    pub limit: u32,
    /// When to ask again.
    pub retry_after: Duration,
}

/// An adaptive limit per model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Concurrency {
    config: ConcurrencyConfig,
    models: BTreeMap<Box<str>, Model>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Model {
    limit: f64,
    in_flight: u32,
    /// Overload reported before this is old news.
    deaf_until: Instant,
}

/// Places free up at the pace of requests: ask again soon.
const RETRY: Duration = Duration::from_secs(1);

impl Signal {
    /// What an attempt's end says.
    #[must_use]
    pub const fn of(end: &AttemptEnd) -> Self {
        match end {
            AttemptEnd::Completed { .. } => Self::Success,
            AttemptEnd::Failed { failure, .. } => match failure {
                Failure::Backpressure(_)
                | Failure::Timeout(Stage::FirstToken | Stage::BetweenTokens) => Self::Overload,
                Failure::Connect
                | Failure::ConnectionLost
                | Failure::Timeout(Stage::Deadline)
                | Failure::Status(_)
                | Failure::ClientError(_)
                | Failure::EndpointFault(_)
                | Failure::Truncated
                | Failure::ErrorInAnswer
                | Failure::Garbage
                | Failure::TooLarge
                | Failure::CannotResume => Self::Neutral,
            },
            AttemptEnd::Cancelled { .. } => Self::Neutral,
        }
    }
}

impl Concurrency {
    /// No model known yet.
    #[must_use]
    pub fn new(config: ConcurrencyConfig) -> Self {
        Self { config, models: BTreeMap::new() }
    }

    /// New policy. What was learned is kept, within the new bounds.
    pub fn set_config(&mut self, config: ConcurrencyConfig) {
        for model in self.models.values_mut() {
            // A limit that had never bitten begins at the new maximum.
            let untouched = model.limit >= f64::from(self.config.max);
            let limit = if untouched { f64::from(config.max) } else { model.limit };
            model.limit = within(&config, limit);
        }
        self.config = config;
    }

    /// Counts one more request in flight. Each must be [`released`](Self::released), once. While fewer than `least` are
    /// in flight it is admitted whatever was reported, though never beyond the configured maximum.
    ///
    /// # Errors
    /// The model bears no more just now; nothing is counted.
    pub fn admit(&mut self, _now: Instant, model: &str, least: u32) -> Result<(), Overloaded> {
        if !self.models.contains_key(model) {
            if !self.make_room() {
                return Ok(());
            }
            let limit = within(&self.config, f64::from(self.config.max));
            let new = Model { limit, in_flight: 0, deaf_until: Instant::ZERO };
            self.models.insert(model.into(), new);
        }
        let Some(known) = self.models.get_mut(model) else { return Ok(()) };
        let limit = (known.limit as u32).max(least.min(self.config.max));
        if known.in_flight >= limit {
            return Err(Overloaded { limit, retry_after: RETRY });
        }
        known.in_flight += 1;
        Ok(())
    }

    /// A request that was admitted is over.
    pub fn released(&mut self, now: Instant, model: &str, signal: Signal) {
        let Some(known) = self.models.get_mut(model) else { return };
        // What was admitted while there was no room for its model was not counted.
        let in_flight = known.in_flight;
        known.in_flight = in_flight.saturating_sub(1);
        match signal {
            Signal::Success if f64::from(in_flight) * 2.0 >= known.limit => {
                known.limit = within(&self.config, known.limit + 1.0 / known.limit);
            }
            Signal::Overload if now >= known.deaf_until => {
                let from = known.limit.min(f64::from(in_flight));
                known.limit = within(&self.config, from * self.config.decrease);
                known.deaf_until = now + self.config.cooldown;
            }
            Signal::Success | Signal::Overload | Signal::Neutral => {}
        }
    }

    /// The limit of a model just now, as learned; the maximum for one never seen.
    #[must_use]
    pub fn limit(&self, model: &str) -> u32 {
        self.models.get(model).map_or(self.config.max, |known| known.limit as u32)
    }

    /// How many of a model's requests are in flight.
    #[must_use]
    pub fn in_flight(&self, model: &str) -> u32 {
        self.models.get(model).map_or(0, |known| known.in_flight)
    }

    /// Asserts what must always hold.
    pub fn invariants(&self) {
        assert!(self.models.len() <= self.config.models_max, "too many models");
        for known in self.models.values() {
            let kept = within(&self.config, known.limit);
            assert!((kept - known.limit).abs() < f64::EPSILON, "the limit keeps its bounds");
        }
    }

    /// True where one more model may be kept: the first idle one makes room.
    fn make_room(&mut self) -> bool {
        if self.models.len() < self.config.models_max {
            return true;
        }
        let idle = self.models.iter().find(|(_, known)| known.in_flight == 0);
        let Some(name) = idle.map(|(name, _)| name.clone()) else { return false };
        self.models.remove(&name);
        true
    }
}

fn within(config: &ConcurrencyConfig, limit: f64) -> f64 {
    let min = f64::from(config.min.max(1));
    // Not `clamp`: it panics where a configuration has its bounds the wrong way round.
    limit.min(f64::from(config.max)).max(min)
}
