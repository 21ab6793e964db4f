//! The `breaker` room.
