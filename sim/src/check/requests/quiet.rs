//! Crashes, and the quiet at the end.

use control::outcome::Failure;
use control::plane::{ControlPlane, Refusal};

use super::super::book::Pair;
use super::super::request::{End, Request};
use super::super::{Invariant, Step, Verdict};
use super::{HEDGES_MAX, Requests};
use crate::plan::Plan;

/// How long after the healing the core must be well, in nanoseconds: the longest request with its watchdog, the longest
/// ejection and the probe after it, and a reservation that nobody ends any more.
pub(super) fn within(plan: &Plan) -> u64 {
    let configs = plan.faults.iter().filter_map(|fault| match &fault.kind {
        crate::plan::FaultKind::Reload { config } => Some(&**config),
        crate::plan::FaultKind::Cut { .. }
        | crate::plan::FaultKind::Flap { .. }
        | crate::plan::FaultKind::Latency { .. }
        | crate::plan::FaultKind::Ill { .. }
        | crate::plan::FaultKind::ReplicaCrash { .. }
        | crate::plan::FaultKind::Drain { .. }
        | crate::plan::FaultKind::Kill { .. }
        | crate::plan::FaultKind::PowerLoss { .. }
        | crate::plan::FaultKind::Pause { .. }
        | crate::plan::FaultKind::ClockJump { .. }
        | crate::plan::FaultKind::DiskFull { .. }
        | crate::plan::FaultKind::DiskSlow { .. }
        | crate::plan::FaultKind::SyncFails { .. }
        | crate::plan::FaultKind::Registry { .. }
        | crate::plan::FaultKind::Store { .. }
        | crate::plan::FaultKind::StoreFailover { .. } => None,
    });
    let longest = configs.chain([&plan.config]).map(|config| {
        let requests = config.timeouts.request;
        let breaker = &config.breaker;
        let ejected = breaker.ejection_max.max(breaker.fault_ejection_base);
        let probed = breaker.probe_timeout.max(config.timeouts.first_token);
        requests + ejected + probed + probed + std::time::Duration::from_secs(6)
    });
    longest.max().map_or(0, |longest| longest.as_nanos() as u64)
}

impl Requests {
    /// Records from `next` on are gone. What they say did not happen; what ended in them is under way again.
    pub fn died(&mut self, gateway: u32, next: u64, power: bool, at: u64, verdict: &mut Verdict) {
        let own = &mut self.gateways[gateway as usize];
        own.live.clear();
        // The budget is where it was at the last record: what was spent since may be spent again.
        if let Some(config) = &own.config {
            own.budget += u128::from(config.attempt.budget_burst) * 100;
            own.hedges = HEDGES_MAX;
        }
        for (call, slot) in (0..).zip(&mut self.all) {
            let Some(request) = slot.as_deref_mut().filter(|r| r.gateway == gateway) else {
                continue;
            };
            if request.position >= next {
                own.by_id.remove(&request.id);
            }
            let ended_in_vain = request.end.is_some_and(|end| end.position >= next);
            if ended_in_vain && request.acknowledged && (!power || self.sync_always) {
                let text = format!("{:?} was acknowledged, and its record is gone", request.id);
                verdict.fail(Invariant::Durability, at, text);
            }
            if ended_in_vain {
                if let Some(key) = request.arrival.idempotency
                    && request.charged() != [0, 0]
                {
                    let key = (request.arrival.principal.tenant.0, key.key.0);
                    own.charged_keys.entry(key).and_modify(|count| *count -= 1);
                }
                (request.end, request.acknowledged) = (None, false);
            }
            request.forget_from(next);
            if request.position >= next {
                *slot = None;
            } else if request.end.is_none() {
                own.live.insert(call);
            }
        }
    }

    /// It comes back.
    pub fn recovered(&mut self, gateway: u32, upgrade: bool) {
        self.gateways[gateway as usize].upgraded = upgrade;
    }

    /// A new life begins: what was under way is settled at its last mark, what was not begun goes back.
    pub(super) fn restarted(&mut self, step: &Step<'_>) {
        let own = &mut self.gateways[step.gateway as usize];
        let upgraded = std::mem::take(&mut own.upgraded);
        for call in std::mem::take(&mut own.live) {
            let Some(request) = self.all[call as usize].as_deref_mut() else { continue };
            let (charged, position, at) = (request.cost_in_part(), step.position, step.at);
            (request.running, request.beside, request.lost) = (None, None, None);
            request.end = Some(End { position, at, charged, good: false });
            self.lost.push((call, upgraded));
            self.figures.lost += 1;
        }
    }

