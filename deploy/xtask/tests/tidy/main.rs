//! The house rules, as tests.
//!
//! Each rule is a function from the repository's files to what breaks it. A rule is tested twice: against the real
//! tree, where it must find nothing, and against a planted violation, which it must find; a rule that cannot fail
//! protects nothing. The words the rules ban are spelled in two halves here, so that the rules can read themselves.

mod facts;
mod figures;
mod layering;
mod manifests;
mod markdown;
mod modules;
mod places;
mod rust;
mod text;
mod tree;
