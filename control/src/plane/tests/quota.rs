//! Reservations: made, extended, met, settled, refunded.

use core::time::Duration;

use super::world::{Ask, World, daily, failed, seconds};
use crate::id::AccountId;
use crate::outcome::{AttemptEnd, Failure};
use crate::plane::{Effect, Input, Outcome, Refusal};
use crate::quota::{
    At, Fact, Ledger, LedgerConfig, MAX_AMOUNT, OpId, RunId, StoreMode, Unit, WindowKind,
};
use crate::units::{Amount, MicroUsd, Tokens, Usage};

fn limited(tokens: u64) -> World {
    let mut world = World::of(&["a", "b"]);
    world.configure(|config| drop(config.accounts.insert(AccountId(1), daily(tokens))));
    world
}

#[test]
fn a_reservation_that_does_not_fit_is_refused_before_anything_is_sent() {
    let mut world = limited(100);
    let caller = world.ask(Ask::new());
    let Refusal::QuotaSpent(spent) = world.refusal(caller) else { panic!("not refused for it") };
    assert_eq!((spent.account, spent.window), (AccountId(1), WindowKind::Day));
    assert_eq!((spent.unit, spent.retry_after), (Unit::Tokens, Duration::from_secs(43_200)));
    assert!(world.dispatches.is_empty());
    let smaller = world.ask(Ask::new().at_most(90));
    world.complete(smaller, 90);
    assert_eq!(world.spent(1), 100);
    world.is_quiet();
}

#[test]
fn a_stream_holds_a_slice_and_asks_for_more_as_it_grows() {
    let mut world = limited(1_000);
    let caller = world.ask(Ask::stream());
    let held = |world: &World| {
        let request = world.dispatches[&caller].request;
        world.plane.ledger().held(crate::id::ReservationId(request.0)).unwrap().tokens.0
    };
    assert_eq!(held(&world), 10 + 64);
    world.first_token(caller);
    world.produce(caller, 16);
    assert_eq!(held(&world), 10 + 64, "more than half a slice is left");
    world.produce(caller, 32);
    assert_eq!(held(&world), 10 + 128);
    world.produce(caller, 200);
    assert_eq!(held(&world), 10 + 264, "what was missing, and a slice");
    world.complete(caller, 210);
    assert_eq!(world.charged(caller), 220);
    world.is_quiet();
}

#[test]
fn a_stream_never_holds_more_than_its_client_allows() {
    let mut world = limited(110);
    let caller = world.ask(Ask::stream().at_most(100));
    world.first_token(caller);
    for produced in [40, 80, 100] {
        world.produce(caller, produced);
    }
    assert!(world.runs(caller), "100 of 100: the limit is not met");
    world.complete(caller, 100);
    assert_eq!(world.finish(caller).0, Outcome::Completed);
    let facts = world.entries.iter().map(|entry| &entry.fact);
    let extended: u64 = facts
        .filter_map(|fact| match fact {
            Fact::Extend { amount, .. } => Some(amount.tokens.0),
            _ => None,
        })
        .sum();
    assert_eq!(extended, 36);
    world.is_quiet();
}

#[test]
fn a_stream_that_meets_its_limit_uses_the_last_token_and_is_then_cut() {
    let mut world = limited(100);
    let caller = world.ask(Ask::stream());
    world.first_token(caller);
    world.produce(caller, 40);
    world.produce(caller, 80);
    assert!(world.runs(caller), "what was left, 26, was granted");
    let effects = world.produce(caller, 90);
    let attempt = world.attempt(caller);
    assert_eq!(effects.last(), Some(&Effect::Cancel { caller, attempt }));
    assert!(world.runs(caller), "its last count is awaited");
    world.end(caller, AttemptEnd::Cancelled { produced: Tokens(93) });
    let (outcome, charged, _) = world.finish(caller);
    assert!(matches!(outcome, Outcome::QuotaSpent(spent) if spent.account == AccountId(1)));
    assert_eq!(charged.tokens, Tokens(103), "three were on their way");
    world.is_quiet();
}

