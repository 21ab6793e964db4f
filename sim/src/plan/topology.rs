//! Who is there: gateways, replicas, the links between them, and what each is like when it is well.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Everybody in the world.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Whether quota is in a store that the gateways share. With more than one gateway it must be.
    pub shared: bool,
    /// Where decisions are made.
    pub gateways: Vec<GatewayPlan>,
    /// Where tokens are made.
    pub replicas: Vec<ReplicaPlan>,
    /// How many models there are.
    pub models: u32,
    /// How many tenants, `0..tenants`. One more, without limits, asks at the end whether the world is well again.
    pub tenants: u32,
    /// What a message takes.
    pub link: LinkPlan,
    /// What a gateway's disk takes.
    pub disk: DiskPlan,
    /// How often a gateway asks the registry who is there, in milliseconds. Zero: nobody asks, the configuration lists
    /// all.
    pub registry_every_ms: u64,
    /// How fast the store's clock runs: parts per million above true time.
    pub store_ppm: i32,
}

/// A gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayPlan {
    /// How fast its clock runs: parts per million above true time.
    pub ppm: i32,
    /// How far its wall clock is off at the start, in milliseconds.
    pub wall_off_ms: i64,
    /// Whether it belongs to the core that is healed in the end.
    pub core: bool,
}

/// A replica as it is when it is well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaPlan {
    /// Models it serves.
    pub models: Vec<u32>,
    /// Its share.
    pub weight: u32,
    /// Its tier.
    pub tier: u8,
    /// Attempts a gateway may have under way to it.
    pub in_flight_max: u32,
    /// Attempts a second, where that is limited.
    pub rps_max: Option<u32>,
    /// What it reads, in tokens a second.
    pub prefill_rate: u32,
    /// What it writes for one stream, in tokens a second.
    pub rate: u32,
    /// Streams it serves at once; beyond, it says 429.
    pub slots: u32,
    /// Whether it counts tokens for us, or leaves that to the gateway.
    pub tells_usage: bool,
    /// Whether it belongs to the core that is healed in the end.
    pub core: bool,
    /// Whose broken streams it continues: those of replicas with the same.
    #[serde(default)]
    pub fingerprint: Option<u32>,
    /// What it says of its load, where it says anything.
    #[serde(default)]
    pub tells: Option<Tells>,
}

/// What a replica says of its load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tells {
    /// How busy it is, whoever keeps it busy.
    Truth,
    /// What was true when it was first asked.
    Old,
    /// That it has nothing to do.
    Idle,
    /// That it has far more to do than it could.
    Swamped,
}

/// A link between any two hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkPlan {
    /// What every message takes, in microseconds.
    pub base_us: u64,
    /// What a message may take on top.
    pub jitter_us: u64,
}

/// A gateway's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskPlan {
    /// What writing a group of records takes, in microseconds.
    pub write_us: u64,
    /// How often it is synced, in milliseconds. Zero syncs every group.
    pub sync_every_ms: u64,
    /// How often a snapshot is made, in milliseconds.
    pub snapshot_every_ms: u64,
}

/// One host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Host {
    /// A gateway, by its number.
    Gateway(u32),
    /// A replica, by its number.
    Replica(u32),
    /// The shared quota store.
    Store,
    /// The registry.
    Registry,
    /// All clients together.
    Clients,
}

impl ReplicaPlan {
    /// The name a replica is registered under.
    #[must_use]
    pub fn name(index: usize) -> String {
        format!("replica-{index}")
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(index) => write!(f, "gateway-{index}"),
            Self::Replica(index) => write!(f, "replica-{index}"),
            Self::Store => f.write_str("store"),
            Self::Registry => f.write_str("registry"),
            Self::Clients => f.write_str("clients"),
        }
    }
}
