//! A run as data: what there is, what is asked, and what goes wrong when.
//!
//! A plan is complete: the runner draws nothing but what the plan's seed decides (latencies on a link, what a loss of
//! power leaves). So it can be saved, edited, cut down and committed. Times are milliseconds from the start.

mod keeping;

use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use keeping::{Guise, Keeping, Rival, Visit};

/// One run of Tier B.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TierBPlan {
    /// Everything that is drawn while it runs comes from here.
    pub seed: u64,
    /// One line on what it is there for, where it is kept.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub what: String,
    /// How long it runs. The last [`TierBPlan::quiet_ms`] of it are without faults.
    pub duration_ms: u64,
    /// All faults are mended so long before the end.
    pub quiet_ms: u64,
    /// The network's resolution: 5 in swarms, 1 to look closer.
    pub tick_ms: u64,
    /// Gateways, each with a data directory and tenants of its own. Behind doors they play the chat role.
    pub gateways: u8,
    /// Model replicas; each gateway knows them all.
    pub replicas: u8,
    /// Hosts that clients run on.
    pub clients: u8,
    /// Latency of every link, from and to.
    pub latency_ms: (u64, u64),
    /// The gateways' configuration.
    pub knobs: Knobs,
    /// What clients do, in order of time.
    pub operations: Vec<Operation>,
    /// What goes wrong, in order of time.
    pub faults: Vec<TimedFault>,
    /// What each replica speaks, by its number; those beyond speak HTTP.
    #[serde(default)]
    pub speaks: Vec<Speaks>,
    /// Whether the gateways count in one ledger, at a Redis.
    #[serde(default)]
    pub shared: bool,
    /// Whether replicas are found in a Consul, instead of being listed.
    #[serde(default)]
    pub consul: bool,
    /// Machines that play the gateway role in front of the gateways. They are numbered behind those.
    #[serde(default)]
    pub doors: u8,
}

/// What a replica speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Speaks {
    /// OpenAI's API over HTTP: a script of ours.
    #[default]
    Http,
    /// Pointsman's own wire over gRPC: the product's worker.
    Grpc,
    /// The same over QUIC.
    Quic,
}

/// What is configured, the same on every gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Knobs {
    /// `routing.load_balancer`.
    pub load_balancer: String,
    /// `routing.max_retries`.
    pub max_retries: u32,
    /// `routing.timeouts.connect`.
    pub connect_ms: u64,
    /// `routing.timeouts.first_token`.
    pub first_token_ms: u64,
    /// `routing.timeouts.between_tokens`.
    pub between_tokens_ms: u64,
    /// `routing.timeouts.request`.
    pub request_ms: u64,
    /// `routing.breaker.consecutive_failures`.
    pub breaker_failures: u32,
    /// `routing.breaker.ejection_base`; the longest is four times as long.
    pub ejection_ms: u64,
    /// `routing.retry_budget.percent`.
    pub retry_percent: u32,
    /// `routing.hedge.after`, with a share of all requests; 0: never.
    #[serde(default)]
    pub hedge_ms: u64,
    /// `journal.fsync`: 0 for `always`, else an interval.
    pub fsync_ms: u64,
    /// Bytes of a journal segment. Below what a file may say, so that a short run turns the ring.
    pub segment_bytes: u64,
    /// `journal.segments_max`.
    pub segments_max: u32,
    /// Whether replicas are asked which models they serve, instead of being listed.
    pub discovered: bool,
    /// `daily_tokens` of each limited tenant; each gateway has this many, beside one without limit.
    pub tenant_tokens: Vec<u64>,
    /// USD per million tokens, in and out.
    pub price: (u64, u64),
    /// What every replica takes for its first token, and for each further one.
    pub first_ms: u64,
    /// See `first_ms`.
    pub each_ms: u64,
    /// `streams.grace`; 0: the product's own.
    #[serde(default)]
    pub grace_ms: u64,
    /// The calendar at the start, in milliseconds since 1970.
    pub wall_ms: u64,
}

/// A request of a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// When.
    pub at_ms: u64,
    /// Which client asks.
    pub client: u8,
    /// Which gateway is asked, or which door.
    pub gateway: u8,
    /// On whose behalf: an index into [`Knobs::tenant_tokens`], or the one without limit.
    pub tenant: Option<u8>,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// Words in the prompt.
    pub prompt: u32,
    /// Tokens the model would like to answer with.
    pub wants: u32,
    /// `max_tokens`, where the client sets it.
    pub max_tokens: Option<u32>,
    /// `X-Session-Id`.
    pub session: Option<u32>,
    /// Whether it has an `Idempotency-Key`, which its retries repeat.
    pub keyed: bool,
    /// The client leaves after so many tokens.
    pub leaves_after: Option<u32>,
    /// The client gives up so long after asking: then nobody knows how it ended.
    pub timeout_ms: u64,
    /// How often it asks again where it did not get a whole answer.
    pub retries: u32,
    /// Asked after everything is mended: it must be served.
    pub must_succeed: bool,
    /// Its stream is resumable, and is read so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeping: Option<Keeping>,
}

