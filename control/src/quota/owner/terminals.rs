//! Ends that the store has not acknowledged: said again until it has.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::super::Event;
use super::super::entry::Fact;
use super::super::store::{Ask, OpId, RunId};
use super::super::terms::{BalanceKey, HoldId};
use super::{Owner, Purpose, tenant};
use crate::id::AccountId;
use crate::time::Instant;
use crate::units::Amount;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ending {
    /// Whose keys at the store.
    pub tenant: Option<AccountId>,
    pub pins: Vec<BalanceKey>,
    pub how: How,
    pub since: Instant,
    pub tries: u32,
    /// It was sent and may be answered.
    pub sent: bool,
    pub op: OpId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum How {
    Unused,
    Used { actual: Amount, estimated: bool, confirmed: Option<RunId> },
}

impl How {
    pub const fn used((actual, estimated): (Amount, bool), confirmed: Option<RunId>) -> Self {
        Self::Used { actual, estimated, confirmed }
    }
}

impl Ending {
    pub fn new(pins: Vec<BalanceKey>, how: How, since: Instant) -> Self {
        Self { tenant: tenant(&pins), pins, how, since, tries: 0, sent: false, op: OpId(u64::MAX) }
    }

    fn ask(&self, hold: HoldId) -> Ask {
        match self.how {
            How::Unused => Ask::Refund { hold },
            How::Used { actual, estimated, confirmed } => {
                Ask::Settle { hold, pins: self.pins.clone(), actual, estimated, confirmed }
            }
        }
    }
}

impl Owner {
    /// Notes an end and arms its timer; the first send follows by [`Self::send_ending`], or by the timer after a recovery.
    pub(super) fn insert_ending(&mut self, now: Instant, hold: HoldId, mut ending: Ending) {
        let due = now + self.config.answer_timeout;
        ending.op = self.mint(now, Purpose::End(hold), Some(due));
        if let Some(old) = self.endings.insert(hold, ending) {
            self.forget(old.op);
        }
    }

    pub(super) fn send_ending(&mut self, hold: HoldId) {
        if self.degraded {
            return;
        }
        let Some(ending) = self.endings.get_mut(&hold) else { return };
        ending.sent = true;
        let (op, tenant, ask) = (ending.op, ending.tenant, ending.ask(hold));
        self.send(op, tenant, ask);
    }

    /// Gives back what the store may hold for us and nobody here wants. Not a fact: if it is lost, it expires there.
    pub(super) fn release(&mut self, now: Instant, hold: HoldId, tenant: Option<AccountId>) {
        if !self.endings.contains_key(&hold) {
            let ending = Ending { tenant, ..Ending::new(Vec::new(), How::Unused, now) };
            self.insert_ending(now, hold, ending);
            self.send_ending(hold);
        }
    }

    pub(super) fn acknowledge(&mut self, hold: HoldId) -> Option<Ending> {
        let ending = self.endings.remove(&hold)?;
        self.forget(ending.op);
        Some(ending)
    }

    /// No acknowledgement in time: again, more slowly each time, or never more.
    pub(super) fn repeat_ending(&mut self, now: Instant, hold: HoldId) {
        let Some(ending) = self.endings.get_mut(&hold) else { return };
        if now.since(ending.since) > self.config.give_up {
            if let Some(ending) = self.acknowledge(hold)
                && let How::Used { actual, .. } = ending.how
            {
                self.events.push_back(Event::Lost { hold, actual });
                self.record(now, Fact::Acknowledged { hold });
            }
            return;
        }
        ending.tries = ending.tries.saturating_add(1);
        let unanswered = core::mem::take(&mut ending.sent);
        let (op, tries) = (ending.op, ending.tries.min(16));
        // Doubling from the answer timeout; 16 doublings exceed any sensible maximum.
        let pause = self.config.answer_timeout.saturating_mul(1 << tries);
        let pause = pause.min(self.config.retry_max);
        let pause = if planted!(EndingNeverRepeated) { self.config.give_up } else { pause };
        let due = now + pause;
        self.set_due(op, due);
        if unanswered {
            self.degrade(now);
        }
        self.send_ending(hold);
    }
}
