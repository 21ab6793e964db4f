//! What a plane has asked of the shared store, and which parts of that store answer.
//!
//! | an ask     | answered          | said to have failed | its wait is over | its request ends | forgotten |
//! |------------|-------------------|---------------------|------------------|------------------|-----------|
//! | unknown    | stale             | stale               | -                | -                | -         |
//! | awaited    | decides           | decides alone       | late             | orphan           | -         |
//! | late       | noted             | nothing             | -                | orphan           | unknown   |
//! | orphan     | given back        | nothing             | orphan           | -                | unknown   |
//!
//! Each of an ask's first three rows ends in *unknown* with its answer or failure. Noted is what decides nothing, but that a
//! key which is another's stops a request that was not sent out yet.
//!
//! A part that did not answer is *away*: it is not asked, and nobody waits for it, but for one ask in
//! [`probe_every`](crate::quota::Config::probe_every) that is sent along, or alone. An ask of parts that are all away is
//! late from the start. So whoever waits for a store that has just gone waits once, and it is found back by the requests
//! themselves: where none need it, nobody has to know. Rejected: to ask for nothing in order to know, from a timer; the
//! ledger does that already, and it may answer from a shard that is there while this one's is not.
//!
//! Where the ledger has just been waited for in vain, a part is *suspected*: nobody waits for it a second time. It is away
//! from the moment a request needs it, and that request asks for it; one answer, and it is believed again.
//!
//! The parts are away one by one, because their keys may lie on different shards. One that went away with all the rest is
//! believed to be back with any of them. What failed for one ask alone (a key that holds something else, more asks at once
//! than may be) says nothing of the part: it would be away for everybody, again and again, for the sake of one key.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::{RateCorrection, SharedOpId};
use crate::id::{AccountId, CallerToken, RequestId};
use crate::plane::Idempotency;
use crate::time::Instant;

/// A part of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Part {
    /// Requests and tokens a minute.
    Rates,
    /// Idempotency keys.
    Keys,
    /// Where sessions live.
    Homes,
}

/// Late asks kept at once; the oldest is forgotten first. Each is one that a request waited for in vain, or a probe.
const LATE_MAX: usize = 1_024;

/// How long a late answer may come and still be of use.
const LATE_FOR: Duration = Duration::from_secs(30);

/// All that is asked.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Asks {
    minted: u64,
    asks: BTreeMap<SharedOpId, Ask>,
    /// Each ask once: when its wait is over, or when it is forgotten.
    timers: BTreeSet<(Instant, SharedOpId)>,
    late: BTreeSet<SharedOpId>,
    /// The parts that do not answer.
    away: BTreeMap<Part, Away>,
    /// The parts that may not, because the ledger does not.
    suspected: BTreeSet<Part>,
}

/// A part that does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Away {
    /// When it is asked again.
    probe: Instant,
    /// Others answered when it did not.
    alone: bool,
}

/// One consultation on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ask {
    pub request: RequestId,
    pub caller: CallerToken,
    pub tenant: AccountId,
    pub parts: Vec<Part>,
    /// Its wait is over.
    late: bool,
    /// The request is over: what an answer took is to be given back.
    pub orphan: Option<Orphan>,
    due: Instant,
}

impl Ask {
    fn is_awaited(&self) -> bool {
        !self.late && self.orphan.is_none()
    }
}

/// What to give back for a request that is over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Orphan {
    /// With the slot left open.
    pub rates: Vec<RateCorrection>,
    /// The key, unless it was charged.
    pub key: Option<Idempotency>,
}

impl Asks {
    pub fn mint(&mut self) -> SharedOpId {
        self.minted += 1;
        SharedOpId(self.minted)
    }

    /// Whether a part is to be asked now: it answers, or its probe is due, which this call makes.
    pub fn wants(&mut self, now: Instant, part: Part, probe_every: Duration) -> bool {
        if self.suspected.remove(&part) {
            self.away.entry(part).or_insert(Away { probe: now, alone: false });
        }
        match self.away.get_mut(&part) {
            None => true,
            Some(_) if planted!(ConsultsWhileAway) => true,
            Some(away) if away.probe <= now => {
                away.probe = now + probe_every;
                true
            }
            Some(_) => false,
        }
    }

    /// The ledger does not answer: all that lies beside it may be away.
    pub fn suspect(&mut self) {
        self.suspected.extend([Part::Rates, Part::Keys, Part::Homes]);
    }

