//! Faults as they begin, turn and end.

use control::balance::Reported;
use control::plane::Input;

use super::World;
use super::clock::{MICRO, MILLI, Nanos};
use super::event::Event;
use crate::coverage;
use crate::plan::{Fault, FaultKind, ReplicaIllness};

/// A replica as it is now.
#[derive(Default)]
pub(super) struct Replica {
    ills: Vec<(u32, ReplicaIllness)>,
    /// `Some(power)` while its process, or its machine, is dead.
    pub down: Option<bool>,
    pub down_since: Nanos,
    /// Faults that hold it down.
    downs: Vec<u32>,
    /// Streams it serves.
    pub busy: u32,
    /// What it said first of its load, if it says nothing else.
    pub said_first: Option<Reported>,
    /// When it was last not well.
    pub well_since: Nanos,
}

impl Replica {
    /// What ails it: of several, what came last.
    pub fn illness(&self) -> Option<ReplicaIllness> {
        self.ills.last().map(|(_, illness)| *illness)
    }

    pub fn is_well(&self) -> bool {
        self.ills.is_empty() && self.down.is_none()
    }
}

/// Gateways take a new configuration one after another, so far apart.
const ROLLING_APART: Nanos = 30 * MILLI;

impl World<'_> {
    pub(super) fn begin(&mut self, id: u32) {
        let fault: &Fault = &self.plan.faults[id as usize];
        coverage::mark(fault.kind.name());
        let until = fault.until_ms.map(|until| until * MILLI);
        if let Some(until) = until {
            self.agenda.plan(until, Event::End { fault: id });
        }
        match &fault.kind {
            FaultKind::Cut { from, to, both } => self.network.cut(id, from, to, *both),
            FaultKind::Flap { from, to, period_ms } => {
                self.network.cut(id, from, to, true);
                self.agenda.plan(self.now + (*period_ms).max(1) * MILLI, Event::Turn { fault: id });
            }
            FaultKind::Latency { host, add_ms, ramp } => {
                let ramp = ramp.then_some((self.now, until.unwrap_or(self.heal_at)));
                self.network.slow(id, *host, *add_ms, ramp);
            }
            FaultKind::Ill { replica, with } => {
                self.replicas[*replica as usize].ills.push((id, *with));
            }
            FaultKind::ReplicaCrash { replica, power } => {
                let state = &mut self.replicas[*replica as usize];
                state.downs.push(id);
                if state.down.is_none() {
                    (state.down, state.down_since) = (Some(*power), self.now);
                    self.break_runs_at(*replica, *power);
                }
            }
            FaultKind::Drain { replica } => self.drain(*replica, true),
            FaultKind::Kill { gateway, .. } => self.kill(*gateway, false, false),
            FaultKind::PowerLoss { gateway, torn } => self.kill(*gateway, true, *torn),
            FaultKind::Pause { gateway } => self.gateways[*gateway as usize].paused += 1,
            FaultKind::ClockJump { gateway, by_ms } => {
                self.gateways[*gateway as usize].clock.jump(*by_ms);
            }
            FaultKind::DiskFull { gateway } => self.gateways[*gateway as usize].journal.full = true,
            FaultKind::DiskSlow { gateway, write_ms } => {
                self.gateways[*gateway as usize].journal.write = write_ms * MILLI;
            }
            FaultKind::SyncFails { gateway } => {
                self.gateways[*gateway as usize].journal.sync_fails = true;
            }
            FaultKind::Registry { lie } => self.registry.lies.push((id, *lie)),
            FaultKind::Store { trouble } => self.store.troubles.push((id, *trouble)),
            FaultKind::StoreFailover { lose } => self.fail_over(*lose),
            FaultKind::Reload { config } => {
                self.config = (**config).clone();
                for gateway in 0..self.gateways.len() as u32 {
                    let at = self.now + u64::from(gateway) * ROLLING_APART;
                    self.agenda.plan(at, Event::Configure { gateway });
                }
            }
        }
    }

    pub(super) fn turn(&mut self, id: u32) {
        let fault = &self.plan.faults[id as usize];
        let FaultKind::Flap { period_ms, .. } = fault.kind else { return };
        if fault.until_ms.is_none_or(|until| self.now < until * MILLI) {
            self.network.toggle(id);
            self.agenda.plan(self.now + period_ms.max(1) * MILLI, Event::Turn { fault: id });
            self.unpark();
        }
    }

    pub(super) fn end_fault(&mut self, id: u32) {
        match &self.plan.faults[id as usize].kind {
            FaultKind::Cut { .. } | FaultKind::Flap { .. } | FaultKind::Latency { .. } => {
                self.network.mend(id);
                self.unpark();
            }
            FaultKind::Ill { replica, .. } => {
                let state = &mut self.replicas[*replica as usize];
                state.ills.retain(|(fault, _)| *fault != id);
                state.well_since = self.now;
            }
            FaultKind::ReplicaCrash { replica, .. } => {
                let state = &mut self.replicas[*replica as usize];
                state.downs.retain(|fault| *fault != id);
                if state.downs.is_empty() {
                    (state.down, state.well_since) = (None, self.now);
                }
            }
            FaultKind::Drain { replica } => self.drain(*replica, false),
            FaultKind::Kill { gateway, again, upgrade } => {
                self.recover(*gateway, *again, *upgrade);
            }
            FaultKind::PowerLoss { gateway, .. } => self.recover(*gateway, 0, false),
            FaultKind::Pause { gateway } => self.wake_up(*gateway),
            FaultKind::DiskFull { gateway } => {
                self.mend_disk(*gateway, |journal| journal.full = false)
            }
            FaultKind::DiskSlow { gateway, .. } => {
                let write = self.plan.topology.disk.write_us * MICRO;
                self.gateways[*gateway as usize].journal.write = write;
            }
            FaultKind::SyncFails { gateway } => {
                self.mend_disk(*gateway, |journal| journal.sync_fails = false);
            }
            FaultKind::Registry { .. } => {
                self.registry.lies.retain(|(fault, _)| *fault != id);
                self.registry.mended();
            }
            FaultKind::Store { .. } => self.store.troubles.retain(|(fault, _)| *fault != id),
            FaultKind::ClockJump { .. }
            | FaultKind::StoreFailover { .. }
            | FaultKind::Reload { .. } => {}
        }
    }

    fn mend_disk(&mut self, gateway: u32, mend: impl FnOnce(&mut super::journal::Journal)) {
        let (now, journal) = (self.now, &mut self.gateways[gateway as usize].journal);
        mend(journal);
        journal.mended(now);
        let journal = &self.gateways[gateway as usize].journal;
        if !journal.full && !journal.sync_fails {
            self.release_unwritten(gateway);
        }
    }

    /// An operator tells every gateway; one that sleeps hears it later, one that is dead when it is back.
    fn drain(&mut self, replica: u32, on: bool) {
        let by = self.drains.entry(replica).or_default();
        *by = if on { *by + 1 } else { by.saturating_sub(1) };
        for gateway in 0..self.gateways.len() as u32 {
            self.agenda.plan(self.now + MICRO, Event::Drain { gateway, replica });
        }
    }

    /// Tells a gateway whether a replica is to be drained, as it stands now.
    pub(super) fn drain_now(&mut self, gateway: u32, replica: u32) {
        let on = self.drains.get(&replica).is_some_and(|by| *by > 0);
        let endpoint = crate::plan::ReplicaPlan::name(replica as usize).into();
        self.submit(gateway, Input::Drain { endpoint, on });
    }

    /// A gateway wakes: all that reached it meanwhile happens now, late, in order.
    fn wake_up(&mut self, gateway: u32) {
        let own = &mut self.gateways[gateway as usize];
        own.paused -= 1;
        if own.paused == 0 {
            own.awake_since = self.now;
            for (after, event) in (0..).zip(std::mem::take(&mut own.asleep)) {
                self.agenda.plan(self.now + after, event);
            }
        }
    }

    /// What waited on a link that may be open again goes on, in order.
    fn unpark(&mut self) {
        for (after, event) in (0..).zip(std::mem::take(&mut self.parked)) {
            self.agenda.plan(self.now + MICRO + after, event);
        }
    }
}