#[test]
fn a_stream_that_has_used_what_is_left_is_cut_at_once() {
    let mut world = limited(100);
    let caller = world.ask(Ask::stream());
    world.first_token(caller);
    let effects = world.produce(caller, 95);
    let attempt = world.attempt(caller);
    assert_eq!(effects.last(), Some(&Effect::Cancel { caller, attempt }));
    let extended = world.entries.iter().any(|entry| matches!(entry.fact, Fact::Extend { .. }));
    assert!(
        !extended,
        "26 are left, 31 are used: to ask for them takes a shared store another round trip"
    );
    world.end(caller, AttemptEnd::Cancelled { produced: Tokens(95) });
    assert_eq!(world.finish(caller).1.tokens, Tokens(105));
    world.is_quiet();
}

#[test]
fn money_that_is_left_is_spent_to_the_last_token_as_well() {
    let mut world = limited(1_000);
    world.configure(|config| {
        let mut account = daily(1_000_000);
        account.limits.day.money = Some(MicroUsd(90));
        config.accounts.insert(AccountId(1), account);
    });
    let caller = world.ask(Ask::stream());
    world.first_token(caller);
    world.produce(caller, 40);
    world.produce(caller, 79);
    assert!(world.runs(caller));
    world.produce(caller, 80);
    world.end(caller, AttemptEnd::Cancelled { produced: Tokens(80) });
    let (outcome, charged, _) = world.finish(caller);
    assert!(matches!(outcome, Outcome::QuotaSpent(spent) if spent.unit == Unit::Money));
    assert_eq!(charged.money, MicroUsd(90));
}

#[test]
fn a_cut_stream_whose_last_count_never_comes_is_charged_its_last_mark() {
    let mut world = limited(74);
    let caller = world.ask(Ask::stream());
    world.first_token(caller);
    world.produce(caller, 70);
    assert!(world.runs(caller));
    world.later(seconds(1));
    assert!(matches!(world.finish(caller).0, Outcome::QuotaSpent(_)));
    assert_eq!(world.charged(caller), 80);
    world.is_quiet();
}

#[test]
fn a_stream_that_ends_whole_while_it_is_being_cut_was_whole() {
    let mut world = limited(74);
    let caller = world.ask(Ask::stream());
    world.first_token(caller);
    world.produce(caller, 64);
    world.complete(caller, 66);
    assert_eq!(world.finish(caller).0, Outcome::Completed);
    assert_eq!(world.charged(caller), 76);
}

#[test]
fn a_client_that_leaves_before_a_token_is_charged_nothing() {
    let mut world = limited(1_000);
    let caller = world.ask(Ask::stream());
    let attempt = world.attempt(caller);
    world.accept(caller);
    let effects = world.gone(caller);
    assert_eq!(effects[0], Effect::Cancel { caller, attempt });
    assert_eq!(world.refusal(caller), Refusal::ClientGone);
    assert_eq!(world.spent(1), 0);
    world.is_quiet();
}

#[test]
fn a_client_that_leaves_a_stream_is_charged_what_was_generated() {
    let mut world = limited(1_000);
    let caller = world.ask(Ask::stream());
    world.first_token(caller);
    world.produce(caller, 33);
    world.gone(caller);
    assert_eq!(world.finish(caller).0, Outcome::Cancelled);
    assert_eq!((world.charged(caller), world.spent(1)), (43, 43));
    world.is_quiet();
}

#[test]
fn a_shell_that_stops_an_attempt_before_a_token_has_sent_nothing() {
    let mut world = limited(1_000);
    let caller = world.ask(Ask::new());
    world.end(caller, AttemptEnd::Cancelled { produced: Tokens::ZERO });
    assert_eq!(world.refusal(caller), Refusal::ClientGone);
    assert_eq!(world.spent(1), 0);
}

#[test]
fn a_broken_stream_is_charged_its_prompt_and_what_arrived() {
    let mut world = limited(1_000);
    let caller = world.ask(Ask::stream());
    world.first_token(caller);
    world.produce(caller, 20);
    world.end(caller, failed(Failure::Truncated, 25));
    assert_eq!(world.finish(caller).0, Outcome::Broken(Failure::Truncated));
    assert_eq!(world.charged(caller), 35);
    world.is_quiet();
}

#[test]
fn what_was_refused_everywhere_is_refunded_whole() {
    let mut world = limited(1_000);
    let caller = world.ask(Ask::new());
    world.fail(caller, Failure::ClientError(400));
    assert!(matches!(world.refusal(caller), Refusal::Failed { attempts: 1, .. }));
    assert_eq!(world.spent(1), 0);
    assert!(matches!(world.entries.last().unwrap().fact, Fact::Refund { .. }));
    world.is_quiet();
}

