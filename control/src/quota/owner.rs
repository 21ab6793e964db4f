//! The owner's side of a shared ledger: what this process drew, what it asked for, what it still has to say.
//!
//! What it holds is a fold of facts too (`facts`), so that it survives an upgrade; what is on its way is soft, and either
//! asked again or left to expire at the store. See [`super`] for the states of a reservation.

mod allotment;
mod answers;
mod facts;
mod terminals;
mod timers;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::entry::{Entry, Fact};
use super::ledger::Draw;
use super::store::{Ask, OpId, RunId, StoreOp};
use super::terms::{BalanceKey, Denied, DenyReason, HoldId, LIVE_MAX, Reserve, clamp};
use super::{Config, Event};
use crate::id::{AccountId, ReservationId};
use crate::time::{Instant, Wall};
use crate::units::Amount;
use allotment::Allotment;
use terminals::Ending;
use timers::Timer;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    config: Config,
    wall: Wall,
    /// The run of the store last heard of, and those before it, whose answers may still come.
    run: Option<RunId>,
    past_runs: VecDeque<RunId>,
    op_next: u64,
    allotment_next: u64,
    /// Reservations asked for.
    waiting: BTreeMap<ReservationId, Waiting>,
    /// Reservations held.
    holdings: BTreeMap<ReservationId, Holding>,
    /// What was drawn ahead, by path.
    allotments: BTreeMap<Path, Allotment>,
    /// Ends the store has not acknowledged.
    endings: BTreeMap<HoldId, Ending>,
    /// Asks without an answer.
    ops: BTreeMap<OpId, Asked>,
    timers: BTreeSet<(Instant, Timer)>,
    /// Draws that wait until everything held is asserted. May name what has gone.
    queued: VecDeque<ReservationId>,
    /// Where to go on asserting; `None` when all that is held has been.
    assert_next: Option<ReservationId>,
    asserting: BTreeSet<OpId>,
    /// The store has kept somebody waiting who could do without it, and has not answered anything since.
    late: bool,
    /// It has not answered at all.
    degraded: bool,
    /// What looks whether the store is back.
    probe: Option<OpId>,
    events: VecDeque<Event>,
}

