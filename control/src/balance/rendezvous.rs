//! The home of a key: weighted rendezvous over a trie of name hashes.
//!
//! Every gateway must find the same home for a key without asking anybody, so a home may depend on nothing but the
//! members' names and weights, and the key. Rendezvous hashing (Thaler and Ravishankar, 1998) with the weights of
//! Mosko's logarithmic method gives that: the member with the smallest `-ln(u) / weight` wins, `u` being a hash of
//! key and member, uniform in (0, 1). That minimum of exponentials is won in exact proportion to weight, and a member
//! that leaves gives away only what it had, in proportion to everybody else's weight.
//!
//! Plain rendezvous costs a hash per member. So members sit in a 16-way trie by the nibbles of their name's hash:
//! a subtree of at most [`LEAF_MAX`] members is one leaf, searched plainly; a larger one is an inner node, whose
//! children are drawn by the weights of their subtrees, then descended into. The shape is a function of the set of
//! hashes, never of the order in which they came, so histories do not matter. A ring or Maglev table was rejected:
//! both need a rebuild of `O(n)` or more for one change and hold shares only to within tens of percent.
//!
//! Eligibility never enters here. A home that is down is passed over by the caller, which goes on to the key's next
//! choice: in a pool that is one leaf, the exact rendezvous order; in a larger one, a fresh draw with the draw's
//! number in the hash. Either way the sessions of one dead home land on all survivors, not on one neighbour.
//!
//! Edges: a pool that grows past [`LEAF_MAX`] (or shrinks back) changes from plain to two-level choice and moves most
//! of its keys once. A larger pool that gains a member moves about as many times the ideal as the trie has levels.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem;

use serde::{Deserialize, Serialize};

use crate::rng::mix;

/// Members in one leaf. Sixteen would cost a little less (a leaf is searched plainly, some 3 ns a member), but a pool
/// moves most keys once when it outgrows its only leaf, and pools of 17 replicas are common, pools of 65 are not.
pub(super) const LEAF_MAX: usize = 64;

/// How often a key is drawn anew in a pool of several leaves: with half of a pool gone, eight draws in a row hit
/// nobody once in 256 keys; those go to the least loaded.
pub(super) const DRAWS_MAX: u64 = 8;

/// Nibbles in a hash. Below that, names collide in all 64 bits and share a leaf of any size.
const DEPTH_MAX: u32 = 16;

/// A member as the trie knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Hash of the member's name.
    pub(super) hash: u64,
    /// Its configured weight: slow start and health do not move homes.
    pub(super) weight: u32,
    /// Its place in the tier. Decides nothing, except between two members of the same name.
    pub(super) place: u32,
}

/// The members of a tier, by the hash of their names.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Trie {
    root: Node,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Node {
    /// Sorted by hash.
    Leaf(Vec<Entry>),
    Inner(Box<Inner>),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Inner {
    members: u32,
    /// Sums of the children's weights.
    weights: [u64; 16],
    children: [Node; 16],
}

impl Default for Node {
    fn default() -> Self {
        Self::Leaf(Vec::new())
    }
}

impl Trie {
    pub(super) fn insert(&mut self, entry: Entry) {
        self.root.insert(entry, 0);
    }

    /// Removes an entry, which must be there as it was inserted.
    pub(super) fn remove(&mut self, entry: Entry) {
        self.root.remove(entry, 0);
    }

    /// The places of a key, best first. Ends after the last member, or after [`DRAWS_MAX`] draws.
    pub(super) fn ranking(&self, key: u64) -> Ranking<'_> {
        Ranking { trie: self, key, step: 0, order: Vec::new() }
    }

    /// Asserts the canonical shape and counts the members.
    pub(super) fn invariants(&self) -> usize {
        self.root.invariants(0).0
    }

    fn draw(&self, key: u64, number: u64) -> Option<u32> {
        let seed = seed(key, number);
        let (mut node, mut prefix, mut depth) = (&self.root, 0, 0);
        loop {
            match node {
                Node::Leaf(entries) => {
                    let members = entries.iter().map(|entry| (entry.hash, u64::from(entry.weight)));
                    return cheapest(seed, members).map(|index| entries[index].place);
                }
                Node::Inner(inner) => {
                    let children = inner.weights.iter().enumerate().map(|(index, weight)| {
                        (identity(prefix | nibble_at(index, depth), depth), *weight)
                    });
                    let index = cheapest(seed, children)?;
                    prefix |= nibble_at(index, depth);
                    node = &inner.children[index];
                    depth += 1;
                }
            }
        }
    }
}

/// Walks a key's homes, best first.
pub(super) struct Ranking<'a> {
    trie: &'a Trie,
    key: u64,
    step: usize,
    /// The whole order of a one-leaf trie, made only when its first home would not do.
    order: Vec<(f64, u32)>,
}

impl Iterator for Ranking<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let step = self.step;
        self.step += 1;
        if step == 0 {
            return self.trie.draw(self.key, 0);
        }
        match &self.trie.root {
            Node::Leaf(entries) => {
                if step == 1 {
                    self.order = in_order(seed(self.key, 0), entries);
                }
                self.order.get(step).map(|(_, place)| *place)
            }
            Node::Inner(_) if step as u64 >= DRAWS_MAX => None,
            Node::Inner(_) => self.trie.draw(self.key, step as u64),
        }
    }
}

