//! Several gateways over one store: what they share holds over all of them, while that store answers.

use alloc::vec::Vec;
use core::time::Duration;

use super::world::{Ask, NOON, World, daily, rated, seconds};
use crate::id::{AccountId, CallerToken, Digest, SessionKey};
use crate::outcome::Failure;
use crate::plane::{Effect, Idempotency, Input, Observation, Refusal, SessionKind};
use crate::quota::{At, Ledger, LedgerConfig, OwnerId, RunId, StoreMode, WindowKind};
use crate::rate::RateUnit;
use crate::shared::{
    Consult, Consulted, HomeAnswer, Homes, Housed, Keys, Note, Noted, Part, Rates, SharedOpId,
};
use crate::units::Amount;

/// Gateways, and the store they share, which answers at once while it is up.
pub(crate) struct Town {
    pub gateways: Vec<World>,
    pub store: Store,
    /// Nobody answers, and nobody says so.
    pub away: bool,
    /// Consultations that were made.
    pub consults: usize,
}

pub(crate) struct Store {
    ledger: Ledger,
    pub rates: Rates,
    pub keys: Keys,
    pub homes: Homes,
}

impl Store {
    fn consult(&mut self, now: u64, consult: &Consult) -> Consulted {
        let Consult { op, tenant, lease, .. } = *consult;
        let asked = !consult.rates.is_empty();
        let rates = asked.then(|| self.rates.take(now, lease, &consult.rates));
        let idempotency = consult
            .idempotency
            .map(|claim| self.keys.claim(now, lease, tenant, claim.idempotency, claim.by));
        let home = consult.home.map(|session| self.homes.at(now, session));
        Consulted { op, rates, idempotency, home, odd: Vec::new() }
    }

    fn note(&mut self, now: u64, note: &Note) -> Option<Housed> {
        let (session, home) = match &note.what {
            Noted::Rates(corrections) => {
                self.rates.correct(now, corrections);
                return None;
            }
            Noted::Key { idempotency, by, charged, keep } => {
                self.keys.end(now, *keep, note.tenant, (*idempotency, *by), *charged);
                return None;
            }
            Noted::Home { session, endpoint, believed, ttl } => {
                (*session, self.homes.accepted(now, *session, endpoint, *believed, *ttl))
            }
            Noted::Homeless { session, believed } => {
                (*session, self.homes.homeless(now, *session, *believed))
            }
        };
        Some(Housed { op: note.op, session, home })
    }
}

impl Town {
    /// Two gateways with the same three endpoints. The account may ask thrice a minute, and spend 500 tokens in one.
    pub fn new() -> Self {
        let gateway = |owner| {
            let mut world = World::with(|config| {
                config.quota.store = StoreMode::Shared;
                config.quota.owner = OwnerId(owner);
                config.quota.allotment = Amount::ZERO;
            });
            world.members(&["a", "b", "c"]);
            world
        };
        let gateways = Vec::from([gateway(1), gateway(2)]);
        let (rates, keys, homes) = (Rates::default(), Keys::default(), Homes::default());
        let ledger = Ledger::new(LedgerConfig::default());
        let store = Store { ledger, rates, keys, homes };
        Self { gateways, store, away: false, consults: 0 }
    }

    pub fn limited(rpm: Option<u32>, tpm: Option<u64>) -> Self {
        let mut town = Self::new();
        for gateway in &mut town.gateways {
            gateway.configure(|config| drop(config.accounts.insert(AccountId(1), rated(rpm, tpm))));
        }
        town.serve();
        town
    }

