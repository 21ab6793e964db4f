//! Whom to pick.
//!
//! **The problem.** One attempt wants a replica of a model. Of thousands, some drain, some are ejected, some are full,
//! one was tried a moment ago, and one holds the session's prefix cache and would answer in a tenth of the time.
//! The answer may not cost more because there are many, and it may not depend on anything a second gateway could not
//! compute as well.
//!
//! **The shape.** A pool per model, split into priority tiers. In each tier the members that may be picked stand in a
//! *field*, the pick set; the others are counted and nowhere else. Filtering at pick time was rejected: it costs
//! `O(n)`, and it must be remembered in every policy. Here health, drain, limits and what was tried are settled
//! *before* affinity and policy are asked, so that a stale pin cannot beat a failover.
//!
//! | policy | how | cost of a pick |
//! |---|---|---|
//! | `round_robin` | earliest virtual deadline, in a winner tree | O(log n) |
//! | `least_load` | exact least in-flight per weight, in a winner tree | O(log n) |
//! | `p2c` | two drawn by weight, the less loaded | O(1) |
//! | `sticky` | binding, else rendezvous (or in turn), under the bound | O(log n) |
//! | `auto` | binding, else rendezvous; least load without a session | O(log n) |
//!
//! **Round robin** gives each member a next turn in virtual time, `2^48 / weight` after its last, and picks the
//! earliest. NGINX's smooth form adds every weight to its member's counter on every pick: the same sequence for equal
//! weights, but `O(n)`. Who arrives or comes back starts in the middle of the present round: missed turns are not made up
//! for, because that would be a burst.
//!
//! **The bound** (Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads", 2018): under `sticky` and
//! `auto`, no placement puts a member above `ceil(1.25 x mean)` of the weighted work in its pick set while another
//! fits. The overflow walks the same ranking of the key, so that it never cascades onto one neighbour. Members that
//! are full or were tried are not in the mean, because they cannot take a share.
//!
//! **Reports** of load make an endpoint dearer where loads are compared, by what others gave it: see [`report`]. The bound
//! stays on this plane's own count: whom all reports together leave gets no more than that.
//!
//! **Panic.** With so few admitted that the ejections look wrong ([`Config::panic_percent`]), and no other tier to help,
//! the ejected count as well. They stand in a field of their own all the time, so that panic costs nothing to enter.
//! A pool of one or two never panics: a lone endpoint must cool down too.
//!
//! **Retries.** What was tried is taken out of the pick set for the length of the pick, in all tiers. Only when nobody
//! is left without is a tried one picked again, and the answer says so.
//!
//! Edges: an endpoint that serves several models has one in-flight count, so load through one model is seen by all.
//! A removed endpoint's count goes with it, and what is released for it later is a no-op: the generation differs.

mod choose;
mod field;
mod housekeeping;
mod pick;
mod policy;
mod pool;
mod rendezvous;
mod report;
mod seat;
mod tier;
mod tournament;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

pub use pick::{Candidate, Chosen, Considered, Nobody, Pick, Query, Reason, WhyNot};
pub use policy::{Config, Fallback, Policy};
pub use report::{FRESH, GONE, REPORTED_MAX, Reported, STEP};

use crate::breaker::EjectionRoom;
use crate::id::EndpointId;
use crate::rng::Rng;
use crate::time::Instant;
use choose::{Choice, Session};
use pool::Pool;
use seat::Seat;

/// Slots an [`EndpointId`] may name. The largest fleets in the field have some thousand replicas; ten times that, so
/// that a slot may be used as an index without thought.
pub const ENDPOINTS_MAX: u32 = 1 << 16;

/// Models one endpoint may serve; what it lists beyond is not served. The longest provider catalogue has some 500.
pub const MODELS_MAX: usize = 4_096;

/// Models that may have a policy of their own. They come from a file that somebody wrote.
pub const POLICIES_MAX: usize = 4_096;

/// An endpoint as the registry describes it.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Unique among endpoints, and the same on every gateway: homes are computed from it.
    pub name: &'a str,
    /// Its share relative to the others'; 0 counts as 1. The default is 100.
    pub weight: u32,
    /// Its priority: lower tiers are used first.
    pub tier: u8,
    /// Attempts it may have in flight. 0 keeps it out of the pick set.
    pub in_flight_max: u32,
    /// The models it serves; at most [`MODELS_MAX`] count.
    pub models: &'a [Box<str>],
}

