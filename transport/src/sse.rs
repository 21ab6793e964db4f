//! The `sse` module.