    /// The terminal entries of what was lost.
    pub(super) fn settle_lost(&mut self, step: &Step<'_>, verdict: &mut Verdict) -> Vec<u32> {
        let lost = std::mem::take(&mut self.lost);
        for (call, upgraded) in &lost {
            let Some(request) = self.all[*call as usize].as_deref_mut() else { continue };
            let noted = request.noted();
            if *upgraded && let Some(end) = &mut request.end {
                // What another logic had under way is known as of the snapshot, or not at all: it is charged no more.
                end.charged = least(end.charged, noted.unwrap_or_default());
            }
            let charged = request.charged();
            let held = request.granted != [0, 0];
            if (held || charged != [0, 0]) && noted != Some(charged) {
                let text = format!(
                    "{:?} was lost; it is to be charged {charged:?}, and its entry says {noted:?}",
                    request.id
                );
                verdict.fail(Invariant::Durability, step.at, text);
            }
            if let Some(key) = request.arrival.idempotency
                && charged != [0, 0]
            {
                let key = (request.arrival.principal.tenant.0, key.key.0);
                let keys = &mut self.gateways[step.gateway as usize].charged_keys;
                *keys.entry(key).or_default() += 1;
            }
        }
        lost.into_iter().map(|(call, _)| call).collect()
    }

    /// The end of the world: the core has drained, and has served.
    pub fn finish(
        &self,
        planes: &[Option<&ControlPlane>],
        heal_at: u64,
        at: u64,
        verdict: &mut Verdict,
    ) {
        for (gateway, plane) in planes.iter().enumerate() {
            let Some(plane) = plane else { continue };
            let view = plane.view();
            let own = &self.gateways[gateway];
            let running: u32 = view.endpoints.iter().map(|endpoint| endpoint.in_flight).sum();
            let beside = own.live.iter().filter(|call| {
                self.of_call(**call).is_some_and(|request| request.beside.is_some())
            });
            if running as usize > own.live.len() + beside.count() {
                let text = format!("gateway-{gateway} counts {running} attempts in flight");
                verdict.fail(Invariant::Liveness, at, text);
            }
            let (held, live) = (plane.ledger().outstanding(), own.live.len());
            if held > live {
                let text =
                    format!("gateway-{gateway} holds {held} reservations for {live} requests");
                verdict.fail(Invariant::Liveness, at, text);
            }
            if self.core[gateway] && heal_at + self.within < at {
                self.serves(gateway as u32, heal_at + self.within, at, verdict);
            }
        }
    }

    /// Of the last questions to a gateway of the core, some of every model were answered.
    fn serves(&self, gateway: u32, since: u64, at: u64, verdict: &mut Verdict) {
        let mut models = std::collections::BTreeMap::<&str, (u32, u32)>::new();
        let mut why = None;
        let fresh = self.all.iter().flatten().filter(|request| {
            request.gateway == gateway
                && request.arrival.principal.tenant == self.fresh
                && request.at >= since
        });
        // A replica outside the core may stay full for good. It is left alone as long as it says; who may ask only once is
        // then told what it said.
        let once = self.config(gateway).attempt.attempts_max == 1;
        let told = |request: &Request| {
            matches!(
                request.refusal.as_deref(),
                Some(Refusal::Failed { failure: Failure::Backpressure(_), .. })
            )
        };
        for request in fresh.filter(|request| !(once && told(request))) {
            why = request.refusal.as_deref().or(why);
            let (asked, served) = models.entry(&request.arrival.model).or_default();
            if let Some(end) = request.end {
                *asked += 1;
                *served += u32::from(end.good);
            }
        }
        for (model, (asked, served)) in models {
            if asked >= ASKED_MIN && served == 0 {
                let text = format!(
                    "gateway-{gateway} is of the healed core, and served none of its last {asked} requests for {model}; the last was refused: {why:?}"
                );
                verdict.fail(Invariant::Liveness, at, text);
            }
        }
    }
}

/// The less of two, in each unit.
fn least(one: Pair, two: Pair) -> Pair {
    [one[0].min(two[0]), one[1].min(two[1])]
}

/// Fewer questions than this may all be unlucky: of the replicas outside the core some stay broken.
const ASKED_MIN: u32 = 3;
