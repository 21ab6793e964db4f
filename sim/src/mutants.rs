//! Planted bugs: which one this process has, and whether the judge finds it.
//!
//! **The problem.** A checker that never rings may be looking at nothing. `control` holds bugs that only a build for the
//! simulator has (its feature `mutants`); each is looked for here, seed by seed, and counts as found by a seed that holds
//! without it. A seed that fails without it as well proves nothing and is a false alarm, told beside it.
//!
//! The selection is the process's: it is changed only while no world runs. In a build without the feature there is nothing
//! to select, and whoever asks is told how to build one that has.

#[cfg(feature = "mutants")]
mod hunt;

#[cfg(feature = "mutants")]
pub use hunt::{Found, Hunt, hunt, named};

/// Puts a planted bug in place, or takes it out.
///
/// # Errors
/// If there is none of that name, or none at all in this build; says what to do.
#[cfg(feature = "mutants")]
pub fn choose(name: Option<&str>) -> Result<(), String> {
    let mutant = name.map(hunt::named).transpose()?;
    control::mutant::select(mutant);
    Ok(())
}

/// Puts a planted bug in place, or takes it out.
///
/// # Errors
/// If one is wanted: this build has none.
#[cfg(not(feature = "mutants"))]
pub fn choose(name: Option<&str>) -> Result<(), String> {
    name.map_or(Ok(()), |_| Err(MISSING.to_owned()))
}

/// Asks something without the planted bug, which is in place again afterwards. Called while no other world runs in this
/// process.
#[cfg(feature = "mutants")]
pub fn without<T>(ask: impl FnOnce() -> T) -> T {
    let mutant = control::mutant::selected();
    control::mutant::select(None);
    let answer = ask();
    control::mutant::select(mutant);
    answer
}

/// Asks something without the planted bug. This build has none.
#[cfg(not(feature = "mutants"))]
pub fn without<T>(ask: impl FnOnce() -> T) -> T {
    ask()
}

/// Said where planted bugs are asked of a build that has none.
pub const MISSING: &str = "this build has no planted bugs; `cargo sim` builds one that has, as does \
    `cargo build --profile sim --package sim --features mutants --target-dir target/sim`";
