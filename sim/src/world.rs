//! Tier A: a world that jumps from event to event.
//!
//! **The problem.** What a gateway decides under partitions, crashes and lies is only believed after tens of thousands of
//! different ones; a simulator that moves a clock by ticks, or runs sockets, manages a few a minute. So here the real
//! machines ([`control::plane::ControlPlane`], [`control::quota::Ledger`]) stand in a world of plain data: an agenda of
//! events, links that delay and cut, replicas that are ill, clients that leave. Nothing waits, and nothing but the plan's
//! seed is chance. **Rejected:** mocking the machines' answers, which tests the mock.
//!
//! What is simulated is everything around the machines, the shell included: what it stamps, records and performs is
//! described in [`gateway`]. The shell that production runs is judged in the other tier, on simulated sockets.

mod attempt;
mod client;
mod clock;
mod event;
mod gateway;
mod journal;
mod life;
mod nemesis;
mod network;
mod registry;
mod reports;
mod sharing;
mod store;

use std::collections::{BTreeMap, BTreeSet};

use control::plane::Config;
use control::rng::Rng;
use control::shared::SharedOpId;

use crate::check::{Judge, Violation};
use crate::chronicle::Chronicle;
use crate::plan::{Ask, Host, Plan};
use crate::trace::Trace;
use attempt::Run;
pub(crate) use attempt::replica_of;
use client::Call;
use clock::{MICRO, MILLI, Nanos, SECOND};
use event::{Agenda, Event};
use gateway::Gateway;
use journal::{Journal, Left};
use life::Twin;
use nemesis::Replica;
use network::Network;
use registry::Registry;
pub(crate) use sharing::{SharedAnswer, SharedAsk};
use store::{EXPIRE_EVERY, Store};

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The first invariant that broke, if one did.
    pub violation: Option<Violation>,
    /// A hash of everything every machine saw and did, and of the network's shape.
    pub hash: u64,
    /// Events that happened.
    pub events: u64,
    /// Steps of all planes.
    pub steps: u64,
    /// Requests that reached a gateway.
    pub requests: u64,
    /// What clients and tenants lived through, to compare configurations by.
    pub figures: crate::check::Figures,
}

/// A world in the middle of its plan.
pub(crate) struct World<'a> {
    plan: &'a Plan,
    /// The configuration in effect: the plan's, or what was reloaded since.
    config: Config,
    now: Nanos,
    end: Nanos,
    heal_at: Nanos,
    agenda: Agenda,
    network: Network,
    rng: Rng,
    gateways: Vec<Gateway>,
    replicas: Vec<Replica>,
    store: Store,
    registry: Registry,
    /// The plan's asks, then those that ask at the end whether all is well.
    asks: Vec<Ask>,
    calls: Vec<Call>,
    runs: Vec<Run>,
    /// When a gateway's plane was last told of a replica's load.
    heard: BTreeMap<(u32, u32), Nanos>,
    /// What waits on a link that is cut.
    parked: Vec<Event>,
    /// What dead gateways left behind.
    left: BTreeMap<u32, Left>,
    twins: Vec<Twin>,
    /// Notes that no shell has heard acknowledged: gateway, life, which.
    unheard: BTreeSet<(u32, u32, SharedOpId)>,
    /// Replicas that operators ever drained, and how many want them drained now.
    drains: BTreeMap<u32, u32>,
    judge: Judge,
    trace: Trace<'a>,
    chronicle: Chronicle,
    steps: u64,
    full_check_every: u64,
}

/// Events that may be to come at once. A world of the largest size has some ten thousand; more is a leak.
const AGENDA_MAX: usize = 1_000_000;

/// How often everything that time alone may break is looked at.
const LOOK_EVERY: Nanos = 500 * MILLI;

/// Every so many steps one plane checks all its rooms. A prime: not always on the same phase of a load.
const FULL_CHECK_EVERY: u64 = 5_003;

/// Runs a plan to its end, or to the first invariant that breaks.
///
/// A panic of a machine is not caught here: see [`crate::run`].
pub(crate) fn run<'a>(plan: &'a Plan, trace: Trace<'a>, chronicle: Chronicle) -> Outcome {
    let mut world = World::new(plan, trace, chronicle);
    world.begin_all();
    while let Some((at, event)) = world.agenda.next() {
        if at > world.end || world.judge.is_over() {
            break;
        }
        world.now = at;
        world.happen(event);
        if world.agenda.len() > AGENDA_MAX {
            world.judge.too_much(world.now, "events to come");
        }
    }
    world.finish()
}

