//! Invariant 5: who is ejected deserves it, is left alone, and comes back; a few probes decide.

use control::Instant;
use control::breaker::{Cause, Phase, Transition};
use control::outcome::{AttemptEnd, Failure, Stage};
use control::plane::{Config, ControlPlane, Dispatch, Input};

use super::members::Members;
use super::requests::Requests;
use super::{Invariant, Step, Verdict};
use crate::coverage::sometimes;
use crate::plan::Plan;

/// What the breakers of all gateways must do.
pub(super) struct Breakers {
    /// For each gateway and replica: since when it is truly well and reachable.
    well: Vec<Vec<Option<u64>>>,
    /// The attempt that just ended in failure: its breaker may have to open.
    failed: Option<(control::id::EndpointId, Guilt)>,
}

/// What an end says about its endpoint, by our own reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guilt {
    Works,
    Fails,
    Neutral,
    Faulty,
}

/// How late a timer may be: a gateway looks at the same instant, in any order.
const LATE_MAX: std::time::Duration = std::time::Duration::from_millis(1_200);

/// Attempts that pass over a half-open member before it counts as forgotten, beyond four rounds of the pool.
const PASSED_OVER_MAX: u32 = 60;

impl Breakers {
    pub fn new(plan: &Plan) -> Self {
        let (gateways, replicas) = (plan.topology.gateways.len(), plan.topology.replicas.len());
        Self { well: vec![vec![Some(0); replicas]; gateways], failed: None }
    }

    /// What ended, before it is known what follows.
    pub fn input(&mut self, step: &Step<'_>, members: &mut Members, requests: &Requests) {
        self.failed = None;
        if let Input::Configured(_) = &step.input {
            for member in members.pool(step.gateway).members.values_mut() {
                // What was counted and timed by other numbers says nothing about these.
                (member.stay.seen, member.stay.ejected_for) = (false, None);
            }
        }
        let Input::AttemptEnded { attempt, end } = &step.input else { return };
        let guilt = guilt(end, step, requests, *attempt);
        let Some((endpoint, same_stay)) = members.ends(step.gateway, *attempt) else { return };
        let Some(member) = members.pool(step.gateway).members.get_mut(&endpoint) else { return };
        if let AttemptEnd::Failed { failure: Failure::Backpressure(_), retry_after, .. } = end {
            let pause = requests.pause(step.gateway, *retry_after);
            member.left_until = member.left_until.max(step.now + pause);
            member.full_until = member.full_until.max(member.left_until);
        }
        if !same_stay {
            return;
        }
        let stay = &mut member.stay;
        match guilt {
            Guilt::Works => {
                stay.consecutive = 0;
                stay.succeeded += 1;
            }
            Guilt::Fails => {
                stay.consecutive += 1;
                stay.failed += 1;
            }
            Guilt::Neutral => {}
            Guilt::Faulty => stay.failed += 1,
        }
        self.failed = Some((endpoint, guilt));
    }

    /// A breaker moved: was it right to?
    pub fn moved(
        &mut self,
        step: &Step<'_>,
        moved: &Transition,
        members: &Members,
        config: &Config,
        verdict: &mut Verdict,
    ) {
        covered(moved);
        let pool = &members.gateways[step.gateway as usize];
        let Some(member) = pool.members.get(&moved.id) else { return };
        let mut wrong = |text: String| {
            let text = format!("gateway-{}, replica-{}: {text}", step.gateway, member.replica);
            verdict.fail(Invariant::Breakers, step.at, text);
        };
        if moved.from != member.phase {
            wrong(format!("moves from {}, and is {}", moved.from, member.phase));
        }
        let stay = &member.stay;
        match moved.cause {
            Cause::ConsecutiveFailures { .. }
                if stay.seen && stay.consecutive < config.breaker.consecutive_failures =>
            {
                wrong(format!("is ejected after {} failures in a row", stay.consecutive));
            }
            Cause::FailureRate { failed, .. } if stay.seen && stay.failed < failed => {
                wrong(format!("is ejected for {failed} failures, and had {}", stay.failed));
            }
            Cause::Fault(_) if self.failed != Some((moved.id, Guilt::Faulty)) => {
                wrong("is ejected for a fault that nobody reported".into());
            }
            Cause::ProbesSucceeded
                if stay.seen && stay.succeeded < config.breaker.probes_to_close.max(1) =>
            {
                wrong(format!("is closed after {} good probes", stay.succeeded));
            }
            Cause::ProbeFailed if stay.seen && stay.failed == 0 => {
                wrong("is ejected again, and no probe failed".into());
            }
            Cause::ConsecutiveFailures { .. }
            | Cause::FailureRate { .. }
            | Cause::Fault(_)
            | Cause::ProbeFailed
            | Cause::ProbeExpired
            | Cause::EjectionOver
            | Cause::ProbesSucceeded
            | Cause::SlowStart
            | Cause::Reset
            | Cause::Unknown => {}
        }
        if let (Phase::Open, Some(until)) = (moved.to, moved.until) {
            let length = until.since(step.now);
            let breaker = &config.breaker;
            if length > breaker.ejection_max {
                wrong(format!("is ejected for {length:?}, at most {:?}", breaker.ejection_max));
            }
            let again = matches!(moved.cause, Cause::ProbeFailed | Cause::ProbeExpired);
            if let Some(before) = stay.ejected_for.filter(|_| again && stay.seen) {
                let doubled = (before * 2).min(breaker.ejection_max.as_nanos() as u64);
                let least =
                    doubled / 100 * u64::from(100 - breaker.ejection_jitter_percent.min(99));
                if (length.as_nanos() as u64) + 1_000 < least {
                    wrong(format!("is ejected again for {length:?}, after {before} ns"));
                }
            }
        }
    }

