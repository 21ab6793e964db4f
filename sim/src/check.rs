//! The judge: what must hold whatever the plan does, looked at after every event.
//!
//! It sees what a client, an operator and an auditor could see (inputs, effects, entries, time) and keeps books of its own
//! on them. It shares no code with the machines: where it says what a request should be charged, it computes that
//! itself, slowly and plainly. **Rejected:** asking the machines' own `invariants()`, which is done too, now and then, and
//! proves only that they agree with themselves.
//!
//! The first thing that does not hold ends the run. What follows from a broken invariant is noise.

mod affinity;
mod balance;
mod book;
mod breakers;
mod ends;
mod ledger;
mod members;
mod owners;
mod request;
mod requests;
mod rows;
mod sharing;

use std::fmt;

use control::Instant;
use control::id::CallerToken;
use control::plane::{ControlPlane, Dispatch, Durable, Effect, Input, Observation};
use control::quota::{Entry, Ledger, StoreAnswer, StoreOp};
use serde::{Deserialize, Serialize};

use crate::plan::Plan;
use crate::world::{SharedAnswer, SharedAsk};
use affinity::Affinity;
use balance::Balance;
use breakers::Breakers;
pub use ends::Figures;
use ledger::Ledgers;
use members::Members;
use request::Request;
use requests::Requests;
use sharing::Sharing;

/// What must hold. The numbers are those of the documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Invariant {
    /// `held + overrun = charged + refunded + expired + outstanding`, `spent = charged + late - forgiven`, and one
    /// terminal entry per reservation.
    Algebra = 1,
    /// `spent + outstanding <= limit + overrun + late + failover loss`.
    Bound = 2,
    /// One outcome per request, one charge per idempotency key.
    Outcome = 3,
    /// Epochs grow, a session has one owner, equal membership gives equal home.
    Affinity = 4,
    /// What is well is admitted again, probes are bounded, what is ejected is left alone.
    Breakers = 5,
    /// No token twice, none missing, no clean end of a broken stream.
    Tokens = 6,
    /// Queues, timers, memory, attempts and retries are bounded; nothing panics.
    Bounds = 7,
    /// Load is spread within its bound; no black hole.
    Balance = 8,
    /// Healed, the core drains, serves, and its books agree.
    Liveness = 9,
    /// What was acknowledged survives.
    Durability = 10,
    /// A restored snapshot has the same future.
    Restore = 11,
    /// Nothing happens after the deadline, nothing goes on after a cancel.
    Deadlines = 12,
    /// No tenant pays or waits for another.
    Fairness = 13,
    /// Over all gateways and while their store answers: one rate, one charge for a key, one home for a session.
    Sharing = 14,
}

/// Something that must hold and does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// What.
    pub invariant: Invariant,
    /// When, in simulated nanoseconds.
    pub at: u64,
    /// How, in words.
    pub text: String,
}

/// One step of one plane.
pub(crate) struct Step<'a> {
    /// True time.
    pub at: u64,
    /// The gateway's own time.
    pub now: Instant,
    pub gateway: u32,
    /// The position of the step's record.
    pub position: u64,
    pub input: Input,
    pub effects: &'a [Effect],
    pub observed: &'a [Observation],
    pub plane: &'a ControlPlane,
}

/// Everything that is judged.
pub(crate) struct Judge {
    verdict: Verdict,
    requests: Requests,
    ledgers: Ledgers,
    members: Members,
    affinity: Affinity,
    breakers: Breakers,
    balance: Balance,
    sharing: Sharing,
    heal_at: u64,
}

/// The first violation, if there is one.
#[derive(Default)]
pub(crate) struct Verdict(Option<Violation>);

impl Verdict {
    pub fn fail(&mut self, invariant: Invariant, at: u64, text: String) {
        if self.0.is_none() {
            self.0 = Some(Violation { invariant, at, text });
        }
    }
}