    /// Carries everything to and fro until nobody asks anything more. Returns what was not carried.
    pub fn serve(&mut self) -> Vec<Effect> {
        let mut left = Vec::new();
        for index in 0..self.gateways.len() {
            let mut asked = core::mem::take(&mut self.gateways[index].effects);
            while !asked.is_empty() {
                let now = self.micros(index);
                let mut inputs = Vec::new();
                for effect in core::mem::take(&mut asked) {
                    self.consults += usize::from(matches!(effect, Effect::Consult(_)));
                    match effect {
                        effect if self.away => left.push(effect),
                        Effect::Reserve(op) => {
                            let gateway = &self.gateways[index];
                            let at = At { now: gateway.now, wall: gateway.wall() };
                            let ledger = &mut self.store.ledger;
                            let answer = ledger.perform(at, RunId(1), &op, &mut Vec::new());
                            inputs.push(Input::StoreAnswered(answer));
                        }
                        Effect::Consult(consult) => {
                            let answer = self.store.consult(now, &consult);
                            inputs.push(Input::Consulted(answer.into()));
                        }
                        Effect::Note(note) => {
                            let housed = self.store.note(now, &note);
                            inputs.extend(housed.map(|housed| Input::Housed(housed.into())));
                        }
                        _ => {}
                    }
                }
                for input in inputs {
                    asked.extend(self.gateways[index].input(input));
                }
                self.gateways[index].effects.clear();
            }
        }
        left
    }

    pub fn ask(&mut self, gateway: usize, ask: Ask) -> CallerToken {
        let caller = self.gateways[gateway].ask(ask);
        self.serve();
        caller
    }

    /// Accepted, and answered whole.
    pub fn complete(&mut self, gateway: usize, caller: CallerToken, completion: u64) {
        self.gateways[gateway].complete(caller, completion);
        self.serve();
    }

    pub fn later(&mut self, wait: Duration) {
        for gateway in &mut self.gateways {
            gateway.later(wait);
        }
        self.serve();
    }

    pub fn sent(&self, gateway: usize, caller: CallerToken) -> bool {
        self.gateways[gateway].dispatches.contains_key(&caller)
    }

    pub fn micros(&self, gateway: usize) -> u64 {
        (NOON.as_millis() * 1_000) + self.gateways[gateway].now.as_nanos() / 1_000
    }

    fn degraded(&self, gateway: usize) -> Vec<bool> {
        let observed = self.gateways[gateway].observations.iter();
        let told = observed.filter_map(|observation| match observation {
            Observation::SharedDegraded(away) => Some(*away),
            _ => None,
        });
        told.collect()
    }

    /// No quota is held.
    pub fn holds_nothing(&self) -> bool {
        self.store.ledger.live().count() == 0
    }

    /// Tokens that the store was told were spent.
    pub fn spent(&self) -> u64 {
        let days = self.store.ledger.balances();
        let of_day = days.filter(|(key, _)| key.window.kind() == WindowKind::Day);
        of_day.map(|(_, sums)| sums.spent.tokens.0).sum()
    }

    /// Nothing is held for anybody.
    fn is_quiet(&self) {
        let now = self.micros(0);
        assert_eq!(self.store.rates.held(now, AccountId(1), RateUnit::Tpm), 0, "tokens are held");
        assert!(self.holds_nothing(), "quota is held");
    }
}

pub(crate) fn named(key: u64) -> Ask {
    let mut ask = Ask::new().session(key);
    ask.0.session.as_mut().unwrap().kind = SessionKind::Named;
    ask
}

fn limited_by(refusal: &Refusal) -> Option<RateUnit> {
    match refusal {
        Refusal::RateLimited { unit, .. } => Some(*unit),
        _ => None,
    }
}

#[test]
fn an_edge_shares_its_rates_and_asks_about_nothing_else() {
    let mut town = Town::limited(Some(4), Some(10_000));
    for gateway in &mut town.gateways {
        gateway.configure(|config| config.quota.store = StoreMode::Edge);
        assert_eq!(gateway.plane.ledger().config().store, StoreMode::Edge);
    }
    let mut keyed = named(7);
    keyed.0.idempotency = Some(Idempotency { key: Digest(1), body: Digest(2) });
    let first = town.ask(0, keyed.clone());
    let second = town.ask(1, keyed);
    assert!(town.sent(0, first) && town.sent(1, second), "its key is decided elsewhere");
    town.complete(0, first, 10);
    town.complete(1, second, 10);
    assert!(town.store.keys.is_empty() && town.store.homes.is_empty());
    let asked: Vec<_> = (0..6).map(|n| (n % 2, town.ask(n % 2, Ask::new()))).collect();
    let sent = asked.iter().filter(|(gateway, caller)| town.sent(*gateway, *caller)).count();
    assert_eq!(sent, 2, "four in all");
}

