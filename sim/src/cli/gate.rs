//! `gate`: what runs before every merge, on a budget that is the same every time.
//!
//! Each step counts what it looked at; the last line adds them up for whoever reads the log of a build. A step that cannot
//! be carried out is a failure, not a gap: a gate that is silent about what it left out is open.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::source::How;
use super::{Verdict, jobs, meta, mutants, regress, swarm};
use crate::tier::Tier;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How many seeds of tier A
    #[arg(long, value_name = "N", default_value_t = 4_000)]
    tier_a: u64,
    /// How many seeds of tier B
    #[arg(long, value_name = "N", default_value_t = 100)]
    tier_b: u64,
    /// How many pairs of tier A; of tier B, a quarter as many
    #[arg(long, value_name = "N", default_value_t = 20)]
    pairs: u64,
    /// How many seeds each planted bug gets
    #[arg(long, value_name = "N", default_value_t = 200)]
    mutant_seeds: u64,
    /// The first seed of every step
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: u64,
    /// The folder of the plans that once failed; this crate's own, where not given
    #[arg(long, value_name = "DIR")]
    plans: Option<PathBuf>,
    /// On how many threads; as many as there are cores, where not given
    #[arg(long, value_name = "J")]
    jobs: Option<usize>,
}

/// Pairs that are compared by their whole traces; of the others, the hashes say the same, and cost no disk.
const WHOLE: u64 = 5;

/// What the gate runs.
const PLAIN: How = How { tier: Tier::A, null: false, mutant: None };

/// One thing the gate looks at: how many of what it saw held, and how many did not.
struct Step {
    name: &'static str,
    counted: Result<(u64, u64), String>,
    took: Duration,
}

pub(super) fn run(args: &Args) -> Verdict {
    let jobs = jobs(args.jobs);
    let from = |count: u64| args.from..args.from.saturating_add(count);
    let folder = args.plans.clone().unwrap_or_else(regress::committed);
    let steps = [
        step("regression plans", || regress::all(&folder)),
        step("tier A seeds", || seeds(Tier::A, from(args.tier_a), jobs)),
        step("tier B seeds", || seeds(Tier::B, from(args.tier_b), jobs)),
        step("tier A pairs", || pairs(Tier::A, from(args.pairs), jobs)),
        step("tier B pairs", || pairs(Tier::B, from(args.pairs.div_ceil(4)), jobs)),
        step("planted bugs", || mutants::all(&PLAIN, from(args.mutant_seeds), jobs)),
    ];
    println!();
    steps.iter().for_each(|step| println!("{}", step.told()));
    let counted = steps.iter().map(|step| *step.counted.as_ref().unwrap_or(&(0, 1)));
    let (passed, failed) = counted.fold((0, 0), |(a, b), (held, broke)| (a + held, b + broke));
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

fn step(name: &'static str, run: impl FnOnce() -> Result<(u64, u64), String>) -> Step {
    println!("== {name}");
    let started = Instant::now();
    let counted = run();
    Step { name, counted, took: started.elapsed() }
}

impl Step {
    fn told(&self) -> String {
        let (name, seconds) = (self.name, self.took.as_secs_f64());
        match &self.counted {
            Ok((held, broke)) => {
                format!("{name:<18} {seconds:>6.1} s  {held} hold, {broke} do not")
            }
            Err(why) => format!("{name:<18} {seconds:>6.1} s  not carried out: {why}"),
        }
    }
}

fn seeds(tier: Tier, seeds: std::ops::Range<u64>, jobs: usize) -> Result<(u64, u64), String> {
    let how = How { tier, ..PLAIN };
    let swarm = swarm::of(seeds, &how, jobs)?;
    let (tally, meter) = swarm::watched(&swarm);
    println!("{}", swarm::speeds(&tally, &meter));
    print!("{}", swarm::failures(&tally.failures, &how));
    let broke = tally.failures.len() as u64;
    Ok((tally.seeds - broke, broke))
}

fn pairs(tier: Tier, seeds: std::ops::Range<u64>, jobs: usize) -> Result<(u64, u64), String> {
    let count = seeds.end - seeds.start;
    let parted = meta::compare(seeds, WHOLE, jobs, &How { tier, ..PLAIN })?;
    for (seed, parting) in &parted {
        println!("seed {seed} is not the same twice: {parting}");
    }
    println!("{}", meta::told(count, WHOLE, parted.len()));
    Ok((count - parted.len() as u64, parted.len() as u64))
}
