//! The smallest of many keys, kept exactly.
//!
//! A winner tree over an array: each inner node names the better of its two children, the root names the best of
//! all. One changed key replays one path, `O(log n)`, and stops as soon as that entrant no longer matters; reading
//! the winner costs nothing. A binary heap would need a position index to change a key in the middle and sifts in
//! both directions; a sorted map allocates. Whoever may not win has no key: it cannot be named by mistake.

use alloc::vec;
use alloc::vec::Vec;
use core::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// Entrants `0..n`, of which those with a key compete; the smallest key wins, the lower index on a tie.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Tournament<K> {
    keys: Vec<Option<K>>,
    /// Node 1 is the root, node `i` has the children `2i` and `2i + 1`; nodes from `keys.len()` on are the entrants
    /// themselves and are not stored. `keys.len()` is zero or a power of two.
    winners: Vec<u32>,
}

/// No entrant: slots are 32 bits and their number is bounded far below this.
const NOBODY: u32 = u32::MAX;

impl<K> Default for Tournament<K> {
    fn default() -> Self {
        Self { keys: Vec::new(), winners: Vec::new() }
    }
}

impl<K: Ord + Copy> Tournament<K> {
    /// The entrant with the smallest key.
    pub(super) fn winner(&self) -> Option<u32> {
        if self.keys.is_empty() {
            return None;
        }
        Some(self.entrant(1)).filter(|place| *place != NOBODY)
    }

    /// The key of an entrant, if it competes.
    pub(super) fn key(&self, place: u32) -> Option<K> {
        self.keys.get(place as usize).copied().flatten()
    }

    /// Sets or clears an entrant's key.
    pub(super) fn set(&mut self, place: u32, key: Option<K>) {
        if place as usize >= self.keys.len() {
            if key.is_none() {
                return;
            }
            self.grow(place as usize + 1);
        }
        self.keys[place as usize] = key;
        self.replay(place);
    }

    /// Asserts that every node names the better of its children.
    pub(super) fn invariants(&self) {
        assert!(self.keys.is_empty() || self.keys.len().is_power_of_two());
        assert_eq!(self.winners.len(), self.keys.len());
        for node in 1..self.winners.len() {
            let better = self.better(self.entrant(2 * node), self.entrant(2 * node + 1));
            assert_eq!(self.winners[node], better, "a stale winner at node {node}");
        }
    }

    fn grow(&mut self, needed: usize) {
        let size = needed.next_power_of_two();
        self.keys.resize(size, None);
        self.winners = vec![NOBODY; size];
        for node in (1..size).rev() {
            self.winners[node] = self.better(self.entrant(2 * node), self.entrant(2 * node + 1));
        }
    }

    fn replay(&mut self, place: u32) {
        let mut node = (self.keys.len() + place as usize) / 2;
        while node >= 1 {
            let before = self.winners[node];
            let after = self.better(self.entrant(2 * node), self.entrant(2 * node + 1));
            self.winners[node] = after;
            if before != place && after != place {
                // It neither won here nor wins here: nobody above ever met it.
                return;
            }
            node /= 2;
        }
    }

    fn entrant(&self, node: usize) -> u32 {
        match node.checked_sub(self.keys.len()) {
            None => self.winners[node],
            Some(place) if self.keys[place].is_some() => place as u32,
            Some(_) => NOBODY,
        }
    }

    fn better(&self, left: u32, right: u32) -> u32 {
        if left == NOBODY {
            return right;
        }
        if right == NOBODY {
            return left;
        }
        // A left child's places are all lower: it takes the tie.
        match self.keys[right as usize].cmp(&self.keys[left as usize]) {
            Ordering::Less => right,
            Ordering::Equal | Ordering::Greater => left,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_winner_is_the_smallest_key_after_any_changes(
            changes in prop::collection::vec((0_u32..40, prop::option::of(0_u8..10)), 1..120),
        ) {
            let mut tournament = Tournament::default();
            let mut keys = [None; 40];
            for (place, key) in changes {
                tournament.set(place, key);
                keys[place as usize] = key;
                tournament.invariants();
                let best = (0..40_u32).filter_map(|p| Some((keys[p as usize]?, p))).min();
                prop_assert_eq!(tournament.winner(), best.map(|(_, place)| place));
                prop_assert_eq!(tournament.key(place), key);
            }
        }
    }
}
