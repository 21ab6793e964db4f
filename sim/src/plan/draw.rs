//! From a seed to a plan.

use control::plane::Config;
use control::rng::Rng;

use super::faults::{Fault, FaultKind, RegistryLie, ReplicaIllness, StoreTrouble};
use super::knobs::{self, chance, one_of};
use super::shape::{self, Quantiles};
use super::topology::{DiskPlan, GatewayPlan, Host, LinkPlan, ReplicaPlan, Tells, Topology};
use super::{Ask, PLAN_VERSION, Plan};

/// How long a world lasts; its first part is trouble, the rest is for coming back.
const DURATION_MS: u64 = 120_000;
const HEAL_AT_MS: u64 = 75_000;

/// How long the longest fault of a healed host may last.
const FAULT_MS_MAX: u64 = 30_000;

/// Draws the plan of a seed.
#[must_use]
pub fn draw(seed: u64) -> Plan {
    let root = Rng::new(seed);
    let mut topology = topology(&mut root.fork("topology"));
    mark(&mut topology.replicas, &mut root.fork("fingerprints"));
    hear(&mut topology.replicas, &mut root.fork("reports"));
    let mut rng = root.fork("workload");
    let mut asks = asks(&topology, &mut rng);
    spoil(&mut asks, &mut root.fork("mistakes"));
    let load = asks.iter().map(|ask| ask.prompt + ask.output).sum();
    let mut config = knobs::draw(&topology, load, &mut root.fork("knobs"));
    if topology.shared {
        share(&mut config, &mut asks, &topology, &mut root.fork("sharing"));
    }
    knobs::hedge(&mut config, &mut root.fork("hedges"));
    knobs::patience(&mut config, &mut root.fork("patience"));
    let mut nemesis = Nemesis { rng: root.fork("nemesis"), topology: &topology, load };
    let faults = nemesis.faults(&config);
    Plan {
        version: PLAN_VERSION,
        what: format!("drawn from seed {seed}"),
        seed,
        duration_ms: DURATION_MS,
        heal_at_ms: HEAL_AT_MS,
        topology,
        config,
        asks,
        faults,
    }
}

/// The faults that a seed would bring upon a world that somebody else describes: all but reloads, which would replace the
/// configuration that is looked at.
pub(crate) fn trouble_for(topology: &Topology, config: &Config, rng: Rng) -> Vec<Fault> {
    let mut faults = Nemesis { rng, topology, load: 0 }.faults(config);
    faults.retain(|fault| !matches!(fault.kind, FaultKind::Reload { .. }));
    faults
}

/// Mostly a handful of gateways and a few dozen replicas; now and then as many as the simulator takes.
fn topology(rng: &mut Rng) -> Topology {
    let gateways = match rng.below(40) {
        0..20 => 1,
        20..39 => 2 + rng.below(4),
        _ => 8 + rng.below(43),
    };
    let replicas = match rng.below(40) {
        0..30 => 1 + rng.below(8),
        30..39 => 8 + rng.below(40),
        _ => 100 + rng.below(401),
    };
    let models = 1 + rng.below(3.min(replicas)) as u32;
    let mut core = |index: u64| index == 0 || chance(80, rng);
    let cores: Vec<bool> = (0..gateways.max(replicas)).map(&mut core).collect();
    // Two clocks may part by twice `drift_max` (200 ms at least) within a reservation's life (24 s at most).
    let drift = one_of(&[0, 50, 1_000, 8_000], rng);
    let ppm = |rng: &mut Rng| rng.below(2 * drift + 1) as i32 - drift as i32;
    Topology {
        shared: gateways > 1 || chance(20, rng),
        gateways: (0..gateways as usize)
            .map(|index| GatewayPlan {
                ppm: ppm(rng),
                wall_off_ms: rng.below(400) as i64 - 200,
                core: cores[index],
            })
            .collect(),
        replicas: (0..replicas).map(|index| replica(index, models, &cores, rng)).collect(),
        models,
        tenants: 1 + rng.below(12) as u32,
        link: LinkPlan { base_us: 100 + rng.below(3_000), jitter_us: 1 + rng.below(3_000) },
        disk: DiskPlan {
            write_us: 50 + rng.below(400),
            sync_every_ms: one_of(&[0, 10, 100, 1_000], rng),
            snapshot_every_ms: 3_000 + rng.below(20_000),
        },
        registry_every_ms: if chance(60, rng) { 500 + rng.below(4_000) } else { 0 },
        store_ppm: ppm(rng),
    }
}

