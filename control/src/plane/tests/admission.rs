//! What can refuse a request before anything is held for it.

use super::world::{Ask, World, rated, seconds, spec};
use crate::Machine;
use crate::id::{AccountId, CallerToken};
use crate::outcome::{Failure, Stage};
use crate::plane::{Arrival, Effect, Input, Observation, Outcome, Refusal, Stale};
use crate::rate::RateUnit;
use crate::registry::EndpointSpec;

#[test]
fn a_request_is_admitted_dispatched_answered_and_charged() {
    let mut world = World::of(&["a"]);
    let caller = world.ask(Ask::new());
    let admitted = world.effects.iter().filter(|e| matches!(e, Effect::Admitted { .. }));
    assert_eq!(admitted.count(), 1);
    assert_eq!(world.at(caller), "a");
    world.complete(caller, 40);
    assert_eq!(world.finish(caller).0, Outcome::Completed);
    assert_eq!(world.charged(caller), 50);
    assert_eq!(world.spent(1), 50);
    world.is_quiet();
}

#[test]
fn what_is_durable_comes_before_what_depends_on_it() {
    let mut world = World::of(&["a"]);
    let caller = world.ask(Ask::stream().session(1));
    world.accept(caller);
    world.first_token(caller);
    world.complete(caller, 5);
    let place = |wanted: fn(&Effect) -> bool| world.effects.iter().position(wanted).unwrap();
    let admitted = place(|effect| matches!(effect, Effect::Admitted { .. }));
    let reserved = place(|effect| matches!(effect, Effect::Persist(_)));
    let dispatched = place(|effect| matches!(effect, Effect::Dispatch(_)));
    let finished = place(|effect| matches!(effect, Effect::Finish { .. }));
    assert!(admitted < reserved && reserved < dispatched && dispatched < finished);
    assert!(matches!(world.effects[finished - 1], Effect::Persist(_)), "settled, then finished");
}

#[test]
fn a_model_nobody_serves_is_unknown() {
    let mut world = World::of(&["a"]);
    let caller = world.ask(Ask::new().model("other"));
    assert_eq!(world.refusal(caller), Refusal::UnknownModel);
    world.is_quiet();
}

#[test]
fn a_repeated_key_runs_once_while_it_runs_and_after_it_succeeded() {
    let mut world = World::of(&["a"]);
    let first = world.ask(Ask::new().keyed(1, 1));
    let by = world.dispatches[&first].request;
    let second = world.ask(Ask::new().keyed(1, 1));
    assert_eq!(world.refusal(second), Refusal::IdempotencyInFlight { by: Some(by) });
    let other_body = world.ask(Ask::new().keyed(1, 2));
    assert_eq!(world.refusal(other_body), Refusal::IdempotencyMismatch { by: Some(by) });
    world.complete(first, 1);
    let third = world.ask(Ask::new().keyed(1, 1));
    assert_eq!(world.refusal(third), Refusal::IdempotencyDone { by: Some(by) });
    let other_tenant = world.ask(Ask::new().keyed(1, 1).tenant(2));
    assert!(world.runs(other_tenant));
    world.complete(other_tenant, 1);
    world.is_quiet();
}

#[test]
fn a_key_is_free_again_after_what_cost_nothing() {
    let mut world = World::of(&["a"]);
    let refused = world.ask(Ask::new().keyed(1, 1));
    world.fail(refused, Failure::ClientError(400));
    let left = world.ask(Ask::stream().keyed(1, 1));
    world.gone(left);
    let last = world.ask(Ask::new().keyed(1, 1));
    world.complete(last, 1);
    assert_eq!(world.finish(last).0, Outcome::Completed);
    world.is_quiet();
}

#[test]
fn a_key_is_charged_once_even_if_its_answer_broke_off_or_was_left() {
    let mut world = World::of(&["a"]);
    let broken = world.ask(Ask::stream().keyed(1, 1));
    let by = world.dispatches[&broken].request;
    world.first_token(broken);
    world.fail(broken, Failure::Truncated);
    let again = world.ask(Ask::stream().keyed(1, 1));
    assert_eq!(world.refusal(again), Refusal::IdempotencyDone { by: Some(by) });
    let left = world.ask(Ask::stream().keyed(2, 1));
    let by = world.dispatches[&left].request;
    world.first_token(left);
    world.gone(left);
    let again = world.ask(Ask::stream().keyed(2, 1));
    assert_eq!(world.refusal(again), Refusal::IdempotencyDone { by: Some(by) });
    world.is_quiet();
}

#[test]
fn a_rate_refusal_gives_back_all_that_was_taken_before_it() {
    let mut world = World::of(&["a"]);
    world.configure(|config| {
        config.accounts.insert(AccountId(1), rated(Some(1), None));
        config.models.get_mut("m").unwrap().concurrency_max = Some(1);
    });
    let first = world.ask(Ask::new());
    world.complete(first, 1);
    let refused = world.ask(Ask::new().keyed(1, 1));
    let Refusal::RateLimited { account, unit, limit, retry_after } = world.refusal(refused) else {
        panic!("not limited");
    };
    assert_eq!((account, unit, limit), (AccountId(1), RateUnit::Rpm, 1));
    assert_eq!(retry_after, seconds(60));
    // Neither the key nor the model's one place is kept.
    world.later(retry_after);
    let again = world.ask(Ask::new().keyed(1, 1));
    world.complete(again, 1);
    assert_eq!(world.finish(again).0, Outcome::Completed);
    world.is_quiet();
}

