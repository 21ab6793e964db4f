//! The `front` module.
