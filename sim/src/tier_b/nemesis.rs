//! What goes wrong, done to the machines and the network at its time, and undone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use transport::seam::FaultyDisk;
use transport::seam::disk::PowerLoss;
use turmoil::Sim;

use super::consul;
use super::damage::{Damage, move_aside};
use super::doors;
use super::follow::Loss;
use super::gateway::{Ended, House, Obstacle, Order};
use super::plan::{ConsulTrouble, Fault, Mode, RedisTrouble, TierBPlan, client, gateway, replica};
use super::redis;
use super::stage::Stage;

/// How long a process that ended by itself is away: what a supervisor takes to notice.
const SUPERVISED: Duration = Duration::from_millis(700);

/// A host that died, for whoever follows its journal.
pub(super) struct Death {
    pub gateway: u8,
    /// What it takes along.
    pub loss: Loss,
}

/// Applies the plan's faults.
pub(super) struct Nemesis {
    plan: TierBPlan,
    stage: Arc<Stage>,
    houses: Vec<Arc<House>>,
    next: usize,
    /// Faults that last, by their end.
    lasting: BTreeMap<(Duration, usize), Fault>,
    /// Gateways that are down, and until when; `None` while an order to stop is being followed.
    down: BTreeMap<u8, Option<Duration>>,
    /// Gateways whose disk has had faults: those may refuse to go on.
    sick: Vec<bool>,
    /// Journals that were damaged while their process was down, until one starts on them.
    damaged: BTreeMap<u8, Damage>,
    /// Gateways that die a second time when they are started: whether by power, and after how many bytes.
    again: BTreeMap<u8, (bool, u64)>,
    /// Those of them that were just started.
    doomed: BTreeMap<u8, bool>,
    /// Gateways and the replicas that were drained there and should not be any more.
    undrained: BTreeSet<(u8, u8)>,
    /// Those of them that an order is owed for. A process that is down takes none, and one that dies may forget it.
    owed: BTreeSet<(u8, u8)>,
    /// The shared ledger forgot something, since it was last asked.
    has_forgotten: bool,
    calm_since: Option<Duration>,
    healed: bool,
}

impl Nemesis {
    pub fn new(stage: &Arc<Stage>, houses: &[Arc<House>]) -> Self {
        Self {
            plan: stage.plan.clone(),
            stage: Arc::clone(stage),
            houses: houses.to_vec(),
            next: 0,
            lasting: BTreeMap::new(),
            down: BTreeMap::new(),
            sick: vec![false; houses.len()],
            damaged: BTreeMap::new(),
            again: BTreeMap::new(),
            doomed: BTreeMap::new(),
            undrained: BTreeSet::new(),
            owed: BTreeSet::new(),
            has_forgotten: false,
            calm_since: Some(Duration::ZERO),
            healed: false,
        }
    }

    /// Everything that is due at `now`. Violations are invariant and text.
    pub fn act(&mut self, sim: &mut Sim<'_>, now: Duration) -> Result<Vec<Death>, (u8, String)> {
        let mut deaths = Vec::new();
        let heal = Duration::from_millis(self.plan.heal_ms());
        while let Some(timed) = self.plan.faults.get(self.next).cloned() {
            if Duration::from_millis(timed.at_ms) > now || now >= heal {
                break;
            }
            self.begin(sim, now, timed.for_ms, &timed.fault, &mut deaths);
            self.next += 1;
        }
        while let Some((&(end, number), _)) = self.lasting.first_key_value() {
            if end > now && now < heal {
                break;
            }
            let fault = self.lasting.remove(&(end, number));
            fault.into_iter().for_each(|fault| self.end(sim, now, &fault));
        }
        if now >= heal && !self.healed {
            self.healed = true;
            self.mend(sim);
        }
        self.supervise(sim, now, &mut deaths)?;
        self.undrain();
        self.note_calm(now);
        Ok(deaths)
    }

