//! Turn order of stored sessions.

use super::world::{Ask, World, daily, seconds};
use crate::id::AccountId;
use crate::plane::{Outcome, Refusal};

#[test]
fn a_second_turn_waits_and_runs_when_the_first_has_ended() {
    let mut world = World::of(&["a"]);
    let first = world.ask(Ask::new().stored(1));
    let second = world.ask(Ask::new().stored(1));
    let elsewhere = world.ask(Ask::new().stored(2));
    assert!(world.dispatches.contains_key(&first) && world.dispatches.contains_key(&elsewhere));
    assert!(!world.dispatches.contains_key(&second), "it waits");
    world.complete(first, 1);
    world.complete(second, 1);
    assert_eq!(world.finish(second).0, Outcome::Completed);
    world.complete(elsewhere, 1);
    world.is_quiet();
}

#[test]
fn a_key_that_only_sticks_orders_nothing() {
    let mut world = World::of(&["a"]);
    let callers = [world.ask(Ask::new().session(1)), world.ask(Ask::new().session(1))];
    assert!(callers.iter().all(|caller| world.dispatches.contains_key(caller)));
}

#[test]
fn a_waiting_turn_that_leaves_lets_the_one_behind_it_move_up() {
    let mut world = World::of(&["a"]);
    let [first, second, third] = [(); 3].map(|()| world.ask(Ask::new().stored(1)));
    world.gone(second);
    assert_eq!(world.refusal(second), Refusal::ClientGone);
    world.complete(first, 1);
    assert!(world.dispatches.contains_key(&third));
    world.complete(third, 1);
    world.is_quiet();
}

#[test]
fn a_turn_that_waited_too_long_is_refused_and_holds_nothing() {
    let mut world = World::of(&["a"]);
    let first = world.ask(Ask::new().stored(1));
    let second = world.ask(Ask::new().stored(1));
    world.later(world.config.session.wait_max);
    assert_eq!(world.refusal(second), Refusal::TurnConflict);
    world.complete(first, 1);
    world.is_quiet();
}

#[test]
fn a_turn_whose_own_time_is_over_leaves_the_line() {
    let mut world = World::of(&["a"]);
    let first = world.ask(Ask::new().stored(1));
    let second = world.ask(Ask::new().stored(1).patience(seconds(3)));
    world.later(seconds(3));
    assert_eq!(world.refusal(second), Refusal::TurnConflict);
    world.complete(first, 1);
    world.is_quiet();
}

#[test]
fn too_many_waiting_turns_are_a_conflict() {
    let mut world = World::of(&["a"]);
    let callers: Vec<_> = (0..6).map(|_| world.ask(Ask::new().stored(1))).collect();
    assert_eq!(world.refusal(callers[5]), Refusal::TurnConflict);
    assert!(world.runs(callers[4]), "four may wait");
}

#[test]
fn too_many_sessions_are_nobodys_conflict() {
    let mut world = World::of(&["a"]);
    world.configure(|config| config.session.sessions_max = 1);
    let first = world.ask(Ask::new().stored(1));
    let second = world.ask(Ask::new().stored(2));
    assert!(world.runs(first));
    assert_eq!(world.refusal(second), Refusal::Overloaded);
}

#[test]
fn a_long_line_of_turns_that_all_end_at_once_is_worked_off_without_recursion() {
    let mut world = World::of(&["a"]);
    world.configure(|config| {
        config.session.waiting_max = 1_024;
        config.accounts.insert(AccountId(1), daily(110));
    });
    let callers: Vec<_> = (0..1_025).map(|_| world.ask(Ask::new().stored(1))).collect();
    // The first uses the day up, so each that follows is refused and passes its turn on.
    world.complete(callers[0], 100);
    let refused = callers.iter().skip(1).map(|caller| world.refusal(*caller));
    assert_eq!(refused.filter(|why| matches!(why, Refusal::QuotaSpent(_))).count(), 1_024);
    world.is_quiet();
}
