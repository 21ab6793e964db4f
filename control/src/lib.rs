//! Pointsman's decisions, and nothing else.
//!
//! An LLM gateway decides under failure: replicas die, networks split, registries lie, clients vanish. Each decision
//! here (whom to pick, when to stop asking, whether to try again, who may spend what) is made by a pure state machine:
//! no clock, no entropy, no I/O, no async. The shell stamps time and performs effects; see [`Machine`].
//!
//! Each room is a plain type that can be read, tested and measured alone. `ControlPlane` composes them and is the
//! only one that speaks [`Machine`].
#![cfg_attr(not(test), no_std)]

extern crate alloc;

/// Whether this bug is planted: a constant `false` in every build but the simulator's. See `mutant`. Whoever performs what is
/// decided here asks as well, for bugs of its own, and needs no feature for that: the answer is part of this crate.
#[cfg(not(feature = "mutants"))]
#[macro_export]
macro_rules! planted {
    ($mutant:ident) => {
        false
    };
}

/// Whether this bug is planted and selected.
#[cfg(feature = "mutants")]
#[macro_export]
macro_rules! planted {
    ($mutant:ident) => {
        $crate::mutant::is($crate::mutant::Mutant::$mutant)
    };
}

pub mod affinity;
pub mod attempt;
pub mod balance;
pub mod breaker;
pub mod id;
pub mod journal;
pub mod machine;
#[cfg(feature = "mutants")]
pub mod mutant;
pub mod outcome;
pub mod plane;
pub mod quota;
pub mod rate;
pub mod registry;
pub mod rng;
pub mod session;
pub mod shared;
pub mod time;
pub mod units;

pub use machine::Machine;
pub use time::{Instant, Wall};
