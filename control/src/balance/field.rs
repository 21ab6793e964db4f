//! The pick set: who may be picked, in every order a policy asks for.
//!
//! A field holds exactly those members of a tier that stand the same way (admitted, or ejected), take new work and are
//! not full. A member that may not be picked is not in it, so that no policy needs to look, and none can forget to.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::tournament::Tournament;

/// What competes for the least load: what this plane has in flight there, per weight; on a tie, whoever was picked longest
/// ago.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Load {
    pub(super) in_flight: u32,
    /// Work that others gave it, by its own word: see [`Work`].
    pub(super) others: u32,
    /// Never zero.
    pub(super) weight: u32,
    /// Sequence number of the last pick, so that equals take turns.
    pub(super) last_picked: u64,
}

impl Ord for Load {
    fn cmp(&self, other: &Self) -> Ordering {
        let mine = u64::from(self.in_flight) * u64::from(other.weight);
        let theirs = u64::from(other.in_flight) * u64::from(self.weight);
        mine.cmp(&theirs).then(self.last_picked.cmp(&other.last_picked))
    }
}

impl PartialOrd for Load {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Load {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Load {}

/// The same load, with the work of others.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Work(pub(super) Load);

impl Work {
    fn all(&self) -> u64 {
        u64::from(self.0.in_flight) + u64::from(self.0.others)
    }
}

impl Ord for Work {
    fn cmp(&self, other: &Self) -> Ordering {
        let mine = self.all() * u64::from(other.0.weight);
        let theirs = other.all() * u64::from(self.0.weight);
        mine.cmp(&theirs).then(self.0.last_picked.cmp(&other.0.last_picked))
    }
}

impl PartialOrd for Work {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Work {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Work {}

/// Places that may be picked: dense for draws, in a tournament by load, in one by that and the work of
/// others, and in one by virtual deadline.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Field {
    dense: Vec<u32>,
    /// Where a place stands in `dense`, or `ABSENT`.
    positions: Vec<u32>,
    load: Tournament<Load>,
    /// By load and the work of others, from the first report on: where nobody ever reports it would be the same order kept
    /// twice, at half as much again for a pick. Built once, in the step of that report.
    work: Option<Tournament<Work>>,
    turn: Tournament<u128>,
    /// How many members have which weight: the greatest scales the acceptance of a weighted draw.
    weights: BTreeMap<u32, u32>,
    weight: u64,
    in_flight: u64,
}

const ABSENT: u32 = u32::MAX;

impl Field {
    pub(super) fn insert(&mut self, place: u32, load: Load, deadline: u128) {
        assert!(!self.contains(place), "a place enters a field once");
        if self.positions.len() <= place as usize {
            self.positions.resize(place as usize + 1, ABSENT);
        }
        self.positions[place as usize] = self.dense.len() as u32;
        self.dense.push(place);
        self.set_load(place, load);
        self.turn.set(place, Some(deadline));
        *self.weights.entry(load.weight).or_default() += 1;
        self.weight += u64::from(load.weight);
        self.in_flight += u64::from(load.in_flight);
    }

    pub(super) fn remove(&mut self, place: u32) {
        let load = self.load.key(place).expect("only a member of the field is removed from it");
        let position = self.positions[place as usize];
        self.positions[place as usize] = ABSENT;
        self.dense.swap_remove(position as usize);
        if let Some(moved) = self.dense.get(position as usize) {
            self.positions[*moved as usize] = position;
        }
        self.load.set(place, None);
        if let Some(work) = &mut self.work {
            work.set(place, None);
        }
        self.turn.set(place, None);
        if let Some(count) = self.weights.get_mut(&load.weight) {
            *count -= 1;
            if *count == 0 {
                self.weights.remove(&load.weight);
            }
        }
        self.weight -= u64::from(load.weight);
        self.in_flight -= u64::from(load.in_flight);
    }

    /// A member's load changed, its weight did not.
    pub(super) fn reload(&mut self, place: u32, load: Load) {
        let before = self.load.key(place).expect("only a member of the field changes its load");
        debug_assert_eq!(before.weight, load.weight);
        self.in_flight = self.in_flight - u64::from(before.in_flight) + u64::from(load.in_flight);
        self.set_load(place, load);
    }

    fn set_load(&mut self, place: u32, load: Load) {
        self.load.set(place, Some(load));
        match &mut self.work {
            Some(work) => work.set(place, Some(Work(load))),
            None if load.others > 0 => self.order_by_work(),
            None => {}
        }
    }

    fn order_by_work(&mut self) {
        let mut work = Tournament::default();
        for place in &self.dense {
            work.set(*place, self.load.key(*place).map(Work));
        }
        self.work = Some(work);
    }

    /// A member's turn comes at another virtual time.
    pub(super) fn reschedule(&mut self, place: u32, deadline: u128) {
        self.turn.set(place, Some(deadline));
    }

    pub(super) fn contains(&self, place: u32) -> bool {
        self.positions.get(place as usize).is_some_and(|position| *position != ABSENT)
    }

    pub(super) fn len(&self) -> u32 {
        self.dense.len() as u32
    }

    pub(super) fn is_empty(&self) -> bool {
        self.dense.is_empty()
    }

    /// The member at a position below `len`.
    pub(super) fn at(&self, position: u32) -> u32 {
        self.dense[position as usize]
    }

    /// The member with the least work, that of others included.
    pub(super) fn least_work(&self) -> Option<(Work, u32)> {
        match &self.work {
            Some(work) => work.winner().and_then(|place| Some((work.key(place)?, place))),
            None => self.least().map(|(load, place)| (Work(load), place)),
        }
    }

    /// The member with the least load.
    pub(super) fn least(&self) -> Option<(Load, u32)> {
        let place = self.load.winner()?;
        Some((self.load.key(place)?, place))
    }

    /// The member whose turn is due first.
    pub(super) fn next(&self) -> Option<(u128, u32)> {
        let place = self.turn.winner()?;
        Some((self.turn.key(place)?, place))
    }

    pub(super) fn weight_max(&self) -> u32 {
        self.weights.last_key_value().map_or(0, |(weight, _)| *weight)
    }

    /// Sum of the members' weights.
    pub(super) fn weight(&self) -> u64 {
        self.weight
    }

    /// Sum of the members' work in flight.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Asserts that every order holds the same members.
    pub(super) fn invariants(&self) {
        self.load.invariants();
        self.work.iter().for_each(Tournament::invariants);
        self.turn.invariants();
        let (mut weight, mut in_flight) = (0, 0);
        for (position, place) in self.dense.iter().enumerate() {
            assert_eq!(self.positions[*place as usize] as usize, position);
            assert!(self.turn.key(*place).is_some());
            let load = self.load.key(*place).expect("a member of a field competes");
            let work = self.work.as_ref().map(|work| work.key(*place));
            assert_eq!(work.unwrap_or(Some(Work(load))), Some(Work(load)));
            assert!(self.work.is_some() || load.others == 0, "a report orders nobody");
            assert!(self.weights.contains_key(&load.weight));
            weight += u64::from(load.weight);
            in_flight += u64::from(load.in_flight);
        }
        let present = self.positions.iter().filter(|position| **position != ABSENT).count();
        assert_eq!(present, self.dense.len());
        assert_eq!((self.weight, self.in_flight), (weight, in_flight));
        assert_eq!(self.weights.values().map(|n| *n as usize).sum::<usize>(), self.dense.len());
    }
}
