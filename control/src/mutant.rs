//! Planted bugs, to prove that the simulator's checkers can fail.
//!
//! **The problem.** A checker that has never rung proves nothing: it may look at the wrong thing, or at nothing. So
//! `control` carries, beside its code and in its own words, the bugs that gateways like it have had: each a condition
//! skipped, a line not done, at the place where somebody would have slipped. One build holds them all; at most one is on.
//!
//! **Rejected:** patches that are applied before a build. They rot unseen when the code around them moves, and a build for
//! each bug takes longer than the search for it.
//!
//! **What the product has of this:** nothing. `planted!` is the constant `false` unless the feature `mutants` is on, and
//! the style test sees to it that only the simulator can turn it on. With the feature, a planting costs one relaxed load.
//! The selection is the one thing in this crate that is not a plane's own state, because a bug belongs to a build and
//! not to a plane: all planes of the process have it.
//!
//! Each [`Mutant`] says what is wrong, where, whom it imitates, and what must ring: [`Mutant::breaks`] holds the invariants
//! of `docs/simulation.md`, by number, one of which must be the first that is seen broken. Where a planting also makes a
//! plane's own `invariants()` fail, 7 (no panic) is among them.

mod list;

use core::fmt;

use serde::{Deserialize, Deserializer};

use crate::rng::Rng;
pub use list::Mutant;

impl Mutant {
    /// The mutant of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|mutant| mutant.name() == name)
    }

    /// Whether it is planted between the roles, in the shell: no plane shows it, and it is looked for where two processes
    /// speak with each other.
    #[must_use]
    pub const fn is_between_roles(self) -> bool {
        matches!(self, Self::LostIsRefused | Self::LeaverNotHeard | Self::KeyNotPassedOn)
    }

    /// Whether it is planted where resumable streams are kept, in the shell, too: it is looked for where clients come back.
    #[must_use]
    pub const fn is_of_streams(self) -> bool {
        matches!(
            self,
            Self::ResumeRepeatsLast
                | Self::GraceNeverEnds
                | Self::StreamOfAnyone
                | Self::GivenUpEndsClean
                | Self::BothReadersStay
        )
    }

    /// Whether no plane shows it.
    #[must_use]
    pub const fn is_in_the_shell(self) -> bool {
        self.is_between_roles() || self.is_of_streams()
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// From now on every plane of this process has this bug and no other; with `None`, none. Not to be changed while a plane
/// runs that shall be replayed.
pub fn select(mutant: Option<Mutant>) {
    // 0 is nobody.
    selection::set(mutant.map_or(0, |mutant| mutant as u8 + 1));
}

/// Which bug this process has.
#[must_use]
pub fn selected() -> Option<Mutant> {
    let index = selection::get().checked_sub(1)?;
    Mutant::ALL.get(usize::from(index)).copied()
}

/// Whether the process has this bug. Called by `planted!`.
#[must_use]
pub fn is(mutant: Mutant) -> bool {
    selection::get() == mutant as u8 + 1
}

/// Takes a generator out of a snapshot. Planted: it begins anew.
pub(crate) fn reseeded<'de, D: Deserializer<'de>>(from: D) -> Result<Rng, D::Error> {
    let rng = Rng::deserialize(from)?;
    Ok(if is(Mutant::RestoreReseeds) { Rng::new(0) } else { rng })
}

/// Takes a count out of a snapshot. Planted: it begins anew.
pub(crate) fn recounted<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let count = u64::deserialize(from)?;
    Ok(if is(Mutant::RestoreRecounts) { 0 } else { count })
}

#[cfg(not(test))]
mod selection {
    use core::sync::atomic::{AtomicU8, Ordering};

    static SELECTED: AtomicU8 = AtomicU8::new(0);

    pub(super) fn set(number: u8) {
        SELECTED.store(number, Ordering::Relaxed);
    }

    pub(super) fn get() -> u8 {
        SELECTED.load(Ordering::Relaxed)
    }
}

/// In unit tests each thread has its own, so that a bug does not show in the tests beside it.
#[cfg(test)]
mod selection {
    use core::cell::Cell;

    std::thread_local! {
        static SELECTED: Cell<u8> = const { Cell::new(0) };
    }

    pub(super) fn set(number: u8) {
        SELECTED.set(number);
    }

    pub(super) fn get() -> u8 {
        SELECTED.get()
    }
}

#[cfg(test)]
mod tests;
