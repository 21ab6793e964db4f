//! The `plane` room.
