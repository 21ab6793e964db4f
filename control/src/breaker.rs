//! Whether to ask an endpoint at all.
//!
//! A replica that is down, hangs, or breaks its streams still looks attractive to whoever balances by load: it is
//! idle *because* it fails. So every endpoint has a breaker, in the standard sense of closed (traffic flows), open
//! (refused until a deadline) and half-open (a few probes decide).
//!
//! | state     | success             | failure          | neutral, full | fault     | timer            | reset  |
//! |-----------|---------------------|------------------|---------------|-----------|------------------|--------|
//! | closed    | counts              | counts, may open | nothing       | open      | a larger share   | closed |
//! | open      | nothing             | nothing          | nothing       | is named  | half-open        | closed |
//! | half-open | a probe's may close | a probe's opens  | frees a slot  | open      | open: probe lost | closed |
//!
//! What is particular here:
//! - Verdicts come at the **end** of an answer. Scoring when the stream opens never sees what breaks in the middle.
//! - Saturation and client errors are neutral in every state. Counting them ejects a whole fleet at its busiest hour;
//!   letting them hold a probe slot leaves a breaker half-open for ever.
//! - Results carry the [`Ticket`] they were begun with. A ticket belongs to one stay in one state: an answer that was
//!   begun before an ejection and ends after it neither prolongs nor lifts it, however late it comes.
//! - Panic mode (too few left, so the balancer asks all) sends traffic to open endpoints too. Its results move
//!   nothing, except that a fault is named: the way back is a probe, or the endpoint would flap with the panic.
//! - Each ejection is longer than the one it follows, whatever the causes: a revoked key keeps an endpoint out for a
//!   minute, and a probe that then meets a refused connection must not bring it back within seconds. Causes differ in
//!   their base, so the doublings are counted anew in the base of the new cause.
//! - A probe is a user's request, so it may stream for minutes: [`Breakers::progress`] renews its deadline. A probe that
//!   falls silent counts as failed, so half-open always ends, once asked.
//! - Ejections are capped per pool, counted before ejecting, but one may always be ejected: a lone dead endpoint
//!   refuses at once instead of costing every caller a timeout. Faults are not capped: asking with a revoked key helps
//!   nobody. An endpoint that fails its probe was counted already, so it goes back without asking for room.
//! - Timers alone move time-driven states, so that what is admitted changes only with a [`Transition`].
//!
//! Rejected: an error-rate score that scales weights continuously. It sends a share of all requests to what is known
//! dead, and nobody can say afterwards why a request went there.

mod config;
mod endpoint;
mod view;
mod window;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::EndpointId;
use crate::outcome::Verdict;
use crate::rng::Rng;
use crate::time::{Instant, saturating_nanos};

pub use config::{Config, EjectionRoom};
pub use view::{Admission, Cause, Phase, StateView, Ticket, Transition};

use endpoint::{Breaker, Step};

/// How many due timers one call works off: enough for a whole rack at once, and still microseconds.
const TIMEOUTS_PER_CALL: usize = 64;

/// The breakers of all endpoints. Bounded by the registry, whose endpoints it mirrors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Breakers {
    config: Config,
    rng: Rng,
    endpoints: BTreeMap<EndpointId, Breaker>,
    /// Exactly one entry for each endpoint that waits for something.
    timers: BTreeSet<(Instant, EndpointId)>,
    /// The last generation given to a state; never reused, so that a ticket fits one stay in one state.
    generations: u64,
}

impl Breakers {
    /// Without endpoints. `rng` jitters ejections.
    #[must_use]
    pub fn new(config: Config, rng: Rng) -> Self {
        Self { config, rng, endpoints: BTreeMap::new(), timers: BTreeSet::new(), generations: 0 }
    }

    /// Changes the policy. Deadlines that were already given stand.
    pub fn set_config(&mut self, config: Config) {
        let cleared = config.window != self.config.window;
        self.config = config;
        let ids: Vec<_> = self.endpoints.keys().copied().collect();
        for id in ids {
            if cleared && let Some(breaker) = self.endpoints.get_mut(&id) {
                breaker.forget_window();
            }
            self.reschedule(id);
        }
    }

    /// A new endpoint, closed. Nothing happens to one that is known.
    pub fn insert(&mut self, id: EndpointId) {
        if !self.endpoints.contains_key(&id) {
            let generation = self.next_generation();
            self.endpoints.insert(id, Breaker::new(generation));
        }
    }

    /// Forgets an endpoint. Tickets it gave out then move nothing.
    pub fn remove(&mut self, id: EndpointId) {
        if let Some(breaker) = self.endpoints.remove(&id)
            && let Some(due) = breaker.due
        {
            self.timers.remove(&(due, id));
        }
    }

