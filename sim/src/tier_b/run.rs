//! The loop: a step of the simulation, a look at what it did, and what goes wrong next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use turmoil::{Builder, Sim};

use crate::coverage;
use crate::redis::{Made, Server};

use super::check::Acknowledged;
use super::follow::{Follower, Loss};
use super::gateway::House;
use super::mirror::{Mirrors, Sight};
use super::nemesis::Nemesis;
use super::plan::{Fault, RedisTrouble, Speaks, TierBPlan, client, gateway, replica};
use super::stage::Stage;
use super::till::Till;
use super::{
    Outcome, client as clients, clock, consul, panics, redis, replica as replicas,
    worker as workers,
};

/// Segments of a connection under way: turmoil's default of 64 stalls a burst of tokens that no real network would.
const TCP_CAPACITY: usize = 4_096;

/// Runs a plan on this thread, whose entropy is seeded already. Returns what came out, and the trace as text.
pub(super) fn simulate(plan: &TierBPlan, with_text: bool) -> (Outcome, Vec<u8>) {
    clock::set(Duration::ZERO);
    coverage::take();
    let stage = Stage::new(plan, with_text);
    let houses: Vec<_> = (0..plan.machines()).map(|index| House::new(&stage, index)).collect();
    let mut sim = build(plan);
    settle_in(&mut sim, &stage, &houses);
    let mut run = Run {
        nemesis: Nemesis::new(&stage, &houses),
        mirrors: Mirrors::new(plan.machines(), Duration::from_millis(plan.duration_ms)),
        followers: houses.iter().map(|house| Follower::new(&stage, Arc::clone(house))).collect(),
        told: Vec::new(),
        till: plan.shared.then(|| Till::new(plan)),
        has_died: false,
        has_lost: false,
        stage: Arc::clone(&stage),
        houses,
    };
    let end = Duration::from_millis(plan.duration_ms);
    while sim.elapsed() < end {
        if let Err((invariant, text)) = run.step(&mut sim) {
            let at = sim.elapsed();
            stage.scene().checks.violated(at, invariant, text);
        }
        if stage.scene().checks.violation().is_some() {
            break;
        }
    }
    let at = sim.elapsed();
    if stage.scene().checks.violation().is_none()
        && let Err((invariant, text)) = run.at_the_end()
    {
        stage.scene().checks.violated(at, invariant, text);
    }
    stage.scene().checks.end(at);
    let outcome = run.outcome(at);
    // The hosts' tasks end with it, and still note what they let go of.
    let mut text = stage.scene().tape.take_text();
    drop(sim);
    if text.is_empty() && with_text {
        text.push(b'\n');
    }
    (outcome, text)
}

fn build(plan: &TierBPlan) -> Sim<'static> {
    let mut builder = Builder::new();
    builder
        .simulation_duration(Duration::from_millis(plan.duration_ms * 2))
        .tick_duration(Duration::from_millis(plan.tick_ms))
        .min_message_latency(Duration::from_millis(plan.latency_ms.0))
        .max_message_latency(Duration::from_millis(plan.latency_ms.1))
        .tcp_capacity(TCP_CAPACITY)
        .rng_seed(plan.seed)
        .epoch(std::time::SystemTime::UNIX_EPOCH);
    builder.build()
}

fn settle_in(sim: &mut Sim<'static>, stage: &Arc<Stage>, houses: &[Arc<House>]) {
    for index in 0..stage.plan.replicas {
        let stage = Arc::clone(stage);
        match stage.plan.speaks(index) {
            Speaks::Http => {
                sim.host(replica(index), move || replicas::serve(Arc::clone(&stage), index));
            }
            Speaks::Grpc | Speaks::Quic => {
                sim.host(replica(index), move || workers::serve(Arc::clone(&stage), index));
            }
        }
    }
    for house in houses {
        let house = Arc::clone(house);
        sim.host(gateway(house.index), move || Arc::clone(&house).live());
    }
    if stage.plan.shared {
        let stage = Arc::clone(stage);
        sim.host(redis::HOST, move || redis::serve(Arc::clone(&stage)));
    }
    if stage.plan.consul {
        let stage = Arc::clone(stage);
        sim.host(consul::HOST, move || consul::serve(Arc::clone(&stage)));
    }
    for index in 0..stage.plan.clients {
        let stage = Arc::clone(stage);
        sim.host(client(index), move || clients::run(Arc::clone(&stage), index));
    }
}

struct Run {
    stage: Arc<Stage>,
    houses: Vec<Arc<House>>,
    nemesis: Nemesis,
    followers: Vec<Follower>,
    mirrors: Mirrors,
    /// Clean ends whose gateway has gone since: held against what its next life knows.
    told: Vec<Acknowledged>,
    /// The books of a ledger that is shared.
    till: Option<Till>,
    /// A gateway's process ended.
    has_died: bool,
    /// A gateway's disk forgot something.
    has_lost: bool,
}

