//! Invariants 3, 6, 7, 9, 12 and 13, as far as they concern one request: what becomes of it, and what it costs.

mod effects;
mod quiet;

use std::collections::{BTreeMap, BTreeSet};

use control::Instant;
use control::id::{AttemptId, CallerToken, RequestId};
use control::outcome::{AttemptEnd, Failure, Stage};
use control::plane::{Config, Input};
use control::quota::{Ask, Entry, Fact, HoldId, StoreOp};

use super::book::{pair, plus};
use super::ends::Figures;
use super::request::Request;
use super::{Invariant, Step, Verdict};
use crate::plan::{Plan, tenant_account};

/// Every request of every gateway.
pub(crate) struct Requests {
    /// By call.
    all: Vec<Option<Box<Request>>>,
    gateways: Vec<Gateway>,
    figures: Figures,
    /// The tenant that asks whether the world is well again.
    fresh: control::id::AccountId,
    core: Vec<bool>,
    sync_always: bool,
    /// How long after the healing the core must be well.
    within: u64,
    /// Tokens a second of the fastest replica, where quota is asked for over a network.
    waits_at: u64,
    counted: u64,
    /// Requests that a new life has just found under way, and whether it decides by another logic.
    lost: Vec<(u32, bool)>,
    /// Whose streams each replica continues.
    fingerprints: Vec<Option<u32>>,
}

/// What is known of a gateway.
#[derive(Default)]
struct Gateway {
    config: Option<Config>,
    by_id: BTreeMap<RequestId, u32>,
    by_attempt: BTreeMap<AttemptId, u32>,
    live: BTreeSet<u32>,
    /// The most attempts any of its configurations allowed.
    attempts_max: u32,
    /// Retries that may have been paid for, in hundredths, and those that were made.
    budget: u128,
    retries: u64,
    /// Second attempts beside a silent one that may be made, in hundredths.
    hedges: u64,
    last_now: Option<Instant>,
    /// Charged requests by tenant and idempotency key.
    charged_keys: BTreeMap<(u64, u128), u32>,
    /// It comes back under another logic version: soft state is gone.
    upgraded: bool,
}

impl Requests {
    pub fn new(plan: &Plan) -> Self {
        let gateways = &plan.topology.gateways;
        Self {
            all: Vec::new(),
            gateways: gateways.iter().map(|_| Gateway::default()).collect(),
            figures: Figures::default(),
            fresh: tenant_account(plan.topology.tenants),
            core: gateways.iter().map(|gateway| gateway.core).collect(),
            sync_always: plan.topology.disk.sync_every_ms == 0,
            within: quiet::within(plan),
            waits_at: match plan.topology.shared {
                true => plan.topology.replicas.iter().map(|r| u64::from(r.rate)).max().unwrap_or(0),
                false => 0,
            },
            fingerprints: plan.topology.replicas.iter().map(|one| one.fingerprint).collect(),
            counted: 0,
            lost: Vec::new(),
        }
    }

    /// The request of a caller, if it was admitted.
    pub fn of(&self, caller: CallerToken) -> Option<&Request> {
        self.all.get(caller.0 as usize)?.as_deref()
    }

    /// The request an attempt belongs to.
    pub fn by_attempt(&self, gateway: u32, attempt: AttemptId) -> Option<&Request> {
        let call = *self.gateways[gateway as usize].by_attempt.get(&attempt)?;
        self.all[call as usize].as_deref()
    }

    /// The configuration of a gateway.
    pub fn config(&self, gateway: u32) -> &Config {
        self.gateways[gateway as usize].config.as_ref().expect("a gateway is born configured")
    }

    /// Requests that were taken.
    pub fn count(&self) -> u64 {
        self.counted
    }

    pub fn figures(&self) -> Figures {
        self.figures.clone()
    }

    /// A gateway has a configuration, by whatever way.
    pub fn configured(&mut self, gateway: u32, config: &Config) {
        let own = &mut self.gateways[gateway as usize];
        if own.config.is_none() {
            own.budget = u128::from(config.attempt.budget_burst) * 100;
            own.hedges = 100;
        }
        own.attempts_max = own.attempts_max.max(config.attempt.attempts_max);
        own.config = Some(config.clone());
    }

