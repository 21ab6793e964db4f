//! From a seed to a plan.
//!
//! Topology, knobs, workload and nemesis draw from streams of their own, so that one more fault does not change what
//! clients do. Every knob is drawn per seed, and every kind of fault is switched on by a coin: a swarm whose members
//! differ finds more than one that always does everything (Groce et al., "Swarm Testing", 2012).

use control::rng::Rng;

use super::plan::{
    ConsulTrouble, Fault, Knobs, Mode, Operation, RedisTrouble, Speaks, TierBPlan, TimedFault,
    client, gateway, replica,
};
use super::{consul, doors, keeps, redis};

/// A minute: what the targets are stated for.
const DURATION_MS: u64 = 60_000;
/// Longer than a request may take, an ejection may last and a sleeping connection is kept, one after the other.
const QUIET_MS: u64 = 24_000;
/// Fresh requests come so long after everything was mended: after the last deadline and the longest ejection.
const SETTLED_MS: u64 = 18_000;
/// Turmoil ticks every host every step: more of them than this and a run is slower than a swarm can bear.
const HOSTS_MAX: u64 = 15;

/// The plan of a seed.
#[must_use]
pub fn plan(seed: u64) -> TierBPlan {
    let root = Rng::new(seed);
    let mut topology = root.fork("topology");
    let mut gateways = 1 + u8::from(chance(&mut topology, 35));
    let clients = between(&mut topology, 1, 5);
    let shared = shared(&root, &mut gateways);
    let doors = doors::drawn(&root, &mut gateways);
    let room = HOSTS_MAX - clients - u64::from(gateways + doors) - u64::from(shared);
    // A registry lists one port of each worker, and behind doors each gateway has one of its own there.
    let consul = room > 2 && doors == 0 && chance(&mut root.fork("consul"), 25);
    let room = room - u64::from(consul);
    let replicas = between(&mut topology, 2, 8.min(room));
    let mut plan = TierBPlan {
        seed,
        what: String::new(),
        duration_ms: DURATION_MS,
        quiet_ms: QUIET_MS,
        tick_ms: 5,
        gateways,
        replicas: small(replicas),
        clients: small(clients),
        latency_ms: (0, between(&mut topology, 1, 20)),
        knobs: knobs(&mut root.fork("knobs")),
        operations: Vec::new(),
        faults: Vec::new(),
        speaks: Vec::new(),
        shared,
        consul,
        doors,
    };
    plan.knobs.hedge_ms = hedge(&mut root.fork("hedges"));
    plan.speaks = speaks(&plan, &mut root.fork("wires"));
    plan.operations = operations(&plan, &mut root.fork("workload"));
    keeps::draw(&mut plan, &mut root.fork("kept streams"));
    plan.faults = faults(&plan, &mut root.fork("nemesis"));
    if shared && !plan.faults.is_empty() {
        plan.faults.extend(redis_faults(&plan, &mut root.fork("redis")));
    }
    if consul && !plan.faults.is_empty() {
        plan.faults.extend(consul_faults(&plan, &mut root.fork("registry")));
    }
    if doors > 0 && !plan.faults.is_empty() {
        plan.faults.extend(doors::faults(&plan, &mut root.fork("door faults")));
    }
    plan.faults.sort_by_key(|fault| fault.at_ms);
    plan
}

fn knobs(rng: &mut Rng) -> Knobs {
    let policies = ["auto", "round_robin", "least_load", "p2c", "sticky"];
    let tenants = between(rng, 1, 3);
    Knobs {
        load_balancer: policies[index(rng, policies.len())].to_owned(),
        max_retries: between(rng, 0, 3) as u32,
        connect_ms: between(rng, 200, 1_000),
        first_token_ms: between(rng, 800, 3_000),
        between_tokens_ms: between(rng, 300, 2_000),
        request_ms: between(rng, 3_000, 8_000),
        breaker_failures: between(rng, 1, 6) as u32,
        ejection_ms: between(rng, 200, 1_500),
        retry_percent: between(rng, 0, 30) as u32,
        hedge_ms: 0,
        fsync_ms: if chance(rng, 40) { 0 } else { between(rng, 10, 300) },
        segment_bytes: 1 << between(rng, 15, 20),
        segments_max: between(rng, 2, 8) as u32,
        discovered: chance(rng, 25),
        tenant_tokens: (0..tenants).map(|_| between(rng, 2_000, 60_000)).collect(),
        price: (between(rng, 0, 5), between(rng, 0, 20)),
        first_ms: between(rng, 5, 120),
        each_ms: between(rng, 2, 30),
        grace_ms: 0,
        // An hour around midnight UTC between two months: some runs see windows turn.
        wall_ms: 1_772_323_200_000 - between(rng, 0, 120_000),
    }
}

