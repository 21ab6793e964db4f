//! Quota drawn ahead, to be spent while the store is away.
//!
//! An allotment is a reservation of its own in the shared ledger. It follows use: whoever was granted something by the
//! store gets one drawn for its path of accounts; unused for half its life it is settled. It is renewed and topped up while
//! it is used, but not for ever: what is spent of it counts in the windows pinned when it was drawn, so it is replaced when
//! its day is over, or after four lives, as soon as nothing runs on it.

use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::Event;
use super::super::entry::Fact;
use super::super::ledger::Draw;
use super::super::store::{Ask, OpId, Reply, RunId, StoreAnswer};
use super::super::terms::{BalanceKey, Denied, DenyReason, HoldId, Limits, Reserve, clamp, covers};
use super::facts::over;
use super::timers::Timer;
use super::{AWAY_RETRY, Owner, Path, Purpose, path_of, tenant};
use crate::id::{AccountId, Minted, ReservationId};
use crate::time::{Instant, Wall};
use crate::units::{Amount, MicroUsd, Tokens};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Allotment {
    pub id: ReservationId,
    pub pins: Vec<BalanceKey>,
    /// What the store holds for it. Nothing until it was drawn.
    pub total: Amount,
    /// Used by requests that have ended.
    pub spent: Amount,
    /// Set aside for requests that run.
    pub held: Amount,
    /// When the owner stops spending it.
    pub expires: Instant,
    /// The run that last confirmed it.
    pub run: Option<RunId>,
    drawn: bool,
    born: Instant,
    ttl: Duration,
    op: Option<OpId>,
    /// When to look at it again.
    check: Instant,
    /// Somebody of its path was granted something since it was last renewed.
    used: bool,
    /// The store would not add to it: ask no more until the next look.
    denied: bool,
    /// Extensions that wait for more.
    waiters: Vec<ReservationId>,
}

/// Lives after which an allotment is replaced: with the default of five minutes, what it spends is counted in a rolling
/// slice at most some twenty minutes old.
const LIVES_MAX: u32 = 4;

impl Allotment {
    pub fn drawn(
        id: ReservationId,
        pins: Vec<BalanceKey>,
        total: Amount,
        (born, ttl, expires): (Instant, Duration, Instant),
    ) -> Self {
        Self {
            id,
            pins,
            total,
            spent: Amount::ZERO,
            held: Amount::ZERO,
            expires,
            run: None,
            drawn: true,
            born,
            ttl,
            op: None,
            check: born + expires.since(born) / 2,
            used: true,
            denied: false,
            waiters: Vec::new(),
        }
    }

    fn free(&self) -> Amount {
        self.total.saturating_sub(self.spent + self.held)
    }

    fn alive(&self, now: Instant) -> bool {
        self.drawn && now < self.expires
    }

    /// No new request may be put on it.
    fn retiring(&self, now: Instant, wall: Wall) -> bool {
        over(&self.pins, wall) || now.since(self.born) > self.ttl * LIVES_MAX
    }
}

impl Owner {
    /// Grants a reservation from an allotment, if one covers it.
    pub(super) fn lend(&mut self, now: Instant, reserve: &Reserve) -> bool {
        if !self.can_lend(now, reserve) {
            return false;
        }
        let path: Path = reserve.accounts.iter().map(|(account, _)| *account).collect();
        let Some(allotment) = self.allotments.get_mut(&path) else { return false };
        allotment.used = true;
        let (id, pins, from) = (reserve.id, allotment.pins.clone(), Some(allotment.id));
        let hold = HoldId::request(self.config.owner, id);
        let (amount, ttl, expires) = (reserve.amount, reserve.ttl, now + reserve.ttl);
        self.record(now, Fact::Reserve { hold, pins, amount, ttl, expires, from });
        self.events.push_back(Event::Granted { id, total: amount });
        true
    }

    /// Whether an allotment covers a reservation.
    pub(super) fn can_lend(&self, now: Instant, reserve: &Reserve) -> bool {
        let path: Path = reserve.accounts.iter().map(|(account, _)| *account).collect();
        self.allotments.get(&path).is_some_and(|allotment| {
            allotment.alive(now)
                && !allotment.retiring(now, self.wall)
                && (planted!(LendBeyondAllotment) || covers(allotment.free(), reserve.amount))
        })
    }

    /// Extends `id` from an allotment: its own, or if it has none, its path's.
    pub(super) fn extend_from_allotment(&mut self, now: Instant, id: ReservationId) {
        let Some(holding) = self.holdings.get(&id) else { return };
        let Some(extending) = holding.extending else { return };
        let (from, lent_only, ttl) = (holding.from, holding.stored.is_none(), holding.ttl);
        let (path, amount) = (path_of(&holding.pins), extending.amount);
        let (ready, wall) = (self.ready(), self.wall);
        let allotment = self.allotments.get_mut(&path).filter(|allotment| {
            let own = from == Some(allotment.id);
            allotment.alive(now) && (own || from.is_none() && !allotment.retiring(now, wall))
        });
        let Some(allotment) = allotment else {
            self.deny_extension(id, UNREACHABLE);
            return;
        };
        if covers(allotment.free(), amount) {
            allotment.used = true;
            let from = Some(allotment.id);
            let hold = HoldId::request(self.config.owner, id);
            self.stop_extending(id);
            let expires = now + ttl;
            self.record(now, Fact::Extend { hold, amount, expires, from });
            let total = self.held(id).unwrap_or_default();
            self.events.push_back(Event::Extended { id, total });
        } else if lent_only && ready {
            allotment.waiters.push(id);
            let total = allotment.spent + allotment.held + amount + self.config.allotment;
            self.top_up(now, &path, total);
        } else if lent_only && !self.degraded {
            self.queued.push_back(id);
        } else {
            self.deny_extension(id, UNREACHABLE);
        }
    }

