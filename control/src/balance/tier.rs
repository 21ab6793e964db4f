//! The members of one model that share a priority, in every order a policy asks for.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::field::{Field, Load, Work};
use super::policy::Config;
use super::rendezvous::{Entry, Trie};
use crate::id::EndpointId;

/// Virtual time between two turns of a member of weight 1. With 48 fractional bits a weight of a million is off by
/// less than 2^-28, and a 128-bit time lasts for 2^80 such turns.
const SCALE: u128 = 1 << 48;

/// One tier of a pool. Members have places `0..n`; the last moves into the gap when one leaves.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Tier {
    places: Vec<Place>,
    open: Field,
    ejected: Field,
    counts: [u32; Class::ALL.len()],
    trie: Trie,
    /// The deadline of the latest turn, as far as the turns were in order: nobody's in the pick set lies before it.
    virtual_now: u128,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Place {
    id: EndpointId,
    name_hash: u64,
    /// As configured; `facts.weight` is what slow start leaves of it.
    weight: u32,
    facts: Facts,
    /// When its turn comes, in virtual time.
    deadline: u128,
    last_picked: u64,
    /// Taken out of its field for the length of one pick.
    lifted: bool,
}

/// What a tier needs to know about a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) class: Class,
    /// Effective: never zero.
    pub(super) weight: u32,
    pub(super) in_flight: u32,
    /// Work that others gave it, by its own word.
    pub(super) others: u32,
}

/// How a member stands. Only `Open` ones are in the pick set, in panic also `Ejected` ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Class {
    Open,
    Full,
    Ejected,
    EjectedFull,
    Draining,
}

impl Class {
    const ALL: [Self; 5] =
        [Self::Open, Self::Full, Self::Ejected, Self::EjectedFull, Self::Draining];
}

impl Tier {
    /// Adds a member and returns its place.
    pub(super) fn insert(&mut self, id: EndpointId, hash: u64, weight: u32, facts: Facts) -> u32 {
        let place = self.places.len() as u32;
        // Half a turn into the future: in the middle of the others, rather than before or after all of them.
        let deadline = self.virtual_now + period(facts.weight) / 2;
        let (last_picked, lifted) = (0, false);
        self.places.push(Place {
            id,
            name_hash: hash,
            weight,
            facts,
            deadline,
            last_picked,
            lifted,
        });
        self.trie.insert(self.entry(place));
        self.counts[facts.class as usize] += 1;
        self.enter(place);
        place
    }

    /// Removes a member. Whoever had the last place has this one now, and is returned.
    pub(super) fn remove(&mut self, place: u32) -> Option<EndpointId> {
        let last = self.places.len() as u32 - 1;
        self.counts[self.places[place as usize].facts.class as usize] -= 1;
        for moving in [Some(place), (last != place).then_some(last)].into_iter().flatten() {
            self.leave(moving);
            self.trie.remove(self.entry(moving));
        }
        self.places.swap_remove(place as usize);
        if last == place {
            return None;
        }
        self.trie.insert(self.entry(place));
        self.enter(place);
        Some(self.places[place as usize].id)
    }

    /// Changes a member's configured weight.
    pub(super) fn reweigh(&mut self, place: u32, weight: u32) {
        if self.places[place as usize].weight != weight {
            self.trie.remove(self.entry(place));
            self.places[place as usize].weight = weight;
            self.trie.insert(self.entry(place));
        }
    }

    /// Brings a member up to date with its endpoint.
    pub(super) fn refresh(&mut self, place: u32, facts: Facts) {
        let before = self.places[place as usize].facts;
        if before == facts {
            return;
        }
        if (before.class, before.weight) == (facts.class, facts.weight) {
            self.places[place as usize].facts = facts;
            let load = self.load(place);
            if let Some(field) = self.field_of(facts.class) {
                field.reload(place, load);
            }
            return;
        }
        self.leave(place);
        self.counts[before.class as usize] -= 1;
        self.counts[facts.class as usize] += 1;
        self.places[place as usize].facts = facts;
        self.replan(place, before);
        self.enter(place);
    }

    /// Takes a member out of its field for the length of one pick. Returns whether it was in one.
    pub(super) fn lift(&mut self, place: u32) -> bool {
        if !self.open.contains(place) && !self.ejected.contains(place) {
            return false;
        }
        self.leave(place);
        self.places[place as usize].lifted = true;
        true
    }

