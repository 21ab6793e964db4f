//! Tests of the configuration, by what they hold it against.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod documents;
mod errors;
mod hostile;
mod loading;
mod roles;
mod tracing;
mod watching;

use super::*;

/// Parses `text` as `p.yaml`, with these environment variables.
fn parsed(text: &str, vars: &[(&str, &str)]) -> Result<Loaded, Errors> {
    parse("p.yaml", text.as_bytes(), &Flags::default(), &vars.iter().copied().collect())
}

/// The errors of `text` below a line that says its version, as they are printed.
fn errors(text: &str) -> String {
    parsed(&format!("version: 1\n{text}"), &[]).unwrap_err().to_string()
}

/// The configuration of `text` below a line that says its version.
fn config(text: &str) -> Config {
    match parsed(&format!("version: 1\n{text}"), &[]) {
        Ok(loaded) => loaded.config,
        Err(errors) => panic!("{errors}"),
    }
}
