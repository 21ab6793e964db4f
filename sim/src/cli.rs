//! The command `pointsman-sim`: seeds in, verdicts out.
//!
//! **The problem.** A failure that takes more than one command to see again is looked at once. So every command that finds
//! one prints the seed, the invariant, the last events in words, and the command that does it again; and exits with 0 only
//! if all held. **Rejected:** a test harness, which has no place for a seed, a rate, or a plan to be saved.
//!
//! Exit status: 0 when all holds, 1 when something does not, 2 when the command could not be carried out.

mod coverage;
mod cpu;
mod diff;
mod failure;
mod gate;
mod meta;
mod mutants;
mod progress;
mod regress;
mod report;
mod run;
mod shrink;
mod source;
mod swarm;
mod try_config;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The world of Pointsman, simulated: partitions, crashes and lies, seed by seed.
#[derive(Debug, Parser)]
#[command(name = "pointsman-sim", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one seed, or one saved plan, and prints the hash of its trace
    Run(run::Args),
    /// Runs many seeds on all cores
    Swarm(swarm::Args),
    /// Runs seeds twice in separate processes and compares what they saw and did
    Meta(meta::Args),
    /// Makes a failing plan as small as it gets
    Shrink(shrink::Args),
    /// Shows where two traces part
    Diff(diff::Args),
    /// Looks for each planted bug: by which seed is it found, after how long, by the right alarm?
    Mutants(mutants::Args),
    /// Draws one run as a page for a browser
    Report(report::Args),
    /// Tries your own configuration: what breaks, and what your clients would see of it
    Try(try_config::Args),
    /// Shows which marks no seed ever hits
    Coverage(coverage::Args),
    /// Runs the plans that once failed; all have to hold
    Regress(regress::Args),
    /// All of the above on a fixed budget, as before every merge
    Gate(gate::Args),
}

/// Whether all holds; or why the command could not be carried out, in words that say what to do.
type Verdict = Result<bool, String>;

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let verdict = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Swarm(args) => swarm::run(&args),
        Command::Meta(args) => meta::run(&args),
        Command::Shrink(args) => shrink::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Mutants(args) => mutants::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Try(args) => try_config::run(&args),
        Command::Coverage(args) => coverage::run(&args),
        Command::Regress(args) => regress::run(&args),
        Command::Gate(args) => gate::run(&args),
    };
    match verdict {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("pointsman-sim: {why}");
            ExitCode::from(2)
        }
    }
}

/// As many threads as there are cores, where nobody says otherwise.
fn jobs(wanted: Option<usize>) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    wanted.unwrap_or_else(cores).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }
}
