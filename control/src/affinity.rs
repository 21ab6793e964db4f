//! Which replica holds a session's prefix cache.
//!
//! **The problem.** A replica that has seen a conversation answers its next turn from cache. So a session should stay
//! where it is: but not on a replica that is gone, and not for ever on one that has more work than its share, and it
//! should not wander, because each move rebuilds a cache. And a gateway that was told an old home must be able to
//! see that it is old.
//!
//! **The shape.** A binding (endpoint, epoch) per session key, made only after a replica *accepted* the attempt: a
//! binding made at dispatch would pin a session to a replica that never answered. A different endpoint raises the
//! epoch. Epochs of one key only grow: over expiry, because an expired binding is remembered for a while; and over
//! forgetting, because a key that is not remembered starts above every epoch that was forgotten.
//!
//! What a request may *not* use is decided before anybody looks here: `balance` takes drained, ejected, full and tried
//! endpoints out of its pick set first, and considers the binding only among what is left. So this room never asks
//! whether an endpoint is healthy, and a stale binding cannot beat a failover. It knows removed endpoints only, so that
//! their sessions count as unbound.
//!
//! **Moving.** While home is above its load bound, each attempt *spills*: it goes elsewhere once, and binds nothing.
//! Only after [`Config::spills_before_migration`] spills in a row, within [`Config::spill_window`], and within a
//! budget for all sessions together, is the session told to *migrate*: then the attempt, once accepted, may bind. A
//! moment's overload moves nobody, and a crowd does not move at once. Rejected: comparing queue lengths directly, which
//! sends a session back and forth between two replicas that are both near the bound.
//!
//! The state of one key, and what moves it. "Ripe" is a session that has spilled often enough.
//!
//! | state    | bind same | bind other | decide calm | decide over | time to live | release | endpoint removed |
//! |----------|-----------|------------|-------------|-------------|--------------|---------|------------------|
//! | unbound  | bound     | bound      | unbound stay | unbound spill | unbound    | unbound | unbound          |
//! | bound    | bound     | bound +1   | bound stay  | spilling spill | lapsed    | lapsed  | lapsed           |
//! | spilling | spilling  | bound +1   | bound stay  | spilling spill | lapsed    | lapsed  | lapsed           |
//! | ripe     | ripe      | bound +1   | bound stay  | ripe migrate | lapsed      | lapsed  | lapsed           |
//! | lapsed   | bound     | bound +1   | lapsed stay | lapsed spill | lapsed      | lapsed  | lapsed           |
//!
//! A last spill turns *spilling* into *ripe*. *Lapsed* answers like unbound, but remembers its epoch.
//!
//! Edges: when the endpoint was removed, "bind same" cannot happen, since a removed id never comes back. With more than
//! one gateway and no shared store, bindings are not exchanged: each gateway then falls back on the home that
//! `balance` computes from names alone, which is the same everywhere, so that two gateways never pull a session apart.

mod budget;

use alloc::collections::{BTreeMap, BTreeSet};
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{EndpointId, SessionKey};
use crate::time::Instant;
use budget::Budget;

/// The room's policy numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// A binding that was not used for this long counts no more.
    pub ttl: Duration,
    /// How long after that its epoch is remembered.
    pub memory: Duration,
    /// Sessions kept, lapsed ones included; beyond, the least recently used are forgotten. 0 keeps none.
    pub bindings_max: usize,
    /// Spills in a row before a session may migrate.
    pub spills_before_migration: u32,
    /// Spills in a row count together only within this time.
    pub spill_window: Duration,
    /// Migrations a second, over all sessions. 0 forbids them.
    pub migrations_per_second: u32,
    /// Migrations at once after a quiet time.
    pub migrations_burst: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            // The session's own lifetime in the configuration (`session.ttl`).
            ttl: Duration::from_secs(3_600),
            // An attempt lives for minutes: an hour later nobody holds the old epoch any more.
            memory: Duration::from_secs(3_600),
            // Some 150 bytes each: 15 MB at the most.
            bindings_max: 100_000,
            // Once is a burst and twice is a coincidence; a rebuilt cache costs more than three slower turns.
            spills_before_migration: 3,
            // A few turns of one conversation; spills further apart are not one overload.
            spill_window: Duration::from_secs(60),
            // A rebuilt cache costs a replica about a second of prefill: ten a second keep ten replicas from doing
            // little else.
            migrations_per_second: 10,
            migrations_burst: 20,
        }
    }
}