impl<'a> World<'a> {
    fn new(plan: &'a Plan, trace: Trace<'a>, chronicle: Chronicle) -> Self {
        let root = Rng::new(plan.seed);
        let topology = &plan.topology;
        let mut world = Self {
            plan,
            config: plan.config.clone(),
            now: 0,
            end: plan.duration_ms * MILLI,
            heal_at: plan.heal_at_ms * MILLI,
            agenda: Agenda::default(),
            network: Network::new(topology, root.fork("network")),
            rng: root.fork("store's network"),
            gateways: Vec::new(),
            replicas: topology.replicas.iter().map(|_| Replica::default()).collect(),
            store: Store::new(topology, &plan.config.quota),
            registry: Registry::default(),
            asks: plan.asks.clone(),
            calls: Vec::new(),
            runs: Vec::new(),
            heard: BTreeMap::new(),
            parked: Vec::new(),
            left: BTreeMap::new(),
            twins: Vec::new(),
            unheard: BTreeSet::new(),
            drains: BTreeMap::new(),
            judge: Judge::new(plan),
            trace,
            chronicle,
            steps: 0,
            full_check_every: FULL_CHECK_EVERY,
        };
        for (index, gateway) in (0..).zip(&topology.gateways) {
            let journal = Journal::new(&topology.disk, world.may_die(index));
            world.gateways.push(Gateway::new(gateway, journal));
        }
        let mut twins = root.fork("twins");
        let gateways = topology.gateways.len() as u64;
        let steps = 1 + plan.asks.len() as u64 * 6;
        world.twins =
            (0..2).map(|_| Twin::new(twins.below(gateways) as u32, twins.below(steps))).collect();
        world
    }

    /// Everything the plan says goes on the agenda, and every gateway begins.
    fn begin_all(&mut self) {
        for gateway in 0..self.gateways.len() as u32 {
            self.boot(gateway);
            let offset = u64::from(gateway) * 7 * MILLI;
            self.agenda.plan(SECOND + offset, Event::Tick { gateway });
            let every = self.plan.topology.disk.snapshot_every_ms * MILLI;
            if self.gateways[gateway as usize].journal.is_kept() {
                self.agenda.plan(every + offset, Event::Snapshot { gateway });
            }
        }
        for (fault, planned) in (0..).zip(&self.plan.faults) {
            self.agenda.plan(planned.at_ms * MILLI, Event::Begin { fault });
        }
        self.plan_fresh_asks();
        for (ask, planned) in (0..).zip(&self.asks) {
            self.agenda.plan(planned.at_us * MICRO, Event::Ask { ask, nth: 0 });
        }
        self.agenda.plan(LOOK_EVERY, Event::Look);
    }

    /// From the healing on, a tenant without limits asks every gateway of the core, model by model: traffic for breakers
    /// to come back with, and in the end the proof that the core serves.
    fn plan_fresh_asks(&mut self) {
        let topology = &self.plan.topology;
        let core: Vec<u32> = (0..)
            .zip(&topology.gateways)
            .filter(|(_, gateway)| gateway.core)
            .map(|(index, _)| index)
            .collect();
        let every = FRESH_EVERY_US.max(FRESH_EVERY_US * core.len() as u64 / 8);
        let mut at_us = self.plan.heal_at_ms * 1_000 + every;
        let mut number = 0;
        while at_us + FRESH_UNTIL_US < self.plan.duration_ms * 1_000 {
            for (offset, gateway) in (0..).zip(&core) {
                let model = number % topology.models;
                // Apart: a replica with few slots has room for each of them.
                let at_us = at_us + offset * (every / core.len() as u64);
                self.asks.push(fresh(at_us, *gateway, topology.tenants, model, number));
            }
            number += 1;
            at_us += every;
        }
    }

    fn happen(&mut self, event: Event) {
        if let Some(gateway) = self.paused(&event) {
            return self.gateways[gateway as usize].asleep.push(event);
        }
        self.trace.event();
        match event {
            Event::Ask { ask, nth } => self.ask(ask, nth),
            Event::Arrive { call } => self.arrive(call),
            Event::Leave { call } => self.leave(call),
            Event::Gone { call } => self.gone(call),
            Event::Answered { call, good } => self.answered(call, good),
            Event::Unknown { call } => self.unknown(call),
            Event::Reach { run } => self.reach(run),
            Event::Head { run } => self.head(run),
            Event::Mark { run, produced } => self.mark(run, produced),
            Event::Whole { run } => self.whole(run),
            Event::Fail { run, failure } => self.fail(run, failure),
            Event::Stopped { run } => self.stopped(run),
            Event::Watch { run } => self.watch(run),
            Event::Stop { run } => self.stop(run),
            Event::Wake { gateway } => self.wake(gateway),
            Event::Tick { gateway } => self.tick(gateway),
            Event::Snapshot { gateway } => self.snapshot(gateway),
            Event::Poll { gateway } => self.poll(gateway),
            Event::StoreAsk { gateway, life, op } => self.store_ask(gateway, life, &op),
            Event::StoreAnswer { gateway, life, answer } => {
                self.store_answer(gateway, life, *answer);
            }
            Event::StoreRefused { gateway, life, op } => self.store_refused(gateway, life, op),
            Event::SharedAsk { gateway, life, ask } => self.shared_ask(gateway, life, *ask),
            Event::SharedAnswer { gateway, life, answer } => {
                self.shared_answer(gateway, life, *answer);
            }
            Event::NoteTry { gateway, life, note, nth } => {
                self.try_note(gateway, life, note, nth);
            }
            Event::Begin { fault } => {
                self.trace.fault(self.now, fault, true);
                self.begin(fault);
            }
            Event::Turn { fault } => self.turn(fault),
            Event::End { fault } => {
                self.trace.fault(self.now, fault, false);
                self.end_fault(fault);
            }
            Event::Configure { gateway } => self.configure(gateway),
            Event::Drain { gateway, replica } => self.drain_now(gateway, replica),
            Event::Look => self.look(),
        }
    }

