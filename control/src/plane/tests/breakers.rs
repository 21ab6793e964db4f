//! Breakers, as the plane uses them.

use super::world::{Ask, World, seconds, spec};
use crate::breaker::{Cause, Phase};
use crate::id::CallerToken;
use crate::outcome::{Failure, Fault, Stage};
use crate::plane::{Observation, Outcome, Refusal};
use crate::registry::EndpointSpec;

/// Fails requests until `a` is ejected.
fn eject(world: &mut World, failure: Failure) {
    world.configure(|config| config.attempt.attempts_max = 1);
    for _ in 0..100 {
        if world.view("a").breaker.phase == Phase::Open {
            return;
        }
        let caller = world.ask(Ask::new());
        if world.at(caller) == "a" {
            world.fail(caller, failure);
        } else {
            world.complete(caller, 1);
        }
    }
    panic!("it is never ejected");
}

fn until_half_open(world: &mut World) {
    world.later(seconds(5));
    assert_eq!(world.view("a").breaker.phase, Phase::HalfOpen);
}

#[test]
fn an_endpoint_that_fails_gets_nothing_until_a_probe_has_succeeded() {
    let mut world = World::of(&["a", "b"]);
    eject(&mut world, Failure::Connect);
    let callers: Vec<_> = (0..10).map(|_| world.ask(Ask::new())).collect();
    assert!(callers.iter().all(|caller| world.at(*caller) == "b"));
    until_half_open(&mut world);
    let probes: Vec<_> = (0..10).map(|_| world.ask(Ask::new())).collect();
    let probe: Vec<_> = probes.iter().filter(|caller| world.at(**caller) == "a").collect();
    assert_eq!(probe.len(), 1, "one probe at a time");
    world.complete(*probe[0], 1);
    assert_eq!(world.view("a").breaker.phase, Phase::Closed);
    world.later(seconds(10));
    assert_eq!(world.view("a").breaker.share_permille, 1_000);
}

#[test]
fn a_probe_that_fails_ejects_for_longer() {
    let mut world = World::of(&["a"]);
    eject(&mut world, Failure::Connect);
    until_half_open(&mut world);
    let probe = world.ask(Ask::new());
    world.fail(probe, Failure::Connect);
    let view = world.view("a").breaker;
    assert_eq!((view.phase, view.cause), (Phase::Open, Some(Cause::ProbeFailed)));
    assert!(view.until.unwrap().since(world.now) > seconds(5));
}

#[test]
fn nobody_left_says_why_and_when_to_come_back() {
    let mut world = World::of(&["a"]);
    eject(&mut world, Failure::Connect);
    let caller = world.ask(Ask::new());
    let Refusal::NobodyLeft { members: 1, draining: 0, ejected: 1, full: 0, retry_after } =
        world.refusal(caller)
    else {
        panic!("{:?}", world.refusal(caller))
    };
    assert!(retry_after > seconds(3) && retry_after <= seconds(5));
    world.is_quiet();
}

#[test]
fn a_probe_that_answers_all_at_once_may_take_as_long_as_any_request() {
    let mut world = World::of(&["a"]);
    eject(&mut world, Failure::Connect);
    until_half_open(&mut world);
    let probe = world.ask(Ask::new().patience(seconds(300)));
    world.later(seconds(200));
    assert_eq!(world.view("a").breaker.phase, Phase::HalfOpen);
    world.complete(probe, 1);
    assert_eq!(world.view("a").breaker.phase, Phase::Closed);
}

#[test]
fn a_probe_that_streams_may_think_as_long_as_its_first_token_may_take() {
    let mut world = World::of(&["a"]);
    world.configure(|config| {
        config.timeouts.first_token = seconds(120);
        config.timeouts.between_tokens = seconds(90);
    });
    eject(&mut world, Failure::Connect);
    until_half_open(&mut world);
    let probe = world.ask(Ask::stream());
    world.later(seconds(100));
    world.first_token(probe);
    world.later(seconds(80));
    assert_eq!(world.view("a").breaker.phase, Phase::HalfOpen);
    world.complete(probe, 1);
    assert_eq!(world.view("a").breaker.phase, Phase::Closed);
}

#[test]
fn a_probe_that_never_ends_is_judged_by_its_deadline() {
    let mut world = World::of(&["a"]);
    eject(&mut world, Failure::Connect);
    until_half_open(&mut world);
    world.ask(Ask::stream());
    world.later(world.config.timeouts.first_token + seconds(5));
    let view = world.view("a").breaker;
    assert_eq!((view.phase, view.cause), (Phase::Open, Some(Cause::ProbeExpired)));
}

