//! Processes: how a gateway's begins, dies, and goes on from its journal; and the twin that proves a snapshot.

use control::journal::Replay;
use control::plane::{Config, ControlPlane, Input};
use control::quota::OwnerId;

use super::World;
use super::clock::{MICRO, MILLI};
use super::event::Event;
use crate::check::Invariant;
use crate::coverage::sometimes;
use crate::plan::FaultKind;

/// A plane restored from a snapshot that is fed the same records as the one it was taken of.
pub(super) struct Twin {
    gateway: u32,
    /// The step of the world at which it is made.
    begins: u64,
    /// Steps it is followed for.
    steps: u32,
    replay: Option<Replay>,
}

/// Steps a twin is followed for: long enough to see the timers of a request, short enough to cost a tenth of a seed.
const TWIN_STEPS: u32 = 400;

impl Twin {
    pub fn new(gateway: u32, begins: u64) -> Self {
        Self { gateway, begins, steps: TWIN_STEPS, replay: None }
    }
}

impl World<'_> {
    /// The seed of a gateway's plane: every life of a directory has the same.
    fn plane_seed(&self, index: u32) -> u64 {
        let mut rng = control::rng::Rng::new(self.plan.seed).fork(&format!("gateway-{index}"));
        rng.next_u64()
    }

    fn fresh_plane(&self, index: u32) -> ControlPlane {
        let config = self.config_of(index, &self.plan.config);
        ControlPlane::with_config(self.plane_seed(index), config)
    }

    /// A configuration as one gateway has it: it alone has its name at the store.
    fn config_of(&self, index: u32, config: &Config) -> Config {
        let mut own = config.clone();
        own.quota.owner = OwnerId(u64::from(index) + 1);
        own
    }

    /// A gateway's first process.
    pub(super) fn boot(&mut self, index: u32) {
        let plane = self.fresh_plane(index);
        self.judge.born(index, &plane);
        self.begin_life(index, plane);
    }

    /// A process begins, with whatever it found on its disk.
    fn begin_life(&mut self, index: u32, plane: ControlPlane) {
        let now = self.now;
        let gateway = &mut self.gateways[index as usize];
        gateway.clock.restart(now, plane.now(), plane.wall());
        gateway.plane = Some(plane);
        (gateway.life, gateway.awake_since) = (gateway.life + 1, now);
        let (incarnation, wall) = (gateway.life, gateway.clock.wall(now));
        self.submit(index, Input::Restarted { incarnation, wall });
        self.configure(index);
        let drained: Vec<u32> = self.drains.keys().copied().collect();
        if self.plan.topology.registry_every_ms == 0 {
            self.list_all(index);
        } else if incarnation == 1 {
            self.agenda.plan(now + u64::from(index) * MICRO, Event::Poll { gateway: index });
        }
        for replica in drained {
            self.agenda.plan(now + MILLI, Event::Drain { gateway: index, replica });
        }
    }

    /// The gateway takes the configuration in effect.
    pub(super) fn configure(&mut self, index: u32) {
        let config = self.config_of(index, &self.config);
        self.submit(index, Input::Configured(Box::new(config)));
    }

    /// The process dies, and with it everything that was not on its disk.
    pub(super) fn kill(&mut self, index: u32, power: bool, torn: bool) {
        if !self.gateways[index as usize].is_up() {
            return;
        }
        self.twins.retain(|twin| twin.gateway != index);
        let now = self.now;
        let gateway = &mut self.gateways[index as usize];
        gateway.forget();
        let left = gateway.journal.die(now, power, torn);
        let lost_calls: Vec<u32> = (0..)
            .zip(&self.calls)
            .filter(|(_, call)| call.gateway == index && call.arrived && call.answered.is_none())
            .map(|(id, _)| id)
            .collect();
        self.judge.died(index, left.next, power, now);
        self.chronicle.died(now, index, power);
        for call in lost_calls {
            self.break_connection(call);
        }
        self.left.insert(index, left);
        self.stop_runs_of(index);
    }

    /// The process begins again from what the last one left. `again`: it is killed so often while it recovers; what it
    /// read by then is only read again.
    pub(super) fn recover(&mut self, index: u32, again: u32, upgrade: bool) {
        let Some(left) = self.left.remove(&index) else { return };
        let mut plane = None;
        let gateway = &mut self.gateways[index as usize];
        if upgrade {
            gateway.upgraded_at = left.next;
        }
        // Records of another logic are taken as facts, now and whenever they are read again.
        let first = left.next - left.tail.len() as u64;
        let facts = gateway.upgraded_at.saturating_sub(first) as usize;
        for _ in 0..=again {
            match self.replayed(index, &left.snapshot, &left.tail, facts) {
                Ok(recovered) => plane = Some(recovered),
                Err(why) => return self.judge.report(Invariant::Restore, self.now, why),
            }
        }
        let Some(plane) = plane else { return };
        // Whatever the new logic had recorded may be gone again.
        let cold = left.next <= self.gateways[index as usize].upgraded_at;
        self.judge.recovered(index, &plane, cold, self.now);
        self.begin_life(index, plane);
    }

    /// The state that a journal leads to. The first `facts` of its records were decided by another logic.
    fn replayed(
        &self,
        index: u32,
        snapshot: &Option<Vec<u8>>,
        tail: &[Vec<u8>],
        facts: usize,
    ) -> Result<ControlPlane, String> {
        let mut replay = match snapshot {
            None => Replay::from(self.fresh_plane(index)),
            Some(bytes) => {
                Replay::restore(bytes).map_err(|why| format!("gateway-{index}: {why}"))?
            }
        };
        for (number, record) in tail.iter().enumerate() {
            let taken = match number < facts {
                true => replay.apply_facts(record),
                false => replay.apply(record).map(|_| ()),
            };
            taken.map_err(|why| {
                format!("gateway-{index} does not recover: record {number} of its tail: {why}")
            })?;
        }
        Ok(replay.into_plane())
    }

    pub(super) fn snapshot(&mut self, index: u32) {
        let now = self.now;
        let gateway = &mut self.gateways[index as usize];
        if let Some(plane) = &gateway.plane
            && gateway.journal.is_kept()
            && !gateway.journal.full
        {
            let bytes = postcard::to_allocvec(plane).expect("the plane's state is plain data");
            gateway.journal.snapshot(now, bytes);
        }
        let next = now + self.plan.topology.disk.snapshot_every_ms * MILLI;
        if next < self.end && gateway.journal.is_kept() {
            self.agenda.plan(next, Event::Snapshot { gateway: index });
        }
    }

    /// Whether the plan lets a gateway die.
    pub(super) fn may_die(&self, index: u32) -> bool {
        self.plan.faults.iter().any(|fault| match fault.kind {
            FaultKind::Kill { gateway, .. } | FaultKind::PowerLoss { gateway, .. } => {
                gateway == index
            }
            FaultKind::Cut { .. }
            | FaultKind::Flap { .. }
            | FaultKind::Latency { .. }
            | FaultKind::Ill { .. }
            | FaultKind::ReplicaCrash { .. }
            | FaultKind::Drain { .. }
            | FaultKind::Pause { .. }
            | FaultKind::ClockJump { .. }
            | FaultKind::DiskFull { .. }
            | FaultKind::DiskSlow { .. }
            | FaultKind::SyncFails { .. }
            | FaultKind::Registry { .. }
            | FaultKind::Store { .. }
            | FaultKind::StoreFailover { .. }
            | FaultKind::Reload { .. } => false,
        })
    }

    /// A restored snapshot is fed the record that was just made, and must say the same.
    pub(super) fn follow_twins(&mut self, index: u32) {
        let gateway = &self.gateways[index as usize];
        let Some(plane) = &gateway.plane else { return };
        let (steps, record) = (self.steps, gateway.recorder.begun());
        let mut wrong = None;
        self.twins.retain_mut(|twin| {
            if twin.gateway != index || twin.begins > steps {
                return true;
            }
            match twin.follow(plane, record) {
                Ok(()) => twin.steps > 0,
                Err(why) => {
                    wrong = Some(format!("gateway-{index}: {why}"));
                    false
                }
            }
        });
        if let Some(why) = wrong {
            self.judge.report(Invariant::Restore, self.now, why);
        }
    }
}

impl Twin {
    /// Takes a record in, or begins with the state behind it.
    fn follow(&mut self, plane: &ControlPlane, record: &[u8]) -> Result<(), String> {
        let snapshot = || postcard::to_allocvec(plane).expect("the plane's state is plain data");
        let Some(replay) = &mut self.replay else {
            let restored = Replay::restore(&snapshot());
            self.replay =
                Some(restored.map_err(|why| format!("a snapshot is not read back: {why}"))?);
            return Ok(());
        };
        self.steps -= 1;
        let applied = replay.apply(record).map(|_| ());
        applied.map_err(|why| format!("a restored snapshot goes another way: {why}"))?;
        if self.steps > 0 {
            return Ok(());
        }
        sometimes!("twin_followed");
        match replay.snapshot() == snapshot() {
            true => Ok(()),
            false => Err("a restored snapshot said the same and is in another state".to_owned()),
        }
    }
}
