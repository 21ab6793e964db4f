//! `report`: one run as a page.

use std::fs;
use std::path::PathBuf;

use super::Verdict;
use super::source::{How, Source};
use crate::tier::AnyPlan;
use crate::{report, tell};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    how: How,
    /// Where the page goes
    #[arg(long, value_name = "FILE")]
    html: PathBuf,
}

/// The run's own verdict is in the page: the command succeeds when that is written.
pub(super) fn run(args: &Args) -> Verdict {
    let AnyPlan::A(plan) = args.source.plan(&args.how)? else {
        return Err("only runs of tier a are drawn; `run` tells one of tier b in words".to_owned());
    };
    let mut story = tell::story(&plan);
    story.command = args.source.again(&args.how);
    let name = args.html.display();
    fs::write(&args.html, report::html(&story))
        .map_err(|why| format!("{name} cannot be written: {why}"))?;
    let verdict = match &story.violation {
        None => "every invariant held".to_owned(),
        Some(broken) => format!("invariant {} ({}) broke", broken.invariant, broken.name),
    };
    println!("{name}: {}, {verdict}", args.source.name());
    Ok(true)
}
