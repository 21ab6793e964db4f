//! The registry: who is there, as it says; which is not always so.

use control::plane::Input;
use control::registry::{EndpointSpec, Fingerprint, SourceKind};

use super::World;
use super::clock::{MILLI, Nanos, SECOND};
use super::event::Event;
use crate::plan::{Host, Plan, RegistryLie, ReplicaPlan};

/// The registry as it is now.
#[derive(Default)]
pub(super) struct Registry {
    /// Grows with every change of who is there.
    version: u64,
    listed: Vec<u32>,
    /// What was said under each version, the latest few.
    said: Vec<(u64, Vec<u32>)>,
    pub lies: Vec<(u32, RegistryLie)>,
}

/// A replica that is down for so long is taken off the list.
const TTL: Nanos = 3 * SECOND;

/// Replicas are rolled out in four groups, so far apart: there are old lists that a stale answer may repeat.
const REGISTERS_EVERY: Nanos = SECOND;

/// Answers that a lying registry may repeat.
const SAID_MAX: usize = 8;

impl World<'_> {
    /// A gateway asks who is there, and asks again later.
    pub(super) fn poll(&mut self, gateway: u32) {
        let every = self.plan.topology.registry_every_ms * MILLI;
        let next = self.now + every;
        if next < self.end {
            self.agenda.plan(next, Event::Poll { gateway });
        }
        if !self.gateways[gateway as usize].is_up() {
            return;
        }
        let lie = self.registry.lies.last().map(|(_, lie)| *lie);
        let source = "registry".into();
        let open = self.network.both_open(Host::Gateway(gateway), Host::Registry);
        if !open || lie == Some(RegistryLie::Silent) {
            return self.submit(gateway, Input::SourceLost { source });
        }
        self.look_who_is_there();
        let (version, listed) = self.registry.answer(lie);
        let endpoints = self.specs(&listed);
        let kind = SourceKind::Observed;
        self.submit(gateway, Input::Membership { source, kind, version, endpoints });
    }

    /// The configuration names everybody.
    pub(super) fn list_all(&mut self, gateway: u32) {
        let all: Vec<u32> = (0..self.plan.topology.replicas.len() as u32).collect();
        let own = &mut self.gateways[gateway as usize];
        own.listed += 1;
        // Grows over lives too, as one counted from the wall clock does.
        let version = u64::from(own.life) << 32 | own.listed;
        let (kind, source) = (SourceKind::Authoritative, "config".into());
        let endpoints = self.specs(&all);
        self.submit(gateway, Input::Membership { source, kind, version, endpoints });
    }

    fn look_who_is_there(&mut self) {
        let now = self.now;
        let alive = |index: &u32| {
            let state = &self.replicas[*index as usize];
            let up = state.down.is_none() || now < state.down_since + TTL;
            up && now >= u64::from(index % 4) * REGISTERS_EVERY
        };
        let listed: Vec<u32> =
            (0..self.plan.topology.replicas.len() as u32).filter(alive).collect();
        if listed != self.registry.listed || self.registry.version == 0 {
            self.registry.version += 2;
            self.registry.listed = listed;
        }
    }

    fn specs(&self, listed: &[u32]) -> Vec<EndpointSpec> {
        let spec = |index: &u32| {
            let plan: &ReplicaPlan = &self.plan.topology.replicas[*index as usize];
            EndpointSpec {
                name: ReplicaPlan::name(*index as usize).into(),
                weight: plan.weight,
                tier: plan.tier,
                in_flight_max: plan.in_flight_max,
                rps_max: plan.rps_max,
                models: plan.models.iter().map(|m| Plan::model_name(*m).into()).collect(),
                fingerprint: plan.fingerprint.map(|mark| Fingerprint(u64::from(mark))),
            }
        };
        listed.iter().map(spec).collect()
    }
}

impl Registry {
    fn answer(&mut self, lie: Option<RegistryLie>) -> (u64, Vec<u32>) {
        match lie {
            None | Some(RegistryLie::Silent) => {
                let answer = (self.version, self.listed.clone());
                if self.said.last().map(|(version, _)| *version) != Some(self.version) {
                    self.said.push(answer.clone());
                    if self.said.len() > SAID_MAX {
                        self.said.remove(0);
                    }
                }
                answer
            }
            Some(RegistryLie::Stale) => match self.said.first() {
                Some(old) => old.clone(),
                None => (1, Vec::new()),
            },
            // A new answer each time: its own state changes while it lies.
            Some(RegistryLie::Partial) => {
                self.version += 1;
                let part = self.listed.iter().copied().filter(|index| index % 2 == 0);
                (self.version, part.collect())
            }
            Some(RegistryLie::Empty) => {
                self.version += 1;
                (self.version, Vec::new())
            }
        }
    }

    /// A lie is over: what is true is said anew.
    pub fn mended(&mut self) {
        self.version += 2;
    }
}
