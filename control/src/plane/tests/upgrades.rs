//! Another logic takes over: what the last one charged under an idempotency key is not charged again.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use super::chaos::Chaos;
use super::world::{Ask, World, daily, seconds};
use crate::Machine;
use crate::id::{AccountId, Digest, Minted, RequestId};
use crate::journal::{Recorder, Replay};
use crate::outcome::{AttemptEnd, Failure};
use crate::plane::{ControlPlane, Effect, Input, Refusal};
use crate::quota::{At, Ledger, LedgerConfig, RunId, StoreMode};
use crate::session::Begun;
use crate::units::Tokens;

#[test]
fn what_was_charged_under_a_key_is_not_charged_again_after_an_upgrade() {
    let mut world = World::of(&["a"]);
    world.ask(Ask::new().model("unknown").keyed(1, 1));
    let first = world.ask(Ask::new().keyed(1, 1));
    let by = world.dispatches[&first].request;
    world.ask(Ask::new().keyed(1, 1));
    world.complete(first, 5);
    world.ask(Ask::new().keyed(1, 1));
    world.upgrade();
    let again = world.ask(Ask::new().keyed(1, 1));
    assert_eq!(world.refusal(again), Refusal::IdempotencyDone { by: Some(by) });
    let other = world.ask(Ask::new().keyed(1, 2));
    assert_eq!(world.refusal(other), Refusal::IdempotencyMismatch { by: Some(by) });
    let elsewhere = world.ask(Ask::new().keyed(1, 1).tenant(2));
    assert!(world.runs(elsewhere), "a key is its tenant's own");
    assert_eq!(world.spent(1), 15);
}

#[test]
fn what_was_refused_or_under_way_may_be_asked_again_after_an_upgrade() {
    let mut world = World::of(&["a"]);
    world.configure(|config| drop(config.accounts.insert(AccountId(2), daily(50))));
    let failed = world.ask(Ask::new().keyed(1, 1));
    world.fail(failed, Failure::ClientError(400));
    let spent = world.ask(Ask::new().keyed(2, 1).tenant(2));
    assert!(matches!(world.refusal(spent), Refusal::QuotaSpent(_)));
    let begun = world.ask(Ask::stream().keyed(3, 1));
    world.first_token(begun);
    world.produce(begun, 16);
    world.upgrade();
    let asks =
        [Ask::new().keyed(1, 1), Ask::new().keyed(2, 1).tenant(1), Ask::stream().keyed(3, 1)];
    for ask in asks {
        let again = world.ask(ask);
        assert!(world.runs(again), "{:?}", world.ends.get(&again));
    }
}

#[test]
fn what_a_new_life_had_settled_before_the_upgrade_stays_charged() {
    let mut world = World::of(&["a"]);
    let begun = world.ask(Ask::stream().keyed(1, 1));
    let by = world.dispatches[&begun].request;
    world.first_token(begun);
    world.produce(begun, 16);
    world.restart();
    world.upgrade();
    let again = world.ask(Ask::stream().keyed(1, 1));
    assert_eq!(world.refusal(again), Refusal::IdempotencyDone { by: Some(by) });
}

#[test]
fn a_request_that_the_snapshot_has_under_way_keeps_or_frees_its_key_as_the_facts_say() {
    let mut world = World::of(&["a"]);
    let charged = world.ask(Ask::new().keyed(1, 1));
    let by = world.dispatches[&charged].request;
    let refunded = world.ask(Ask::new().keyed(2, 1));
    let lost = world.ask(Ask::stream().keyed(3, 1));
    let lost_by = world.dispatches[&lost].request;
    world.first_token(lost);
    world.take_snapshot();
    world.complete(charged, 5);
    world.fail(refunded, Failure::ClientError(400));
    world.upgrade();
    let again = world.ask(Ask::new().keyed(1, 1));
    assert_eq!(world.refusal(again), Refusal::IdempotencyDone { by: Some(by) });
    let again = world.ask(Ask::new().keyed(2, 1));
    assert!(world.runs(again));
    let again = world.ask(Ask::stream().keyed(3, 1));
    let settled_as_lost = Refusal::IdempotencyDone { by: Some(lost_by) };
    assert_eq!(world.refusal(again), settled_as_lost);
}

#[test]
fn a_reservation_that_expired_is_charged_late_and_its_key_stays_used() {
    let mut world = World::of(&["a"]);
    world.configure(|config| {
        config.timeouts.request = seconds(60);
        config.quota.reservation_ttl = seconds(5);
    });
    let late = world.ask(Ask::new().keyed(1, 1));
    let by = world.dispatches[&late].request;
    world.later(seconds(10));
    world.complete(late, 5);
    world.upgrade();
    let again = world.ask(Ask::new().keyed(1, 1));
    assert_eq!(world.refusal(again), Refusal::IdempotencyDone { by: Some(by) });
    assert_eq!(world.spent(1), 15);
}

