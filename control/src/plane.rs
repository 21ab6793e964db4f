//! The composed machine: every room of [`control`](crate) behind one [`Machine`].
//!
//! A request walks through the rooms in one order: idempotency, rate, turn, reservation, pick, attempt; and it leaves
//! through one door, [`conclude`](ControlPlane::conclude), which settles or refunds, gives back the turn, frees or keeps
//! the idempotency key and forgets the request, in that step. No terminal path can skip one of these, because there is
//! only the one.
//!
//! The alternative, each room a machine of its own joined by messages, was rejected: a pick would then span several
//! steps, and between two of them the world could change.

mod arrive;
mod config;
mod effect;
mod end;
mod extend;
mod hedge;
mod input;
mod keyed;
mod ledger;
mod membership;
mod observation;
mod pick;
mod progress;
mod request;
mod restart;
mod sharing;
mod throttle;
mod view;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

pub use config::{AccountConfig, Config, ModelConfig};
pub use effect::{Dispatch, Durable, Effect, Outcome, Refusal, Spent};
pub use input::{Arrival, Idempotency, Input, Session, SessionKind};
pub(crate) use keyed::Keyed;
pub use observation::{OBSERVATIONS_MAX, Observation, Race, Stale};
pub use request::{ATTEMPTS_MAX, request_of_attempt};
pub use view::{EndpointView, View};

use crate::affinity::Affinity;
use crate::attempt::Retry;
use crate::balance::Balancer;
use crate::breaker::Breakers;
use crate::id::{CallerToken, Minted, RequestId};
use crate::machine::Machine;
use crate::quota::Quota;
use crate::rate::{Concurrency, Rate};
use crate::registry::Registry;
use crate::rng::Rng;
use crate::session::{Idempotency as IdempotencyRoom, Turns};
use crate::shared::Asks;
use crate::time::{Instant, Wall};
use request::Request;
use throttle::Throttle;

/// Why the plane wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TimerName {
    /// A request's backoff, watchdog or last count is due.
    Request,
    /// A breaker moves, or a slow start takes a step.
    Breaker,
    /// A reservation or an unanswered store operation expires.
    Quota,
    /// A turn waited too long.
    Turn,
    /// Idempotency keys expire.
    Idempotency,
    /// Sessions' homes expire.
    Affinity,
    /// A consultation was waited for long enough, or is forgotten.
    Shared,
}

/// Everything that is decided, in one value: serializable, deterministic, without I/O.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ControlPlane {
    now: Instant,
    wall: Wall,
    incarnation: u32,
    minted: u64,
    steps: u64,
    config: Config,
    registry: Registry,
    balance: Balancer,
    affinity: Affinity,
    breakers: Breakers,
    retry: Retry,
    quota: Quota,
    rate: Rate,
    concurrency: Concurrency,
    throttle: Throttle,
    turns: Turns,
    idempotency: IdempotencyRoom,
    shared: Asks,
    /// Boxed: a map moves its values about as it grows and shrinks.
    requests: BTreeMap<RequestId, Box<Request>>,
    callers: BTreeMap<CallerToken, RequestId>,
    /// Each request stands here once, under its `due`.
    timers: BTreeSet<(Instant, RequestId)>,
    /// Whose turn has come in this step. A queue, because turns that end at once pass on the turn: called directly, a
    /// line of turns would be as deep a recursion. Empty between steps.
    next_turns: VecDeque<RequestId>,
    effects: VecDeque<Effect>,
    #[serde(skip)]
    observations: VecDeque<Observation>,
}

impl ControlPlane {
    /// A plane with an empty registry and the default configuration. `seed` is all the chance it will ever have.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with_config(seed, Config::default())
    }

    /// A plane with an empty registry. Where the ledger is, and who we are there, is decided here for its whole life.
    #[must_use]
    pub fn with_config(seed: u64, config: Config) -> Self {
        let (rng, config) = (Rng::new(seed), config.within_bounds());
        Self {
            now: Instant::ZERO,
            wall: Wall::default(),
            incarnation: 0,
            minted: 0,
            steps: 0,
            registry: Registry::new(config.registry.clone()),
            balance: Balancer::new(config.balance.clone(), rng.fork("balance")),
            affinity: Affinity::new(config.affinity.clone()),
            breakers: Breakers::new(config.breaker.clone(), rng.fork("breaker")),
            retry: Retry::new(config.attempt.clone(), rng.fork("attempt")),
            quota: Quota::new(config.quota.clone()),
            rate: Rate::new(config.rate.clone()),
            concurrency: Concurrency::new(config.concurrency.clone()),
            throttle: Throttle::default(),
            turns: Turns::new(config.session.clone()),
            idempotency: IdempotencyRoom::new(config.session.clone()),
            shared: Asks::default(),
            config,
            requests: BTreeMap::new(),
            callers: BTreeMap::new(),
            timers: BTreeSet::new(),
            next_turns: VecDeque::new(),
            effects: VecDeque::new(),
            observations: VecDeque::new(),
        }
    }

    /// The next thing noticed. For metrics, logs and `explain`; a shell may leave them, up to [`OBSERVATIONS_MAX`].
    pub fn poll_observation(&mut self) -> Option<Observation> {
        self.observations.pop_front()
    }

    fn observe(&mut self, observation: Observation) {
        if self.observations.len() == OBSERVATIONS_MAX {
            self.observations.pop_front();
        }
        self.observations.push_back(observation);
    }

    fn mint(&mut self) -> RequestId {
        self.minted += 1;
        RequestId(Minted { incarnation: self.incarnation, counter: self.minted })
    }

    fn set_wall(&mut self, wall: Wall) {
        self.wall = wall;
        self.quota.wall(self.now, wall);
    }

    fn step(&mut self, input: Input) {
        match input {
            Input::Restarted { incarnation, wall } => self.handle_restarted(incarnation, wall),
            Input::WallTime(wall) => self.set_wall(wall),
            Input::Configured(config) => self.handle_configured(*config),
            Input::Membership { source, kind, version, endpoints } => {
                self.handle_membership(source, kind, version, endpoints);
            }
            Input::SourceLost { source } => self.registry.source_lost(self.now, &source),
            Input::Drain { endpoint, on } => self.handle_drain(&endpoint, on),
            Input::RequestArrived(arrival) => self.handle_arrival(arrival),
            Input::StoreAnswered(answer) => self.quota.answer(self.now, answer),
            Input::StoreFailed { op } => self.quota.ask_failed(self.now, op),
            Input::Consulted(answer) => self.handle_consulted(*answer),
            Input::ConsultFailed { op } => self.handle_consult_failed(op),
            Input::Housed(housed) => self.handle_housed(*housed),
            Input::LedgerAsked { caller, op } => self.handle_ledger_asked(caller, &op),
            Input::AttemptAccepted { attempt } => self.handle_accepted(attempt),
            Input::FirstToken { attempt } => self.handle_first_token(attempt),
            Input::Progress { attempt, produced } => self.handle_progress(attempt, produced),
            Input::AttemptEnded { attempt, end } => self.handle_ended(attempt, end),
            Input::ClientGone { caller } => self.handle_client_gone(caller),
            Input::LoadReported { endpoint, load } => self.handle_load(endpoint, load),
            Input::Timeout => self.handle_timeout(),
        }
        self.drain_quota();
        self.serve_turns();
    }
}

