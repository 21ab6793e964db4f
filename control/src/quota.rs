//! The `quota` room: who may spend how many tokens, and how much money.
//!
//! **The problem.** A request's cost is known when it is over, and by then the process that started it may be dead, its
//! client gone, the store it counts in cut off, and its account spent by somebody else. So quota is *reserved* before
//! dispatch, *extended* in slices while a stream runs (a large `max_tokens` locks nothing up), and *settled* with what was
//! used; whoever disappears in between gives it back by expiry.
//!
//! **The ledger** ([`Ledger`]) decides, and is a fold of facts. Embedded, it runs here. Shared among gateways, the same
//! code is the specification of the store's script ([`Ledger::perform`]), and this room is an *owner* of what it drew there.
//! Both answer on the same path: an event, at once or later.
//!
//! **When the shared ledger does not answer**, an owner spends only what it drew ahead: an *allotment* per recently used path
//! of accounts, itself a reservation in the ledger, so the bound
//! `spent + outstanding <= limit + overrun + late + failover loss` holds under any partition. It gives up in two steps. After
//! [`Config::fallback_after`] the store is *late*: whoever has enough drawn ahead is lent that, and until the store answers
//! nobody who has waits at all. Who has not still asks, because a slow store is better than a refusal. After
//! [`Config::answer_timeout`] the store is *away*: it is asked nothing but a probe, and what no allotment covers is refused,
//! at once rather than after a wait each time.
//!
//! **Rejected:** to fail open (N gateways, N limits), to fail closed without allotments (one lost store stops
//! everything at once), and one short wait for all: a store that pauses for a tenth of a second would have everybody refused
//! of whom nobody had drawn ahead.
//!
//! **Edge cases.** A reservation that was given up waiting is refunded at the store, whose answer may then come as it
//! likes. A terminal is repeated until acknowledged. A store that may have forgotten (another run id) is told what is held
//! before anything is drawn from it. An allotment stops `drift_max` before its time, counted from before it was asked for;
//! a request still running on one that ended is settled on its own, late.
//!
//! A request's reservation, as its owner sees it:
//!
//! | state   | granted | denied  | no answer      | extend  | settle | refund |
//! |---------|---------|---------|----------------|---------|--------|--------|
//! | unknown | release | -       | -              | denied  | -      | -      |
//! | asked   | held    | unknown | lent or denied | denied  | ending | ending |
//! | held    | -       | -       | -              | held    | ending | ending |
//! | lent    | -       | -       | -              | lent    | gone   | gone   |
//!
//! "Lent" is held from an allotment: its end is noted there, and what the store may have granted after all is on its way
//! back already. "Release" gives back what nobody here holds. "Ending" lasts until the store acknowledges.

mod audit;
mod book;
mod entry;
mod ledger;
mod owner;
mod store;
mod sums;
mod terms;

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

pub use audit::{Audit, Place, Violation};
pub use entry::{Entry, Fact, Terminal};
pub use ledger::{Draw, Ledger, LedgerConfig, Settled};
pub use store::{Ask, OpId, Reply, RunId, StoreAnswer, StoreOp};
pub use sums::{Equation, Sums};
pub use terms::{
    At, BalanceKey, Cap, Denied, DenyReason, HoldId, LIVE_MAX, Limits, MAX_AMOUNT, MAX_SUM,
    OwnerId, Reserve, Rolling, Unit, Window, WindowKind,
};

use crate::id::ReservationId;
use crate::time::{Instant, Wall};
use crate::units::{Amount, MicroUsd, Tokens};
use owner::Owner;

/// Policy of the room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Where the ledger is. Fixed for the life of the room: a change needs a restart.
    pub store: StoreMode,
    /// This process among those that share a store. Fixed for the life of the room.
    pub owner: OwnerId,
    /// How many tokens a stream reserves at a time. Also the most one stream can overrun by.
    pub slice: Tokens,
    /// How long a reservation lives without a word: longer than a stream may go between two slices.
    pub reservation_ttl: Duration,
    /// How far an owner's clock and the ledger's may drift apart within a reservation's life.
    pub drift_max: Duration,
    /// How long to wait for the shared store before it is taken for gone: then what was not drawn ahead is refused.
    pub answer_timeout: Duration,
    /// How long a request waits for the shared store that can do without it: one of which enough was drawn ahead, and any for
    /// what is shared beside the ledger. Never longer than `answer_timeout`. Zero: as long as that, as where a configuration
    /// was written down before there was this.
    #[serde(default)]
    pub fallback_after: Duration,
    /// How often to look whether a store that did not answer is back.
    pub probe_every: Duration,
    /// The longest pause between two tries to end a reservation at the store.
    pub retry_max: Duration,
    /// When to give up ending it. Shorter than the ledger remembers ends, so that none is charged twice.
    pub give_up: Duration,
    /// What to draw ahead for a path of accounts, to be spent while the store is away. Zero in both units: nothing.
    pub allotment: Amount,
    /// For how many paths at once. Bounds what lies idle here: this many allotments.
    pub allotments_max: usize,
    /// How long an allotment lives without renewal.
    pub allotment_ttl: Duration,
    /// The ledger's own bounds (embedded). `live_max` also bounds what an owner holds. Its `drift_max` is not used here.
    pub ledger: LedgerConfig,
}