    /// The ledger answers.
    pub fn trust(&mut self) {
        self.suspected.clear();
    }

    pub fn is_away(&self, part: Part) -> bool {
        self.away.contains_key(&part)
    }

    pub fn any_away(&self) -> bool {
        !self.away.is_empty()
    }

    /// Asks. Returns whether anybody waits for the answer: not where all its parts are away.
    pub fn ask(
        &mut self,
        now: Instant,
        op: SharedOpId,
        (request, caller, tenant): (RequestId, CallerToken, AccountId),
        parts: Vec<Part>,
        wait: Duration,
    ) -> bool {
        let awaited = parts.iter().any(|part| !self.is_away(*part)) || planted!(ConsultsWhileAway);
        let due = now + if awaited { wait } else { LATE_FOR };
        self.timers.insert((due, op));
        let late = !awaited;
        self.asks.insert(op, Ask { request, caller, tenant, parts, late, orphan: None, due });
        if late {
            self.is_late(op);
        }
        awaited
    }

    /// It was answered, or has failed.
    pub fn take(&mut self, op: SharedOpId) -> Option<Ask> {
        let ask = self.asks.remove(&op)?;
        self.timers.remove(&(ask.due, op));
        self.late.remove(&op);
        Some(ask)
    }

    /// These parts were asked, and those of which it is true have answered, the others not at all. Where one has, others that went away with
    /// the whole store are believed to be back with it.
    pub fn heard(&mut self, now: Instant, parts: &[(Part, bool)], probe_every: Duration) {
        let alone = parts.iter().any(|(_, answered)| *answered);
        if alone {
            self.away.retain(|_, away| away.alone);
            self.suspected.clear();
        }
        for (part, answered) in parts {
            if *answered {
                self.away.remove(part);
            } else {
                let away = Away { probe: now + probe_every, alone };
                self.away.entry(*part).or_insert(away).alone = alone;
            }
        }
    }

    /// The request of an ask is over. Whether the store answers in time is still to be seen.
    pub fn orphan(&mut self, op: SharedOpId, orphan: Orphan) {
        let Some(ask) = self.asks.get_mut(&op) else { return };
        ask.orphan = Some(orphan);
        self.is_late(op);
    }

    /// The next ask whose wait is over: it is late from here on. One that was late is forgotten.
    pub fn overdue(&mut self, now: Instant) -> Option<Ask> {
        loop {
            let (due, op) = *self.timers.first()?;
            if due > now {
                return None;
            }
            match self.asks.get_mut(&op) {
                Some(ask) if !ask.late => {
                    ask.late = true;
                    let overdue = ask.clone();
                    self.postpone(now, op);
                    self.is_late(op);
                    return Some(overdue);
                }
                Some(_) | None => drop(self.take(op)),
            }
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// A life is over: nobody will answer it. Numbers go on.
    pub fn forget(&mut self) {
        *self = Self { minted: self.minted, ..Self::default() };
    }

    /// The requests that wait for an ask, for whoever checks that they do.
    pub fn awaited(&self) -> impl Iterator<Item = (SharedOpId, RequestId)> {
        self.asks.iter().filter(|(_, ask)| ask.is_awaited()).map(|(op, ask)| (*op, ask.request))
    }

    pub fn invariants(&self) {
        assert_eq!(self.timers.len(), self.asks.len(), "each ask has one timer");
        assert!(self.late.len() <= LATE_MAX, "late asks are bounded");
        for (op, ask) in &self.asks {
            assert!(self.timers.contains(&(ask.due, *op)), "{op:?} stands under its time");
            assert_eq!(self.late.contains(op), !ask.is_awaited(), "{op:?} is awaited or late");
        }
    }

    fn postpone(&mut self, now: Instant, op: SharedOpId) {
        let Some(ask) = self.asks.get_mut(&op) else { return };
        self.timers.remove(&(ask.due, op));
        ask.due = now + LATE_FOR;
        self.timers.insert((ask.due, op));
    }

    /// Late, or an orphan: nobody waits for it.
    fn is_late(&mut self, op: SharedOpId) {
        self.late.insert(op);
        if self.late.len() > LATE_MAX
            && let Some(oldest) = self.late.first().copied()
        {
            self.take(oldest);
        }
    }
}
