//! The `rate` room.
