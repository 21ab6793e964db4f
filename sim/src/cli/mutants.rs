//! `mutants`: is each planted bug found, and by the right alarm?

use super::source::How;
use super::{Verdict, jobs};
use crate::tier::Tier;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which simulator: `a` drives the machines alone. Bugs in the shell are looked for in `b` at any rate
    #[arg(long, value_enum, default_value = "a")]
    tier: Tier,
    /// Only this bug
    #[arg(long, value_name = "NAME")]
    mutant: Option<String>,
    /// How many seeds each bug gets
    #[arg(long, value_name = "N", default_value_t = 200)]
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
    let how = How { tier: args.tier, null: false, mutant: args.mutant.clone() };
    let (right, wrong) = all(&how, seeds, jobs(args.jobs))?;
    println!("{right} passed, {wrong} failed");
    Ok(wrong == 0)
}

/// Looks for the bug that is named, or for all. Returns how many are found by the right alarm, and how many are not.
#[cfg(feature = "mutants")]
pub(super) fn all(
    how: &How,
    seeds: std::ops::Range<u64>,
    jobs: usize,
) -> Result<(u64, u64), String> {
    use control::mutant::Mutant;

    let wanted = match &how.mutant {
        Some(name) => vec![crate::mutants::named(name)?],
        None => Mutant::ALL.to_vec(),
    };
    let watch: &mut dyn FnMut(&crate::swarm::Tally) = &mut super::swarm::give_up_on_endless;
    let mut hunts = Vec::new();
    for mutant in wanted {
        // What is in the shell is not in a tier without it.
        let tier = if mutant.is_in_the_shell() { Tier::B } else { how.tier };
        let hunt = crate::mutants::hunt(mutant, tier, seeds.clone(), jobs, watch);
        println!("{}", told::hunt(&hunt, &seeds, tier));
        hunts.push(hunt);
    }
    println!("{}", told::summary(&hunts));
    let right = hunts.iter().filter(|hunt| told::is_right(hunt)).count();
    Ok((right as u64, (hunts.len() - right) as u64))
}

/// Looks for nothing: this build has no planted bugs.
#[cfg(not(feature = "mutants"))]
pub(super) fn all(
    _how: &How,
    _seeds: std::ops::Range<u64>,
    _jobs: usize,
) -> Result<(u64, u64), String> {
    Err(crate::mutants::MISSING.to_owned())
}

#[cfg(feature = "mutants")]
mod told {
    use std::ops::Range;

    use super::How;
    use crate::check::Invariant;
    use crate::mutants::{Found, Hunt};
    use crate::tier::Tier;

    pub fn is_right(hunt: &Hunt) -> bool {
        hunt.found.as_ref().is_some_and(|found| found.right_alarm)
    }

    pub fn hunt(hunt: &Hunt, seeds: &Range<u64>, tier: Tier) -> String {
        let (name, seconds) = (hunt.mutant.name(), hunt.took.as_secs_f64());
        let mut text = match &hunt.found {
            None => {
                let count = seeds.end - seeds.start;
                format!("{name:<28} NOT FOUND in {count} seeds and {seconds:.1} s")
            }
            Some(Found { failure, seeds, right_alarm }) => {
                let (invariant, seed) = (failure.violation.invariant, failure.seed);
                let mut text = format!(
                    "{name:<28} found by seed {seed}, after {seeds} seeds and {seconds:.1} s, by invariant {invariant}"
                );
                if !right_alarm {
                    let how = How { tier, null: false, mutant: Some(name.to_owned()) };
                    let again = how.again(&format!("--seed {seed}"));
                    text.push_str(&format!(
                        ": WRONG ALARM, it is known to break {}\n    {}\n    again: {again}",
                        known(hunt),
                        failure.violation.text
                    ));
                }
                text
            }
        };
        if !hunt.false_alarms.is_empty() {
            let seeds: Vec<String> = hunt.false_alarms.iter().map(u64::to_string).collect();
            text.push_str(&format!("\n    seeds that break without it: {}", seeds.join(", ")));
        }
        text
    }

    pub fn summary(hunts: &[Hunt]) -> String {
        let found: Vec<&Found> = hunts.iter().filter_map(|hunt| hunt.found.as_ref()).collect();
        let mut counts: Vec<u64> = found.iter().map(|found| found.seeds).collect();
        counts.sort_unstable();
        let median = counts.get(counts.len() / 2).map_or("-".to_owned(), u64::to_string);
        let wrong = found.iter().filter(|found| !found.right_alarm).count();
        let mut false_alarms: Vec<u64> =
            hunts.iter().flat_map(|hunt| hunt.false_alarms.iter().copied()).collect();
        false_alarms.sort_unstable();
        false_alarms.dedup();
        format!(
            "{} of {} planted bugs found ({} %), median {median} seeds; {wrong} wrong alarms; {} seeds break without any",
            found.len(),
            hunts.len(),
            found.len() * 100 / hunts.len().max(1),
            false_alarms.len(),
        )
    }

    fn known(hunt: &Hunt) -> String {
        let name = |number: &u8| match Invariant::numbered(*number) {
            Some(invariant) => invariant.to_string(),
            None => number.to_string(),
        };
        hunt.mutant.breaks().iter().map(name).collect::<Vec<_>>().join(", ")
    }
}
