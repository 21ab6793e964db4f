//! One request, from arrival to its one outcome.
//!
//! Some phases have other names below: *begun* is an attempt whose first token has gone to the client, and *waiting* is
//! for the turn of a stored session. A request that is *reserving* waits for the ledger alone, one that is *consulting* has
//! its reservation and waits for what gateways share, one that is *asking* waits for both; it is *let through* or *turned
//! away* there, or *unanswered*, in time or by a wait that is over. What ends a request ends it in the same step, as *refused* (nothing of an answer
//! was sent, all is refunded) or as one of the outcomes. A dash is an event that cannot reach the phase, or is stale.
//!
//! | phase      | turn comes | granted    | denied  | let through | turned away | unanswered | accepted   | first token | limit met | completed | failed     | failed for good | cancelled | client gone | timer | hedge due |
//! |------------|------------|------------|---------|-------------|-------------|------------|------------|-------------|-----------|-----------|------------|-----------------|-----------|-------------|-------|-----------|
//! | waiting    | asking     | -          | -       | -           | -           | -          | -          | -           | -         | -         | -          | -               | -         | refused     | refused | -         |
//! | asking     | -          | consulting | refused | reserving   | refused     | reserving  | -          | -           | -         | -         | -          | -               | -         | refused     | refused | -         |
//! | reserving  | -          | attempting | refused | -           | -           | -          | -          | -           | -         | -         | -          | -               | -         | refused     | refused | -         |
//! | consulting | -          | -          | -       | attempting  | refused     | attempting | -          | -           | -         | -         | -          | -               | -         | refused     | refused | -         |
//! | attempting | -          | -          | -       | -           | -           | -          | attempting | begun       | -         | completed | backoff    | refused         | refused   | refused     | refused | hedged    |
//! | hedged     | -          | -          | -       | -           | -           | -          | hedged     | begun       | -         | completed | attempting | refused         | attempting | refused     | refused | -         |
//! | begun      | -          | -          | -       | -           | -           | -          | begun      | begun       | cutting   | completed | broken     | broken          | cancelled | cancelled   | broken | -         |
//! | backoff    | -          | -          | -       | -           | -           | -          | -          | -           | -         | -         | -          | -               | -         | refused     | attempting | -         |
//! | resuming   | -          | -          | -       | -           | -           | -          | -          | -           | -         | -         | -          | -               | -         | cancelled   | attempting | -         |
//! | cutting    | -          | -          | -       | -           | -           | -          | cutting    | cutting     | cutting   | completed | spent      | spent           | spent     | cancelled   | spent | -         |
//!
//! *Resuming* is the backoff of a request that has begun: where an endpoint with the fingerprint of the one that broke off can
//! be asked, *begun* goes there on *failed* instead of *broken*, and an attempt from there is one that has begun.
//!
//! *Hedged* is an attempt that was silent for long and has a second one beside it; what is said of an attempt there is said of
//! one of the two, and one that fails leaves the other as the attempt: see [`hedge`](super::hedge).
//!
//! *Failed* stands for what may be tried again; with another endpoint at hand its backoff is over at once. A failed
//! attempt also ends in *refused* where nothing is to be had from another: see [`attempt`](crate::attempt).
//!
//! A request leaves the table in the step that settles or refunds its reservation, so that no terminal path can forget
//! to release: there is one way out, `ControlPlane::conclude`.

use alloc::boxed::Box;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::effect::Outcome;
use super::input::Arrival;
use crate::breaker::Ticket;
use crate::id::{AccountId, AttemptId, EndpointId, Minted, RequestId, ReservationId};
use crate::outcome::Failure;
use crate::rate::RateLimits;
use crate::registry::Fingerprint;
use crate::shared::SharedOpId;
use crate::time::Instant;
use crate::units::{Amount, Price, Tokens, Usage};

/// Where a request stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// Another turn of its stored session runs.
    WaitingTurn,
    /// Its reservation is being decided.
    Reserving,
    /// An attempt failed; the next one is due.
    Backoff {
        /// When.
        until: Instant,
    },
    /// An attempt runs.
    Attempting(Attempt),
    /// Its quota is at an end; the attempt was told to stop, its last count is awaited.
    Cutting {
        /// The attempt.
        attempt: Attempt,
        /// How the request ends, unless the answer is whole by then.
        outcome: Outcome,
        /// Until when the count is awaited.
        until: Instant,
    },
}

/// The attempt that runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Attempt {
    pub id: AttemptId,
    pub endpoint: EndpointId,
    pub ticket: Ticket,
    pub started: Instant,
    /// Whether the session's home is yet to become this endpoint: once it accepts, or has brought a token where another
    /// may do so first.
    pub binds: bool,
    /// Whether the head of its answer arrived.
    pub accepted: bool,
}

/// The second attempt beside the one that runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Hedge {
    /// When the attempt that runs has been silent for long enough. `None` where nothing is made beside it.
    pub due: Option<Instant>,
    /// The second one, while it is not known which of the two answers.
    pub attempt: Option<Attempt>,
    /// A request has one in its life.
    pub made: bool,
}

