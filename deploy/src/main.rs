//! The `pointsman` binary.

mod demo;

fn main() {}
