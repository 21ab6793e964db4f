#![allow(clippy::unwrap_used, reason = "tests may panic")]

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::{Divergence, Recorder, Replay, RestoreError, decode};
use crate::Machine;
use crate::id::SessionKey;
use crate::outcome::Failure;
use crate::plane::tests::chaos::Chaos;
use crate::plane::tests::world::{Ask, World, alike, failed, spec};
use crate::plane::{ControlPlane, Durable, Effect, Input};
use crate::registry::EndpointSpec;

/// A recorded run of `steps` under chaos.
struct Run {
    first: ControlPlane,
    records: Vec<Vec<u8>>,
    plane: ControlPlane,
    bindings: BTreeSet<SessionKey>,
}

fn run(seed: u64, steps: usize) -> Run {
    let mut chaos = Chaos::new(seed);
    let first = ControlPlane::with_config(seed, chaos.config.clone());
    let (mut plane, mut recorder) = (first.clone(), Recorder::default());
    let (mut records, mut bindings) = (Vec::new(), BTreeSet::new());
    for _ in 0..steps {
        let (now, input) = chaos.next();
        recorder.begin(now, &input);
        plane.handle(now, input);
        let effects: Vec<_> = core::iter::from_fn(|| plane.poll_effect()).collect();
        while plane.poll_observation().is_some() {}
        chaos.learn(&effects);
        for effect in &effects {
            if let Effect::Persist(Durable::Binding { session, .. }) = effect {
                bindings.insert(*session);
            }
        }
        records.push(recorder.finish(&effects).to_vec());
    }
    Run { first, records, plane, bindings }
}

fn replay(replay: &mut Replay, records: &[Vec<u8>]) {
    for (position, record) in records.iter().enumerate() {
        assert!(replay.apply(record).is_ok(), "record {position} diverges");
        while replay.plane_mut().poll_observation().is_some() {}
    }
}

#[test]
fn a_run_of_thousands_of_steps_replays_to_the_same_effects_and_the_same_state() {
    let run = run(1, 5_000);
    let mut again = Replay::from(run.first);
    replay(&mut again, &run.records);
    assert_eq!(again.snapshot(), Replay::from(run.plane).snapshot());
}

#[test]
fn a_snapshot_taken_anywhere_has_the_same_future() {
    let run = run(2, 1_500);
    let mut straight = Replay::from(run.first);
    for (position, record) in run.records.iter().enumerate() {
        if position % 97 == 0 {
            let mut restored = Replay::restore(&straight.snapshot()).unwrap();
            replay(&mut restored, &run.records[position..]);
            assert_eq!(restored.snapshot(), Replay::from(run.plane.clone()).snapshot());
        }
        straight.apply(record).unwrap();
        while straight.plane_mut().poll_observation().is_some() {}
    }
}

#[test]
fn a_snapshot_that_is_cut_or_padded_is_none() {
    let snapshot = Replay::from(run(3, 50).plane).snapshot();
    assert_eq!(Replay::restore(&snapshot[..snapshot.len() - 1]).err(), Some(RestoreError));
    let padded = [snapshot.as_slice(), &[0]].concat();
    assert_eq!(Replay::restore(&padded).err(), Some(RestoreError));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, ..ProptestConfig::default() })]

    #[test]
    fn one_altered_byte_is_found_at_its_record(at: prop::sample::Index, byte: prop::sample::Index, by in 1_u8..) {
        let run = run(4, 300);
        let position = at.index(run.records.len());
        let mut again = Replay::from(run.first);
        replay(&mut again, &run.records[..position]);
        let mut record = run.records[position].clone();
        let byte = byte.index(record.len());
        record[byte] ^= by;
        prop_assert!(again.apply(&record).is_err(), "byte {byte} of record {position}");
    }
}

#[test]
fn a_fact_that_was_altered_in_the_record_is_told_apart_from_another_effect() {
    let run = run(5, 200);
    let mut again = Replay::from(run.first);
    for bytes in &run.records {
        let record = decode(bytes).unwrap();
        if record.durables.is_empty() {
            again.apply(bytes).unwrap();
            continue;
        }
        let mut altered = bytes.clone();
        *altered.last_mut().unwrap() ^= 1;
        if decode(&altered).is_ok() {
            assert_eq!(again.apply(&altered).err(), Some(Divergence::Facts));
            return;
        }
        again.apply(bytes).unwrap();
    }
    panic!("no record could be altered and still be read");
}

#[test]
fn facts_alone_make_the_same_ledger_and_the_same_homes() {
    let run = run(6, 3_000);
    let mut facts = Replay::from(run.first);
    for record in &run.records {
        facts.apply_facts(record).unwrap();
    }
    let plane = facts.plane();
    assert_eq!(plane.audit(), run.plane.audit());
    assert_eq!((plane.now(), plane.incarnation()), (run.plane.now(), run.plane.incarnation()));
    assert_eq!(plane.wall(), run.plane.wall());
    assert_eq!(plane.view().requests, 0, "nothing is decided again");
    plane.invariants();
    let home =
        |plane: &ControlPlane, session| plane.binding(session).map(|b| (b.endpoint, b.epoch));
    for session in run.bindings.iter() {
        assert_eq!(home(plane, *session), home(&run.plane, *session), "{session:?}");
    }
    let homes = run.bindings.iter().filter(|session| home(plane, **session).is_some());
    assert!(homes.count() > 0, "somebody has a home");
}

