#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    reason = "a test may panic; proptest's macros use Arc"
)]

mod reference;
mod table;

use core::time::Duration;

use super::*;

fn id(slot: u32) -> EndpointId {
    EndpointId { slot, generation: 1 }
}

fn key(number: u64) -> SessionKey {
    SessionKey(number)
}

fn at(seconds: u64) -> Instant {
    Instant::ZERO + Duration::from_secs(seconds)
}

fn small(bindings_max: usize) -> Affinity {
    Affinity::new(Config { bindings_max, ..Config::default() })
}

#[test]
fn a_session_is_where_it_was_last_accepted() {
    let mut affinity = small(10);
    assert_eq!(affinity.lookup(at(0), key(1)), None);
    let first = affinity.bind(at(1), key(1), id(0));
    assert_eq!((first.binding.epoch, first.moved_from), (1, None));
    let touched = affinity.bind(at(5), key(1), id(0));
    let expected = Binding { endpoint: id(0), epoch: 1, last_used: at(5) };
    assert_eq!(touched, Bound { binding: expected, moved_from: None });
    let moved = affinity.bind(at(6), key(1), id(2));
    assert_eq!((moved.binding.epoch, moved.moved_from), (2, Some(id(0))));
    assert_eq!(affinity.lookup(at(6), key(1)), Some(moved.binding));
}

#[test]
fn a_binding_lapses_but_its_epoch_is_remembered() {
    let mut affinity = small(10);
    affinity.bind(at(0), key(1), id(0));
    affinity.bind(at(0), key(1), id(1));
    assert!(affinity.lookup(at(3_599), key(1)).is_some());
    assert_eq!(affinity.lookup(at(3_600), key(1)), None);
    assert_eq!(affinity.expire(at(3_600), 10), 0);
    let again = affinity.bind(at(3_700), key(1), id(2));
    assert_eq!((again.binding.epoch, again.moved_from), (3, None));
}

#[test]
fn an_epoch_does_not_start_over_even_when_the_session_was_forgotten() {
    let mut affinity = small(10);
    for slot in 0..5 {
        affinity.bind(at(0), key(1), id(slot));
    }
    assert_eq!(affinity.poll_timeout(), Some(at(7_200)));
    assert_eq!(affinity.expire(at(7_199), 10), 0);
    assert_eq!(affinity.expire(at(7_200), 10), 1);
    assert!(affinity.is_empty() && affinity.poll_timeout().is_none());
    assert_eq!(affinity.bind(at(7_300), key(1), id(0)).binding.epoch, 6);
}

#[test]
fn a_home_that_is_heard_of_does_not_take_a_forgotten_session_back_to_an_earlier_epoch() {
    let mut affinity = small(1);
    for slot in 0..5 {
        affinity.bind(at(0), key(1), id(slot));
    }
    affinity.bind(at(1), key(2), id(0));
    assert_eq!(affinity.epoch(key(1)), None, "there was no room for it");
    let heard = Binding { endpoint: id(7), epoch: 2, last_used: at(2) };
    let adopted = affinity.adopt(key(1), heard);
    assert_eq!(adopted, Some(Binding { epoch: 5, ..heard }));
    assert_eq!(affinity.lookup(at(2), key(1)), adopted);
    assert_eq!(affinity.adopt(key(1), heard), None, "which is of old");
    assert_eq!(affinity.bind(at(3), key(1), id(8)).binding.epoch, 6);
}

#[test]
fn beyond_the_maximum_the_least_recently_used_is_forgotten() {
    let mut affinity = small(3);
    for number in 0..3 {
        affinity.bind(at(number), key(number), id(0));
    }
    affinity.bind(at(10), key(0), id(0));
    affinity.bind(at(11), key(3), id(0));
    let known = (0..4).map(|number| affinity.lookup(at(11), key(number)).is_some());
    assert_eq!(known.collect::<Vec<_>>(), [true, false, true, true]);
    affinity.invariants();
}

#[test]
fn a_lowered_maximum_is_reached_without_a_long_pause() {
    let mut affinity = small(100);
    for number in 0..100 {
        affinity.bind(at(number), key(number), id(0));
    }
    affinity.set_config(Config { bindings_max: 10, ..Config::default() });
    assert_eq!(affinity.expire(at(100), 30), 30);
    for number in 200..260 {
        affinity.bind(at(number), key(number), id(0));
    }
    assert_eq!(affinity.len(), 10);
    affinity.set_config(Config { bindings_max: 0, ..Config::default() });
    affinity.expire(at(300), 100);
    affinity.bind(at(300), key(1), id(0));
    assert!(affinity.is_empty());
}

