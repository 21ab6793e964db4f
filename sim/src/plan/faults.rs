//! What goes wrong. Each fault has a beginning and, unless it is never mended, an end.

use std::fmt;

use control::plane::Config;
use serde::{Deserialize, Serialize};

use super::Host;

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// When it begins, in simulated milliseconds.
    pub at_ms: u64,
    /// When it ends. `None`: never, or it has no length.
    pub until_ms: Option<u64>,
    /// What it is.
    pub kind: FaultKind,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Nothing passes from one side to the other; what is under way waits, as TCP does, until it is given up.
    Cut {
        /// One side.
        from: Vec<Host>,
        /// The other.
        to: Vec<Host>,
        /// Whether nothing passes back either.
        both: bool,
    },
    /// As a cut both ways that comes and goes.
    Flap {
        /// One side.
        from: Vec<Host>,
        /// The other.
        to: Vec<Host>,
        /// How long each half of a turn lasts, in milliseconds.
        period_ms: u64,
    },
    /// Everything to and from a host takes longer; with `ramp`, ever longer.
    Latency {
        /// Which host.
        host: Host,
        /// How much longer, in milliseconds.
        add_ms: u64,
        /// Whether it grows from nothing to that.
        ramp: bool,
    },
    /// A replica is ill.
    Ill {
        /// Which.
        replica: u32,
        /// With what.
        with: ReplicaIllness,
    },
    /// A replica's process dies; connections are reset, new ones refused, until it is back.
    ReplicaCrash {
        /// Which.
        replica: u32,
        /// Its machine dies with it: nobody resets or refuses anything.
        power: bool,
    },
    /// An operator drains a replica at every gateway.
    Drain {
        /// Which.
        replica: u32,
    },
    /// A gateway's process is killed, and started again when the fault ends.
    Kill {
        /// Which.
        gateway: u32,
        /// How often it is killed again while it recovers.
        again: u32,
        /// Whether what comes back has another logic version, and takes facts only.
        upgrade: bool,
    },
    /// A gateway's machine loses power: what was not synced is gone.
    PowerLoss {
        /// Which.
        gateway: u32,
        /// Whether the last record that is left is torn, or a bit of it is flipped.
        torn: bool,
    },
    /// A gateway stops for as long as the fault lasts, and wakes as if nothing had been.
    Pause {
        /// Which.
        gateway: u32,
    },
    /// A gateway's wall clock jumps.
    ClockJump {
        /// Which.
        gateway: u32,
        /// By how much, in milliseconds.
        by_ms: i64,
    },
    /// A gateway's disk is full: it takes no new work.
    DiskFull {
        /// Which.
        gateway: u32,
    },
    /// A gateway's disk is slow: acknowledgements wait.
    DiskSlow {
        /// Which.
        gateway: u32,
        /// What a write takes, in milliseconds.
        write_ms: u64,
    },
    /// A gateway's disk does not sync.
    SyncFails {
        /// Which.
        gateway: u32,
    },
    /// The registry lies.
    Registry {
        /// How.
        lie: RegistryLie,
    },
    /// The quota store is in trouble.
    Store {
        /// Which trouble.
        trouble: StoreTrouble,
    },
    /// The store fails over to a replica that lacks the last entries it acknowledged.
    StoreFailover {
        /// How many.
        lose: u32,
    },
    /// Every gateway takes another configuration.
    Reload {
        /// Which.
        config: Box<Config>,
    },
}

/// How a replica is ill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaIllness {
    /// It takes so many times as long.
    Slow {
        /// How many times.
        times: u32,
    },
    /// It accepts the connection and says nothing.
    Silent,
    /// It stalls after so many tokens.
    Stalls {
        /// After how many.
        after: u64,
    },
    /// It answers 200 and then something nobody understands.
    Garbage,
    /// It breaks the stream after so many tokens.
    Dies {
        /// After how many.
        after: u64,
    },
    /// It fails at once.
    Fails {
        /// With this status: 5xx, 429, 503, 401, 403, 404 or 402.
        status: u16,
        /// How long it asks to be left alone, in milliseconds.
        retry_after_ms: Option<u64>,
    },
    /// It says that it used so many tokens, whatever it wrote.
    Lies {
        /// How many.
        usage: u64,
    },
}

/// How the registry lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegistryLie {
    /// It repeats an old answer under its old version.
    Stale,
    /// It lists a part.
    Partial,
    /// It lists nobody.
    Empty,
    /// It does not answer.
    Silent,
}

/// What is wrong with the quota store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreTrouble {
    /// It is gone.
    Down,
    /// It performs what it is asked, and its answers are lost.
    Mute,
    /// It takes this long.
    Slow {
        /// In milliseconds.
        ms: u64,
    },
    /// Messages are doubled, and come out of order.
    Twice,
}