/// All pools, and who may be picked in each.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Balancer {
    config: Config,
    rng: Rng,
    /// By slot.
    seats: Vec<Option<Seat>>,
    pools: Vec<Option<Pool>>,
    vacant_pools: Vec<u32>,
    models: BTreeMap<Box<str>, u32>,
    policies: BTreeMap<Box<str>, Policy>,
    /// When what an endpoint reported counts less.
    aging: BTreeSet<(Instant, EndpointId)>,
    in_flight_total: u64,
    /// Counts picks.
    #[cfg_attr(feature = "mutants", serde(deserialize_with = "crate::mutant::recounted"))]
    sequence: u64,
}

impl Balancer {
    /// A balancer without endpoints.
    #[must_use]
    pub fn new(config: Config, rng: Rng) -> Self {
        Self {
            config,
            rng,
            seats: Vec::new(),
            pools: Vec::new(),
            vacant_pools: Vec::new(),
            models: BTreeMap::new(),
            policies: BTreeMap::new(),
            aging: BTreeSet::new(),
            in_flight_total: 0,
            sequence: 0,
        }
    }

    /// Takes new numbers, from the next pick on.
    pub fn set_config(&mut self, config: Config) {
        self.config = config;
        self.apply_policies();
    }

    /// Gives a model a policy of its own. Returns false, and changes nothing, beyond [`POLICIES_MAX`] models.
    pub fn set_policy(&mut self, model: &str, policy: Policy) -> bool {
        if self.policies.len() >= POLICIES_MAX && !self.policies.contains_key(model) {
            return false;
        }
        self.policies.insert(model.into(), policy);
        if let Some(pool) = self.models.get(model) {
            self.pool_mut(*pool).policy = policy;
        }
        true
    }

    /// Puts every model back on [`Config::policy`]: what a reload does before it sets the policies it found.
    pub fn reset_policies(&mut self) {
        self.policies.clear();
        self.apply_policies();
    }

    /// Adds an endpoint, or updates it: counts, drain, admission and share stay as they are. A new generation in a slot
    /// replaces the old one; an older one is ignored.
    ///
    /// # Panics
    /// If the slot is not below [`ENDPOINTS_MAX`].
    pub fn insert(&mut self, id: EndpointId, member: Member<'_>) {
        assert!(id.slot < ENDPOINTS_MAX, "an endpoint's slot is below {ENDPOINTS_MAX}");
        if self.seats.len() <= id.slot as usize {
            self.seats.resize(id.slot as usize + 1, None);
        }
        match self.seats[id.slot as usize].as_ref().map(|seat| seat.id) {
            Some(present) if present.generation > id.generation => return,
            Some(present) if present != id => self.remove(present),
            Some(_) | None => {}
        }
        let slot = &mut self.seats[id.slot as usize];
        let seat = slot.get_or_insert_with(|| Seat::new(id, &member));
        let moved = *seat.name != *member.name || seat.tier != member.tier;
        if moved || !self.serves_exactly(id, member.models) {
            let mut seat = self.withdraw(id).expect("just found or made");
            seat.update(&member);
            self.deploy(seat, member.models);
        } else {
            self.change(id, |seat| seat.update(&member));
        }
    }

    /// Forgets an endpoint, and with it what is in flight there.
    pub fn remove(&mut self, id: EndpointId) {
        self.forget_report(id);
        if let Some(seat) = self.withdraw(id) {
            self.in_flight_total -= u64::from(seat.in_flight);
        }
    }

    /// No new picks, or picks again.
    pub fn set_draining(&mut self, id: EndpointId, draining: bool) {
        self.change(id, |seat| seat.set_draining(draining));
    }

    /// The breaker's word: while false, the endpoint is in no pick set, outside of panic.
    pub fn set_admitted(&mut self, id: EndpointId, admitted: bool) {
        self.change(id, |seat| seat.set_admitted(admitted));
    }