    /// Orders what is owed until it is seen to be done.
    fn undrain(&mut self) {
        for (gateway, replica) in self.owed.clone() {
            let house = self.house(gateway);
            match house.drains(replica) {
                Some(false) => drop(self.owed.remove(&(gateway, replica))),
                Some(true) => drop(house.order(Order::Drain(replica, false))),
                None => {}
            }
        }
    }

    /// Whether the shared ledger forgot something since the last call.
    pub fn take_forgotten(&mut self) -> bool {
        std::mem::take(&mut self.has_forgotten)
    }

    /// No fault lasts, no gateway is down, and no order is owed.
    pub fn is_quiet(&self) -> bool {
        self.lasting.is_empty() && self.down.is_empty() && self.owed.is_empty()
    }

    fn note_calm(&mut self, now: Duration) {
        self.calm_since = match (self.is_quiet(), self.calm_since) {
            (true, since) => since.or(Some(now)),
            (false, _) => None,
        };
        self.stage.scene().checks.calm_since = self.calm_since;
    }

    fn begin(
        &mut self,
        sim: &mut Sim<'_>,
        now: Duration,
        for_ms: u64,
        fault: &Fault,
        deaths: &mut Vec<Death>,
    ) {
        self.stage.word(format!("fault {fault:?} for {for_ms} ms"));
        let until = now + Duration::from_millis(for_ms);
        match fault {
            Fault::Cut { a, b } => sim.partition(a.as_str(), b.as_str()),
            Fault::CutOneWay { from, to } => sim.partition_oneway(from.as_str(), to.as_str()),
            Fault::Hold { a, b } => sim.hold(a.as_str(), b.as_str()),
            Fault::Latency { a, b, ms } => latency(sim, a, b, *ms),
            Fault::Replica { replica, mode } => self.set_mode(*replica, *mode),
            Fault::ReplicaCrash { replica: which } => self.replica_dies(sim, *which),
            Fault::Kill { gateway } => return self.kill(sim, *gateway, until, deaths),
            Fault::PowerLoss { gateway, reorder } => {
                return self.power_loss(sim, *gateway, *reorder, until, deaths);
            }
            Fault::BitFlip { gateway, from_end, bit } => {
                return self.flip(sim, *gateway, (*from_end, *bit), (now, until), deaths);
            }
            Fault::CrashTwice { gateway, power, bytes } => {
                // Who is down already still dies when it comes back.
                self.again.insert(*gateway, (*power, *bytes));
                return self.die(sim, *gateway, *power, until, deaths);
            }
            Fault::Pause { gateway: index } => {
                let others = self.others(*index);
                others.iter().for_each(|other| sim.hold(gateway(*index), other.as_str()));
            }
            Fault::Restart { gateway } => {
                if !self.down.contains_key(gateway) && self.house(*gateway).order(Order::Stop) {
                    self.down.insert(*gateway, None);
                }
                return;
            }
            Fault::DiskFull { gateway } => fill(&self.house(*gateway).disk),
            Fault::DiskSlow { gateway, ms } => {
                self.house(*gateway).disk.set_latency(Duration::from_millis(*ms));
            }
            Fault::AppendsFail { gateway, count } => {
                self.house(*gateway).disk.fail_appends(*count);
            }
            Fault::SyncFails { gateway } => self.house(*gateway).disk.fail_syncs(1),
            Fault::Reload { gateway, without } => {
                self.house(*gateway).edit_config(*without);
                self.house(*gateway).order(Order::Reload);
            }
            Fault::Drain { gateway, replica } => {
                self.undrained.remove(&(*gateway, *replica));
                self.owed.remove(&(*gateway, *replica));
                self.house(*gateway).order(Order::Drain(*replica, true));
            }
            Fault::Redis { trouble } => self.trouble(sim, *trouble),
            Fault::Consul { trouble } => self.registry(sim, *trouble, true),
            Fault::ClockJump { gateway, ms } => {
                self.stage.scene().wall_offsets[usize::from(*gateway)] += ms;
                return;
            }
        }
        if let Some(gateway) = disk_of(fault) {
            self.sick[usize::from(gateway)] = true;
        }
        let number = self.next;
        self.lasting.insert((until, number), fault.clone());
    }

