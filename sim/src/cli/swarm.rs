//! `swarm`: many seeds, and what they came to.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::cpu::{Meter, rate};
use super::progress::Progress;
use super::source::How;
use super::{Verdict, failure, jobs};
use crate::check::Invariant;
use crate::mutants;
use crate::swarm::{Apart, Failure, Swarm, Tally};
use crate::tier::Tier;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    how: How,
    /// How many seeds
    #[arg(long, value_name = "N")]
    seeds: u64,
    /// The first seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: u64,
    /// On how many threads; as many as there are cores, where not given
    #[arg(long, value_name = "J")]
    jobs: Option<usize>,
    /// Stops after so many failing seeds
    #[arg(long, value_name = "K")]
    stop_after: Option<usize>,
}

/// Seeds listed for each invariant.
const SEEDS_LISTED: usize = 8;

pub(super) fn run(args: &Args) -> Verdict {
    mutants::choose(args.how.mutant.as_deref())?;
    let seeds = args.from..args.from.saturating_add(args.seeds);
    let swarm = Swarm { stop_after: args.stop_after, ..of(seeds, &args.how, jobs(args.jobs))? };
    let (tally, meter) = watched(&swarm);
    println!("{}", speeds(&tally, &meter));
    println!("{}", marks(&tally, args.how.tier));
    print!("{}", failures(&tally.failures, &args.how));
    Ok(tally.failures.is_empty())
}

/// A swarm that runs as it is said, on so many cores.
pub(super) fn of(seeds: Range<u64>, how: &How, jobs: usize) -> Result<Swarm, String> {
    let mut apart = None;
    if how.tier.takes_turns() && jobs > 1 {
        let program = std::env::current_exe();
        let program = program.map_err(|why| format!("this program has no path: {why}"))?;
        let mut arguments = vec!["run".to_owned(), "--json".to_owned()];
        arguments.extend(how.arguments());
        apart = Some(Apart { program, arguments });
    }
    Ok(Swarm { tier: how.tier, seeds, jobs, null: how.null, stop_after: None, apart })
}

/// Runs a swarm with its progress on stderr.
pub(super) fn watched(swarm: &Swarm) -> (Tally, Meter) {
    let total = swarm.seeds.end.saturating_sub(swarm.seeds.start);
    let (mut progress, meter) = (Progress::new(total), Meter::start());
    let tally = swarm.run(&mut |tally| {
        progress.show(tally);
        give_up_on_endless(tally);
    });
    progress.clear();
    (tally, meter)
}

/// A world that does not end cannot be stopped from outside: the whole process gives up, and says on which seed.
pub(super) fn give_up_on_endless(tally: &Tally) {
    if let Some(seed) = tally.endless() {
        eprintln!("\npointsman-sim: seed {seed} does not end; again: cargo sim run --seed {seed}");
        std::process::exit(2);
    }
}

/// What it cost.
pub(super) fn speeds(tally: &Tally, meter: &Meter) -> String {
    let (minute, second) = (Duration::from_secs(60), Duration::from_secs(1));
    let (wall, seeds) = (meter.wall(), tally.seeds as f64);
    let simulated = tally.simulated.as_secs_f64();
    let mut text = format!(
        "{} seeds in {:.1} s ({:.0} a minute): {simulated:.0} simulated seconds, {} requests, {} events",
        tally.seeds,
        wall.as_secs_f64(),
        rate(seeds, wall, minute),
        tally.requests,
        tally.events,
    );
    if let Some(cpu) = meter.cpu() {
        let (a_minute, a_second) = (rate(seeds, cpu, minute), rate(simulated, cpu, second));
        text.push_str(&format!(
            "\n{:.1} s of CPU: {a_minute:.0} seeds a minute and core, {a_second:.0} simulated seconds a CPU second",
            cpu.as_secs_f64(),
        ));
    }
    text
}

fn marks(tally: &Tally, tier: Tier) -> String {
    match tally.coverage.missing(tier) {
        missing if missing.is_empty() => "every mark was hit".to_owned(),
        missing => format!("{} marks never hit: {}", missing.len(), missing.join(", ")),
    }
}

/// All failures by invariant; the first of all in words.
pub(super) fn failures(failures: &[Failure], how: &How) -> String {
    let Some(first) = failures.first() else { return "no failure\n".to_owned() };
    let mut by_invariant: BTreeMap<Invariant, Vec<&Failure>> = BTreeMap::new();
    for failure in failures {
        by_invariant.entry(failure.violation.invariant).or_default().push(failure);
    }
    let mut text = format!("{} failures\n", failures.len());
    for (invariant, of) in by_invariant {
        let seeds: Vec<String> =
            of.iter().take(SEEDS_LISTED).map(|failure| failure.seed.to_string()).collect();
        let (count, more) = (of.len(), if of.len() > SEEDS_LISTED { ", ..." } else { "" });
        text.push_str(&format!(
            "invariant {invariant}: {count}, seeds {}{more}\n",
            seeds.join(", ")
        ));
        text.push_str(&format!("  {}\n", of[0].violation.text));
        text.push_str(&format!("  again: {}\n", how.again(&format!("--seed {}", of[0].seed))));
    }
    let plan = how.tier.plan(first.seed, how.null);
    let again = how.again(&format!("--seed {}", first.seed));
    text.push_str("the first of them:\n");
    text + &failure::told(&format!("seed {}", first.seed), &plan, &first.violation, &again)
}