impl Judge {
    pub fn new(plan: &Plan) -> Self {
        Self {
            verdict: Verdict::default(),
            requests: Requests::new(plan),
            ledgers: Ledgers::new(plan),
            members: Members::new(plan),
            affinity: Affinity::new(plan),
            breakers: Breakers::new(plan),
            balance: Balance,
            sharing: Sharing::new(plan),
            heal_at: plan.heal_at_ms * 1_000_000,
        }
    }

    pub fn is_over(&self) -> bool {
        self.verdict.0.is_some()
    }

    pub fn report(&mut self, invariant: Invariant, at: u64, text: String) {
        self.verdict.fail(invariant, at, text);
    }

    pub fn into_violation(self) -> Option<Violation> {
        self.verdict.0
    }

    /// A gateway's first process.
    pub fn born(&mut self, gateway: u32, plane: &ControlPlane) {
        self.requests.configured(gateway, plane.config());
    }

    /// A plane took a step.
    pub fn step(&mut self, step: &Step<'_>) {
        self.rows(step);
        self.members.input(step, &mut self.verdict);
        self.breakers.input(step, &mut self.members, &self.requests);
        self.requests.input(step);
        for observation in step.observed {
            ends::observed(observation);
            if let Observation::Breaker(moved) = observation {
                let config = self.requests.config(step.gateway);
                self.breakers.moved(step, moved, &self.members, config, &mut self.verdict);
            }
            self.members.observed(step, observation);
        }
        for effect in step.effects {
            ends::performed(effect);
            self.effect(step, effect);
        }
        for call in self.requests.after(step, &mut self.verdict) {
            self.ledgers.charged(step, self.requests.of_call(call), &mut self.verdict);
        }
        let config = self.requests.config(step.gateway);
        self.breakers.after(step, &self.members, config, &mut self.verdict);
        self.ledgers.after(step, &mut self.verdict);
        self.sharing.step(step, &self.requests, &mut self.verdict);
    }

    /// Which rows of the transition tables the input walks through.
    fn rows(&self, step: &Step<'_>) {
        let request = match &step.input {
            Input::AttemptAccepted { attempt }
            | Input::FirstToken { attempt }
            | Input::Progress { attempt, .. }
            | Input::AttemptEnded { attempt, .. } => {
                self.requests.by_attempt(step.gateway, *attempt)
            }
            Input::ClientGone { caller } => self.requests.of(*caller),
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
            | Input::Timeout => None,
        };
        if let Some(request) = request.filter(|request| request.end.is_none()) {
            rows::met(request.phase(), &step.input);
        }
    }

    fn effect(&mut self, step: &Step<'_>, effect: &Effect) {
        let caller = match effect {
            Effect::Dispatch(order) => Some(order.caller),
            Effect::Cancel { caller, .. }
            | Effect::Reject { caller, .. }
            | Effect::Finish { caller, .. } => Some(*caller),
            Effect::Admitted { .. }
            | Effect::Reserve(_)
            | Effect::Consult(_)
            | Effect::Note(_)
            | Effect::LedgerAnswered { .. }
            | Effect::Persist(_) => None,
        };
        if let Some(request) = caller.and_then(|caller| self.requests.of(caller)) {
            rows::moved(request.phase(), step, effect);
        }
        let verdict = &mut self.verdict;
        match effect {
            Effect::Admitted { caller, request } => {
                self.requests.admitted(step, *caller, *request, verdict);
            }
            Effect::Reserve(op) => {
                self.requests.asked(step, op);
                self.ledgers.asked(step, op);
            }
            Effect::LedgerAnswered { .. } => {}
            Effect::Dispatch(order) => self.dispatched(step, order),
            Effect::Cancel { caller, attempt } => {
                let lost = self.requests.of(*caller).and_then(|request| request.lost);
                if lost.is_some_and(|lost| lost.attempt == *attempt) {
                    self.members.ends(step.gateway, *attempt);
                }
                self.requests.cancelled(step, *caller, *attempt, verdict);
            }
            Effect::Persist(Durable::Entry(entry)) => {
                self.requests.entry(step, entry, verdict);
                self.ledgers.noted(step, entry, verdict);
            }
            Effect::Persist(Durable::Binding { session, binding }) => {
                self.affinity.bound(step, *session, *binding, &self.requests, verdict);
            }
            Effect::Persist(Durable::Adopted { session, binding }) => {
                self.affinity.adopted(step, *session, *binding, verdict);
            }
            Effect::Consult(_) | Effect::Note(_) => {}
            Effect::Persist(Durable::Released { session }) => {
                self.affinity.released(step, *session);
            }
            Effect::Reject { caller, request, refusal } => {
                self.stops(step, *caller);
                let verdict = &mut self.verdict;
                self.ledgers.refused(step, refusal, self.requests.of(*caller), verdict);
                self.requests.rejected(step, *caller, *request, refusal, verdict);
            }
            Effect::Finish { caller, request, outcome, charged, attempts } => {
                self.stops(step, *caller);
                let (verdict, end) = (&mut self.verdict, (*outcome, *charged, *attempts));
                self.requests.finished(step, *caller, *request, end, verdict);
                self.ledgers.charged(step, self.requests.of(*caller), verdict);
            }
        }
    }

