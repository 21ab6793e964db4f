//! What the plane asks its shell to do. Effects are in order per request, and unordered across requests.

use alloc::boxed::Box;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::affinity::Binding;
use crate::id::{AccountId, AttemptId, CallerToken, EndpointId, RequestId, SessionKey};
use crate::outcome::Failure;
use crate::quota::{Entry, StoreAnswer, StoreOp, Unit, WindowKind};
use crate::shared::{Consult, Note};
use crate::time::Instant;
use crate::units::{Amount, Tokens};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Effect {
    /// The request exists and has an id. Always its first effect.
    Admitted {
        /// Who asked.
        caller: CallerToken,
        /// What the plane calls it from now on.
        request: RequestId,
    },
    /// Ask the shared quota store. Never emitted where the store is embedded: there the answer is at hand.
    Reserve(StoreOp),
    /// Send the request to an endpoint.
    Dispatch(Dispatch),
    /// Stop an attempt at once, upstream included; its end is still to be reported, unless another attempt of its request
    /// answers.
    Cancel {
        /// Who asked.
        caller: CallerToken,
        /// Which attempt.
        attempt: AttemptId,
    },
    /// Make this durable: with its journal record where stores are embedded, in the shared store otherwise.
    Persist(Durable),
    /// Refuse: nothing of an answer has been sent. The request is over.
    Reject {
        /// Who asked.
        caller: CallerToken,
        /// Which request.
        request: RequestId,
        /// Why.
        refusal: Refusal,
    },
    /// The answer is over. The request is over.
    Finish {
        /// Who asked.
        caller: CallerToken,
        /// Which request.
        request: RequestId,
        /// How it ended.
        outcome: Outcome,
        /// What was charged for it.
        charged: Amount,
        /// How many attempts were made.
        attempts: u32,
    },
    /// Ask the store that gateways share whether a request may go on, and where its session lives. Never emitted where
    /// stores are embedded.
    Consult(Box<Consult>),
    /// Tell that store. Nobody waits for it.
    Note(Box<Note>),
    /// The embedded ledger's answer to somebody beside the gateway. What it says is durable with this step's record.
    LedgerAnswered {
        /// Who asked.
        caller: CallerToken,
        /// What it says.
        answer: StoreAnswer,
    },
}

/// One attempt to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispatch {
    /// Who asked.
    pub caller: CallerToken,
    /// Which request.
    pub request: RequestId,
    /// The attempt's id.
    pub attempt: AttemptId,
    /// Counts the request's attempts, from 1.
    pub number: u32,
    /// Made beside the attempt that runs: whichever brings its first token first answers, and the other is stopped.
    pub hedge: bool,
    /// Where to.
    pub endpoint: EndpointId,
    /// The endpoint's name.
    pub endpoint_name: Box<str>,
    /// No connection by then: give up.
    pub connect_by: Instant,
    /// No first token by then: give up.
    pub first_token_by: Instant,
    /// Longest wait between two tokens.
    pub gap_max: Duration,
    /// The request's one deadline.
    pub deadline: Instant,
    /// The most completion tokens to ask for, where quota limits them.
    pub output_max: Option<Tokens>,
    /// The client has this many tokens of the answer already: the endpoint continues it there. What it reports (progress,
    /// usage) counts from the answer's beginning.
    pub resume: Option<Tokens>,
}

/// A fact that outlives the process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Durable {
    /// The ledger moved.
    Entry(Entry),
    /// A session found its replica.
    Binding {
        /// Which session.
        session: SessionKey,
        /// Where it lives now.
        binding: Binding,
    },
    /// A session lost its replica: nobody could answer it.
    Released {
        /// Which session.
        session: SessionKey,
    },
    /// The store that gateways share says where a session lives: it stands, even beside a home of the same epoch.
    Adopted {
        /// Which session.
        session: SessionKey,
        /// Where it lives now.
        binding: Binding,
    },
}

/// How a request that was answered, or begun to be answered, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Whole.
    Completed,
    /// Broken after its first token: the client is told so.
    Broken(Failure),
    /// Cut because the account's limit was reached in the middle.
    QuotaSpent(Spent),
    /// Cut because the quota store could not say whether the account has more, for as long as a stream may run on what
    /// nobody holds for it.
    QuotaUnavailable {
        /// When to try again.
        retry_after: Duration,
    },
    /// The client went away.
    Cancelled,
}

/// Which limit was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// Whose.
    pub account: AccountId,
    /// Over which window.
    pub window: WindowKind,
    /// Of what.
    pub unit: Unit,
    /// When the window turns.
    pub retry_after: Duration,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// No endpoint of the registry serves the model.
    UnknownModel,
    /// The account's quota is spent (402).
    QuotaSpent(Spent),
    /// The quota store cannot be reached and nothing was drawn beforehand (503).
    QuotaUnavailable {
        /// When to try again.
        retry_after: Duration,
    },
    /// Too many requests or tokens a minute (429).
    RateLimited {
        /// Whose limit.
        account: AccountId,
        /// Requests or tokens a minute.
        unit: crate::rate::RateUnit,
        /// The limit, a minute.
        limit: u64,
        /// When the same request would be admitted.
        retry_after: Duration,
    },
    /// The model takes no more at once (503, shed).
    ModelBusy {
        /// When to try again.
        retry_after: Duration,
    },
    /// Too many turns of one stored session wait, or this one waited too long (409).
    TurnConflict,
    /// The same idempotency key is being answered now (409).
    IdempotencyInFlight {
        /// By which request. `None`: by one of another gateway.
        by: Option<RequestId>,
    },
    /// The same idempotency key was answered before (409, or the stored answer where the shell still has it).
    IdempotencyDone {
        /// By which request. `None`: by one of another gateway.
        by: Option<RequestId>,
    },
    /// The same idempotency key came with another body (422).
    IdempotencyMismatch {
        /// With which request it came first. `None`: with one of another gateway.
        by: Option<RequestId>,
    },
    /// Nobody is left to ask (503).
    NobodyLeft {
        /// Endpoints that know the model.
        members: u32,
        /// Of these, draining.
        draining: u32,
        /// Of these, ejected by their breaker.
        ejected: u32,
        /// Of these, at their in-flight maximum.
        full: u32,
        /// When an ejected one may be asked again.
        retry_after: Duration,
    },
    /// Attempts were made and failed; this is the last failure.
    Failed {
        /// What went wrong last.
        failure: Failure,
        /// How many attempts were made.
        attempts: u32,
        /// How long the last endpoint asked us to stay away.
        retry_after: Option<Duration>,
    },
    /// The client left before anything was sent.
    ClientGone,
    /// The plane holds as many requests as it may (503, shed).
    Overloaded,
    /// The process stopped while the request was under way.
    Lost,
}