    fn end(&mut self, sim: &mut Sim<'_>, now: Duration, fault: &Fault) {
        self.stage.word(format!("over: {fault:?}"));
        match fault {
            Fault::Cut { a, b } => sim.repair(a.as_str(), b.as_str()),
            Fault::CutOneWay { from, to } => sim.repair_oneway(from.as_str(), to.as_str()),
            Fault::Hold { a, b } => sim.release(a.as_str(), b.as_str()),
            Fault::Latency { a, b, .. } => {
                latency(sim, a, b, self.plan.latency_ms.1);
            }
            Fault::Replica { replica, .. } => self.set_mode(*replica, Mode::Healthy),
            Fault::ReplicaCrash { replica: which } => {
                sim.bounce(replica(*which));
                self.stage.registry.sees(*which, true);
            }
            Fault::Consul { trouble } => self.registry(sim, *trouble, false),
            Fault::Redis { trouble: RedisTrouble::Crash { .. } } => sim.bounce(redis::HOST),
            Fault::Redis { trouble } => self.stage.redis.ends(*trouble),
            Fault::DiskFull { gateway } => self.house(*gateway).disk.set_capacity(None),
            Fault::DiskSlow { gateway, .. } => {
                self.house(*gateway).disk.set_latency(Duration::ZERO);
            }
            Fault::AppendsFail { gateway, .. } => self.house(*gateway).disk.fail_appends(0),
            Fault::SyncFails { gateway } => self.house(*gateway).disk.fail_syncs(0),
            Fault::Reload { gateway, .. } => {
                self.house(*gateway).edit_config(0);
                self.house(*gateway).order(Order::Reload);
            }
            Fault::Drain { gateway, replica } => {
                self.undrained.insert((*gateway, *replica));
                self.owed.insert((*gateway, *replica));
            }
            Fault::Pause { gateway: index } => {
                let others = self.others(*index);
                others.iter().for_each(|other| sim.release(gateway(*index), other.as_str()));
            }
            Fault::Kill { .. }
            | Fault::PowerLoss { .. }
            | Fault::Restart { .. }
            | Fault::BitFlip { .. }
            | Fault::CrashTwice { .. }
            | Fault::ClockJump { .. } => unreachable!("{fault:?} does not last, at {now:?}"),
        }
    }

    /// A run of its own may leave links cut where two faults overlapped: from here on nothing is.
    fn mend(&mut self, sim: &mut Sim<'_>) {
        self.stage.word("everything is mended".to_owned());
        for near in 0..self.plan.machines() {
            for far in self.others(near) {
                sim.release(gateway(near), far.as_str());
            }
        }
        for until in self.down.values_mut().flatten() {
            *until = Duration::ZERO;
        }
    }

    fn replica_dies(&self, sim: &mut Sim<'_>, which: u8) {
        sim.crash(replica(which));
        self.stage.registry.sees(which, false);
    }

    fn registry(&self, sim: &mut Sim<'_>, trouble: ConsulTrouble, begins: bool) {
        let is_process = trouble == ConsulTrouble::Crash;
        if is_process && begins {
            sim.crash(consul::HOST);
        } else if is_process {
            sim.bounce(consul::HOST);
        }
        self.stage.registry.is(begins.then_some(trouble));
    }

    fn trouble(&mut self, sim: &mut Sim<'_>, trouble: RedisTrouble) {
        if matches!(trouble, RedisTrouble::Crash { .. }) {
            sim.crash(redis::HOST);
        }
        self.has_forgotten |= self.stage.redis.begins(trouble);
    }

    /// Everybody whom a gateway speaks with, or a door.
    fn others(&self, of: u8) -> Vec<String> {
        let replicas = (0..self.plan.replicas).map(replica);
        let shared = self.plan.shared.then(|| redis::HOST.to_owned());
        let registry = self.plan.consul.then(|| consul::HOST.to_owned());
        let clients = (0..self.plan.clients).map(client);
        let across = doors::across(&self.plan, of).map(gateway);
        replicas.chain(clients).chain(shared).chain(registry).chain(across).collect()
    }