    /// The gateway an event has to wait for, because it is paused.
    fn paused(&self, event: &Event) -> Option<u32> {
        let gateway = match event {
            Event::Arrive { call } | Event::Gone { call } => self.calls[*call as usize].gateway,
            Event::Head { run }
            | Event::Mark { run, .. }
            | Event::Whole { run }
            | Event::Fail { run, .. }
            | Event::Stopped { run }
            | Event::Watch { run } => self.runs[*run as usize].gateway,
            Event::Wake { gateway }
            | Event::Tick { gateway }
            | Event::Snapshot { gateway }
            | Event::Poll { gateway }
            | Event::StoreAnswer { gateway, .. }
            | Event::StoreRefused { gateway, .. }
            | Event::SharedAnswer { gateway, .. }
            | Event::NoteTry { gateway, .. }
            | Event::Configure { gateway }
            | Event::Drain { gateway, .. } => *gateway,
            Event::Ask { .. }
            | Event::Leave { .. }
            | Event::Answered { .. }
            | Event::Unknown { .. }
            | Event::Reach { .. }
            | Event::Stop { .. }
            | Event::StoreAsk { .. }
            | Event::SharedAsk { .. }
            | Event::Begin { .. }
            | Event::Turn { .. }
            | Event::End { .. }
            | Event::Look => return None,
        };
        (self.gateways[gateway as usize].paused > 0).then_some(gateway)
    }

    /// Everything that time alone may break.
    fn look(&mut self) {
        if self.now.is_multiple_of(EXPIRE_EVERY) {
            self.store_expires();
        }
        for index in 0..self.gateways.len() as u32 {
            let gateway = &self.gateways[index as usize];
            if let Some(plane) = &gateway.plane
                && gateway.paused == 0
                // Who has just woken has a moment to catch up.
                && self.now >= gateway.awake_since + LOOK_EVERY
            {
                let shows = gateway.clock.now(self.now);
                self.judge.look_at(index, plane, shows, self.now);
            }
        }
        self.look_at_health();
        if self.now + LOOK_EVERY < self.end {
            self.agenda.plan(self.now + LOOK_EVERY, Event::Look);
        }
    }

    /// Tells the judge which replicas are truly well, and for how long each gateway could have known.
    fn look_at_health(&mut self) {
        for replica in 0..self.replicas.len() as u32 {
            let state = &self.replicas[replica as usize];
            let well = state.is_well().then_some(state.well_since);
            for gateway in 0..self.gateways.len() as u32 {
                let (from, to) = (Host::Gateway(gateway), Host::Replica(replica));
                let own = &self.gateways[gateway as usize];
                let reachable = self.network.is_well(from, to) && own.is_up() && own.paused == 0;
                let well = well.filter(|_| reachable);
                self.judge.health(gateway, replica, well, self.now);
            }
        }
    }

    fn finish(mut self) -> Outcome {
        if !self.judge.is_over() {
            self.now = self.end;
            self.store_expires();
            let planes = self.gateways.iter().map(|gateway| gateway.plane.as_ref());
            let planes: Vec<_> = planes.collect();
            self.judge.finish(&planes, &self.store.ledger, self.now);
        }
        Outcome {
            hash: self.trace.hash(),
            events: self.trace.events(),
            steps: self.steps,
            requests: self.judge.requests(),
            figures: self.judge.figures(),
            violation: self.judge.into_violation(),
        }
    }
}

/// How often each gateway of the core is asked at the end, and how long before the end the last time.
const FRESH_EVERY_US: u64 = 400_000;
const FRESH_UNTIL_US: u64 = 3_000_000;

/// A question to a world that should be well.
fn fresh(at_us: u64, gateway: u32, tenant: u32, model: u32, number: u32) -> Ask {
    Ask {
        at_us,
        gateway,
        tenant,
        user: None,
        model,
        session: None,
        stored: false,
        key: None,
        prompt: 20,
        prompt_true: 20,
        output: 8,
        output_max: None,
        stream: !number.is_multiple_of(3),
        patience_ms: None,
        leaves_ms: None,
        again: 0,
        named: false,
        roams: false,
        bad: false,
    }
}