impl FaultKind {
    /// Every kind by its name, for coverage.
    pub const NAMES: [&'static str; 33] = [
        "cut",
        "cut_one_way",
        "flap",
        "latency",
        "latency_ramp",
        "ill_slow",
        "ill_silent",
        "ill_stalls",
        "ill_garbage",
        "ill_dies",
        "ill_fails",
        "ill_full",
        "ill_fault",
        "ill_lies",
        "replica_crash",
        "replica_power",
        "drain",
        "kill",
        "kill_again",
        "upgrade",
        "power_loss",
        "power_torn",
        "pause",
        "clock_jump",
        "disk_full",
        "disk_slow",
        "sync_fails",
        "registry_stale",
        "registry_partial",
        "registry_empty",
        "registry_silent",
        "store_failover",
        "reload",
    ];

    /// The names of the store's troubles, for coverage.
    pub const STORE_NAMES: [&'static str; 4] =
        ["store_down", "store_mute", "store_slow", "store_twice"];

    /// What it is called.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Cut { both: true, .. } => "cut",
            Self::Cut { both: false, .. } => "cut_one_way",
            Self::Flap { .. } => "flap",
            Self::Latency { ramp: false, .. } => "latency",
            Self::Latency { ramp: true, .. } => "latency_ramp",
            Self::Ill { with, .. } => with.name(),
            Self::ReplicaCrash { power: false, .. } => "replica_crash",
            Self::ReplicaCrash { power: true, .. } => "replica_power",
            Self::Drain { .. } => "drain",
            Self::Kill { upgrade: true, .. } => "upgrade",
            Self::Kill { again: 0, .. } => "kill",
            Self::Kill { .. } => "kill_again",
            Self::PowerLoss { torn: false, .. } => "power_loss",
            Self::PowerLoss { torn: true, .. } => "power_torn",
            Self::Pause { .. } => "pause",
            Self::ClockJump { .. } => "clock_jump",
            Self::DiskFull { .. } => "disk_full",
            Self::DiskSlow { .. } => "disk_slow",
            Self::SyncFails { .. } => "sync_fails",
            Self::Registry { lie: RegistryLie::Stale } => "registry_stale",
            Self::Registry { lie: RegistryLie::Partial } => "registry_partial",
            Self::Registry { lie: RegistryLie::Empty } => "registry_empty",
            Self::Registry { lie: RegistryLie::Silent } => "registry_silent",
            Self::Store { trouble: StoreTrouble::Down } => "store_down",
            Self::Store { trouble: StoreTrouble::Mute } => "store_mute",
            Self::Store { trouble: StoreTrouble::Slow { .. } } => "store_slow",
            Self::Store { trouble: StoreTrouble::Twice } => "store_twice",
            Self::StoreFailover { .. } => "store_failover",
            Self::Reload { .. } => "reload",
        }
    }

    /// The hosts it names.
    #[must_use]
    pub fn hosts(&self) -> Vec<Host> {
        match self {
            Self::Cut { from, to, .. } | Self::Flap { from, to, .. } => {
                from.iter().chain(to).copied().collect()
            }
            Self::Latency { host, .. } => vec![*host],
            Self::Ill { replica, .. }
            | Self::ReplicaCrash { replica, .. }
            | Self::Drain { replica } => vec![Host::Replica(*replica)],
            Self::Kill { gateway, .. }
            | Self::PowerLoss { gateway, .. }
            | Self::Pause { gateway }
            | Self::ClockJump { gateway, .. }
            | Self::DiskFull { gateway }
            | Self::DiskSlow { gateway, .. }
            | Self::SyncFails { gateway } => vec![Host::Gateway(*gateway)],
            Self::Registry { .. } => vec![Host::Registry],
            Self::Store { .. } | Self::StoreFailover { .. } => vec![Host::Store],
            Self::Reload { .. } => Vec::new(),
        }
    }
}

impl ReplicaIllness {
    const fn name(self) -> &'static str {
        match self {
            Self::Slow { .. } => "ill_slow",
            Self::Silent => "ill_silent",
            Self::Stalls { .. } => "ill_stalls",
            Self::Garbage => "ill_garbage",
            Self::Dies { .. } => "ill_dies",
            Self::Fails { status: 429 | 503, .. } => "ill_full",
            Self::Fails { status: 500..=599, .. } => "ill_fails",
            Self::Fails { .. } => "ill_fault",
            Self::Lies { .. } => "ill_lies",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind.name())?;
        let hosts: Vec<String> = self.kind.hosts().iter().take(6).map(Host::to_string).collect();
        if !hosts.is_empty() {
            write!(f, " of {}", hosts.join(", "))?;
        }
        match self.until_ms {
            Some(until) => write!(f, " from {} to {until} ms", self.at_ms),
            None => write!(f, " at {} ms", self.at_ms),
        }
    }
}