/// A request and all that is decided about it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub arrival: Box<Arrival>,
    pub arrived: Instant,
    pub deadline: Instant,
    /// Pinned at arrival: a reload changes no running bill.
    pub price: Price,
    pub phase: Phase,
    pub hedge: Hedge,
    pub attempts: u32,
    /// Where its attempts went, in their order; without that of the one that lost to another, which did not fail.
    pub tried: Vec<EndpointId>,
    /// Something of an answer has gone to the client.
    pub committed: bool,
    /// Of the endpoint that began the answer, where others may continue it.
    pub fingerprint: Option<Fingerprint>,
    /// Completion tokens that have arrived, as of the last progress mark.
    pub produced: Tokens,
    /// Completion tokens covered by the reservation.
    pub covered: Tokens,
    /// An extension of the reservation by so many completion tokens is being decided.
    pub extending: Option<Tokens>,
    /// Tokens held against the tokens-a-minute limits.
    pub rated: Tokens,
    /// The limits it was admitted under. Pinned: were its end told to others, a reload would leak what is held.
    pub rates: Vec<(AccountId, RateLimits)>,
    pub last_failure: Option<Failure>,
    /// What was heard of its reservation and its consultation.
    pub heard: Heard,
    /// The instant under which the request stands in the timer set.
    pub due: Instant,
}

/// What a request has heard of the one wave that it waits for before it is sent out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Heard {
    /// The ledger holds its tokens.
    pub granted: bool,
    /// The consultation on its way, waited for or late.
    pub out: Option<SharedOpId>,
    /// It is waited for.
    pub awaits: bool,
    /// The store may hold its key for it.
    pub claims: bool,
    /// The slot in which the store holds its tokens.
    pub until: Option<u64>,
    /// Where the store says its session lives, as far as that is an endpoint of ours, and under which epoch.
    pub home: Option<(Option<EndpointId>, u64)>,
}

impl Request {
    /// The attempt that runs, if any.
    pub fn attempt(&self) -> Option<&Attempt> {
        match &self.phase {
            Phase::Attempting(attempt) | Phase::Cutting { attempt, .. } => Some(attempt),
            Phase::WaitingTurn | Phase::Reserving | Phase::Backoff { .. } => None,
        }
    }

    /// Every attempt that runs: one, or two of which neither has brought a token.
    pub fn running(&self) -> impl Iterator<Item = &Attempt> {
        self.attempt().into_iter().chain(&self.hedge.attempt)
    }

    /// The attempt that runs under this id, if it still does.
    pub fn running_mut(&mut self, id: AttemptId) -> Option<&mut Attempt> {
        let first = match &mut self.phase {
            Phase::Attempting(attempt) | Phase::Cutting { attempt, .. } => Some(attempt),
            Phase::WaitingTurn | Phase::Reserving | Phase::Backoff { .. } => None,
        };
        first.into_iter().chain(&mut self.hedge.attempt).find(|attempt| attempt.id == id)
    }

    /// Whether another attempt than the one that was accepted may yet be the one that answers.
    pub const fn may_be_hedged(&self) -> bool {
        self.hedge.due.is_some() || self.hedge.attempt.is_some()
    }

    /// Asserts what must always hold.
    pub fn invariants(&self, id: RequestId) {
        let attempting = matches!(self.phase, Phase::Attempting(_));
        let Hedge { due, attempt, made } = &self.hedge;
        assert!(due.is_none() || (attempting && !self.committed && !made), "{id} may be hedged");
        if let Some(hedge) = attempt {
            assert!(attempting && !self.committed && *made, "{id} has no winner yet");
            let beside = self.attempt().map(|beside| (beside.id, beside.endpoint));
            let beside =
                beside.filter(|(id, endpoint)| *id != hedge.id && *endpoint != hedge.endpoint);
            assert!(beside.is_some(), "{id} runs on two endpoints");
        }
    }

    /// What is reserved for it, price and all.
    pub fn wanted(&self) -> Amount {
        self.price.of(Usage { prompt: self.arrival.prompt, completion: self.covered })
    }

    /// What was used as of the last progress mark: nothing before the client was sent something.
    pub fn used(&self) -> Usage {
        if self.committed {
            Usage { prompt: self.arrival.prompt, completion: self.produced }
        } else {
            Usage::default()
        }
    }
}

/// The one reservation of a request carries the request's own number.
pub(super) const fn reservation_of(request: RequestId) -> ReservationId {
    ReservationId(request.0)
}

/// The request that holds a reservation.
pub(super) const fn request_of(reservation: ReservationId) -> RequestId {
    RequestId(reservation.0)
}

/// An attempt's id is its request's number followed by four bits for the attempt: from either the other is known
/// without a table. [`ATTEMPTS_MAX`] keeps the four bits enough.
pub(super) const fn attempt_id(request: RequestId, number: u32) -> AttemptId {
    let Minted { incarnation, counter } = request.0;
    AttemptId(Minted { incarnation, counter: counter << 4 | (number & 0xf) as u64 })
}

/// The request that an attempt belongs to.
#[must_use]
pub const fn request_of_attempt(attempt: AttemptId) -> RequestId {
    let Minted { incarnation, counter } = attempt.0;
    RequestId(Minted { incarnation, counter: counter >> 4 })
}

/// The most attempts a request can have: what four bits of an attempt's id can count, from 1.
pub const ATTEMPTS_MAX: u32 = 15;
