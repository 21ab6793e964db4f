//! Shrinking a plan that breaks on purpose: its gateways forget a key after a second, and the key comes again after three.

use super::case::{earlier, first_ms, last_ms};
use super::*;
use crate::plan::{Plan, draw};

#[test]
fn a_plan_shrinks_to_what_breaks_it() {
    let plan = forgetful();
    let shrunk = shrunk(&plan).expect("it breaks");
    assert_eq!(shrunk.violation.invariant, Invariant::Outcome);
    assert_eq!(shrunk.plan.size(), (2, 0), "{:?}", shrunk.plan);
    assert!(!shrunk.timed_out);
    let text = shrunk.plan.to_text().expect("a plan is plain data");
    assert_eq!(AnyPlan::parse(&text).as_ref(), Ok(&shrunk.plan));
    assert_eq!(shrunk.plan.run().violation, Some(shrunk.violation));
    let AnyPlan::A(plan) = shrunk.plan else { panic!("it is of the tier it was of") };
    assert_eq!((plan.topology.gateways.len(), plan.topology.replicas.len()), (1, 1));
    assert!(plan.duration_ms < 5_000, "{} ms", plan.duration_ms);
}

#[test]
fn a_plan_that_holds_is_not_shrunk() {
    let mut plan = forgetful();
    plan.asks.retain(|ask| ask.key.is_none());
    assert!(shrunk(&plan).is_none());
}

#[test]
fn what_fails_for_another_reason_is_not_kept() {
    let plan = forgetful();
    let limit = Duration::from_secs(60);
    let sound = |plan: &AnyPlan| plan.size().0 >= 5;
    let shrunk =
        shrink(&AnyPlan::A(Box::new(plan)), Wanted { limit, sound: &sound, tell: &mut |_| () });
    assert_eq!(shrunk.expect("it breaks").plan.size().0, 5);
}

#[test]
fn a_limit_of_no_time_leaves_the_plan_as_it_is() {
    let plan = forgetful();
    let wanted = Wanted { limit: Duration::ZERO, sound: &|_| true, tell: &mut |_| () };
    let shrunk = shrink(&AnyPlan::A(Box::new(plan.clone())), wanted).expect("it breaks");
    assert!(shrunk.timed_out);
    assert_eq!(shrunk.plan.size(), (plan.asks.len(), plan.faults.len()));
}

#[test]
fn words_are_the_same_whatever_the_numbers() {
    let plan = draw(1);
    let goal = |text: &str, at: u64| {
        let invariant = Invariant::Bound;
        Goal::of(&Violation { invariant, at, text: text.to_owned() }, plan.duration_ms)
    };
    assert!(goal("gateway-0: req_1-2 is lost", 5) == goal("gateway-1: req_9-a is lost", 6));
    assert!(goal("gateway-0: req_1-2 is lost", 5) != goal("gateway-0: req_1-2 is found", 5));
    let end = plan.duration_ms * 1_000_000;
    assert!(goal("req_1-2 is lost", 5) != goal("req_1-2 is lost", end));
}

#[test]
fn everything_moves_earlier_together() {
    let mut plan = draw(3);
    let by = first_ms(&plan);
    let (last, rest) = (last_ms(&plan), plan.duration_ms - plan.heal_at_ms);
    earlier(&mut plan, by);
    assert_eq!((first_ms(&plan), last_ms(&plan)), (0, last - by));
    assert_eq!(plan.duration_ms - plan.heal_at_ms, rest);
    assert_eq!(Plan::parse(&plan.to_text()).as_ref(), Ok(&plan));
}

fn forgetful() -> Plan {
    let mut plan = draw(8);
    plan.config.session.idempotency_ttl = Duration::from_secs(1);
    plan.asks.truncate(30);
    let mut keyed = plan.asks[20].clone();
    plan.asks.iter_mut().for_each(|ask| ask.key = None);
    (keyed.key, keyed.session, keyed.stored) = (Some(7), None, false);
    (keyed.patience_ms, keyed.leaves_ms, keyed.model) = (None, None, 0);
    for at_us in [500_000, 4_000_000] {
        plan.asks.push(crate::plan::Ask { at_us, ..keyed.clone() });
    }
    plan.asks.sort_by_key(|ask| ask.at_us);
    plan.faults.retain(|fault| fault.at_ms > 1_000);
    plan
}

fn shrunk(plan: &Plan) -> Option<Shrunk> {
    let wanted = Wanted { limit: Duration::from_secs(60), sound: &|_| true, tell: &mut |_| () };
    shrink(&AnyPlan::A(Box::new(plan.clone())), wanted)
}
