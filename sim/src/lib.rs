//! The world, simulated: partitions, crashes and lies, seed by seed.
//!
//! A seed is drawn out into a [`plan`], a plan is run by a world, and a judge looks on. What breaks is told with the one
//! command that breaks it again. `docs/simulation.md` says what is covered, and what is not.

pub mod check;
mod chronicle;
pub mod cli;
pub mod coverage;
pub mod diff;
pub mod meta;
pub mod mutants;
pub mod plan;
pub mod redis;
pub mod report;
pub mod run;
pub mod shrink;
pub mod store;
pub mod story;
pub mod swarm;
pub mod tell;
pub mod tier;
pub mod tier_b;
pub mod trace;
pub mod try_config;
mod world;
