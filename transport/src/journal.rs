//! The `journal` module.
