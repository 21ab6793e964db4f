//! An endpoint, apart from the pools it stands in.

use alloc::boxed::Box;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::Member;
use super::report::Report;
use super::tier::{Class, Facts};
use crate::id::EndpointId;
use crate::rng::hash_bytes;

/// What the balancer knows about one endpoint. Its in-flight count is one number, whatever pools it is in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Seat {
    pub(super) id: EndpointId,
    pub(super) name: Box<str>,
    pub(super) weight: u32,
    pub(super) tier: u8,
    pub(super) in_flight: u32,
    in_flight_max: u32,
    share_permille: u32,
    draining: bool,
    admitted: bool,
    /// What it said last of its load, while that counts.
    pub(super) report: Option<Report>,
    /// Its places, sorted by pool.
    pub(super) posts: Vec<Post>,
}

/// An endpoint's place in one pool, in the tier of its seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Post {
    pub(super) pool: u32,
    pub(super) place: u32,
}

impl Seat {
    /// A new endpoint: admitted, not draining, with its whole weight, in no pool yet.
    pub(super) fn new(id: EndpointId, member: &Member<'_>) -> Self {
        Self {
            id,
            name: member.name.into(),
            weight: member.weight.max(1),
            tier: member.tier,
            in_flight: 0,
            in_flight_max: member.in_flight_max,
            share_permille: WHOLE,
            draining: false,
            admitted: true,
            report: None,
            posts: Vec::new(),
        }
    }

    /// Takes over what a registry may change.
    pub(super) fn update(&mut self, member: &Member<'_>) {
        if *self.name != *member.name {
            self.name = member.name.into();
        }
        self.weight = member.weight.max(1);
        self.tier = member.tier;
        self.in_flight_max = member.in_flight_max;
    }

    pub(super) fn set_draining(&mut self, draining: bool) {
        self.draining = draining;
    }

    pub(super) fn set_admitted(&mut self, admitted: bool) {
        self.admitted = admitted;
    }

    pub(super) fn set_share(&mut self, permille: u32) {
        self.share_permille = permille.min(WHOLE);
    }

    /// How it stands in each of its tiers.
    pub(super) fn facts(&self) -> Facts {
        let full = self.in_flight >= self.in_flight_max;
        let class = match (self.draining, self.admitted, full) {
            (true, _, _) => Class::Draining,
            (false, true, false) => Class::Open,
            (false, true, true) => Class::Full,
            (false, false, false) => Class::Ejected,
            (false, false, true) => Class::EjectedFull,
        };
        let share = u64::from(self.weight) * u64::from(self.share_permille) / u64::from(WHOLE);
        let (weight, others) = ((share as u32).max(1), self.others());
        Facts { class, weight, in_flight: self.in_flight, others }
    }

    /// Work that others gave it, by its own word.
    pub(super) fn others(&self) -> u32 {
        self.report.map_or(0, Report::others)
    }

    /// Its place in a pool.
    pub(super) fn place_in(&self, pool: u32) -> Option<u32> {
        let index = self.posts.binary_search_by_key(&pool, |post| post.pool).ok()?;
        Some(self.posts[index].place)
    }

    /// What it is hashed as: its name, which every gateway knows, and nothing that only this one does.
    pub(super) fn name_hash(&self) -> u64 {
        let seed = if planted!(HomeBySlot) { u64::from(self.id.slot) } else { 0 };
        hash_bytes(seed, self.name.as_bytes())
    }
}

/// All of a weight, in permille.
const WHOLE: u32 = 1_000;