    /// What is about to be answered by effects.
    pub fn input(&mut self, step: &Step<'_>) {
        self.earn(step);
        match &step.input {
            Input::Configured(config) => self.configured(step.gateway, config),
            Input::FirstToken { attempt } => {
                if let Some((request, running)) = self.running(step.gateway, *attempt) {
                    let number = running.number;
                    request.answers(running);
                    if request.committed.is_none() {
                        request.committed = Some(step.position);
                        request.marks.push((step.position, number, 0));
                    }
                    let waited = step.now.since(request.arrived);
                    self.figures.first_token(waited);
                }
            }
            Input::Progress { attempt, produced } => {
                self.note(step, *attempt, produced.0);
            }
            Input::AttemptEnded { attempt, end } => self.attempt_ended(step, *attempt, end),
            Input::Restarted { .. } => self.restarted(step),
            Input::WallTime(_)
            | Input::Membership { .. }
            | Input::SourceLost { .. }
            | Input::Drain { .. }
            | Input::LoadReported { .. }
            | Input::RequestArrived(_)
            | Input::StoreAnswered(_)
            | Input::StoreFailed { .. }
            | Input::Consulted(_)
            | Input::ConsultFailed { .. }
            | Input::Housed(_)
            | Input::LedgerAsked { .. }
            | Input::AttemptAccepted { .. }
            | Input::ClientGone { .. }
            | Input::Timeout => {}
        }
    }

    /// Progress, or a last count.
    fn note(&mut self, step: &Step<'_>, attempt: AttemptId, produced: u64) {
        if let Some((request, running)) = self.running(step.gateway, attempt) {
            let number = running.number;
            request.marks.push((step.position, number, produced));
        }
    }

    fn attempt_ended(&mut self, step: &Step<'_>, attempt: AttemptId, end: &AttemptEnd) {
        match end {
            AttemptEnd::Failed { produced, .. } | AttemptEnd::Cancelled { produced } => {
                self.note(step, attempt, produced.0);
            }
            AttemptEnd::Completed { .. } => {}
        }
        if let Some((request, running)) = self.running(step.gateway, attempt) {
            if decides(end) {
                request.answers(running);
            }
            // While another runs, nothing has ended yet.
            if request.ended(attempt) {
                request.last_end = Some(end.clone());
            }
        }
    }

    /// The request whose attempt this is, if that still runs.
    fn running(
        &mut self,
        gateway: u32,
        attempt: AttemptId,
    ) -> Option<(&mut Request, super::request::Running)> {
        let call = *self.gateways[gateway as usize].by_attempt.get(&attempt)?;
        let request = self.all[call as usize].as_deref_mut()?;
        let running = request.under_way().find(|running| running.attempt == attempt)?;
        (request.end.is_none()).then_some((request, running))
    }

    /// The store is asked for something.
    pub fn asked(&mut self, step: &Step<'_>, op: &StoreOp) {
        let Ask::Reserve(draw) = &op.ask else { return };
        let id = RequestId(draw.hold.id.0);
        let call = self.gateways[step.gateway as usize].by_id.get(&id).copied();
        if let Some(Some(request)) = call.and_then(|call| self.all.get_mut(call as usize)) {
            request.asked |= !draw.hold.allotment;
        }
    }

    /// The retry budget grows with time and with requests.
    fn earn(&mut self, step: &Step<'_>) {
        let own = &mut self.gateways[step.gateway as usize];
        let Some(config) = &own.config else { return };
        let gone = own.last_now.map_or(0, |last| step.now.since(last).as_nanos());
        let floor = u128::from(config.attempt.budget_floor_per_second);
        own.budget += gone * floor * 100 / 1_000_000_000 + u128::from(gone > 0 && floor > 0);
        own.last_now = Some(step.now);
    }

    /// Whether a retry costs: one whose failure had reached nobody does not.
    fn costs(end: Option<&AttemptEnd>) -> bool {
        match end {
            Some(AttemptEnd::Failed { failure, .. }) => *failure != Failure::Connect,
            Some(AttemptEnd::Completed { .. } | AttemptEnd::Cancelled { .. }) | None => true,
        }
    }

