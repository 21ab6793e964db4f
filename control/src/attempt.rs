//! The `attempt` room.
