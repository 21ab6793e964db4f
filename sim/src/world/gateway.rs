//! A gateway: the real machine, and a shell around it that does what production's does.
//!
//! The shell stamps time, hands inputs over, records, and performs effects. An answer's last byte waits for its record.

use control::id::CallerToken;
use control::journal::Recorder;
use control::plane::{ControlPlane, Effect, Input, Observation};
use control::{Instant, Machine};

use super::World;
use super::clock::{Clock, MICRO, MILLI, Nanos};
use super::event::Event;
use super::journal::{Journal, NEVER};
use crate::check::Step;
use crate::plan::{GatewayPlan, Host};

/// A gateway as it is now.
pub(super) struct Gateway {
    /// `None` while its process is dead.
    pub plane: Option<ControlPlane>,
    pub recorder: Recorder,
    pub clock: Clock,
    pub journal: Journal,
    /// Counts its processes, from 1.
    pub life: u32,
    /// Since when it runs without a break.
    pub awake_since: Nanos,
    /// How many pauses are on it.
    pub paused: u32,
    /// What happened to it while it was paused.
    pub asleep: Vec<Event>,
    /// When its timer fires.
    armed: Option<Nanos>,
    /// When a millisecond of its began, and how often it has fired in that.
    woken: Nanos,
    spins: u32,
    effects: Vec<Effect>,
    observed: Vec<Observation>,
    /// Answers that wait for a disk without room.
    unwritten: Vec<(u64, Event)>,
    /// Records before this position were decided by another logic.
    pub upgraded_at: u64,
    /// The version of the last list it made of its configuration.
    pub listed: u64,
}

/// Timeouts in a millisecond before the timer counts as stuck: a backlog asks for a few hundred.
const SPINS_MAX: u32 = 10_000;

impl Gateway {
    pub fn new(plan: &GatewayPlan, journal: Journal) -> Self {
        Self {
            plane: None,
            recorder: Recorder::default(),
            clock: Clock::new(plan.ppm, plan.wall_off_ms),
            journal,
            life: 0,
            awake_since: 0,
            paused: 0,
            asleep: Vec::new(),
            armed: None,
            woken: 0,
            spins: 0,
            effects: Vec::new(),
            observed: Vec::new(),
            unwritten: Vec::new(),
            upgraded_at: 0,
            listed: 0,
        }
    }

    /// Nothing of the dead process is left but its journal.
    pub fn forget(&mut self) {
        self.plane = None;
        self.armed = None;
        self.asleep.clear();
        self.unwritten.clear();
    }

    pub fn is_up(&self) -> bool {
        self.plane.is_some()
    }
}