#[test]
fn expiry_does_no_more_than_it_was_allowed() {
    let mut affinity = small(100);
    for number in 0..10 {
        affinity.bind(at(number), key(number), id(0));
    }
    assert_eq!(affinity.expire(at(100_000), 4), 4);
    assert_eq!(affinity.len(), 6);
    assert_eq!(affinity.expire(at(100_000), 100), 6);
}

#[test]
fn a_removed_endpoint_holds_no_sessions_and_its_successor_inherits_none() {
    let mut affinity = small(10);
    affinity.bind(at(0), key(1), id(0));
    affinity.bind(at(0), key(2), id(1));
    affinity.endpoint_removed(id(0));
    assert_eq!(affinity.lookup(at(1), key(1)), None);
    assert!(affinity.lookup(at(1), key(2)).is_some());
    let successor = EndpointId { slot: 0, generation: 2 };
    let moved = affinity.bind(at(2), key(1), successor);
    assert_eq!((moved.binding.epoch, moved.moved_from), (2, None));
    affinity.endpoint_removed(id(0));
    assert_eq!(affinity.lookup(at(3), key(1)), Some(moved.binding));
}

#[test]
fn a_session_migrates_only_after_it_spilled_often_enough_in_a_row() {
    let mut affinity = small(10);
    affinity.bind(at(0), key(1), id(0));
    let mut decide = |seconds, overloaded| affinity.decide(at(seconds), key(1), overloaded);
    assert_eq!([decide(1, true), decide(2, true)], [Decision::Spill; 2]);
    assert_eq!(decide(3, false), Decision::Stay);
    assert_eq!([decide(4, true), decide(5, true), decide(6, true)], [Decision::Spill; 3]);
    assert_eq!(decide(7, true), Decision::Migrate);
    // Nobody accepted it: it may try again.
    assert_eq!(decide(8, true), Decision::Migrate);
    affinity.bind(at(9), key(1), id(1));
    assert_eq!(affinity.decide(at(10), key(1), true), Decision::Spill);
}

#[test]
fn spills_far_apart_do_not_add_up() {
    let mut affinity = small(10);
    affinity.bind(at(0), key(1), id(0));
    for round in 1..20 {
        assert_eq!(affinity.decide(at(round * 30), key(1), true), Decision::Spill);
    }
}

#[test]
fn a_crowd_does_not_move_at_once() {
    let mut affinity = small(1_000);
    let mut migrated = 0;
    for number in 0..500 {
        affinity.bind(at(0), key(number), id(0));
        for _ in 0..3 {
            assert_eq!(affinity.decide(at(1), key(number), true), Decision::Spill);
        }
        migrated += u32::from(affinity.decide(at(1), key(number), true) == Decision::Migrate);
    }
    assert_eq!(migrated, 20);
}

#[test]
fn what_is_not_bound_spills_and_stays_without_a_trace() {
    let mut affinity = small(10);
    for _ in 0..10 {
        assert_eq!(affinity.decide(at(0), key(1), true), Decision::Spill);
    }
    assert_eq!(affinity.decide(at(0), key(1), false), Decision::Stay);
    assert!(affinity.is_empty());
}

#[test]
fn a_restored_binding_never_goes_back() {
    let mut affinity = small(10);
    let binding =
        |slot, epoch, seconds| Binding { endpoint: id(slot), epoch, last_used: at(seconds) };
    assert!(affinity.restore(key(1), binding(0, 4, 10)));
    assert!(!affinity.restore(key(1), binding(1, 3, 50)));
    assert!(!affinity.restore(key(1), binding(1, 4, 50)));
    assert!(!affinity.restore(key(1), binding(0, 4, 9)));
    assert!(affinity.restore(key(1), binding(0, 4, 60)));
    assert!(affinity.restore(key(1), binding(2, 7, 20)));
    assert_eq!(affinity.lookup(at(60), key(1)), Some(binding(2, 7, 20)));
    affinity.invariants();
}
