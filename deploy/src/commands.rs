//! Everything but serving.

pub mod ask;
pub mod check;
pub mod health;
pub mod key;
pub mod replica;
pub mod worker;