#[test]
fn tokens_held_against_the_minute_return_when_the_answer_is_short() {
    let mut world = World::of(&["a"]);
    world.configure(|config| drop(config.accounts.insert(AccountId(1), rated(None, Some(150)))));
    let first = world.ask(Ask::new());
    let second = world.ask(Ask::new());
    assert!(matches!(world.refusal(second), Refusal::RateLimited { unit: RateUnit::Tpm, .. }));
    world.complete(first, 1);
    let third = world.ask(Ask::new());
    assert!(world.runs(third), "11 of 150 are used, 110 are asked for");
    world.gone(third);
    world.is_quiet();
}

#[test]
fn tokens_held_are_given_back_though_the_limit_is_lifted_meanwhile() {
    let mut world = World::of(&["a"]);
    let limit = |world: &mut World, tpm| {
        world.configure(|config| drop(config.accounts.insert(AccountId(1), rated(None, tpm))));
    };
    limit(&mut world, Some(150));
    let first = world.ask(Ask::new());
    limit(&mut world, None);
    world.gone(first);
    limit(&mut world, Some(150));
    let second = world.ask(Ask::new());
    assert!(world.runs(second), "what the first held was let go");
}

#[test]
fn a_model_takes_no_more_at_once_than_it_may() {
    let mut world = World::of(&["a"]);
    world.configure(|config| config.models.get_mut("m").unwrap().concurrency_max = Some(2));
    let callers: Vec<_> = (0..3).map(|_| world.ask(Ask::new())).collect();
    assert!(matches!(world.refusal(callers[2]), Refusal::ModelBusy { .. }));
    world.complete(callers[0], 1);
    let next = world.ask(Ask::new());
    assert!(world.runs(next));
}

#[test]
fn a_model_whose_replicas_are_all_full_is_given_less_at_once() {
    let mut world = World::of(&["a"]);
    world.configure(|config| {
        (config.concurrency.min, config.concurrency.max) = (1, 4);
        config.attempt.attempts_max = 1;
    });
    let callers: Vec<_> = (0..4).map(|_| world.ask(Ask::new())).collect();
    for caller in &callers {
        world.fail(*caller, Failure::Backpressure(429));
    }
    let admitted = (0..4).filter(|_| {
        let caller = world.ask(Ask::new());
        world.runs(caller)
    });
    assert_eq!(admitted.count(), 3, "four times 0.8, once");
}

#[test]
fn more_requests_than_the_plane_may_hold_are_shed() {
    let mut world = World::of(&["a"]);
    world.configure(|config| config.requests_max = 2);
    let callers: Vec<_> = (0..3).map(|_| world.ask(Ask::new())).collect();
    assert_eq!(world.refusal(callers[2]), Refusal::Overloaded);
    world.gone(callers[0]);
    let next = world.ask(Ask::new());
    assert!(world.runs(next));
}

#[test]
fn a_caller_that_is_in_use_is_no_second_request() {
    let mut world = World::of(&["a"]);
    let caller = world.ask(Ask::new());
    let arrival = crate::plane::Arrival { caller, ..Ask::new().0 };
    assert_eq!(world.input(Input::RequestArrived(arrival.into())), []);
    assert_eq!(world.observations.last(), Some(&Observation::Stale(Stale::Caller)));
    world.complete(caller, 1);
    world.is_quiet();
}

#[test]
fn no_patience_is_a_deadline_that_has_passed() {
    let mut world = World::of(&["a"]);
    let caller = world.ask(Ask::new().patience(seconds(0)));
    assert!(matches!(world.refusal(caller), Refusal::Failed { attempts: 0, .. }));
    world.is_quiet();
}

#[test]
fn a_replica_that_never_answers_does_not_shut_its_model_while_others_idle() {
    let mut world = World::of(&["a", "b", "c"]);
    world.configure(|config| config.attempt.attempts_max = 1);
    let callers: Vec<_> = (0..3).map(|_| world.ask(Ask::new())).collect();
    world.fail(callers[0], Failure::Timeout(Stage::FirstToken));
    let admitted = (0..20).filter(|_| {
        let caller = world.ask(Ask::new());
        world.runs(caller)
    });
    let in_flight = 2 + admitted.count();
    assert_eq!(in_flight, 6, "one for each replica, and one more for what a probe holds up");
}

/// Asked past the world, which looks at every invariant after every step.
#[test]
fn a_model_without_limits_takes_five_thousand_streams_at_once() {
    let mut world = World::new();
    world.listed(vec![EndpointSpec { in_flight_max: u32::MAX, ..spec("a") }]);
    let mut sent = 0;
    for caller in (1..=5_000).map(CallerToken) {
        world
            .plane
            .handle(world.now, Input::RequestArrived(Arrival { caller, ..Ask::stream().0 }.into()));
        let effects = core::iter::from_fn(|| world.plane.poll_effect());
        sent += effects.filter(|effect| matches!(effect, Effect::Dispatch(_))).count();
    }
    assert_eq!(sent, 5_000);
    world.plane.invariants();
}
