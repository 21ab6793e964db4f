//! A second attempt beside one that is silent: one answer, one bill, one home; and only so many.

use alloc::vec::Vec;
use core::time::Duration;

use super::world::{Ask, World, alike, seconds, spec};
use crate::attempt::NoHedge;
use crate::breaker::Phase;
use crate::id::{AttemptId, CallerToken, SessionKey};
use crate::outcome::{AttemptEnd, Failure, Stage};
use crate::plane::{Dispatch, Effect, Input, Observation, Outcome, Race, Refusal};
use crate::units::{Tokens, Usage};

const AFTER: Duration = Duration::from_millis(800);

#[test]
fn the_first_token_of_either_stops_the_other_in_that_step() {
    for second_wins in [false, true] {
        let (mut world, caller, first, second) = hedged(Ask::stream());
        let (winner, loser) = if second_wins { (&second, &first) } else { (&first, &second) };
        let attempt = winner.attempt;
        let effects = world.input(Input::FirstToken { attempt });
        assert_eq!(effects, [Effect::Cancel { caller, attempt: loser.attempt }]);
        assert_eq!(world.view(&winner.endpoint_name).in_flight, 1);
        assert_eq!(world.view(&loser.endpoint_name).in_flight, 0);
        // What the other reports late names nobody.
        let late = AttemptEnd::Cancelled { produced: Tokens(40) };
        assert_eq!(world.input(Input::AttemptEnded { attempt: loser.attempt, end: late }), []);
        world.input(Input::Progress { attempt: loser.attempt, produced: Tokens(90) });
        completed(&mut world, attempt, 7);
        assert_eq!(world.finish(caller), (Outcome::Completed, world.finish(caller).1, 2));
        assert_eq!(world.charged(caller), 17, "one prompt, and the winner's tokens");
        let over = loser.endpoint;
        let race = if second_wins { Race::Won { over } } else { Race::Lost { over } };
        assert_eq!(races(&world), [race]);
        world.is_quiet();
    }
}

#[test]
fn a_whole_answer_wins_as_a_first_token_does() {
    let (mut world, caller, first, second) = hedged(Ask::new());
    let effects = completed(&mut world, second.attempt, 5);
    let cancel = Effect::Cancel { caller, attempt: first.attempt };
    assert!(effects.contains(&cancel), "{effects:?}");
    assert_eq!(world.charged(caller), 15);
    world.is_quiet();
}

#[test]
fn a_loser_says_nothing_about_its_endpoint() {
    let mut world = hedging(&["a", "b"]);
    world.configure(|config| config.attempt.hedge_share_percent = 100);
    for _ in 0..20 {
        let caller = world.ask(Ask::stream());
        let first = world.dispatches[&caller].clone();
        world.later(AFTER);
        world.first_token(caller);
        let end = AttemptEnd::Failed {
            failure: Failure::ConnectionLost,
            produced: Tokens::ZERO,
            retry_after: None,
        };
        world.input(Input::AttemptEnded { attempt: first.attempt, end });
        world.complete(caller, 1);
        assert_eq!(world.view(&first.endpoint_name).breaker.consecutive_failures, 0);
    }
    world.is_quiet();
}

#[test]
fn who_never_answers_is_ejected_for_what_is_not_hedged_whatever_it_lost_in_between() {
    let mut world = hedging(&["a", "b"]);
    world.configure(|config| config.attempt.hedge_share_percent = 20);
    let (mut lost, mut timed_out) = (0, 0);
    while world.view("a").breaker.phase == Phase::Closed {
        assert!(lost + timed_out < 100, "{lost} lost, {timed_out} in vain, and still asked");
        let caller = world.ask(Ask::stream());
        if world.at(caller) == "a" {
            world.later(AFTER);
            if world.at(caller) == "a" {
                timed_out += 1;
                world.fail(caller, Failure::Timeout(Stage::FirstToken));
            } else {
                lost += 1;
            }
        }
        if world.runs(caller) {
            world.first_token(caller);
            world.complete(caller, 1);
        }
    }
    assert!(timed_out == 5 && lost > 0, "{lost} lost, {timed_out} in vain");
    world.is_quiet();
}