fn replica(index: u64, models: u32, cores: &[bool], rng: &mut Rng) -> ReplicaPlan {
    let mut served = vec![(index % u64::from(models)) as u32];
    if models > 1 && chance(25, rng) {
        served.push(((index + 1) % u64::from(models)) as u32);
    }
    // The first replica of each model is of the core and in the first tier: somebody must be left to serve.
    let first = index < u64::from(models);
    ReplicaPlan {
        models: served,
        weight: one_of(&[100, 100, 100, 50, 200, 1], rng),
        tier: u8::from(!first && chance(15, rng)),
        in_flight_max: one_of(&[4, 16, 64, 256], rng),
        rps_max: chance(8, rng).then(|| 2 + rng.below(30) as u32),
        prefill_rate: 2_000 + rng.below(20_000) as u32,
        rate: 60 + rng.below(400) as u32,
        slots: one_of(&[4, 16, 64, 256], rng),
        tells_usage: chance(80, rng),
        core: first || cores[index as usize],
        fingerprint: None,
        tells: None,
    }
}

/// Replicas of a model mostly run the same revision of it, where they tell at all.
fn mark(replicas: &mut [ReplicaPlan], rng: &mut Rng) {
    let percent = one_of(&[0, 50, 100, 100], rng);
    for replica in replicas {
        let revision = 10 * replica.models[0] + u32::from(chance(15, rng));
        replica.fingerprint = chance(percent, rng).then_some(revision);
    }
}

/// Most replicas tell the truth about their load, where they tell of it at all.
fn hear(replicas: &mut [ReplicaPlan], rng: &mut Rng) {
    let percent = one_of(&[0, 60, 100, 100], rng);
    let lies = one_of(&[0, 0, 20, 80], rng);
    for replica in replicas {
        let lie = one_of(&[Tells::Old, Tells::Idle, Tells::Swamped], rng);
        let tells = if chance(lies, rng) { lie } else { Tells::Truth };
        replica.tells = chance(percent, rng).then_some(tells);
    }
}

/// What clients want: bursts and quiet, heavy tenants and light ones, conversations and single questions.
fn asks(topology: &Topology, rng: &mut Rng) -> Vec<Ask> {
    let chat = chance(60, rng);
    let (prompts, outputs): (&Quantiles, &Quantiles) = match chat {
        true => (&shape::CHAT_PROMPT, &shape::CHAT_OUTPUT),
        false => (&shape::CODE_PROMPT, &shape::CODE_OUTPUT),
    };
    let divide = if chat { 3 + rng.below(6) } else { 1 };
    let (rate, bursty) = (4 + rng.below(36), chance(40, rng));
    let habits = Habits {
        session: rng.below(90),
        stored: rng.below(60),
        key: rng.below(40),
        stream: 20 + rng.below(80),
        leaves: rng.below(25),
        patience: rng.below(20),
        bounded: rng.below(80),
        again: rng.below(4) as u32,
        sessions: 1 + rng.below(60) as u32,
    };
    let mut asks = Vec::new();
    for second in 0..HEAL_AT_MS / 1_000 {
        let wanted = match bursty {
            true => shape::length(&shape::CODE_BURST, rng) * rate / 3,
            false => rate / 2 + rng.below(rate + 1),
        };
        // At most 200 a second: a burst, and not the whole budget of the seed.
        for _ in 0..wanted.min(200) {
            let at_us = second * 1_000_000 + rng.below(1_000_000);
            let prompt = shape::length(prompts, rng) / (divide * 10);
            let output = shape::length(outputs, rng) / divide;
            asks.push(habits.ask(at_us, prompt.max(1), output.max(1), topology, rng));
        }
    }
    asks.sort_by_key(|ask| ask.at_us);
    asks
}