    /// Brings back who is due, and looks after those that ended by themselves.
    fn supervise(
        &mut self,
        sim: &mut Sim<'_>,
        now: Duration,
        deaths: &mut Vec<Death>,
    ) -> Result<(), (u8, String)> {
        let aborted = std::mem::take(&mut self.stage.scene().aborted);
        for (index, why) in aborted {
            // The plane broke, or a decision found no room on a disk that nothing is wrong with.
            if !self.is_excused(index) || !why.contains("cannot be recorded") {
                return Err((7, format!("gateway-{index} aborts: {why}")));
            }
            self.down.remove(&index);
            self.kill(sim, index, now + SUPERVISED, deaths);
        }
        for house in self.houses.clone() {
            let index = house.index;
            if let Some(ended) = house.take_ended() {
                let loss = self.ended(index, &ended)?;
                self.down.insert(index, Some(now + SUPERVISED));
                deaths.push(Death { gateway: index, loss });
            } else if !self.down.contains_key(&index) && house.gateway().is_some() {
                // It started: what was damaged is its journal's business now.
                self.damaged.remove(&index);
            }
            if let Some(power) = self.doomed.remove(&index) {
                self.down.remove(&index);
                self.die(sim, index, power, now + SUPERVISED, deaths);
            }
            if !self.down.contains_key(&index) && has_failed_for_good(&house) {
                self.kill(sim, index, now + SUPERVISED, deaths);
            }
        }
        let back: Vec<u8> = self
            .down
            .iter()
            .filter(|(_, until)| until.is_some_and(|at| at <= now))
            .map(|(index, _)| *index)
            .collect();
        for index in back {
            self.down.remove(&index);
            if let Some((power, bytes)) = self.again.remove(&index) {
                self.house(index).disk.kill_after(bytes);
                self.doomed.insert(index, power);
            }
            sim.bounce(gateway(index));
            self.owed.extend(self.undrained.iter().filter(|(of, _)| *of == index));
            for other in self.others(index) {
                sim.repair(gateway(index), other);
            }
        }
        Ok(())
    }

    /// Whether it may, and what that takes along.
    fn ended(&mut self, index: u8, ended: &Ended) -> Result<Loss, (u8, String)> {
        let is_excused = self.is_excused(index);
        match ended {
            Ended::NotStarted(Obstacle::Damaged, why) if self.damaged.contains_key(&index) => {
                let disk = &self.house(index).disk;
                self.damaged.get(&index).map_or(Ok(()), |damage| damage.refused(disk, why))?;
                move_aside(disk);
                self.house(index).begins_anew();
                self.damaged.remove(&index);
                self.stage.word(format!("gateway-{index}'s directory is moved aside"));
                self.stage.scene().checks.begins_anew(index);
                Ok(Loss::Everything)
            }
            Ended::NotStarted(Obstacle::Other, _) | Ended::Stopped(Some(_)) if is_excused => {
                Ok(Loss::Nothing)
            }
            Ended::NotStarted(Obstacle::Diverged, why) => {
                Err((11, format!("gateway-{index} cannot start: {why}")))
            }
            Ended::NotStarted(Obstacle::Damaged | Obstacle::Other, why) => {
                Err((10, format!("gateway-{index} cannot start: {why}")))
            }
            Ended::Stopped(Some(why)) => Err((10, format!("gateway-{index} cannot stop: {why}"))),
            Ended::Stopped(None) => Ok(Loss::Nothing),
        }
    }

    /// Whether its disk may be what is wrong.
    fn is_excused(&self, index: u8) -> bool {
        self.sick[usize::from(index)] || self.doomed.contains_key(&index)
    }

    fn die(
        &mut self,
        sim: &mut Sim<'_>,
        index: u8,
        power: bool,
        until: Duration,
        deaths: &mut Vec<Death>,
    ) {
        if power {
            self.power_loss(sim, index, false, until, deaths);
        } else {
            self.kill(sim, index, until, deaths);
        }
    }

