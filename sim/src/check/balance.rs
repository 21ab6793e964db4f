//! Invariant 8: load goes where it fits.

use control::Instant;
use control::balance::{Chosen, Policy, Reason};
use control::breaker::Phase;
use control::id::EndpointId;
use control::plane::{Config, ControlPlane, Dispatch};

use super::members::{Member, Members, Pool};
use super::request::Request;
use super::{Invariant, Step, Verdict};
use crate::coverage::sometimes;

/// Looks at every attempt as it is placed.
#[derive(Default)]
pub(super) struct Balance;

/// A member that could be picked for a request, with its part of the load.
struct Open {
    id: EndpointId,
    weight: u64,
    in_flight: u64,
    /// With what others gave it, by its own word; `None` where that was not seen.
    work: Option<u64>,
    limited: bool,
}

impl Balance {
    /// An attempt is placed.
    pub fn dispatched(
        &self,
        step: &Step<'_>,
        (order, chosen): (&Dispatch, &Chosen),
        request: &Request,
        members: &mut Members,
        config: &Config,
        verdict: &mut Verdict,
    ) {
        reasons(chosen);
        let mut wrong = |text: String| {
            verdict.fail(Invariant::Balance, step.at, format!("{:?} {text}", order.attempt));
        };
        let pool = &members.gateways[step.gateway as usize];
        let Some(member) = pool.members.get(&order.endpoint) else {
            return wrong(format!("goes to {}, which is no member", order.endpoint_name));
        };
        let plan = members.plan(member.replica);
        let serves = |m: u32| *request.arrival.model == *crate::plan::Plan::model_name(m);
        if !plan.models.iter().any(|model| serves(*model)) {
            wrong(format!("goes to {}, which does not serve the model", order.endpoint_name));
        }
        if pool.drained.contains(&member.replica) {
            wrong(format!("goes to {}, which drains", order.endpoint_name));
        }
        if member.in_flight >= plan.in_flight_max {
            wrong(format!("goes to {}, which is full", order.endpoint_name));
        }
        let panic = chosen.panic.then_some(chosen.tier);
        let mut open = eligible(members, pool, request, panic, step.now);
        if order.resume.is_some() {
            // A broken stream goes on only where the same model runs.
            let mark = plan.fingerprint;
            open.retain(|one| {
                let member = pool.members.get(&one.id);
                member.is_some_and(|member| members.plan(member.replica).fingerprint == mark)
            });
        }
        let others = order.resume.map_or(0, |_| unlike(members, pool, plan.fingerprint));
        if member.left_until > step.now && full(members, pool, step.now) + others < PASSED_OVER_MAX
        {
            let free = |one: &&Open| !one.limited && !request.tried.contains(&one.id);
            if let Some(other) = open.iter().find(free) {
                let text = format!("goes to {}, which is full", order.endpoint_name);
                wrong(format!("{text}, and not to {:?}", other.id));
            }
        }
        let again = request.tried.contains(&order.endpoint);
        if again && open.iter().any(|other| !other.limited && !request.tried.contains(&other.id)) {
            wrong(format!("goes to {} again, while another is eligible", order.endpoint_name));
        }
        let untried: Vec<&Open> =
            open.iter().filter(|one| again || !request.tried.contains(&one.id)).collect();
        // Where a stream goes on, the mean is still that of all, and the pick that of some.
        let steady = !again
            && order.resume.is_none()
            && steady(members, pool, request, step.now)
            && !chosen.panic;
        if steady && let Some(own) = untried.iter().find(|one| one.id == order.endpoint) {
            let policy = policy_of(config, request);
            if let Some(text) = misplaced(own, &untried, policy, chosen, config) {
                wrong(text);
            }
        }
        pass_over(members, step, order.endpoint, request, config);
    }