#[test]
fn two_gateways_let_through_one_limit_and_not_two() {
    let mut town = Town::limited(Some(4), None);
    let asked: Vec<_> = (0..8).map(|n| (n % 2, town.ask(n % 2, Ask::new()))).collect();
    let sent = asked.iter().filter(|(gateway, caller)| town.sent(*gateway, *caller)).count();
    assert_eq!(sent, 4);
    for (gateway, caller) in asked {
        if town.sent(gateway, caller) {
            town.complete(gateway, caller, 5);
        } else {
            let refusal = town.gateways[gateway].refusal(caller);
            assert_eq!(limited_by(&refusal), Some(RateUnit::Rpm));
            let told = town.gateways[gateway].explain(caller);
            assert!(
                told.contains(
                    "over all gateways acct_0000000000000001 has had its 4 requests a minute"
                ),
                "{told}"
            );
        }
    }
    town.later(seconds(15));
    let fifth = town.ask(1, Ask::new());
    assert!(town.sent(1, fifth), "a quarter of a minute is worth one");
    town.complete(1, fifth, 5);
    town.is_quiet();
}

#[test]
fn tokens_are_held_over_all_gateways_and_what_was_not_used_comes_back() {
    let mut town = Town::limited(None, Some(250));
    let [first, second] = [town.ask(0, Ask::new()), town.ask(1, Ask::new())];
    assert!(town.sent(0, first) && town.sent(1, second), "110 each");
    let third = town.ask(1, Ask::new());
    assert_eq!(limited_by(&town.gateways[1].refusal(third)), Some(RateUnit::Tpm));
    town.complete(0, first, 10);
    let fourth = town.ask(1, Ask::new());
    assert!(town.sent(1, fourth), "90 of 110 came back to the other gateway too");
    town.complete(1, second, 10);
    town.complete(1, fourth, 10);
    town.is_quiet();
}

#[test]
fn who_leaves_or_is_denied_before_the_answer_is_given_back_what_it_took() {
    let mut town = Town::limited(None, Some(250));
    for gateway in &mut town.gateways {
        let account = daily(5);
        gateway.configure(|config| {
            config.accounts.get_mut(&AccountId(1)).unwrap().limits = account.limits
        });
    }
    let denied = town.ask(0, Ask::new().keyed(1, 1));
    assert!(matches!(town.gateways[0].refusal(denied), Refusal::QuotaSpent(_)));
    let gone = town.gateways[1].ask(Ask::new().keyed(2, 1));
    town.gateways[1].gone(gone);
    town.serve();
    town.is_quiet();
    for key in [1, 2] {
        assert_eq!(town.store.keys.len(), 0, "key {key} is free");
    }
}

#[test]
fn a_key_is_charged_once_at_whichever_gateway_it_is_sent_to() {
    let mut town = Town::new();
    let first = town.ask(0, Ask::new().keyed(1, 1));
    let second = town.ask(1, Ask::new().keyed(1, 1));
    let other = town.ask(1, Ask::new().keyed(1, 2));
    assert_eq!(town.gateways[1].refusal(second), Refusal::IdempotencyInFlight { by: None });
    assert_eq!(town.gateways[1].refusal(other), Refusal::IdempotencyMismatch { by: None });
    town.complete(0, first, 5);
    let third = town.ask(1, Ask::new().keyed(1, 1));
    assert_eq!(town.gateways[1].refusal(third), Refusal::IdempotencyDone { by: None });
    assert!(town.gateways[1].explain(third).contains("another request with this key was answered"));
    let failed = town.ask(0, Ask::new().keyed(2, 1));
    town.gateways[0].fail(failed, Failure::ClientError(400));
    town.serve();
    let again = town.ask(1, Ask::new().keyed(2, 1));
    assert!(town.sent(1, again), "what cost nothing freed its key everywhere");
    town.complete(1, again, 1);
    town.is_quiet();
}

