//! The simulators, as everything that runs many seeds sees them: a seed goes in, what came of it comes out.
//!
//! Swarms, pairs and gates do not care how a world is simulated. They are written once against [`Tier`], [`AnyPlan`] and
//! [`Seen`]; a simulator is added by a variant here. **Rejected:** a trait with two implementations, for a set that is
//! closed.

use std::io::Write;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::check::{Invariant, Violation};
use crate::coverage::Coverage;
use crate::plan::{self, Plan};
use crate::run;
use crate::tier_b::{self, TierBPlan};
use crate::trace::{Tail, Trace, plain};

/// Which simulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tier {
    /// The machines alone, from event to event.
    A,
    /// The real gateway on a simulated network, disk and clock.
    B,
}

/// A plan of either.
#[derive(Clone, Debug, PartialEq)]
pub enum AnyPlan {
    /// For the machines alone.
    A(Box<Plan>),
    /// For the real gateway.
    B(Box<TierBPlan>),
}

/// What came of one seed.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// The plan of a seed; with `null`, without its faults.
    #[must_use]
    pub fn plan(self, seed: u64, null: bool) -> AnyPlan {
        let mut plan = match self {
            Self::A => AnyPlan::A(Box::new(plan::draw(seed))),
            Self::B => AnyPlan::B(Box::new(tier_b::plan(seed))),
        };
        if null {
            plan.drop_faults();
        }
        plan
    }

    /// Runs one seed; with `null`, its plan without the faults.
    #[must_use]
    pub fn run(self, seed: u64, null: bool) -> Seen {
        self.plan(seed, null).run()
    }

    /// What it is called on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// Whether runs of one process take turns, so that more cores need more processes.
    #[must_use]
    pub const fn takes_turns(self) -> bool {
        match self {
            Self::A => false,
            Self::B => true,
        }
    }
}

impl AnyPlan {
    /// Runs it for its outcome alone.
    #[must_use]
    pub fn run(&self) -> Seen {
        match self {
            Self::A(plan) => seen(plan, run::run(plan, Trace::hashed())),
            Self::B(plan) => seen_b(plan, &tier_b::run(plan, None)),
        }
    }

    /// Runs it and writes its trace.
    pub fn run_traced(&self, lines: &mut dyn Write) -> Seen {
        match self {
            Self::A(plan) => seen(plan, run::run(plan, Trace::written(lines))),
            Self::B(plan) => seen_b(plan, &tier_b::run(plan, Some(lines))),
        }
    }

    /// Runs it once more for somebody who listens: what it breaks, and what happened last, as far as it concerns that.
    #[must_use]
    pub fn last_words(&self) -> (Option<Violation>, Vec<String>) {
        match self {
            Self::A(plan) => {
                let mut tail = Tail::new(plan);
                let violation = run::run(plan, Trace::told(&mut tail)).outcome.violation;
                let words = violation.as_ref().map(|violation| tail.told(violation));
                (violation, words.unwrap_or_default())
            }
            Self::B(plan) => {
                let outcome = tier_b::run(plan, None);
                (seen_b(plan, &outcome).violation, outcome.last_words)
            }
        }
    }

    /// The faults that had begun by an instant and not ended, in words.
    #[must_use]
    pub fn faults_at(&self, at: u64) -> Vec<String> {
        let at_ms = at / 1_000_000;
        match self {
            Self::A(plan) => {
                let lasts = |until: Option<u64>| until.is_none_or(|until| until >= at_ms);
                let faults = plan.faults.iter();
                let faults = faults.filter(|fault| fault.at_ms <= at_ms && lasts(fault.until_ms));
                faults.map(ToString::to_string).collect()
            }
            Self::B(plan) => {
                let until = |from: u64, length: u64| from.saturating_add(length);
                let faults = plan.faults.iter().filter(|fault| {
                    fault.at_ms <= at_ms && until(fault.at_ms, fault.for_ms) >= at_ms
                });
                let told = faults.map(|timed| {
                    let (from, to) = (timed.at_ms, until(timed.at_ms, timed.for_ms));
                    format!("{} from {from} to {to} ms", plain(&timed.fault))
                });
                told.collect()
            }
        }
    }

