//! One entry for humans and CI alike: `cargo xtask test`; `cargo xtask dev`, our own processes, run here, and
//! `cargo xtask services`, what they share.
//!
//! Every check this project knows is a [`step::Step`]. CI calls the same command as a person at a desk, so a red build
//! can always be reproduced by typing one line. The alternatives, a Makefile or steps written into a CI system's own
//! language, either need a tool that is not there yet or can only be tried by pushing.

mod dev;
mod kept;
mod process;
mod purity;
mod sdk;
mod services;
mod simulation;
mod step;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, ValueEnum};

use crate::process::Workspace;
use crate::step::Step;

fn main() -> ExitCode {
    let Cli { command, place } = Cli::parse();
    let done = workspace(place).and_then(|workspace| match command {
        Command::Test { only } if only.is_empty() => Ok(run(&workspace, Step::value_variants())),
        Command::Test { only } => Ok(run(&workspace, &only)),
        Command::Services { action } => {
            services::run_action(&workspace, action, &services::ALL).map(|()| ExitCode::SUCCESS)
        }
        Command::Dev { action } => dev::run_action(&workspace, action).map(|()| ExitCode::SUCCESS),
    });
    done.unwrap_or_else(|why| {
        eprintln!("xtask: {why}");
        ExitCode::FAILURE
    })
}

/// Pointsman's own chores.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Keep what is left running, and what it writes, below DIR rather than below target/ and logs/.
    #[arg(long, global = true, value_name = "DIR")]
    place: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Check everything: format, lints, purity, dependencies, style, tests, and real clients against the real binary.
    Test {
        /// Run this step alone (may be given several times; steps run in the order given).
        #[arg(long, value_enum, value_name = "STEP")]
        only: Vec<Step>,
    },
    /// Run what roles share, on private ports: Redis (a primary with its replica, and a cluster of three), Consul, nginx.
    Services {
        #[command(subcommand)]
        action: services::Action,
    },
    /// Run our own processes: two gateways before two workers, sharing Redis and Consul.
    Dev {
        #[command(subcommand)]
        action: dev::Action,
    },
}

/// Where the sources are, and where this very program was built: the target directory, wherever it was put
/// (environment, flag or a configuration file above us), is two levels above the executable.
///
/// The sources' place is asked for at run time: two clones that share a target directory share this executable too, and
/// what was compiled into it may name the other clone.
fn workspace(place: Option<PathBuf>) -> Result<Workspace, String> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").ok_or("run me by `cargo xtask`")?;
    let root = PathBuf::from(package).join("../..");
    let root = root.canonicalize().map_err(|why| format!("{}: {why}", root.display()))?;
    let program = std::env::current_exe().map_err(|why| format!("where am I? {why}"))?;
    let target = program.ancestors().nth(2).ok_or("the program has no target directory")?;
    let place =
        place.map(std::path::absolute).transpose().map_err(|why| format!("--place: {why}"))?;
    Ok(Workspace { root, target: target.to_path_buf(), place })
}

struct Report {
    step: Step,
    took: Duration,
    outcome: Result<(), String>,
}

/// Runs all steps though some fail, so that one run tells everything; only without a binary is there nothing to try.
fn run(workspace: &Workspace, steps: &[Step]) -> ExitCode {
    let mut reports = Vec::new();
    for (index, &step) in steps.iter().enumerate() {
        println!("\n==== {}/{} {step}: {}", index + 1, steps.len(), step.purpose());
        let started = Instant::now();
        let outcome = step.run(workspace);
        let report = Report { step, took: started.elapsed(), outcome };
        println!("{}", line(&report));
        let stop = report.outcome.is_err() && step == Step::Build;
        reports.push(report);
        if stop {
            println!("---- nothing to run: the steps after {step} are skipped");
            break;
        }
    }
    summarize(&reports)
}

fn line(report: &Report) -> String {
    let Report { step, took, outcome } = report;
    let seconds = took.as_secs_f64();
    match outcome {
        Ok(()) => format!("---- {step}: passed in {seconds:.1} s"),
        Err(why) => format!("---- {step}: FAILED in {seconds:.1} s: {why}"),
    }
}

fn summarize(reports: &[Report]) -> ExitCode {
    println!("\n==== summary");
    reports.iter().for_each(|report| println!("{}", line(report)));
    let total: Duration = reports.iter().map(|report| report.took).sum();
    let failed: Vec<String> = reports
        .iter()
        .filter(|report| report.outcome.is_err())
        .map(|report| report.step.to_string())
        .collect();
    if failed.is_empty() {
        println!("every step passed in {:.0} s", total.as_secs_f64());
        return ExitCode::SUCCESS;
    }
    println!("failed steps, after {:.0} s: {}", total.as_secs_f64(), failed.join(", "));
    ExitCode::FAILURE
}
