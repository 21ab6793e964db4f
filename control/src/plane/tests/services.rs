//! Services that charge the embedded ledger beside the requests.
#![allow(clippy::disallowed_types, reason = "prop_oneof! shares its strategies in Arcs")]

use core::time::Duration;

use proptest::prelude::*;

use super::world::{Ask as Asked, World, daily, seconds};
use crate::id::{AccountId, CallerToken, Minted, Principal, ReservationId};
use crate::plane::{Durable, Effect, Input};
use crate::quota::{
    Ask, Denied, DenyReason, Draw, EMBEDDED_RUN, Fact, HoldId, OpId, OwnerId, Reply, StoreOp,
};
use crate::units::{Amount, MicroUsd, Tokens};

const SERVICE: OwnerId = OwnerId(0x5e71);
const TTL: Duration = Duration::from_secs(60);

fn hold(id: u64) -> HoldId {
    HoldId::request(SERVICE, ReservationId(Minted { incarnation: 7, counter: id }))
}

fn tokens(count: u64) -> Amount {
    Amount { tokens: Tokens(count), money: MicroUsd::ZERO }
}

fn op(owner: OwnerId, ask: Ask) -> Box<StoreOp> {
    Box::new(StoreOp { op: OpId(1), owner, run: None, tenant: Some(AccountId(1)), ask })
}

fn reserve(world: &World, id: u64, count: u64) -> Ask {
    let who = Principal { tenant: AccountId(1), user: None, key: None };
    let accounts = world.plane.payers(&who);
    Ask::Reserve(Draw { hold: hold(id), accounts, amount: tokens(count), ttl: TTL })
}

fn settle(id: u64, count: u64) -> Ask {
    let (pins, actual) = (Vec::new(), tokens(count));
    let confirmed = Some(EMBEDDED_RUN);
    Ask::Settle { hold: hold(id), pins, actual, estimated: false, confirmed }
}

/// The answer, and how many facts were made durable with it.
fn asks(world: &mut World, ask: Ask) -> (Reply, usize) {
    let effects = world.input(Input::LedgerAsked { caller: CallerToken(99), op: op(SERVICE, ask) });
    let facts = effects.iter().filter(|one| matches!(one, Effect::Persist(Durable::Entry(_))));
    let facts = facts.count();
    let answers = effects.into_iter().filter_map(|effect| match effect {
        Effect::LedgerAnswered { caller: CallerToken(99), answer } => Some(answer.reply),
        _ => None,
    });
    let answers: Vec<_> = answers.collect();
    let [answer] = &answers[..] else { panic!("{answers:?}") };
    (answer.clone(), facts)
}

fn limited(tokens: u64) -> World {
    let mut world = World::of(&["a"]);
    world.configure(|config| drop(config.accounts.insert(AccountId(1), daily(tokens))));
    world
}

fn outstanding(world: &World) -> u64 {
    let audit = world.plane.ledger().audit().unwrap();
    assert!(audit.violations.is_empty(), "{:?}", audit.violations);
    let ledger = world.plane.ledger().ledger().unwrap();
    ledger.live().map(|hold| ledger.held(hold).unwrap().tokens.0).sum()
}

#[test]
fn a_service_and_a_request_spend_one_account() {
    let mut world = limited(100);
    let ask = reserve(&world, 1, 60);
    assert!(matches!(asks(&mut world, ask).0, Reply::Granted { total, .. } if total == tokens(60)));
    let refused = world.ask(Asked::new().at_most(60));
    world.refusal(refused);
    assert_eq!(asks(&mut world, settle(1, 25)).0, Reply::Done);
    let served = world.ask(Asked::new().at_most(60));
    world.complete(served, 60);
    assert_eq!(world.spent(1), 25 + 10 + 60);
    let ask = reserve(&world, 2, 6);
    let (Reply::Denied(Denied { reason, retry_after }), _) = asks(&mut world, ask) else {
        panic!("95 of 100 are spent")
    };
    assert!(matches!(reason, DenyReason::Spent { remaining, .. } if remaining.tokens == Tokens(5)));
    assert!(retry_after > Duration::ZERO);
    world.is_quiet();
}

#[test]
fn what_is_said_twice_counts_once() {
    let mut world = limited(1_000);
    for _ in 0..2 {
        let ask = reserve(&world, 1, 60);
        let (answer, made) = asks(&mut world, ask);
        assert!(
            matches!(answer, Reply::Granted { total, .. } if total == tokens(60)),
            "{answer:?}"
        );
        assert!(made >= 1, "the second time it only lives longer");
        assert_eq!(outstanding(&world), 60);
    }
    for _ in 0..2 {
        let extend = Ask::Extend { hold: hold(1), total: tokens(90) };
        let (answer, _) = asks(&mut world, extend);
        assert!(
            matches!(answer, Reply::Granted { total, .. } if total == tokens(90)),
            "{answer:?}"
        );
        assert_eq!(outstanding(&world), 90);
    }
    for (ask, facts) in [(settle(1, 70), 1), (settle(1, 70), 0), (settle(1, 1), 0)] {
        assert_eq!(asks(&mut world, ask), (Reply::Done, facts));
    }
    let ask = reserve(&world, 1, 60);
    let (answer, made) = asks(&mut world, ask);
    let Reply::Denied(denied) = answer else { panic!("{answer:?}") };
    assert_eq!((denied.reason, made), (DenyReason::Ended, 0), "an id is used once");
    assert_eq!((world.spent(1), outstanding(&world)), (70, 0));
    assert_eq!(
        asks(&mut world, settle(5, 70)),
        (Reply::Denied(Denied::never(DenyReason::Ended)), 0),
        "nobody knows it, and nothing is charged"
    );
    assert_eq!(world.spent(1), 70);
}