/// Mostly gateways share more than the ledger: sessions have names and homes, keys are sent to whoever is there, and some
/// tenants have rates that are met.
fn share(config: &mut Config, asks: &mut [Ask], topology: &Topology, rng: &mut Rng) {
    if chance(30, rng) {
        return;
    }
    config.affinity.bindings_max = 100_000;
    let (named, roams) = (one_of(&[0, 50, 100], rng), one_of(&[0, 50, 100], rng));
    for ask in asks {
        ask.named = ask.session.is_some() && !ask.stored && chance(named, rng);
        ask.roams = ask.key.is_some() && chance(roams, rng);
    }
    for tenant in 0..topology.tenants {
        if chance(30, rng) {
            knobs::hurry(config, tenant, rng);
        }
    }
}

/// Clients make mistakes, some more than others.
fn spoil(asks: &mut [Ask], rng: &mut Rng) {
    let percent = one_of(&[0, 0, 1, 5, 20], rng);
    for ask in asks {
        ask.bad = chance(percent, rng);
    }
}

/// How the clients of one seed behave, in percent.
struct Habits {
    session: u64,
    stored: u64,
    key: u64,
    stream: u64,
    leaves: u64,
    patience: u64,
    bounded: u64,
    again: u32,
    sessions: u32,
}

impl Habits {
    fn ask(&self, at_us: u64, prompt: u64, output: u64, topology: &Topology, rng: &mut Rng) -> Ask {
        let tenant = shape::tenant(topology.tenants, rng);
        let session = chance(self.session, rng).then(|| rng.below(self.sessions.into()) as u32);
        let key = chance(self.key, rng);
        let error = rng.below(9) as i64 - 4;
        Ask {
            at_us,
            gateway: rng.below(topology.gateways.len() as u64) as u32,
            tenant,
            user: chance(30, rng).then(|| rng.below(3) as u32),
            // The last is nobody's, now and then.
            model: rng.below(u64::from(topology.models) * 50 + 1) as u32 / 50,
            session,
            stored: session.is_some() && chance(self.stored, rng),
            // Every so often somebody uses a key twice.
            key: key.then(|| {
                if chance(80, rng) { (at_us % 1_000_000_007) as u32 } else { rng.below(20) as u32 }
            }),
            prompt,
            prompt_true: prompt.saturating_add_signed(error).max(1),
            output,
            output_max: chance(self.bounded, rng)
                .then(|| if chance(50, rng) { 4 * output } else { output / 2 + 1 }),
            stream: chance(self.stream, rng),
            patience_ms: chance(self.patience, rng).then(|| 200 + rng.below(8_000)),
            leaves_ms: chance(self.leaves, rng).then(|| rng.below(4_000)),
            again: if key { self.again } else { 0 },
            named: false,
            roams: false,
            bad: false,
        }
    }
}

struct Nemesis<'a> {
    rng: Rng,
    topology: &'a Topology,
    load: u64,
}

