//! A failure, told: what broke, what had gone wrong by then, what happened last, and how to see it again.
//!
//! The run that found it kept nothing but a hash. The same plan is run once more with somebody who listens; it is
//! deterministic, so it is the same failure.

use std::fmt::Write;

use crate::check::Violation;
use crate::plan::Plan;
use crate::run;
use crate::trace::{Tail, Trace};

/// Faults that are listed; a world of the largest size may have more under way.
const FAULTS_TOLD: usize = 12;

/// Everything that is told of a failure, in lines.
pub(super) fn told(name: &str, plan: &Plan, violation: &Violation, again: &str) -> String {
    let mut tail = Tail::new(plan);
    let ran = run::run(plan, Trace::told(&mut tail));
    let seconds = violation.at as f64 / 1e9;
    let mut text = String::new();
    let mut line = |words: &str| {
        let _ = writeln!(text, "{words}");
    };
    line(&format!("{name} breaks invariant {} at {seconds:.6} s:", violation.invariant));
    line(&format!("  {}", violation.text));
    if ran.outcome.violation.as_ref() != Some(violation) {
        line(
            "  run again, it breaks otherwise: the simulator is not deterministic here (see `meta`)",
        );
    }
    let faults = under_way(plan, violation.at);
    if !faults.is_empty() {
        line("faults under way:");
        faults.iter().for_each(|fault| line(&format!("  {fault}")));
    }
    line("what happened last, as far as it concerns that:");
    tail.told(violation).iter().for_each(|event| line(event));
    line(&format!("again: {again}"));
    text
}

/// The faults that had begun and not ended.
fn under_way(plan: &Plan, at: u64) -> Vec<String> {
    let at_ms = at / 1_000_000;
    let lasts = |until: Option<u64>| until.is_none_or(|until| until >= at_ms);
    let faults = plan.faults.iter().filter(|fault| fault.at_ms <= at_ms && lasts(fault.until_ms));
    faults.take(FAULTS_TOLD).map(ToString::to_string).collect()
}
