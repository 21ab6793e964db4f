//! A failure, told: what broke, what had gone wrong by then, what happened last, and how to see it again.
//!
//! The run that found it kept nothing but a hash. The same plan is run once more with somebody who listens; it is
//! deterministic, so it is the same failure.

use std::fmt::Write;

use crate::check::Violation;
use crate::tier::AnyPlan;

/// Faults that are listed; a world of the largest size may have more under way.
const FAULTS_TOLD: usize = 12;

/// Everything that is told of a failure, in lines.
pub(super) fn told(name: &str, plan: &AnyPlan, violation: &Violation, again: &str) -> String {
    let (broke, words) = plan.last_words();
    let seconds = violation.at as f64 / 1e9;
    let mut text = String::new();
    let mut line = |words: &str| {
        let _ = writeln!(text, "{words}");
    };
    line(&format!("{name} breaks invariant {} at {seconds:.6} s:", violation.invariant));
    line(&format!("  {}", violation.text));
    if broke.as_ref() != Some(violation) {
        line(
            "  run again, it breaks otherwise: the simulator is not deterministic here (see `meta`)",
        );
    }
    let faults = plan.faults_at(violation.at);
    if !faults.is_empty() {
        line("faults under way:");
        faults.iter().take(FAULTS_TOLD).for_each(|fault| line(&format!("  {fault}")));
    }
    line("what happened last, as far as it concerns that:");
    words.iter().for_each(|event| line(event));
    line(&format!("again: {again}"));
    text
}
