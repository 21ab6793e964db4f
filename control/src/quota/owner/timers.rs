//! What comes due on the owner's side.

use alloc::vec::Vec;
use core::ops::Bound;

use serde::{Deserialize, Serialize};

use super::super::store::{Ask, OpId};
use super::super::terms::HoldId;
use super::{Asked, Owner, Path, Purpose, tenant};
use crate::id::{Minted, ReservationId};
use crate::time::Instant;

/// Why a timer was set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Timer {
    /// A backlog goes on: assertions, then queued draws.
    Work,
    /// A reservation or extension has waited long enough.
    Draw(ReservationId),
    /// An ask was not answered.
    Op(OpId),
    /// An allotment wants a look.
    Allotment(Path),
}

/// The smallest id.
pub(super) const FIRST: ReservationId = ReservationId(Minted { incarnation: 0, counter: 0 });

/// Assertions on their way at once, and queued draws sent by one call: a burst a store takes in its stride.
const BATCH: usize = 64;

impl Owner {
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// At most `max` timers; more ask for another call at once.
    pub fn handle_timeout(&mut self, now: Instant, max: usize) {
        for _ in 0..max {
            if self.timers.first().is_none_or(|(due, _)| *due > now) {
                return;
            }
            let Some((_, timer)) = self.timers.pop_first() else { return };
            match timer {
                Timer::Work => self.work(now),
                Timer::Draw(id) => self.draw_unanswered(now, id),
                Timer::Op(op) => self.op_unanswered(now, op),
                Timer::Allotment(path) => self.check_allotment(now, &path),
            }
        }
    }

    pub(super) fn set_due(&mut self, op: OpId, due: Instant) {
        let Some(asked) = self.ops.get_mut(&op) else { return };
        if let Some(old) = asked.due.replace(due) {
            self.timers.remove(&(old, Timer::Op(op)));
        }
        self.timers.insert((due, Timer::Op(op)));
    }

    fn draw_unanswered(&mut self, now: Instant, id: ReservationId) {
        if let Some(waiting) = self.waiting.get(&id) {
            let (sooner, lends) = (now < waiting.last, self.can_lend(now, &waiting.reserve));
            match (sooner, lends) {
                (true, true) => self.fall_back_soon(now, id),
                (true, false) => self.wait_on(id),
                (false, _) => self.give_up(now, id),
            }
            return;
        }
        let Some(holding) = self.holdings.get_mut(&id) else { return };
        let Some(extending) = holding.extending.as_mut() else { return };
        // The timer is gone, and whatever comes now takes the extension off: no answer may find it.
        if let Some(op) = extending.op.take() {
            self.forget(op);
            self.degrade(now);
        }
        self.degraded_extension(now, id);
    }

    /// An ask cannot reach the store. A reservation that waits for its answer need not; all else has its own time.
    pub fn ask_failed(&mut self, now: Instant, op: OpId) {
        let Some(Asked { purpose: Purpose::Reserve(id), .. }) = self.ops.get(&op) else { return };
        let id = *id;
        if self.waiting.get(&id).is_some_and(|waiting| waiting.op == Some(op)) {
            self.give_up(now, id);
        }
    }

    /// There is enough drawn ahead: it has waited long enough, and those behind it need not wait at all.
    fn fall_back_soon(&mut self, now: Instant, id: ReservationId) {
        let Some(waiting) = self.stop_waiting(id) else { return };
        if waiting.op.is_some() {
            self.be_late();
        }
        self.release_asked(now, &waiting);
        self.fall_back(now, &waiting.reserve);
    }

    /// There is not: a slow store is better than a refusal.
    fn wait_on(&mut self, id: ReservationId) {
        let Some(waiting) = self.waiting.get_mut(&id) else { return };
        waiting.due = waiting.last;
        self.timers.insert((waiting.due, Timer::Draw(id)));
    }

