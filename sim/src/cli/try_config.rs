//! `try`: the user's own configuration.

use std::path::PathBuf;

use super::{Verdict, jobs};
use crate::try_config;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration to try
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Traffic in the place of the default one: `at_ms,model,tenant,prompt,output`, or a Mooncake or Azure trace
    #[arg(long, value_name = "FILE")]
    traffic: Option<PathBuf>,
    /// Seeds of each scenario
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    seeds: u64,
    /// Threads
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
}

pub(super) fn run(args: &Args) -> Verdict {
    let report = try_config::run(&try_config::Args {
        config: args.config.clone(),
        traffic: args.traffic.clone(),
        seeds: args.seeds,
        jobs: jobs(args.jobs),
    })?;
    print!("{report}");
    Ok(report.is_good())
}
