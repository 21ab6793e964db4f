//! `shrink`: the fewest asks and faults that still break the same.

use std::path::PathBuf;
use std::time::Duration;

use super::source::{How, Source};
use super::{Verdict, failure, source};
use crate::mutants;
use crate::shrink::{Wanted, shrink};

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("source").required(true))]
pub(super) struct Args {
    /// A saved plan that fails
    #[arg(value_name = "PLAN", group = "source")]
    plan: Option<PathBuf>,
    /// A seed that fails
    #[arg(long, value_name = "N", group = "source")]
    seed: Option<u64>,
    #[command(flatten)]
    how: How,
    /// Where the small plan goes
    #[arg(long, value_name = "FILE", default_value = "shrunk.json")]
    out: PathBuf,
    /// When to stop, in seconds, whatever has been reached
    #[arg(long, value_name = "S", default_value_t = 300)]
    limit: u64,
}

pub(super) fn run(args: &Args) -> Verdict {
    let source = Source { seed: args.seed, plan: args.plan.clone() };
    let plan = source.plan(&args.how)?;
    let planted = args.how.mutant.is_some();
    let wanted = Wanted {
        limit: Duration::from_secs(args.limit),
        sound: &|plan| !planted || mutants::without(|| plan.run().violation.is_none()),
        tell: &mut |text| eprintln!("{text}"),
    };
    let Some(shrunk) = shrink(&plan, wanted) else {
        return Err(format!("{} breaks nothing: there is nothing to shrink", source.name()));
    };
    source::write(&args.out, &shrunk.plan)?;
    let out = args.out.display().to_string();
    let again = args.how.again(&format!("--plan {out}"));
    print!("{}", failure::told(&out, &shrunk.plan, &shrunk.violation, &again));
    let late = if shrunk.timed_out { "; time ran out, there may be a smaller one" } else { "" };
    let ((asks, faults), (of_asks, of_faults)) = (shrunk.plan.size(), plan.size());
    println!(
        "{out}: {} asks and {} faults of {} and {}, after {} runs{late}",
        asks, faults, of_asks, of_faults, shrunk.runs,
    );
    Ok(true)
}
