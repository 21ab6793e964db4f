//! What a gateway asks of the shared ledger, and what that answers: the specification of its server-side script.
//!
//! Messages may be lost, doubled, delayed and reordered in both directions. So every ask is idempotent by nature: a
//! reservation by its id, an extension because it names the total, a terminal because there is one. The server carries a
//! run id that changes when it may have forgotten something (restart, failover). Draws made under another run are turned
//! away, so that owners first assert what they hold; terminals never are.
//!
//! Amounts stay below 2^53, so that a script with doubles for numbers computes the same. All keys one ask touches belong to
//! one tenant, which is named in it.

use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::entry::Entry;
use super::ledger::{Draw, Ledger, Settled};
use super::terms::{At, BalanceKey, Denied, DenyReason, HoldId, OwnerId};
use crate::id::AccountId;
use crate::units::Amount;

/// Names one ask of one owner. An ask that is repeated keeps its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpId(pub u64);

/// Names one run of the store: a keyed hash of what it says of itself. Runs have no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RunId(pub u64);

/// One ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreOp {
    /// Comes back with the answer.
    pub op: OpId,
    /// Who asks.
    pub owner: OwnerId,
    /// The run the owner believes in; `None` before it has heard of any.
    pub run: Option<RunId>,
    /// The tenant whose keys it touches; `None` for a probe.
    pub tenant: Option<AccountId>,
    /// What is asked.
    pub ask: Ask,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Are you there, and which run are you?
    Probe,
    /// Hold this. A draw: turned away under another run.
    Reserve(Draw),
    /// Hold so much in total, and for longer. A draw: turned away under another run.
    Extend {
        /// What to extend.
        hold: HoldId,
        /// How much it shall hold in all.
        total: Amount,
    },
    /// I hold this; note it, whatever the limits say.
    Assert {
        /// What is held.
        hold: HoldId,
        /// Where it counts.
        pins: Vec<BalanceKey>,
        /// How much in all.
        total: Amount,
        /// How long without a word.
        ttl: Duration,
    },
    /// This was used: the end.
    Settle {
        /// What ends.
        hold: HoldId,
        /// Where it counts, if the store has forgotten.
        pins: Vec<BalanceKey>,
        /// What was used.
        actual: Amount,
        /// True where the count is our own estimate.
        estimated: bool,
        /// The run that last confirmed it. `None`: it was spent from an allotment that has ended, and is late.
        confirmed: Option<RunId>,
    },
    /// This was not used, or is not wanted any more: the end.
    Refund {
        /// What ends.
        hold: HoldId,
    },
}

/// One answer. May be late, doubled, or for an ask nobody remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreAnswer {
    /// The ask it answers.
    pub op: OpId,
    /// The run that answered.
    pub run: RunId,
    /// What it says.
    pub reply: Reply,
}

/// What the store says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is held.
    Granted {
        /// What.
        hold: HoldId,
        /// How much in all.
        total: Amount,
        /// Where it counts.
        pins: Vec<BalanceKey>,
    },
    /// It is not.
    Denied(Denied),
    /// The terminal is noted, now or before.
    Done,
    /// A draw under another run than this: assert what you hold, then ask again.
    OtherRun,
    /// I am here.
    Here,
}

impl Ledger {
    /// Performs one ask against this ledger in one atomic step, as the shared store does.
    pub fn perform(
        &mut self,
        at: At,
        run: RunId,
        op: &StoreOp,
        out: &mut Vec<Entry>,
    ) -> StoreAnswer {
        let other = op.run.is_some_and(|believed| believed != run);
        let reply = match &op.ask {
            Ask::Probe => Reply::Here,
            Ask::Reserve(_) | Ask::Extend { .. } if other && !planted!(OtherRunDraws) => {
                Reply::OtherRun
            }
            Ask::Reserve(draw) => {
                let answer = self.reserve(at, draw, out);
                self.granted(draw.hold, answer)
            }
            Ask::Extend { hold, total } => {
                let answer = self.extend_to(at, *hold, *total, out);
                self.granted(*hold, answer)
            }
            Ask::Assert { hold, pins, total, ttl } => {
                let answer = self.assert_held(at, *hold, (pins, *total, *ttl), out);
                self.granted(*hold, answer)
            }
            Ask::Settle { hold, pins, actual, estimated, confirmed } => {
                let forgotten = *confirmed == Some(run);
                let usage = (*actual, *estimated);
                match self.settle_pinned(at, *hold, (pins, forgotten), usage, out) {
                    Settled::Charged | Settled::Late | Settled::Ignored => Reply::Done,
                    // Not done: it may have been charged, and it may never have been there.
                    Settled::Forgotten => Reply::Denied(Denied::never(DenyReason::Ended)),
                    Settled::Full => Reply::Denied(Denied::never(DenyReason::Full)),
                }
            }
            Ask::Refund { hold } => {
                self.release(at, *hold, out);
                Reply::Done
            }
        };
        StoreAnswer { op: op.op, run, reply }
    }

    fn granted(&self, hold: HoldId, answer: Result<Amount, Denied>) -> Reply {
        match answer {
            Ok(total) => {
                let pins = self.pinned(hold).unwrap_or_default().to_vec();
                Reply::Granted { hold, total, pins }
            }
            Err(denied) => Reply::Denied(denied),
        }
    }
}