#[test]
fn what_facts_left_outstanding_is_given_back_at_the_next_start() {
    let mut world = World::of(&["a"]);
    let mut recorder = Recorder::default();
    let begin = world.plane.clone();
    let caller = crate::id::CallerToken(77);
    let input = Input::RequestArrived(crate::plane::Arrival { caller, ..Ask::new().0 }.into());
    recorder.begin(world.now, &input);
    let effects = world.input(input);
    let record = recorder.finish(&effects).to_vec();
    let mut facts = Replay::from(begin);
    facts.apply_facts(&record).unwrap();
    assert_eq!(facts.plane().view().reservations, 1);
    let mut plane = facts.into_plane();
    plane.handle(world.now, Input::Restarted { incarnation: 2, wall: world.wall() });
    assert_eq!(plane.view().reservations, 0);
    assert!(plane.audit().violations.is_empty());
}

/// What an explanation must name, in this order.
fn told_in_order(explanation: &str, phrases: &[&str]) {
    let mut rest = explanation;
    for phrase in phrases {
        let Some(at) = rest.find(phrase) else {
            panic!("{phrase:?} is not told, or too early, in\n{explanation}");
        };
        rest = &rest[at + phrase.len()..];
    }
}

#[test]
fn an_explanation_names_who_was_picked_and_why_what_failed_and_what_was_charged() {
    let mut world = World::of(&["a", "b"]);
    let caller = world.ask(Ask::new().session(1));
    let first = String::from(world.at(caller));
    world.fail(caller, Failure::Connect);
    let second = String::from(world.at(caller));
    world.complete(caller, 5);
    told_in_order(
        &world.explain(caller),
        &[
            "arrived in session sess_0000000000000001, which has no home yet",
            "reserved: 110 tokens",
            &format!("attempt 1 -> {first}: it is the session's home"),
            &format!("{first} failed after"),
            "no connection",
            "another attempt at once",
            &format!("attempt 2 -> {second}"),
            &format!("Not {first} (0 in flight): it was tried already"),
            &format!("{second} is the home of session sess_0000000000000001 now"),
            "prompt 10 tokens, completion 5 tokens",
            "answered whole; charged 15 tokens ($0.000015)",
        ],
    );
}

#[test]
fn an_explanation_says_from_which_token_on_another_went_on() {
    let mut world = World::new();
    world.listed(["a", "b"].map(|name| alike(name, 7)).to_vec());
    let caller = world.ask(Ask::resumable());
    let first = String::from(world.at(caller));
    world.first_token(caller);
    world.end(caller, failed(Failure::Truncated, 20));
    let second = String::from(world.at(caller));
    world.complete(caller, 40);
    assert_ne!(first, second);
    told_in_order(
        &world.explain(caller),
        &[
            &format!("attempt 1 -> {first}"),
            &format!("{first} failed after"),
            "another attempt at once, from token 20 on",
            &format!("attempt 2 -> {second}"),
            "answered whole; charged 50 tokens",
        ],
    );
}

#[test]
fn an_explanation_says_why_a_breaker_keeps_an_endpoint_out() {
    let mut world = World::of(&["a", "b"]);
    world.configure(|config| config.breaker.consecutive_failures = 1);
    let caller = world.ask(Ask::new().session(1));
    world.accept(caller);
    let home = String::from(world.at(caller));
    world.fail(caller, Failure::Garbage);
    told_in_order(
        &world.explain(caller),
        &[&format!("breaker of {home}: closed -> open: 1 failures in a row; asked again in ")],
    );
    let next = world.ask(Ask::new().session(1));
    let reason = format!("Not {home} (0 in flight): its breaker is open (1 failures in a row)");
    told_in_order(&world.explain(next), &[&format!("at home on {home}"), &reason]);
}

#[test]
fn an_explanation_says_that_an_endpoint_had_its_requests() {
    let mut world = World::new();
    let slow = EndpointSpec { rps_max: Some(1), ..spec("a") };
    world.listed(vec![slow, EndpointSpec { tier: 1, ..spec("b") }]);
    world.ask(Ask::new());
    world.drain("b", true);
    let busy = world.ask(Ask::new());
    told_in_order(
        &world.explain(busy),
        &["refused: the model takes no more just now; again in 900 ms"],
    );
    world.drain("b", false);
    let caller = world.ask(Ask::new());
    told_in_order(
        &world.explain(caller),
        &["-> b", "Not a", "it has had its requests of this second"],
    );
}

#[test]
fn an_explanation_of_a_refusal_says_what_to_wait_for() {
    let mut world = World::of(&["a"]);
    world.drain("a", true);
    let nobody = world.ask(Ask::new());
    told_in_order(
        &world.explain(nobody),
        &["nobody to pick", "1 are draining", "refused: nobody is left"],
    );
    let unknown = world.ask(Ask::new().model("x"));
    told_in_order(&world.explain(unknown), &["refused: no endpoint serves the model"]);
}
