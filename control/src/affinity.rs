//! The `affinity` room.
