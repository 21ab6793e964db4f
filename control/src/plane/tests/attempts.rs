//! Attempts: where they go, what follows when they fail, and until when they are awaited.

use core::time::Duration;

use super::world::{Ask, World, failed, seconds, spec};
use crate::balance::Policy;
use crate::id::CallerToken;
use crate::outcome::{AttemptEnd, Failure, Stage};
use crate::plane::{ATTEMPTS_MAX, Durable, Effect, Outcome, Refusal};
use crate::registry::EndpointSpec;
use crate::units::Tokens;

#[test]
fn a_failure_before_the_first_token_is_followed_by_another_endpoint_in_silence() {
    let mut world = World::of(&["a", "b"]);
    let caller = world.ask(Ask::new());
    let first = world.at(caller).to_owned();
    world.fail(caller, Failure::Connect);
    assert_ne!(world.at(caller), first);
    assert_eq!(world.dispatches[&caller].number, 2);
    world.complete(caller, 1);
    assert_eq!(world.finish(caller).2, 2);
    world.is_quiet();
}

#[test]
fn a_failure_after_the_first_token_is_told_and_not_repeated() {
    let mut world = World::of(&["a", "b"]);
    let caller = world.ask(Ask::stream());
    world.first_token(caller);
    world.fail(caller, Failure::Timeout(Stage::BetweenTokens));
    let broken = Outcome::Broken(Failure::Timeout(Stage::BetweenTokens));
    assert_eq!(world.finish(caller).0, broken);
    world.is_quiet();
}

#[test]
fn later_attempts_wait_and_the_last_failure_is_the_answer() {
    let mut world = World::of(&["a", "b", "c"]);
    let caller = world.ask(Ask::new());
    let mut visited = vec![world.at(caller).to_owned()];
    world.fail(caller, Failure::Status(500));
    visited.push(world.at(caller).to_owned());
    world.fail(caller, Failure::Status(502));
    assert_eq!(world.dispatches[&caller].number, 2, "the third waits for its backoff");
    world.later(seconds(1));
    visited.push(world.at(caller).to_owned());
    world.fail(caller, Failure::Status(503));
    visited.sort();
    assert_eq!(visited, ["a", "b", "c"]);
    let refusal = Refusal::Failed { failure: Failure::Status(503), attempts: 3, retry_after: None };
    assert_eq!(world.refusal(caller), refusal);
    world.is_quiet();
}

#[test]
fn one_endpoint_alone_is_asked_again_when_it_said() {
    let mut world = World::of(&["a"]);
    let caller = world.ask(Ask::new());
    let end = AttemptEnd::Failed {
        failure: Failure::Backpressure(429),
        produced: Tokens::ZERO,
        retry_after: Some(seconds(7)),
    };
    world.end(caller, end);
    world.later(seconds(7) - Duration::from_nanos(1));
    assert_eq!(world.dispatches[&caller].number, 1);
    world.later(seconds(1));
    assert_eq!(world.dispatches[&caller].number, 2);
}

#[test]
fn no_configuration_makes_more_attempts_than_have_ids() {
    let mut world = World::of(&["a"]);
    world.configure(|config| {
        config.attempt.attempts_max = 1_000;
        config.breaker.consecutive_failures = 1_000;
        config.breaker.window_requests_min = 1_000;
    });
    let caller = world.ask(Ask::new());
    while world.runs(caller) {
        world.fail(caller, Failure::Connect);
        world.later(seconds(3));
    }
    assert!(matches!(world.refusal(caller), Refusal::Failed { attempts: ATTEMPTS_MAX, .. }));
}

#[test]
fn an_attempt_nobody_reports_is_given_up_behind_the_deadline() {
    let mut world = World::of(&["a"]);
    let silent = world.ask(Ask::new().patience(seconds(10)));
    let begun = world.ask(Ask::stream().patience(seconds(10)));
    world.first_token(begun);
    world.produce(begun, 8);
    world.later(seconds(14));
    assert!(world.runs(silent) && world.runs(begun));
    world.later(seconds(1));
    let failure = Failure::Timeout(Stage::Deadline);
    assert_eq!(world.refusal(silent), Refusal::Failed { failure, attempts: 1, retry_after: None });
    assert_eq!(world.finish(begun).0, Outcome::Broken(failure));
    assert_eq!(world.charged(begun), 18);
    assert_eq!(world.view("a").breaker.consecutive_failures, 0, "the replica did not lose it");
    world.is_quiet();
}

