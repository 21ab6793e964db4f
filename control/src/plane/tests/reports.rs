//! Reports of load, through the whole plane.

use super::world::{Ask, World, seconds};
use crate::Machine;
use crate::balance::GONE;
use crate::plane::{Observation, Stale};

#[test]
fn explain_says_what_an_endpoint_said_of_others() {
    let mut world = World::of(&["a", "b"]);
    let home = {
        let caller = world.ask(Ask::new().session(1));
        let home = alloc::string::String::from(world.at(caller));
        world.complete(caller, 1);
        home
    };
    world.reports(&home, 7);
    assert_eq!(world.view(&home).others, 7);
    let stays = world.ask(Ask::new().session(1));
    let told = world.explain(stays);
    let line = alloc::format!("{home}: it holds the session (0 in flight, and says 7 of others)");
    assert!(told.contains(&line), "{told}");
}

#[test]
fn a_report_ages_while_nothing_else_happens_and_needs_no_timer() {
    let mut world = World::of(&["a", "b"]);
    let before = world.plane.poll_timeout();
    world.reports("a", 7);
    assert_eq!(world.plane.poll_timeout(), before);
    world.later(GONE);
    let caller = world.ask(Ask::new());
    assert_eq!(world.view("a").others, 0);
    world.complete(caller, 1);
    world.is_quiet();
}

#[test]
fn who_left_has_reported_nothing() {
    let mut world = World::of(&["a", "b"]);
    let endpoint = world.plane.endpoint_id("a").unwrap();
    world.reports("a", 7);
    world.members(&["b"]);
    let load = crate::balance::Reported { running: 7, ..Default::default() };
    world.input(crate::plane::Input::LoadReported { endpoint, load });
    assert_eq!(world.observations.last(), Some(&Observation::Stale(Stale::Endpoint)));
    world.members(&["a", "b"]);
    assert_eq!(world.view("a").others, 0);
}

#[test]
fn a_new_life_goes_on_with_what_was_said_as_long_as_it_would_have_counted() {
    let mut world = World::of(&["a", "b"]);
    world.reports("a", 8);
    world.restart();
    assert_eq!(world.view("a").others, 8);
    world.later(seconds(4));
    world.restart();
    assert_eq!(world.view("a").others, 4);
}
