//! Stories of the ledger, and of what an account is charged by it.

use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use super::Mutant::*;
use super::Story;
use crate::id::{AccountId, Minted, ReservationId};
use crate::plane::tests::world::NOON;
use crate::quota::{
    Ask, At, BalanceKey, Cap, Config, Draw, Entry, Event, HoldId, Ledger, LedgerConfig, Limits,
    OpId, OwnerId, Quota, Reply, Reserve, Rolling, RunId, Settled, StoreOp, WindowKind,
};
use crate::time::Instant;
use crate::units::{Amount, MicroUsd, Tokens};

pub(super) const STORIES: &[Story] = &[
    (SettleTwice, a_settlement_that_is_repeated_is_charged_once),
    (ReleaseAfterExpiry, what_expired_and_was_used_adds_up),
    (LateDropped, what_was_used_after_its_expiry_is_charged_late),
    (Overdraft, what_is_held_cannot_be_held_again),
    (ExtendUnchecked, an_extension_stays_within_the_limit),
    (RollingOfOthers, a_neighbours_rolling_window_is_its_own),
    (RecoverySkipsExtends, an_extension_survives_as_a_fact),
    (OtherRunDraws, a_draw_under_another_run_is_turned_away),
];

pub(super) const TENANT: AccountId = AccountId(1);

pub(super) fn tokens(count: u64) -> Amount {
    Amount { tokens: Tokens(count), money: MicroUsd::ZERO }
}

pub(super) fn at(millis: u64) -> At {
    let now = Instant::from_nanos(millis * 1_000_000);
    At { now, wall: NOON + Duration::from_millis(millis) }
}

pub(super) fn id(counter: u64) -> ReservationId {
    ReservationId(Minted { incarnation: 1, counter })
}

/// A thousand tokens a day.
pub(super) fn daily() -> Limits {
    Limits { day: Cap { tokens: Some(Tokens(1_000)), money: None }, ..Limits::default() }
}

fn hold(counter: u64) -> HoldId {
    HoldId::request(OwnerId::default(), id(counter))
}

/// For a second.
fn draw(counter: u64, amount: u64) -> Draw {
    let (accounts, amount) = (vec![(TENANT, daily())], tokens(amount));
    Draw { hold: hold(counter), accounts, amount, ttl: Duration::from_secs(1) }
}

/// A ledger in which reservation 1 holds so much, and the entries made.
fn held(amount: u64) -> (Ledger, Vec<Entry>) {
    let (mut ledger, mut out) = (Ledger::new(LedgerConfig::default()), Vec::new());
    ledger.reserve(at(0), &draw(1, amount), &mut out).unwrap();
    (ledger, out)
}

fn a_settlement_that_is_repeated_is_charged_once() -> bool {
    let (mut ledger, mut out) = held(100);
    let pins: Vec<BalanceKey> = ledger.pinned(hold(1)).unwrap().to_vec();
    for op in [1, 1] {
        let (confirmed, actual) = (Some(RunId(1)), tokens(60));
        let ask =
            Ask::Settle { hold: hold(1), pins: pins.clone(), actual, estimated: false, confirmed };
        let (op, run) = (OpId(op), Some(RunId(1)));
        let op = StoreOp { op, owner: OwnerId::default(), run, tenant: Some(TENANT), ask };
        assert_eq!(ledger.perform(at(1), RunId(1), &op, &mut out).reply, Reply::Done);
    }
    ledger.remaining(TENANT, WindowKind::Day).tokens == Tokens(940)
}

/// Reservation 1 expires, and is then settled.
fn expired_then_settled() -> (Ledger, Settled) {
    let (mut ledger, mut out) = held(100);
    ledger
        .reserve(at(0), &Draw { ttl: Duration::from_secs(60), ..draw(2, 300) }, &mut out)
        .unwrap();
    assert!(ledger.expire(at(2_000), 8, &mut out).is_continue());
    let settled = ledger.settle(at(2_001), hold(1), tokens(60), false, &mut out);
    (ledger, settled)
}

fn what_expired_and_was_used_adds_up() -> bool {
    expired_then_settled().0.audit().violations.is_empty()
}

fn what_was_used_after_its_expiry_is_charged_late() -> bool {
    expired_then_settled().1 == Settled::Late
}

fn what_is_held_cannot_be_held_again() -> bool {
    let (mut ledger, mut out) = held(600);
    ledger.reserve(at(1), &draw(2, 600), &mut out).is_err()
}

fn an_extension_stays_within_the_limit() -> bool {
    let (mut ledger, mut out) = held(600);
    ledger.extend_to(at(1), hold(1), tokens(1_200), &mut out).is_err()
}

fn a_neighbours_rolling_window_is_its_own() -> bool {
    let cap = Cap { tokens: Some(Tokens(100)), money: None };
    let rolling = Some(Rolling { window: Duration::from_secs(60), cap });
    let limits = Limits { rolling, ..Limits::default() };
    let (mut ledger, mut out) = (Ledger::new(LedgerConfig::default()), Vec::new());
    let of = |account, counter| Draw { accounts: vec![(account, limits)], ..draw(counter, 80) };
    ledger.reserve(at(0), &of(AccountId(2), 1), &mut out).unwrap();
    ledger.reserve(at(0), &of(AccountId(1), 2), &mut out).is_ok()
}

fn an_extension_survives_as_a_fact() -> bool {
    let mut room = Quota::new(Config::default());
    room.wall(at(0).now, at(0).wall);
    let (accounts, ttl) = (vec![(TENANT, daily())], Duration::from_secs(60));
    room.reserve(at(0).now, Reserve { id: id(1), accounts, amount: tokens(100), ttl });
    room.extend(at(1).now, id(1), tokens(50));
    let mut recovered = Quota::new(Config::default());
    while let Some(event) = room.poll_event() {
        if let Event::Entry(entry) = event {
            recovered.apply_entry(&entry);
        }
    }
    recovered.held(id(1)) == Some(tokens(150))
}

fn a_draw_under_another_run_is_turned_away() -> bool {
    let (mut ledger, mut out) = (Ledger::new(LedgerConfig::default()), Vec::new());
    let (ask, run) = (Ask::Reserve(draw(1, 10)), Some(RunId(1)));
    let op = StoreOp { op: OpId(1), owner: OwnerId::default(), run, tenant: Some(TENANT), ask };
    ledger.perform(at(0), RunId(2), &op, &mut out).reply == Reply::OtherRun
}