    /// Attempts that their request's end leaves running run no more for anybody.
    fn stops(&mut self, step: &Step<'_>, caller: CallerToken) {
        for running in self.requests.of(caller).into_iter().flat_map(Request::under_way) {
            self.members.ends(step.gateway, running.attempt);
        }
    }

    fn dispatched(&mut self, step: &Step<'_>, order: &Dispatch) {
        let verdict = &mut self.verdict;
        let picked = step.observed.iter().find_map(|observation| match observation {
            Observation::Picked { attempt, chosen, .. } if *attempt == order.attempt => {
                Some(&**chosen)
            }
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
            | Observation::Breaker(_)
            | Observation::Refused { .. }
            | Observation::Finished { .. }
            | Observation::Lost { .. }
            | Observation::EndpointAdded(_)
            | Observation::EndpointRemoved { .. }
            | Observation::SourceRefused { .. }
            | Observation::Configured { .. }
            | Observation::ChargeLost { .. }
            | Observation::QuotaLate
            | Observation::QuotaDegraded(_)
            | Observation::SharedDegraded(_)
            | Observation::Consulted { .. }
            | Observation::ConsultLost { .. }
            | Observation::Adopted { .. }
            | Observation::Stale(_) => None,
        });
        let config = self.requests.config(step.gateway);
        let panic = picked.is_some_and(|chosen| chosen.panic);
        self.breakers.dispatched(step, order, panic, &self.members, config, verdict);
        if let (Some(chosen), Some(request)) = (picked, self.requests.of(order.caller)) {
            let placed = (order, chosen);
            self.affinity.picked(step, placed, request, &self.members, verdict);
            self.balance.dispatched(step, placed, request, &mut self.members, config, verdict);
        }
        self.members.begins(step.gateway, order.attempt, order.endpoint, panic);
        self.requests.dispatched(step, order, verdict);
    }

    /// The store performed an ask, or expired what was due.
    pub fn stored(
        &mut self,
        at: u64,
        asked: Option<(&StoreOp, &StoreAnswer)>,
        made: &[Entry],
        ledger: &Ledger,
    ) {
        self.ledgers.stored(at, asked, made, ledger, &mut self.verdict);
    }

    /// The store forgot entries it had acknowledged.
    pub fn failed_over(&mut self, at: u64, lost: &[Entry], kept: &[Entry], ledger: &Ledger) {
        self.ledgers.failed_over(at, lost, kept, ledger, &mut self.verdict);
    }

    /// The store performed what gateways share beside the ledger.
    pub fn shared(&mut self, at: u64, gateway: u32, ask: &SharedAsk, answer: &SharedAnswer) {
        self.sharing.stored(at, gateway, ask, answer, &mut self.verdict);
    }

    /// The store forgot some of it.
    pub fn shared_failed_over(&mut self) {
        self.sharing.failed_over();
    }

    /// A gateway's process died; records from `next` on are gone.
    pub fn died(&mut self, gateway: u32, next: u64, power: bool, at: u64) {
        self.requests.died(gateway, next, power, at, &mut self.verdict);
        self.ledgers.died(gateway, next);
        self.affinity.died(gateway, next);
        self.members.died(gateway);
        self.sharing.died(gateway);
    }