    /// The plane counts in flight what runs.
    pub fn look(
        &self,
        gateway: u32,
        plane: &ControlPlane,
        at: u64,
        members: &Members,
        verdict: &mut Verdict,
    ) {
        let pool = &members.gateways[gateway as usize];
        if pool.members.len() > LOOKED_AT_MAX {
            return;
        }
        for endpoint in plane.view().endpoints {
            let Some(member) = pool.members.get(&endpoint.id) else { continue };
            if endpoint.in_flight != member.in_flight {
                let text = format!(
                    "gateway-{gateway} counts {} attempts in flight at {}, and {} run",
                    endpoint.in_flight, endpoint.name, member.in_flight
                );
                verdict.fail(Invariant::Balance, at, text);
            }
        }
    }
}

/// A picture of a plane costs as much as its members: larger pools are compared at the end alone.
const LOOKED_AT_MAX: usize = 64;

/// Who may take the request: serves the model, does not drain, is admitted, has room, in the first tier that has one.
fn eligible(
    members: &Members,
    pool: &Pool,
    request: &Request,
    panic: Option<u8>,
    now: Instant,
) -> Vec<Open> {
    let mut open = Vec::new();
    let mut tier_of = Vec::new();
    for (id, member) in serving(members, pool, request) {
        let plan = members.plan(member.replica);
        let admitted = match member.phase {
            Phase::Closed => true,
            // A panic is one tier's.
            Phase::Open => panic == Some(plan.tier),
            Phase::HalfOpen => false,
        };
        if admitted
            && member.in_flight < plan.in_flight_max
            && !pool.drained.contains(&member.replica)
        {
            let weight = u64::from(plan.weight) * u64::from(member.share) / 1_000;
            let in_flight = u64::from(member.in_flight);
            let limited = plan.rps_max.is_some() || member.full_until > now;
            let work = member.others(now).map(|others| in_flight + others);
            open.push(Open { id: *id, weight: weight.max(1), in_flight, work, limited });
            tier_of.push(plan.tier);
        }
    }
    // What was tried is looked at only where nothing else is left, in whatever tier.
    let fresh = |at: &usize| !request.tried.contains(&open[*at].id);
    let tiers = (0..open.len()).filter(fresh).map(|at| tier_of[at]).min();
    let first = tiers.or_else(|| tier_of.iter().copied().min());
    let mut at = 0;
    open.retain(|_| {
        at += 1;
        Some(tier_of[at - 1]) == first
    });
    open
}

fn serving<'a>(
    members: &'a Members,
    pool: &'a Pool,
    request: &'a Request,
) -> impl Iterator<Item = (&'a EndpointId, &'a Member)> {
    pool.members.iter().filter(move |(_, member)| {
        let serves = |m: &u32| *request.arrival.model == *crate::plan::Plan::model_name(*m);
        members.plan(member.replica).models.iter().any(serves)
    })
}

/// Members that a gateway passes over in one pick: of more it asks one all the same.
const PASSED_OVER_MAX: usize = 8;

/// How many members cannot go on with a stream.
fn unlike(members: &Members, pool: &Pool, mark: Option<u32>) -> usize {
    let other = |member: &&Member| members.plan(member.replica).fingerprint != mark;
    pool.members.values().filter(other).count()
}

/// How many members may be passed over.
fn full(members: &Members, pool: &Pool, now: Instant) -> usize {
    let passed = |member: &&Member| {
        member.full_until > now || members.plan(member.replica).rps_max.is_some()
    };
    pool.members.values().filter(passed).count()
}

/// Whether nothing is on the move: no half-open member, no slow start, nobody limited by the second or full.
fn steady(members: &Members, pool: &Pool, request: &Request, now: Instant) -> bool {
    serving(members, pool, request).all(|(_, member)| {
        let plan = members.plan(member.replica);
        member.phase != Phase::HalfOpen
            && member.share % 1_000 == 0
            && plan.rps_max.is_none()
            && member.full_until <= now
    })
}

