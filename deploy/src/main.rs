//! The `pointsman` binary: an LLM gateway whose every decision can be replayed.

mod cli;
mod commands;
mod demo;
mod out;
mod serve;
mod spans;

use std::process::ExitCode;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::of(std::env::args_os());
    out::ended(match cli.command.unwrap_or_default() {
        Command::Serve(args) => serve::run(&args),
        Command::Check(args) => commands::check::run(&args),
        Command::DemoReplica(args) => commands::replica::run(args),
        Command::Worker(args) => commands::worker::run(&args),
        Command::Key { command } => commands::key::run(command),
        Command::Health(args) => commands::health::run(&args),
        Command::Status(args) => commands::ask::status(&args),
        Command::Drain(args) => commands::ask::drain(&args, true),
        Command::Undrain(args) => commands::ask::drain(&args, false),
        Command::Explain(args) => commands::ask::explain(&args),
        Command::Journal { command } => commands::ask::journal(&command),
        Command::Quota { command } => commands::ask::quota(&command),
    })
}
