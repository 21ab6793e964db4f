//! Marks that should be hit sometimes: what no seed ever reaches is not tested, whatever the seeds say.
//!
//! Every mark has a name in [`NAMES`]; a run sets bits, a swarm unites them, and what is never set is shown. Rejected: line
//! coverage, which says that a line ran and not that a stale registry met a half-open breaker.

mod names;

use std::cell::Cell;

use serde::{Deserialize, Serialize};

use crate::tier::Tier;
pub use names::NAMES;

/// Words of a set: 64 marks each.
const WORDS: usize = 4;

/// The marks of one run, or of many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage([u64; WORDS]);

thread_local! {
    static HIT: Cell<Coverage> = const { Cell::new(Coverage([0; WORDS])) };
}

const _: () = assert!(NAMES.len() <= WORDS * 64, "more marks than bits");

/// Hits a mark by its name, where the name is known while compiling.
macro_rules! sometimes {
    ($name:literal) => {{
        const AT: usize = $crate::coverage::index_of($name);
        $crate::coverage::hit(AT);
    }};
}
pub(crate) use sometimes;

/// Hits a mark by its name.
///
/// # Panics
/// If no mark has the name.
pub(crate) fn mark(name: &str) {
    let at = NAMES.iter().position(|known| *known == name);
    hit(at.unwrap_or_else(|| panic!("no mark is called {name}")));
}

/// Hits a mark by its number.
pub(crate) fn hit(at: usize) {
    HIT.with(|cell| {
        let mut hit = cell.get();
        hit.0[at / 64] |= 1 << (at % 64);
        cell.set(hit);
    });
}

/// The number of a mark; a name that no mark has does not compile.
pub(crate) const fn index_of(name: &str) -> usize {
    let mut at = 0;
    while at < NAMES.len() {
        if same(NAMES[at].as_bytes(), name.as_bytes()) {
            return at;
        }
        at += 1;
    }
    panic!("no mark has this name")
}

const fn same(one: &[u8], two: &[u8]) -> bool {
    if one.len() != two.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if one[at] != two[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// Which tier can hit a mark.
#[must_use]
pub fn tier_of(name: &str) -> Tier {
    if name.starts_with("b_") { Tier::B } else { Tier::A }
}

/// Takes the marks this thread has hit since the last time.
pub(crate) fn take() -> Coverage {
    HIT.with(Cell::take)
}

impl Coverage {
    /// Adds another run's marks.
    pub fn unite(&mut self, other: &Self) {
        for (mine, others) in self.0.iter_mut().zip(other.0) {
            *mine |= others;
        }
    }

    /// How many marks were hit.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The numbers of the marks that were hit, as they stand in [`NAMES`].
    pub fn marks(&self) -> impl Iterator<Item = usize> {
        (0..NAMES.len()).filter(|at| self.0[at / 64] & (1 << (at % 64)) != 0)
    }

    /// The marks of a tier that were never hit.
    #[must_use]
    pub fn missing(&self, tier: Tier) -> Vec<&'static str> {
        let never =
            |at: &usize| tier_of(NAMES[*at]) == tier && self.0[at / 64] & (1 << (at % 64)) == 0;
        (0..NAMES.len()).filter(never).map(|at| NAMES[at]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::FaultKind;

    #[test]
    fn every_mark_has_a_name_of_its_own() {
        let mut names = NAMES.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), NAMES.len());
    }

    #[test]
    fn every_kind_of_fault_is_a_mark() {
        for name in FaultKind::NAMES.iter().chain(&FaultKind::STORE_NAMES) {
            assert!(NAMES.contains(name), "{name}");
        }
    }

    #[test]
    fn what_was_hit_is_not_missing() {
        take();
        sometimes!("cut");
        let covered = take();
        assert_eq!(covered.count(), 1);
        assert_eq!(covered.marks().collect::<Vec<_>>(), [index_of("cut")]);
        assert!(!covered.missing(Tier::A).contains(&"cut"));
        let missing = covered.missing(Tier::A).len() + covered.missing(Tier::B).len();
        assert_eq!(missing, NAMES.len() - 1);
    }
}