/// Whether an attempt is where its policy may not put it.
fn misplaced(
    own: &Open,
    open: &[&Open],
    policy: Policy,
    chosen: &Chosen,
    config: &Config,
) -> Option<String> {
    let bound = u128::from(config.balance.bound_percent.max(100));
    let weight: u128 = open.iter().map(|one| u128::from(one.weight)).sum();
    let in_flight: u128 = open.iter().map(|one| u128::from(one.in_flight)).sum();
    // At or under ceil(bound x mean), the mean counted with this one.
    let fits = |one: &Open| {
        u128::from(one.in_flight) * weight * 100 < bound * (in_flight + 1) * u128::from(one.weight)
    };
    if policy.is_affine() && !fits(own) && open.iter().any(|one| fits(one)) {
        return Some(format!(
            "goes above the load bound: {} in flight there, {in_flight} in all of {} members",
            own.in_flight,
            open.len()
        ));
    }
    let least = policy == Policy::LeastLoad || chosen.reason == Reason::LeastLoaded;
    if least { not_least(own, open, fits) } else { None }
}

/// Whether an attempt for the least loaded is elsewhere. That is who has the least work with what others gave it; or, where
/// one more there would be above the bound on what this gateway sent, whom this gateway sent least.
fn not_least(own: &Open, open: &[&Open], fits: impl Fn(&Open) -> bool) -> Option<String> {
    let works: Option<Vec<(u64, &Open)>> = open.iter().map(|one| Some((one.work?, *one))).collect();
    let (works, work) = (works?, own.work?);
    let less = |(theirs, one): &&(u64, &Open)| theirs * own.weight < work * one.weight;
    let sent_less = |one: &&&Open| one.in_flight * own.weight < own.in_flight * one.weight;
    let sent_least = open.iter().find(sent_less);
    let Some((theirs, other)) = works.iter().find(less) else {
        if sent_least.is_some() {
            sometimes!("pick_by_report");
        }
        return (!fits(own)).then(|| {
            format!("goes above the load bound for a report: {} in flight there", own.in_flight)
        });
    };
    let least = works.iter().filter(|(work, one)| {
        works.iter().all(|(theirs, other)| work * other.weight <= theirs * one.weight)
    });
    let bounded = least.into_iter().any(|(_, one)| !fits(one));
    if bounded && sent_least.is_none() {
        sometimes!("pick_against_report");
        return None;
    }
    Some(format!(
        "goes where {work} are in work, {} of them ours, and another has {theirs} for weight {}",
        own.in_flight, other.weight
    ))
}

/// Half-open members that this attempt could have gone to and did not.
fn pass_over(
    members: &mut Members,
    step: &Step<'_>,
    to: EndpointId,
    request: &Request,
    config: &Config,
) {
    let gateway = step.gateway;
    let sessionless = request.arrival.session.is_none() && request.tried.is_empty();
    let policy = policy_of(config, request);
    if !sessionless || !matches!(policy, Policy::Auto | Policy::LeastLoad | Policy::RoundRobin) {
        return;
    }
    let pool = &members.gateways[gateway as usize];
    let passed: Vec<EndpointId> = serving(members, pool, request)
        .filter(|(id, member)| {
            let plan = members.plan(member.replica);
            **id != to
                && member.phase == Phase::HalfOpen
                // What hangs there since before is load: the least loaded is another.
                && member.in_flight == 0
                && member.others(step.now) == Some(0)
                && plan.tier == 0
                && plan.weight >= 50
                && plan.rps_max.is_none()
                && member.full_until <= step.now
                && !pool.drained.contains(&member.replica)
        })
        .map(|(id, _)| *id)
        .collect();
    for id in passed {
        if let Some(member) = members.gateways[gateway as usize].members.get_mut(&id) {
            member.stay.passed_over += 1;
        }
    }
}

fn policy_of(config: &Config, request: &Request) -> Policy {
    let model = config.models.get(&request.arrival.model);
    model.and_then(|model| model.policy).unwrap_or(config.balance.policy)
}

fn reasons(chosen: &Chosen) {
    match chosen.reason {
        Reason::Bound => sometimes!("pick_bound"),
        Reason::Home => sometimes!("pick_home"),
        Reason::Spilled { .. } => sometimes!("pick_spilled"),
        Reason::InTurn => sometimes!("pick_in_turn"),
        Reason::LeastLoaded => sometimes!("pick_least_loaded"),
        Reason::TwoChoices => sometimes!("pick_two_choices"),
    }
    if chosen.retried_same {
        sometimes!("pick_retried_same");
    }
}