/// A fault and its moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimedFault {
    /// When it begins.
    pub at_ms: u64,
    /// How long it lasts, where it lasts.
    pub for_ms: u64,
    /// What it is.
    pub fault: Fault,
}

/// Something that goes wrong. Hosts are named `gateway-0`, `replica-3`, `client-1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Fault {
    /// Nothing passes between two hosts; what was under way is lost.
    Cut {
        /// One of them.
        a: String,
        /// The other.
        b: String,
    },
    /// Nothing passes in one direction.
    CutOneWay {
        /// From here,
        from: String,
        /// to there.
        to: String,
    },
    /// Everything between two hosts waits, and then comes at once.
    Hold {
        /// One of them.
        a: String,
        /// The other.
        b: String,
    },
    /// A link is slow.
    Latency {
        /// One end.
        a: String,
        /// The other.
        b: String,
        /// How slow.
        ms: u64,
    },
    /// A replica behaves badly.
    Replica {
        /// Which.
        replica: u8,
        /// How.
        mode: Mode,
    },
    /// A replica's process dies, and is back after the fault's time.
    ReplicaCrash {
        /// Which.
        replica: u8,
    },
    /// A gateway's process is killed: what it wrote stays. It is back after the fault's time.
    Kill {
        /// Which.
        gateway: u8,
    },
    /// A gateway's machine loses power: of what it did not sync, any part is gone.
    PowerLoss {
        /// Which.
        gateway: u8,
        /// Whether later sectors may survive earlier ones.
        reorder: bool,
    },
    /// A gateway is told to stop, and started again: a rolling restart.
    Restart {
        /// Which.
        gateway: u8,
    },
    /// A gateway's disk takes nothing more.
    DiskFull {
        /// Which.
        gateway: u8,
    },
    /// Each write and sync takes so long.
    DiskSlow {
        /// Which.
        gateway: u8,
        /// How long.
        ms: u64,
    },
    /// The next appends fail half-way.
    AppendsFail {
        /// Which.
        gateway: u8,
        /// How many.
        count: u32,
    },
    /// The next sync fails, after which nobody knows what is on the disk.
    SyncFails {
        /// Which.
        gateway: u8,
    },
    /// A gateway takes another configuration, and the first one again after the fault's time.
    Reload {
        /// Which.
        gateway: u8,
        /// Replicas that the other configuration does not name.
        without: u8,
    },
    /// An operator drains a replica at one gateway, and undrains it after the fault's time.
    Drain {
        /// Which gateway.
        gateway: u8,
        /// Which replica.
        replica: u8,
    },
    /// A gateway's process is killed, and a bit of its journal is another when it is started again.
    BitFlip {
        /// Which.
        gateway: u8,
        /// So many bytes before the journal's end, going round in what recovery reads.
        from_end: u64,
        /// Which bit of the byte.
        bit: u8,
    },
    /// A gateway sleeps: nothing reaches it and nothing leaves it, and then all of it comes at once. Its timers go on.
    Pause {
        /// Which.
        gateway: u8,
    },
    /// A gateway's process is killed, and again while it recovers.
    CrashTwice {
        /// Which.
        gateway: u8,
        /// Its machine loses power, both times.
        power: bool,
        /// Recovery gets to write so many bytes.
        bytes: u64,
    },
    /// Something is wrong with the Redis that gateways share.
    Redis {
        /// What.
        trouble: RedisTrouble,
    },
    /// Something is wrong with the Consul that lists replicas.
    Consul {
        /// What.
        trouble: ConsulTrouble,
    },
    /// A gateway's calendar jumps.
    ClockJump {
        /// Which.
        gateway: u8,
        /// By how much.
        ms: i64,
    },
}

/// What is wrong with the Consul that lists replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsulTrouble {
    /// It repeats what it said first, with the index of then.
    Stale,
    /// It lists every other replica.
    Partial,
    /// It knows of nobody.
    Empty,
    /// It does not answer, until this is over.
    Silent,
    /// It answers with a page.
    Garbage,
    /// It has no leader.
    Fails,
    /// Its process dies, and is back after the fault's time.
    Crash,
}