#[test]
fn a_session_is_bound_when_its_attempt_is_accepted_and_not_before() {
    let mut world = World::of(&["a", "b", "c"]);
    let caller = world.ask(Ask::new().session(9));
    assert_eq!(world.plane.view().sessions, 0);
    let effects = world.accept(caller);
    assert!(matches!(effects[..], [Effect::Persist(Durable::Binding { .. })]));
    assert_eq!(world.accept(caller), [], "said again, it changes nothing");
    let home = world.at(caller).to_owned();
    world.complete(caller, 1);
    for _ in 0..5 {
        let caller = world.ask(Ask::new().session(9));
        assert_eq!(world.at(caller), home);
        let effects = world.complete(caller, 1);
        let moved = effects.iter().any(|e| matches!(e, Effect::Persist(Durable::Binding { .. })));
        assert!(!moved, "a home that stays is not written again");
    }
}

#[test]
fn a_first_token_or_a_whole_answer_means_that_the_attempt_was_accepted() {
    let mut world = World::of(&["a"]);
    let caller = world.ask(Ask::stream().session(1));
    world.first_token(caller);
    assert_eq!(world.plane.view().sessions, 1);
    let caller = world.ask(Ask::new().session(2));
    world.complete(caller, 1);
    assert_eq!(world.plane.view().sessions, 2);
}

#[test]
fn under_a_policy_that_ignores_homes_sessions_have_none() {
    let mut world = World::of(&["a", "b"]);
    world.configure(|config| {
        config.models.get_mut("m").unwrap().policy = Some(Policy::RoundRobin);
    });
    for _ in 0..4 {
        let caller = world.ask(Ask::new().session(1));
        world.complete(caller, 1);
    }
    assert_eq!(world.plane.view().sessions, 0);
}

#[test]
fn a_home_that_is_full_keeps_its_session_until_spilling_is_a_habit() {
    let mut world = World::new();
    world.listed(["a", "b"].map(|name| EndpointSpec { in_flight_max: 1, ..spec(name) }).into());
    let first = world.ask(Ask::new().session(1));
    world.accept(first);
    let home = world.at(first).to_owned();
    for spill in 1..=4 {
        let caller = world.ask(Ask::new().session(1));
        assert_ne!(world.at(caller), home);
        world.accept(caller);
        let epoch = world.observations.iter().filter_map(|observation| match observation {
            crate::plane::Observation::Bound { binding, .. } => Some(binding.epoch),
            _ => None,
        });
        assert_eq!(epoch.max(), Some(if spill < 4 { 1 } else { 2 }), "after {spill} spills");
        world.complete(caller, 1);
    }
}

#[test]
fn an_endpoint_that_had_its_requests_of_this_second_is_passed_over() {
    let mut world = World::new();
    let slow = EndpointSpec { rps_max: Some(1), ..spec("a") };
    world.listed(vec![slow, EndpointSpec { tier: 1, ..spec("b") }]);
    let names: Vec<_> = (0..3)
        .map(|_| {
            let caller = world.ask(Ask::new());
            world.at(caller).to_owned()
        })
        .collect();
    assert_eq!(names, ["a", "b", "b"]);
    world.later(seconds(1));
    let caller = world.ask(Ask::new());
    assert_eq!(world.at(caller), "a");
}

#[test]
fn a_model_whose_endpoints_all_had_their_requests_is_busy_until_the_first_is_free() {
    let mut world = World::new();
    let specs = [("a", 2), ("b", 1)];
    world.listed(specs.map(|(name, rps)| EndpointSpec { rps_max: Some(rps), ..spec(name) }).into());
    let callers: Vec<_> = (0..3).map(|_| world.ask(Ask::new())).collect();
    assert!(world.runs(callers[0]) && world.runs(callers[1]));
    let retry_after = Duration::from_millis(400);
    assert_eq!(world.refusal(callers[2]), Refusal::ModelBusy { retry_after });
    world.later(retry_after);
    let caller = world.ask(Ask::new());
    assert_eq!(world.at(caller), "a");
    world.configure(|_| {});
    world.members(&["a", "b"]);
    let free = world.ask(Ask::new());
    assert!(world.runs(free), "a limit that was lifted holds nobody back");
}