impl Node {
    fn insert(&mut self, entry: Entry, depth: u32) {
        match self {
            Self::Leaf(entries) => {
                let before = |other: &Entry| (other.hash, other.place) < (entry.hash, entry.place);
                let index = entries.partition_point(before);
                entries.insert(index, entry);
                if entries.len() > LEAF_MAX && depth < DEPTH_MAX {
                    *self = Self::split(mem::take(entries), depth);
                }
            }
            Self::Inner(inner) => inner.insert(entry, depth),
        }
    }

    fn remove(&mut self, entry: Entry, depth: u32) {
        match self {
            Self::Leaf(entries) => {
                let index = entries.iter().position(|other| *other == entry);
                entries.remove(index.expect("what leaves the trie was inserted as it is"));
            }
            Self::Inner(inner) => {
                let index = nibble(entry.hash, depth);
                inner.members -= 1;
                inner.weights[index] -= u64::from(entry.weight);
                inner.children[index].remove(entry, depth + 1);
                if inner.members as usize <= LEAF_MAX {
                    let mut entries = Vec::with_capacity(LEAF_MAX);
                    self.collect(&mut entries);
                    *self = Self::Leaf(entries);
                }
            }
        }
    }

    fn split(entries: Vec<Entry>, depth: u32) -> Self {
        let mut inner = Inner {
            members: 0,
            weights: [0; 16],
            children: core::array::from_fn(|_| Self::default()),
        };
        for entry in entries {
            inner.insert(entry, depth);
        }
        Self::Inner(Box::new(inner))
    }

    /// In order of hash: the children stand in the order of their nibble.
    fn collect(&self, into: &mut Vec<Entry>) {
        match self {
            Self::Leaf(entries) => into.extend_from_slice(entries),
            Self::Inner(inner) => inner.children.iter().for_each(|child| child.collect(into)),
        }
    }

    fn invariants(&self, depth: u32) -> (usize, u64) {
        match self {
            Self::Leaf(entries) => {
                assert!(entries.len() <= LEAF_MAX || depth == DEPTH_MAX);
                assert!(entries.is_sorted_by_key(|entry| (entry.hash, entry.place)));
                (entries.len(), entries.iter().map(|entry| u64::from(entry.weight)).sum())
            }
            Self::Inner(inner) => {
                let mut sum = (0, 0);
                for (child, weight) in inner.children.iter().zip(inner.weights) {
                    let below = child.invariants(depth + 1);
                    assert_eq!(below.1, weight, "a subtree's weight is the sum of its members'");
                    sum = (sum.0 + below.0, sum.1 + below.1);
                }
                assert_eq!(sum.0, inner.members as usize);
                assert!(sum.0 > LEAF_MAX, "a subtree that fits in a leaf is a leaf");
                sum
            }
        }
    }
}

impl Inner {
    fn insert(&mut self, entry: Entry, depth: u32) {
        let index = nibble(entry.hash, depth);
        self.members += 1;
        self.weights[index] += u64::from(entry.weight);
        self.children[index].insert(entry, depth + 1);
    }
}

fn nibble(hash: u64, depth: u32) -> usize {
    ((hash >> (60 - 4 * depth)) & 15) as usize
}

fn nibble_at(index: usize, depth: u32) -> u64 {
    (index as u64) << (60 - 4 * depth)
}

/// What an inner node's child is hashed as: its prefix, and how long that is.
fn identity(prefix: u64, depth: u32) -> u64 {
    mix(prefix ^ u64::from(depth + 1).wrapping_mul(0xd6e8_feb8_6659_fd93))
}

fn seed(key: u64, number: u64) -> u64 {
    mix(key ^ number.wrapping_mul(0xa076_1d64_78bd_642f))
}

/// A hash as a number in (0, 1), exactly: 52 bits and a half.
fn uniform(hash: u64) -> f64 {
    ((hash >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
}

fn cost(u: f64, weight: f64) -> f64 {
    -libm::log(u) / weight
}

/// The index of the smallest `-ln(u) / weight`. Since `-ln(u) >= 1 - u`, most contenders are out before a logarithm
/// is taken; their order is fixed, so every gateway skips the same.
fn cheapest(seed: u64, contenders: impl Iterator<Item = (u64, u64)>) -> Option<usize> {
    let (mut best, mut winner) = (f64::INFINITY, None);
    for (index, (identity, weight)) in contenders.enumerate() {
        if weight == 0 {
            continue;
        }
        let (u, weight) = (uniform(mix(seed ^ identity)), weight as f64);
        if 1.0 - u >= best * weight {
            continue;
        }
        let cost = cost(u, weight);
        if cost < best {
            (best, winner) = (cost, Some(index));
        }
    }
    winner
}

fn in_order(seed: u64, entries: &[Entry]) -> Vec<(f64, u32)> {
    let scored = |entry: &Entry| {
        (cost(uniform(mix(seed ^ entry.hash)), f64::from(entry.weight)), entry.place)
    };
    let mut order: Vec<_> = entries.iter().map(scored).collect();
    order.sort_by(|left, right| left.0.total_cmp(&right.0));
    order
}

#[cfg(test)]
mod tests;