    fn give_up(&mut self, now: Instant, id: ReservationId) {
        let Some(waiting) = self.stop_waiting(id) else { return };
        if waiting.op.is_some() {
            self.degrade(now);
        }
        self.release_asked(now, &waiting);
        self.fall_back(now, &waiting.reserve);
    }

    /// Once more from an allotment, as if the store were away; then denied.
    fn degraded_extension(&mut self, now: Instant, id: ReservationId) {
        let away = core::mem::replace(&mut self.degraded, true);
        self.extend_from_allotment(now, id);
        self.degraded = away;
    }

    fn op_unanswered(&mut self, now: Instant, op: OpId) {
        let Some(asked) = self.ops.get(&op) else { return };
        match asked.purpose.clone() {
            Purpose::End(hold) => self.repeat_ending(now, hold),
            Purpose::Assert(_) => {
                self.forget(op);
                self.assert_next = Some(FIRST);
                self.degrade(now);
            }
            Purpose::Allot(path) => {
                self.forget(op);
                self.degrade(now);
                self.allotment_unanswered(now, &path);
            }
            Purpose::Probe => {
                self.set_due(op, now + self.config.probe_every);
                self.send(op, None, Ask::Probe);
            }
            // A draw has a timer of its own.
            Purpose::Reserve(_) | Purpose::Extend(_) => {}
        }
    }

    /// Goes on telling the store what is held; when it knows, sends what was queued meanwhile.
    fn work(&mut self, now: Instant) {
        if self.degraded {
            return;
        }
        if self.assert_next.is_some() {
            self.assert_some(now);
        }
        if !self.ready() {
            return;
        }
        for _ in 0..BATCH {
            let Some(id) = self.queued.pop_front() else { return };
            let asked = self.waiting.get(&id).is_some_and(|waiting| waiting.op.is_none());
            let extending = self.holdings.get(&id).and_then(|holding| holding.extending);
            if asked || extending.is_some_and(|extending| extending.op.is_none()) {
                self.draw(now, id);
            }
        }
        self.timers.insert((now, Timer::Work));
    }

    fn assert_some(&mut self, now: Instant) {
        let from = self.assert_next.unwrap_or(FIRST);
        let due = now + self.config.answer_timeout;
        if from == FIRST {
            for (hold, pins, total, ttl) in self.unconfirmed_allotments() {
                let ask = Ask::Assert { hold, pins, total, ttl };
                self.assert(now, hold, ask, due);
            }
        }
        let room = BATCH.saturating_sub(self.asserting.len());
        let mut range = self.holdings.range((Bound::Included(from), Bound::Unbounded));
        let mut asks = Vec::new();
        let mut looked = 0;
        let next = loop {
            let Some((id, holding)) = range.next() else { break None };
            if looked == BATCH || asks.len() >= room {
                break Some(*id);
            }
            looked += 1;
            if let Some(total) = holding.stored.filter(|_| holding.run != self.run) {
                let hold = HoldId::request(self.config.owner, *id);
                let (pins, ttl) = (holding.pins.clone(), holding.ttl);
                asks.push((hold, Ask::Assert { hold, pins, total, ttl }));
            }
        };
        for (hold, ask) in asks {
            self.assert(now, hold, ask, due);
        }
        self.assert_next = next;
        // With room left there is more to look at; without, the next answer goes on.
        if next.is_some() && self.asserting.len() < BATCH {
            self.timers.insert((now, Timer::Work));
        }
    }

    fn assert(&mut self, now: Instant, hold: HoldId, ask: Ask, due: Instant) {
        let pins = match &ask {
            Ask::Assert { pins, .. } => tenant(pins),
            Ask::Probe
            | Ask::Reserve(_)
            | Ask::Extend { .. }
            | Ask::Settle { .. }
            | Ask::Refund { .. } => None,
        };
        let op = self.ask(now, Purpose::Assert(hold), pins, ask, Some(due));
        self.asserting.insert(op);
    }
}