    /// A path was just granted something by the store: draw ahead for it, or keep what is drawn filled.
    pub(super) fn draw_ahead(&mut self, now: Instant, accounts: &[(AccountId, Limits)]) {
        let wanted = self.config.allotment;
        if wanted == Amount::ZERO || clamp(wanted) != wanted || !self.ready() {
            return;
        }
        let path: Path = accounts.iter().map(|(account, _)| *account).collect();
        let wall = self.wall;
        if let Some(allotment) = self.allotments.get_mut(&path) {
            allotment.used = true;
            let low = !covers(allotment.free(), half(wanted));
            if low && allotment.alive(now) && !allotment.denied && !allotment.retiring(now, wall) {
                let total = allotment.spent + allotment.held + wanted;
                self.top_up(now, &path, total);
            }
            return;
        }
        if self.allotments.len() >= self.config.allotments_max {
            return;
        }
        let id = ReservationId(Minted { incarnation: 0, counter: self.allotment_next });
        self.allotment_next += 1;
        let (ttl, due) = (self.config.allotment_ttl, now + self.config.answer_timeout);
        let hold = HoldId::allotment(self.config.owner, id);
        let ask = Ask::Reserve(Draw { hold, accounts: accounts.to_vec(), amount: wanted, ttl });
        let tenant = path.first().copied();
        let op = self.ask(now, Purpose::Allot(path.clone()), tenant, ask, Some(due));
        let asked = Allotment::drawn(id, Vec::new(), Amount::ZERO, (now, ttl, now + ttl));
        self.insert_allotment(path, Allotment { drawn: false, op: Some(op), ..asked });
    }

    pub(super) fn allotment_answered(
        &mut self,
        now: Instant,
        path: &Path,
        sent: Instant,
        answer: StoreAnswer,
    ) {
        let Some(allotment) = self.allotments.get_mut(path) else { return };
        allotment.op = None;
        let waiters = core::mem::take(&mut allotment.waiters);
        let (drawn, id, ttl) = (allotment.drawn, allotment.id, allotment.ttl);
        let hold = HoldId::allotment(self.config.owner, id);
        match answer.reply {
            Reply::Granted { hold: granted, total, pins }
                if granted == hold && path_of(&pins) == *path =>
            {
                let amount = total.saturating_sub(allotment.total);
                let sent = if planted!(AllotmentIgnoresDrift) { now } else { sent };
                let expires = self.stops(sent, ttl);
                self.record(
                    now,
                    match drawn {
                        false => Fact::Reserve { hold, pins, amount, ttl, expires, from: None },
                        true => Fact::Extend { hold, amount, expires, from: None },
                    },
                );
                if let Some(allotment) = self.allotments.get_mut(path) {
                    allotment.run = Some(answer.run);
                }
                self.confirmed_by(now, answer.run);
                waiters.into_iter().for_each(|id| self.extend_from_allotment(now, id));
                return;
            }
            Reply::Denied(Denied { reason: DenyReason::Ended, .. }) if drawn => {
                self.close_allotment(now, path);
            }
            Reply::Denied(_) => allotment.denied = true,
            Reply::Granted { .. } | Reply::OtherRun | Reply::Done | Reply::Here if !drawn => {
                self.drop_allotment(path);
            }
            Reply::Granted { .. } | Reply::OtherRun | Reply::Done | Reply::Here => {}
        }
        waiters.into_iter().for_each(|id| self.deny_extension(id, UNREACHABLE));
    }

    /// No answer in time. What waits for it has timers of its own.
    pub(super) fn allotment_unanswered(&mut self, now: Instant, path: &Path) {
        let Some(allotment) = self.allotments.get_mut(path) else { return };
        allotment.op = None;
        if !allotment.drawn {
            let hold = HoldId::allotment(self.config.owner, allotment.id);
            self.drop_allotment(path);
            self.release(now, hold, path.first().copied());
        }
    }