impl World<'_> {
    /// Something happened to a gateway. Does nothing where its process is dead.
    pub(super) fn submit(&mut self, index: u32, input: Input) {
        // The store's clock runs whether or not anybody asks it.
        self.store_expires();
        let at = self.now;
        let gateway = &mut self.gateways[index as usize];
        let Some(plane) = &mut gateway.plane else { return };
        // A monotonic clock does not step back.
        let now = gateway.clock.now(at).max(plane.now());
        gateway.recorder.begin(now, &input);
        let fed = input.clone();
        plane.handle(now, input);
        let mut effects = std::mem::take(&mut gateway.effects);
        effects.extend(std::iter::from_fn(|| plane.poll_effect()));
        let record = gateway.recorder.finish(&effects);
        self.trace.step(at, index, record, &effects);
        let (position, written) = gateway.journal.append(at, record);
        let mut observed = std::mem::take(&mut gateway.observed);
        observed.extend(std::iter::from_fn(|| plane.poll_observation()));
        let step = Step {
            at,
            now,
            gateway: index,
            position,
            input: fed,
            effects: &effects,
            observed: &observed,
            plane,
        };
        self.judge.step(&step);
        self.chronicle.step(&step);
        self.steps += 1;
        if self.steps.is_multiple_of(self.full_check_every) {
            plane.invariants();
        }
        if !self.twins.is_empty() {
            self.follow_twins(index);
        }
        for effect in effects.drain(..) {
            self.perform(index, effect, position, written);
        }
        observed.clear();
        let gateway = &mut self.gateways[index as usize];
        (gateway.effects, gateway.observed) = (effects, observed);
        self.arm(index);
    }

    /// Does what the plane asks for.
    fn perform(&mut self, index: u32, effect: Effect, position: u64, written: Nanos) {
        let gateway = Host::Gateway(index);
        match effect {
            // No service asks here.
            Effect::LedgerAnswered { .. } | Effect::Admitted { .. } | Effect::Persist(_) => {}
            Effect::Consult(consult) => self.consult(index, consult),
            Effect::Note(note) => self.note(index, note),
            Effect::Reserve(op) => {
                let life = self.gateways[index as usize].life;
                self.send_to_store(index, life, op);
            }
            Effect::Dispatch(dispatch) => self.dispatch(index, &dispatch),
            Effect::Cancel { caller, attempt } => self.cancel(caller, attempt),
            Effect::Reject { caller, .. } => {
                self.conclude(caller, gateway, position, written, false);
            }
            Effect::Finish { caller, outcome, .. } => {
                let good = outcome == control::plane::Outcome::Completed;
                self.conclude(caller, gateway, position, written, good);
            }
        }
    }

    /// The client hears of the end once its record is written.
    fn conclude(
        &mut self,
        caller: CallerToken,
        gateway: Host,
        position: u64,
        at: Nanos,
        good: bool,
    ) {
        let call = caller.0 as u32;
        self.calls[call as usize].concluded = Some(self.now);
        let event = Event::Answered { call, good };
        if at == NEVER {
            let Host::Gateway(index) = gateway else { return };
            self.gateways[index as usize].unwritten.push((position, event));
            return;
        }
        let delay = self.network.delay(self.now, gateway, Host::Clients);
        self.agenda.plan(at.max(self.now) + delay, event);
    }

    /// The disk has room again.
    pub(super) fn release_unwritten(&mut self, index: u32) {
        let (gateway, now) = (Host::Gateway(index), self.now);
        let unwritten = std::mem::take(&mut self.gateways[index as usize].unwritten);
        for (_, event) in unwritten {
            let write = self.gateways[index as usize].journal.write;
            let delay = self.network.delay(now, gateway, Host::Clients);
            self.agenda.plan(now + write + delay, event);
        }
    }

    /// Sets the gateway's timer, where an earlier one is needed.
    fn arm(&mut self, index: u32) {
        let gateway = &mut self.gateways[index as usize];
        let Some(due) = gateway.plane.as_ref().and_then(|plane| plane.poll_timeout()) else {
            return;
        };
        if due.0 == Instant::FAR_FUTURE {
            return;
        }
        let at = gateway.clock.until(self.now, due.0);
        if gateway.armed.is_none_or(|armed| at < armed || armed < self.now) {
            gateway.armed = Some(at);
            self.agenda.plan(at, Event::Wake { gateway: index });
        }
    }

    pub(super) fn wake(&mut self, index: u32) {
        let now = self.now;
        let gateway = &mut self.gateways[index as usize];
        let Some(plane) = &gateway.plane else { return };
        if gateway.armed.is_some_and(|armed| armed <= now) {
            gateway.armed = None;
        }
        if now >= gateway.woken + MILLI {
            (gateway.woken, gateway.spins) = (now, 0);
        }
        gateway.spins += 1;
        let shows = gateway.clock.now(now);
        if plane.poll_timeout().is_some_and(|(due, _)| due <= shows.max(plane.now())) {
            self.submit(index, Input::Timeout);
        } else {
            self.arm(index);
        }
        if self.gateways[index as usize].spins > SPINS_MAX {
            self.judge.timer_spins(index, now);
        }
    }

    /// Once a second, where the journal takes work.
    pub(super) fn tick(&mut self, index: u32) {
        let gateway = &self.gateways[index as usize];
        if gateway.is_up() && !gateway.journal.full {
            let wall = gateway.clock.wall(self.now);
            self.submit(index, Input::WallTime(wall));
        }
        let next = self.now + super::clock::SECOND + u64::from(index) * MICRO;
        if next < self.end {
            self.agenda.plan(next, Event::Tick { gateway: index });
        }
    }
}