#[test]
fn a_client_that_leaves_its_probe_gives_the_slot_to_the_next() {
    let mut world = World::of(&["a"]);
    eject(&mut world, Failure::Connect);
    until_half_open(&mut world);
    let probe = world.ask(Ask::new());
    let second = world.ask(Ask::new());
    assert!(matches!(world.refusal(second), Refusal::NobodyLeft { .. }));
    world.gone(probe);
    let third = world.ask(Ask::new());
    assert_eq!(world.at(third), "a");
}

#[test]
fn a_revoked_key_ejects_at_once_and_the_request_goes_elsewhere() {
    let mut world = World::of(&["a", "b"]);
    let fault = Fault::KeyRefused;
    let mut caller = world.ask(Ask::new());
    while world.at(caller) != "a" {
        caller = world.ask(Ask::new());
    }
    world.fail(caller, Failure::EndpointFault(fault));
    assert_eq!(world.at(caller), "b");
    assert_eq!(world.view("a").breaker.cause, Some(Cause::Fault(fault)));
    world.complete(caller, 1);
    assert_eq!(world.finish(caller).0, Outcome::Completed);
}

#[test]
fn saturation_and_bad_requests_eject_nobody() {
    let mut world = World::of(&["a"]);
    world.configure(|config| config.attempt.attempts_max = 1);
    for failure in [Failure::Backpressure(503), Failure::ClientError(400)] {
        for _ in 0..50 {
            let caller = world.ask(Ask::new());
            world.fail(caller, failure);
            world.later(seconds(1));
        }
    }
    assert_eq!(world.view("a").breaker.phase, Phase::Closed);
}

#[test]
fn a_stream_that_breaks_at_its_end_counts_against_its_endpoint() {
    let mut world = World::of(&["a"]);
    for _ in 0..5 {
        let caller = world.ask(Ask::stream());
        world.first_token(caller);
        world.fail(caller, Failure::Truncated);
    }
    assert_eq!(world.view("a").breaker.phase, Phase::Open);
}

#[test]
fn with_too_few_left_all_are_asked() {
    let names: Vec<_> = (0..12).map(|number| format!("r{number}")).collect();
    let mut world = World::of(&names.iter().map(String::as_str).collect::<Vec<_>>());
    world.configure(|config| config.attempt.attempts_max = 1);
    world.configure(|config| config.breaker.ejection_percent_max = 100);
    for _ in 0..12 * 6 {
        let caller = world.ask(Ask::new());
        world.fail(caller, Failure::Connect);
    }
    let caller = world.ask(Ask::new());
    assert!(world.runs(caller), "panic: somebody is asked");
    let panic = world.observations.iter().any(
        |observation| matches!(observation, Observation::Picked { chosen, .. } if chosen.panic),
    );
    assert!(panic);
}

#[test]
fn a_tier_is_used_when_the_one_before_it_has_nobody_left() {
    let mut world = World::new();
    world.listed(vec![spec("a"), EndpointSpec { tier: 1, ..spec("provider") }]);
    let first = world.ask(Ask::new());
    assert_eq!(world.at(first), "a");
    eject(&mut world, Failure::Connect);
    let second = world.ask(Ask::new());
    assert_eq!(world.at(second), "provider");
    until_half_open(&mut world);
    let third = world.ask(Ask::new());
    assert_eq!(world.at(third), "a", "back as soon as it may be asked");
}

#[test]
fn a_reload_that_changes_the_slow_start_is_obeyed_at_once() {
    let mut world = World::of(&["a"]);
    eject(&mut world, Failure::Connect);
    until_half_open(&mut world);
    let probe: CallerToken = world.ask(Ask::new());
    world.complete(probe, 1);
    assert_eq!(world.view("a").breaker.share_permille, 100);
    world.configure(|config| config.breaker.slow_start_floor_permille = 500);
    assert_eq!(world.view("a").breaker.share_permille, 500);
}

#[test]
fn a_replica_that_never_answers_within_the_configured_time_is_ejected() {
    let mut world = World::of(&["a"]);
    for _ in 0..5 {
        let caller = world.ask(Ask::new());
        world.later(seconds(600));
        world.fail(caller, Failure::Timeout(Stage::Deadline));
    }
    assert_eq!(world.view("a").breaker.phase, Phase::Open);
}

#[test]
fn a_client_in_a_hurry_says_nothing_about_a_replica() {
    let mut world = World::of(&["a"]);
    for _ in 0..9 {
        let caller = world.ask(Ask::new().patience(seconds(1)));
        world.later(seconds(1));
        world.fail(caller, Failure::Timeout(Stage::Deadline));
    }
    assert_eq!(world.view("a").breaker.phase, Phase::Closed);
}