/// Whoever is asked says that it is full, for as long.
fn full(world: &mut World, caller: CallerToken, retry_after: Option<Duration>) {
    let failure = Failure::Backpressure(429);
    world.end(caller, AttemptEnd::Failed { failure, produced: Tokens::ZERO, retry_after });
}

#[test]
fn a_full_endpoint_is_left_alone_as_long_as_it_says_while_another_is_there() {
    let mut world = World::of(&["a", "b"]);
    world.configure(|config| config.attempt.attempts_max = 1);
    let ask = |world: &mut World| {
        let caller = world.ask(Ask::new());
        (caller, world.at(caller).to_owned())
    };
    let (caller, first) = ask(&mut world);
    full(&mut world, caller, Some(seconds(20)));
    for _ in 0..8 {
        let (caller, at) = ask(&mut world);
        assert_ne!(at, first);
        world.complete(caller, 1);
    }
    world.later(seconds(20));
    let asked: Vec<_> = (0..4).map(|_| ask(&mut world).1).collect();
    assert!(asked.contains(&first), "it said twenty seconds");
}

#[test]
fn where_all_are_full_they_are_asked_all_the_same() {
    let mut world = World::of(&["a", "b"]);
    world.configure(|config| config.attempt.attempts_max = 1);
    for _ in 0..4 {
        let caller = world.ask(Ask::new());
        assert!(world.runs(caller), "to be told again is better than to be refused unheard");
        full(&mut world, caller, None);
    }
}

#[test]
fn a_throttled_endpoint_is_no_reason_to_repeat_a_failure_nor_to_forbid_it() {
    let mut world = World::new();
    world.listed(vec![spec("a"), EndpointSpec { rps_max: Some(1), ..spec("b") }]);
    let mut caller = world.ask(Ask::new());
    while world.at(caller) != "b" {
        caller = world.ask(Ask::new());
    }
    let next = world.ask(Ask::new());
    assert_eq!(world.at(next), "a");
    world.fail(next, Failure::Connect);
    assert_eq!((world.at(next), world.dispatches[&next].number), ("a", 2));
}

#[test]
fn a_stale_or_unknown_id_is_observed_and_changes_nothing() {
    let mut world = World::of(&["a", "b"]);
    let caller = world.ask(Ask::stream());
    let stale = world.dispatches[&caller].clone();
    world.fail(caller, Failure::Connect);
    let before = world.plane.view();
    let attempt = stale.attempt;
    use crate::plane::Input;
    for input in [
        Input::AttemptAccepted { attempt },
        Input::FirstToken { attempt },
        Input::Progress { attempt, produced: Tokens(9) },
        Input::AttemptEnded { attempt, end: failed(Failure::Garbage, 9) },
        Input::ClientGone { caller: crate::id::CallerToken(99) },
        Input::Drain { endpoint: "nobody".into(), on: true },
    ] {
        assert_eq!(world.input(input), []);
    }
    let after = world.plane.view();
    assert_eq!(format!("{before:?}"), format!("{after:?}"));
    world.complete(caller, 1);
    assert_eq!(world.charged(caller), 11);
    world.gone(caller);
    world.is_quiet();
}

#[test]
fn a_session_that_nobody_could_answer_forgets_its_home() {
    let mut world = World::of(&["a", "b"]);
    let first = world.ask(Ask::new().session(9));
    let home = world.at(first).to_owned();
    world.complete(first, 1);
    assert!(home_of(&mut world).contains(&format!("at home on {home}")));
    let refused = world.ask(Ask::new().session(9));
    while world.runs(refused) {
        world.fail(refused, Failure::Connect);
        world.later(seconds(2));
    }
    assert!(matches!(world.refusal(refused), Refusal::Failed { .. }));
    assert!(home_of(&mut world).contains("which has no home yet"), "the pin is cleared");
    world.is_quiet();
}

#[test]
fn a_session_of_replicas_that_are_merely_full_keeps_its_home() {
    let mut world = World::of(&["a", "b"]);
    let first = world.ask(Ask::new().session(9));
    world.complete(first, 1);
    let refused = world.ask(Ask::new().session(9));
    while world.runs(refused) {
        world.fail(refused, Failure::Backpressure(429));
        world.later(seconds(5));
    }
    assert!(home_of(&mut world).contains("at home on"));
}

/// Where session 9 is at home, as its next request is told.
fn home_of(world: &mut World) -> String {
    let caller = world.ask(Ask::new().session(9));
    let told = world.explain(caller);
    world.gone(caller);
    told
}
