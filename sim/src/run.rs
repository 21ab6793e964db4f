//! One plan, run to its end or to the first thing that does not hold, panics included.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::check::{Figures, Invariant, Violation};
use crate::chronicle::Chronicle;
use crate::coverage::{self, Coverage};
use crate::plan::Plan;
use crate::trace::Trace;
use crate::world;
pub use crate::world::Outcome;

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Ran {
    /// How it ended.
    pub outcome: Outcome,
    /// The marks it hit.
    pub coverage: Coverage,
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs a plan. A machine that panics broke invariant 7; its message is told, not printed.
#[must_use]
pub fn run<'a>(plan: &'a Plan, trace: Trace<'a>) -> Ran {
    let (ran, _) = run_with(plan, trace, Chronicle::default());
    ran
}

/// As [`run`], with somebody who takes notes; they are lost where a machine panics.
pub(crate) fn run_with<'a>(
    plan: &'a Plan,
    trace: Trace<'a>,
    notes: Chronicle,
) -> (Ran, Option<Chronicle>) {
    listen_to_panics();
    coverage::take();
    let ended = catch_unwind(AssertUnwindSafe(|| world::run(plan, trace, notes)));
    let coverage = coverage::take();
    match ended {
        Ok((outcome, notes)) => (Ran { outcome, coverage }, Some(notes)),
        Err(_) => {
            let text = PANIC.take().unwrap_or_else(|| "a panic without a message".to_owned());
            let violation = Violation { invariant: Invariant::Bounds, at: 0, text };
            let outcome = Outcome {
                violation: Some(violation),
                hash: 0,
                events: 0,
                steps: 0,
                requests: 0,
                figures: Figures::default(),
            };
            (Ran { outcome, coverage }, None)
        }
    }
}

/// Panics of a run are kept for its outcome; all others are printed as ever.
fn listen_to_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            PANIC.with(|kept| *kept.borrow_mut() = Some(info.to_string()));
        }));
    });
}
