//! The world, simulated: scripted stores and replicas for the control plane.

pub mod store;
pub mod tier_b;
