//! Arrival: idempotency, rate, concurrency, turn, reservation.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::ControlPlane;
use super::effect::{Effect, Refusal, Spent};
use super::input::{Arrival, Idempotency, Session};
use super::observation::{Observation, Stale};
use super::request::{Heard, Hedge, Phase, Request, request_of, reservation_of};
use crate::id::{AccountId, RequestId, ReservationId};
use crate::quota::{Denied, DenyReason, Entry, Event, Fact, MAX_AMOUNT, Reserve};
use crate::rate::{RateLimits, Signal};
use crate::session::{Begun, Turn, TurnRefused};
use crate::units::{Amount, MicroUsd, Tokens};

impl ControlPlane {
    pub(super) fn handle_arrival(&mut self, arrival: Box<Arrival>) {
        if self.callers.contains_key(&arrival.caller) {
            // No shell does that. A journal with an altered byte may: it must not bring down who reads it.
            return self.observe(Observation::Stale(Stale::Caller));
        }
        let (caller, request) = (arrival.caller, self.mint());
        self.effects.push_back(Effect::Admitted { caller, request });
        match self.admit(request, &arrival) {
            Ok(rates) => {
                self.retry.deposit(self.now);
                if self.config.hedge_after(&arrival).is_some() {
                    self.retry.deposit_hedge();
                }
                self.enter(request, arrival, rates);
                self.take_turn(request);
            }
            Err(refusal) => {
                self.observe(Observation::Refused { request, refusal: refusal.clone() });
                self.effects.push_back(Effect::Reject { caller, request, refusal });
            }
        }
    }

    /// Everything that can refuse before anything is held. What an earlier check took, a later refusal gives back.
    /// Returns the limits under which it was admitted: its end is told to the same.
    fn admit(&mut self, request: RequestId, arrival: &Arrival) -> Result<Rates, Refusal> {
        if self.requests.len() >= self.config.requests_max as usize {
            return Err(Refusal::Overloaded);
        }
        if !self.registry.serves(&arrival.model) {
            return Err(Refusal::UnknownModel);
        }
        if let Some(idempotency) = &arrival.idempotency {
            self.begin_idempotent(request, arrival, *idempotency)?;
        }
        let admitted = self.admit_rates(arrival);
        if admitted.is_err() {
            self.free_idempotency(request, arrival, false);
        }
        admitted
    }

    fn begin_idempotent(
        &mut self,
        request: RequestId,
        arrival: &Arrival,
        Idempotency { key, body }: Idempotency,
    ) -> Result<(), Refusal> {
        let tenant = arrival.principal.tenant;
        match self.idempotency.begin(self.now, tenant, key, body, request) {
            Begun::New => Ok(()),
            Begun::InFlight { by } => Err(Refusal::IdempotencyInFlight { by: Some(by) }),
            Begun::Done { by } => Err(Refusal::IdempotencyDone { by: Some(by) }),
            Begun::Mismatch { by } => Err(Refusal::IdempotencyMismatch { by: Some(by) }),
            Begun::Full => Err(Refusal::Overloaded),
        }
    }

    pub(super) fn free_idempotency(
        &mut self,
        request: RequestId,
        arrival: &Arrival,
        succeeded: bool,
    ) {
        if let Some(idempotency) = &arrival.idempotency {
            let tenant = arrival.principal.tenant;
            self.idempotency.finish(self.now, tenant, idempotency.key, request, succeeded);
        }
    }

    fn admit_rates(&mut self, arrival: &Arrival) -> Result<Rates, Refusal> {
        let model = &*arrival.model;
        let max = self.config.models.get(model).and_then(|model| model.concurrency_max);
        if max.is_some_and(|max| self.concurrency.in_flight(model) >= max) {
            return Err(Refusal::ModelBusy { retry_after: PLACE_FREES });
        }
        let least = self.no_overload(model);
        let admitted = self.concurrency.admit(self.now, model, least);
        admitted.map_err(|busy| Refusal::ModelBusy { retry_after: busy.retry_after })?;
        let limits = self.rate_limits(arrival);
        let tokens = arrival.prompt + self.first_slice(arrival);
        let Err(refusal) = self.rate.check(self.now, &limits, tokens) else { return Ok(limits) };
        self.concurrency.released(self.now, &arrival.model, Signal::Neutral);
        Err(Refusal::RateLimited {
            account: refusal.account,
            unit: refusal.unit,
            limit: refusal.limit,
            retry_after: refusal.retry_after,
        })
    }

    /// Requests of a model at once that overload nobody: of each replica as many as its probes may hold up, for as long as
    /// a request lasts, and one that is answered.
    fn no_overload(&self, model: &str) -> u32 {
        let replicas = self.registry.pool(model).map_or(0, BTreeSet::len);
        let each = self.config.breaker.probe_slots() + 1;
        u32::try_from(replicas).unwrap_or(u32::MAX).saturating_mul(each)
    }