    /// After a step: who failed often enough is ejected.
    pub fn after(
        &mut self,
        step: &Step<'_>,
        members: &Members,
        config: &Config,
        verdict: &mut Verdict,
    ) {
        let Some((endpoint, guilt)) = self.failed.take() else { return };
        let pool = &members.gateways[step.gateway as usize];
        let Some(member) = pool.members.get(&endpoint) else { return };
        let mut wrong = |text: String| {
            let text = format!("gateway-{}, replica-{}: {text}", step.gateway, member.replica);
            verdict.fail(Invariant::Breakers, step.at, text);
        };
        if guilt == Guilt::Faulty && member.phase != Phase::Open {
            wrong(format!("is at fault, and its breaker is {}", member.phase));
        }
        // One may always be ejected: where nobody else is, there is no excuse.
        let others =
            pool.members.iter().any(|(id, other)| *id != endpoint && other.phase != Phase::Closed);
        let stay = &member.stay;
        let often = stay.consecutive >= config.breaker.consecutive_failures.max(1);
        if guilt == Guilt::Fails && often && member.phase == Phase::Closed && !others {
            wrong(format!("failed {} times in a row and is not ejected", stay.consecutive));
        }
    }

    /// An attempt goes to a member: to one that may be asked.
    pub fn dispatched(
        &mut self,
        step: &Step<'_>,
        order: &Dispatch,
        panic: bool,
        members: &Members,
        config: &Config,
        verdict: &mut Verdict,
    ) {
        let pool = &members.gateways[step.gateway as usize];
        let Some(member) = pool.members.get(&order.endpoint) else { return };
        let mut wrong = |text: String| {
            let text = format!("{:?} goes to replica-{}, {text}", order.attempt, member.replica);
            verdict.fail(Invariant::Breakers, step.at, text);
        };
        if member.phase == Phase::Open && !panic {
            wrong("which is ejected".into());
        }
        if member.phase == Phase::HalfOpen && !panic && member.stay.seen && !member.stay.panicked {
            let probes = config.breaker.probes_max.clamp(1, 64);
            // Counted before this one.
            if member.stay.running >= probes {
                wrong(format!("which has {} probes under way", member.stay.running));
            }
        }
        if panic {
            sometimes!("panic_pick");
            let tier = members.plan(member.replica).tier;
            let peers = pool.members.values().filter(|other| {
                let plan = members.plan(other.replica);
                let shares =
                    plan.models.iter().any(|m| members.plan(member.replica).models.contains(m));
                plan.tier == tier && shares && !pool.drained.contains(&other.replica)
            });
            let (mut live, mut closed) = (0_u32, 0_u32);
            for peer in peers {
                live += 1;
                closed += u32::from(peer.phase == Phase::Closed);
            }
            let model_only = members.plan(member.replica).models.len() == 1;
            if model_only && closed * 100 >= config.balance.panic_percent * live && live == closed {
                wrong("in a panic that nothing calls for".into());
            }
        }
    }

    /// Which replicas are truly well.
    pub fn health(&mut self, gateway: u32, replica: u32, well_since: Option<u64>, at: u64) {
        let known = &mut self.well[gateway as usize][replica as usize];
        *known = match (well_since, *known) {
            (None, _) => None,
            (Some(since), None) => Some(since.max(at)),
            (Some(since), Some(before)) => Some(before.max(since)),
        };
    }