#[test]
fn a_life_that_ended_frees_its_keys_and_tells_what_it_charged() {
    let mut town = Town::limited(None, Some(1_000));
    town.ask(0, Ask::new().keyed(1, 1));
    let begun = town.ask(0, Ask::stream().keyed(2, 1));
    town.gateways[0].first_token(begun);
    town.gateways[0].restart();
    town.serve();
    let (free, done) =
        (town.ask(1, Ask::new().keyed(1, 1)), town.ask(1, Ask::stream().keyed(2, 1)));
    assert!(town.sent(1, free));
    assert_eq!(town.gateways[1].refusal(done), Refusal::IdempotencyDone { by: None });
    town.complete(1, free, 1);
    town.is_quiet();
}

#[test]
fn a_session_is_at_home_at_the_same_endpoint_for_every_gateway() {
    let mut town = Town::new();
    let first = town.ask(0, named(1));
    let home = town.gateways[0].at(first).to_owned();
    town.gateways[0].drain(&home, true);
    town.complete(0, first, 1);
    let moved = town.ask(0, named(1));
    let elsewhere = town.gateways[0].at(moved).to_owned();
    assert_ne!(elsewhere, home);
    town.complete(0, moved, 1);
    for gateway in [1, 0, 1] {
        let next = town.ask(gateway, named(1));
        assert_eq!(town.gateways[gateway].at(next), elsewhere, "both know the move");
        town.complete(gateway, next, 1);
    }
    let now = town.micros(0);
    let at = HomeAnswer::At { endpoint: elsewhere.into(), epoch: 2 };
    assert_eq!(town.store.homes.at(now, SessionKey(1)), at, "and nobody moved it again");
}

#[test]
fn of_two_gateways_that_find_a_session_a_home_at_once_one_gives_way() {
    let mut town = Town::new();
    let callers = [town.ask(0, named(1)), town.ask(1, named(1))];
    let home = town.gateways[0].at(callers[0]).to_owned();
    // The second was sent elsewhere: its home failed it.
    town.gateways[1].fail(callers[1], Failure::Connect);
    let other = town.gateways[1].at(callers[1]).to_owned();
    assert_ne!(home, other);
    town.gateways[1].accept(callers[1]);
    town.gateways[0].accept(callers[0]);
    town.serve();
    let bound = |town: &Town, gateway: usize| {
        let plane = &town.gateways[gateway].plane;
        let binding = plane.binding(SessionKey(1)).unwrap();
        (plane.endpoint_name(binding.endpoint).unwrap().to_owned(), binding.epoch)
    };
    assert_eq!(bound(&town, 0), bound(&town, 1));
    assert_eq!(bound(&town, 0), (home, 1), "the first that the store heard of");
}

#[test]
fn a_session_that_nobody_could_answer_is_homeless_for_all() {
    let mut town = Town::new();
    let first = town.ask(0, named(1));
    town.complete(0, first, 1);
    let second = town.ask(1, named(1));
    for _ in 0..8 {
        if town.gateways[1].runs(second) {
            town.gateways[1].fail(second, Failure::Connect);
            town.gateways[1].later(seconds(3));
            town.serve();
        }
    }
    assert!(matches!(town.gateways[1].refusal(second), Refusal::Failed { .. }));
    let now = town.micros(0);
    assert_eq!(town.store.homes.at(now, SessionKey(1)), HomeAnswer::Nowhere { epoch: 1 });
    town.ask(0, named(1));
    assert_eq!(town.gateways[0].plane.binding(SessionKey(1)), None, "the first has heard of it");
}

#[test]
fn what_needs_nothing_shared_consults_nobody() {
    let mut town = Town::new();
    for ask in [Ask::new(), Ask::new().session(1), Ask::stream()] {
        let caller = town.ask(0, ask);
        assert!(town.sent(0, caller));
    }
    assert_eq!(town.consults, 0);
}