    /// What it is there for, where it says so.
    #[must_use]
    pub fn what(&self) -> String {
        match self {
            Self::A(plan) => plan.what.clone(),
            Self::B(plan) => plan.what.clone(),
        }
    }

    /// How many things are asked, and how many go wrong.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        match self {
            Self::A(plan) => (plan.asks.len(), plan.faults.len()),
            Self::B(plan) => (plan.operations.len(), plan.faults.len()),
        }
    }

    /// Takes the nemesis out of it.
    pub fn drop_faults(&mut self) {
        match self {
            Self::A(plan) => {
                plan.faults.clear();
                plan.what.push_str(", without its faults");
            }
            Self::B(plan) => plan.faults.clear(),
        }
    }

    /// The plan as it is saved.
    ///
    /// # Errors
    /// Never, unless a plan is no plain data any more.
    pub fn to_text(&self) -> Result<String, String> {
        match self {
            Self::A(plan) => Ok(plan.to_text()),
            Self::B(plan) => rows(plan).map_err(|why| why.to_string()),
        }
    }

    /// Reads a saved plan; which tier it is for shows in what it has.
    ///
    /// # Errors
    /// In words that say what to do.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|why| format!("not a plan: {why}"))?;
        if value.get("operations").is_none() {
            return Plan::parse(text).map(|plan| Self::A(Box::new(plan)));
        }
        let plan = serde_json::from_value(value);
        plan.map(|plan| Self::B(Box::new(plan))).map_err(|why| format!("not a plan: {why}"))
    }
}

/// A plan of tier B with one operation and one fault on each line.
fn rows(plan: &TierBPlan) -> serde_json::Result<String> {
    let serde_json::Value::Object(fields) = serde_json::to_value(plan)? else {
        return serde_json::to_string_pretty(plan);
    };
    let mut lines = Vec::new();
    for (name, value) in &fields {
        let text = match value.as_array().filter(|rows| rows.iter().any(|row| row.is_object())) {
            None => value.to_string(),
            Some(rows) => {
                let rows: Vec<String> = rows.iter().map(ToString::to_string).collect();
                format!("[\n    {}\n  ]", rows.join(",\n    "))
            }
        };
        lines.push(format!("  \"{name}\": {text}"));
    }
    Ok(format!("{{\n{}\n}}\n", lines.join(",\n")))
}

fn seen(plan: &Plan, ran: run::Ran) -> Seen {
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

fn seen_b(plan: &TierBPlan, outcome: &tier_b::Outcome) -> Seen {
    let violation = outcome.violation.as_ref().map(|(number, text, at)| Violation {
        // What breaks without a number of its own is a run that did not come to its end.
        invariant: Invariant::numbered(*number).unwrap_or(Invariant::Bounds),
        at: u64::try_from(at.as_nanos()).unwrap_or(u64::MAX),
        text: text.clone(),
    });
    Seen {
        seed: plan.seed,
        hash: outcome.trace_hash,
        events: outcome.events,
        requests: outcome.requests,
        simulated: outcome.simulated,
        violation,
        coverage: outcome.coverage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_plan_of_either_tier_reads_back_as_it_was() {
        for tier in [Tier::A, Tier::B] {
            for null in [false, true] {
                let plan = tier.plan(5, null);
                let text = plan.to_text().expect("a plan is plain data");
                assert_eq!(AnyPlan::parse(&text), Ok(plan.clone()), "{tier:?}");
                let rows = text.lines().count();
                assert!(rows > plan.size().0 + plan.size().1, "one on each line: {rows}");
            }
        }
    }

    #[test]
    fn a_plan_without_faults_has_none() {
        assert_eq!(Tier::A.plan(5, true).size().1, 0);
        assert_eq!(Tier::B.plan(5, true).size().1, 0);
    }

    #[test]
    fn what_is_no_plan_is_refused_with_the_reason() {
        let why = AnyPlan::parse("{}").expect_err("nothing is there");
        assert!(why.starts_with("not a plan"), "{why}");
    }
}
