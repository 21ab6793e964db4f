//! Every planting is reached, and changes what happens: a story that is as it should be without it, and is not with it.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests may panic")]

mod breakers;
mod gateways;
mod ledger;
mod owner;
mod picks;
mod requests;
mod sessions;

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::Mutant::{self, *};
use super::{select, selected};
use crate::Machine;
use crate::plane::ControlPlane;
use crate::plane::tests::chaos::Chaos;

/// What must be true at the end of a run, for whom it is not.
type Story = (Mutant, fn() -> bool);

fn stories() -> Vec<Story> {
    [
        ledger::STORIES,
        owner::STORIES,
        requests::STORIES,
        sessions::STORIES,
        breakers::STORIES,
        picks::STORIES,
        gateways::STORIES,
    ]
    .concat()
}

#[test]
fn every_story_is_as_it_should_be_but_for_its_mutant() {
    for (mutant, story) in stories() {
        assert!(story(), "{mutant}: its story is wrong without it");
        select(Some(mutant));
        let same = story();
        select(None);
        assert!(!same, "{mutant} changes nothing");
    }
}

#[test]
fn every_mutant_has_a_story() {
    let told: BTreeSet<_> = stories().into_iter().map(|(mutant, _)| mutant).collect();
    // What is planted in the shell no plane can tell: the simulator's gate finds it, or fails.
    let own = Mutant::ALL.iter().filter(|mutant| !mutant.is_in_the_shell());
    let silent: Vec<_> = own.filter(|mutant| !told.contains(mutant)).collect();
    assert!(silent.is_empty(), "{silent:?}");
}

#[test]
fn every_name_reads_back_and_is_taken_once() {
    let names: BTreeSet<_> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
    assert_eq!(names.len(), Mutant::ALL.len());
    for mutant in Mutant::ALL {
        assert_eq!(Mutant::parse(mutant.name()), Some(*mutant));
        let kebab = |c: char| c.is_ascii_lowercase() || c == '-';
        assert!(mutant.name().chars().all(kebab), "{mutant}");
    }
    assert_eq!(Mutant::parse("no-such-bug"), None);
}

#[test]
fn every_invariant_has_two_bugs_and_every_pain_one() {
    for invariant in 1..=14 {
        let broken = Mutant::ALL.iter().filter(|mutant| mutant.breaks().contains(&invariant));
        assert!(broken.count() >= 2, "invariant {invariant}");
    }
    for pain in 1..=19 {
        let imitated = Mutant::ALL.iter().any(|mutant| mutant.pains().contains(&pain));
        assert!(imitated, "pain {pain}");
    }
    assert!(Mutant::ALL.iter().all(|mutant| !mutant.breaks().is_empty()));
}

#[test]
fn one_bug_is_selected_at_a_time_and_none_at_first() {
    assert_eq!(selected(), None);
    for mutant in Mutant::ALL {
        select(Some(*mutant));
        assert_eq!(selected(), Some(*mutant));
        assert_eq!(planted!(SettleTwice), *mutant == SettleTwice);
    }
    select(None);
    assert_eq!(selected(), None);
}

#[test]
fn only_a_mutant_that_says_so_makes_a_plane_panic() {
    for mutant in Mutant::ALL.iter().filter(|mutant| !mutant.breaks().contains(&7)) {
        select(Some(*mutant));
        for seed in 0..2 {
            assert!(std::panic::catch_unwind(|| live(seed)).is_ok(), "{mutant} panics");
        }
        select(None);
    }
}

/// A life of some thousand inputs in any order, with the plane's own checks on the way.
fn live(seed: u64) {
    let mut chaos = Chaos::new(seed);
    let mut plane = ControlPlane::with_config(seed, chaos.config.clone());
    for step in 0..2_000 {
        let (now, input) = chaos.next();
        plane.handle(now, input);
        let effects: Vec<_> = core::iter::from_fn(|| plane.poll_effect()).collect();
        chaos.learn(&effects);
        if step % 16 == 0 {
            plane.invariants();
        }
    }
}
