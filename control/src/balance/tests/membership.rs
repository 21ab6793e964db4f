use alloc::boxed::Box;
use alloc::vec::Vec;

use super::support::*;
use crate::balance::{Balancer, Config, EjectionRoom, Member, Policy, Query};
use crate::id::EndpointId;
use crate::rng::Rng;

fn member<'a>(name: &'a str, models: &'a [Box<str>]) -> Member<'a> {
    Member { name, weight: 100, tier: 0, in_flight_max: 100, models }
}

fn models(names: &[&str]) -> Vec<Box<str>> {
    names.iter().map(|name| Box::from(*name)).collect()
}

#[test]
fn what_is_released_after_removal_never_touches_the_slots_new_occupant() {
    let mut balancer = pool(Policy::LeastLoad, &[100]);
    balancer.dispatched(id(0));
    balancer.remove(id(0));
    assert_eq!(balancer.in_flight_total(), 0);
    let next = EndpointId { slot: 0, generation: 2 };
    let serves = models(&[MODEL]);
    balancer.insert(next, member("next", &serves));
    balancer.dispatched(next);
    assert!(!balancer.released(id(0)));
    balancer.dispatched(id(0));
    assert_eq!((balancer.in_flight(next), balancer.in_flight_total()), (1, 1));
    assert!(balancer.released(next));
    assert!(!balancer.released(next), "a count never goes below zero");
    balancer.invariants();
}

#[test]
fn an_update_keeps_counts_drain_and_ejection() {
    let mut balancer = pool(Policy::LeastLoad, &[100, 100]);
    balancer.dispatched(id(0));
    balancer.set_draining(id(0), true);
    balancer.set_admitted(id(1), false);
    add(&mut balancer, 0, 50, 0);
    add(&mut balancer, 1, 50, 3);
    assert_eq!(balancer.in_flight(id(0)), 1);
    let told = nobody(balancer.pick(&query(&[])));
    assert_eq!((told.members, told.draining, told.ejected), (2, 1, 1));
    balancer.invariants();
}

#[test]
fn a_newer_generation_replaces_and_an_older_one_is_ignored() {
    let mut balancer = pool(Policy::LeastLoad, &[100]);
    let serves = models(&[MODEL]);
    let (old, new) = (EndpointId { slot: 0, generation: 0 }, EndpointId { slot: 0, generation: 5 });
    balancer.insert(new, member("new", &serves));
    balancer.insert(old, member("old", &serves));
    balancer.insert(id(0), member("first", &serves));
    assert_eq!(chosen(balancer.pick(&query(&[]))).endpoint, new);
    balancer.remove(old);
    assert!(balancer.serves(MODEL));
    balancer.remove(new);
    assert!(!balancer.serves(MODEL));
    balancer.invariants();
}

#[test]
fn load_through_one_model_is_seen_through_the_other() {
    let mut balancer = Balancer::new(config(Policy::LeastLoad), Rng::new(1));
    balancer.insert(id(0), member("both", &models(&["a", "b", "a"])));
    balancer.insert(id(1), member("one", &models(&["b"])));
    for _ in 0..3 {
        assert_eq!(slot(&mut balancer, &Query { model: "a", ..query(&[]) }), 0);
        balancer.dispatched(id(0));
    }
    for _ in 0..3 {
        assert_eq!(slot(&mut balancer, &Query { model: "b", ..query(&[]) }), 1);
        balancer.dispatched(id(1));
    }
    balancer.invariants();
}

#[test]
fn an_endpoint_moves_with_its_models_and_empty_pools_are_forgotten() {
    let mut balancer = Balancer::new(config(Policy::LeastLoad), Rng::new(1));
    for round in 0..50 {
        let model = alloc::format!("model-{round}");
        balancer.insert(id(0), member("x", &models(&[&model])));
        balancer.dispatched(id(0));
        assert!(balancer.serves(&model));
        balancer.invariants();
    }
    assert_eq!(balancer.in_flight(id(0)), 50);
    assert!(!balancer.serves("model-0"));
    assert!(balancer.pools.len() <= 2, "a model that is gone leaves its pool to the next");
}

#[test]
fn a_models_own_policy_outlives_its_pool_and_ends_with_a_reset() {
    let mut balancer = pool(Policy::LeastLoad, &[100, 100]);
    assert!(balancer.set_policy(MODEL, Policy::RoundRobin));
    for slot in [0, 1] {
        balancer.remove(id(slot));
    }
    add(&mut balancer, 0, 100, 0);
    balancer.invariants();
    assert_eq!(balancer.policy_of(MODEL), Policy::RoundRobin);
    balancer.reset_policies();
    balancer.set_config(Config { policy: Policy::P2c, ..Config::default() });
    assert_eq!(balancer.policy_of(MODEL), Policy::P2c);
    balancer.invariants();
}

#[test]
fn the_room_for_ejection_is_that_of_the_tightest_tier_large_enough_to_tell() {
    let mut balancer = Balancer::new(config(Policy::Auto), Rng::new(1));
    balancer.insert(id(0), member("r0", &models(&["lone", "small", "large"])));
    for slot in 1..10 {
        let serves: &[&str] = if slot < 4 { &["small", "large"] } else { &["large"] };
        balancer.insert(id(slot), member(&name(slot), &models(serves)));
    }
    let room = |balancer: &Balancer, slot| balancer.ejection_room(id(slot));
    assert_eq!(room(&balancer, 0), EjectionRoom { members: 4, ejected: 0 });
    assert_eq!(room(&balancer, 9), EjectionRoom { members: 10, ejected: 0 });
    for slot in 4..9 {
        balancer.set_admitted(id(slot), false);
    }
    assert_eq!(room(&balancer, 0), EjectionRoom { members: 10, ejected: 5 });
    balancer.set_draining(id(4), true);
    assert_eq!(room(&balancer, 9), EjectionRoom { members: 9, ejected: 4 });
    assert_eq!(room(&balancer, 99), EjectionRoom::default());
    balancer.insert(id(20), member("alone", &models(&["alone"])));
    assert_eq!(room(&balancer, 20), EjectionRoom { members: 1, ejected: 0 });
}
