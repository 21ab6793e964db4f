//! Stories of requests: what becomes of them, and what they cost.

use super::Mutant::*;
use super::Story;
use crate::Machine;
use crate::id::{AccountId, CallerToken};
use crate::outcome::Failure;
use crate::plane::tests::world::{Ask, World, alike, daily, failed, seconds};
use crate::plane::{Config, Effect, Input, Outcome};
use crate::quota::{Entry, Fact};
use crate::units::{MicroUsd, Price, Tokens};

pub(super) const STORIES: &[Story] = &[
    (RefundLost, a_client_that_leaves_leaves_nothing_held),
    (CrashLeaks, a_crash_leaves_nothing_held),
    (EstimateCharged, what_was_used_is_charged),
    (PriceNotPinned, a_reload_changes_no_running_bill),
    (DisconnectBillsNothing, a_disconnect_is_charged_as_delivered),
    (DisconnectBillsEverything, a_disconnect_is_charged_as_delivered),
    (WholeMaximumHeld, a_large_maximum_locks_nothing_up),
    (WrongAccount, who_asks_pays),
    (PersistDropped, a_settlement_is_made_durable),
    (TwoOutcomes, a_client_that_leaves_is_told_once),
    (TimerLost, a_backoff_ends),
    (BusySpins, a_backoff_after_429_ends),
    (DeadlineNotPassed, an_attempt_has_its_requests_deadline),
    (NoGapTimeout, a_stream_may_not_be_silent_for_long),
    (CancelNotSent, a_disconnect_reaches_the_replica),
    (RetryAfterClientLeft, nothing_is_tried_for_a_client_that_left),
    (SecondBeginning, a_broken_stream_is_not_begun_anew),
    (ResumesAnywhere, another_model_continues_nothing),
    (ResumesFromTheStart, a_stream_goes_on_where_it_broke),
    (BrokenEndsClean, a_broken_stream_is_told_as_broken),
    (RetryLayersMultiply, two_attempts_are_two),
    (BudgetUnpaid, retries_are_paid_for),
    (LoserNotStopped, who_answers_second_is_stopped),
    (HedgesUnbounded, hedges_are_a_share_of_the_requests),
    (LoserCharged, two_attempts_are_one_bill),
];

/// A pool of one, and a request there that has failed once and waits to be tried again.
fn in_backoff(failure: Failure) -> (World, CallerToken) {
    let mut world = World::of(&["a"]);
    let caller = world.ask(Ask::new());
    world.fail(caller, failure);
    assert!(world.runs(caller) && world.dispatches[&caller].number == 1);
    (world, caller)
}

/// A stream that has delivered 20 tokens for a prompt of 10.
fn streaming(names: &[&str]) -> (World, CallerToken) {
    let mut world = World::of(names);
    let caller = world.ask(Ask::stream());
    world.first_token(caller);
    world.produce(caller, 20);
    (world, caller)
}

fn a_client_that_leaves_leaves_nothing_held() -> bool {
    let mut world = World::of(&["a"]);
    let caller = world.ask(Ask::new());
    world.gone(caller);
    world.plane.view().reservations == 0
}

fn a_crash_leaves_nothing_held() -> bool {
    let mut world = World::of(&["a"]);
    world.ask(Ask::new());
    world.restart();
    world.plane.view().reservations == 0
}

fn what_was_used_is_charged() -> bool {
    let mut world = World::of(&["a"]);
    let caller = world.ask(Ask::new());
    world.complete(caller, 5);
    world.charged(caller) == 15
}

fn a_reload_changes_no_running_bill() -> bool {
    let mut world = World::of(&["a"]);
    let caller = world.ask(Ask::new());
    let price = Price { input: MicroUsd(9_000_000), output: MicroUsd(9_000_000) };
    world.configure(|config| config.models.get_mut("m").unwrap().price = price);
    world.complete(caller, 40);
    world.finish(caller).1.money == MicroUsd(50)
}

fn a_disconnect_is_charged_as_delivered() -> bool {
    let (mut world, caller) = streaming(&["a"]);
    world.gone(caller);
    let end = world.ends.get(&caller);
    matches!(end, Some(Effect::Finish { charged, .. }) if charged.tokens == Tokens(30))
}

fn a_large_maximum_locks_nothing_up() -> bool {
    let mut world = World::of(&["a"]);
    world.configure(|config| drop(config.accounts.insert(AccountId(1), daily(500))));
    let caller = world.ask(Ask::stream().at_most(5_000));
    world.runs(caller)
}

fn who_asks_pays() -> bool {
    let mut world = World::of(&["a"]);
    world.configure(|config| drop(config.accounts.insert(AccountId(1), daily(500))));
    let caller = world.ask(Ask::new().tenant(2));
    world.complete(caller, 5);
    (world.spent(1), world.spent(2)) == (0, 15)
}

fn a_settlement_is_made_durable() -> bool {
    let mut world = World::of(&["a"]);
    let caller = world.ask(Ask::new());
    world.complete(caller, 5);
    let settled = |entry: &Entry| matches!(entry.fact, Fact::Settle { .. });
    world.entries.iter().any(settled)
}

