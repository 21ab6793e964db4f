//! What the store says, and what follows.

use super::super::Event;
use super::super::entry::Fact;
use super::super::store::{Reply, RunId, StoreAnswer};
use super::super::terms::{Denied, DenyReason, HoldId};
use super::timers::{FIRST, Timer};
use super::{Asked, Owner, Purpose, tenant};
use crate::id::ReservationId;
use crate::time::Instant;

/// Runs of the store whose answers may still be on their way. More than eight failovers within a message's life do not
/// happen; if they do, what is held is asserted once too often.
const PAST_RUNS_MAX: usize = 8;

impl Owner {
    pub fn answer(&mut self, now: Instant, answer: StoreAnswer) {
        // Answers may overtake each other, so that a run that is over is heard of last. Who is turned away for what he believes
        // believes whoever says so; or he would be turned away for ever.
        if answer.reply == Reply::OtherRun && self.run != Some(answer.run) {
            self.past_runs.retain(|past| *past != answer.run);
        }
        self.hear(now, answer.run);
        // An end the store had no room for is asked again by its timer. One that it no longer remembers was noted.
        let ends = self.ops.get(&answer.op).map(|asked| matches!(asked.purpose, Purpose::End(_)));
        let forgotten =
            matches!(answer.reply, Reply::Denied(Denied { reason: DenyReason::Ended, .. }));
        if ends == Some(true) && answer.reply != Reply::Done && !forgotten {
            return;
        }
        let Some(Asked { purpose, sent, .. }) = self.forget(answer.op) else {
            self.answered_late(now, answer);
            return;
        };
        match purpose {
            Purpose::Reserve(id) => self.reserve_answered(now, id, answer),
            Purpose::Extend(id) => self.extend_answered(now, id, sent, answer),
            Purpose::Allot(path) => self.allotment_answered(now, &path, sent, answer),
            Purpose::End(hold) => {
                self.record(now, Fact::Acknowledged { hold });
            }
            Purpose::Assert(hold) => self.assert_answered(now, hold, answer.run),
            Purpose::Probe => self.probe = None,
        }
    }

    /// The store is there, in this run.
    fn hear(&mut self, now: Instant, run: RunId) {
        self.late = false;
        if self.degraded && !planted!(DegradedForEver) {
            self.degraded = false;
            self.events.push_back(Event::Restored);
            if let Some(probe) = self.probe.take() {
                self.forget(probe);
            }
            self.timers.insert((now, Timer::Work));
        }
        if self.run == Some(run) || self.past_runs.contains(&run) {
            return;
        }
        self.past_runs.extend(self.run.replace(run));
        if self.past_runs.len() > PAST_RUNS_MAX {
            self.past_runs.pop_front();
        }
        self.assert_all(now);
    }

    /// A grant came from `run`. If that is over, its successor has to be told.
    pub(super) fn confirmed_by(&mut self, now: Instant, run: RunId) {
        if self.run != Some(run) {
            self.assert_all(now);
        }
    }

    fn assert_all(&mut self, now: Instant) {
        if self.holdings.is_empty() && self.allotments.is_empty() {
            return;
        }
        self.assert_next = Some(FIRST);
        self.timers.insert((now, Timer::Work));
    }

    fn reserve_answered(&mut self, now: Instant, id: ReservationId, answer: StoreAnswer) {
        let hold = HoldId::request(self.config.owner, id);
        match answer.reply {
            Reply::Granted { hold: granted, total, pins } if granted == hold => {
                let Some(waiting) = self.stop_waiting(id) else { return };
                let ttl = waiting.reserve.ttl;
                let expires = self.stops(waiting.sent.unwrap_or(now), ttl);
                let amount = total;
                self.record(now, Fact::Reserve { hold, pins, amount, ttl, expires, from: None });
                if let Some(holding) = self.holdings.get_mut(&id) {
                    holding.run = Some(answer.run);
                }
                self.events.push_back(Event::Granted { id, total });
                self.confirmed_by(now, answer.run);
                self.draw_ahead(now, &waiting.reserve.accounts);
            }
            Reply::Denied(denied) => {
                if self.stop_waiting(id).is_some() {
                    self.deny(id, denied);
                }
            }
            // Not what was asked for, or not yet: again, until its own time is over.
            Reply::Granted { .. } | Reply::OtherRun | Reply::Done | Reply::Here => {
                if let Some(waiting) = self.waiting.get_mut(&id) {
                    waiting.op = None;
                    self.queue(now, id);
                }
            }
        }
    }

    fn extend_answered(
        &mut self,
        now: Instant,
        id: ReservationId,
        sent: Instant,
        answer: StoreAnswer,
    ) {
        let hold = HoldId::request(self.config.owner, id);
        match answer.reply {
            Reply::Granted { hold: granted, total, .. } if granted == hold => {
                self.stop_extending(id);
                let Some(holding) = self.holdings.get_mut(&id) else { return };
                holding.run = Some(answer.run);
                let amount = total.saturating_sub(holding.stored.unwrap_or_default());
                let ttl = holding.ttl;
                let expires = self.stops(sent, ttl);
                self.record(now, Fact::Extend { hold, amount, expires, from: None });
                let total = self.held(id).unwrap_or_default();
                self.events.push_back(Event::Extended { id, total });
                self.confirmed_by(now, answer.run);
            }
            Reply::Denied(denied) => self.deny_extension(id, denied),
            Reply::Granted { .. } | Reply::OtherRun | Reply::Done | Reply::Here => {
                if let Some(extending) =
                    self.holdings.get_mut(&id).and_then(|holding| holding.extending.as_mut())
                {
                    extending.op = None;
                    self.queue(now, id);
                }
            }
        }
    }

    /// Whatever the store said, it was told: if it has no room or knows an end, the settlement will find that out.
    fn assert_answered(&mut self, now: Instant, hold: HoldId, run: RunId) {
        if hold.allotment {
            let mut known = self.allotments.values_mut();
            if let Some(allotment) = known.find(|allotment| allotment.id == hold.id) {
                allotment.run = Some(run);
            }
        } else if let Some(holding) = self.holdings.get_mut(&hold.id) {
            holding.run = Some(run);
        }
        self.timers.insert((now, Timer::Work));
    }

    /// An answer nobody waits for. If the store holds something that is not held here, it is given back.
    fn answered_late(&mut self, now: Instant, answer: StoreAnswer) {
        let Reply::Granted { hold, pins, .. } = answer.reply else { return };
        let known = if hold.allotment {
            self.allotments.values().any(|allotment| allotment.id == hold.id)
        } else {
            let held = self.holdings.get(&hold.id);
            self.waiting.contains_key(&hold.id) || held.is_some_and(|held| held.stored.is_some())
        };
        if hold.owner == self.config.owner && !known {
            self.release(now, hold, tenant(&pins));
        }
    }

    fn queue(&mut self, now: Instant, id: ReservationId) {
        self.queued.push_back(id);
        self.timers.insert((now, Timer::Work));
    }
}
