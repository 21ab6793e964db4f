//! The `balance` room.