/// A third of the plans hedge: some of them what is as fast as ever, others what is silent.
fn hedge(rng: &mut Rng) -> u64 {
    if chance(rng, 33) { between(rng, 10, 500) } else { 0 }
}

/// A third of the plans count in one ledger. Those have two gateways or three.
fn shared(root: &Rng, gateways: &mut u8) -> bool {
    let mut rng = root.fork("shared");
    let shared = chance(&mut rng, 33);
    if shared {
        *gateways = (*gateways).max(2) + u8::from(chance(&mut rng, 25));
    }
    shared
}

/// What goes wrong with a ledger that is shared, and on the way there.
fn redis_faults(plan: &TierBPlan, rng: &mut Rng) -> Vec<TimedFault> {
    let is_on: Vec<bool> = (0..REDIS_KINDS).map(|_| chance(rng, 50)).collect();
    let mut faults = Vec::new();
    for kind in (0..REDIS_KINDS).filter(|kind| is_on[*kind]) {
        for _ in 0..between(rng, 1, 2) {
            let over = plan.heal_ms();
            let at_ms = between(rng, 1_000, over - 1_000);
            let for_ms = between(rng, 50, 6_000).min(over - at_ms);
            faults.push(TimedFault { at_ms, for_ms, fault: redis_fault(plan, rng, kind) });
        }
    }
    faults
}

const REDIS_KINDS: usize = 9;

fn redis_fault(plan: &TierBPlan, rng: &mut Rng, kind: usize) -> Fault {
    let near = gateway(small(rng.below(u64::from(plan.gateways))));
    let far = redis::HOST.to_owned();
    let trouble = match kind {
        0 => return Fault::Cut { a: near, b: far },
        1 => return Fault::Hold { a: near, b: far },
        2 => RedisTrouble::Slow { ms: between(rng, 20, 500) },
        3 => RedisTrouble::Mute,
        4 => RedisTrouble::ReadOnly,
        5 => RedisTrouble::Loading,
        6 => RedisTrouble::Full,
        7 => RedisTrouble::Crash { keeps: chance(rng, 60) },
        _ => RedisTrouble::FailOver { lose: between(rng, 0, 200) as u32 },
    };
    Fault::Redis { trouble }
}

/// What goes wrong with a registry, and on the way there.
fn consul_faults(plan: &TierBPlan, rng: &mut Rng) -> Vec<TimedFault> {
    let over = plan.heal_ms();
    let draw = |rng: &mut Rng, kind| {
        let at_ms = between(rng, 500, over - 1_000);
        let for_ms = between(rng, 50, 6_000).min(over - at_ms);
        TimedFault { at_ms, for_ms, fault: consul_fault(plan, rng, kind) }
    };
    let is_on: Vec<bool> = (0..CONSUL_KINDS).map(|_| chance(rng, 50)).collect();
    let kinds = (0..CONSUL_KINDS).filter(|kind| is_on[*kind]);
    kinds.map(|kind| draw(rng, kind)).collect()
}

const CONSUL_KINDS: usize = 8;

fn consul_fault(plan: &TierBPlan, rng: &mut Rng, kind: usize) -> Fault {
    let trouble = match kind {
        0 => {
            let near = gateway(small(rng.below(u64::from(plan.gateways))));
            return Fault::Hold { a: near, b: consul::HOST.to_owned() };
        }
        1 => ConsulTrouble::Stale,
        2 => ConsulTrouble::Partial,
        3 => ConsulTrouble::Empty,
        4 => ConsulTrouble::Silent,
        5 => ConsulTrouble::Garbage,
        6 => ConsulTrouble::Fails,
        _ => ConsulTrouble::Crash,
    };
    Fault::Consul { trouble }
}

/// Half of the plans have workers: in one of three of those nothing else, else beside servers that speak HTTP.
fn speaks(plan: &TierBPlan, rng: &mut Rng) -> Vec<Speaks> {
    if chance(rng, 50) {
        return Vec::new();
    }
    let only_workers = chance(rng, 33);
    // One wire, or both side by side: a stream that breaks off on one may go on over the other.
    let over_quic = [Some(false), Some(true), None][index(rng, 3)];
    let draw = |_| {
        let is_worker = only_workers || chance(rng, 60);
        match (is_worker, over_quic) {
            (false, _) => Speaks::Http,
            (true, chosen) if chosen.unwrap_or_else(|| chance(rng, 50)) => Speaks::Quic,
            (true, _) => Speaks::Grpc,
        }
    };
    (0..plan.replicas).map(draw).collect()
}

