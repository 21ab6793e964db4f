//! The replicas of one model, tier by tier.

use alloc::boxed::Box;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::pick::Nobody;
use super::policy::{Config, Policy};
use super::tier::Tier;

/// A model's replicas. A pool without members does not exist.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Pool {
    pub(super) model: Box<str>,
    pub(super) policy: Policy,
    /// Sorted by tier number; none is empty.
    tiers: Vec<(u8, Tier)>,
}

impl Pool {
    pub(super) fn new(model: Box<str>, policy: Policy) -> Self {
        Self { model, policy, tiers: Vec::new() }
    }

    /// The tier of that number, which must exist.
    pub(super) fn tier(&mut self, number: u8) -> &mut Tier {
        let index = self.tiers.binary_search_by_key(&number, |(number, _)| *number);
        &mut self.tiers[index.expect("a member's tier exists")].1
    }

    /// As `tier`, to read.
    pub(super) fn tier_ref(&self, number: u8) -> Option<&Tier> {
        let index = self.tiers.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        Some(&self.tiers[index].1)
    }

    /// The tier of that number, made if there is none.
    pub(super) fn tier_or_new(&mut self, number: u8) -> &mut Tier {
        if let Err(index) = self.tiers.binary_search_by_key(&number, |(number, _)| *number) {
            self.tiers.insert(index, (number, Tier::default()));
        }
        self.tier(number)
    }

    /// Drops a tier that has no members left.
    pub(super) fn prune(&mut self) {
        self.tiers.retain(|(_, tier)| tier.members() > 0);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tiers.is_empty()
    }

    /// The tier to pick from, and whether in panic: the first with an admitted member that takes work. Panic is for
    /// when no other tier could help.
    pub(super) fn open_tier(&self, config: &Config) -> Option<(u8, bool)> {
        let mut open = self.tiers.iter().filter(|(_, tier)| tier.is_open());
        if let Some((number, tier)) = open.next() {
            return Some((*number, open.next().is_none() && tier.panics(config)));
        }
        let panicking = self.tiers.iter().find(|(_, tier)| tier.panics(config))?;
        Some((panicking.0, true))
    }

    /// The counts behind a refusal.
    pub(super) fn nobody(&self, tried: u32) -> Nobody {
        let mut nobody = Nobody { tried, ..Nobody::default() };
        for (_, tier) in &self.tiers {
            nobody.members += tier.members();
            nobody.draining += tier.draining();
            nobody.ejected += tier.ejected();
            nobody.full += tier.full();
        }
        nobody
    }

    /// Asserts what each tier asserts, and that they are in order.
    pub(super) fn invariants(&self) {
        assert!(!self.is_empty(), "a pool without members was kept");
        assert!(self.tiers.is_sorted_by(|left, right| left.0 < right.0));
        for (_, tier) in &self.tiers {
            assert!(tier.members() > 0, "a tier without members was kept");
            tier.invariants();
        }
    }

    /// Members in all tiers.
    pub(super) fn members(&self) -> u32 {
        self.tiers.iter().map(|(_, tier)| tier.members()).sum()
    }
}
