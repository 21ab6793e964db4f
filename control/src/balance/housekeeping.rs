//! Endpoints enter pools, change in them, and leave them.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;

use super::pool::Pool;
use super::seat::{Post, Seat};
use super::{Balancer, MODELS_MAX, Policy};
use crate::id::EndpointId;

impl Balancer {
    /// Changes an endpoint and brings its pools up to date. False if it is gone.
    pub(super) fn change(&mut self, id: EndpointId, change: impl FnOnce(&mut Seat)) -> bool {
        let Some(seat) = self.seats.get_mut(id.slot as usize).and_then(Option::as_mut) else {
            return false;
        };
        if seat.id != id {
            return false;
        }
        let (tier, weight) = (seat.tier, seat.weight);
        change(seat);
        assert_eq!(tier, seat.tier, "an endpoint changes its tier by leaving it");
        let facts = seat.facts();
        for post in &seat.posts {
            let pool = self.pools[post.pool as usize].as_mut().expect("a post's pool exists");
            let tier = pool.tier(tier);
            if weight != seat.weight {
                tier.reweigh(post.place, seat.weight);
            }
            tier.refresh(post.place, facts);
        }
        true
    }

    /// Takes an endpoint out of its slot and its pools.
    pub(super) fn withdraw(&mut self, id: EndpointId) -> Option<Seat> {
        let mut seat = self.seats.get_mut(id.slot as usize)?.take_if(|seat| seat.id == id)?;
        for post in seat.posts.drain(..) {
            let pool = self.pools[post.pool as usize].as_mut().expect("a post's pool exists");
            if let Some(moved) = pool.tier(seat.tier).remove(post.place) {
                let moved = self.seats[moved.slot as usize].as_mut().expect("a member has a seat");
                let index = moved.posts.binary_search_by_key(&post.pool, |post| post.pool);
                moved.posts[index.expect("a member has a post")].place = post.place;
            }
            pool.prune();
            if pool.is_empty() {
                self.models.remove(&pool.model);
                self.pools[post.pool as usize] = None;
                self.vacant_pools.push(post.pool);
            }
        }
        Some(seat)
    }

    /// Puts an endpoint into its slot and the pools of its models.
    pub(super) fn deploy(&mut self, mut seat: Seat, models: &[Box<str>]) {
        let (id, weight, hash, facts) = (seat.id, seat.weight, seat.name_hash(), seat.facts());
        for model in served(models) {
            let pool = self.pool_for(model);
            let place = self.pool_mut(pool).tier_or_new(seat.tier).insert(id, hash, weight, facts);
            seat.posts.push(Post { pool, place });
        }
        seat.posts.sort_unstable_by_key(|post| post.pool);
        self.seats[id.slot as usize] = Some(seat);
    }

    pub(super) fn pool_for(&mut self, model: &str) -> u32 {
        if let Some(index) = self.models.get(model) {
            return *index;
        }
        let pool = Some(Pool::new(model.into(), self.policy_of(model)));
        let index = match self.vacant_pools.pop() {
            Some(index) => {
                self.pools[index as usize] = pool;
                index
            }
            None => {
                self.pools.push(pool);
                self.pools.len() as u32 - 1
            }
        };
        self.models.insert(model.into(), index);
        index
    }

    pub(super) fn serves_exactly(&self, id: EndpointId, models: &[Box<str>]) -> bool {
        let models = served(models);
        let posts = self.seat(id).map_or(&[][..], |seat| &seat.posts);
        posts.len() == models.len()
            && posts.iter().all(|post| models.contains(&*self.pool(post.pool).model))
    }

    pub(super) fn apply_policies(&mut self) {
        for pool in self.pools.iter_mut().flatten() {
            pool.policy = *self.policies.get(&pool.model).unwrap_or(&self.config.policy);
        }
    }

    pub(super) fn policy_of(&self, model: &str) -> Policy {
        *self.policies.get(model).unwrap_or(&self.config.policy)
    }

    pub(super) fn seat(&self, id: EndpointId) -> Option<&Seat> {
        self.seats.get(id.slot as usize)?.as_ref().filter(|seat| seat.id == id)
    }

    pub(super) fn pool(&self, index: u32) -> &Pool {
        self.pools[index as usize].as_ref().expect("a named pool exists")
    }

    pub(super) fn pool_mut(&mut self, index: u32) -> &mut Pool {
        self.pools[index as usize].as_mut().expect("a named pool exists")
    }
}

/// The models that count, each once.
fn served(models: &[Box<str>]) -> BTreeSet<&str> {
    models.iter().take(MODELS_MAX).map(|model| &**model).collect()
}