/// Bursts and pauses, sessions, duplicates, and some who leave early.
fn operations(plan: &TierBPlan, rng: &mut Rng) -> Vec<Operation> {
    let heal = plan.heal_ms();
    // At least twenty a second on average, which is what speed is measured with.
    let mean_gap = between(rng, 20, 45);
    // Who must get a fair share is judged where nobody is kept at a replica.
    let sessions = if chance(rng, 25) { 0 } else { between(rng, 1, 40) };
    let mut operations = Vec::new();
    let mut at = 300;
    while at < heal {
        let is_burst = chance(rng, 3);
        for _ in 0..if is_burst { between(rng, 5, 30) } else { 1 } {
            operations.push(operation(plan, rng, at, sessions));
        }
        at += if is_burst { between(rng, 200, 900) } else { between(rng, 1, 2 * mean_gap) };
    }
    let fresh = (0..plan.clients).flat_map(|client| plan.fronts().map(move |g| (client, g)));
    for (client, gateway) in fresh {
        for count in 0..4 {
            let at = heal + SETTLED_MS + count * 300;
            operations.push(fresh_operation(plan, rng, at, (client, gateway)));
        }
    }
    operations.sort_by_key(|operation| operation.at_ms);
    operations
}

fn operation(plan: &TierBPlan, rng: &mut Rng, at_ms: u64, sessions: u64) -> Operation {
    let tenants = plan.knobs.tenant_tokens.len();
    let stream = chance(rng, 70);
    let is_long = chance(rng, 10);
    let wants = between(rng, 1, if is_long { 400 } else { 50 }) as u32;
    // A worker does not know what a model would like to say: its answers are as long as they may be.
    let most = (plan.has_workers() && !wants.is_multiple_of(8)).then_some(wants);
    Operation {
        at_ms,
        client: small(rng.below(u64::from(plan.clients))),
        gateway: front(plan, rng),
        // Skewed: the first tenant asks for half of everything.
        tenant: match rng.below(4) {
            0 | 1 => Some(0),
            2 => Some(small(index(rng, tenants) as u64)),
            _ => None,
        },
        stream,
        prompt: between(rng, 1, 60) as u32,
        wants,
        max_tokens: chance(rng, 50).then(|| between(rng, 1, 300) as u32).or(most),
        session: (sessions > 0 && chance(rng, 50)).then(|| rng.below(sessions) as u32),
        keyed: chance(rng, 30),
        leaves_after: (stream && chance(rng, 12)).then(|| rng.below(u64::from(wants)) as u32),
        timeout_ms: if chance(rng, 15) { between(rng, 50, 1_500) } else { 12_000 },
        retries: if chance(rng, 40) { between(rng, 1, 3) as u32 } else { 0 },
        must_succeed: false,
        keeping: None,
    }
}

fn front(plan: &TierBPlan, rng: &mut Rng) -> u8 {
    let fronts = plan.fronts();
    fronts.start + small(rng.below(fronts.len() as u64))
}

fn fresh_operation(
    plan: &TierBPlan,
    rng: &mut Rng,
    at_ms: u64,
    (client, gateway): (u8, u8),
) -> Operation {
    Operation {
        at_ms,
        client,
        gateway,
        tenant: None,
        stream: chance(rng, 50),
        prompt: 5,
        wants: 5,
        max_tokens: plan.has_workers().then_some(5),
        session: None,
        keyed: false,
        leaves_after: None,
        timeout_ms: 2_500,
        // A model that was overloaded sheds what comes at once: the next second must have room.
        retries: 2,
        must_succeed: true,
        keeping: None,
    }
}

