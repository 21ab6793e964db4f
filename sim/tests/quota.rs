//! Gateways that share a quota store which loses, doubles, delays and reorders, goes away, and forgets.
//!
//! Each case is a list of steps. The test keeps the clients' own tally: what every granted request really used. The ledger
//! must bill it once, whatever the network did, and never grant more than the bound of the design.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::time::Duration;

use control::id::{AccountId, Minted, ReservationId};
use control::quota::{
    Cap, Config, DenyReason, Entry, Event, Fact, LedgerConfig, Limits, OwnerId, Quota, Reserve,
    StoreMode, Sums, WindowKind,
};
use control::rng::Rng;
use control::units::{Amount, MicroUsd, Tokens};
use control::{Instant, Wall};
use proptest::prelude::*;
use sim::store::{Fate, Passage, Store};

const GATEWAYS: usize = 2;
const LIMIT: u64 = 2_000;
const TENANT: AccountId = AccountId(1);
const DRIFT: Duration = Duration::from_millis(500);
/// Noon, so that no run crosses midnight.
const EPOCH: Wall = Wall::from_millis(20_000 * 86_400_000 + 43_200_000);

fn limits() -> Limits {
    let day = Cap { tokens: Some(Tokens(LIMIT)), money: None };
    Limits { day, ..Limits::default() }
}

fn tokens(count: u64) -> Amount {
    Amount { tokens: Tokens(count), money: MicroUsd(count * 2) }
}

fn config(owner: u64) -> Config {
    Config {
        store: StoreMode::Shared,
        owner: OwnerId(owner),
        drift_max: DRIFT,
        answer_timeout: Duration::from_millis(50),
        fallback_after: Duration::from_millis(25),
        allotment: tokens(400),
        allotments_max: 2,
        allotment_ttl: Duration::from_secs(8),
        ..Config::default()
    }
}

struct Gateway {
    quota: Quota,
    next: u64,
    /// What each granted request holds, as its client was told.
    granted: BTreeMap<ReservationId, u64>,
    denied: Vec<(ReservationId, DenyReason)>,
    entries: Vec<Entry>,
    asked: usize,
}

struct World {
    now: Instant,
    store: Store,
    gateways: Vec<Gateway>,
    rng: Rng,
    /// Out of 16: how many messages meet trouble.
    trouble: u64,
    /// What a message takes longer.
    slow: Duration,
    used: u64,
    beyond: u64,
    lost: u64,
}

#[derive(Clone, Debug)]
enum Step {
    Advance(u64),
    Begin(usize, u64),
    Extend(usize, usize, u64),
    End(usize, usize, u64),
    Refund(usize, usize),
    Cut(bool),
    Restart(usize),
}