#[test]
fn a_refund_that_overtakes_its_reservation_wins() {
    let mut world = limited(1_000);
    assert_eq!(asks(&mut world, Ask::Refund { hold: hold(1) }).0, Reply::Done);
    let ask = reserve(&world, 1, 60);
    assert!(matches!(asks(&mut world, ask).0, Reply::Denied(_)));
    assert_eq!(outstanding(&world), 0);
}

#[test]
fn a_service_that_died_gives_back_what_it_held_and_may_still_say_what_it_used() {
    let mut world = limited(100);
    let ask = reserve(&world, 1, 100);
    asks(&mut world, ask);
    world.later(TTL + seconds(1));
    assert_eq!(outstanding(&world), 0, "it expired by itself");
    assert_eq!(asks(&mut world, settle(1, 30)), (Reply::Done, 1));
    assert_eq!(asks(&mut world, settle(1, 30)), (Reply::Done, 0));
    assert_eq!(world.spent(1), 30, "late, and once");
}

#[test]
fn a_new_life_and_an_upgrade_leave_a_services_holds_alone() {
    let mut world = limited(1_000);
    world.take_snapshot();
    let ask = reserve(&world, 1, 60);
    asks(&mut world, ask);
    world.ask(Asked::new());
    world.restart();
    assert_eq!(outstanding(&world), 60, "the request's went back, the service's did not");
    world.upgrade();
    assert_eq!(outstanding(&world), 60);
    assert_eq!(asks(&mut world, settle(1, 50)).0, Reply::Done);
    assert_eq!((world.spent(1), outstanding(&world)), (50, 0));
}

#[test]
fn nobody_speaks_for_the_planes_own_requests() {
    let mut world = limited(1_000);
    let own = world.plane.ledger().config().owner;
    let ask = reserve(&world, 1, 60);
    let effects = world.input(Input::LedgerAsked { caller: CallerToken(9), op: op(own, ask) });
    assert!(effects.is_empty(), "{effects:?}");
}

/// What a service may do, in any order, with a few ids.
#[derive(Clone, Debug)]
enum Deed {
    Reserve(u64, u64),
    Extend(u64, u64),
    Settle(u64, u64),
    Refund(u64),
    Wait(u64),
    Restart,
    Request,
}

fn deed() -> impl Strategy<Value = Deed> {
    let id = 0..4_u64;
    prop_oneof![
        4 => (id.clone(), 0..400_u64).prop_map(|(id, count)| Deed::Reserve(id, count)),
        2 => (id.clone(), 0..600_u64).prop_map(|(id, count)| Deed::Extend(id, count)),
        3 => (id.clone(), 0..600_u64).prop_map(|(id, count)| Deed::Settle(id, count)),
        1 => id.prop_map(Deed::Refund),
        2 => (1..90_u64).prop_map(Deed::Wait),
        1 => Just(Deed::Restart),
        1 => Just(Deed::Request),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn whatever_a_service_does_each_reservation_ends_once_and_the_sums_hold(
        deeds in proptest::collection::vec(deed(), 1..60),
    ) {
        let mut world = limited(1_000);
        for deed in deeds {
            match deed {
                Deed::Reserve(id, count) => {
                    let ask = reserve(&world, id, count);
                    asks(&mut world, ask);
                }
                Deed::Extend(id, count) => {
                    asks(&mut world, Ask::Extend { hold: hold(id), total: tokens(count) });
                }
                Deed::Settle(id, count) => drop(asks(&mut world, settle(id, count))),
                Deed::Refund(id) => drop(asks(&mut world, Ask::Refund { hold: hold(id) })),
                Deed::Wait(time) => world.later(seconds(time)),
                Deed::Restart => drop(world.restart()),
                Deed::Request => drop(world.ask(Asked::new())),
            }
            outstanding(&world);
        }
        for id in 0..4 {
            let (mut reserved, mut ends, mut late) = (0, 0, 0);
            for entry in &world.entries {
                match &entry.fact {
                    Fact::Reserve { hold: of, .. } => reserved += usize::from(*of == hold(id)),
                    Fact::Settle { hold: of, .. }
                    | Fact::Refund { hold: of }
                    | Fact::Expire { hold: of } => ends += usize::from(*of == hold(id)),
                    Fact::Late { hold: of, .. } => late += usize::from(*of == hold(id)),
                    _ => {}
                }
            }
            prop_assert!(reserved <= 1 && ends <= 1 && late <= 1, "{id}: {reserved}, {ends}, {late}");
            prop_assert!(reserved <= ends || world.plane.ledger().ledger().unwrap().held(hold(id)).is_some());
        }
        world.later(seconds(3_600));
        prop_assert_eq!(outstanding(&world), 0);
    }
}