    /// A fact about a request's reservation.
    pub fn entry(&mut self, step: &Step<'_>, entry: &Entry, verdict: &mut Verdict) {
        let of = |hold: &HoldId| (!hold.allotment).then_some(RequestId(hold.id.0));
        let (hold, grant, terminal) = match &entry.fact {
            Fact::Reserve { hold, amount, .. } | Fact::Extend { hold, amount, .. } => {
                (of(hold), Some(pair(*amount)), None)
            }
            Fact::Settle { hold, actual, .. } | Fact::Late { hold, actual, .. } => {
                (of(hold), None, Some(pair(*actual)))
            }
            Fact::Refund { hold } => (of(hold), None, Some([0, 0])),
            Fact::Expire { hold } => {
                if let Some(id) = of(hold) {
                    self.expired(step, id);
                }
                return;
            }
            Fact::Limits { .. }
            | Fact::Forgive { .. }
            | Fact::Close { .. }
            | Fact::Retire { .. }
            | Fact::Acknowledged { .. } => return,
        };
        let Some(id) = hold else { return };
        let Some(call) = self.gateways[step.gateway as usize].by_id.get(&id).copied() else {
            return;
        };
        let Some(request) = self.all[call as usize].as_deref_mut() else { return };
        if let Fact::Reserve { pins, .. } = &entry.fact {
            let mut payers: Vec<_> = pins.iter().map(|pin| pin.account).collect();
            payers.dedup();
            if payers != request.accounts {
                let text = format!("{id:?} is paid by {payers:?}, not by {:?}", request.accounts);
                verdict.fail(Invariant::Fairness, step.at, text);
            }
        }
        if let Some(amount) = grant {
            request.granted = plus(request.granted, amount);
            request.grants.push((step.position, amount));
        }
        let Some(charged) = terminal else { return };
        if let Some((_, before)) = request.terminal
            && (before != [0, 0] || charged != [0, 0])
        {
            let text = format!("{id:?} was charged {before:?}, and then {charged:?} again");
            verdict.fail(Invariant::Algebra, step.at, text);
        }
        request.terminal = Some((step.position, charged));
    }

    /// A reservation's time was over: nothing is held any more, and what is used is charged late.
    fn expired(&mut self, step: &Step<'_>, id: RequestId) {
        let call = self.gateways[step.gateway as usize].by_id.get(&id).copied();
        if let Some(Some(request)) = call.and_then(|call| self.all.get_mut(call as usize)) {
            request.expired = Some(step.position);
        }
    }

    /// Between two steps the plane knows of exactly the requests that are not over. Returns what a new life has settled.
    pub fn after(&mut self, step: &Step<'_>, verdict: &mut Verdict) -> Vec<u32> {
        let lost = self.settle_lost(step, verdict);
        self.obeys(step, verdict);
        let own = &mut self.gateways[step.gateway as usize];
        let (known, live) = (step.plane.requests(), own.live.len());
        if known != live {
            let text = format!(
                "gateway-{} holds {known} requests, and {live} have no outcome yet",
                step.gateway
            );
            verdict.fail(Invariant::Outcome, step.at, text);
        }
        let bound = own.config.as_ref().map_or(u32::MAX, |config| config.requests_max) as usize;
        if known > bound {
            let text = format!("gateway-{} holds {known} requests of {bound}", step.gateway);
            verdict.fail(Invariant::Bounds, step.at, text);
        }
        lost
    }