fn a_client_that_leaves_is_told_once() -> bool {
    let mut world = World::of(&["a"]);
    let caller = world.ask(Ask::new());
    // Not by way of the world, which would itself object.
    world.plane.handle(world.now, Input::ClientGone { caller });
    let effects = core::iter::from_fn(|| world.plane.poll_effect());
    let ends = |effect: &Effect| matches!(effect, Effect::Reject { .. } | Effect::Finish { .. });
    effects.filter(ends).count() == 1
}

fn a_backoff_ends() -> bool {
    let (mut world, caller) = in_backoff(Failure::Status(500));
    world.later(seconds(5));
    world.dispatches[&caller].number == 2
}

fn a_backoff_after_429_ends() -> bool {
    let (mut world, caller) = in_backoff(Failure::Backpressure(429));
    for _ in 0..50 {
        let Some((due, _)) = world.plane.poll_timeout() else { break };
        if due > world.now + seconds(5) {
            break;
        }
        world.now = world.now.max(due);
        world.input(Input::Timeout);
    }
    world.dispatches[&caller].number == 2
}

fn an_attempt_has_its_requests_deadline() -> bool {
    let mut world = World::of(&["a"]);
    let caller = world.ask(Ask::new().patience(seconds(3)));
    world.dispatches[&caller].deadline == world.now + seconds(3)
}

fn a_stream_may_not_be_silent_for_long() -> bool {
    let (world, caller) = streaming(&["a"]);
    world.dispatches[&caller].gap_max == world.config.timeouts.between_tokens
}

fn a_disconnect_reaches_the_replica() -> bool {
    let (mut world, caller) = streaming(&["a"]);
    let effects = world.gone(caller);
    effects.iter().any(|effect| matches!(effect, Effect::Cancel { .. }))
}

fn nothing_is_tried_for_a_client_that_left() -> bool {
    let (mut world, caller) = in_backoff(Failure::Status(500));
    world.gone(caller);
    world.later(seconds(5));
    world.dispatches[&caller].number == 1
}

fn a_broken_stream_is_not_begun_anew() -> bool {
    let (mut world, caller) = streaming(&["a", "b"]);
    world.fail(caller, Failure::Truncated);
    world.dispatches[&caller].number == 1
}

/// A stream of `a` or `b` that broke off after five tokens, where these have such marks.
/// Told: who began it, who has it now, and from where on.
fn continued(a: u64, b: u64) -> (String, String, Option<Tokens>) {
    let mut world = World::new();
    world.listed(vec![alike("a", a), alike("b", b)]);
    let caller = world.ask(Ask::resumable());
    let first = world.at(caller).to_owned();
    world.first_token(caller);
    world.end(caller, failed(Failure::Truncated, 5));
    world.later(seconds(3));
    (first, world.at(caller).to_owned(), world.dispatches[&caller].resume)
}

fn another_model_continues_nothing() -> bool {
    let (first, now, _) = continued(1, 2);
    first == now
}

fn a_stream_goes_on_where_it_broke() -> bool {
    let (first, now, resume) = continued(1, 1);
    first != now && resume == Some(Tokens(5))
}

fn a_broken_stream_is_told_as_broken() -> bool {
    let (mut world, caller) = streaming(&["a"]);
    world.fail(caller, Failure::Truncated);
    world.finish(caller).0 == Outcome::Broken(Failure::Truncated)
}

/// How many attempts are made when all fail.
fn attempts(failure: Failure, change: impl FnOnce(&mut Config)) -> u32 {
    let mut world = World::with(change);
    world.members(&["a", "b", "c", "d"]);
    let caller = world.ask(Ask::new());
    for _ in 0..16 {
        if !world.runs(caller) {
            break;
        }
        world.fail(caller, failure);
        world.later(seconds(3));
    }
    world.dispatches[&caller].number
}

fn two_attempts_are_two() -> bool {
    attempts(Failure::Connect, |config| config.attempt.attempts_max = 2) == 2
}

fn retries_are_paid_for() -> bool {
    let one = |config: &mut Config| {
        let attempt = &mut config.attempt;
        (attempt.budget_ratio_percent, attempt.budget_floor_per_second) = (0, 0);
        attempt.budget_burst = 1;
    };
    attempts(Failure::Status(500), one) == 2
}

fn who_answers_second_is_stopped() -> bool {
    let (mut world, caller) = hedged();
    let effects = world.input(Input::FirstToken { attempt: world.attempt(caller) });
    effects.iter().any(|effect| matches!(effect, Effect::Cancel { .. }))
}

fn hedges_are_a_share_of_the_requests() -> bool {
    let (mut world, _) = hedged();
    let second = world.ask(Ask::stream());
    world.later(seconds(1));
    world.dispatches[&second].number == 1
}

fn two_attempts_are_one_bill() -> bool {
    let (mut world, caller) = hedged();
    world.complete(caller, 5);
    world.charged(caller) == 15
}

/// A request of which two attempts run.
fn hedged() -> (World, CallerToken) {
    let mut world = World::of(&["a", "b", "c"]);
    world.configure(|config| config.attempt.hedge_after = seconds(1));
    let caller = world.ask(Ask::stream());
    world.later(seconds(1));
    (world, caller)
}