    /// It was brought back to where its journal ends.
    pub fn recovered(&mut self, gateway: u32, plane: &ControlPlane, upgrade: bool, at: u64) {
        self.requests.configured(gateway, plane.config());
        self.requests.recovered(gateway, upgrade);
        self.members.recovered(gateway, plane);
        self.ledgers.recovered(gateway, plane, at, &mut self.verdict);
        self.affinity.recovered(gateway, plane, at, &mut self.verdict);
    }

    /// A client has its answer, or its refusal.
    pub fn acknowledged(&mut self, call: u32, good: bool, at: u64) {
        self.requests.acknowledged(call, good, at, &mut self.verdict);
    }

    /// All of an answer is at the gateway.
    pub fn delivered(&mut self, call: u32, tokens: u64) {
        self.requests.delivered(call, tokens);
    }

    /// A replica has more for an attempt whose shell still reads.
    pub fn upstream_lives(&mut self, call: u32, attempt: control::id::AttemptId, at: u64) {
        self.requests.upstream_lives(call, attempt, at, &mut self.verdict);
    }

    /// Which replicas are truly well, and since when.
    pub fn health(&mut self, gateway: u32, replica: u32, well_since: Option<u64>, at: u64) {
        self.breakers.health(gateway, replica, well_since, at);
    }

    /// Everything that time alone may break, at one gateway that is awake.
    pub fn look_at(&mut self, gateway: u32, plane: &ControlPlane, shows: Instant, at: u64) {
        let verdict = &mut self.verdict;
        self.requests.look(gateway, shows, at, verdict);
        let config = self.requests.config(gateway);
        self.breakers.look(gateway, plane, (shows, at), &self.members, config, verdict);
        self.balance.look(gateway, plane, at, &self.members, verdict);
    }

    /// A timer is served and stays due.
    pub fn timer_spins(&mut self, gateway: u32, at: u64) {
        let text = format!("gateway-{gateway}: a timer is served and stays due");
        self.verdict.fail(Invariant::Bounds, at, text);
    }

    /// Something grows without bound.
    pub fn too_much(&mut self, at: u64, what: &str) {
        self.verdict.fail(Invariant::Bounds, at, format!("there are too many {what}"));
    }

    /// The end: all must be quiet, served, and accounted for.
    pub fn finish(&mut self, planes: &[Option<&ControlPlane>], store: &Ledger, at: u64) {
        self.requests.finish(planes, self.heal_at, at, &mut self.verdict);
        self.ledgers.finish(planes, store, at, &mut self.verdict);
    }

    pub fn requests(&self) -> u64 {
        self.requests.count()
    }

    pub fn figures(&self) -> Figures {
        self.requests.figures()
    }
}

impl Invariant {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Algebra,
        Self::Bound,
        Self::Outcome,
        Self::Affinity,
        Self::Breakers,
        Self::Tokens,
        Self::Bounds,
        Self::Balance,
        Self::Liveness,
        Self::Durability,
        Self::Restore,
        Self::Deadlines,
        Self::Fairness,
        Self::Sharing,
    ];

    /// Its number in the documentation.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The invariant with this number.
    #[must_use]
    pub fn numbered(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|invariant| invariant.number() == number)
    }

    /// A short name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Algebra => "ledger algebra",
            Self::Bound => "quota bound",
            Self::Outcome => "one outcome",
            Self::Affinity => "affinity",
            Self::Breakers => "breakers",
            Self::Tokens => "tokens",
            Self::Bounds => "bounds",
            Self::Balance => "balance",
            Self::Liveness => "liveness",
            Self::Durability => "durability",
            Self::Restore => "restore",
            Self::Deadlines => "deadlines",
            Self::Fairness => "fairness",
            Self::Sharing => "sharing",
        }
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.number(), self.name())
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.at as f64 / 1e9;
        write!(f, "invariant {} broke at {seconds:.6} s: {}", self.invariant, self.text)
    }
}
