//! What the tests of this room have in common.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use crate::balance::{Balancer, Chosen, Config, Member, Nobody, Pick, Policy, Query};
use crate::id::{EndpointId, SessionKey};
use crate::rng::{Rng, mix};

pub const MODEL: &str = "m";

pub fn id(slot: u32) -> EndpointId {
    EndpointId { slot, generation: 1 }
}

pub fn name(slot: u32) -> String {
    format!("replica-{slot}")
}

pub fn key(number: u64) -> SessionKey {
    SessionKey(mix(number))
}

pub fn config(policy: Policy) -> Config {
    Config { policy, ..Config::default() }
}

/// A member of `MODEL`'s pool that takes as much as comes.
pub fn add(balancer: &mut Balancer, slot: u32, weight: u32, tier: u8) {
    add_bounded(balancer, slot, weight, tier, u32::MAX);
}

pub fn add_bounded(balancer: &mut Balancer, slot: u32, weight: u32, tier: u8, most: u32) {
    let models: Vec<Box<str>> = vec![MODEL.into()];
    let name = name(slot);
    let member = Member { name: &name, weight, tier, in_flight_max: most, models: &models };
    balancer.insert(id(slot), member);
}

/// A pool of one tier, with these weights in the slots from 0.
pub fn pool(policy: Policy, weights: &[u32]) -> Balancer {
    let mut balancer = Balancer::new(config(policy), Rng::new(7));
    for (slot, weight) in (0..).zip(weights) {
        add(&mut balancer, slot, *weight, 0);
    }
    balancer.invariants();
    balancer
}

pub fn query<'a>(tried: &'a [EndpointId]) -> Query<'a> {
    Query { model: MODEL, key: None, bound: None, tried }
}

pub fn with_key(number: u64) -> Query<'static> {
    Query { model: MODEL, key: Some(key(number)), bound: None, tried: &[] }
}

pub fn chosen(pick: Pick) -> Chosen {
    match pick {
        Pick::Chosen(chosen) => chosen,
        Pick::Nobody(nobody) => panic!("nobody was picked: {nobody}"),
    }
}

pub fn nobody(pick: Pick) -> Nobody {
    match pick {
        Pick::Nobody(nobody) => nobody,
        Pick::Chosen(chosen) => panic!("{:?} was picked", chosen.endpoint),
    }
}

/// The slot picked for a query.
pub fn slot(balancer: &mut Balancer, query: &Query<'_>) -> u32 {
    chosen(balancer.pick(query)).endpoint.slot
}