    fn rate_limits(&self, arrival: &Arrival) -> Rates {
        self.config
            .accounts_of(&arrival.principal)
            .filter_map(|(id, account)| account.map(|account| (id, account.rates)))
            .filter(|(_, rates)| *rates != RateLimits::default())
            .collect()
    }

    /// Completion tokens to hold at first: a slice of a stream, which is extended while it runs, so that a large
    /// maximum locks nothing up; all of an answer that comes at once.
    pub(super) fn first_slice(&self, arrival: &Arrival) -> Tokens {
        let wanted = arrival.output_max.unwrap_or(self.config.output_default);
        let sliced = arrival.stream && !planted!(WholeMaximumHeld);
        if sliced { wanted.min(self.config.quota.slice) } else { wanted }
    }

    fn enter(&mut self, id: RequestId, arrival: Box<Arrival>, rates: Rates) {
        let timeouts = self.config.timeouts_of(&arrival.model);
        let patience = arrival.patience.map_or(timeouts.request, |p| p.min(timeouts.request));
        let deadline = self.now + patience;
        let slice = self.first_slice(&arrival);
        let request = Box::new(Request {
            arrived: self.now,
            deadline,
            price: self.config.price_of(&arrival.model),
            phase: Phase::Reserving,
            hedge: Hedge::default(),
            attempts: 0,
            tried: Vec::new(),
            committed: false,
            fingerprint: None,
            produced: Tokens::ZERO,
            covered: slice,
            extending: None,
            rated: arrival.prompt + slice,
            rates,
            last_failure: None,
            heard: Heard::default(),
            due: deadline,
            arrival,
        });
        self.callers.insert(request.arrival.caller, id);
        self.timers.insert((deadline, id));
        let session = request.arrival.session.map(|session| session.key);
        self.observations_of_arrival(id, &request, session);
        self.requests.insert(id, request);
    }

    fn observations_of_arrival(
        &mut self,
        id: RequestId,
        request: &Request,
        session: Option<crate::id::SessionKey>,
    ) {
        let session = session.map(|key| (key, self.affinity.lookup(self.now, key)));
        let reserving = holdable(request.wanted());
        let deadline = request.deadline;
        self.observe(Observation::Arrived { request: id, session, reserving, deadline });
    }

    fn take_turn(&mut self, id: RequestId) {
        let stored = self.requests[&id].arrival.session.filter(Session::is_stored);
        match stored.map(|session| self.turns.begin_turn(self.now, session.key, id)) {
            None | Some(Turn::Go) => self.reserve(id),
            Some(Turn::Wait { .. }) => self.set_phase(id, Phase::WaitingTurn),
            Some(Turn::Refused(TurnRefused::TooManyWaiting)) => {
                self.refuse(id, Refusal::TurnConflict);
            }
            // Not this session's doing.
            Some(Turn::Refused(TurnRefused::TooManySessions)) => {
                self.refuse(id, Refusal::Overloaded);
            }
        }
    }

    /// Begins the turns that came in this step: as many as wait for one session at most, for each that ends at once
    /// passes its turn on.
    pub(super) fn serve_turns(&mut self) {
        while let Some(id) = self.next_turns.pop_front() {
            // Gone where the same step ended it too; then its end has passed the turn on.
            if self.requests.contains_key(&id) {
                self.reserve(id);
            }
        }
    }

    /// The turn is this request's: ask for its tokens, and in the same step for what is shared beside them.
    fn reserve(&mut self, id: RequestId) {
        self.set_phase(id, Phase::Reserving);
        self.consult(id);
        let request = &self.requests[&id];
        // A client may allow itself a number of tokens that no ledger holds: what can be held is held.
        let amount = holdable(request.wanted());
        let accounts = self
            .config
            .accounts_of(&request.arrival.principal)
            .map(|(id, account)| {
                if planted!(WrongAccount)
                    && account.is_none()
                    && let Some((first, known)) = self.config.accounts.first_key_value()
                {
                    return (*first, known.limits);
                }
                (id, account.map(|a| a.limits).unwrap_or_default())
            })
            .collect();
        let ttl = request.deadline.since(self.now) + self.config.quota.reservation_ttl;
        self.quota.reserve(self.now, Reserve { id: reservation_of(id), accounts, amount, ttl });
        self.drain_quota();
    }

    /// Takes what the ledger has to say, whether it is embedded or far away.
    pub(super) fn drain_quota(&mut self) {
        while let Some(event) = self.quota.poll_event() {
            match event {
                Event::Granted { id, total } => self.handle_granted(id, total),
                Event::Denied { id, denied } => self.handle_denied(id, denied),
                Event::Extended { id, total } => self.handle_extended(id, total),
                Event::ExtendDenied { id, denied } => self.handle_extend_denied(id, &denied),
                Event::Ask(op) => self.effects.push_back(Effect::Reserve(op)),
                Event::Entry(Entry { fact: Fact::Settle { .. }, .. })
                    if planted!(PersistDropped) => {}
                Event::Entry(entry) => {
                    self.effects.push_back(Effect::Persist(super::Durable::Entry(entry)));
                }
                Event::Late => {
                    self.shared.suspect();
                    self.observe(Observation::QuotaLate);
                }
                Event::Degraded => {
                    self.shared.suspect();
                    self.observe(Observation::QuotaDegraded(true));
                }
                Event::Restored => self.observe(Observation::QuotaDegraded(false)),
                Event::Lost { hold, actual } => {
                    self.observe(Observation::ChargeLost { reservation: hold.id, actual });
                }
            }
        }
    }

