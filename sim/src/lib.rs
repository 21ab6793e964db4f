//! The world, simulated: scripted stores and replicas for the control plane.

pub mod store;
