//! A store that is late: waited for once, for a moment, by those who can do without it.

use super::*;

fn is_granted(events: &[Event], counter: u64) -> bool {
    events
        .iter()
        .any(|event| matches!(event, Event::Granted { id: own, .. } if *own == id(counter)))
}

/// A room of which request 1 was lent 100 of 300 after 50 ms, because the store is late.
fn late_room() -> (Quota, StoreOp) {
    let mut quota = with_300_drawn_ahead();
    quota.reserve(at(1_000), ask(1, 100));
    let asked = sent(&drain(&mut quota))[0].clone();
    quota.handle_timeout(at(1_049));
    assert_eq!(drain(&mut quota), [], "it waits");
    assert!(quota.answers());
    quota.handle_timeout(at(1_050));
    let events = drain(&mut quota);
    assert!(is_granted(&events, 1) && events.contains(&Event::Late), "{events:?}");
    assert!(!events.contains(&Event::Degraded) && !quota.answers());
    let asks = sent(&events);
    assert!(matches!(asks[..], [StoreOp { ask: Ask::Refund { .. }, .. }]), "{asks:?}");
    quota.invariants();
    (quota, asked)
}

#[test]
fn who_has_enough_drawn_ahead_waits_a_moment_and_those_behind_not_at_all() {
    let (mut quota, _) = late_room();
    for counter in [2, 3] {
        quota.reserve(at(1_051), ask(counter, 80));
        let events = drain(&mut quota);
        assert!(is_granted(&events, counter), "{events:?}");
        assert!(sent(&events).is_empty(), "nobody is asked");
    }
    quota.invariants();
}

#[test]
fn who_has_not_still_asks_a_store_that_is_late_and_hears_its_answer() {
    let (mut quota, _) = late_room();
    quota.reserve(at(1_051), ask(2, 201));
    let op = sent(&drain(&mut quota))[0].clone();
    quota.handle_timeout(at(1_101));
    assert_eq!(drain(&mut quota), [], "and goes on waiting");
    quota.answer(at(1_200), granted(&op, 2, 201));
    let events = drain(&mut quota);
    assert!(is_granted(&events, 2), "{events:?}");
    assert!(!events.contains(&Event::Restored), "it was never said to be away");
    assert!(quota.answers());
    quota.reserve(at(1_201), ask(3, 10));
    assert_eq!(sent(&drain(&mut quota)).len(), 1, "a store that answers is asked");
    quota.invariants();
}

#[test]
fn who_was_asked_for_in_vain_may_be_lent_it_before_its_time_is_over() {
    let (mut quota, _) = late_room();
    quota.reserve(at(1_051), ask(2, 250));
    drain(&mut quota);
    quota.settle(at(1_060), id(1), tokens(0), false);
    drain(&mut quota);
    quota.handle_timeout(at(1_101));
    assert!(is_granted(&drain(&mut quota), 2), "request 1 gave back what it was lent");
    quota.invariants();
}

#[test]
fn an_answer_that_comes_after_all_is_given_back_once_and_nothing_is_held_twice() {
    let (mut quota, op) = late_room();
    quota.answer(at(1_060), granted(&op, 1, 100));
    assert_eq!(quota.held(id(1)), Some(tokens(100)), "as it was lent");
    assert_eq!((quota.ending(), quota.answers()), (1, true));
    assert_eq!(drain(&mut quota), [], "it is on its way back already");
    // Settled: of the allotment, not of what the store had granted.
    quota.settle(at(1_070), id(1), tokens(60), false);
    let events = drain(&mut quota);
    let asks = sent(&events);
    assert!(asks.iter().all(|op| matches!(op.ask, Ask::Refund { .. })), "{events:?}");
    assert_eq!(quota.ending(), 1);
    quota.invariants();
}

#[test]
fn a_store_that_stays_silent_is_away_within_its_own_time_and_what_is_not_covered_is_refused() {
    let (mut quota, _) = late_room();
    let mut now = at(1_050);
    let mut degraded = None;
    while let Some(due) = quota.poll_timeout().filter(|due| *due <= at(1_300)) {
        now = now.max(due);
        quota.handle_timeout(now);
        let events = drain(&mut quota);
        degraded = degraded.or(events.contains(&Event::Degraded).then_some(now));
    }
    assert_eq!(degraded, Some(at(1_300)), "what was to be given back was not acknowledged");
    quota.reserve(at(1_301), ask(2, 150));
    assert!(is_granted(&drain(&mut quota), 2));
    quota.reserve(at(1_301), ask(3, 60));
    let events = drain(&mut quota);
    assert!(matches!(events[..], [Event::Denied { .. }]), "{events:?}");
    quota.invariants();
}

#[test]
fn a_store_that_refuses_is_away_at_once() {
    let mut quota = with_300_drawn_ahead();
    quota.reserve(at(1_000), ask(1, 100));
    let op = sent(&drain(&mut quota))[0].op;
    quota.ask_failed(at(1_001), op);
    let events = drain(&mut quota);
    assert!(is_granted(&events, 1) && events.contains(&Event::Degraded), "{events:?}");
    assert!(!events.contains(&Event::Late));
}

#[test]
fn the_shorter_wait_is_never_the_longer_one_and_none_is_the_longer_one() {
    let config =
        |after| Config { fallback_after: Duration::from_millis(after), ..Config::default() };
    for (after, waits) in [(0, 250), (1, 1), (50, 50), (250, 250), (9_000, 250)] {
        assert_eq!(config(after).fallback_wait(), Duration::from_millis(waits), "{after}");
    }
    let mut quota = Quota::new(Config { store: StoreMode::Shared, ..config(0) });
    quota.reserve(at(0), ask(1, 100));
    assert_eq!(quota.poll_timeout(), Some(at(250)));
    quota.invariants();
}

#[test]
fn a_snapshot_of_a_late_store_has_the_same_future() {
    let (mut quota, op) = late_room();
    quota.reserve(at(1_051), ask(2, 250));
    let bytes = postcard::to_allocvec(&quota).unwrap();
    let mut restored: Quota = postcard::from_bytes(&bytes).unwrap();
    drain(&mut quota);
    drain(&mut restored);
    for quota in [&mut quota, &mut restored] {
        quota.reserve(at(1_052), ask(3, 50));
        quota.handle_timeout(at(1_101));
        quota.answer(at(1_102), granted(&op, 1, 100));
        quota.reserve(at(1_103), ask(4, 50));
        quota.handle_timeout(at(1_301));
    }
    assert_eq!(drain(&mut quota), drain(&mut restored));
    assert_eq!(quota, restored);
}