    /// What some inputs must lead to, within the step.
    fn obeys(&self, step: &Step<'_>, verdict: &mut Verdict) {
        match &step.input {
            Input::ClientGone { caller } => {
                let live = self.of(*caller).filter(|request| request.end.is_none());
                if let Some(request) = live.filter(|request| request.gateway == step.gateway) {
                    let text = format!("{:?} goes on, and its client has gone", request.id);
                    verdict.fail(Invariant::Deadlines, step.at, text);
                }
            }
            Input::FirstToken { attempt } | Input::AttemptEnded { attempt, .. } => {
                let request = self.by_attempt(step.gateway, *attempt);
                if let Some(lost) = request.and_then(|request| request.lost) {
                    let text =
                        format!("{attempt:?} answers, and {:?} is not told to stop", lost.attempt);
                    verdict.fail(Invariant::Deadlines, step.at, text);
                }
            }
            Input::RequestArrived(arrival)
                if arrival.session.is_some_and(|own| own.is_stored()) =>
            {
                let Some(request) = self.of(arrival.caller) else { return };
                let turns = self.turns(step.gateway, request);
                let waiting = self.config(step.gateway).session.waiting_max as usize;
                if turns > waiting + 1 {
                    let text = format!("{turns} turns of one session, and {waiting} may wait");
                    verdict.fail(Invariant::Bounds, step.at, text);
                }
            }
            Input::Restarted { .. }
            | Input::WallTime(_)
            | Input::Configured(_)
            | Input::Membership { .. }
            | Input::SourceLost { .. }
            | Input::Drain { .. }
            | Input::LoadReported { .. }
            | Input::RequestArrived(_)
            | Input::StoreAnswered(_)
            | Input::StoreFailed { .. }
            | Input::Consulted(_)
            | Input::ConsultFailed { .. }
            | Input::Housed(_)
            | Input::LedgerAsked { .. }
            | Input::AttemptAccepted { .. }
            | Input::Progress { .. }
            | Input::Timeout => {}
        }
    }

    /// The request of a call.
    pub fn of_call(&self, call: u32) -> Option<&Request> {
        self.all.get(call as usize)?.as_deref()
    }

    /// All of an answer reached the gateway.
    pub fn delivered(&mut self, call: u32, tokens: u64) {
        if let Some(Some(request)) = self.all.get_mut(call as usize) {
            request.delivered = Some(tokens);
        }
    }

    /// A client heard of the end.
    pub fn acknowledged(&mut self, call: u32, good: bool, at: u64, verdict: &mut Verdict) {
        let Some(Some(request)) = self.all.get_mut(call as usize) else { return };
        request.acknowledged = true;
        let _ = good;
        if request.end.is_none() {
            let text = format!("{:?} is told as over to its client, and is not", request.id);
            verdict.fail(Invariant::Outcome, at, text);
        }
    }

    /// A replica works for an attempt: somebody must want it.
    pub fn upstream_lives(&self, call: u32, attempt: AttemptId, at: u64, verdict: &mut Verdict) {
        let Some(Some(request)) = self.all.get(call as usize) else { return };
        if let Some(end) = request.end.filter(|end| at > end.at + LINGERS_MAX) {
            let late = (at - end.at) / 1_000_000;
            let text = format!(
                "{attempt:?} of {:?} goes on {late} ms after its request was over",
                request.id
            );
            verdict.fail(Invariant::Deadlines, at, text);
        }
    }

    /// Time passes at a gateway that is awake.
    pub fn look(&mut self, gateway: u32, shows: Instant, at: u64, verdict: &mut Verdict) {
        let own = &self.gateways[gateway as usize];
        for call in &own.live {
            let Some(request) = self.all[*call as usize].as_deref() else { continue };
            if shows > request.deadline + OVERTIME_MAX {
                let text = format!("{:?} still runs long after its deadline", request.id);
                verdict.fail(Invariant::Deadlines, at, text);
                return;
            }
        }
    }
}

/// Whether an end leaves nothing to be hoped for from another attempt.
fn decides(end: &AttemptEnd) -> bool {
    match end {
        AttemptEnd::Completed { .. } => true,
        AttemptEnd::Failed { failure, .. } => matches!(
            failure,
            Failure::ClientError(_) | Failure::TooLarge | Failure::Timeout(Stage::Deadline)
        ),
        AttemptEnd::Cancelled { .. } => false,
    }
}

/// A cancelled stream may go on for as long as the shell takes to hear of it.
const LINGERS_MAX: u64 = 1_000_000_000;

/// Hedges that can be saved up, in hundredths: ten.
const HEDGES_MAX: u64 = 1_000;

/// The plane's watchdog comes five seconds after the deadline, and awaits a last count for one more. A gateway that was
/// paused has a moment to catch up.
const OVERTIME_MAX: std::time::Duration = std::time::Duration::from_millis(7_500);
