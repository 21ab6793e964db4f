//! Stories of breakers.

use super::Mutant::*;
use super::Story;
use crate::breaker::Phase;
use crate::outcome::{Failure, Fault};
use crate::plane::tests::world::{Ask, World, seconds};

pub(super) const STORIES: &[Story] = &[
    (NeverHalfOpen, an_ejection_that_is_over_lets_a_probe_through),
    (ProbeSlotLeaked, a_client_that_leaves_its_probe_frees_the_slot),
    (HalfOpenFloods, one_probe_runs_at_a_time),
    (RetripShorter, a_probe_that_fails_ejects_for_longer),
    (LoneNeverCooled, a_lone_endpoint_is_ejected),
    (SuccessAtStart, a_stream_that_breaks_is_a_failure),
    (FaultNeutral, an_upstream_that_refuses_our_key_is_ejected),
    (BusyOpens, a_busy_endpoint_is_not_ejected),
    (FullIsAskedAgain, a_full_endpoint_is_passed_over),
    (ConnectNotCounted, a_lone_endpoint_is_ejected),
    (EjectedStillPicked, an_ejected_endpoint_gets_nothing),
    (ConfigEditEvicts, a_reload_takes_nobody_out),
];

/// A world in which failures of `a` are told and not repeated.
fn world(names: &[&str]) -> World {
    let mut world = World::of(names);
    world.configure(|config| config.attempt.attempts_max = 1);
    world
}

/// As many requests as it takes; what comes to `a` fails, after its first token or before.
fn fail_at_a(world: &mut World, failure: Failure, begun: bool) -> Phase {
    for _ in 0..20 {
        let caller = world.ask(Ask::stream());
        if !world.runs(caller) {
            break;
        }
        if begun {
            world.first_token(caller);
        }
        if world.at(caller) == "a" {
            world.fail(caller, failure);
        } else {
            world.complete(caller, 1);
        }
    }
    world.view("a").breaker.phase
}

/// A world in which `a` is ejected.
fn ejected(names: &[&str]) -> World {
    let mut world = world(names);
    assert_eq!(fail_at_a(&mut world, Failure::Status(500), false), Phase::Open);
    world
}

/// A pool of one, half-open.
fn half_open() -> World {
    let mut world = ejected(&["a"]);
    world.later(seconds(5));
    assert_eq!(world.view("a").breaker.phase, Phase::HalfOpen);
    world
}

fn an_ejection_that_is_over_lets_a_probe_through() -> bool {
    let mut world = ejected(&["a"]);
    world.later(seconds(5));
    world.view("a").breaker.phase == Phase::HalfOpen
}

fn a_client_that_leaves_its_probe_frees_the_slot() -> bool {
    let mut world = half_open();
    let probe = world.ask(Ask::new());
    world.gone(probe);
    let next = world.ask(Ask::new());
    world.runs(next)
}

fn one_probe_runs_at_a_time() -> bool {
    let mut world = half_open();
    world.ask(Ask::new());
    let second = world.ask(Ask::new());
    !world.runs(second)
}

fn a_probe_that_fails_ejects_for_longer() -> bool {
    let mut world = half_open();
    let probe = world.ask(Ask::new());
    world.fail(probe, Failure::Status(500));
    world.view("a").breaker.until.unwrap().since(world.now) > seconds(5)
}

fn a_lone_endpoint_is_ejected() -> bool {
    fail_at_a(&mut world(&["a"]), Failure::Connect, false) == Phase::Open
}

fn a_stream_that_breaks_is_a_failure() -> bool {
    fail_at_a(&mut world(&["a"]), Failure::Truncated, true) == Phase::Open
}

fn an_upstream_that_refuses_our_key_is_ejected() -> bool {
    let fault = Failure::EndpointFault(Fault::KeyRefused);
    fail_at_a(&mut world(&["a"]), fault, false) == Phase::Open
}

fn a_busy_endpoint_is_not_ejected() -> bool {
    fail_at_a(&mut world(&["a"]), Failure::Backpressure(429), false) == Phase::Closed
}

fn a_full_endpoint_is_passed_over() -> bool {
    let mut world = world(&["a", "b"]);
    fail_at_a(&mut world, Failure::Backpressure(429), false);
    (0..10).all(|_| {
        let caller = world.ask(Ask::new());
        let at = world.at(caller).to_owned();
        world.complete(caller, 1);
        at == "b"
    })
}

fn an_ejected_endpoint_gets_nothing() -> bool {
    let mut world = ejected(&["a", "b"]);
    (0..10).all(|_| {
        let caller = world.ask(Ask::new());
        world.at(caller) == "b"
    })
}

fn a_reload_takes_nobody_out() -> bool {
    let mut world = ejected(&["a"]);
    world.configure(|_| {});
    world.later(seconds(5));
    let probe = world.ask(Ask::new());
    world.runs(probe)
}
