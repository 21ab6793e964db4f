//! Restarts, clocks that jump, and snapshots.

use super::world::{Ask, NOON, World, daily, seconds};
use crate::Machine;
use crate::id::{AccountId, CallerToken};
use crate::outcome::Failure;
use crate::plane::{Durable, Effect, Input, Outcome, Refusal};
use crate::quota::Fact;

#[test]
fn a_new_life_settles_what_had_begun_and_refunds_what_had_not() {
    let mut world = World::of(&["a"]);
    let begun = world.ask(Ask::stream());
    world.first_token(begun);
    world.produce(begun, 16);
    world.ask(Ask::new());
    let retried = world.ask(Ask::new());
    world.fail(retried, Failure::Status(500));
    world.ask(Ask::new().stored(1));
    world.ask(Ask::new().stored(1));
    let effects = world.restart();
    assert!(effects.iter().all(|effect| matches!(effect, Effect::Persist(_))), "{effects:?}");
    let settled: Vec<_> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Persist(Durable::Entry(entry)) => match &entry.fact {
                Fact::Settle { actual, estimated, .. } => Some((actual.tokens.0, *estimated)),
                _ => None,
            },
            _ => None,
        })
        .collect();
    assert_eq!(settled, [(26, true)]);
    assert_eq!(world.spent(1), 26);
    world.is_quiet();
}

#[test]
fn ids_of_two_lives_never_meet() {
    let mut world = World::of(&["a"]);
    let first = world.ask(Ask::new());
    let old = world.dispatches[&first].clone();
    world.restart();
    let second = world.ask(Ask::new());
    assert_ne!(old.request, world.dispatches[&second].request);
    world.input(Input::AttemptEnded {
        attempt: old.attempt,
        end: crate::outcome::AttemptEnd::Cancelled { produced: crate::units::Tokens(1) },
    });
    assert!(world.runs(second));
}

#[test]
fn a_wall_clock_that_jumps_back_reopens_no_day() {
    let mut world = World::of(&["a"]);
    world.configure(|config| drop(config.accounts.insert(AccountId(1), daily(110))));
    let caller = world.ask(Ask::new());
    world.complete(caller, 100);
    world.input(Input::WallTime(NOON + seconds(86_400)));
    let next_day = world.ask(Ask::new());
    world.complete(next_day, 100);
    world.input(Input::WallTime(NOON));
    let back = world.ask(Ask::new());
    assert!(matches!(world.refusal(back), Refusal::QuotaSpent(_)));
}

#[test]
fn a_clock_of_the_shell_that_steps_back_does_not_take_the_plane_with_it() {
    let mut world = World::of(&["a"]);
    world.later(seconds(10));
    let now = world.now;
    world.input(Input::Timeout);
    world.now = crate::Instant::ZERO;
    let caller = world.ask(Ask::new());
    assert_eq!(world.plane.now(), now);
    assert_eq!(world.dispatches[&caller].deadline, now + world.config.timeouts.request);
}

#[test]
fn a_late_timeout_serves_a_backlog_in_bounded_steps() {
    let mut world = World::of(&["a"]);
    let callers: Vec<CallerToken> =
        (0..40).map(|_| world.ask(Ask::stream().patience(seconds(1)))).collect();
    world.now = world.now + seconds(60);
    let mut steps = 0;
    while world.plane.poll_timeout().is_some_and(|(due, _)| due <= world.now) {
        let effects = world.input(Input::Timeout);
        let ended = effects.iter().filter(|effect| matches!(effect, Effect::Reject { .. }));
        assert!(ended.count() <= 8, "one step does bounded work");
        steps += 1;
    }
    assert_eq!(steps, 5);
    assert!(callers.iter().all(|caller| !world.runs(*caller)));
    world.is_quiet();
}

#[test]
fn an_observer_that_polls_leaves_nothing_behind_and_one_that_does_not_has_a_bound() {
    let mut world = World::of(&["a"]);
    for _ in 0..3 {
        world.input(Input::ClientGone { caller: CallerToken(7) });
    }
    assert!(world.plane.poll_observation().is_none());
    for _ in 0..crate::plane::OBSERVATIONS_MAX + 10 {
        crate::Machine::handle(
            &mut world.plane,
            world.now,
            Input::ClientGone { caller: CallerToken(7) },
        );
    }
    let left = core::iter::from_fn(|| world.plane.poll_observation()).count();
    assert_eq!(left, crate::plane::OBSERVATIONS_MAX);
    let caller = world.ask(Ask::new());
    world.complete(caller, 1);
    assert_eq!(world.finish(caller).0, Outcome::Completed);
}
