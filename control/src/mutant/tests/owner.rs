//! Stories of an owner and its store, with a network between them that can be cut.

use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use super::Mutant::*;
use super::Story;
use super::ledger::{TENANT, at, daily, id, tokens};
use crate::quota::{Config, Event, Ledger, LedgerConfig, Quota, Reserve, RunId, StoreMode};

pub(super) const STORIES: &[Story] = &[
    (LendBeyondAllotment, an_allotment_lends_no_more_than_was_drawn),
    (AllotmentIgnoresDrift, an_allotment_is_not_spent_when_the_store_may_have_expired_it),
    (DegradedForEver, a_store_that_answers_again_is_drawn_from),
    (EndingNeverRepeated, an_end_is_repeated_until_it_is_acknowledged),
];

struct Shared {
    room: Quota,
    store: Ledger,
    millis: u64,
    cut: bool,
    /// What the room said, but for asks and entries.
    said: Vec<Event>,
}

impl Shared {
    fn new(allotment: u64) -> Self {
        let allotment_ttl = Duration::from_secs(10);
        let (store, allotment) = (StoreMode::Shared, tokens(allotment));
        let config = Config { store, allotment, allotment_ttl, ..Config::default() };
        let drift_max = config.drift_max;
        let store = Ledger::new(LedgerConfig { drift_max, ..LedgerConfig::default() });
        Self { room: Quota::new(config), store, millis: 0, cut: false, said: Vec::new() }
    }

    /// Carries what is asked to the store and back, at once, or loses it.
    fn pump(&mut self) {
        while let Some(event) = self.room.poll_event() {
            match event {
                Event::Ask(op) if !self.cut => {
                    let mut entries = Vec::new();
                    let at = at(self.millis);
                    let answer = self.store.perform(at, RunId(1), &op, &mut entries);
                    self.room.answer(at.now, answer);
                }
                Event::Ask(_) | Event::Entry(_) => {}
                event => self.said.push(event),
            }
        }
    }

    fn later(&mut self, millis: u64) {
        for _ in 0..millis / 50 {
            self.millis += 50;
            let at = at(self.millis);
            self.room.wall(at.now, at.wall);
            self.room.handle_timeout(at.now);
            self.pump();
        }
    }

    /// Whether a reservation is granted, now or within a second.
    fn granted(&mut self, counter: u64, amount: u64) -> bool {
        let (accounts, amount) = (vec![(TENANT, daily())], tokens(amount));
        let ttl = Duration::from_secs(60);
        self.room.reserve(at(self.millis).now, Reserve { id: id(counter), accounts, amount, ttl });
        self.pump();
        self.later(1_000);
        self.room.held(id(counter)).is_some()
    }
}

fn an_allotment_lends_no_more_than_was_drawn() -> bool {
    let mut shared = Shared::new(100);
    assert!(shared.granted(1, 10));
    shared.cut = true;
    assert!(shared.granted(2, 80));
    !shared.granted(3, 80)
}

fn an_allotment_is_not_spent_when_the_store_may_have_expired_it() -> bool {
    let mut shared = Shared::new(100);
    assert!(shared.granted(1, 10));
    shared.cut = true;
    assert!(shared.granted(2, 10), "what is in use is not given back");
    // Drawn at 0 for 10 s, with clocks that may differ by 2 s.
    shared.later(8_000 - shared.millis);
    !shared.granted(3, 10)
}

fn a_store_that_answers_again_is_drawn_from() -> bool {
    let mut shared = Shared::new(0);
    shared.cut = true;
    assert!(!shared.granted(1, 10) && shared.said.contains(&Event::Degraded));
    shared.cut = false;
    shared.later(3_000);
    shared.granted(2, 10)
}

fn an_end_is_repeated_until_it_is_acknowledged() -> bool {
    let mut shared = Shared::new(0);
    assert!(shared.granted(1, 10));
    shared.cut = true;
    shared.room.settle(at(shared.millis).now, id(1), tokens(7), false);
    shared.later(1_000);
    shared.cut = false;
    shared.later(20_000);
    shared.room.ending() == 0
}