#[test]
fn where_one_of_two_fails_the_other_goes_on_and_nothing_is_retried() {
    for first_fails in [false, true] {
        let (mut world, caller, first, second) = hedged(Ask::stream());
        let budget = world.plane.retry.budget(world.now);
        let (fails, stays) = if first_fails { (&first, &second) } else { (&second, &first) };
        let effects = failing(&mut world, fails.attempt);
        assert_eq!(effects, [], "no retry, no word to the client");
        assert_eq!(world.plane.retry.budget(world.now), budget);
        assert_eq!(world.view(&fails.endpoint_name).breaker.consecutive_failures, 1);
        world.input(Input::FirstToken { attempt: stays.attempt });
        completed(&mut world, stays.attempt, 3);
        assert_eq!(world.charged(caller), 13);
        assert_eq!(races(&world), [Race::Alone { without: fails.endpoint }]);
        world.is_quiet();
    }
}

#[test]
fn a_refusal_that_anybody_would_repeat_is_not_waited_for_twice() {
    let (mut world, caller, first, second) = hedged(Ask::stream());
    let end = super::world::failed(Failure::ClientError(400), 0);
    let effects = world.input(Input::AttemptEnded { attempt: second.attempt, end });
    assert!(effects.contains(&Effect::Cancel { caller, attempt: first.attempt }), "{effects:?}");
    let failure = Failure::ClientError(400);
    assert_eq!(world.refusal(caller), Refusal::Failed { failure, attempts: 2, retry_after: None });
    world.is_quiet();
}

#[test]
fn where_both_fail_the_request_is_tried_again_once_and_not_hedged_again() {
    let mut world = hedging(&["a", "b", "c", "d"]);
    world.configure(|config| config.attempt.attempts_max = 4);
    let caller = world.ask(Ask::stream());
    let first = world.attempt(caller);
    world.later(AFTER);
    let second = world.attempt(caller);
    failing(&mut world, first);
    failing(&mut world, second);
    world.later(seconds(1));
    assert_eq!(world.dispatches[&caller].number, 3);
    world.later(seconds(5));
    assert_eq!(world.dispatches[&caller].number, 3, "never two hedges of a request");
    world.complete(caller, 1);
    world.is_quiet();
}

#[test]
fn a_client_that_leaves_stops_both_and_pays_nothing() {
    let (mut world, caller, first, second) = hedged(Ask::stream());
    let effects = world.gone(caller);
    for attempt in [first.attempt, second.attempt] {
        assert!(effects.contains(&Effect::Cancel { caller, attempt }), "{effects:?}");
    }
    assert_eq!(world.refusal(caller), Refusal::ClientGone);
    assert_eq!(races(&world), [Race::Stopped]);
    world.is_quiet();
}

#[test]
fn a_new_life_settles_a_request_of_two_attempts_as_one() {
    let (mut world, _, _, _) = hedged(Ask::stream());
    world.restart();
    world.is_quiet();
}

#[test]
fn both_are_given_up_behind_the_one_deadline() {
    let (mut world, caller, first, second) = hedged(Ask::stream().patience(seconds(10)));
    assert_eq!(first.deadline, second.deadline);
    world.later(seconds(20));
    assert!(matches!(world.refusal(caller), Refusal::Failed { attempts: 2, .. }));
    world.is_quiet();
}

#[test]
fn who_lost_goes_on_where_the_winner_breaks_off() {
    for second_wins in [false, true] {
        let mut world = hedging(&[]);
        world.listed(["a", "b"].map(|name| alike(name, 7)).into());
        let caller = world.ask(Ask::resumable());
        let first = world.dispatches[&caller].clone();
        world.later(AFTER);
        let second = world.dispatches[&caller].clone();
        let (winner, loser) = if second_wins { (second, first) } else { (first, second) };
        world.input(Input::FirstToken { attempt: winner.attempt });
        let end = super::world::failed(Failure::Truncated, 20);
        world.input(Input::AttemptEnded { attempt: winner.attempt, end });
        world.later(seconds(1));
        let third = world.dispatches[&caller].clone();
        assert_eq!((third.number, third.resume), (3, Some(Tokens(20))));
        assert_eq!(third.endpoint, loser.endpoint, "not where it broke");
        world.first_token(caller);
        completed(&mut world, third.attempt, 30);
        assert_eq!(world.charged(caller), 40);
        world.is_quiet();
    }
}