/// Where a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The replica that holds it.
    pub endpoint: EndpointId,
    /// Counts its homes: a binding with a lower epoch is out of date.
    pub epoch: u64,
    /// When an attempt of it was last accepted.
    pub last_used: Instant,
}

/// What `bind` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// The binding as it is now.
    pub binding: Binding,
    /// The home it had until now, if that was another one and still counted.
    pub moved_from: Option<EndpointId>,
}

/// What an attempt may do to its session's home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decision {
    /// Home has room: go there.
    Stay,
    /// Go elsewhere this once; do not bind.
    Spill,
    /// Go elsewhere, and bind there once accepted.
    Migrate,
}

/// All bindings.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Affinity {
    config: Config,
    entries: BTreeMap<SessionKey, Entry>,
    /// Every entry by its last use, oldest first.
    by_use: BTreeSet<(Instant, SessionKey)>,
    /// The newest removed generation of each slot: at most one for each slot there ever was.
    removed: BTreeMap<u32, u32>,
    /// No forgotten binding had a higher epoch.
    forgotten_epoch: u64,
    budget: Budget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    binding: Binding,
    spills: u32,
    /// When the first of `spills` was.
    spilling_since: Instant,
    /// Nobody could be asked for the session: it counts as unbound until somebody accepts it.
    released: bool,
    /// When the store that gateways share was last told of the home.
    told: Instant,
}

