//! Endpoints come, drain and go while requests run; configurations change.

use super::world::{Ask, World, daily, seconds, spec};
use crate::id::AccountId;
use crate::outcome::Failure;
use crate::plane::{Input, Outcome, Refusal};
use crate::registry::{EndpointSpec, SourceKind};
use crate::units::{MicroUsd, Price};

#[test]
fn a_draining_endpoint_finishes_what_runs_and_gets_nothing_new() {
    let mut world = World::of(&["a", "b"]);
    let callers = [world.ask(Ask::new().session(1)), world.ask(Ask::new().session(2))];
    for caller in callers {
        world.accept(caller);
    }
    let drained = world.at(callers[0]).to_owned();
    world.drain(&drained, true);
    for session in 0..8 {
        let caller = world.ask(Ask::new().session(session));
        assert_ne!(world.at(caller), drained);
        world.complete(caller, 1);
    }
    world.complete(callers[0], 1);
    assert_eq!(world.finish(callers[0]).0, Outcome::Completed);
    world.drain(&drained, false);
    let names: Vec<_> = (0..4)
        .map(|_| {
            let caller = world.ask(Ask::new());
            world.at(caller).to_owned()
        })
        .collect();
    assert!(names.contains(&drained));
}

#[test]
fn a_pool_that_drains_whole_says_so() {
    let mut world = World::of(&["a"]);
    world.drain("a", true);
    let caller = world.ask(Ask::new());
    assert!(matches!(world.refusal(caller), Refusal::NobodyLeft { members: 1, draining: 1, .. }));
}

#[test]
fn an_endpoint_that_is_removed_under_an_attempt_leaves_no_count_behind() {
    let mut world = World::of(&["a", "b"]);
    let callers: Vec<_> = (0..4).map(|_| world.ask(Ask::stream().session(3))).collect();
    world.first_token(callers[0]);
    world.members(&["c"]);
    world.complete(callers[0], 5);
    assert_eq!(world.finish(callers[0]).0, Outcome::Completed, "what runs runs on");
    world.fail(callers[1], Failure::ConnectionLost);
    assert_eq!(world.at(callers[1]), "c");
    world.complete(callers[1], 1);
    world.gone(callers[2]);
    world.members(&["a", "b"]);
    assert_eq!((world.view("a").in_flight, world.view("b").in_flight), (0, 0));
    world.accept(callers[3]);
    world.complete(callers[3], 1);
    world.is_quiet();
}

#[test]
fn a_reload_leaves_price_and_deadline_of_what_runs_alone() {
    let mut world = World::of(&["a"]);
    let caller = world.ask(Ask::new());
    let deadline = world.dispatches[&caller].deadline;
    world.configure(|config| {
        config.models.get_mut("m").unwrap().price =
            Price { input: MicroUsd(9_000_000), output: MicroUsd(9_000_000) };
        config.timeouts.request = seconds(1);
        config.accounts.insert(AccountId(1), daily(1));
    });
    world.later(seconds(30));
    world.fail(caller, Failure::Connect);
    world.later(seconds(3));
    assert_eq!(world.dispatches[&caller].deadline, deadline);
    world.complete(caller, 40);
    assert_eq!(world.finish(caller).1.money, MicroUsd(50));
    let next = world.ask(Ask::new());
    assert!(matches!(world.refusal(next), Refusal::QuotaSpent(_)), "the new limit holds");
    world.is_quiet();
}

#[test]
fn a_reload_that_narrows_what_an_endpoint_may_serve_is_known_to_the_picks() {
    let mut world = World::new();
    let both = vec!["k".into(), "m".into()];
    world.listed(vec![EndpointSpec { models: both, ..spec("a") }]);
    world.configure(|config| config.registry.models_max = 1);
    let caller = world.ask(Ask::new());
    assert_eq!(world.refusal(caller), Refusal::UnknownModel);
    let other = world.ask(Ask::new().model("k"));
    assert_eq!(world.at(other), "a");
}

#[test]
fn an_endpoint_its_source_left_out_goes_when_its_probe_fails_too() {
    let mut world = World::new();
    world.configure(|config| config.attempt.attempts_max = 1);
    let answer = |world: &mut World, version, endpoints| {
        let (source, kind) = ("consul".into(), SourceKind::Observed);
        world.input(Input::Membership { source, kind, version, endpoints });
    };
    answer(&mut world, 1, vec![spec("a")]);
    let other = EndpointSpec { models: vec!["other".into()], ..spec("b") };
    answer(&mut world, 2, vec![other]);
    assert!(world.view("a").stale_for.is_some(), "kept: it is the last that serves the model");
    for _ in 0..5 {
        let caller = world.ask(Ask::new());
        world.fail(caller, Failure::Connect);
    }
    assert_eq!(world.plane.view().endpoints.len(), 2, "it may be a hiccup");
    world.later(seconds(5));
    let probe = world.ask(Ask::new());
    world.fail(probe, Failure::Connect);
    assert_eq!(world.plane.view().endpoints.len(), 1);
    world.is_quiet();
}

#[test]
fn silence_of_a_source_takes_nobody_away() {
    let mut world = World::of(&["a"]);
    world.input(Input::SourceLost { source: "config".into() });
    world.later(seconds(100));
    world.input(Input::Timeout);
    assert_eq!(world.view("a").stale_for, Some(seconds(100)));
    let caller = world.ask(Ask::new());
    assert_eq!(world.at(caller), "a");
}