#[test]
fn a_store_that_is_away_is_waited_for_once_and_found_back() {
    let mut town = Town::limited(Some(60), None);
    town.away = true;
    let first = town.gateways[0].ask(Ask::new().keyed(1, 1));
    town.serve();
    town.later(Duration::from_millis(249));
    assert!(town.gateways[0].runs(first));
    town.later(Duration::from_millis(1));
    assert_eq!(town.degraded(0), [true]);
    // The ledger, which is money, says no; what is shared beside it does not.
    assert!(matches!(town.gateways[0].refusal(first), Refusal::QuotaUnavailable { .. }));
    let before = town.consults;
    for _ in 0..5 {
        let caller = town.ask(0, Ask::new());
        assert!(!town.gateways[0].plane.requests.values().any(|request| request.heard.awaits));
        town.gateways[0].gone(caller);
    }
    assert_eq!(town.consults, before, "nobody is asked while it is known to be away");
    town.later(seconds(1));
    town.away = false;
    let probe = town.ask(0, Ask::new());
    assert_eq!(town.degraded(0), [true, false], "one request found it back, without waiting");
    town.later(seconds(2));
    let next = town.ask(0, Ask::new());
    assert!(town.sent(0, next) && !town.sent(0, probe), "the ledger had to be found back too");
    assert_eq!(town.consults, before + 2);
}

/// Asks for something and answers the ledger alone: the consultation is left to the test.
fn half_answered(town: &mut Town, ask: Ask) -> (CallerToken, Consult) {
    town.away = true;
    let caller = town.gateways[0].ask(ask);
    let mut consult = None;
    for effect in town.serve() {
        match effect {
            Effect::Consult(asked) => consult = Some(*asked),
            Effect::Reserve(op) => {
                let gateway = &town.gateways[0];
                let at = At { now: gateway.now, wall: gateway.wall() };
                let answer = town.store.ledger.perform(at, RunId(1), &op, &mut Vec::new());
                town.gateways[0].input(Input::StoreAnswered(answer));
            }
            _ => {}
        }
    }
    town.away = false;
    (caller, consult.unwrap())
}

#[test]
fn an_answer_that_is_lost_or_late_decides_nothing_and_is_given_back_at_the_end() {
    let mut town = Town::limited(None, Some(250));
    let (caller, consult) = half_answered(&mut town, Ask::new());
    assert!(!town.sent(0, caller), "it waits for both");
    town.gateways[0].later(Duration::from_millis(250));
    assert!(town.sent(0, caller), "and then goes on alone");
    let now = town.micros(0);
    let late = town.store.consult(now, &consult);
    town.gateways[0].input(Input::Consulted(late.clone().into()));
    assert!(town.gateways[0].runs(caller));
    town.gateways[0].input(Input::Consulted(late.into()));
    let stale = town.gateways[0].observations.iter().filter(|o| matches!(o, Observation::Stale(_)));
    assert_eq!(stale.count(), 1, "the second time it names nothing");
    assert!(town.store.rates.held(now, AccountId(1), RateUnit::Tpm) > 0);
    town.complete(0, caller, 5);
    town.is_quiet();
}

#[test]
fn a_refusal_that_comes_late_stops_nobody_and_what_was_used_counts() {
    let mut town = Town::limited(None, Some(250));
    let others = [town.ask(1, Ask::new()), town.ask(1, Ask::new())];
    let (caller, consult) = half_answered(&mut town, Ask::new());
    town.gateways[0].input(Input::ConsultFailed { op: consult.op });
    assert!(town.sent(0, caller), "told at once that nobody answers");
    let now = town.micros(0);
    let late = town.store.consult(now, &consult);
    town.gateways[0].input(Input::Consulted(late.into()));
    assert!(town.gateways[0].runs(caller));
    town.gateways[0].input(Input::ConsultFailed { op: SharedOpId(99) });
    // The next finds the store back without waiting for it.
    town.gateways[0].later(seconds(1));
    let probe = town.ask(0, Ask::new().keyed(1, 1));
    town.gateways[0].gone(probe);
    town.serve();
    let before = town.store.rates.ahead(town.micros(0), AccountId(1), RateUnit::Tpm);
    town.complete(0, caller, 50);
    let after = town.store.rates.ahead(town.micros(0), AccountId(1), RateUnit::Tpm);
    assert_eq!(after - before, 60 * 60_000_000 / 250, "what nobody took is counted all the same");
    for other in others {
        town.complete(1, other, 5);
    }
    town.is_quiet();
}

