//! The simulators, as everything that runs many seeds sees them: a seed goes in, what came of it comes out.
//!
//! Swarms, pairs and gates do not care how a world is simulated. They are written once against [`Tier::run`]; a simulator
//! is added by a variant here. **Rejected:** a trait with two implementations, for a set that is closed.

use std::time::Duration;

use clap::ValueEnum;

use crate::check::Violation;
use crate::coverage::Coverage;
use crate::plan::{self, Plan};
use crate::run;
use crate::trace::Trace;

/// Which simulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tier {
    /// The machines alone, from event to event.
    A,
}

/// What came of one seed.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Which.
    pub seed: u64,
    /// The hash of its trace.
    pub hash: u64,
    /// Events that happened.
    pub events: u64,
    /// Requests that reached a gateway.
    pub requests: u64,
    /// How far the world came.
    pub simulated: Duration,
    /// The first invariant that broke, if one did.
    pub violation: Option<Violation>,
    /// The marks that were hit.
    pub coverage: Coverage,
}

impl Tier {
    /// Runs one seed; with `null`, its plan without the faults.
    #[must_use]
    pub fn run(self, seed: u64, null: bool) -> Seen {
        match self {
            Self::A => run_plan(&plan_of(seed, null)),
        }
    }

    /// What it is called on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "a",
        }
    }
}

/// The plan of a seed; with `null`, without its faults.
#[must_use]
pub fn plan_of(seed: u64, null: bool) -> Plan {
    let mut plan = plan::draw(seed);
    if null {
        without_faults(&mut plan);
    }
    plan
}

/// Takes the nemesis out of a plan.
pub fn without_faults(plan: &mut Plan) {
    plan.faults.clear();
    plan.what.push_str(", without its faults");
}

/// Runs one plan for its outcome alone.
#[must_use]
pub fn run_plan(plan: &Plan) -> Seen {
    seen(plan, run::run(plan, Trace::hashed()))
}

/// What a run of a plan came to, as swarms see it.
#[must_use]
pub fn seen(plan: &Plan, ran: run::Ran) -> Seen {
    let run::Ran { outcome, coverage } = ran;
    let broke = outcome.violation.as_ref().map(|violation| Duration::from_nanos(violation.at));
    Seen {
        seed: plan.seed,
        hash: outcome.hash,
        events: outcome.events,
        requests: outcome.requests,
        simulated: broke.unwrap_or_else(|| plan.duration()),
        violation: outcome.violation,
        coverage,
    }
}