    fn handle_granted(&mut self, reservation: ReservationId, total: Amount) {
        let id = request_of(reservation);
        if !self.is_reserving(id) {
            // The request ended while the store thought about it: its conclusion has refunded already.
            return self.observe(Observation::Stale(Stale::Reservation(reservation)));
        }
        self.note_covered(id, total);
        self.observe(Observation::Granted { request: id, total });
        let heard = &mut self.requests.get_mut(&id).expect("it is reserving").heard;
        heard.granted = true;
        if !heard.awaits {
            self.pick(id);
        }
    }

    fn is_reserving(&self, id: RequestId) -> bool {
        self.requests.get(&id).is_some_and(|request| matches!(request.phase, Phase::Reserving))
    }

    /// What the reservation holds beyond the prompt covers the completion.
    pub(super) fn note_covered(&mut self, id: RequestId, total: Amount) {
        if let Some(request) = self.requests.get_mut(&id) {
            request.covered = total.tokens.saturating_sub(request.arrival.prompt);
        }
    }

    fn handle_denied(&mut self, reservation: ReservationId, denied: Denied) {
        let id = request_of(reservation);
        if !self.is_reserving(id) {
            return self.observe(Observation::Stale(Stale::Reservation(reservation)));
        }
        let refusal = refusal_of(&denied);
        self.observe(Observation::Denied { request: id, denied });
        self.refuse(id, refusal);
    }

    /// Moves a request to a phase, and its timer with it.
    pub(super) fn set_phase(&mut self, id: RequestId, phase: Phase) {
        let request = self.requests.get_mut(&id).expect("a phase is set on a live request");
        if !matches!(phase, Phase::Attempting(_)) {
            request.hedge.due = None;
        }
        request.phase = phase;
        self.set_due(id);
    }

    /// Moves a request's timer to the instant at which its phase is over.
    pub(super) fn set_due(&mut self, id: RequestId) {
        let request = self.requests.get_mut(&id).expect("a live request has a timer");
        let due = match &request.phase {
            Phase::Backoff { .. } if planted!(TimerLost) => {
                request.deadline + core::time::Duration::from_secs(86_400)
            }
            Phase::Backoff { until } | Phase::Cutting { until, .. } => *until,
            Phase::WaitingTurn | Phase::Reserving => request.deadline,
            // The shell keeps the attempt's own timeouts; this is the watchdog behind it.
            // Before it, a second attempt may be due.
            Phase::Attempting(_) => {
                let watchdog = request.deadline + WATCHDOG_SLACK;
                request.hedge.due.map_or(watchdog, |due| due.min(watchdog))
            }
        };
        if due != request.due {
            self.timers.remove(&(request.due, id));
            self.timers.insert((due, id));
        }
        request.due = due;
    }
}

/// A shell that reports an attempt's end this much after the deadline has lost it: its own timers fire within
/// milliseconds, and five seconds outlast any pause that is not itself an outage.
pub(super) const WATCHDOG_SLACK: core::time::Duration = core::time::Duration::from_secs(5);

/// When a place among a model's requests may be free again: requests take seconds.
const PLACE_FREES: core::time::Duration = core::time::Duration::from_secs(1);

/// The limits a request was admitted under.
type Rates = Vec<(AccountId, RateLimits)>;

/// As much of an amount as one reservation may be.
pub(super) fn holdable(amount: Amount) -> Amount {
    Amount {
        tokens: Tokens(amount.tokens.0.min(MAX_AMOUNT)),
        money: MicroUsd(amount.money.0.min(MAX_AMOUNT)),
    }
}

/// A denial in the words of a refusal.
pub(super) fn refusal_of(denied: &Denied) -> Refusal {
    match spent_of(denied) {
        Some(spent) => Refusal::QuotaSpent(spent),
        None => Refusal::QuotaUnavailable { retry_after: denied.retry_after },
    }
}

/// The limit that a denial names, if it names one.
pub(super) fn spent_of(denied: &Denied) -> Option<Spent> {
    match denied.reason {
        DenyReason::Spent { account, window, unit, remaining: _ } => {
            Some(Spent { account, window, unit, retry_after: denied.retry_after })
        }
        DenyReason::TooLarge
        | DenyReason::Full
        | DenyReason::Ended
        | DenyReason::StoreUnreachable => None,
    }
}
