//! The `upstream` module.