impl World {
    fn new(seed: u64, trouble: u64, pace: i64) -> Self {
        let ledger = LedgerConfig { drift_max: DRIFT, ..LedgerConfig::default() };
        let mut store = Store::new(ledger, EPOCH);
        store.pace(pace);
        let gateways = (0..GATEWAYS).map(|index| Gateway {
            quota: Quota::new(config(index as u64)),
            next: 0,
            granted: BTreeMap::new(),
            denied: Vec::new(),
            entries: Vec::new(),
            asked: 0,
        });
        let (gateways, rng) = (gateways.collect(), Rng::new(seed));
        let now = Instant::ZERO;
        let slow = Duration::ZERO;
        Self { now, store, gateways, rng, trouble, slow, used: 0, beyond: 0, lost: 0 }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Advance(millis) => self.advance(Duration::from_millis(millis)),
            Step::Begin(gateway, amount) => {
                self.begin(gateway, amount);
            }
            Step::Extend(gateway, which, amount) => {
                if let Some(id) = self.pick(gateway, which) {
                    self.gateways[gateway].quota.extend(self.now, id, tokens(amount));
                }
            }
            Step::End(gateway, which, permille) => {
                if let Some(id) = self.pick(gateway, which) {
                    let held = self.gateways[gateway].granted[&id];
                    self.end(gateway, id, held * permille / 1_000);
                }
            }
            Step::Refund(gateway, which) => {
                let live: Vec<_> = self.gateways[gateway].quota.live().collect();
                if !live.is_empty() {
                    let id = live[which % live.len()];
                    self.gateways[gateway].granted.remove(&id);
                    self.gateways[gateway].quota.refund(self.now, id);
                }
            }
            Step::Cut(cut) => self.store.cut(cut),
            Step::Restart(lose) => {
                let lost = self.store.restart(lose);
                self.lost += lost.iter().map(weight).sum::<u64>();
            }
        }
        self.drain();
        self.check();
    }

    fn begin(&mut self, gateway: usize, amount: u64) -> ReservationId {
        let own = &mut self.gateways[gateway];
        let id = ReservationId(Minted { incarnation: 1, counter: own.next });
        own.next += 1;
        let user = AccountId(10 + gateway as u64);
        let accounts = vec![(TENANT, limits()), (user, Limits::default())];
        let ttl = Duration::from_secs(20);
        own.quota.wall(self.now, EPOCH + self.now.since(Instant::ZERO));
        own.quota.reserve(self.now, Reserve { id, accounts, amount: tokens(amount), ttl });
        self.drain();
        id
    }

    fn end(&mut self, gateway: usize, id: ReservationId, actual: u64) {
        let held = self.gateways[gateway].granted.remove(&id).unwrap();
        self.used += actual;
        self.beyond += actual.saturating_sub(held);
        self.gateways[gateway].quota.settle(self.now, id, tokens(actual), false);
        self.drain();
    }

    fn pick(&self, gateway: usize, which: usize) -> Option<ReservationId> {
        let granted: Vec<_> = self.gateways[gateway].granted.keys().copied().collect();
        (!granted.is_empty()).then(|| granted[which % granted.len()])
    }

    fn advance(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let timers = self.gateways.iter().filter_map(|gateway| gateway.quota.poll_timeout());
            let next = timers.chain(self.store.poll_timeout()).min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            self.store.handle_timeout(self.now);
            while let Some((owner, answer)) = self.store.poll_answer(self.now) {
                self.gateways[owner.0 as usize].quota.answer(self.now, answer);
            }
            for gateway in &mut self.gateways {
                if gateway.quota.poll_timeout().is_some_and(|due| due <= self.now) {
                    gateway.quota.handle_timeout(self.now);
                }
            }
            self.drain();
        }
        self.now = end;
        self.store.handle_timeout(self.now);
    }

    fn drain(&mut self) {
        for index in 0..GATEWAYS {
            while let Some(event) = self.gateways[index].quota.poll_event() {
                self.event(index, event);
            }
        }
    }

    fn event(&mut self, index: usize, event: Event) {
        let gateway = &mut self.gateways[index];
        match event {
            Event::Granted { id, total } | Event::Extended { id, total } => {
                assert_eq!(gateway.quota.held(id), Some(total), "told what it holds");
                gateway.granted.insert(id, total.tokens.0);
            }
            Event::Denied { id, denied } => gateway.denied.push((id, denied.reason)),
            Event::ExtendDenied { .. } | Event::Late | Event::Degraded | Event::Restored => {}
            Event::Ask(op) => {
                gateway.asked += 1;
                let fate = Fate { ask: self.passage(), answer: self.passage() };
                self.store.script([fate]);
                self.store.ask(self.now, op);
            }
            Event::Entry(entry) => gateway.entries.push(entry),
            Event::Lost { hold, actual } => panic!("{hold:?} lost {actual:?}"),
        }
    }

    fn passage(&mut self) -> Passage {
        let delay = self.slow + Duration::from_millis(1 + self.rng.below(4));
        if self.rng.below(16) >= self.trouble {
            return Passage::After(delay);
        }
        match self.rng.below(3) {
            0 => Passage::Lost,
            1 => Passage::After(Duration::from_millis(self.rng.below(3_000))),
            _ => Passage::Twice(delay, Duration::from_millis(self.rng.below(3_000))),
        }
    }

    /// Every sum of the tenant's days, as the store has them.
    fn sums(&self) -> Sums {
        let day = self
            .store
            .ledger()
            .balances()
            .filter(|(key, _)| key.account == TENANT && key.window.kind() == WindowKind::Day);
        day.map(|(_, sums)| *sums).next().unwrap_or_default()
    }

    fn check(&self) {
        self.store.ledger().invariants();
        self.gateways.iter().for_each(|gateway| gateway.quota.invariants());
        let sums = self.sums();
        let promised = (sums.spent + sums.outstanding).tokens.0;
        let bound = LIMIT + (sums.overrun + sums.late).tokens.0 + self.lost;
        assert!(promised <= bound, "{promised} promised, {bound} allowed");
    }

    /// Mends everything, ends what runs, and waits until nothing is on its way any more.
    fn finish(&mut self) {
        self.trouble = 0;
        self.slow = Duration::ZERO;
        self.store.cut(false);
        self.advance(Duration::from_secs(10));
        for gateway in 0..GATEWAYS {
            while let Some(id) = self.pick(gateway, 0) {
                let held = self.gateways[gateway].granted[&id];
                self.end(gateway, id, held / 2);
            }
        }
        self.advance(Duration::from_secs(120));
        self.check();
    }

    fn assert_quiet(&self) {
        for gateway in &self.gateways {
            assert_eq!(gateway.quota.outstanding(), 0, "a gateway holds a reservation");
            assert_eq!(gateway.quota.ending(), 0, "a gateway waits for an acknowledgement");
        }
        assert_eq!(self.store.ledger().outstanding(), 0, "the store holds a reservation");
        let billed = (self.sums().charged + self.sums().late).tokens.0;
        assert!(billed <= self.used, "billed {billed}, used {}", self.used);
        assert!(billed + self.lost >= self.used, "billed {billed}, used {}", self.used);
        let bound = LIMIT + self.beyond + self.sums().late.tokens.0 + self.lost;
        assert!(self.used <= bound, "used {}, allowed {bound}", self.used);
    }
}

