//! Stories of several gateways over one store.

use core::time::Duration;

use super::Mutant::*;
use super::Story;
use crate::id::{CallerToken, SessionKey};
use crate::outcome::Failure;
use crate::plane::tests::gateways::{Town, named};
use crate::plane::tests::world::Ask;

pub(super) const STORIES: &[Story] = &[
    (RatesNotConsulted, two_gateways_have_one_rate),
    (LostHomeKept, two_gateways_agree_where_a_session_lives),
    (ChargedKeyNotTold, a_key_is_charged_at_one_gateway),
    (LimitedHoldKept, what_a_shared_rate_refuses_holds_nothing),
    (ConsultsWhileAway, nobody_waits_for_a_store_that_is_known_to_be_away),
];

fn two_gateways_have_one_rate() -> bool {
    let mut town = Town::limited(Some(2), None);
    let asked = [0, 0, 1].map(|gateway| (gateway, town.ask(gateway, Ask::new())));
    asked.iter().filter(|(gateway, caller)| town.sent(*gateway, *caller)).count() == 2
}

fn two_gateways_agree_where_a_session_lives() -> bool {
    let mut town = Town::new();
    let callers = [town.ask(0, named(1)), town.ask(1, named(1))];
    town.gateways[1].fail(callers[1], Failure::Connect);
    for gateway in [1, 0] {
        town.gateways[gateway].accept(callers[gateway]);
    }
    town.serve();
    let home = |gateway: usize| {
        let plane = &town.gateways[gateway].plane;
        plane.binding(SessionKey(1)).map(|binding| binding.endpoint)
    };
    home(0) == home(1)
}

fn a_key_is_charged_at_one_gateway() -> bool {
    let mut town = Town::new();
    let first = town.ask(0, Ask::new().keyed(1, 1));
    town.complete(0, first, 5);
    // Its claim, too, is over by then.
    town.later(Duration::from_secs(3_600));
    let second = town.ask(1, Ask::new().keyed(1, 1));
    !town.sent(1, second)
}

fn what_a_shared_rate_refuses_holds_nothing() -> bool {
    let mut town = Town::limited(Some(1), None);
    let first = town.ask(0, Ask::new());
    town.complete(0, first, 5);
    town.ask(1, Ask::new());
    town.holds_nothing()
}

fn nobody_waits_for_a_store_that_is_known_to_be_away() -> bool {
    let mut town = Town::limited(Some(60), None);
    town.away = true;
    let asks = |town: &mut Town| -> CallerToken { town.ask(0, Ask::new()) };
    asks(&mut town);
    town.later(Duration::from_millis(250));
    let before = town.consults;
    asks(&mut town);
    town.consults == before
}