    /// Half its life is over: renew, replace or give back.
    pub(super) fn check_allotment(&mut self, now: Instant, path: &Path) {
        let (ready, wall, wanted) = (self.ready(), self.wall, self.config.allotment);
        let Some(allotment) = self.allotments.get_mut(path) else { return };
        if !allotment.drawn && allotment.op.is_none() {
            self.drop_allotment(path);
            return;
        }
        let retiring = allotment.retiring(now, wall);
        let idle = allotment.held == Amount::ZERO && (!allotment.used || retiring);
        if allotment.drawn && (!allotment.alive(now) || idle) {
            self.close_allotment(now, path);
            return;
        }
        let left = allotment.expires.since(now);
        let pause = if ready { left / 2 } else { AWAY_RETRY };
        // Never busy: the last look is at the end itself.
        let next = if pause < AWAY_RETRY { now + left.max(AWAY_RETRY) } else { now + pause };
        allotment.check = next;
        self.timers.insert((next, Timer::Allotment(path.clone())));
        if ready && allotment.drawn {
            let keep = retiring || allotment.denied;
            let filled = allotment.spent + allotment.held + wanted;
            let total = if keep { allotment.total } else { filled };
            allotment.used = false;
            allotment.denied = false;
            self.top_up(now, path, total);
        }
    }

    /// Puts an allotment in its place. A drawn one takes over what the asked one had noted.
    pub(super) fn insert_allotment(&mut self, path: Path, allotment: Allotment) {
        // After a recovery ids go on where the facts end.
        self.allotment_next = self.allotment_next.max(allotment.id.0.counter + 1);
        self.timers.insert((allotment.check, Timer::Allotment(path.clone())));
        let check = allotment.check;
        if let Some(old) = self.allotments.insert(path.clone(), allotment)
            && old.check != check
        {
            self.timers.remove(&(old.check, Timer::Allotment(path)));
        }
    }

    /// Takes a drawn allotment off the books.
    pub(super) fn take_allotment(&mut self, id: ReservationId) -> Option<Allotment> {
        let drawn = |(_, allotment): &(&Path, &Allotment)| allotment.id == id && allotment.drawn;
        let path = self.allotments.iter().find(drawn).map(|(path, _)| path.clone())?;
        self.drop_allotment(&path)
    }

    /// What is drawn and was not confirmed by this run of the store.
    pub(super) fn unconfirmed_allotments(
        &self,
    ) -> Vec<(HoldId, Vec<BalanceKey>, Amount, Duration)> {
        let drawn = self.allotments.values().filter(|a| a.drawn && a.run != self.run);
        drawn
            .map(|a| (HoldId::allotment(self.config.owner, a.id), a.pins.clone(), a.total, a.ttl))
            .collect()
    }

    pub(super) fn allotment_invariants(&self) {
        for (path, allotment) in &self.allotments {
            let timer = (allotment.check, Timer::Allotment(path.clone()));
            assert!(self.timers.contains(&timer), "an allotment nobody looks at");
            let runs_on = |from: Option<ReservationId>| from == Some(allotment.id);
            let lent = self.holdings.values().filter(|held| runs_on(held.from));
            let lent = lent.fold(Amount::ZERO, |sum, held| sum + held.lent);
            assert_eq!(allotment.held, lent, "what is lent is what is set aside");
            if let Some(op) = allotment.op {
                assert!(self.ops.contains_key(&op), "an allotment waits for nothing");
            }
        }
    }

    /// When an owner stops counting on what it asked for at `sent`: before the store can have expired it.
    pub(super) fn stops(&self, sent: Instant, ttl: Duration) -> Instant {
        if planted!(AllotmentIgnoresDrift) {
            return sent + ttl;
        }
        sent + ttl - self.config.drift_max
    }

    fn top_up(&mut self, now: Instant, path: &Path, total: Amount) {
        let due = now + self.config.answer_timeout;
        let Some(allotment) = self.allotments.get(path) else { return };
        if allotment.op.is_some() {
            return;
        }
        let hold = HoldId::allotment(self.config.owner, allotment.id);
        let tenant = tenant(&allotment.pins);
        let ask = Ask::Extend { hold, total: clamp(total) };
        let op = self.ask(now, Purpose::Allot(path.clone()), tenant, ask, Some(due));
        if let Some(allotment) = self.allotments.get_mut(path) {
            allotment.op = Some(op);
        }
    }

    fn close_allotment(&mut self, now: Instant, path: &Path) {
        let Some(allotment) = self.allotments.get_mut(path) else { return };
        let (id, actual) = (allotment.id, allotment.spent);
        let waiters = core::mem::take(&mut allotment.waiters);
        waiters.into_iter().for_each(|id| self.deny_extension(id, UNREACHABLE));
        let hold = HoldId::allotment(self.config.owner, id);
        self.record(now, Fact::Settle { hold, actual, estimated: false });
        self.send_ending(hold);
    }

    fn drop_allotment(&mut self, path: &Path) -> Option<Allotment> {
        let allotment = self.allotments.remove(path)?;
        self.timers.remove(&(allotment.check, Timer::Allotment(path.clone())));
        allotment.op.and_then(|op| self.forget(op));
        Some(allotment)
    }
}

const UNREACHABLE: Denied =
    Denied { reason: DenyReason::StoreUnreachable, retry_after: AWAY_RETRY };

const fn half(amount: Amount) -> Amount {
    Amount { tokens: Tokens(amount.tokens.0 / 2), money: MicroUsd(amount.money.0 / 2) }
}