/// What is wrong with the Redis that gateways share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RedisTrouble {
    /// Each answer takes so much longer.
    Slow {
        /// How much.
        ms: u64,
    },
    /// It does what it is asked, and says nothing.
    Mute,
    /// It is a replica, and takes no writes.
    ReadOnly,
    /// It reads its data in.
    Loading,
    /// It has no memory left.
    Full,
    /// Its process dies, and is back after the fault's time.
    Crash {
        /// With all its data, or with none.
        keeps: bool,
    },
    /// A replica takes over that lacks the last calls.
    FailOver {
        /// How many.
        lose: u32,
    },
}

/// How a replica behaves. A worker is the product's own, and errs in its own ways: see `tier_b/worker.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// As it should.
    Healthy,
    /// So many times slower.
    Slow(u32),
    /// Accepts and never answers.
    Stalls,
    /// Says 200 and then what nobody understands.
    Garbage,
    /// Breaks the connection after so many tokens.
    DiesAfter(u32),
    /// Ends the stream without `[DONE]` after so many tokens, as if that were all.
    EndsAfter(u32),
    /// Goes silent after so many tokens.
    StallsAfter(u32),
    /// Refuses at once with this status.
    Fails(u16),
}

impl TierBPlan {
    /// When everything is mended.
    #[must_use]
    pub fn heal_ms(&self) -> u64 {
        self.duration_ms.saturating_sub(self.quiet_ms)
    }

    /// What a replica speaks.
    #[must_use]
    pub fn speaks(&self, replica: u8) -> Speaks {
        self.speaks.get(usize::from(replica)).copied().unwrap_or_default()
    }

    /// Whose tenants ask at a gateway: each has its own, unless all count in one ledger, or any of them may be asked.
    #[must_use]
    pub fn tenants_of(&self, gateway: u8) -> u8 {
        if self.shared || self.doors > 0 { 0 } else { gateway }
    }

    /// All machines that have a plane: the gateways, and behind them the doors.
    #[must_use]
    pub fn machines(&self) -> u8 {
        self.gateways + self.doors
    }

    /// Whether a machine plays the gateway role alone.
    #[must_use]
    pub fn is_door(&self, machine: u8) -> bool {
        machine >= self.gateways
    }

    /// The machines that clients ask.
    #[must_use]
    pub fn fronts(&self) -> Range<u8> {
        if self.doors > 0 { self.gateways..self.machines() } else { 0..self.gateways }
    }

    /// Whom a machine asks, by a number of theirs that may be too large for it.
    #[must_use]
    pub fn behind(&self, machine: u8, which: u8) -> String {
        if self.is_door(machine) { gateway(which % self.gateways) } else { replica(which) }
    }

    /// How long a stream goes on without a reader, where it is resumable.
    #[must_use]
    pub fn grace_ms(&self) -> u64 {
        if self.knobs.grace_ms == 0 { 15_000 } else { self.knobs.grace_ms }
    }

    /// Whether some clients ask for resumable streams.
    #[must_use]
    pub fn keeps_streams(&self) -> bool {
        self.operations.iter().any(|operation| operation.keeping.is_some())
    }

    /// Whether some replica is a worker.
    #[must_use]
    pub fn has_workers(&self) -> bool {
        (0..self.replicas).any(|replica| self.speaks(replica) != Speaks::Http)
    }

    /// Whether all replicas are of one kind, and so as fast as each other.
    #[must_use]
    pub fn is_uniform(&self) -> bool {
        (1..self.replicas).all(|replica| self.speaks(replica) == self.speaks(0))
    }

    /// Whether nobody has a session, so that any replica will do for any request.
    #[must_use]
    pub fn is_stateless(&self) -> bool {
        self.operations.iter().all(|operation| operation.session.is_none())
    }

    /// How long after it is well and reachable a replica may go without requests: the longest ejection, a probe that
    /// began before it was well, the answers that are still owed elsewhere, and the second of slow start.
    #[must_use]
    pub fn readmitted_ms(&self) -> u64 {
        let Knobs { ejection_ms, first_token_ms, request_ms, .. } = self.knobs;
        4 * ejection_ms + first_token_ms + request_ms + 1_000
    }

    /// The most attempts one request may be.
    #[must_use]
    pub fn attempts_max(&self) -> u32 {
        self.knobs.max_retries + 1
    }
}

/// The name of a gateway's host, or a door's.
#[must_use]
pub fn gateway(index: u8) -> String {
    format!("gateway-{index}")
}

/// The name of a replica's host, which is the endpoint's name too.
#[must_use]
pub fn replica(index: u8) -> String {
    format!("replica-{index}")
}

/// The name of a client's host.
#[must_use]
pub fn client(index: u8) -> String {
    format!("client-{index}")
}