    /// Slow start: the endpoint counts with this much of its weight, at least with 1. More than 1,000 is 1,000.
    pub fn set_share(&mut self, id: EndpointId, permille: u32) {
        self.change(id, |seat| seat.set_share(permille));
    }

    /// Picks a replica for one attempt. Counts nothing: [`dispatched`](Self::dispatched) does.
    #[must_use]
    pub fn pick(&mut self, query: &Query<'_>) -> Pick {
        let Some(&index) = self.models.get(query.model) else {
            return Pick::Nobody(Nobody { unknown_model: true, ..Nobody::default() });
        };
        self.sequence += 1;
        let mut considered = Considered::default();
        let lifted = self.lift(index, query.tried, &mut considered);
        let mut open = self.pool(index).open_tier(&self.config);
        let retried_same = open.is_none() && lifted > 0;
        if retried_same {
            self.lower(index, query.tried);
            considered = Considered::default();
            open = self.pool(index).open_tier(&self.config);
        }
        let pick = match open {
            None => Pick::Nobody(self.pool(index).nobody(self.count(index, query.tried))),
            Some((tier, panic)) => {
                let mut chosen = self.choose(index, tier, panic, query, considered);
                chosen.retried_same = retried_same;
                Pick::Chosen(chosen)
            }
        };
        if lifted > 0 {
            self.lower(index, query.tried);
        }
        pick
    }

    /// Whether somebody could be picked for the model who is not among `tried`.
    #[must_use]
    pub fn has_untried(&mut self, model: &str, tried: &[EndpointId]) -> bool {
        let Some(&index) = self.models.get(model) else { return false };
        let lifted = self.lift(index, tried, &mut Considered::default());
        let open = self.pool(index).open_tier(&self.config).is_some();
        if lifted > 0 {
            self.lower(index, tried);
        }
        open
    }

    /// An attempt went there: one more in flight. Nobody is counted for an endpoint that is gone.
    pub fn dispatched(&mut self, id: EndpointId) {
        if self.change(id, |seat| seat.in_flight = seat.in_flight.saturating_add(1)) {
            self.in_flight_total += 1;
        }
    }

    /// An attempt ended there. False, and no change, if the endpoint is gone or nothing is in flight there.
    pub fn released(&mut self, id: EndpointId) -> bool {
        if self.in_flight(id) == 0 {
            return false;
        }
        self.in_flight_total -= 1;
        self.change(id, |seat| seat.in_flight -= 1)
    }

    /// Attempts in flight at an endpoint.
    #[must_use]
    pub fn in_flight(&self, id: EndpointId) -> u32 {
        self.seat(id).map_or(0, |seat| seat.in_flight)
    }

    /// Attempts in flight at all endpoints.
    #[must_use]
    pub fn in_flight_total(&self) -> u64 {
        self.in_flight_total
    }

    /// The tier the endpoint belongs to in which one more ejection would leave the smallest part. Tiers too small to
    /// panic count only if it is in no other: a model served by one endpoint alone says nothing about the rest.
    #[must_use]
    pub fn ejection_room(&self, id: EndpointId) -> EjectionRoom {
        let Some(seat) = self.seat(id) else { return EjectionRoom::default() };
        let tiers = seat.posts.iter().filter_map(|post| self.pool(post.pool).tier_ref(seat.tier));
        let rooms =
            tiers.map(|tier| EjectionRoom { members: tier.live(), ejected: tier.ejected() });
        let large = |room: &EjectionRoom| room.members >= self.config.panic_members_min;
        rooms
            .max_by(|left, right| {
                let left_part = (u64::from(left.ejected) + 1) * u64::from(right.members);
                let right_part = (u64::from(right.ejected) + 1) * u64::from(left.members);
                large(left).cmp(&large(right)).then(left_part.cmp(&right_part))
            })
            .unwrap_or_default()
    }

    /// Whether any endpoint serves the model, able to or not.
    #[must_use]
    pub fn serves(&self, model: &str) -> bool {
        self.models.contains_key(model)
    }