#[test]
fn an_answer_that_comes_at_once_asks_for_no_more_than_was_granted() {
    let mut world = limited(1_000);
    let limited = world.ask(Ask::new().at_most(50));
    assert_eq!(world.dispatches[&limited].output_max, Some(Tokens(50)));
    let stream = world.ask(Ask::stream());
    assert_eq!(world.dispatches[&stream].output_max, None, "it is extended while it runs");
    let embedding = world.ask(Ask::new().at_most(0));
    assert_eq!(world.dispatches[&embedding].output_max, None);
    let unlimited = world.ask(Ask::new().tenant(2));
    assert_eq!(world.dispatches[&unlimited].output_max, None);
}

#[test]
fn a_client_that_allows_itself_the_moon_is_not_told_that_a_store_is_away() {
    let mut world = World::of(&["a"]);
    let caller = world.ask(Ask::new().at_most(u64::MAX));
    assert!(world.runs(caller));
    let usage = Usage { prompt: Tokens(u64::MAX), completion: Tokens(u64::MAX) };
    world.end(caller, AttemptEnd::Completed { usage, estimated: false });
    let all = Amount { tokens: Tokens(MAX_AMOUNT), money: MicroUsd(MAX_AMOUNT) };
    assert_eq!(world.finish(caller).1, all, "charged as the ledger charged it");
    world.is_quiet();
}

#[test]
fn a_stream_whose_store_is_silent_runs_one_slice_over_and_no_further() {
    let mut world = World::with(|config| {
        config.quota.store = StoreMode::Shared;
        config.quota.allotment = Amount::ZERO;
    });
    world.members(&["a"]);
    let caller = world.ask(Ask::stream());
    let asked = world.effects.iter().find_map(|effect| match effect {
        Effect::Reserve(op) => Some(op.clone()),
        _ => None,
    });
    let mut store = Ledger::new(LedgerConfig::default());
    let at = At { now: world.now, wall: world.wall() };
    let answer = store.perform(at, RunId(1), &asked.unwrap(), &mut Vec::new());
    world.input(Input::StoreAnswered(answer));
    world.first_token(caller);
    for produced in (0..=127).step_by(16) {
        world.produce(caller, produced);
        world.later(seconds(2));
    }
    assert!(world.runs(caller) && world.plane.ledger().ending() == 0);
    world.produce(caller, 128);
    world.later(seconds(1));
    assert!(matches!(world.finish(caller).0, Outcome::QuotaUnavailable { .. }));
    assert_eq!(world.charged(caller), 138, "covered 64, overrun by a slice");
}

#[test]
fn an_ask_that_cannot_reach_the_store_is_given_up_at_once_and_its_late_answer_is_given_back() {
    let mut world = World::with(|config| {
        config.quota.store = StoreMode::Shared;
        config.quota.allotment = Amount::ZERO;
    });
    world.members(&["a"]);
    let caller = world.ask(Ask::new());
    let asks = |effects: &[Effect]| {
        let ops = effects.iter().filter_map(|effect| match effect {
            Effect::Reserve(op) => Some(op.clone()),
            _ => None,
        });
        ops.collect::<Vec<_>>()
    };
    let reserve = asks(&world.effects).remove(0);
    world.input(Input::StoreFailed { op: OpId(reserve.op.0 + 7) });
    assert!(world.runs(caller), "another ask's failure is not this one's");
    let mut asked = asks(&world.input(Input::StoreFailed { op: reserve.op }));
    let Refusal::QuotaUnavailable { .. } = world.refusal(caller) else { panic!() };
    world.input(Input::StoreFailed { op: reserve.op });
    // It was performed after all: what it holds is given back, not lost.
    let mut store = Ledger::new(LedgerConfig::default());
    asked.insert(0, reserve);
    for _ in 0..8 {
        for op in core::mem::take(&mut asked) {
            let at = At { now: world.now, wall: world.wall() };
            let answer = store.perform(at, RunId(1), &op, &mut Vec::new());
            asked.extend(asks(&world.input(Input::StoreAnswered(answer))));
        }
        world.later(seconds(1));
        asked.extend(asks(&world.effects));
    }
    assert_eq!(store.live().count(), 0, "something is still held for nobody");
}
