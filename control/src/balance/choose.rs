//! One policy, applied to one pick set.

use super::pick::{Candidate, Considered, Reason, WhyNot};
use super::policy::{Fallback, Policy};
use super::tier::{Class, Facts, Scope, Tier};
use crate::id::{EndpointId, SessionKey};
use crate::rng::Rng;

/// How often a weighted draw is repeated before it is taken as it is. A member of average weight is accepted at once
/// in most pools; where one outweighs all others, eight misses in a row leave it to the comparison of loads.
const TRIES_MAX: u32 = 8;

/// A pick in the making: the tier is settled, the member is not. The pick set is not empty.
pub(super) struct Choice<'a> {
    pub(super) tier: &'a mut Tier,
    pub(super) panic: bool,
    pub(super) bound_percent: u32,
    pub(super) sequence: u64,
    pub(super) considered: &'a mut Considered,
}

/// Which session asks, and where it was.
#[derive(Clone, Copy)]
pub(super) struct Session {
    pub(super) key: Option<SessionKey>,
    /// Its replica's place, if that is in this tier.
    pub(super) bound: Option<u32>,
}

impl Choice<'_> {
    /// The place picked, and why.
    pub(super) fn choose(
        &mut self,
        policy: Policy,
        session: Session,
        rng: &mut Rng,
    ) -> (u32, Reason) {
        let (place, reason) = match policy {
            Policy::RoundRobin => (self.in_turn(), Reason::InTurn),
            Policy::LeastLoad => (self.least(), Reason::LeastLoaded),
            Policy::P2c => (self.two_choices(rng), Reason::TwoChoices),
            Policy::Sticky { fallback } => self.affine(session, fallback),
            Policy::Auto => self.affine(session, Fallback::Rendezvous),
        };
        if reason != Reason::TwoChoices {
            // Two random ones need no turn-taking, and are the cheapest policy without.
            self.tier.picked(place, self.sequence);
        }
        self.considered.settle(candidate(self.tier, place, None));
        (place, reason)
    }

    fn in_turn(&mut self) -> u32 {
        let place = self.scope().next().expect("a pick set is not empty");
        self.tier.took_turn(place);
        place
    }

    fn least(&self) -> u32 {
        self.scope().least(self.bound_percent).expect("a pick set is not empty")
    }

    fn two_choices(&mut self, rng: &mut Rng) -> u32 {
        let scope = self.scope();
        let first = draw(scope, rng, None);
        if scope.len() == 1 {
            return scope.at(first);
        }
        let second = draw(scope, rng, Some(first));
        let (first, second) = (scope.at(first), scope.at(second));
        let swap = scope.less(second, first, self.bound_percent);
        let (less, more) = if swap { (second, first) } else { (first, second) };
        self.note(more, WhyNot::MoreLoaded);
        less
    }

    fn affine(&mut self, session: Session, fallback: Fallback) -> (u32, Reason) {
        let mut home = None;
        if let Some(bound) = session.bound {
            if self.scope().contains(bound) {
                if self.fits(bound) || planted!(SaturatedPin) {
                    return (bound, Reason::Bound);
                }
                self.note(bound, WhyNot::OverBound);
                home = Some(self.tier.id(bound));
            } else if planted!(StalePin) && self.tier.scope(true).contains(bound) {
                return (bound, Reason::Bound);
            } else {
                self.note_out(bound);
            }
        }
        match (session.key, fallback) {
            // A spill walks the key's homes under either fallback: it is not a new session.
            (Some(key), Fallback::RoundRobin) if home.is_some() => self.rank(key, home),
            (Some(key), Fallback::Rendezvous) => self.rank(key, home),
            (_, Fallback::RoundRobin) if home.is_none() => self.in_turn_under_bound(),
            (_, Fallback::RoundRobin | Fallback::Rendezvous) => self.least_instead_of(home),
        }
    }

    /// The first of a key's homes that may be picked and is under the bound.
    fn rank(&mut self, key: SessionKey, mut home: Option<EndpointId>) -> (u32, Reason) {
        // The tier is borrowed by the walk: what it met is noted afterwards, and no more than can be told.
        let mut met = [None; Considered::MAX];
        let mut slots = met.iter_mut();
        let (scope, bound_percent) = (self.tier.scope(self.panic), self.bound_percent);
        let mut found = None;
        for place in scope.ranking(key.0) {
            let inside = scope.contains(place);
            let next = planted!(OverflowToNeighbour) && home.is_some();
            if inside && (next || scope.fits(place, bound_percent)) {
                found = Some(place);
                break;
            }
            if inside {
                home.get_or_insert(self.tier.id(place));
            }
            if let Some(slot) = slots.next() {
                *slot = Some((place, inside));
            }
        }
        for (place, inside) in met.into_iter().flatten() {
            if inside { self.note(place, WhyNot::OverBound) } else { self.note_out(place) }
        }
        match (found, home) {
            (Some(place), Some(from)) => (place, Reason::Spilled { from }),
            (Some(place), None) => (place, Reason::Home),
            (None, home) => self.least_instead_of(home),
        }
    }

    /// Whose turn it is; if that one is above the bound, it misses the turn, and the least loaded takes the work.
    fn in_turn_under_bound(&mut self) -> (u32, Reason) {
        let place = self.in_turn();
        if self.fits(place) {
            return (place, Reason::InTurn);
        }
        self.note(place, WhyNot::OverBound);
        (self.least(), Reason::LeastLoaded)
    }

    fn least_instead_of(&self, home: Option<EndpointId>) -> (u32, Reason) {
        (self.least(), home.map_or(Reason::LeastLoaded, |from| Reason::Spilled { from }))
    }

    fn scope(&self) -> Scope<'_> {
        self.tier.scope(self.panic)
    }

    fn fits(&self, place: u32) -> bool {
        self.scope().fits(place, self.bound_percent)
    }

    fn note(&mut self, place: u32, why_not: WhyNot) {
        self.considered.note(candidate(self.tier, place, Some(why_not)));
    }

    /// Notes a member that is not in the pick set.
    fn note_out(&mut self, place: u32) {
        self.note(place, why_out(self.tier, place));
    }
}

/// Why a member is not in the pick set. One that could be was taken out because it was tried.
pub(super) fn why_out(tier: &Tier, place: u32) -> WhyNot {
    match tier.facts(place).class {
        Class::Open => WhyNot::Tried,
        Class::Full => WhyNot::Full,
        Class::Ejected | Class::EjectedFull => WhyNot::Ejected,
        Class::Draining => WhyNot::Draining,
    }
}

/// A member of a tier, as told to `explain`.
pub(super) fn candidate(tier: &Tier, place: u32, why_not: Option<WhyNot>) -> Candidate {
    let Facts { in_flight, others, .. } = tier.facts(place);
    Candidate { endpoint: tier.id(place), in_flight, others, why_not }
}

/// A position drawn by weight, other than `not` where there is another: uniform, accepted in proportion to the
/// greatest weight. An alias table would need no second try, but a rebuild of `O(n)` at every change of a weight.
fn draw(scope: Scope<'_>, rng: &mut Rng, not: Option<u32>) -> u32 {
    let len = scope.len();
    let others = u64::from(len) - u64::from(not.is_some());
    let weight_max = u64::from(scope.weight_max());
    let mut position = 0;
    for _ in 0..TRIES_MAX {
        let drawn = rng.below(others) as u32;
        position = drawn + u32::from(not.is_some_and(|not| drawn >= not));
        let weight = scope.load(scope.at(position)).weight;
        if u64::from(weight) == weight_max || rng.below(weight_max) < u64::from(weight) {
            break;
        }
    }
    position
}