    /// Asserts that seats, pools and counts agree. Costs as much as all members together.
    pub fn invariants(&self) {
        let mut posts = 0;
        let mut in_flight = 0;
        for (slot, seat) in self.seats.iter().enumerate() {
            let Some(seat) = seat else { continue };
            assert_eq!(seat.id.slot as usize, slot);
            assert!(seat.posts.is_sorted_by(|left, right| left.pool < right.pool));
            in_flight += u64::from(seat.in_flight);
            posts += seat.posts.len();
            for post in &seat.posts {
                let tier = self.pool(post.pool).tier_ref(seat.tier).expect("a member has a tier");
                assert_eq!(tier.id(post.place), seat.id);
                assert_eq!(tier.facts(post.place), seat.facts());
            }
        }
        assert_eq!(in_flight, self.in_flight_total);
        self.reports_are_aging();
        let mut members = 0;
        for (model, index) in &self.models {
            let pool = self.pool(*index);
            assert_eq!(*pool.model, **model);
            assert_eq!(pool.policy, self.policy_of(model));
            pool.invariants();
            members += pool.members() as usize;
        }
        assert_eq!(members, posts);
        assert_eq!(self.models.len() + self.vacant_pools.len(), self.pools.len());
    }

    fn choose(
        &mut self,
        index: u32,
        tier_number: u8,
        panic: bool,
        query: &Query<'_>,
        mut considered: Considered,
    ) -> Chosen {
        let policy = self.pool(index).policy;
        let bound = query.bound.filter(|_| policy.is_affine());
        let bound = bound.and_then(|id| self.bound_place(index, tier_number, id, &mut considered));
        let pool = self.pools[index as usize].as_mut().expect("a picked pool exists");
        let mut choice = Choice {
            tier: pool.tier(tier_number),
            panic,
            bound_percent: self.config.bound_percent,
            sequence: self.sequence,
            considered: &mut considered,
        };
        let session = Session { key: query.key, bound };
        let (place, reason) = choice.choose(policy, session, &mut self.rng);
        let endpoint = choice.tier.id(place);
        Chosen { endpoint, tier: tier_number, reason, panic, retried_same: false, considered }
    }

    /// Where the session's replica stands in the tier that is in use; if it does not, that is noted.
    fn bound_place(
        &self,
        index: u32,
        tier: u8,
        id: EndpointId,
        considered: &mut Considered,
    ) -> Option<u32> {
        let found = self.seat(id).and_then(|seat| Some((seat, seat.place_in(index)?)));
        let in_flight = self.in_flight(id);
        let why_not = match found {
            Some((seat, place)) if seat.tier == tier => return Some(place),
            Some((seat, place)) => match self.pool(index).tier_ref(seat.tier) {
                Some(other) if !other.scope(false).contains(place) => choose::why_out(other, place),
                Some(_) | None => WhyNot::OtherTier,
            },
            None => WhyNot::Gone,
        };
        let others = self.others(id);
        considered.note(Candidate { endpoint: id, in_flight, others, why_not: Some(why_not) });
        None
    }

    /// Takes what was tried out of the pool's pick sets. Returns how many could have been picked.
    fn lift(&mut self, index: u32, tried: &[EndpointId], considered: &mut Considered) -> u32 {
        let mut lifted = 0;
        for id in tried {
            let Some((tier, place)) = self.find(index, *id) else { continue };
            let tier = self.pool_mut(index).tier(tier);
            lifted += u32::from(tier.lift(place));
            considered.note(choose::candidate(tier, place, Some(WhyNot::Tried)));
        }
        lifted
    }

    fn lower(&mut self, index: u32, tried: &[EndpointId]) {
        for id in tried {
            if let Some((tier, place)) = self.find(index, *id) {
                self.pool_mut(index).tier(tier).lower(place);
            }
        }
    }

    /// How many different members of a pool are named.
    fn count(&self, index: u32, tried: &[EndpointId]) -> u32 {
        let members = tried.iter().filter(|id| self.find(index, **id).is_some());
        members.collect::<BTreeSet<_>>().len() as u32
    }

    /// An endpoint's tier and place in a pool.
    fn find(&self, index: u32, id: EndpointId) -> Option<(u8, u32)> {
        let seat = self.seat(id)?;
        Some((seat.tier, seat.place_in(index)?))
    }
}

#[cfg(test)]
mod tests;
