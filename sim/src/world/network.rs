//! Links between hosts: what a message takes, and what does not pass.

use control::rng::Rng;

use super::clock::{MILLI, Nanos};
use crate::plan::{Host, LinkPlan, Topology};

/// Every host by a dense number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hosts {
    gateways: usize,
    replicas: usize,
}

impl Hosts {
    pub fn of(topology: &Topology) -> Self {
        Self { gateways: topology.gateways.len(), replicas: topology.replicas.len() }
    }

    pub fn count(self) -> usize {
        self.gateways + self.replicas + 3
    }

    pub fn index(self, host: Host) -> usize {
        let others = self.gateways + self.replicas;
        match host {
            Host::Gateway(index) => index as usize,
            Host::Replica(index) => self.gateways + index as usize,
            Host::Store => others,
            Host::Registry => others + 1,
            Host::Clients => others + 2,
        }
    }
}

/// The network as it is now.
pub(super) struct Network {
    hosts: Hosts,
    link: LinkPlan,
    rng: Rng,
    cuts: Vec<Cut>,
    slow: Vec<Slow>,
}

struct Cut {
    fault: u32,
    from: Vec<u64>,
    to: Vec<u64>,
    both: bool,
    on: bool,
}

struct Slow {
    fault: u32,
    host: usize,
    add: Nanos,
    /// Grows from nothing between these two.
    ramp: Option<(Nanos, Nanos)>,
}

impl Network {
    pub fn new(topology: &Topology, rng: Rng) -> Self {
        let (hosts, link) = (Hosts::of(topology), topology.link.clone());
        Self { hosts, link, rng, cuts: Vec::new(), slow: Vec::new() }
    }

    pub fn cut(&mut self, fault: u32, from: &[Host], to: &[Host], both: bool) {
        let (from, to) = (self.bits(from), self.bits(to));
        self.cuts.push(Cut { fault, from, to, both, on: true });
    }

    /// Opens and closes a cut that flaps.
    pub fn toggle(&mut self, fault: u32) {
        for cut in self.cuts.iter_mut().filter(|cut| cut.fault == fault) {
            cut.on = !cut.on;
        }
    }

    pub fn slow(&mut self, fault: u32, host: Host, add_ms: u64, ramp: Option<(Nanos, Nanos)>) {
        let (host, add) = (self.hosts.index(host), add_ms * MILLI);
        self.slow.push(Slow { fault, host, add, ramp });
    }

    pub fn mend(&mut self, fault: u32) {
        self.cuts.retain(|cut| cut.fault != fault);
        self.slow.retain(|slow| slow.fault != fault);
    }

    /// Whether a message from one host reaches another now.
    pub fn open(&self, from: Host, to: Host) -> bool {
        if self.cuts.is_empty() {
            return true;
        }
        let (from, to) = (self.hosts.index(from), self.hosts.index(to));
        let blocks = |cut: &Cut| {
            let forth = has(&cut.from, from) && has(&cut.to, to);
            let back = cut.both && has(&cut.from, to) && has(&cut.to, from);
            cut.on && (forth || back)
        };
        !self.cuts.iter().any(blocks)
    }

    /// Whether messages pass in both directions.
    pub fn both_open(&self, one: Host, two: Host) -> bool {
        self.open(one, two) && self.open(two, one)
    }

    /// Whether anything is wrong between two hosts.
    pub fn is_well(&self, one: Host, two: Host) -> bool {
        let (a, b) = (self.hosts.index(one), self.hosts.index(two));
        let named = |cut: &Cut| {
            let forth = has(&cut.from, a) && has(&cut.to, b);
            forth || has(&cut.from, b) && has(&cut.to, a)
        };
        !self.cuts.iter().any(named) && !self.slow.iter().any(|s| s.host == a || s.host == b)
    }

    /// What a message takes that is sent now.
    pub fn delay(&mut self, now: Nanos, from: Host, to: Host) -> Nanos {
        let jitter = self.rng.below(self.link.jitter_us * 1_000);
        let mut delay = self.link.base_us * 1_000 + jitter;
        if !self.slow.is_empty() {
            let (from, to) = (self.hosts.index(from), self.hosts.index(to));
            let slow = self.slow.iter().filter(|slow| slow.host == from || slow.host == to);
            delay += slow.map(|slow| slow.now(now)).sum::<Nanos>();
        }
        delay
    }

    fn bits(&self, hosts: &[Host]) -> Vec<u64> {
        let mut bits = vec![0; self.hosts.count().div_ceil(64)];
        for host in hosts {
            let index = self.hosts.index(*host);
            bits[index / 64] |= 1 << (index % 64);
        }
        bits
    }
}

impl Slow {
    fn now(&self, now: Nanos) -> Nanos {
        match self.ramp {
            None => self.add,
            Some((from, until)) => {
                let (gone, whole) = (now.saturating_sub(from), until.saturating_sub(from).max(1));
                let add = u128::from(self.add) * u128::from(gone.min(whole)) / u128::from(whole);
                u64::try_from(add).unwrap_or(self.add)
            }
        }
    }
}

fn has(bits: &[u64], index: usize) -> bool {
    bits[index / 64] & (1 << (index % 64)) != 0
}
