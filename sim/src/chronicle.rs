//! Notes taken while a world runs, to tell its story by.

use control::quota::Entry;

use crate::check::Step;

/// Takes notes of a run, if anybody wants to read them.
#[derive(Default)]
pub(crate) struct Chronicle;

impl Chronicle {
    pub(crate) fn step(&mut self, _step: &Step<'_>) {}
    pub(crate) fn stored(&mut self, _at: u64, _made: &[Entry]) {}
}