    /// Time passes: ejections end, and half-open ends too.
    pub fn look(
        &mut self,
        gateway: u32,
        plane: &ControlPlane,
        (shows, at): (Instant, u64),
        members: &Members,
        config: &Config,
        verdict: &mut Verdict,
    ) {
        let pool = &members.gateways[gateway as usize];
        for (id, member) in pool.members.iter().filter(|(_, m)| m.phase != Phase::Closed) {
            let mut wrong = |text: String| {
                let text = format!("gateway-{gateway}, replica-{}: {text}", member.replica);
                verdict.fail(Invariant::Breakers, at, text);
            };
            let stay = &member.stay;
            if member
                .until
                .is_some_and(|until| member.phase == Phase::Open && shows > until + LATE_MAX)
            {
                wrong("its ejection is over, and it is not let back".into());
            }
            if member.phase != Phase::HalfOpen || !stay.seen || stay.panicked {
                continue;
            }
            let probes = plane.breaker(*id).map_or(0, |state| state.probes);
            if probes > stay.running {
                wrong(format!("counts {probes} probes, and {} run", stay.running));
            }
            if stay.succeeded >= config.breaker.probes_to_close.max(1) && stay.failed == 0 {
                wrong(format!("answered {} probes and is still half-open", stay.succeeded));
            }
            let well = self.well[gateway as usize][member.replica as usize];
            let passed_over = stay.passed_over > PASSED_OVER_MAX + 4 * pool.members.len() as u32;
            if passed_over && well.is_some_and(|since| since < stay.since) {
                wrong(format!(
                    "is well, half-open, and was passed over {} times",
                    stay.passed_over
                ));
            }
        }
    }
}

/// Our own reading of an end: what a replica did wrong, not what a client or the load did.
fn guilt(
    end: &AttemptEnd,
    step: &Step<'_>,
    requests: &Requests,
    attempt: control::id::AttemptId,
) -> Guilt {
    let (failure, produced) = match end {
        AttemptEnd::Completed { .. } => return Guilt::Works,
        AttemptEnd::Cancelled { .. } => return Guilt::Neutral,
        AttemptEnd::Failed { failure, produced, .. } => (failure, produced.0),
    };
    match failure {
        Failure::Connect
        | Failure::ConnectionLost
        | Failure::Timeout(Stage::FirstToken | Stage::BetweenTokens)
        | Failure::Status(_)
        | Failure::Truncated
        | Failure::ErrorInAnswer
        | Failure::Garbage => Guilt::Fails,
        Failure::EndpointFault(_) => Guilt::Faulty,
        Failure::Backpressure(_)
        | Failure::ClientError(_)
        | Failure::TooLarge
        | Failure::CannotResume => Guilt::Neutral,
        Failure::Timeout(Stage::Deadline) => {
            // Without a token by the configured deadline it is the replica; by one the client chose, it is not.
            let Some(request) = requests.by_attempt(step.gateway, attempt) else {
                return Guilt::Neutral;
            };
            let config = requests.config(step.gateway);
            let hurried = request.arrival.patience.is_some_and(|p| p < config.timeouts.request);
            match !hurried && request.committed.is_none() && produced == 0 {
                true => Guilt::Fails,
                false => Guilt::Neutral,
            }
        }
    }
}

/// Every way a breaker moves, for coverage.
fn covered(moved: &Transition) {
    match (moved.from, moved.to, moved.cause) {
        (Phase::Closed, Phase::Open, Cause::ConsecutiveFailures { .. }) => {
            sometimes!("breaker_closed_open_consecutive")
        }
        (Phase::Closed, Phase::Open, Cause::FailureRate { .. }) => {
            sometimes!("breaker_closed_open_rate")
        }
        (Phase::Closed, Phase::Open, Cause::Fault(_)) => sometimes!("breaker_closed_open_fault"),
        (Phase::Open, Phase::Open, _) => sometimes!("breaker_open_named_fault"),
        (Phase::Open, Phase::HalfOpen, _) => sometimes!("breaker_open_half_open"),
        (Phase::HalfOpen, Phase::Closed, _) => sometimes!("breaker_half_open_closed"),
        (Phase::HalfOpen, Phase::Open, Cause::ProbeFailed) => sometimes!("breaker_probe_failed"),
        (Phase::HalfOpen, Phase::Open, Cause::ProbeExpired) => sometimes!("breaker_probe_expired"),
        (Phase::HalfOpen, Phase::Open, Cause::Fault(_)) => sometimes!("breaker_probe_fault"),
        (Phase::Closed, Phase::Closed, Cause::SlowStart) => sometimes!("breaker_slow_start"),
        _ => {}
    }
}