impl Affinity {
    /// Nobody is bound anywhere.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            entries: BTreeMap::new(),
            by_use: BTreeSet::new(),
            removed: BTreeMap::new(),
            forgotten_epoch: 0,
            budget: Budget::default(),
        }
    }

    /// Takes new numbers. A lower maximum is reached by and by, with each `bind` and `expire`.
    pub fn set_config(&mut self, config: Config) {
        self.config = config;
    }

    /// Where a session is, unless that lapsed or the endpoint was removed. Does not count as a use.
    #[must_use]
    pub fn lookup(&self, now: Instant, key: SessionKey) -> Option<Binding> {
        let entry = self.entries.get(&key)?;
        self.counts(now, entry).then_some(entry.binding)
    }

    /// A replica accepted an attempt of the session: it holds the session now. Call it after [`Decision::Spill`] never;
    /// otherwise once for each accepted attempt.
    pub fn bind(&mut self, now: Instant, key: SessionKey, endpoint: EndpointId) -> Bound {
        self.bind_above(now, key, endpoint, 0)
    }

    /// [`bind`](Self::bind), where a shared store has seen epochs up to `floor`: a new home has a higher one.
    pub fn bind_above(
        &mut self,
        now: Instant,
        key: SessionKey,
        endpoint: EndpointId,
        floor: u64,
    ) -> Bound {
        let known = self.entries.get(&key).copied();
        let entry = match known.filter(|known| known.binding.epoch >= floor) {
            Some(entry) if entry.binding.endpoint == endpoint => {
                let last_used = entry.binding.last_used.max(now);
                let spills = if self.counts(now, &entry) { entry.spills } else { 0 };
                let binding = Binding { last_used, ..entry.binding };
                Entry { binding, spills, released: false, ..entry }
            }
            Some(entry) => {
                // An epoch is never used twice: the counter ends long after the hardware.
                let raised = u64::from(!planted!(SkipFencing));
                let epoch = entry.binding.epoch.saturating_add(raised);
                Entry::new(endpoint, epoch, now.max(entry.binding.last_used))
            }
            None => {
                let seen = self.forgotten_epoch.max(floor);
                let used = known.map_or(now, |known| now.max(known.binding.last_used));
                Entry::new(endpoint, seen.saturating_add(1), used)
            }
        };
        self.put(key, entry);
        let moved_from = known
            .filter(|old| old.binding.endpoint != endpoint && self.counts(now, old))
            .map(|old| old.binding.endpoint);
        self.shrink();
        Bound { binding: entry.binding, moved_from }
    }

    /// What an attempt may do, with home above its load bound or not. Call it once for each attempt whose home may be
    /// picked; when home may not, no decision is needed: whoever accepts the attempt is bound.
    pub fn decide(&mut self, now: Instant, key: SessionKey, home_overloaded: bool) -> Decision {
        let bound = self.lookup(now, key).is_some();
        let Some(entry) = self.entries.get_mut(&key).filter(|_| bound) else {
            return if home_overloaded { Decision::Spill } else { Decision::Stay };
        };
        if !home_overloaded {
            entry.spills = 0;
            return Decision::Stay;
        }
        if entry.spills == 0 || now.since(entry.spilling_since) > self.config.spill_window {
            entry.spills = 0;
            entry.spilling_since = now;
        }
        if entry.spills < self.config.spills_before_migration {
            entry.spills += 1;
            return Decision::Spill;
        }
        if self.budget.take(now, self.config.migrations_per_second, self.config.migrations_burst) {
            Decision::Migrate
        } else {
            Decision::Spill
        }
    }

    /// A request of the session was refused because nobody could answer it: where it was is no guide any more. Its epoch
    /// is remembered.
    pub fn release(&mut self, key: SessionKey) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.released = true;
        }
    }

    /// The endpoint is gone for good: its bindings count no more. They are not searched for; each is met when it is
    /// looked up, because the slot's newest removed generation is remembered.
    pub fn endpoint_removed(&mut self, endpoint: EndpointId) {
        let newest = self.removed.entry(endpoint.slot).or_insert(endpoint.generation);
        *newest = (*newest).max(endpoint.generation);
    }

    /// Forgets up to `limit` bindings that lapsed long ago. Returns how many it forgot.
    pub fn expire(&mut self, now: Instant, limit: usize) -> usize {
        let mut forgotten = 0;
        while forgotten < limit
            && self.forget_if(|affinity, used| {
                affinity.entries.len() > affinity.config.bindings_max
                    || used + affinity.config.ttl + affinity.config.memory <= now
            })
        {
            forgotten += 1;
        }
        forgotten
    }

    /// A binding that was made earlier, as it was persisted. A lower epoch never replaces a higher one; the same epoch
    /// on the same endpoint keeps the later use. Returns whether it was taken over.
    pub fn restore(&mut self, key: SessionKey, binding: Binding) -> bool {
        let newer = self.entries.get(&key).is_none_or(|known| {
            let known = known.binding;
            (known.epoch < binding.epoch && !planted!(RecoveryKeepsOldHome))
                || (known.epoch == binding.epoch
                    && known.endpoint == binding.endpoint
                    && known.last_used < binding.last_used)
        });
        if newer {
            self.put(key, Entry::new(binding.endpoint, binding.epoch, binding.last_used));
            self.shrink();
        }
        newer
    }

    /// The epoch of a session's last home, whether or not that counts.
    #[must_use]
    pub fn epoch(&self, key: SessionKey) -> Option<u64> {
        self.entries.get(&key).map(|entry| entry.binding.epoch)
    }

    /// Whether the store that gateways share is to be told of a home again, lest it lapse there: a quarter of its time has
    /// passed. Then it counts as told.
    pub fn tells(&mut self, now: Instant, key: SessionKey) -> bool {
        let again = self.config.ttl / 4;
        let entry = self.entries.get_mut(&key).filter(|entry| now.since(entry.told) >= again);
        entry.map(|entry| entry.told = now).is_some()
    }

    /// The store that gateways share says where the session lives. It is believed where its epoch is not below our own:
    /// two gateways that moved the session at once gave its new home the same one, and the store has one of them. A session
    /// that is not remembered may have been further than a store which has lost something: it gets no lower epoch than any
    /// that was forgotten. Returns the binding, where that is new.
    pub fn adopt(&mut self, key: SessionKey, binding: Binding) -> Option<Binding> {
        let known = self.entries.get(&key).copied();
        if known.is_some_and(|known| known.binding.epoch > binding.epoch) {
            return None;
        }
        let forgotten = if known.is_none() { self.forgotten_epoch } else { 0 };
        let same = known.filter(|known| known.binding.endpoint == binding.endpoint);
        let last_used =
            known.map_or(binding.last_used, |k| k.binding.last_used.max(binding.last_used));
        let epoch = binding.epoch.max(forgotten);
        let binding = Binding { last_used, epoch, ..binding };
        let entry = match same {
            Some(entry) => Entry { binding, released: false, ..entry },
            None => Entry::new(binding.endpoint, binding.epoch, last_used),
        };
        self.put(key, entry);
        self.shrink();
        let new = known.is_none_or(|known| {
            known.released
                || (known.binding.endpoint, known.binding.epoch)
                    != (binding.endpoint, binding.epoch)
        });
        new.then_some(binding)
    }

    /// When `expire` has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let (used, _) = self.by_use.first()?;
        Some(*used + self.config.ttl + self.config.memory)
    }

    /// Sessions kept, lapsed ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no session is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Asserts that both orders hold the same sessions.
    pub fn invariants(&self) {
        assert_eq!(self.entries.len(), self.by_use.len());
        for (key, entry) in &self.entries {
            assert!(self.by_use.contains(&(entry.binding.last_used, *key)));
        }
    }

    fn counts(&self, now: Instant, entry: &Entry) -> bool {
        let binding = &entry.binding;
        let removed = self.removed.get(&binding.endpoint.slot);
        !entry.released
            && now.since(binding.last_used) < self.config.ttl
            && removed.is_none_or(|generation| *generation < binding.endpoint.generation)
    }

    fn put(&mut self, key: SessionKey, entry: Entry) {
        if let Some(before) = self.entries.insert(key, entry) {
            self.by_use.remove(&(before.binding.last_used, key));
        }
        self.by_use.insert((entry.binding.last_used, key));
    }

    /// Back below the maximum. After a `bind` one is enough; two, so that a lowered maximum is reached in the end.
    fn shrink(&mut self) {
        if self.entries.len() <= self.config.bindings_max {
            return;
        }
        for _ in 0..2 {
            self.forget_if(|affinity, _| affinity.entries.len() > affinity.config.bindings_max);
        }
    }

    /// Forgets the least recently used binding, if the condition holds for it.
    fn forget_if(&mut self, condition: impl FnOnce(&Self, Instant) -> bool) -> bool {
        let Some((used, key)) = self.by_use.first().copied() else { return false };
        if !condition(self, used) {
            return false;
        }
        self.by_use.remove(&(used, key));
        if let Some(entry) = self.entries.remove(&key)
            && !planted!(EpochForgotten)
        {
            self.forgotten_epoch = self.forgotten_epoch.max(entry.binding.epoch);
        }
        true
    }
}

impl Entry {
    fn new(endpoint: EndpointId, epoch: u64, last_used: Instant) -> Self {
        let binding = Binding { endpoint, epoch, last_used };
        Self {
            binding,
            spills: 0,
            spilling_since: Instant::ZERO,
            released: false,
            told: Instant::ZERO,
        }
    }
}

#[cfg(test)]
mod tests;