#[test]
fn a_key_that_is_anothers_stops_whom_nothing_was_sent_for_though_nobody_waited_to_hear_it() {
    for (key, is_free) in [(1, false), (2, true)] {
        let mut town = Town::limited(Some(60), None);
        let other = town.ask(1, Ask::new().keyed(1, 1));
        let (first, consult) = half_answered(&mut town, Ask::new().keyed(9, 1));
        town.gateways[0].input(Input::ConsultFailed { op: consult.op });
        assert_eq!(town.degraded(0), [true]);
        town.gateways[0].later(seconds(1));
        // The probe that nobody waits for is answered before the ledger is.
        town.away = true;
        let probe = town.gateways[0].ask(Ask::new().keyed(key, 1));
        let consult = town.serve().into_iter().find_map(|effect| match effect {
            Effect::Consult(asked) => Some(asked),
            _ => None,
        });
        let consult = consult.unwrap();
        assert_eq!(consult.idempotency.unwrap().idempotency.key, Digest(key));
        let answer = town.store.consult(town.micros(0), &consult);
        town.gateways[0].input(Input::Consulted(answer.into()));
        if is_free {
            assert!(town.gateways[0].runs(probe));
            town.gateways[0].gone(probe);
        } else {
            let refusal = town.gateways[0].refusal(probe);
            assert_eq!(refusal, Refusal::IdempotencyInFlight { by: None });
        }
        town.away = false;
        town.complete(0, first, 5);
        town.complete(1, other, 5);
    }
}

#[test]
fn what_failed_for_one_ask_alone_says_nothing_of_its_parts() {
    let mut town = Town::limited(Some(60), None);
    for key in 1..4 {
        let (caller, consult) = half_answered(&mut town, Ask::new().keyed(key, 1));
        assert!(!consult.rates.is_empty() && consult.idempotency.is_some(), "asked as ever");
        let mut answer = town.store.consult(town.micros(0), &consult);
        (answer.idempotency, answer.odd) = (None, Vec::from([Part::Keys]));
        if key == 2 {
            (answer.rates, answer.odd) = (None, Vec::from([Part::Rates, Part::Keys]));
        }
        town.gateways[0].input(Input::Consulted(answer.into()));
        assert!(town.sent(0, caller), "it goes on alone");
        assert!(town.degraded(0).is_empty(), "{:?}", town.degraded(0));
    }
}

#[test]
fn a_part_that_does_not_answer_is_away_by_itself() {
    let mut town = Town::limited(Some(60), None);
    let (caller, consult) = half_answered(&mut town, Ask::new().keyed(1, 1));
    let mut answer = town.store.consult(town.micros(0), &consult);
    answer.rates = None;
    town.gateways[0].input(Input::Consulted(answer.into()));
    assert!(town.sent(0, caller));
    assert_eq!(town.degraded(0), [true]);
    let (next, consult) = half_answered(&mut town, Ask::new().keyed(2, 1));
    assert!(consult.rates.is_empty() && consult.idempotency.is_some());
    let answer = town.store.consult(town.micros(0), &consult);
    town.gateways[0].input(Input::Consulted(answer.into()));
    assert!(town.sent(0, next));
    assert_eq!(town.degraded(0), [true], "still");
}

#[test]
fn a_home_is_told_again_before_it_lapses_and_not_with_each_request() {
    let mut town = Town::new();
    let mut told = Vec::new();
    for minute in 0..120 {
        let caller = town.gateways[0].ask(named(1));
        town.serve();
        let effects = town.gateways[0].accept(caller);
        if effects.iter().any(|effect| matches!(effect, Effect::Note(_))) {
            told.push(minute);
        }
        town.serve();
        town.complete(0, caller, 1);
        town.later(seconds(60));
    }
    assert_eq!(told.first(), Some(&0));
    assert!(told.windows(2).skip(1).all(|pair| pair[1] - pair[0] == 15), "{told:?}");
    let now = town.micros(0);
    assert!(matches!(town.store.homes.at(now, SessionKey(1)), HomeAnswer::At { epoch: 1, .. }));
}