impl Nemesis<'_> {
    /// Each kind of fault is switched on by a coin flip; what is on happens a few times.
    fn faults(&mut self, config: &Config) -> Vec<Fault> {
        let mut faults = Vec::new();
        let calm = chance(4, &mut self.rng);
        for kind in 0..KINDS {
            if !calm && chance(25, &mut self.rng) {
                for _ in 0..=self.rng.below(3) {
                    faults.extend(self.fault(kind, config));
                }
            }
        }
        if !calm {
            self.leave_the_rest_broken(&mut faults);
        }
        faults.sort_by_key(|fault| (fault.at_ms, fault.until_ms));
        separate(&mut faults);
        faults
    }

    fn fault(&mut self, kind: u64, config: &Config) -> Option<Fault> {
        let at_ms = self.rng.below(HEAL_AT_MS - 2_000);
        let longest = FAULT_MS_MAX.min(HEAL_AT_MS - at_ms - 1_000);
        let shortest = if kind == 20 { longest / 2 } else { 0 };
        let length = 50 + shortest + self.rng.below(longest - shortest);
        let kind = self.kind(kind, config)?;
        let lasts = !matches!(
            kind,
            FaultKind::StoreFailover { .. }
                | FaultKind::Reload { .. }
                | FaultKind::ClockJump { .. }
        );
        Some(Fault { at_ms, until_ms: lasts.then_some(at_ms + length), kind })
    }

    fn kind(&mut self, kind: u64, config: &Config) -> Option<FaultKind> {
        let (gateway, replica) = (self.gateway(), self.replica());
        let shared = self.topology.shared;
        let registry = self.topology.registry_every_ms > 0;
        let rng = &mut self.rng;
        Some(match kind {
            0 => self.cut(),
            1 => self.isolate(),
            2 => {
                let (from, to) = (vec![Host::Gateway(gateway)], vec![Host::Replica(replica)]);
                FaultKind::Flap { from, to, period_ms: 100 + rng.below(3_000) }
            }
            3 => {
                let host = [Host::Gateway(gateway), Host::Replica(replica), Host::Store];
                let host = host[rng.below(3) as usize];
                FaultKind::Latency { host, add_ms: 1 + rng.below(800), ramp: chance(50, rng) }
            }
            4..=6 => FaultKind::Ill { replica, with: illness(rng) },
            7 => FaultKind::ReplicaCrash { replica, power: chance(40, rng) },
            8 => FaultKind::Drain { replica },
            9 => FaultKind::Kill {
                gateway,
                again: if chance(25, rng) { 1 + rng.below(3) as u32 } else { 0 },
                upgrade: chance(20, rng),
            },
            10 => FaultKind::PowerLoss { gateway, torn: chance(50, rng) },
            11 => FaultKind::Pause { gateway },
            12 => FaultKind::ClockJump { gateway, by_ms: rng.below(60_000) as i64 - 30_000 },
            13 => FaultKind::DiskFull { gateway },
            14 => FaultKind::DiskSlow { gateway, write_ms: 1 + rng.below(400) },
            15 => FaultKind::SyncFails { gateway },
            16 if registry => FaultKind::Registry { lie: lie(rng) },
            17 if shared => FaultKind::Store { trouble: trouble(rng) },
            18 if shared => FaultKind::StoreFailover { lose: rng.below(40) as u32 },
            19 => {
                let config = knobs::edit(config, self.topology, self.load, rng);
                FaultKind::Reload { config: Box::new(config) }
            }
            // Long enough for what was drawn ahead to run out of time.
            20 if shared => FaultKind::Store { trouble: StoreTrouble::Down },
            _ => return None,
        })
    }

    /// Two random sides.
    fn cut(&mut self) -> FaultKind {
        let (mut from, mut to) = (Vec::new(), Vec::new());
        for host in self.hosts() {
            match self.rng.below(3) {
                0 => from.push(host),
                1 => to.push(host),
                _ => {}
            }
        }
        FaultKind::Cut { from, to, both: chance(60, &mut self.rng) }
    }

    /// One against all others.
    fn isolate(&mut self) -> FaultKind {
        let all = self.hosts();
        let one = all[self.rng.below(all.len() as u64) as usize];
        let to = all.into_iter().filter(|host| *host != one).collect();
        FaultKind::Cut { from: vec![one], to, both: chance(60, &mut self.rng) }
    }

    fn hosts(&self) -> Vec<Host> {
        let gateways = (0..self.topology.gateways.len() as u32).map(Host::Gateway);
        let replicas = (0..self.topology.replicas.len() as u32).map(Host::Replica);
        gateways.chain(replicas).chain([Host::Store, Host::Registry, Host::Clients]).collect()
    }

    fn gateway(&mut self) -> u32 {
        self.rng.below(self.topology.gateways.len() as u64) as u32
    }

    fn replica(&mut self) -> u32 {
        self.rng.below(self.topology.replicas.len() as u64) as u32
    }

    /// Hosts outside the core fail before the end and stay so.
    fn leave_the_rest_broken(&mut self, faults: &mut Vec<Fault>) {
        let topology = self.topology;
        for (index, replica) in (0..).zip(&topology.replicas) {
            if !replica.core && chance(50, &mut self.rng) {
                let at_ms = self.rng.below(HEAL_AT_MS);
                let kind = match self.rng.below(3) {
                    0 => FaultKind::ReplicaCrash { replica: index, power: true },
                    _ => FaultKind::Ill { replica: index, with: illness(&mut self.rng) },
                };
                faults.push(Fault { at_ms, until_ms: None, kind });
            }
        }
        for (index, gateway) in (0..).zip(&topology.gateways) {
            if !gateway.core && chance(50, &mut self.rng) {
                let at_ms = self.rng.below(HEAL_AT_MS);
                let kind = FaultKind::Kill { gateway: index, again: 0, upgrade: false };
                faults.push(Fault { at_ms, until_ms: None, kind });
            }
        }
    }
}