/// Which kinds of faults there are in this run, and then when each comes. One run in ten has none at all.
fn faults(plan: &TierBPlan, rng: &mut Rng) -> Vec<TimedFault> {
    let mut faults = Vec::new();
    if chance(rng, 10) {
        return faults;
    }
    // Shares are judged in calm, which some of these runs must have while much is asked.
    let over = if plan.is_stateless() { EARLY_MS } else { plan.heal_ms() };
    let latest = over - 1_000;
    let is_on: Vec<bool> = (0..KINDS).map(|_| chance(rng, 50)).collect();
    for kind in (0..KINDS).filter(|kind| is_on[*kind]) {
        for _ in 0..between(rng, 1, 3) {
            let at_ms = between(rng, 1_000, latest);
            let (least, most) = if kind == PAUSE { (10_000, 30_000) } else { (50, 6_000) };
            let for_ms = between(rng, least, most).min(over - at_ms);
            faults.push(TimedFault { at_ms, for_ms, fault: fault(plan, rng, kind) });
        }
    }
    faults.sort_by_key(|fault| fault.at_ms);
    faults
}

const KINDS: usize = 19;
const PAUSE: usize = 16;
/// Where faults are early they are over by now.
const EARLY_MS: u64 = 14_000;

fn fault(plan: &TierBPlan, rng: &mut Rng, kind: usize) -> Fault {
    let (a, b) = if plan.doors > 0 { doors::link(plan, rng) } else { link(plan, rng) };
    let of_gateway = small(rng.below(u64::from(plan.machines())));
    let of_replica = small(rng.below(u64::from(plan.replicas)));
    match kind {
        0 => Fault::Cut { a, b },
        1 => Fault::CutOneWay { from: a, to: b },
        2 => Fault::Hold { a, b },
        3 => Fault::Latency { a, b, ms: between(rng, 30, 900) },
        4 | 5 => Fault::Replica { replica: of_replica, mode: mode(rng) },
        6 => Fault::ReplicaCrash { replica: of_replica },
        7 => Fault::Kill { gateway: of_gateway },
        8 => Fault::PowerLoss { gateway: of_gateway, reorder: chance(rng, 50) },
        9 => Fault::Restart { gateway: of_gateway },
        10 => Fault::DiskFull { gateway: of_gateway },
        11 => Fault::DiskSlow { gateway: of_gateway, ms: between(rng, 5, 400) },
        12 if chance(rng, 30) => Fault::SyncFails { gateway: of_gateway },
        12 => Fault::AppendsFail { gateway: of_gateway, count: between(rng, 1, 5) as u32 },
        13 => {
            let without = small(between(rng, 1, u64::from(plan.replicas) - 1));
            Fault::Reload { gateway: of_gateway, without }
        }
        14 => Fault::Drain { gateway: of_gateway, replica: of_replica },
        PAUSE => Fault::Pause { gateway: of_gateway },
        17 => Fault::BitFlip {
            gateway: of_gateway,
            // Half of them in the last records, where damage and a torn end look alike.
            from_end: if chance(rng, 50) { rng.below(200) } else { rng.below(10_000_000) },
            bit: small(rng.below(8)),
        },
        18 => Fault::CrashTwice {
            gateway: of_gateway,
            power: chance(rng, 50),
            bytes: if chance(rng, 50) { rng.below(64) } else { rng.below(2_000) },
        },
        _ => {
            Fault::ClockJump { gateway: of_gateway, ms: between(rng, 0, 400_000) as i64 - 200_000 }
        }
    }
}

/// A link that carries something: a gateway's to a replica, or a client's to a gateway; either end first.
fn link(plan: &TierBPlan, rng: &mut Rng) -> (String, String) {
    let near = gateway(small(rng.below(u64::from(plan.gateways))));
    let far = if chance(rng, 70) {
        replica(small(rng.below(u64::from(plan.replicas))))
    } else {
        client(small(rng.below(u64::from(plan.clients))))
    };
    if chance(rng, 50) { (near, far) } else { (far, near) }
}

fn mode(rng: &mut Rng) -> Mode {
    let few = rng.below(20) as u32;
    match rng.below(9) {
        0 => Mode::Slow(between(rng, 2, 30) as u32),
        1 => Mode::Stalls,
        2 => Mode::Garbage,
        3 => Mode::DiesAfter(few),
        4 => Mode::EndsAfter(few),
        5 => Mode::StallsAfter(few),
        6 => Mode::Fails(500),
        7 => Mode::Fails(429),
        _ => Mode::Fails(401),
    }
}

pub(super) fn chance(rng: &mut Rng, percent: u64) -> bool {
    rng.below(100) < percent
}

/// Both ends included.
pub(super) fn between(rng: &mut Rng, low: u64, high: u64) -> u64 {
    low + rng.below(high.saturating_sub(low) + 1)
}

fn index(rng: &mut Rng, len: usize) -> usize {
    rng.below(len as u64) as usize
}

pub(super) fn small(value: u64) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}
