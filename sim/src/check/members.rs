//! Who is a member of which gateway's pools, what runs there, and how its breaker stands: an outsider's copy.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use control::Instant;
use control::balance::Reported;
use control::breaker::{Phase, Transition};
use control::id::{AttemptId, EndpointId};
use control::plane::{ControlPlane, Input, Observation};
use control::registry::SourceKind;

use super::{Invariant, Step, Verdict};
use crate::coverage::sometimes;
use crate::plan::{Plan, ReplicaPlan};
use crate::world::replica_of;

/// All gateways' members.
pub(super) struct Members {
    pub plans: Vec<ReplicaPlan>,
    pub gateways: Vec<Pool>,
}

/// One gateway's members.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool {
    pub members: BTreeMap<EndpointId, Member>,
    pub drained: BTreeSet<u32>,
    pub running: BTreeMap<AttemptId, Ran>,
    /// Who is there.
    pub present: BTreeSet<u32>,
    /// The highest version each source's list had.
    versions: BTreeMap<Box<str>, u64>,
}

/// One member.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub replica: u32,
    pub in_flight: u32,
    pub phase: Phase,
    pub share: u32,
    pub until: Option<Instant>,
    /// It said that it is full: until then it may be passed over.
    pub full_until: Instant,
    /// The same, where it was seen: until then it has to be.
    pub left_until: Instant,
    /// When it said how busy it is, and how much of that others gave it.
    reported: Option<(Instant, u64)>,
    /// Until then it may have said something that was not seen.
    unsure_until: Instant,
    pub stay: Stay,
}

/// One stay of a breaker in one state.
#[derive(Clone, Debug, Default)]
pub(super) struct Stay {
    pub number: u64,
    /// False where its beginning was not seen: the counts are then not all there is.
    pub seen: bool,
    pub since: u64,
    pub consecutive: u32,
    pub failed: u32,
    pub succeeded: u32,
    /// Attempts begun in this stay that still run.
    pub running: u32,
    /// Attempts that any member could have had and others got.
    pub passed_over: u32,
    /// Somebody was sent here in a panic: not every attempt of this stay is a probe.
    pub panicked: bool,
    /// How long the ejection was that this one follows.
    pub ejected_for: Option<u64>,
}

/// Longer than any plan's backoff, and than any replica asks to be left alone.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// For so long what a replica says of its load counts for something.
const BELIEVED: Duration = Duration::from_secs(6);

/// Where an attempt runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ran {
    pub endpoint: EndpointId,
    pub stay: u64,
}

impl Members {
    pub fn new(plan: &Plan) -> Self {
        let gateways = plan.topology.gateways.iter().map(|_| Pool::default()).collect();
        Self { plans: plan.topology.replicas.clone(), gateways }
    }

    pub fn pool(&mut self, gateway: u32) -> &mut Pool {
        &mut self.gateways[gateway as usize]
    }

    pub fn plan(&self, replica: u32) -> &ReplicaPlan {
        &self.plans[replica as usize]
    }

    /// What an input says by itself.
    pub fn input(&mut self, step: &Step<'_>, verdict: &mut Verdict) {
        let pool = self.pool(step.gateway);
        pool.listed(step, verdict);
        match &step.input {
            Input::Drain { endpoint, on } => {
                if let Some(replica) = replica_of(endpoint) {
                    if *on && pool.present.contains(&replica) {
                        pool.drained.insert(replica);
                    } else if !*on {
                        pool.drained.remove(&replica);
                    }
                }
            }
            Input::LoadReported { endpoint, load } => {
                sometimes!("load_reported");
                if let Some(member) = pool.members.get_mut(endpoint) {
                    member.report(step.now, *load);
                }
            }
            Input::Restarted { .. } => {
                pool.running.clear();
                for member in pool.members.values_mut() {
                    (member.in_flight, member.stay.running) = (0, 0);
                }
            }
            Input::WallTime(_)
            | Input::Configured(_)
            | Input::Membership { .. }
            | Input::SourceLost { .. }
            | Input::RequestArrived(_)
            | Input::StoreAnswered(_)
            | Input::StoreFailed { .. }
            | Input::Consulted(_)
            | Input::ConsultFailed { .. }
            | Input::Housed(_)
            | Input::LedgerAsked { .. }
            | Input::AttemptAccepted { .. }
            | Input::FirstToken { .. }
            | Input::Progress { .. }
            | Input::AttemptEnded { .. }
            | Input::ClientGone { .. }
            | Input::Timeout => {}
        }
    }

    /// Who comes and goes.
    pub fn observed(&mut self, step: &Step<'_>, observation: &Observation) {
        let pool = &mut self.gateways[step.gateway as usize];
        match observation {
            Observation::EndpointAdded(id) => {
                if let Some(replica) = step.plane.endpoint_name(*id).and_then(replica_of) {
                    let stay = Stay { seen: true, since: step.at, ..Stay::default() };
                    pool.members.insert(*id, Member::new(replica, stay));
                    pool.present.insert(replica);
                }
            }
            Observation::EndpointRemoved { id, name } => {
                pool.members.remove(id);
                if let Some(replica) = replica_of(name) {
                    pool.present.remove(&replica);
                }
            }
            Observation::Breaker(moved) => pool.moved(step, moved),
            Observation::Arrived { .. }
            | Observation::Granted { .. }
            | Observation::Denied { .. }
            | Observation::Picked { .. }
            | Observation::Nobody { .. }
            | Observation::Hedged { .. }
            | Observation::Accepted { .. }
            | Observation::FirstToken { .. }
            | Observation::Ended { .. }
            | Observation::Retrying { .. }
            | Observation::GaveUp { .. }
            | Observation::Bound { .. }
            | Observation::Refused { .. }
            | Observation::Finished { .. }
            | Observation::Lost { .. }
            | Observation::SourceRefused { .. }
            | Observation::Configured { .. }
            | Observation::ChargeLost { .. }
            | Observation::QuotaLate
            | Observation::QuotaDegraded(_)
            | Observation::SharedDegraded(_)
            | Observation::Consulted { .. }
            | Observation::ConsultLost { .. }
            | Observation::Adopted { .. }
            | Observation::Stale(_) => {}
        }
    }

