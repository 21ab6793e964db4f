//! What the plane noticed and why it decided as it did: for metrics, logs and `explain`. Never fed back.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use crate::affinity::Binding;
use crate::balance::{Chosen, Nobody};
use crate::breaker::Transition;
use crate::id::{AttemptId, EndpointId, RequestId, ReservationId, SessionKey};
use crate::outcome::AttemptEnd;
use crate::quota::Denied;
use crate::registry::Refused as SourceRefused;
use crate::shared::{Consulted, SharedOpId};
use crate::units::{Amount, Tokens};
use crate::{attempt, time::Instant};

use super::effect::{Outcome, Refusal};

/// Most observations kept until the shell polls them. A step makes a handful, except the one that begins a new life:
/// that says a few things about each request the last life left, of which there are 10,000 by default. A shell that never
/// polls loses the oldest, and holds some 20 MB of them.
pub const OBSERVATIONS_MAX: usize = 1 << 16;

/// One thing noticed.
#[derive(Clone, Debug, PartialEq)]
pub enum Observation {
    /// A request came in.
    Arrived {
        /// Which.
        request: RequestId,
        /// The session it names, with that session's home.
        session: Option<(SessionKey, Option<Binding>)>,
        /// What will be reserved for it.
        reserving: Amount,
        /// When its time is over.
        deadline: Instant,
    },
    /// The reservation was granted.
    Granted {
        /// Which request.
        request: RequestId,
        /// What is held for it now.
        total: Amount,
    },
    /// The reservation, or an extension of it, was denied.
    Denied {
        /// Which request.
        request: RequestId,
        /// Why.
        denied: Denied,
    },
    /// The store that gateways share was consulted, and answered.
    Consulted {
        /// For which request.
        request: RequestId,
        /// What it says.
        answer: Box<Consulted>,
        /// False where the request has gone on alone meanwhile: it decides nothing.
        awaited: bool,
    },
    /// The store that gateways share did not answer: the request goes on with what this plane knows.
    ConsultLost {
        /// Which request.
        request: RequestId,
    },
    /// The store that gateways share says where a session lives.
    Adopted {
        /// Which session.
        session: SessionKey,
        /// Its home now.
        binding: Binding,
    },
    /// An endpoint was picked.
    Picked {
        /// Which request.
        request: RequestId,
        /// The attempt that goes there.
        attempt: AttemptId,
        /// Whom, why, and who else was considered. Boxed: it is larger than all else that is noticed.
        chosen: Box<Chosen>,
        /// Who was passed over because it has had its requests of this second.
        throttled: Vec<EndpointId>,
    },
    /// The attempt that runs is silent, and has a second one beside it; or of two attempts one is left, or none.
    Hedged {
        /// Which request.
        request: RequestId,
        /// How far it has come.
        race: Race,
    },
    /// Nobody could be picked.
    Nobody {
        /// Which request.
        request: RequestId,
        /// Why not.
        nobody: Nobody,
    },
    /// The endpoint took the attempt.
    Accepted {
        /// Which attempt.
        attempt: AttemptId,
        /// Since its dispatch.
        after: Duration,
    },
    /// The first token arrived.
    FirstToken {
        /// Which attempt.
        attempt: AttemptId,
        /// Since its dispatch.
        after: Duration,
    },
    /// An attempt ended.
    Ended {
        /// Which attempt.
        attempt: AttemptId,
        /// Where it ran.
        endpoint: EndpointId,
        /// How it ended.
        end: AttemptEnd,
        /// Since its dispatch.
        after: Duration,
    },
    /// Another attempt will be made.
    Retrying {
        /// Which request.
        request: RequestId,
        /// When.
        at: Instant,
        /// It continues a stream of which the client has so many tokens.
        resume: Option<Tokens>,
    },
    /// No other attempt will be made.
    GaveUp {
        /// Which request.
        request: RequestId,
        /// Why.
        why: attempt::Why,
    },
    /// A session found its replica, or moved.
    Bound {
        /// For which request.
        request: RequestId,
        /// Which session.
        session: SessionKey,
        /// Its home now.
        binding: Binding,
        /// Its home before, where it moved.
        moved_from: Option<EndpointId>,
    },
    /// A breaker moved.
    Breaker(Transition),
    /// A request is over without an answer.
    Refused {
        /// Which.
        request: RequestId,
        /// Why.
        refusal: Refusal,
    },
    /// A request is over.
    Finished {
        /// Which.
        request: RequestId,
        /// How.
        outcome: Outcome,
        /// What was charged.
        charged: Amount,
        /// Whether the count is our own.
        estimated: bool,
    },
    /// A request was under way when the process stopped.
    Lost {
        /// Which.
        request: RequestId,
        /// Completion tokens up to its last progress mark, which are charged.
        produced: Tokens,
    },
    /// An endpoint joined.
    EndpointAdded(EndpointId),
    /// An endpoint left.
    EndpointRemoved {
        /// Its id, now void.
        id: EndpointId,
        /// Its name.
        name: Box<str>,
    },
    /// A source's answer was not taken, or not whole.
    SourceRefused {
        /// Which source.
        source: Box<str>,
        /// Why.
        why: SourceRefused,
    },
    /// A configuration took effect.
    Configured {
        /// Its version.
        version: u64,
    },
    /// The shared quota store never acknowledged a charge: it is lost to the ledger.
    ChargeLost {
        /// Of which reservation.
        reservation: ReservationId,
        /// What had been used.
        actual: Amount,
    },
    /// The shared quota store is late: until it answers, what was drawn ahead is spent without a wait, where it suffices.
    QuotaLate,
    /// The shared quota store cannot be reached (`true`), or can again.
    QuotaDegraded(bool),
    /// The store that gateways share cannot be consulted (`true`), for all or for part of what is asked of it, or can again.
    SharedDegraded(bool),
    /// An input named something that has ended or never was: a normal race.
    Stale(Stale),
}

/// Two attempts beside each other, from the moment at which the second is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Race {
    /// The second is made.
    Begun {
        /// Since the silent attempt's dispatch.
        after: Duration,
    },
    /// The first is left alone, silent as it is.
    NotBegun {
        /// Why.
        why: attempt::NoHedge,
    },
    /// The second brought the first token.
    Won {
        /// Where the one that lost ran.
        over: EndpointId,
    },
    /// The first did.
    Lost {
        /// Where the one that lost ran.
        over: EndpointId,
    },
    /// One of them failed, and the other goes on.
    Alone {
        /// Where the one that failed ran.
        without: EndpointId,
    },
    /// The request was over before either brought a token.
    Stopped,
}

/// What a stale input named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    /// An attempt.
    Attempt(AttemptId),
    /// A caller.
    Caller,
    /// A reservation.
    Reservation(ReservationId),
    /// An endpoint's name.
    Endpoint,
    /// A consultation, or a note.
    Shared(SharedOpId),
}