    /// Ends what `lift` began. A turn that was taken meanwhile was taken out of order: virtual time goes no further than
    /// to whoever still waits for an earlier one. Were it to run ahead, by the hundred turns that a light member is worth,
    /// a member that returns would wait behind all that the others have to catch up.
    pub(super) fn lower(&mut self, place: u32) {
        let member = &mut self.places[place as usize];
        if core::mem::take(&mut member.lifted) {
            if member.facts.class == Class::Open {
                self.virtual_now = self.virtual_now.min(member.deadline);
            }
            self.enter(place);
        }
    }

    /// Who may be picked: the admitted, and in panic the ejected as well.
    pub(super) fn scope(&self, panic: bool) -> Scope<'_> {
        Scope { tier: self, panic }
    }

    /// Remembers that a member was picked, so that it comes last among its equals.
    pub(super) fn picked(&mut self, place: u32, sequence: u64) {
        self.places[place as usize].last_picked = sequence;
        let load = self.load(place);
        let class = self.places[place as usize].facts.class;
        if let Some(field) = self.field_of(class) {
            field.reload(place, load);
        }
    }

    /// Moves a member's turn on by one.
    pub(super) fn took_turn(&mut self, place: u32) {
        let member = &mut self.places[place as usize];
        self.virtual_now = self.virtual_now.max(member.deadline);
        member.deadline += period(member.facts.weight);
        let (class, deadline) = (member.facts.class, member.deadline);
        if let Some(field) = self.field_of(class) {
            field.reschedule(place, deadline);
        }
    }

    /// Whether so few are admitted that the ejections look wrong, and somebody ejected could be picked instead.
    pub(super) fn panics(&self, config: &Config) -> bool {
        let live = self.live();
        let admitted = u64::from(live - self.ejected());
        live >= config.panic_members_min
            && admitted * 100 < u64::from(config.panic_percent) * u64::from(live)
            && !self.ejected.is_empty()
    }

    /// Whether an admitted member can be picked.
    pub(super) fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    pub(super) fn members(&self) -> u32 {
        self.places.len() as u32
    }

    /// Members that do not drain.
    pub(super) fn live(&self) -> u32 {
        self.members() - self.draining()
    }

    pub(super) fn draining(&self) -> u32 {
        self.counts[Class::Draining as usize]
    }

    /// Members that do not drain and are not admitted.
    pub(super) fn ejected(&self) -> u32 {
        self.counts[Class::Ejected as usize] + self.counts[Class::EjectedFull as usize]
    }

    /// Members that are admitted and full.
    pub(super) fn full(&self) -> u32 {
        self.counts[Class::Full as usize]
    }

    pub(super) fn id(&self, place: u32) -> EndpointId {
        self.places[place as usize].id
    }

    pub(super) fn facts(&self, place: u32) -> Facts {
        self.places[place as usize].facts
    }

    /// Asserts that fields, counts and trie hold exactly the members they should.
    pub(super) fn invariants(&self) {
        self.open.invariants();
        self.ejected.invariants();
        assert_eq!(self.trie.invariants(), self.places.len());
        let mut counts = [0; Class::ALL.len()];
        for (place, member) in (0..).zip(&self.places) {
            counts[member.facts.class as usize] += 1;
            assert!(!member.lifted, "a member was left out after a pick");
            assert!(member.facts.weight > 0 && member.weight > 0);
            assert_eq!(self.open.contains(place), member.facts.class == Class::Open);
            let behind = member.facts.class == Class::Open && member.deadline < self.virtual_now;
            assert!(!behind, "a turn lies behind those that were taken");
            assert_eq!(self.ejected.contains(place), member.facts.class == Class::Ejected);
        }
        assert_eq!(counts, self.counts);
        assert_eq!(self.open.len() + self.ejected.len(), counts[0] + counts[2]);
    }

    /// When a member's next turn comes after its weight or standing changed.
    fn replan(&mut self, place: u32, before: Facts) {
        let now = self.virtual_now;
        let member = &mut self.places[place as usize];
        let facts = member.facts;
        if facts.weight != before.weight {
            // What is left to wait shrinks as the weight grows: slow start does not wait out its first long period.
            let left = member.deadline.saturating_sub(now);
            member.deadline = now + left * u128::from(before.weight) / u128::from(facts.weight);
        }
        if facts.class != before.class && member.deadline < now {
            // It missed turns while it was away. They are not made up for: that would be a burst.
            member.deadline = now + period(facts.weight) / 2;
        }
    }

    fn enter(&mut self, place: u32) {
        let (load, member) = (self.load(place), &self.places[place as usize]);
        let (class, deadline) = (member.facts.class, member.deadline);
        if let Some(field) = self.field_of(class) {
            field.insert(place, load, deadline);
        }
    }

    fn leave(&mut self, place: u32) {
        let class = self.places[place as usize].facts.class;
        if let Some(field) = self.field_of(class) {
            field.remove(place);
        }
    }

    fn field_of(&mut self, class: Class) -> Option<&mut Field> {
        match class {
            Class::Open => Some(&mut self.open),
            Class::Ejected => Some(&mut self.ejected),
            Class::Full | Class::EjectedFull | Class::Draining => None,
        }
    }

    fn load(&self, place: u32) -> Load {
        let Place { facts, last_picked, .. } = &self.places[place as usize];
        let Facts { weight, in_flight, others, class: _ } = *facts;
        Load { in_flight, others, weight, last_picked: *last_picked }
    }

    fn entry(&self, place: u32) -> Entry {
        let Place { name_hash, weight, .. } = &self.places[place as usize];
        Entry { hash: *name_hash, weight: *weight, place }
    }
}

