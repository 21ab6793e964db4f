//! Streams that outlive their replica.

use super::world::{Ask, World, alike, daily, failed, seconds, spec};
use crate::id::{AccountId, CallerToken};
use crate::outcome::{AttemptEnd, Failure};
use crate::plane::Outcome;
use crate::registry::EndpointSpec;
use crate::units::{Tokens, Usage};

/// A stream that has brought so many tokens when its endpoint dies; and where it ran.
fn broken(world: &mut World, ask: Ask, produced: u64) -> (CallerToken, String) {
    let caller = world.ask(ask);
    let first = world.at(caller).to_owned();
    world.first_token(caller);
    world.end(caller, failed(Failure::Truncated, produced));
    (caller, first)
}

fn of(specs: &[EndpointSpec]) -> World {
    let mut world = World::new();
    world.listed(specs.to_vec());
    world
}

#[test]
fn a_stream_goes_on_elsewhere_from_where_it_broke_and_is_one_bill() {
    let mut world = of(&[alike("a", 7), alike("b", 7)]);
    let (caller, first) = broken(&mut world, Ask::resumable(), 20);
    assert!(world.runs(caller));
    assert_ne!(world.at(caller), first);
    let order = &world.dispatches[&caller];
    assert_eq!((order.number, order.resume), (2, Some(Tokens(20))));
    world.first_token(caller);
    world.produce(caller, 30);
    // Once more, and this time it is the last there is.
    world.end(caller, failed(Failure::ConnectionLost, 33));
    world.later(seconds(3));
    assert_eq!(world.dispatches[&caller].resume, Some(Tokens(33)));
    world.first_token(caller);
    let usage = Usage { prompt: Tokens(10), completion: Tokens(40) };
    world.end(caller, AttemptEnd::Completed { usage, estimated: false });
    let (outcome, charged, attempts) = world.finish(caller);
    assert_eq!((outcome, charged.tokens, attempts), (Outcome::Completed, Tokens(50), 3));
    world.is_quiet();
}

#[test]
fn only_the_same_model_continues_a_stream() {
    for other in [spec("b"), alike("b", 8)] {
        let mut world = of(&[alike("a", 7), other]);
        let (caller, first) = loop {
            let (caller, first) = broken(&mut world, Ask::resumable(), 5);
            if first == "a" {
                break (caller, first);
            }
            // Whatever became of this one: b alone of its kind may try itself again.
            world.gone(caller);
        };
        world.later(seconds(3));
        // Nobody else has the mark: either its own endpoint tries again, or the client is told.
        if world.runs(caller) {
            assert_eq!(world.at(caller), first);
            world.end(caller, failed(Failure::Truncated, 5));
            world.later(seconds(3));
        }
    }
}

#[test]
fn what_cannot_be_continued_is_broken_as_ever() {
    let mut world = of(&[alike("a", 7), alike("b", 7)]);
    let (caller, _) = broken(&mut world, Ask::stream(), 5);
    assert_eq!(world.finish(caller).0, Outcome::Broken(Failure::Truncated));
    assert_eq!(world.charged(caller), 15);
    let mut world = of(&[spec("a"), spec("b")]);
    let (caller, _) = broken(&mut world, Ask::resumable(), 5);
    assert_eq!(world.finish(caller).0, Outcome::Broken(Failure::Truncated));
    world.is_quiet();
}

#[test]
fn nobody_to_go_on_with_is_told_as_broken_and_charged_as_delivered() {
    let mut world = of(&[alike("a", 7)]);
    world.configure(|config| config.attempt.attempts_max = 1);
    let (caller, _) = broken(&mut world, Ask::resumable(), 12);
    let (outcome, charged, attempts) = world.finish(caller);
    assert_eq!((outcome, attempts), (Outcome::Broken(Failure::Truncated), 1));
    assert_eq!(charged.tokens, Tokens(22));
    world.is_quiet();
}

#[test]
fn a_client_that_leaves_between_two_endpoints_is_charged_what_it_got() {
    let mut world = of(&[alike("a", 7)]);
    let (caller, _) = broken(&mut world, Ask::resumable(), 12);
    assert_eq!(world.dispatches[&caller].number, 1, "its own endpoint is not tried again at once");
    world.gone(caller);
    assert_eq!(world.charged(caller), 22);
    world.is_quiet();
}

#[test]
fn a_stream_that_goes_on_meets_its_limit_all_the_same() {
    let mut world = of(&[alike("a", 7), alike("b", 7)]);
    world.configure(|config| drop(config.accounts.insert(AccountId(1), daily(100))));
    let (caller, _) = broken(&mut world, Ask::resumable(), 40);
    world.first_token(caller);
    world.produce(caller, 95);
    world.end(caller, AttemptEnd::Cancelled { produced: Tokens(95) });
    assert!(matches!(world.finish(caller).0, Outcome::QuotaSpent(_)));
    assert_eq!(world.charged(caller), 105);
    world.is_quiet();
}

#[test]
fn its_deadline_passes_while_nobody_answers() {
    let mut world = of(&[alike("a", 7)]);
    let (caller, _) = broken(&mut world, Ask::resumable().patience(seconds(1)), 12);
    world.later(seconds(2));
    if world.runs(caller) {
        world.end(caller, failed(Failure::Timeout(crate::outcome::Stage::Deadline), 12));
    }
    assert!(matches!(world.finish(caller).0, Outcome::Broken(_)));
    assert_eq!(world.charged(caller), 22);
    world.is_quiet();
}