#[test]
fn a_timer_that_fires_behind_the_deadline_hedges_nothing_and_gives_nobody_up() {
    let mut world = hedging(&["a", "b"]);
    let caller = world.ask(Ask::stream().patience(seconds(2)));
    // The process slept.
    world.now = world.now + seconds(3);
    world.input(Input::Timeout);
    assert!(world.runs(caller), "the shell may still report");
    assert_eq!(world.dispatches[&caller].number, 1);
    assert_eq!(refusals(&world), [NoHedge::DeadlineTooNear]);
    world.later(seconds(5));
    assert!(!world.runs(caller));
    world.is_quiet();
}

#[test]
fn a_session_is_bound_to_the_winner_and_to_nobody_before() {
    let (mut world, caller, first, second) = hedged(Ask::stream().session(9));
    world.input(Input::AttemptAccepted { attempt: first.attempt });
    world.input(Input::AttemptAccepted { attempt: second.attempt });
    assert_eq!(world.plane.binding(SessionKey(9)), None, "accepted is not yet chosen");
    world.input(Input::FirstToken { attempt: second.attempt });
    let home = world.plane.binding(SessionKey(9)).map(|binding| binding.endpoint);
    assert_eq!(home, Some(second.endpoint));
    completed(&mut world, second.attempt, 1);
    assert!(!world.runs(caller));

    // Accepted alone, while a second attempt may yet come: the same.
    let mut world = hedging(&["a", "b"]);
    let caller = world.ask(Ask::new().session(8));
    world.accept(caller);
    assert_eq!(world.plane.binding(SessionKey(8)), None);
    world.complete(caller, 1);
    assert!(world.plane.binding(SessionKey(8)).is_some());
}

#[test]
fn off_by_default_and_off_for_a_model_that_says_so() {
    let mut world = World::of(&["a", "b"]);
    let caller = world.ask(Ask::stream());
    world.later(seconds(60));
    assert_eq!(world.dispatches[&caller].number, 1);

    let mut world = hedging(&["a", "b"]);
    let off = Some(Duration::ZERO);
    world.configure(|config| config.models.get_mut("m").unwrap().hedge_after = off);
    let caller = world.ask(Ask::stream());
    world.later(seconds(60));
    assert_eq!(world.dispatches[&caller].number, 1);

    let mut world = World::of(&["a", "b"]);
    let own = Some(seconds(3));
    world.configure(|config| config.models.get_mut("m").unwrap().hedge_after = own);
    let caller = world.ask(Ask::stream());
    world.later(seconds(2));
    assert_eq!(world.dispatches[&caller].number, 1);
    world.later(seconds(1));
    assert_eq!(world.dispatches[&caller].number, 2);
}

#[test]
fn a_turn_that_may_wait_for_another_process_is_not_hedged_and_earns_no_hedge() {
    let mut world = hedging(&["a", "b"]);
    world.configure(|config| config.attempt.hedge_share_percent = 100);
    let (turn, next) = (world.ask(Ask::stream().stored(9)), world.ask(Ask::stream().stored(9)));
    world.later(seconds(20));
    assert_eq!(world.dispatches[&turn].number, 1);
    world.complete(turn, 1);
    world.later(seconds(20));
    assert_eq!(world.dispatches[&next].number, 1);
    world.complete(next, 1);
    assert_eq!(refusals(&world), [], "none was due");

    // One is there from the start, and these earned no other.
    world.configure(|config| config.attempt.hedge_share_percent = 0);
    let callers = [world.ask(Ask::stream()), world.ask(Ask::stream())];
    world.later(AFTER);
    assert_eq!(callers.map(|caller| world.dispatches[&caller].number), [2, 1]);
    assert_eq!(refusals(&world), [NoHedge::ShareSpent]);
    for caller in callers {
        world.complete(caller, 1);
    }
    world.is_quiet();
}

#[test]
fn what_has_begun_to_answer_is_not_hedged() {
    let mut world = hedging(&["a", "b"]);
    let caller = world.ask(Ask::stream());
    world.later(AFTER - Duration::from_millis(1));
    world.first_token(caller);
    world.later(seconds(10));
    assert_eq!(world.dispatches[&caller].number, 1);
    world.complete(caller, 1);
    world.is_quiet();
}

