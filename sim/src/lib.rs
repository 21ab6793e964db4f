//! The world, simulated: scripted stores and replicas for the control plane.

pub mod report;
pub mod store;
pub mod story;