impl Run {
    /// One tick.
    fn step(&mut self, sim: &mut Sim<'_>) -> Result<(), (u8, String)> {
        let now = sim.elapsed();
        self.stage.scene().now = now;
        clock::set(now);
        for death in self.nemesis.act(sim, now)? {
            self.followers[usize::from(death.gateway)].died(death.loss)?;
            self.has_died = true;
            self.stage.scene().checks.process_died(now, death.gateway);
            if death.loss != Loss::Nothing {
                self.has_lost = true;
                self.stage.scene().checks.forgets(now, death.gateway);
                self.told.retain(|told| told.gateway != death.gateway);
            }
        }
        sim.step().map_err(|error| (7, format!("a host failed: {error}")))?;
        let now = sim.elapsed();
        self.stage.scene().now = now;
        for follower in &mut self.followers {
            follower.look(&self.stage, now)?;
            // What a door counts is told by whom it asks.
            let charges = follower.take_charges().into_iter();
            for charge in charges.filter(|charge| !self.stage.plan.is_door(charge.gateway)) {
                self.stage.scene().checks.charged(now, &charge);
            }
        }
        for sight in self.houses.iter().filter_map(|house| see(house)) {
            self.mirrors.look(now, &sight)?;
        }
        self.stage.scene().checks.look(now);
        self.count()?;
        self.told.extend(self.stage.scene().checks.take_acknowledged());
        for told in std::mem::take(&mut self.told) {
            let follower = &self.followers[usize::from(told.gateway)];
            if follower.is_current() {
                follower.acknowledged(&told)?;
            } else {
                self.told.push(told);
            }
        }
        panics::take().map_or(Ok(()), |panic| Err((7, format!("somebody panicked: {panic}"))))
    }

    /// What the shared ledger wrote in this tick.
    fn count(&mut self) -> Result<(), (u8, String)> {
        let Some(till) = &mut self.till else { return Ok(()) };
        let made = self.stage.redis.with(Server::take_made);
        for Made { entry, .. } in &made {
            self.stage.word(format!("redis notes {:?}", entry.fact));
        }
        if self.nemesis.take_forgotten() {
            // What was made since is among what it has.
            return self.stage.redis.with(|server| till.forgot(server));
        }
        till.wrote(&made)
    }

    /// The shared ledger has charged what was used.
    fn settles(&self) -> Result<(), (u8, String)> {
        let Some(till) = &self.till else { return Ok(()) };
        let lives = self.houses.iter().zip(&self.followers);
        let lives = lives.map(|(house, follower)| (house.owner(), follower.incarnation()));
        let held = till.held_by(&lives.collect());
        // What ended with a call that a failover took ends no second time: its owner heard that it was over.
        if held > calls_lost(&self.stage.plan) {
            return Err((9, format!("the shared ledger ends with {held} reservations")));
        }
        let (mut ever, mut now) = (BTreeMap::new(), BTreeMap::new());
        // Doors spend nothing.
        for follower in &self.followers[..usize::from(self.stage.plan.gateways)] {
            let (of_ever, of_now) = follower.used();
            for (sums, of) in [(&mut ever, of_ever), (&mut now, of_now)] {
                for (account, tokens) in of {
                    *sums.entry(*account).or_default() += tokens;
                }
            }
        }
        // A process that dies may have told the store what it did not come to write down; what a disk forgot, it may have told
        // already, or never: an allotment's end is told once.
        let lent = self.followers.iter().map(Follower::lent).sum();
        let (ever, now) =
            ((!self.has_died).then_some(&ever), (!self.has_lost).then_some((&now, lent)));
        till.reconciles(ever, now)?;
        self.stage.redis.with(|server| till.compares(server))
    }

    /// Long after everything was mended nothing is under way, and the books agree.
    fn at_the_end(&mut self) -> Result<(), (u8, String)> {
        for (house, follower) in self.houses.iter().zip(&self.followers) {
            let Some(gateway) = house.gateway() else {
                return Err((9, format!("gateway-{} is not there at the end", house.index)));
            };
            let (requests, held) = (gateway.requests(), follower.book().live());
            if requests > 0 || held > 0 {
                let text = format!(
                    "gateway-{} ends with {requests} requests and {held} reservations",
                    house.index
                );
                return Err((9, text));
            }
            follower.reconciles()?;
        }
        self.settles()?;
        self.houses
            .iter()
            .filter_map(|house| see(house))
            .try_for_each(|sight| self.mirrors.end(&sight))
    }

    fn outcome(&self, simulated: Duration) -> Outcome {
        let scene = self.stage.scene();
        let (events, trace_hash) = scene.tape.sum();
        let violation = scene.checks.violation();
        Outcome {
            violation: violation.map(|found| (found.invariant, found.text.clone(), found.at)),
            trace_hash,
            events,
            requests: scene.checks.tries() as u64,
            simulated,
            last_words: match violation {
                Some(_) => scene.tape.last_words(),
                None => Vec::new(),
            },
            coverage: coverage::take(),
        }
    }
}

/// Calls that the plan's failovers of the shared ledger may take.
fn calls_lost(plan: &TierBPlan) -> usize {
    let lost = plan.faults.iter().filter_map(|timed| {
        let Fault::Redis { trouble: RedisTrouble::FailOver { lose } } = timed.fault else {
            return None;
        };
        Some(lose as usize)
    });
    lost.sum()
}

/// A gateway and its shadow. After the process's end too: the last round of a shadow is made there.
fn see(house: &House) -> Option<Sight> {
    let (shadow, gateway) = (house.shadow()?, house.gateway());
    let written = gateway.map(|gateway| gateway.driver().journal().written());
    Some(Sight {
        gateway: house.index,
        written: written.unwrap_or_default(),
        replayed: shadow.position(),
        diverged: shadow.diverged(),
    })
}
