//! Where the shell meets the machine it runs on.
//!
//! Everything that must also run on a simulated machine goes through here, with one real implementation and one
//! simulated one. They are chosen by value, at run time. A cargo feature would be the wrong switch: features unify
//! across a workspace, so that building the simulator beside the product would change the product.

pub mod datagram;
pub mod disk;
pub mod net;
pub mod world;

pub use datagram::{Datagrams, Reaching};
pub use disk::{Disk, FaultyDisk, RealDisk};
pub use net::{Accept, Connecting, Dial, Duplex, Network};
pub use world::{Background, Beside, Process, WallClock, World};