/// A pick set: one field, or in panic both. Everything it names may be picked.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    tier: &'a Tier,
    panic: bool,
}

impl<'a> Scope<'a> {
    pub(super) fn contains(&self, place: u32) -> bool {
        self.fields().any(|field| field.contains(place))
    }

    pub(super) fn len(&self) -> u32 {
        self.fields().map(Field::len).sum()
    }

    /// The member at a position below `len`.
    pub(super) fn at(&self, position: u32) -> u32 {
        match position.checked_sub(self.tier.open.len()) {
            None => self.tier.open.at(position),
            Some(position) => self.tier.ejected.at(position),
        }
    }

    /// The member with the least work, that of others included; or, where that one is above the bound on what this plane
    /// itself sent there, the one that was sent least. Were reports believed without the bound, a pool of which all but one
    /// claim to be busy would leave everything to that one.
    pub(super) fn least(&self, bound_percent: u32) -> Option<u32> {
        let least = self.fields().filter_map(Field::least_work).min().map(|(_, place)| place)?;
        if self.fits(least, bound_percent) || planted!(ReportsUnbounded) {
            return Some(least);
        }
        self.fields().filter_map(Field::least).min().map(|(_, place)| place)
    }

    /// Of two members the one to pick, by the same rule.
    pub(super) fn less(&self, first: u32, second: u32, bound_percent: u32) -> bool {
        let (one, other) = (self.load(first), self.load(second));
        let by_work = Work(one) < Work(other);
        let fits = |place| self.fits(place, bound_percent) || planted!(ReportsUnbounded);
        if by_work == (one < other) || fits(if by_work { first } else { second }) {
            return by_work;
        }
        one < other
    }

    pub(super) fn next(&self) -> Option<u32> {
        self.fields().filter_map(Field::next).min().map(|(_, place)| place)
    }

    pub(super) fn load(&self, place: u32) -> Load {
        self.tier.load(place)
    }

    pub(super) fn weight_max(&self) -> u32 {
        self.fields().map(Field::weight_max).max().unwrap_or(0)
    }

    /// Whether one more keeps a member at or under `ceil(bound x mean)`, the mean weighted and counted with that one.
    /// With a bound of at least 1, the least loaded member always fits.
    pub(super) fn fits(&self, place: u32, bound_percent: u32) -> bool {
        let facts = self.tier.facts(place);
        let weight: u64 = self.fields().map(Field::weight).sum();
        let in_flight: u64 = self.fields().map(Field::in_flight).sum();
        // n + 1 <= ceil(x / y) says the same as n * y < x, and needs no division.
        let bound = u128::from(bound_percent.max(100)) * u128::from(in_flight + 1);
        let limit = bound * u128::from(facts.weight);
        u128::from(facts.in_flight) * u128::from(weight) * 100 < limit
    }

    /// A key's homes, best first, whether or not they may be picked.
    pub(super) fn ranking(&self, key: u64) -> impl Iterator<Item = u32> + use<'a> {
        self.tier.trie.ranking(key)
    }

    fn fields(&self) -> impl Iterator<Item = &'a Field> + use<'a> {
        [Some(&self.tier.open), self.panic.then_some(&self.tier.ejected)].into_iter().flatten()
    }
}

fn period(weight: u32) -> u128 {
    SCALE / u128::from(weight)
}
