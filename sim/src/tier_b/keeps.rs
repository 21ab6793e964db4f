//! Which streams of a plan are kept for a client that goes away, and how those clients behave.
//!
//! Half of the plans have them, for a quarter of their streams. Those are longer than the others, so that there is something to
//! come back for, and the grace time is short, so that a client can be late within a minute's run.

use control::rng::Rng;

use super::draw::{between, chance, small};
use super::plan::{Guise, Keeping, Rival, TierBPlan, Visit};

/// Changes a plan that is drawn: in its own stream of chance, so that the rest of it is what it was.
pub(super) fn draw(plan: &mut TierBPlan, rng: &mut Rng) {
    if !chance(rng, 50) {
        return;
    }
    plan.knobs.grace_ms = if chance(rng, 15) { 0 } else { between(rng, 1_000, 3_000) };
    for number in 0..plan.operations.len() {
        let operation = &plan.operations[number];
        let may = operation.stream && !operation.must_succeed && operation.leaves_after.is_none();
        if !may || !chance(rng, 25) {
            continue;
        }
        let gateway = operation.gateway;
        let keeping = keeping(plan, rng, gateway);
        let is_long = chance(rng, 70);
        let wants = between(rng, 40, 400) as u32;
        let operation = &mut plan.operations[number];
        operation.keeping = Some(keeping);
        if is_long {
            operation.wants = wants;
            operation.max_tokens = operation.max_tokens.map(|_| wants);
        }
    }
}

fn keeping(plan: &TierBPlan, rng: &mut Rng, first: u8) -> Keeping {
    let breaks_off = chance(rng, 75).then(|| events(rng));
    let visits = (0..between(rng, 1, 4)).map(|_| visit(plan, rng, first)).collect();
    let rival = chance(rng, 15).then(|| {
        let after_ms = between(rng, 0, 2_000);
        Rival { after_ms, gateway: somewhere(plan, rng, first) }
    });
    Keeping { breaks_off, visits, rival }
}

fn visit(plan: &TierBPlan, rng: &mut Rng, first: u8) -> Visit {
    let grace = plan.grace_ms().min(3_000);
    let away_ms = match rng.below(10) {
        0..=2 => rng.below(50),
        3..=7 => between(rng, 0, grace),
        // Too late, unless its answer was over by then.
        _ => grace + between(rng, 0, 3_000),
    };
    let guise = match rng.below(20) {
        0..=14 => Guise::Honest,
        15 | 16 => Guise::FromTheStart,
        17 => Guise::TooHigh,
        18 => Guise::Nonsense,
        _ => Guise::Stranger,
    };
    let breaks_off = chance(rng, 50).then(|| events(rng));
    Visit { away_ms, gateway: somewhere(plan, rng, first), guise, breaks_off }
}

/// Some break off before the first event.
fn events(rng: &mut Rng) -> u32 {
    if chance(rng, 20) { rng.below(3) as u32 } else { rng.below(150) as u32 }
}

/// The same machine again, or any that clients ask: where gateways share nothing, others hardly ever, for those do not even
/// know the key.
fn somewhere(plan: &TierBPlan, rng: &mut Rng, first: u8) -> u8 {
    let others = if plan.shared || plan.doors > 0 { 60 } else { 5 };
    if !chance(rng, others) {
        return first;
    }
    let fronts = plan.fronts();
    fronts.start + small(rng.below(fronts.len() as u64))
}