    /// Whether `id` may be asked now, and with what share of its weight. Changes only with a [`Transition`], and with
    /// a probe's begin and end.
    #[must_use]
    pub fn admission(&self, now: Instant, id: EndpointId) -> Admission {
        match self.endpoints.get(&id) {
            Some(breaker) => breaker.admission(now, &self.config),
            None => Admission::Refused { until: Instant::FAR_FUTURE, cause: Cause::Unknown },
        }
    }

    /// An attempt is dispatched to `id`. Half-open, it takes a probe slot if one is free. Keep the ticket for
    /// [`record`](Self::record): every ticket must come back once, or a probe's deadline answers for it.
    pub fn begin(&mut self, now: Instant, id: EndpointId) -> Ticket {
        self.begin_until(now, id, now)
    }

    /// As [`begin`](Self::begin), for an attempt that may itself stay silent until `silent_until`: a probe has at least
    /// as long as any other attempt, or what is slow by nature (a long prompt, an answer that comes whole) could never
    /// prove that its endpoint is back.
    pub fn begin_until(&mut self, now: Instant, id: EndpointId, silent_until: Instant) -> Ticket {
        let deadline = (now + self.config.probe_timeout).max(silent_until);
        let Some(breaker) = self.endpoints.get_mut(&id) else { return Ticket::NOBODYS };
        let ticket = breaker.begin(deadline);
        if ticket.probe {
            self.reschedule(id);
        }
        ticket
    }

    /// An attempt shows life (accepted, a token, a progress mark). Renews the deadline of a probe; nothing for others.
    pub fn progress(&mut self, now: Instant, id: EndpointId, ticket: Ticket) {
        self.progress_until(now, id, ticket, now);
    }

    /// As [`progress`](Self::progress), for an attempt that may itself stay silent until `silent_until`.
    pub fn progress_until(
        &mut self,
        now: Instant,
        id: EndpointId,
        ticket: Ticket,
        silent_until: Instant,
    ) {
        let deadline = (now + self.config.probe_timeout).max(silent_until);
        if let Some(breaker) = self.endpoints.get_mut(&id)
            && breaker.renew(ticket, deadline)
        {
            self.reschedule(id);
        }
    }

    /// An attempt ended. `room` is that of the endpoint's pool, counted before: see [`EjectionRoom`].
    ///
    /// Tickets of an earlier state, of an unknown endpoint, or of a probe that was already answered move nothing.
    pub fn record(
        &mut self,
        now: Instant,
        id: EndpointId,
        ticket: Ticket,
        verdict: Verdict,
        room: EjectionRoom,
    ) -> Option<Transition> {
        let breaker = self.endpoints.get_mut(&id)?;
        let step = breaker.judge(now, ticket, verdict, room, &self.config);
        let transition = step.map(|step| self.advance(now, id, step));
        self.reschedule(id);
        transition
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// Works off what is due: ejections that are over, probes that fell silent, steps of slow start. Bounded: a backlog
    /// leaves [`poll_timeout`](Self::poll_timeout) in the past.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Transition> {
        let mut transitions = Vec::new();
        for _ in 0..TIMEOUTS_PER_CALL {
            let Some(&(due, id)) = self.timers.first() else { break };
            if due > now {
                break;
            }
            let step = self.endpoints.get(&id).and_then(|breaker| breaker.due_step(now));
            if let Some(step) = step {
                transitions.push(self.advance(now, id, step));
            }
            self.reschedule(id);
        }
        transitions
    }

    /// An operator says that the endpoint was mended: closed, at full share, its past forgotten.
    pub fn reset(&mut self, now: Instant, id: EndpointId) -> Option<Transition> {
        self.endpoints.get(&id)?;
        let transition = self.advance(now, id, Step::Reset);
        self.reschedule(id);
        Some(transition)
    }

    /// What to show of one endpoint.
    #[must_use]
    pub fn state(&self, id: EndpointId) -> Option<StateView> {
        self.endpoints.get(&id).map(|breaker| breaker.view(&self.config))
    }

    /// What to show of all endpoints, by id.
    pub fn iter(&self) -> impl Iterator<Item = (EndpointId, StateView)> {
        self.endpoints.iter().map(|(id, breaker)| (*id, breaker.view(&self.config)))
    }

    /// Asserts what must always hold.
    pub fn invariants(&self) {
        let mut timers = 0;
        for (id, breaker) in &self.endpoints {
            breaker.invariants();
            assert!(breaker.generation <= self.generations, "{id:?} has a generation nobody gave");
            if let Some(due) = breaker.due {
                timers += 1;
                assert!(self.timers.contains(&(due, *id)), "{id:?} waits for a timer nobody set");
            }
        }
        assert_eq!(timers, self.timers.len(), "a timer is set for nobody");
    }