    /// An attempt begins.
    pub fn begins(&mut self, gateway: u32, attempt: AttemptId, endpoint: EndpointId, panic: bool) {
        let pool = self.pool(gateway);
        if let Some(member) = pool.members.get_mut(&endpoint) {
            member.in_flight += 1;
            member.stay.running += 1;
            member.stay.panicked |= panic;
            let stay = member.stay.number;
            pool.running.insert(attempt, Ran { endpoint, stay });
        }
    }

    /// An attempt is over, one way or another. Returns its member if it was begun in the member's present stay.
    pub fn ends(&mut self, gateway: u32, attempt: AttemptId) -> Option<(EndpointId, bool)> {
        let pool = self.pool(gateway);
        let ran = pool.running.remove(&attempt)?;
        let member = pool.members.get_mut(&ran.endpoint)?;
        member.in_flight = member.in_flight.saturating_sub(1);
        let same = member.stay.number == ran.stay;
        if same {
            member.stay.running = member.stay.running.saturating_sub(1);
        }
        Some((ran.endpoint, same))
    }

    pub fn died(&mut self, gateway: u32) {
        self.gateways[gateway as usize] = Pool::default();
    }

    /// Takes over what a recovered plane says of its members: what led to it was not all seen.
    pub fn recovered(&mut self, gateway: u32, plane: &ControlPlane) {
        let pool = self.pool(gateway);
        for endpoint in plane.view().endpoints {
            let Some(replica) = replica_of(&endpoint.name) else { continue };
            let mut member = Member::new(replica, Stay::default());
            member.phase = endpoint.breaker.phase;
            member.share = endpoint.breaker.share_permille;
            member.until = endpoint.breaker.until;
            member.in_flight = endpoint.in_flight;
            // Whom it leaves alone it does not show: any of them, for as long as a pause lasts at most.
            member.full_until = plane.now() + PAUSE_MAX;
            if endpoint.others > 0 {
                member.unsure_until = plane.now() + BELIEVED;
            }
            pool.members.insert(endpoint.id, member);
            pool.present.insert(replica);
            if endpoint.draining {
                pool.drained.insert(replica);
            }
        }
    }
}

impl Pool {
    /// A source that lists nobody, or repeats an old list, changes nobody's membership.
    fn listed(&mut self, step: &Step<'_>, verdict: &mut Verdict) {
        let Input::Membership { source, kind, version, endpoints } = &step.input else { return };
        let known = self.versions.get(source).copied();
        let old = known.is_some_and(|known| *version < known);
        let empty = *kind == SourceKind::Observed && endpoints.is_empty();
        let changes = step.observed.iter().find(|observation| {
            matches!(
                observation,
                Observation::EndpointAdded(_) | Observation::EndpointRemoved { .. }
            )
        });
        if let Some(change) = changes.filter(|_| old || empty) {
            let text = format!(
                "gateway-{}: {source} said {} under version {version}, after {known:?}: {change:?}",
                step.gateway,
                if empty { "nobody" } else { "an old list" }
            );
            verdict.fail(Invariant::Liveness, step.at, text);
        }
        self.versions.insert(source.clone(), known.map_or(*version, |known| known.max(*version)));
    }

    fn moved(&mut self, step: &Step<'_>, moved: &Transition) {
        let Some(member) = self.members.get_mut(&moved.id) else { return };
        member.share = moved.share_permille;
        if moved.from == moved.to && moved.to != Phase::Open {
            return;
        }
        let ejected_for = match (member.phase, moved.to, moved.until) {
            (_, Phase::Open, Some(until)) => Some(until.since(step.now).as_nanos() as u64),
            _ => member.stay.ejected_for,
        };
        member.phase = moved.to;
        member.until = moved.until;
        let number = member.stay.number + 1;
        member.stay = Stay { number, seen: true, since: step.at, ejected_for, ..Stay::default() };
    }
}

impl Member {
    fn report(&mut self, now: Instant, load: Reported) {
        let total = (u64::from(load.queued) + u64::from(load.running)).min(65_536);
        // A cache that is more than nine tenths full: up to the whole once more.
        let full = u64::from(load.kv_used_permille.unwrap_or(0).clamp(900, 1_000)) - 900;
        let waiting = (total.max(1) * full).div_ceil(100);
        let others = total.saturating_sub(u64::from(self.in_flight)) + waiting;
        (self.reported, self.unsure_until) = (Some((now, others)), Instant::ZERO);
    }

    /// Work of others there, as far as it is to be believed in now; `None` where that was not seen.
    pub fn others(&self, now: Instant) -> Option<u64> {
        let quarters = |at: Instant| match now.since(at).as_secs() {
            0..3 => 4,
            3 => 3,
            4 => 2,
            5 => 1,
            _ => 0,
        };
        (self.unsure_until <= now)
            .then(|| self.reported.map_or(0, |(at, others)| others * quarters(at) / 4))
    }

    fn new(replica: u32, stay: Stay) -> Self {
        Self {
            replica,
            in_flight: 0,
            phase: Phase::Closed,
            share: 1_000,
            until: None,
            full_until: Instant::ZERO,
            left_until: Instant::ZERO,
            reported: None,
            unsure_until: Instant::ZERO,
            stay,
        }
    }
}
