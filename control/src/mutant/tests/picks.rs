//! Stories of picks, and of who is there to be picked.

use alloc::string::String;
use alloc::vec::Vec;

use super::Mutant::*;
use super::Story;
use crate::Machine;
use crate::balance::GONE;
use crate::id::CallerToken;
use crate::outcome::{Failure, Fault};
use crate::plane::Input;
use crate::plane::tests::world::{Ask, World, failed, spec};
use crate::registry::{Config, Registry, SourceKind};
use crate::time::Instant;

pub(super) const STORIES: &[Story] = &[
    (HomeBySlot, equal_members_give_equal_homes),
    (StalePin, a_session_leaves_a_home_that_is_ejected),
    (SaturatedPin, a_session_spills_from_a_home_that_is_full_of_work),
    (OverflowToNeighbour, an_overflow_is_spread),
    (NegativeInFlight, a_failure_is_counted_off_once),
    (DrainedStillPicked, what_drains_gets_nothing_new),
    (ReportNeverAged, what_was_said_long_ago_is_forgotten),
    (ReportCountsOwn, what_a_replica_says_of_our_own_work_is_known),
    (ReportsUnbounded, claims_of_all_others_do_not_bury_one),
    (EmptyRegistryApplied, discovery_cannot_empty_a_pool),
    (StaleRegistryApplied, an_older_answer_changes_nothing),
];

/// Where each of some sessions goes that was nowhere yet.
fn homes(world: &mut World) -> Vec<String> {
    let home = |session| {
        let caller = world.ask(Ask::new().session(session));
        let home = String::from(world.at(caller));
        world.complete(caller, 1);
        home
    };
    (0..32).map(home).collect()
}

fn equal_members_give_equal_homes() -> bool {
    let mut one = World::of(&["a", "b", "c"]);
    let mut other = World::of(&["c"]);
    other.members(&["a", "b", "c"]);
    homes(&mut one) == homes(&mut other)
}

/// A world in which session 1 has a home, and that home.
fn bound(names: &[&str]) -> (World, String) {
    let mut world = World::of(names);
    let caller = world.ask(Ask::new().session(1));
    let home = String::from(world.at(caller));
    world.complete(caller, 1);
    (world, home)
}

fn a_session_leaves_a_home_that_is_ejected() -> bool {
    let (mut world, home) = bound(&["a", "b"]);
    world.configure(|config| config.attempt.attempts_max = 1);
    for _ in 0..4 {
        let caller = world.ask(Ask::new());
        if world.at(caller) == home {
            world.fail(caller, Failure::EndpointFault(Fault::KeyRefused));
        } else {
            world.complete(caller, 1);
        }
    }
    let caller = world.ask(Ask::new().session(1));
    world.at(caller) != home
}

fn a_session_spills_from_a_home_that_is_full_of_work() -> bool {
    let (mut world, home) = bound(&["a", "b"]);
    (0..8).any(|_| {
        let caller = world.ask(Ask::new().session(1));
        world.at(caller) != home
    })
}

fn an_overflow_is_spread() -> bool {
    let mut world = World::of(&["a", "b", "c"]);
    for _ in 0..12 {
        world.ask(Ask::new().session(1));
    }
    ["a", "b", "c"].iter().all(|name| world.view(name).in_flight > 0)
}

fn a_failure_is_counted_off_once() -> bool {
    let mut world = World::of(&["a"]);
    world.configure(|config| config.attempt.attempts_max = 1);
    let callers: [CallerToken; 3] = core::array::from_fn(|_| world.ask(Ask::new()));
    let (attempt, end) = (world.attempt(callers[0]), failed(Failure::Status(500), 0));
    // Not by way of the world, which would itself object.
    world.plane.handle(world.now, Input::AttemptEnded { attempt, end });
    world.view("a").in_flight == 2
}

fn what_drains_gets_nothing_new() -> bool {
    let mut world = World::of(&["a", "b"]);
    world.drain("a", true);
    (0..4).all(|_| {
        let caller = world.ask(Ask::new());
        world.at(caller) == "b"
    })
}

/// Where so many requests without a session go.
fn places(world: &mut World, count: usize) -> Vec<String> {
    (0..count)
        .map(|_| {
            let caller = world.ask(Ask::new());
            String::from(world.at(caller))
        })
        .collect()
}

fn what_was_said_long_ago_is_forgotten() -> bool {
    let mut world = World::of(&["a", "b"]);
    world.reports("a", 20);
    world.later(GONE);
    places(&mut world, 2).contains(&"a".into())
}

fn what_a_replica_says_of_our_own_work_is_known() -> bool {
    let mut world = World::of(&["a", "b"]);
    places(&mut world, 8);
    world.reports("a", 4);
    world.view("a").others == 0
}

fn claims_of_all_others_do_not_bury_one() -> bool {
    let mut world = World::of(&["a", "b", "c"]);
    ["a", "b"].iter().for_each(|name| world.reports(name, 1_000));
    places(&mut world, 12).iter().filter(|place| **place == "c").count() <= 5
}

/// Whether a name is there after these answers of one discovery: version and names.
fn is_there(name: &str, answers: &[(u64, &[&str])]) -> bool {
    let mut registry = Registry::new(Config::default());
    for (version, names) in answers {
        let specs = names.iter().map(|name| spec(name)).collect();
        registry.apply(Instant::ZERO, "discovery", SourceKind::Observed, *version, specs);
        registry.invariants();
    }
    registry.find(name).is_some()
}

fn discovery_cannot_empty_a_pool() -> bool {
    is_there("a", &[(1, &["a"]), (2, &[])])
}

fn an_older_answer_changes_nothing() -> bool {
    is_there("b", &[(2, &["a", "b"]), (1, &["a"])])
}