    fn advance(&mut self, now: Instant, id: EndpointId, step: Step) -> Transition {
        let generation = self.next_generation();
        let breaker = self.endpoints.get_mut(&id).expect("callers looked it up");
        let from = breaker.phase();
        let cause = match step {
            Step::Eject(cause) => {
                let base = self.config.base_of(cause);
                let exponent = breaker.exponent(now, base, &self.config);
                let until = now + ejection(&self.config, &mut self.rng, base, exponent);
                let again = matches!(cause, Cause::ProbeFailed | Cause::ProbeExpired);
                let shorter = planted!(RetripShorter) && again;
                let until = if shorter { now + self.config.ejection_base / 4 } else { until };
                breaker.open(now, generation, until, cause);
                breaker.set_exponent(self.config.next_exponent(base, exponent));
                cause
            }
            Step::HalfOpen if planted!(NeverHalfOpen) => {
                let cause = breaker.view(&self.config).cause.unwrap_or(Cause::Unknown);
                breaker.open(now, generation, now + self.config.ejection_base, cause);
                cause
            }
            Step::HalfOpen => breaker.half_open(now, generation, self.config.probe_slots()),
            Step::Close => breaker.close(now, generation, &self.config),
            Step::MoreShare => breaker.raise_share(now, &self.config),
            Step::Reset => breaker.reset(now, generation),
        };
        let view = breaker.view(&self.config);
        Transition {
            id,
            from,
            to: view.phase,
            share_permille: view.share_permille,
            cause,
            until: view.until,
        }
    }

    fn reschedule(&mut self, id: EndpointId) {
        let Some(breaker) = self.endpoints.get_mut(&id) else { return };
        let due = breaker.next_due(&self.config);
        if due == breaker.due {
            return;
        }
        if let Some(old) = core::mem::replace(&mut breaker.due, due) {
            self.timers.remove(&(old, id));
        }
        if let Some(new) = due {
            self.timers.insert((new, id));
        }
    }

    fn next_generation(&mut self) -> u64 {
        self.generations += 1;
        self.generations
    }
}

/// How long to eject: the base, doubled `exponent` times, capped, then shortened by up to the jitter. Jitter only ever
/// shortens, so that endpoints at the cap spread too.
fn ejection(config: &Config, rng: &mut Rng, base: Duration, exponent: u32) -> Duration {
    let full = config.grown(base, exponent);
    let spread = full / 100 * u64::from(config.ejection_jitter_percent.min(100));
    Duration::from_nanos(full - rng.below(spread.saturating_add(1)))
}

impl Config {
    /// The first ejection for this cause.
    fn base_of(&self, cause: Cause) -> Duration {
        match cause {
            Cause::Fault(_) => self.fault_ejection_base,
            Cause::ConsecutiveFailures { .. }
            | Cause::FailureRate { .. }
            | Cause::ProbeFailed
            | Cause::ProbeExpired
            | Cause::EjectionOver
            | Cause::ProbesSucceeded
            | Cause::SlowStart
            | Cause::Reset
            | Cause::Unknown => self.ejection_base,
        }
    }

    /// `base` doubled `exponent` times, at most `ejection_max`, in nanoseconds.
    fn grown(&self, base: Duration, exponent: u32) -> u64 {
        let factor = 1_u64 << exponent.min(EXPONENT_MAX);
        saturating_nanos(base).saturating_mul(factor).min(saturating_nanos(self.ejection_max))
    }

    /// The fewest doublings from `exponent` on that make an ejection of this base as long as `least` nanoseconds. As
    /// many as there may be, where none suffices.
    fn doublings(&self, base: Duration, exponent: u32, least: u64) -> u32 {
        let mut enough = exponent..EXPONENT_MAX;
        enough.find(|exponent| self.grown(base, *exponent) >= least).unwrap_or(EXPONENT_MAX)
    }

    /// Grows no further than the cap needs, so that a long outage is not held against an endpoint for hours.
    fn next_exponent(&self, base: Duration, exponent: u32) -> u32 {
        let capped = self.grown(base, exponent) >= saturating_nanos(self.ejection_max);
        if capped { exponent } else { (exponent + 1).min(EXPONENT_MAX) }
    }
}

/// No base of a nanosecond or more is below any sensible cap after so many doublings; keeps the shift defined.
const EXPONENT_MAX: u32 = 40;

#[cfg(test)]
mod tests;
