//! Looks for one planted bug.

use std::ops::Range;
use std::time::{Duration, Instant};

use control::mutant::{Mutant, select};

use crate::swarm::{Failure, Swarm, Tally};
use crate::tier::Tier;
use crate::tier_b;

/// How a bug was looked for, and what came of it.
#[derive(Clone, Debug)]
pub struct Hunt {
    /// Which bug.
    pub mutant: Mutant,
    /// The seed that found it, if one did.
    pub found: Option<Found>,
    /// Seeds that break something without the bug too: they say nothing about it.
    pub false_alarms: Vec<u64>,
    /// How long it took.
    pub took: Duration,
}

/// The first seed that breaks something with the bug and nothing without.
#[derive(Clone, Debug)]
pub struct Found {
    /// What it broke.
    pub failure: Failure,
    /// How many seeds that took, itself counted.
    pub seeds: u64,
    /// Whether what broke is what the bug is known to break.
    pub right_alarm: bool,
}

/// The planted bug of that name.
///
/// # Errors
/// If there is none; lists them.
pub fn named(name: &str) -> Result<Mutant, String> {
    Mutant::parse(name).ok_or_else(|| {
        let all: Vec<&str> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
        format!("no planted bug is called {name}; there are: {}", all.join(", "))
    })
}

/// Looks for a bug seed by seed; `watch` as in [`Swarm::run`]. Afterwards the process has none.
#[must_use]
pub fn hunt(
    mutant: Mutant,
    tier: Tier,
    seeds: Range<u64>,
    jobs: usize,
    watch: &mut dyn FnMut(&Tally),
) -> Hunt {
    let started = Instant::now();
    let (mut from, mut false_alarms) = (seeds.start, Vec::new());
    let found = loop {
        select(Some(mutant));
        let failure = first(mutant, tier, from..seeds.end, jobs, watch);
        select(None);
        let Some(failure) = failure else { break None };
        if tier.run(failure.seed, false).violation.is_none() {
            let right_alarm = mutant.breaks().contains(&failure.violation.invariant.number());
            let count = failure.seed - seeds.start + 1;
            break Some(Found { failure, seeds: count, right_alarm });
        }
        false_alarms.push(failure.seed);
        from = failure.seed + 1;
    };
    Hunt { mutant, found, false_alarms, took: started.elapsed() }
}

/// The first seed that breaks something. What stands between the roles is looked for where there are two, and what is wrong with
/// resumable streams where there are some.
fn first(
    mutant: Mutant,
    tier: Tier,
    seeds: Range<u64>,
    jobs: usize,
    watch: &mut dyn FnMut(&Tally),
) -> Option<Failure> {
    let mut run = |seeds| {
        let swarm = Swarm { tier, seeds, jobs, null: false, stop_after: Some(1), apart: None };
        swarm.run(watch).failures.into_iter().next()
    };
    if !mutant.is_in_the_shell() {
        return run(seeds);
    }
    let is_there = |seed: &u64| {
        let plan = tier_b::plan(*seed);
        if mutant.is_of_streams() { plan.keeps_streams() } else { plan.doors > 0 }
    };
    seeds.filter(is_there).find_map(|seed| run(seed..seed + 1))
}