/// Where the ledger is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreMode {
    /// Here, in this process.
    #[default]
    Embedded,
    /// In a store that several gateways share, with rates, idempotency keys and sessions' homes beside it.
    Shared,
    /// Here, and of the rest only rates are shared: at an edge, where nothing is spent and nobody is at home.
    Edge,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            store: StoreMode::Embedded,
            owner: OwnerId::default(),
            // 256 tokens: some five seconds of a fast stream, so a store is asked seldom, yet little is locked up.
            slice: Tokens(256),
            reservation_ttl: Duration::from_secs(300),
            drift_max: Duration::from_secs(2),
            // A healthy store answers in a millisecond; a request should not feel a sick one.
            answer_timeout: Duration::from_millis(250),
            // Far beyond a healthy store's millisecond, and short beside a first token.
            fallback_after: Duration::from_millis(50),
            probe_every: Duration::from_secs(1),
            retry_max: Duration::from_secs(5),
            give_up: Duration::from_secs(3_600),
            // Sixteen slices, or five cents: a few short answers per account while the store is away.
            allotment: Amount { tokens: Tokens(4_096), money: MicroUsd(50_000) },
            // 64 paths: what the default may set aside is 262,144 tokens in all.
            allotments_max: 64,
            allotment_ttl: Duration::from_secs(300),
            ledger: LedgerConfig::default(),
        }
    }
}

impl Config {
    /// How long a request waits for the shared store that can do without it.
    #[must_use]
    pub fn fallback_wait(&self) -> Duration {
        match self.fallback_after {
            Duration::ZERO => self.answer_timeout,
            after => after.min(self.answer_timeout),
        }
    }
}

/// What the room says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The reservation holds `total`.
    Granted {
        /// Which.
        id: ReservationId,
        /// All that it holds.
        total: Amount,
    },
    /// The reservation holds nothing.
    Denied {
        /// Which.
        id: ReservationId,
        /// Why.
        denied: Denied,
    },
    /// The reservation now holds `total`.
    Extended {
        /// Which.
        id: ReservationId,
        /// All that it holds.
        total: Amount,
    },
    /// The reservation holds what it held before, and gets no more.
    ExtendDenied {
        /// Which.
        id: ReservationId,
        /// Why.
        denied: Denied,
    },
    /// To be sent to the shared store.
    Ask(StoreOp),
    /// A fact to be made durable: of the ledger where it is embedded, of what this owner holds where it is shared.
    Entry(Entry),
    /// The shared store is late: until it answers, who has enough drawn ahead does not wait for it.
    Late,
    /// The shared store does not answer: allotments only, from here on.
    Degraded,
    /// It answers again, after [`Event::Degraded`].
    Restored,
    /// A terminal was never acknowledged and is given up: what it charged is lost to the ledger.
    Lost {
        /// What ended.
        hold: HoldId,
        /// What had been used.
        actual: Amount,
    },
}

/// The room the plane talks to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    config: Config,
    wall: Wall,
    mode: Mode,
    events: VecDeque<Event>,
    /// Room for the entries of one call, kept for the next. Empty between calls.
    #[serde(skip)]
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    Embedded(Ledger),
    Shared(Owner),
}

/// The embedded ledger forgets nothing that was acknowledged: it has one run for ever.
pub const EMBEDDED_RUN: RunId = RunId(1);

/// Expiries handled by one timeout, and windows looked at when wall time arrives: some 100 us. What is left asks for an
/// immediate timeout.
const WORK_PER_CALL: usize = 64;

