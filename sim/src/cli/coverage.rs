//! `coverage`: which marks no seed ever hits.

use super::source::How;
use super::{Verdict, jobs, swarm};
use crate::coverage::{NAMES, tier_of};
use crate::tier::Tier;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which simulator: `a` drives the machines alone, `b` the real gateway
    #[arg(long, value_enum, default_value = "a")]
    tier: Tier,
    /// How many seeds
    #[arg(long, value_name = "N")]
    seeds: u64,
    /// The first seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: u64,
    /// On how many threads; as many as there are cores, where not given
    #[arg(long, value_name = "J")]
    jobs: Option<usize>,
}

pub(super) fn run(args: &Args) -> Verdict {
    let seeds = args.from..args.from.saturating_add(args.seeds);
    let how = How { tier: args.tier, null: false, mutant: None };
    let swarm = swarm::of(seeds, &how, jobs(args.jobs))?;
    let (tally, meter) = swarm::watched(&swarm);
    let mut rows: Vec<(u64, &str)> =
        tally.hits.iter().copied().zip(NAMES.iter().copied()).collect();
    rows.retain(|(_, name)| tier_of(name) == args.tier);
    rows.sort_unstable();
    for (hits, name) in &rows {
        println!("{hits:>9} {name}");
    }
    println!("{}", swarm::speeds(&tally, &meter));
    if !tally.failures.is_empty() {
        print!("not asked, and told all the same: {}", swarm::failures(&tally.failures, &how));
    }
    let missing = tally.coverage.missing(args.tier);
    println!(
        "{} of {} marks hit in {} seeds",
        rows.iter().filter(|(hits, _)| *hits > 0).count(),
        rows.len(),
        tally.seeds
    );
    if !missing.is_empty() {
        println!("never: {}", missing.join(", "));
    }
    Ok(missing.is_empty())
}
