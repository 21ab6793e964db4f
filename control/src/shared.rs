//! What gateways that share a store share beside the ledger: rates, idempotency keys, the homes of named sessions.
//!
//! **The problem.** A limiter, a table of keys and a table of homes in each gateway are N of each: N times the rate, one
//! charge per gateway for one key, and a session whose cache is built anew at each door it comes through.
//!
//! **The shape.** Each plane keeps its own rooms, and they are asked first: what they refuse needs no store. What passes
//! them and needs more is [`Consult`]ed, once, in the same wave as the reservation, so that a request waits for one round
//! trip whatever it needs. What it did afterwards (used tokens, ended its key, moved its session) is a [`Note`], for which
//! nobody waits. The store's side of each part is a pure type here ([`Rates`], [`Keys`], [`Homes`]): the specification of
//! the server-side scripts, and the store of the simulator.
//!
//! **When nobody answers**, a request goes on with what its own plane knows: at most N times the rate, and one charge per
//! key and gateway, for as long as the store is away. Rejected: to refuse then. The ledger, which is money, does; a rate
//! protects replicas, and those are no better off when every gateway says no.
//!
//! **Rejected too:** to give each gateway a share of the rate. A client whose connections all end at one gateway would get an
//! Nth of its limit, and every gateway that comes or goes would move everybody's.
//!
//! Messages may be lost, doubled, delayed and reordered. A consult that is performed twice takes a request's rate twice,
//! which drains; its claim of a key knows its owner and is there once. A note performed twice counts tokens twice, and lets go of
//! what another request of the same slot holds, until that ends. Claims and holds end with their lease, so what a gateway
//! that died had under way is free again soon after its clients have gone.
//!
//! Times of the store are whole microseconds since 1970 by its own clock, and amounts of a rate are the microseconds that
//! they take to drain: so a script with doubles for numbers only adds and compares, exactly.

mod asks;
mod homes;
mod keys;
mod rates;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

pub use asks::Part;
pub(crate) use asks::{Ask, Asks, Orphan};
pub use homes::Homes;
pub use keys::Keys;
pub use rates::{Rates, SLOT_MICROS, drain_micros, micros};

use crate::id::{AccountId, CallerToken, RequestId, SessionKey};
use crate::plane::Idempotency;
use crate::quota::OwnerId;
use crate::rate::RateUnit;

/// Names one consultation or note of one plane. Counts up from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SharedOpId(pub u64);

/// Asked of the store when a request's turn has come. Parts that are empty are not asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consult {
    /// Comes back with the answer.
    pub op: SharedOpId,
    /// For whom: the shell knows the session's name by it.
    pub caller: CallerToken,
    /// For which request.
    pub request: RequestId,
    /// The tenant that pays: all rates asked are kept with it.
    pub tenant: AccountId,
    /// How long what is taken or claimed is held without a word, in microseconds: longer than the request may run.
    pub lease: u64,
    /// All of these or none; at most one for each account of the path and unit.
    pub rates: Vec<RateTake>,
    /// The key that the request came with.
    pub idempotency: Option<KeyClaim>,
    /// Where this session lives. Only of sessions that have a name.
    pub home: Option<SessionKey>,
}

/// What a request asks of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateTake {
    /// Whose limit.
    pub account: AccountId,
    /// Of what.
    pub unit: RateUnit,
    /// The limit, a minute. For words only.
    pub limit: u64,
    /// How long what is asked for takes to drain, in microseconds, rounded up.
    pub drain: u64,
    /// How far use may run ahead of the clock, in microseconds: at least what one unit takes to drain.
    pub burst: u64,
}

/// Who holds a key: owners are unique among all that share a store, requests within their owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Claimant {
    /// The gateway.
    pub owner: OwnerId,
    /// Its request.
    pub request: RequestId,
}

/// Claims an idempotency key of the consult's tenant, for its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyClaim {
    /// The key and the body.
    pub idempotency: Idempotency,
    /// For whom.
    pub by: Claimant,
}

/// The store's answer. A part is `None` where it was not asked, or has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consulted {
    /// Which consultation.
    pub op: SharedOpId,
    /// What it says about the rates.
    pub rates: Option<RatesAnswer>,
    /// What it says about the key.
    pub idempotency: Option<KeyAnswer>,
    /// Where the session lives.
    pub home: Option<HomeAnswer>,
    /// The parts that have no answer for reasons of this ask alone: whoever asks next may have one. At most all.
    pub odd: Vec<Part>,
}

/// Whether the rates let a request through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RatesAnswer {
    /// All were taken.
    Taken {
        /// The slot in which its tokens are held: to be named by the correction.
        until: u64,
    },
    /// None was.
    Refused {
        /// Whose limit stands longest in the way; one that always will comes first.
        account: AccountId,
        /// Which.
        unit: RateUnit,
        /// The limit, a minute.
        limit: u64,
        /// When asking again may succeed. Zero where it never will.
        retry_after: Duration,
    },
}

/// What a request with a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyAnswer {
    /// The key is the claimant's.
    Begun,
    /// Another request with this key runs, somewhere.
    InFlight,
    /// Another request with this key was charged.
    Done,
    /// The key was sent with another body.
    Mismatch,
}

/// Where a session lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HomeAnswer {
    /// Nowhere that is known.
    Nowhere {
        /// The epoch of its last home; 0 where none is known.
        epoch: u64,
    },
    /// Here.
    At {
        /// The endpoint's name.
        endpoint: Box<str>,
        /// Counts its homes.
        epoch: u64,
    },
}

/// Told to the store. Nobody waits for it: the shell tries for a bounded time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Which.
    pub op: SharedOpId,
    /// The tenant that it concerns.
    pub tenant: AccountId,
    /// By whose request: the shell may know the session's name by it.
    pub caller: CallerToken,
    /// What.
    pub what: Noted,
}

/// What is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Noted {
    /// A request is over, and this is what it used.
    Rates(Vec<RateCorrection>),
    /// The request of a key is over.
    Key {
        /// The key and the body.
        idempotency: Idempotency,
        /// Whose request.
        by: Claimant,
        /// It was charged: the key is done. Otherwise it is free.
        charged: bool,
        /// How long a key that is done is remembered, in microseconds.
        keep: u64,
    },
    /// A session was accepted here.
    Home {
        /// Which session.
        session: SessionKey,
        /// The endpoint's name.
        endpoint: Box<str>,
        /// The highest epoch the plane has seen: it moves the session only where none is higher.
        believed: u64,
        /// How long the home counts without a word, in microseconds.
        ttl: u64,
    },
    /// Nobody could answer the session: it has no home any more.
    Homeless {
        /// Which session.
        session: SessionKey,
        /// The highest epoch the plane has seen.
        believed: u64,
    },
}

/// What became of the tokens that were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateCorrection {
    /// Whose limit.
    pub account: AccountId,
    /// Of what. Only tokens are held.
    pub unit: RateUnit,
    /// The slot they are held in, as [`RatesAnswer::Taken`] named it.
    pub until: u64,
    /// What is held, in microseconds; 0 where nothing is.
    pub held: u64,
    /// What was used, in microseconds.
    pub used: u64,
}

/// What the store has now, after a [`Noted::Home`] or [`Noted::Homeless`], whether that moved the session or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Housed {
    /// Which note.
    pub op: SharedOpId,
    /// Which session.
    pub session: SessionKey,
    /// Where it lives.
    pub home: HomeAnswer,
}

#[cfg(test)]
mod tests;