    fn flip(
        &mut self,
        sim: &mut Sim<'_>,
        index: u8,
        (from_end, bit): (u64, u8),
        (now, until): (Duration, Duration),
        deaths: &mut Vec<Death>,
    ) {
        if self.down.contains_key(&index) {
            return;
        }
        self.kill(sim, index, until, deaths);
        let damage = Damage::inflict(&self.house(index).disk, from_end, bit);
        self.stage.word(format!("damaged: {:?}", damage.as_ref().map(Damage::spot)));
        if let Some(damage) = damage {
            deaths.push(Death { gateway: index, loss: Loss::Damaged(damage.spot()) });
            self.stage.scene().checks.damaged(now, index);
            self.damaged.insert(index, damage);
        }
    }

    fn kill(&mut self, sim: &mut Sim<'_>, index: u8, until: Duration, deaths: &mut Vec<Death>) {
        if self.down.contains_key(&index) {
            return;
        }
        // Its files first: what its tasks write while they are taken down was never written.
        self.house(index).disk.kill();
        sim.crash(gateway(index));
        self.down.insert(index, Some(until));
        deaths.push(Death { gateway: index, loss: Loss::Nothing });
    }

    fn power_loss(
        &mut self,
        sim: &mut Sim<'_>,
        index: u8,
        reorder: bool,
        until: Duration,
        deaths: &mut Vec<Death>,
    ) {
        if self.down.contains_key(&index) {
            return;
        }
        for other in self.others(index) {
            sim.partition(gateway(index), other);
        }
        let seed = self.plan.seed ^ until.as_nanos() as u64;
        self.house(index).disk.power_loss(PowerLoss { seed, reorder });
        sim.crash(gateway(index));
        self.down.insert(index, Some(until));
        // Where every write is synced before it counts, not even a disk that fails may take what counted.
        let is_synced = self.plan.knobs.fsync_ms == 0;
        let loss = if is_synced { Loss::Nothing } else { Loss::Unsynced };
        deaths.push(Death { gateway: index, loss });
    }

    fn set_mode(&self, replica: u8, mode: Mode) {
        self.stage.set_mode(replica, mode);
    }

    fn house(&self, index: u8) -> &House {
        &self.houses[usize::from(index)]
    }
}

fn latency(sim: &Sim<'_>, a: &str, b: &str, ms: u64) {
    sim.set_link_latency(a, b, Duration::from_millis(ms));
}

/// Hardly anything fits any more.
fn fill(disk: &FaultyDisk) {
    let used: usize = disk.image().values().map(Vec::len).sum();
    disk.set_capacity(Some(used as u64 + 64));
}

fn disk_of(fault: &Fault) -> Option<u8> {
    match fault {
        Fault::DiskFull { gateway }
        | Fault::DiskSlow { gateway, .. }
        | Fault::AppendsFail { gateway, .. }
        | Fault::SyncFails { gateway } => Some(*gateway),
        Fault::Cut { .. }
        | Fault::CutOneWay { .. }
        | Fault::Hold { .. }
        | Fault::Latency { .. }
        | Fault::Replica { .. }
        | Fault::ReplicaCrash { .. }
        | Fault::Kill { .. }
        | Fault::PowerLoss { .. }
        | Fault::Restart { .. }
        | Fault::Reload { .. }
        | Fault::Drain { .. }
        | Fault::BitFlip { .. }
        | Fault::Pause { .. }
        | Fault::CrashTwice { .. }
        | Fault::Redis { .. }
        | Fault::Consul { .. }
        | Fault::ClockJump { .. } => None,
    }
}

/// A journal that is over refuses all work for ever: whoever looks at `/ready` restarts the process.
fn has_failed_for_good(house: &House) -> bool {
    let gateway = house.gateway();
    let failure = gateway.and_then(|gateway| gateway.driver().journal().failure());
    failure.is_some_and(|failure| failure.is_final())
}