/// Kinds of fault that [`Nemesis::kind`] knows.
const KINDS: u64 = 21;

fn illness(rng: &mut Rng) -> ReplicaIllness {
    match rng.below(9) {
        0 => ReplicaIllness::Slow { times: 2 + rng.below(20) as u32 },
        1 => ReplicaIllness::Silent,
        2 => ReplicaIllness::Stalls { after: rng.below(60) },
        3 => ReplicaIllness::Garbage,
        4 => ReplicaIllness::Dies { after: rng.below(60) },
        5 => ReplicaIllness::Fails { status: one_of(&[500, 502], rng), retry_after_ms: None },
        6 => {
            let retry_after_ms = chance(50, rng).then(|| rng.below(3_000));
            ReplicaIllness::Fails { status: one_of(&[429, 503], rng), retry_after_ms }
        }
        7 => {
            let status = one_of(&[401, 402, 403, 404], rng);
            ReplicaIllness::Fails { status, retry_after_ms: None }
        }
        _ => ReplicaIllness::Lies { usage: one_of(&[0, 1_000, u64::MAX], rng) },
    }
}

fn lie(rng: &mut Rng) -> RegistryLie {
    let lies = [RegistryLie::Stale, RegistryLie::Partial, RegistryLie::Empty, RegistryLie::Silent];
    one_of(&lies, rng)
}

fn trouble(rng: &mut Rng) -> StoreTrouble {
    match rng.below(4) {
        0 => StoreTrouble::Down,
        1 => StoreTrouble::Mute,
        2 => StoreTrouble::Slow { ms: 5 + rng.below(1_500) },
        _ => StoreTrouble::Twice,
    }
}

/// A process is killed, unplugged or paused once at a time: of two such faults that overlap on one gateway, the later is
/// left out.
fn separate(faults: &mut Vec<Fault>) {
    let mut busy: Vec<(u32, u64, u64)> = Vec::new();
    faults.retain(|fault| {
        let gateway = match fault.kind {
            FaultKind::Kill { gateway, .. }
            | FaultKind::PowerLoss { gateway, .. }
            | FaultKind::Pause { gateway } => gateway,
            FaultKind::Cut { .. }
            | FaultKind::Flap { .. }
            | FaultKind::Latency { .. }
            | FaultKind::Ill { .. }
            | FaultKind::ReplicaCrash { .. }
            | FaultKind::Drain { .. }
            | FaultKind::ClockJump { .. }
            | FaultKind::DiskFull { .. }
            | FaultKind::DiskSlow { .. }
            | FaultKind::SyncFails { .. }
            | FaultKind::Registry { .. }
            | FaultKind::Store { .. }
            | FaultKind::StoreFailover { .. }
            | FaultKind::Reload { .. } => return true,
        };
        let (from, until) = (fault.at_ms, fault.until_ms.unwrap_or(u64::MAX));
        let clash = busy.iter().any(|(of, a, b)| *of == gateway && from <= *b && *a <= until);
        if !clash {
            busy.push((gateway, from, until));
        }
        !clash
    });
}
