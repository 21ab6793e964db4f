//! Where a plan comes from, and how somebody else gets the same one.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::mutants;
use crate::tier::{AnyPlan, Tier};

/// A seed or a file.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct Source {
    /// The seed to draw the plan from
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// A saved plan to run as it stands
    #[arg(long, value_name = "FILE")]
    pub plan: Option<PathBuf>,
}

/// How the plan is run.
#[derive(Args, Clone, Debug)]
pub(super) struct How {
    /// Which simulator: `a` drives the machines alone, `b` the real gateway; a saved plan knows its own
    #[arg(long, value_enum, default_value = "a")]
    pub tier: Tier,
    /// Without the plan's faults
    #[arg(long)]
    pub null: bool,
    /// With this planted bug; `mutants` lists them
    #[arg(long, value_name = "NAME")]
    pub mutant: Option<String>,
}

impl Source {
    /// The plan itself, and the planted bug put in place.
    pub fn plan(&self, how: &How) -> Result<AnyPlan, String> {
        mutants::choose(how.mutant.as_deref())?;
        let mut plan = match (self.seed, &self.plan) {
            (_, Some(path)) => read(path)?,
            (seed, None) => return Ok(how.tier.plan(seed.unwrap_or(0), how.null)),
        };
        if how.null {
            plan.drop_faults();
        }
        Ok(plan)
    }

    /// The command that runs it again.
    pub fn again(&self, how: &How) -> String {
        match (self.seed, &self.plan) {
            (_, Some(path)) => how.again(&format!("--plan {}", path.display())),
            (seed, None) => how.again(&format!("--seed {}", seed.unwrap_or(0))),
        }
    }

    /// What it is called in a report.
    pub fn name(&self) -> String {
        match (self.seed, &self.plan) {
            (_, Some(path)) => path.display().to_string(),
            (seed, None) => format!("seed {}", seed.unwrap_or(0)),
        }
    }
}

impl How {
    /// The command that runs something again.
    pub fn again(&self, what: &str) -> String {
        format!("cargo sim run {what}{}", self.flags())
    }

    /// What has to be added to a command line that means the same.
    pub fn flags(&self) -> String {
        self.arguments().into_iter().map(|argument| format!(" {argument}")).collect()
    }

    /// As [`flags`](Self::flags), one by one.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if self.tier != Tier::A {
            arguments.extend(["--tier".to_owned(), self.tier.name().to_owned()]);
        }
        if self.null {
            arguments.push("--null".to_owned());
        }
        if let Some(mutant) = &self.mutant {
            arguments.extend(["--mutant".to_owned(), mutant.clone()]);
        }
        arguments
    }
}

/// Reads a saved plan.
pub(super) fn read(path: &Path) -> Result<AnyPlan, String> {
    let name = path.display();
    let text = fs::read_to_string(path).map_err(|why| format!("{name} cannot be read: {why}"))?;
    AnyPlan::parse(&text).map_err(|why| format!("{name}: {why}"))
}

/// Writes a plan, one ask and one fault on each line.
pub(super) fn write(path: &Path, plan: &AnyPlan) -> Result<(), String> {
    let name = path.display();
    fs::write(path, plan.to_text()?).map_err(|why| format!("{name} cannot be written: {why}"))
}