impl Quota {
    /// A room that holds nothing yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let mode = match config.store {
            StoreMode::Embedded | StoreMode::Edge => Mode::Embedded(Ledger::new(embedded(&config))),
            StoreMode::Shared => Mode::Shared(Owner::new(config.clone())),
        };
        Self { config, wall: Wall::default(), mode, events: VecDeque::new(), entries: Vec::new() }
    }

    /// New policy. What is held stays. Where the ledger is, and who we are there, is settled with the first thing this room
    /// keeps; from then on it stays too: [`config`](Self::config) tells which it is.
    pub fn set_config(&mut self, config: Config) {
        let (store, owner) = (self.config.store, self.config.owner);
        if (store, owner) != (config.store, config.owner) && self.is_untouched() {
            let (now, wall) = (Instant::ZERO, self.wall);
            *self = Self::new(config);
            self.wall(now, wall);
            return;
        }
        // What is shared beside a ledger of one's own may change.
        let is_own = store != StoreMode::Shared && config.store != StoreMode::Shared;
        let store = if is_own { config.store } else { store };
        self.config = Config { store, owner, ..config };
        match &mut self.mode {
            Mode::Embedded(ledger) => ledger.set_config(embedded(&self.config)),
            Mode::Shared(owner) => owner.set_config(self.config.clone()),
        }
    }

    /// True until anything was asked of it.
    fn is_untouched(&self) -> bool {
        match &self.mode {
            Mode::Embedded(ledger) => ledger.is_untouched() && self.events.is_empty(),
            Mode::Shared(owner) => owner.is_untouched(),
        }
    }

    /// Its policy.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Wall time passes. Windows that are over close.
    pub fn wall(&mut self, now: Instant, wall: Wall) {
        self.wall = self.wall.max(wall);
        self.with_ledger(now, |ledger, at, out| ledger.close_due(at, WORK_PER_CALL, out));
        if let Mode::Shared(owner) = &mut self.mode {
            owner.wall(wall);
        }
    }

    /// Asks to hold quota. Answered by [`Event::Granted`] or [`Event::Denied`], once.
    ///
    /// # Panics
    /// Unless one to three accounts pay.
    pub fn reserve(&mut self, now: Instant, reserve: Reserve) {
        assert!((1..=3).contains(&reserve.accounts.len()), "one to three accounts pay");
        if let Mode::Shared(owner) = &mut self.mode {
            owner.reserve(now, reserve);
            return;
        }
        let Reserve { id, accounts, amount, ttl } = reserve;
        let draw = Draw { hold: HoldId::request(self.config.owner, id), accounts, amount, ttl };
        let answer = self.with_ledger(now, |ledger, at, out| ledger.reserve(at, &draw, out));
        self.events.extend(answer.map(|answer| match answer {
            Ok(total) => Event::Granted { id, total },
            Err(denied) => Event::Denied { id, denied },
        }));
    }

    /// Asks to hold `amount` more. Answered by [`Event::Extended`] or [`Event::ExtendDenied`]. One at a time: while one is
    /// on its way, another changes nothing.
    pub fn extend(&mut self, now: Instant, id: ReservationId, amount: Amount) {
        let hold = HoldId::request(self.config.owner, id);
        if let Mode::Shared(owner) = &mut self.mode {
            owner.extend(now, id, amount);
            return;
        }
        let answer = self.with_ledger(now, |ledger, at, out| {
            let held = ledger.held(hold).unwrap_or_default();
            ledger.extend_to(at, hold, held + amount, out)
        });
        self.events.extend(answer.map(|answer| match answer {
            Ok(total) => Event::Extended { id, total },
            Err(denied) => Event::ExtendDenied { id, denied },
        }));
    }

    /// Ends a reservation with what was used. Of an unknown one, or one that has ended, nothing is charged; of one that
    /// expired, it is, late. One that was not granted yet is refunded: nothing can have been used.
    pub fn settle(&mut self, now: Instant, id: ReservationId, actual: Amount, estimated: bool) {
        let hold = HoldId::request(self.config.owner, id);
        self.with_ledger(now, |ledger, at, out| ledger.settle(at, hold, actual, estimated, out));
        if let Mode::Shared(owner) = &mut self.mode {
            owner.settle(now, id, actual, estimated);
        }
    }

    /// Ends a reservation of which nothing was used.
    pub fn refund(&mut self, now: Instant, id: ReservationId) {
        let hold = HoldId::request(self.config.owner, id);
        self.with_ledger(now, |ledger, at, out| ledger.refund(at, hold, out));
        if let Mode::Shared(owner) = &mut self.mode {
            owner.refund(now, id);
        }
    }

    /// The shared store answers: perhaps late, perhaps twice, perhaps to nothing we asked.
    pub fn answer(&mut self, now: Instant, answer: StoreAnswer) {
        if let Mode::Shared(owner) = &mut self.mode {
            owner.answer(now, answer);
        }
    }

    /// An ask of ours cannot reach the shared store.
    pub fn ask_failed(&mut self, now: Instant, op: OpId) {
        if let Mode::Shared(owner) = &mut self.mode {
            owner.ask_failed(now, op);
        }
    }

    /// The next event. Drain in order after every call.
    #[must_use]
    pub fn poll_event(&mut self) -> Option<Event> {
        match &mut self.mode {
            Mode::Embedded(_) => self.events.pop_front(),
            Mode::Shared(owner) => owner.poll_event(),
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.mode {
            Mode::Embedded(ledger) => ledger.next_expiry(),
            Mode::Shared(owner) => owner.poll_timeout(),
        }
    }

    /// Does what is due: expiries, fallbacks, repeats, renewals; a bounded part of it.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.with_ledger(now, |ledger, at, out| ledger.expire(at, WORK_PER_CALL, out));
        if let Mode::Shared(owner) = &mut self.mode {
            owner.handle_timeout(now, WORK_PER_CALL);
        }
    }

    /// True where a stream that has used `used` should ask for its next slice: less than half a slice is left.
    #[must_use]
    pub fn wants_extension(&self, id: ReservationId, used: Tokens) -> bool {
        let half = Tokens(self.config.slice.0.div_ceil(2));
        self.held(id).is_some_and(|held| held.tokens.saturating_sub(used) < half)
    }

    /// What a reservation holds, while it is live and granted.
    #[must_use]
    pub fn held(&self, id: ReservationId) -> Option<Amount> {
        match &self.mode {
            Mode::Embedded(ledger) => ledger.held(HoldId::request(self.config.owner, id)),
            Mode::Shared(owner) => owner.held(id),
        }
    }

    /// How many reservations of requests are asked for or held.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        match &self.mode {
            Mode::Embedded(ledger) => ledger.outstanding(),
            Mode::Shared(owner) => owner.outstanding(),
        }
    }

    /// How many ends the shared store has not acknowledged yet.
    #[must_use]
    pub fn ending(&self) -> usize {
        match &self.mode {
            Mode::Embedded(_) => 0,
            Mode::Shared(owner) => owner.ending(),
        }
    }

    /// The reservations of requests that are asked for or held: after a restart, those to be settled or refunded.
    pub fn live(&self) -> impl Iterator<Item = ReservationId> + '_ {
        let (ledger, owner) = match &self.mode {
            Mode::Embedded(ledger) => (Some(ledger), None),
            Mode::Shared(owner) => (None, Some(owner)),
        };
        let own = self.config.owner;
        let embedded = ledger.into_iter().flat_map(Ledger::live);
        let embedded = embedded.filter(move |hold| hold.owner == own).map(|hold| hold.id);
        embedded.chain(owner.into_iter().flat_map(Owner::live))
    }

    /// False while a shared store is late, or does not answer at all.
    #[must_use]
    pub fn answers(&self) -> bool {
        match &self.mode {
            Mode::Embedded(_) => true,
            Mode::Shared(owner) => owner.answers(),
        }
    }

    /// The embedded ledger, to be looked at. `None` where it is shared.
    #[must_use]
    pub fn ledger(&self) -> Option<&Ledger> {
        match &self.mode {
            Mode::Embedded(ledger) => Some(ledger),
            Mode::Shared(_) => None,
        }
    }

    /// Every sum of the embedded ledger. `None` where the ledger is shared: ask the store.
    #[must_use]
    pub fn audit(&self) -> Option<Audit> {
        self.ledger().map(Ledger::audit)
    }

    /// Performs an ask of another owner than this one on the embedded ledger. `None` where the ledger is shared: ask the store.
    pub fn perform(&mut self, now: Instant, op: &StoreOp) -> Option<StoreAnswer> {
        self.with_ledger(now, |ledger, at, out| ledger.perform(at, EMBEDDED_RUN, op, out))
    }

    /// Applies a fact that this room, perhaps of another version, made durable: recovery. Makes no events.
    pub fn apply_entry(&mut self, entry: &Entry) {
        self.wall = self.wall.max(entry.wall);
        if planted!(RecoverySkipsExtends) && matches!(entry.fact, Fact::Extend { .. }) {
            return;
        }
        match &mut self.mode {
            Mode::Embedded(ledger) => ledger.apply(entry),
            Mode::Shared(owner) => owner.apply(entry),
        }
    }

    /// Asserts what must always hold.
    pub fn invariants(&self) {
        match &self.mode {
            Mode::Embedded(ledger) => ledger.invariants(),
            Mode::Shared(owner) => owner.invariants(),
        }
    }

    /// Runs `decide` on the embedded ledger, and queues the entries it made before whatever follows from them.
    fn with_ledger<T>(
        &mut self,
        now: Instant,
        decide: impl FnOnce(&mut Ledger, At, &mut Vec<Entry>) -> T,
    ) -> Option<T> {
        let Mode::Embedded(ledger) = &mut self.mode else { return None };
        let answer = decide(ledger, At { now, wall: self.wall }, &mut self.entries);
        self.events.extend(self.entries.drain(..).map(Event::Entry));
        Some(answer)
    }
}

/// Ledger and owner share a clock here: nothing drifts.
fn embedded(config: &Config) -> LedgerConfig {
    LedgerConfig { drift_max: Duration::ZERO, ..config.ledger.clone() }
}

#[cfg(test)]
mod tests;
