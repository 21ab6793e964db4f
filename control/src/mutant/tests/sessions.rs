//! Stories of sessions: idempotency keys, turns, rates, homes; and of snapshots.

use super::Mutant::*;
use super::Story;
use crate::affinity::{Affinity, Binding, Config};
use crate::id::{AccountId, CallerToken, EndpointId, SessionKey};
use crate::journal::Replay;
use crate::outcome::Failure;
use crate::plane::tests::world::{Ask, World, rated};
use crate::time::Instant;

pub(super) const STORIES: &[Story] = &[
    (KeyForgotten, a_broken_answer_uses_its_key_up),
    (KeyIgnoredInFlight, a_repetition_does_not_run_beside_its_first),
    (RecoveryForgetsKeys, a_key_survives_a_crash),
    (TurnNeverPassed, a_turn_that_leaves_the_line_holds_up_nobody),
    (QueueUnbounded, the_line_of_turns_has_an_end),
    (SharedRateBucket, an_accounts_rate_is_its_own),
    (SkipFencing, a_move_raises_the_epoch),
    (EpochForgotten, a_session_that_was_forgotten_begins_above_its_last_epoch),
    (BindAtDispatch, a_session_is_bound_when_it_is_accepted),
    (RecoveryKeepsOldHome, the_latest_home_is_recovered),
    (RestoreReseeds, what_is_restored_is_what_was_saved),
    (RestoreRecounts, what_is_restored_is_what_was_saved),
];

const HERE: EndpointId = EndpointId { slot: 0, generation: 1 };
const THERE: EndpointId = EndpointId { slot: 1, generation: 1 };

fn repeats(world: &mut World) -> CallerToken {
    world.ask(Ask::stream().keyed(7, 8))
}

fn a_broken_answer_uses_its_key_up() -> bool {
    let mut world = World::of(&["a"]);
    let first = repeats(&mut world);
    world.first_token(first);
    world.fail(first, Failure::Truncated);
    let second = repeats(&mut world);
    !world.runs(second)
}

fn a_repetition_does_not_run_beside_its_first() -> bool {
    let mut world = World::of(&["a"]);
    repeats(&mut world);
    let second = repeats(&mut world);
    !world.runs(second)
}

fn a_key_survives_a_crash() -> bool {
    let mut world = World::of(&["a"]);
    let first = repeats(&mut world);
    world.complete(first, 5);
    world.restart();
    let second = repeats(&mut world);
    !world.runs(second)
}

fn a_turn_that_leaves_the_line_holds_up_nobody() -> bool {
    let mut world = World::of(&["a"]);
    let turns: [CallerToken; 3] = core::array::from_fn(|_| world.ask(Ask::new().stored(5)));
    world.gone(turns[1]);
    world.complete(turns[0], 1);
    world.dispatches.contains_key(&turns[2])
}

fn the_line_of_turns_has_an_end() -> bool {
    let mut world = World::of(&["a"]);
    let turns = 2 + world.config.session.waiting_max;
    let last = (0..turns).map(|_| world.ask(Ask::new().stored(5))).last().unwrap();
    !world.runs(last)
}

fn an_accounts_rate_is_its_own() -> bool {
    let mut world = World::of(&["a"]);
    world.configure(|config| {
        for tenant in [1, 2] {
            config.accounts.insert(AccountId(tenant), rated(Some(1), None));
        }
    });
    world.ask(Ask::new().tenant(1));
    let other = world.ask(Ask::new().tenant(2));
    world.runs(other)
}

fn a_move_raises_the_epoch() -> bool {
    let mut affinity = Affinity::new(Config::default());
    let first = affinity.bind(Instant::ZERO, SessionKey(1), HERE).binding;
    affinity.bind(Instant::ZERO, SessionKey(1), THERE).binding.epoch > first.epoch
}

fn a_session_that_was_forgotten_begins_above_its_last_epoch() -> bool {
    let mut affinity = Affinity::new(Config { bindings_max: 1, ..Config::default() });
    affinity.bind(Instant::ZERO, SessionKey(1), HERE);
    let last = affinity.bind(Instant::ZERO, SessionKey(1), THERE).binding;
    affinity.bind(Instant::from_nanos(1), SessionKey(2), HERE);
    affinity.bind(Instant::from_nanos(2), SessionKey(1), HERE).binding.epoch > last.epoch
}

fn a_session_is_bound_when_it_is_accepted() -> bool {
    let mut world = World::of(&["a"]);
    let caller = world.ask(Ask::new().session(3));
    let before = world.plane.binding(SessionKey(3));
    world.accept(caller);
    before.is_none() && world.plane.binding(SessionKey(3)).is_some()
}

fn the_latest_home_is_recovered() -> bool {
    let mut affinity = Affinity::new(Config::default());
    for (endpoint, epoch) in [(HERE, 1), (THERE, 2)] {
        affinity.restore(SessionKey(1), Binding { endpoint, epoch, last_used: Instant::ZERO });
    }
    affinity.lookup(Instant::ZERO, SessionKey(1)).map(|b| b.endpoint) == Some(THERE)
}

fn what_is_restored_is_what_was_saved() -> bool {
    let mut world = World::of(&["a", "b"]);
    world.ask(Ask::new());
    let saved = Replay::from(world.plane).snapshot();
    Replay::restore(&saved).unwrap().snapshot() == saved
}
