//! `run`: one seed or one saved plan.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::cpu::{Meter, rate};
use super::source::{How, Source};
use super::{Verdict, failure, source};
use crate::tier::{AnyPlan, Seen};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    how: How,
    /// Writes a line for everything that every machine saw and did
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Writes the plan, to be edited, shrunk or kept
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Runs it so often, to measure its speed; every run has to be the same
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    times: u32,
    /// Prints what came of it as JSON, in one line, and nothing else
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Verdict {
    let plan = args.source.plan(&args.how)?;
    if let Some(path) = &args.save {
        source::write(path, &plan)?;
    }
    let meter = Meter::start();
    let seen = match &args.trace {
        Some(path) => traced(&plan, path)?,
        None => plan.run(),
    };
    for nth in 2..=args.times {
        let again = plan.run();
        if again.hash != seen.hash {
            return Err(format!("run {nth} has hash {:016x}, not {:016x}", again.hash, seen.hash));
        }
    }
    if args.json {
        println!("{}", serde_json::to_string(&seen).map_err(|why| why.to_string())?);
        return Ok(seen.violation.is_none());
    }
    let second = std::time::Duration::from_secs(1);
    if let Some(cpu) = meter.cpu() {
        let speed = rate(seen.simulated.as_secs_f64() * f64::from(args.times), cpu, second);
        eprintln!("{:.2} s of CPU: {speed:.0} simulated seconds in each", cpu.as_secs_f64());
    }
    println!("{}", line(&args.source.name(), &seen));
    if let Some(violation) = &seen.violation {
        let again = args.source.again(&args.how);
        print!("{}", failure::told(&args.source.name(), &plan, violation, &again));
    }
    Ok(seen.violation.is_none())
}

/// The one line. It holds nothing that differs from run to run.
fn line(name: &str, seen: &Seen) -> String {
    let verdict = match &seen.violation {
        None => "holds".to_owned(),
        Some(violation) => format!("breaks {}", violation.invariant),
    };
    let Seen { hash, events, requests, simulated, .. } = seen;
    let seconds = simulated.as_secs_f64();
    format!("{hash:016x} {name} {verdict}: {events} events, {requests} requests, {seconds:.3} s")
}

fn traced(plan: &AnyPlan, path: &Path) -> Result<Seen, String> {
    let fails = |why| format!("{} cannot be written: {why}", path.display());
    let mut file = BufWriter::new(File::create(path).map_err(fails)?);
    let seen = plan.run_traced(&mut file);
    file.flush().map_err(fails)?;
    Ok(seen)
}