#[test]
fn keys_are_forgotten_across_an_upgrade_as_early_and_as_many_as_without_one() {
    let mut world = World::of(&["a"]);
    world.configure(|config| {
        config.session.idempotency_ttl = seconds(60);
        config.session.idempotency_keys_max = 2;
    });
    for key in 1..=3 {
        let caller = world.ask(Ask::new().keyed(key, 1));
        world.complete(caller, 5);
        world.later(seconds(20));
    }
    world.upgrade();
    world.plane.idempotency.invariants();
    assert_eq!(world.plane.idempotency.len(), 2, "no more than may be remembered");
    let (young, old) = (world.ask(Ask::new().keyed(3, 1)), world.ask(Ask::new().keyed(2, 1)));
    assert!(matches!(world.refusal(young), Refusal::IdempotencyDone { .. }));
    assert!(matches!(world.refusal(old), Refusal::IdempotencyDone { .. }));
    world.later(seconds(20));
    let expired = world.ask(Ask::new().keyed(2, 1));
    assert!(world.runs(expired));
}

#[test]
fn keys_survive_an_upgrade_where_the_ledger_is_shared() {
    let mut world = World::with(|config| config.quota.store = StoreMode::Shared);
    world.members(&["a"]);
    let mut store = Ledger::new(LedgerConfig::default());
    let charged = world.ask(Ask::new().keyed(1, 1));
    let refunded = world.ask(Ask::new().keyed(2, 1));
    world.ask(Ask::new().keyed(3, 1));
    serve(&mut world, &mut store);
    let by = world.dispatches[&charged].request;
    world.complete(charged, 5);
    let cancelled = AttemptEnd::Cancelled { produced: Tokens(0) };
    world.end(refunded, cancelled);
    serve(&mut world, &mut store);
    world.upgrade();
    let again = world.ask(Ask::new().keyed(1, 1));
    assert_eq!(world.refusal(again), Refusal::IdempotencyDone { by: Some(by) });
    for key in [2, 3] {
        let again = world.ask(Ask::new().keyed(key, 1));
        assert!(world.runs(again), "key {key} is free");
    }
}

#[test]
fn facts_alone_know_exactly_the_keys_that_were_charged() {
    let mut charged = 0;
    for seed in 0..40 {
        let (first, records, plane) = run(seed, 1_500);
        let mut facts = Replay::from(first);
        for record in &records {
            facts.apply_facts(record).unwrap();
        }
        let restored = used(facts.plane());
        facts.plane().invariants();
        assert_eq!(restored, used(&plane), "seed {seed}");
        charged += restored.len();
    }
    assert!(charged > 100, "{charged} keys were charged");
}

/// A run under chaos: the plane before it, what was recorded, the plane after it.
fn run(seed: u64, steps: usize) -> (ControlPlane, Vec<Vec<u8>>, ControlPlane) {
    let mut chaos = Chaos::new(seed);
    chaos.unrepeated = true;
    chaos.config.quota.reservation_ttl = Duration::from_secs(10);
    let first = ControlPlane::with_config(seed, chaos.config.clone());
    let (mut plane, mut recorder, mut records) = (first.clone(), Recorder::default(), Vec::new());
    for _ in 0..steps {
        let (now, input) = chaos.next();
        recorder.begin(now, &input);
        plane.handle(now, input);
        let effects: Vec<_> = core::iter::from_fn(|| plane.poll_effect()).collect();
        while plane.poll_observation().is_some() {}
        chaos.learn(&effects);
        records.push(recorder.finish(&effects).to_vec());
    }
    (first, records, plane)
}

/// The keys that chaos uses, as far as they are done, with the request that was charged.
fn used(plane: &ControlPlane) -> BTreeMap<(u64, u128), RequestId> {
    let nobody = RequestId(Minted { incarnation: u32::MAX, counter: 0 });
    let mut used = BTreeMap::new();
    for (tenant, key, body) in (1..=3).flat_map(|t| (0..8).map(move |k| (t, k / 2, k % 2))) {
        let mut room = plane.idempotency.clone();
        let (tenant_id, digests) = (AccountId(tenant), (Digest(key), Digest(body)));
        let begun = room.begin(plane.now(), tenant_id, digests.0, digests.1, nobody);
        if let Begun::Done { by } = begun {
            used.insert((tenant, key), by);
        }
    }
    used
}

/// The store answers whatever it was asked.
fn serve(world: &mut World, store: &mut Ledger) {
    let mut asked = core::mem::take(&mut world.effects);
    while !asked.is_empty() {
        for effect in core::mem::take(&mut asked) {
            if let Effect::Consult(consult) = &effect {
                asked.extend(world.input(Input::ConsultFailed { op: consult.op }));
            }
            let Effect::Reserve(op) = effect else { continue };
            let at = At { now: world.now, wall: world.wall() };
            let answer = store.perform(at, RunId(1), &op, &mut Vec::new());
            asked.extend(world.input(Input::StoreAnswered(answer)));
        }
    }
    world.effects.clear();
}