impl Machine for ControlPlane {
    type Input = Input;
    type Effect = Effect;
    type TimerName = TimerName;

    fn handle(&mut self, now: Instant, input: Input) {
        // A shell's clock that steps back does not take the plane with it.
        self.now = self.now.max(now);
        self.steps += 1;
        self.balance.age(self.now);
        self.step(input);
        #[cfg(any(test, debug_assertions))]
        self.check();
    }

    fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn poll_timeout(&self) -> Option<(Instant, TimerName)> {
        [
            (self.timers.first().map(|(due, _)| *due), TimerName::Request),
            (self.breakers.poll_timeout(), TimerName::Breaker),
            (self.quota.poll_timeout(), TimerName::Quota),
            (self.turns.poll_timeout(), TimerName::Turn),
            (self.idempotency.poll_timeout(), TimerName::Idempotency),
            (self.affinity.poll_timeout(), TimerName::Affinity),
            (self.shared.poll_timeout(), TimerName::Shared),
        ]
        .into_iter()
        .filter_map(|(due, name)| due.map(|due| (due, name)))
        .min()
    }
}

/// Every so many steps a debug build checks the whole plane; between them only what is cheap. A prime, so that the full
/// check does not fall on the same phase of a periodic load every time.
#[cfg(any(test, debug_assertions))]
const FULL_CHECK_EVERY: u64 = 251;

impl ControlPlane {
    #[cfg(any(test, debug_assertions))]
    fn check(&self) {
        assert_eq!(self.timers.len(), self.requests.len(), "each request has one timer");
        assert_eq!(self.callers.len(), self.requests.len(), "each request has one caller");
        if self.steps.is_multiple_of(FULL_CHECK_EVERY) {
            self.invariants();
        }
    }

    /// Asserts what must hold between any two steps.
    ///
    /// # Panics
    /// Where it does not.
    pub fn invariants(&self) {
        self.registry.invariants();
        self.balance.invariants();
        self.affinity.invariants();
        self.breakers.invariants();
        self.retry.invariants();
        self.quota.invariants();
        self.rate.invariants();
        self.concurrency.invariants();
        self.turns.invariants();
        self.idempotency.invariants();
        assert!(self.next_turns.is_empty(), "a turn that has come is served in its step");
        assert!(self.throttle.len() <= self.registry.iter().count(), "only members are throttled");
        self.who_waits_was_asked_about();
        self.in_flight_is_what_runs();
        for (id, request) in &self.requests {
            assert!(self.timers.contains(&(request.due, *id)), "{id} stands under its due time");
            assert!(request.attempts <= ATTEMPTS_MAX, "{id} has an id for each attempt");
            let spared = request.attempts as usize - request.tried.len();
            assert!(spared <= usize::from(request.hedge.made), "{id} tried somebody each time");
            let caller = self.callers.get(&request.arrival.caller);
            assert_eq!(caller, Some(id), "{id} is found by its caller");
            request.invariants(*id);
        }
    }

    /// Attempts on endpoints that were removed run on, and are counted nowhere.
    fn in_flight_is_what_runs(&self) {
        let mut running = BTreeMap::new();
        for attempt in self.requests.values().flat_map(|request| request.running()) {
            *running.entry(attempt.endpoint).or_insert(0) += 1;
        }
        for endpoint in self.registry.iter() {
            let runs = running.get(&endpoint.id).copied().unwrap_or(0);
            let name = &endpoint.spec.name;
            assert_eq!(self.balance.in_flight(endpoint.id), runs, "in flight on {name}");
            assert!(self.breakers.state(endpoint.id).is_some(), "{name} has a breaker");
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
