//! A shared store that falls silent: one moment's wait, whatever is asked of it and by however many.

use alloc::vec::Vec;
use core::time::Duration;

use super::gateways::{Town, named};
use super::world::{Ask, seconds};
use crate::id::CallerToken;
use crate::plane::{Effect, Observation};
use crate::quota;

const MOMENT: Duration = Duration::from_millis(50);

/// A gateway that has drawn ahead, and that has not yet needed anything that is shared beside the ledger but a rate.
fn drawn_ahead() -> Town {
    let mut town = Town::limited(Some(600), None);
    for gateway in &mut town.gateways {
        let allotment = quota::Config::default().allotment;
        gateway.configure(|config| config.quota.allotment = allotment);
    }
    let first = town.ask(0, Ask::new());
    town.complete(0, first, 5);
    town
}

/// A town, and a request whose answer from the store came when it had gone on.
fn answered_late() -> (Town, CallerToken) {
    let mut town = drawn_ahead();
    town.away = true;
    let first = town.gateways[0].ask(Ask::new());
    let asked = town.serve();
    town.later(MOMENT);
    assert!(town.sent(0, first));
    town.away = false;
    for effect in asked {
        town.gateways[0].effects.push(effect);
    }
    town.serve();
    (town, first)
}

fn said(town: &Town) -> Vec<&Observation> {
    let said = town.gateways[0].observations.iter();
    let of_store = |o: &&Observation| {
        matches!(
            o,
            Observation::QuotaLate | Observation::QuotaDegraded(_) | Observation::SharedDegraded(_)
        )
    };
    said.filter(of_store).collect()
}

#[test]
fn a_silent_store_costs_one_moment_and_nobody_after_that() {
    let mut town = drawn_ahead();
    town.away = true;
    let first = town.ask(0, Ask::new().keyed(1, 1));
    town.later(MOMENT.checked_sub(Duration::from_nanos(1)).unwrap());
    assert!(!town.sent(0, first), "it waits");
    town.later(Duration::from_nanos(1));
    assert!(town.sent(0, first), "and goes on with what was drawn ahead and is known here");
    assert!(said(&town).contains(&&Observation::QuotaLate));
    assert!(said(&town).contains(&&Observation::SharedDegraded(true)));
    // Those behind it, whatever they need, and also where nobody needed that yet.
    for ask in [Ask::new(), named(7), Ask::new().keyed(2, 1), named(8), Ask::stream()] {
        let caller = town.ask(0, ask);
        assert!(town.sent(0, caller));
    }
    town.later(seconds(2));
    assert!(said(&town).contains(&&Observation::QuotaDegraded(true)), "by now it is away");
    let later = town.ask(0, named(9));
    assert!(town.sent(0, later));
}

#[test]
fn what_the_ledgers_silence_made_suspect_is_asked_once_without_a_wait_and_believed_again() {
    let mut town = drawn_ahead();
    town.away = true;
    let first = town.ask(0, Ask::new());
    town.later(MOMENT);
    assert!(town.sent(0, first));
    // The rest of the store was there all the time.
    let caller = town.gateways[0].ask(named(7));
    let consult = town.serve().into_iter().find_map(|effect| match effect {
        Effect::Consult(consult) => Some(consult),
        _ => None,
    });
    assert!(town.sent(0, caller), "nobody waits for a home");
    assert!(consult.unwrap().home.is_some(), "it is asked for all the same");
    let consults = town.consults;
    let next = town.ask(0, named(7));
    assert!(town.sent(0, next));
    assert_eq!(town.consults, consults, "once a second");
    town.away = false;
    town.later(seconds(2));
    let probe = town.ask(0, named(7));
    assert!(town.sent(0, probe));
    assert_eq!(said(&town).last(), Some(&&Observation::SharedDegraded(false)));
    for caller in [first, caller, next, probe] {
        town.complete(0, caller, 5);
    }
}

#[test]
fn a_ledger_that_answers_again_before_anything_else_was_needed_leaves_nothing_suspect() {
    let (mut town, first) = answered_late();
    town.complete(0, first, 5);
    town.away = true;
    let next = town.ask(0, named(7));
    assert!(!town.sent(0, next), "it is waited for as ever");
    town.later(MOMENT);
    assert!(town.sent(0, next));
}

#[test]
fn an_answer_after_the_moment_charges_nothing_twice() {
    let (mut town, first) = answered_late();
    town.complete(0, first, 20);
    // Unused for half its life, the allotment is settled with what was spent of it.
    for _ in 0..60 {
        town.later(seconds(10));
    }
    assert!(town.holds_nothing());
    assert_eq!(
        town.spent(),
        15 + 30,
        "what two answers of 5 and 20 tokens cost with their prompts"
    );
}