/// What the loss of an entry may come to.
fn weight(entry: &Entry) -> u64 {
    match &entry.fact {
        Fact::Reserve { amount, .. } | Fact::Extend { amount, .. } => amount.tokens.0,
        Fact::Settle { actual, .. } | Fact::Late { actual, .. } => actual.tokens.0,
        Fact::Limits { .. }
        | Fact::Refund { .. }
        | Fact::Expire { .. }
        | Fact::Forgive { .. }
        | Fact::Close { .. }
        | Fact::Retire { .. }
        | Fact::Acknowledged { .. } => 0,
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let gateway = 0..GATEWAYS;
    let step = prop_oneof![
        5 => prop_oneof![1_u64..60, 60_u64..4_000, 4_000_u64..15_000].prop_map(Step::Advance),
        6 => (gateway.clone(), 1_u64..900).prop_map(|(gateway, amount)| Step::Begin(gateway, amount)),
        3 => (gateway.clone(), 0_usize..9, 1_u64..400)
            .prop_map(|(gateway, which, amount)| Step::Extend(gateway, which, amount)),
        4 => (gateway.clone(), 0_usize..9, 0_u64..1_300)
            .prop_map(|(gateway, which, permille)| Step::End(gateway, which, permille)),
        1 => (gateway, 0_usize..9).prop_map(|(gateway, which)| Step::Refund(gateway, which)),
        2 => any::<bool>().prop_map(Step::Cut),
        2 => (0_usize..6).prop_map(Step::Restart),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn what_clients_used_is_billed_once_and_within_the_bound(
        seed in any::<u64>(), trouble in 0_u64..9, pace in -20_000_i64..20_000, steps in steps(),
    ) {
        let mut world = World::new(seed, trouble, pace);
        for step in &steps {
            world.step(step);
        }
        for gateway in &world.gateways {
            let mut restored = Quota::new(gateway.quota.config().clone());
            gateway.entries.iter().for_each(|entry| restored.apply_entry(entry));
            for id in gateway.granted.keys() {
                prop_assert_eq!(restored.held(*id), gateway.quota.held(*id));
            }
            prop_assert_eq!(restored.outstanding(), gateway.granted.len());
        }
        world.finish();
        world.assert_quiet();
    }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A store that answers, one request granted from it, and an allotment of 400 drawn behind that.
fn calm() -> (World, ReservationId) {
    let mut world = World::new(1, 0, 0);
    let id = world.begin(0, 100);
    world.advance(ms(20));
    assert_eq!(world.gateways[0].granted.get(&id), Some(&100));
    assert_eq!(world.store.ledger().outstanding(), 2, "the request and an allotment");
    (world, id)
}

#[test]
fn while_the_store_is_away_a_gateway_spends_what_it_drew_ahead_and_no_more() {
    let (mut world, _) = calm();
    world.store.cut(true);
    let (first, second) = (world.begin(0, 300), world.begin(0, 300));
    world.advance(ms(60));
    assert_eq!(world.gateways[0].granted.get(&first), Some(&300));
    assert_eq!(world.gateways[0].denied, [(second, DenyReason::StoreUnreachable)]);
    world.finish();
    world.assert_quiet();
    assert_eq!(world.sums().late, Amount::ZERO);
}

#[test]
fn once_the_store_is_known_to_be_away_nobody_waits_for_it() {
    let (mut world, _) = calm();
    world.store.cut(true);
    world.begin(0, 300);
    // Lent after 25 ms; what was asked for is given back then, and nobody says within 50 more that it was heard.
    world.advance(ms(75));
    let at_once = world.begin(0, 300);
    assert_eq!(world.gateways[0].denied, [(at_once, DenyReason::StoreUnreachable)]);
    world.store.cut(false);
    world.advance(ms(1_100));
    let again = world.begin(0, 300);
    world.advance(ms(20));
    assert!(world.gateways[0].granted.contains_key(&again), "a probe found it back");
}

#[test]
fn a_slow_store_costs_who_drew_ahead_a_moment_and_refuses_nobody() {
    let (mut world, _) = calm();
    world.slow = ms(15);
    let waits = world.begin(0, 100);
    world.advance(ms(24));
    assert!(!world.gateways[0].granted.contains_key(&waits));
    world.advance(ms(1));
    assert!(world.gateways[0].granted.contains_key(&waits), "lent after 25 ms");
    let (at_once, needs_more) = (world.begin(0, 100), world.begin(0, 300));
    assert!(world.gateways[0].granted.contains_key(&at_once), "nobody waits again");
    world.advance(ms(49));
    assert!(world.gateways[0].granted.contains_key(&needs_more), "the store answered in time");
    assert_eq!(world.gateways[0].denied, []);
    world.finish();
    world.assert_quiet();
    assert_eq!(world.sums().late, Amount::ZERO);
}

#[test]
fn two_gateways_share_one_limit() {
    let mut world = World::new(1, 0, 0);
    let mut granted = 0;
    for turn in 0..40 {
        world.begin(turn % GATEWAYS, 300);
        world.advance(ms(20));
        granted = world.gateways.iter().map(|g| g.granted.values().sum::<u64>()).sum();
    }
    assert!(granted <= LIMIT, "{granted}");
    assert!(granted + 2 * 400 + 300 > LIMIT, "the rest is two allotments and change: {granted}");
    assert!(matches!(world.gateways[0].denied[0].1, DenyReason::Spent { .. }));
}

#[test]
fn an_answer_that_comes_after_its_request_ended_leaks_nothing() {
    let mut world = World::new(1, 0, 0);
    let late = Passage::After(ms(500));
    world.store.script([Fate { ask: late.clone(), answer: late }]);
    let id = world.begin(0, 100);
    world.gateways[0].quota.refund(world.now, id);
    world.drain();
    world.advance(Duration::from_secs(3));
    assert_eq!(world.store.ledger().outstanding(), 0);
    assert_eq!(world.sums().spent, Amount::ZERO);
    world.assert_quiet();
}

#[test]
fn a_store_that_forgot_is_told_what_is_held_before_anything_is_drawn() {
    let (mut world, id) = calm();
    let everything = world.store.entries().len();
    world.lost += world.store.restart(everything).iter().map(weight).sum::<u64>();
    assert_eq!(world.store.ledger().outstanding(), 0);
    world.begin(0, 50);
    world.advance(ms(40));
    assert_eq!(world.sums().outstanding, tokens(100 + 400 + 50));
    world.end(0, id, 100);
    world.finish();
    assert_eq!(world.sums().late, Amount::ZERO, "what was asserted is settled in time");
}

#[test]
fn a_dead_gateways_reservations_return_by_themselves() {
    let (mut world, _) = calm();
    world.gateways[0].quota = Quota::new(config(0));
    world.gateways[0].granted.clear();
    world.advance(Duration::from_secs(21));
    assert_eq!(world.store.ledger().outstanding(), 0);
    assert_eq!(world.sums().spent, Amount::ZERO);
    assert_eq!(world.sums().expired, tokens(500));
}

#[test]
fn a_request_that_outlives_its_allotment_is_billed_late_and_once() {
    let (mut world, first) = calm();
    world.end(0, first, 100);
    world.advance(ms(20));
    world.store.cut(true);
    let lent = world.begin(0, 300);
    world.advance(Duration::from_secs(30));
    assert_eq!(world.gateways[0].granted.get(&lent), Some(&300));
    world.end(0, lent, 250);
    world.finish();
    world.assert_quiet();
    assert_eq!(world.sums().charged, tokens(100));
    assert_eq!(world.sums().late, tokens(250));
}