/// The accounts that pay, the root first.
type Path = Vec<AccountId>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Waiting {
    reserve: Reserve,
    /// When it was first sent. The store's clock for it cannot have started earlier.
    sent: Option<Instant>,
    op: Option<OpId>,
    /// When it is looked at: whether it can be lent what it asks for, and in the end, whatever it can.
    due: Instant,
    /// That end.
    last: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Holding {
    pins: Vec<BalanceKey>,
    /// What the store holds for it; `None` if it lives on an allotment alone.
    stored: Option<Amount>,
    /// What an allotment has set aside for it.
    lent: Amount,
    /// That allotment.
    from: Option<ReservationId>,
    ttl: Duration,
    /// The run that last confirmed it.
    run: Option<RunId>,
    extending: Option<Extending>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Extending {
    amount: Amount,
    op: Option<OpId>,
    due: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Asked {
    purpose: Purpose,
    sent: Instant,
    /// When to give up waiting or ask again; `None` where a draw's own timer does that.
    due: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Purpose {
    Reserve(ReservationId),
    Extend(ReservationId),
    Allot(Path),
    End(HoldId),
    Assert(HoldId),
    Probe,
}

/// How soon to ask again while the store is away: by then it was probed again.
const AWAY_RETRY: Duration = Duration::from_secs(1);

impl Owner {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            wall: Wall::default(),
            run: None,
            past_runs: VecDeque::new(),
            op_next: 0,
            allotment_next: 0,
            waiting: BTreeMap::new(),
            holdings: BTreeMap::new(),
            allotments: BTreeMap::new(),
            endings: BTreeMap::new(),
            ops: BTreeMap::new(),
            timers: BTreeSet::new(),
            queued: VecDeque::new(),
            assert_next: None,
            asserting: BTreeSet::new(),
            late: false,
            degraded: false,
            probe: None,
            events: VecDeque::new(),
        }
    }

    pub fn set_config(&mut self, config: Config) {
        self.config = config;
    }

    /// True where nothing was ever asked for, and nothing recovered.
    pub fn is_untouched(&self) -> bool {
        let fresh = Self { wall: self.wall, ..Self::new(self.config.clone()) };
        *self == fresh
    }

    pub fn wall(&mut self, wall: Wall) {
        self.wall = self.wall.max(wall);
    }

    pub fn reserve(&mut self, now: Instant, reserve: Reserve) {
        let id = reserve.id;
        if let Some(total) = self.held(id) {
            self.events.push_back(Event::Granted { id, total });
            return;
        }
        if self.waiting.contains_key(&id) {
            return;
        }
        if clamp(reserve.amount) != reserve.amount {
            self.deny(id, Denied::never(DenyReason::TooLarge));
            return;
        }
        if self.outstanding() + self.endings.len() >= self.config.ledger.live_max.min(LIVE_MAX) {
            self.deny(id, Denied { reason: DenyReason::Full, retry_after: AWAY_RETRY });
            return;
        }
        if self.degraded {
            self.fall_back(now, &reserve);
            return;
        }
        // Somebody has waited already, for all of them.
        if self.late && self.lend(now, &reserve) {
            return;
        }
        let last = now + self.config.answer_timeout;
        let due = now + self.config.fallback_wait();
        self.timers.insert((due, Timer::Draw(id)));
        self.waiting.insert(id, Waiting { reserve, sent: None, op: None, due, last });
        self.draw(now, id);
    }

    pub fn extend(&mut self, now: Instant, id: ReservationId, amount: Amount) {
        let Some(holding) = self.holdings.get_mut(&id) else {
            let denied = Denied::never(DenyReason::Ended);
            self.events.push_back(Event::ExtendDenied { id, denied });
            return;
        };
        if holding.extending.is_some() {
            return;
        }
        let due = now + self.config.answer_timeout;
        holding.extending = Some(Extending { amount, op: None, due });
        self.timers.insert((due, Timer::Draw(id)));
        if self.degraded {
            self.extend_from_allotment(now, id);
        } else {
            self.draw(now, id);
        }
    }

    pub fn settle(&mut self, now: Instant, id: ReservationId, actual: Amount, estimated: bool) {
        if !self.holdings.contains_key(&id) {
            self.refund(now, id);
            return;
        }
        self.stop_extending(id);
        let hold = HoldId::request(self.config.owner, id);
        let actual = clamp(actual);
        self.record(now, Fact::Settle { hold, actual, estimated });
        self.send_ending(hold);
    }

    pub fn refund(&mut self, now: Instant, id: ReservationId) {
        let hold = HoldId::request(self.config.owner, id);
        if let Some(waiting) = self.stop_waiting(id) {
            self.release_asked(now, &waiting);
        } else if self.holdings.contains_key(&id) {
            self.stop_extending(id);
            self.record(now, Fact::Refund { hold });
            self.send_ending(hold);
        }
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub fn held(&self, id: ReservationId) -> Option<Amount> {
        self.holdings.get(&id).map(Holding::total)
    }

    pub fn answers(&self) -> bool {
        !self.late && !self.degraded
    }

    pub fn outstanding(&self) -> usize {
        self.waiting.len() + self.holdings.len()
    }

    pub fn ending(&self) -> usize {
        self.endings.len()
    }

    pub fn live(&self) -> impl Iterator<Item = ReservationId> + '_ {
        self.waiting.keys().chain(self.holdings.keys()).copied()
    }

    pub fn invariants(&self) {
        for (id, waiting) in &self.waiting {
            assert!(!self.holdings.contains_key(id), "{id} is held and asked for");
            assert!(self.timers.contains(&(waiting.due, Timer::Draw(*id))), "{id} waits forever");
            assert!(waiting.due <= waiting.last, "{id} is looked at too late");
        }
        for (id, holding) in &self.holdings {
            assert!(holding.stored.is_some() || holding.from.is_some(), "{id} holds nothing");
            if let Some(extending) = holding.extending {
                let timer = (extending.due, Timer::Draw(*id));
                assert!(self.timers.contains(&timer), "{id} extends forever");
            }
        }
        for (op, asked) in &self.ops {
            let timed = asked.due.is_some_and(|due| self.timers.contains(&(due, Timer::Op(*op))));
            let drawn = matches!(asked.purpose, Purpose::Reserve(_) | Purpose::Extend(_));
            assert!(timed || drawn, "{op:?} is never asked again");
        }
        for (hold, ending) in &self.endings {
            assert!(self.ops.contains_key(&ending.op), "{hold:?} is never ended");
        }
        assert!(self.allotments.len() <= self.config.allotments_max.max(1), "too many allotments");
        self.allotment_invariants();
    }
}

impl Owner {
    /// Draws may be sent: the store answers, and knows all that is held.
    fn ready(&self) -> bool {
        !self.degraded && self.assert_next.is_none() && self.asserting.is_empty()
    }

    /// Sends the reservation or extension `id` waits for, or queues it.
    fn draw(&mut self, now: Instant, id: ReservationId) {
        if self.holdings.get(&id).is_some_and(|held| held.stored.is_none()) {
            self.extend_from_allotment(now, id);
            return;
        }
        if !self.ready() {
            self.queued.push_back(id);
            return;
        }
        let hold = HoldId::request(self.config.owner, id);
        if let Some(waiting) = self.waiting.get_mut(&id) {
            waiting.sent = waiting.sent.or(Some(now));
            let Reserve { accounts, amount, ttl, .. } = waiting.reserve.clone();
            let tenant = accounts[0].0;
            let ask = Ask::Reserve(Draw { hold, accounts, amount, ttl });
            let op = self.ask(now, Purpose::Reserve(id), Some(tenant), ask, None);
            if let Some(waiting) = self.waiting.get_mut(&id) {
                waiting.op = Some(op);
            }
        } else if let Some(holding) = self.holdings.get(&id)
            && let (Some(extending), Some(stored)) = (holding.extending, holding.stored)
        {
            let tenant = tenant(&holding.pins);
            let ask = Ask::Extend { hold, total: stored + extending.amount };
            let op = self.ask(now, Purpose::Extend(id), tenant, ask, None);
            if let Some(Holding { extending: Some(extending), .. }) = self.holdings.get_mut(&id) {
                extending.op = Some(op);
            }
        }
    }

    /// Sends one ask. With `due`, a timer is set for it.
    fn ask(
        &mut self,
        now: Instant,
        purpose: Purpose,
        tenant: Option<AccountId>,
        ask: Ask,
        due: Option<Instant>,
    ) -> OpId {
        let op = self.mint(now, purpose, due);
        self.send(op, tenant, ask);
        op
    }

    fn mint(&mut self, now: Instant, purpose: Purpose, due: Option<Instant>) -> OpId {
        let op = OpId(self.op_next);
        self.op_next += 1;
        self.timers.extend(due.map(|due| (due, Timer::Op(op))));
        self.ops.insert(op, Asked { purpose, sent: now, due });
        op
    }

    fn send(&mut self, op: OpId, tenant: Option<AccountId>, ask: Ask) {
        let (owner, run) = (self.config.owner, self.run);
        self.events.push_back(Event::Ask(StoreOp { op, owner, run, tenant, ask }));
    }

    /// Takes an ask off the books: answered, or not waited for any more.
    fn forget(&mut self, op: OpId) -> Option<Asked> {
        let asked = self.ops.remove(&op)?;
        if let Some(due) = asked.due {
            self.timers.remove(&(due, Timer::Op(op)));
        }
        self.asserting.remove(&op);
        Some(asked)
    }

    /// Gives back what the store may have held for an ask that nobody waits for any more.
    fn release_asked(&mut self, now: Instant, waiting: &Waiting) {
        if waiting.sent.is_some() {
            let hold = HoldId::request(self.config.owner, waiting.reserve.id);
            let tenant = waiting.reserve.accounts.first().map(|(account, _)| *account);
            self.release(now, hold, tenant);
        }
    }

    fn stop_waiting(&mut self, id: ReservationId) -> Option<Waiting> {
        let waiting = self.waiting.remove(&id)?;
        self.timers.remove(&(waiting.due, Timer::Draw(id)));
        waiting.op.and_then(|op| self.forget(op));
        Some(waiting)
    }

    fn stop_extending(&mut self, id: ReservationId) -> Option<Extending> {
        let extending = self.holdings.get_mut(&id)?.extending.take()?;
        self.timers.remove(&(extending.due, Timer::Draw(id)));
        extending.op.and_then(|op| self.forget(op));
        Some(extending)
    }

    /// The store did not answer in time: from an allotment, or not at all.
    fn fall_back(&mut self, now: Instant, reserve: &Reserve) {
        if !self.lend(now, reserve) {
            let reason = DenyReason::StoreUnreachable;
            self.deny(reserve.id, Denied { reason, retry_after: AWAY_RETRY });
        }
    }

    /// Whoever can do without the store waits for it no longer. Whether it is away is known soon: what was asked of it is
    /// given back, and that is waited for in its turn.
    fn be_late(&mut self) {
        if !self.late && !self.degraded {
            self.late = true;
            self.events.push_back(Event::Late);
        }
    }

    fn degrade(&mut self, now: Instant) {
        if self.degraded {
            return;
        }
        (self.late, self.degraded) = (false, true);
        self.events.push_back(Event::Degraded);
        let due = now + self.config.probe_every;
        self.probe = Some(self.ask(now, Purpose::Probe, None, Ask::Probe, Some(due)));
    }

    fn deny(&mut self, id: ReservationId, denied: Denied) {
        self.events.push_back(Event::Denied { id, denied });
    }

    fn deny_extension(&mut self, id: ReservationId, denied: Denied) {
        if self.stop_extending(id).is_some() {
            self.events.push_back(Event::ExtendDenied { id, denied });
        }
    }

    /// Makes a fact and says so.
    fn record(&mut self, now: Instant, fact: Fact) {
        let entry = Entry { at: now, wall: self.wall, fact };
        self.apply(&entry);
        self.events.push_back(Event::Entry(entry));
    }
}

impl Holding {
    fn total(&self) -> Amount {
        self.stored.unwrap_or_default() + self.lent
    }
}

fn tenant(pins: &[BalanceKey]) -> Option<AccountId> {
    pins.first().map(|pin| pin.account)
}

/// The accounts of a reservation, the root first.
fn path_of(pins: &[BalanceKey]) -> Path {
    let mut path: Path = pins.iter().map(|pin| pin.account).collect();
    path.dedup();
    path
}