#[test]
fn hedges_are_a_share_of_the_requests_and_the_retry_budget_pays_for_each() {
    let mut world = hedging(&["a", "b"]);
    let mut hedges = 0;
    for _ in 0..400 {
        let caller = world.ask(Ask::stream());
        world.later(AFTER);
        hedges += world.dispatches[&caller].number - 1;
        world.complete(caller, 1);
    }
    assert_eq!(hedges, 1 + 400 / 20, "one in twenty, and the one from the start");
    assert!(refusals(&world).contains(&NoHedge::ShareSpent));

    let mut world = hedging(&["a", "b"]);
    world.configure(|config| {
        config.attempt.budget_burst = 0;
        config.attempt.hedge_share_percent = 100;
    });
    let caller = world.ask(Ask::stream());
    world.later(seconds(5));
    assert_eq!(world.dispatches[&caller].number, 1);
    assert_eq!(refusals(&world), [NoHedge::BudgetSpent]);

    let (world, ..) = hedged(Ask::stream());
    assert_eq!(world.plane.retry.budget(crate::Instant::ZERO), 99);
}

#[test]
fn nobody_is_asked_twice_or_though_it_is_full_or_beyond_the_attempts_for_the_sake_of_a_hedge() {
    let mut alone = hedging(&["a"]);
    let caller = alone.ask(Ask::stream());
    alone.later(seconds(5));
    assert_eq!(alone.dispatches[&caller].number, 1);
    assert_eq!(refusals(&alone), [NoHedge::Nobody]);

    let mut full = hedging(&[]);
    full.listed(
        ["a", "b"]
            .map(|name| crate::registry::EndpointSpec { in_flight_max: 1, ..spec(name) })
            .into(),
    );
    let (one, two) = (full.ask(Ask::stream()), full.ask(Ask::stream()));
    full.later(seconds(5));
    assert_eq!((full.dispatches[&one].number, full.dispatches[&two].number), (1, 1));

    let mut spent = hedging(&["a", "b"]);
    spent.configure(|config| config.attempt.attempts_max = 1);
    let caller = spent.ask(Ask::stream());
    spent.later(seconds(5));
    assert_eq!(spent.dispatches[&caller].number, 1);
    assert_eq!(refusals(&spent), [NoHedge::AttemptsSpent]);
}

#[test]
fn an_explanation_tells_both_attempts_and_which_answered() {
    let (mut world, caller, first, second) = hedged(Ask::stream());
    world.input(Input::FirstToken { attempt: second.attempt });
    completed(&mut world, second.attempt, 1);
    let told = world.explain(caller);
    assert!(told.contains("no token after 800 ms: a second attempt beside the first"), "{told}");
    let over =
        format!("the second attempt answers; the first, on {}, is stopped", first.endpoint_name);
    assert!(told.contains(&over), "{told}");
}

/// Hedged after 800 ms.
fn hedging(names: &[&str]) -> World {
    let mut world = World::with(|config| config.attempt.hedge_after = AFTER);
    world.members(names);
    world
}

/// A request of which two attempts run.
fn hedged(ask: Ask) -> (World, CallerToken, Dispatch, Dispatch) {
    let mut world = hedging(&["a", "b", "c"]);
    let caller = world.ask(ask);
    let first = world.dispatches[&caller].clone();
    world.later(AFTER);
    let second = world.dispatches[&caller].clone();
    assert!(second.hedge && !first.hedge && second.number == 2, "{second:?}");
    assert_ne!(first.endpoint, second.endpoint);
    (world, caller, first, second)
}

fn completed(world: &mut World, attempt: AttemptId, completion: u64) -> Vec<Effect> {
    let usage = Usage { prompt: Tokens(10), completion: Tokens(completion) };
    let end = AttemptEnd::Completed { usage, estimated: false };
    world.input(Input::AttemptEnded { attempt, end })
}

fn failing(world: &mut World, attempt: AttemptId) -> Vec<Effect> {
    let end = super::world::failed(Failure::Status(500), 0);
    world.input(Input::AttemptEnded { attempt, end })
}

fn races(world: &World) -> Vec<Race> {
    let raced = world.observations.iter().filter_map(|observation| match observation {
        Observation::Hedged { race: Race::Begun { .. } | Race::NotBegun { .. }, .. } => None,
        Observation::Hedged { race, .. } => Some(*race),
        _ => None,
    });
    raced.collect()
}

fn refusals(world: &World) -> Vec<NoHedge> {
    let refused = world.observations.iter().filter_map(|observation| match observation {
        Observation::Hedged { race: Race::NotBegun { why }, .. } => Some(*why),
        _ => None,
    });
    refused.collect()
}
