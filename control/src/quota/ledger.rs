//! Who may spend how much: decides, and keeps what was decided as entries.
//!
//! **The problem.** A counter that is checked and then updated overdraws; one that is pre-charged leaks when a process
//! dies between charge and settlement; one that is cleaned up charges twice. **Rejected:** a counter with repair jobs,
//! which is what the gateways whose users complain have. **Here** each reservation is a fact with an id and exactly one
//! terminal entry, balances are the fold of facts, and the algebra of [`Sums`] says at any time whether something leaked.
//!
//! | state    | reserve | extend  | settle         | refund     | expiry    | settle, pinned | assert  |
//! |----------|---------|---------|----------------|------------|-----------|----------------|---------|
//! | unknown  | live    | -       | -              | -          | -         | late (+ entry) | live    |
//! | live     | same    | live    | settled        | refunded   | expired   | settled        | live    |
//! | settled  | ended   | ended   | -              | -          | -         | -              | ended   |
//! | refunded | ended   | ended   | -              | -          | -         | late (+ entry) | ended   |
//! | expired  | ended   | ended   | late (+ entry) | -          | -         | late (+ entry) | ended   |
//! | late     | ended   | ended   | -              | -          | -         | -              | ended   |
//!
//! "Settle, pinned" is a settlement that brings its windows along, from an owner whose reservation a failover may have
//! forgotten; one that was granted in this very run of the store and is unknown had its end forgotten, and is not charged
//! again: whoever asks is told that nobody knows. Ends are remembered for [`LedgerConfig::remember`], at most [`LedgerConfig::remembered_max`] of them.
//!
//! **Edge cases.** Wall time only counts forward: a clock set back stays in the window it was in (and one set forward by
//! mistake stays there until time catches up). An account's windows that have ended close when nothing in them is
//! outstanding; debt is then carried or forgiven, and until then counts as if it had been carried. The ledger expires a
//! reservation `drift_max` after its time, its owner stops as much earlier: their clocks may differ by twice that.

mod limits;

use alloc::vec::Vec;
use core::ops::ControlFlow;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::audit::Audit;
use super::book::Book;
use super::entry::{Entry, Fact, Terminal};
use super::sums::Sums;
use super::terms::{
    At, BalanceKey, Denied, DenyReason, HoldId, LIVE_MAX, Limits, MAX_SUM, Unit, Window,
    WindowKind, clamp,
};
use crate::id::AccountId;
use crate::time::{Instant, Wall};
use crate::units::Amount;

/// The ledger's own bounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerConfig {
    /// How much later than its time a reservation expires: what an owner's clock may be off. Zero where owner and ledger
    /// share a clock.
    pub drift_max: Duration,
    /// Live reservations, at most [`LIVE_MAX`].
    pub live_max: usize,
    /// Accounts with their history. 65,536 are some 80 MB at worst; idle ones make room.
    pub accounts_max: usize,
    /// Terminal entries remembered, so that they stay the only ones. 65,536 are some 6 MB.
    pub remembered_max: usize,
    /// How long a terminal entry is remembered. Longer than any owner repeats a settlement.
    pub remember: Duration,
}

impl Default for LedgerConfig {
    fn default() -> Self {
        Self {
            drift_max: Duration::ZERO,
            live_max: LIVE_MAX,
            accounts_max: 1 << 16,
            remembered_max: 1 << 16,
            remember: Duration::from_secs(2 * 3_600),
        }
    }
}

/// What is asked for, by whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draw {
    /// Names what shall be held.
    pub hold: HoldId,
    /// One to three accounts, the root first, with their limits as configured now.
    pub accounts: Vec<(AccountId, Limits)>,
    /// How much, in both units.
    pub amount: Amount,
    /// How long without a word.
    pub ttl: Duration,
}

/// What a settlement came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Settled {
    /// Charged against what was held.
    Charged,
    /// Charged after the end.
    Late,
    /// It had its terminal entry, or nobody knows it: nothing changed.
    Ignored,
    /// Nobody knows it, and no failover is to blame: its end was forgotten, or it was never made. Nothing changed, and
    /// nobody can say whether it was charged.
    Forgotten,
    /// There is no room for its account just now: ask again.
    Full,
}

/// The ledger: pure decisions over a fold of entries. Every method appends the entries it made to `out`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    config: LedgerConfig,
    book: Book,
}

/// How many balances one reservation looks at for closing: more than it can open, so that closing keeps up.
const SWEEP_PER_DRAW: usize = 12;

/// How long a window that has ended is left alone when something in it is still outstanding. The terminal entry closes
/// it at once; this only catches what was missed.
const SWEEP_AGAIN: Duration = Duration::from_secs(60);

/// How soon to ask again where the ledger is full: reservations end at the pace of requests.
const FULL_RETRY: Duration = Duration::from_secs(1);

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new(config: LedgerConfig) -> Self {
        Self { config, book: Book::default() }
    }

    /// New bounds. What is held already stays.
    pub fn set_config(&mut self, config: LedgerConfig) {
        self.config = config;
    }

    /// True where no entry was ever made here: only wall time has passed.
    pub(super) fn is_untouched(&self) -> bool {
        self.book.is_untouched()
    }

    /// Its bounds.
    #[must_use]
    pub fn config(&self) -> &LedgerConfig {
        &self.config
    }

    /// Holds quota in every account and both units, or nothing. Asked again for what is live, it holds nothing more and
    /// lets it live for its time to live from now: whoever asks again counts from when it asked.
    ///
    /// # Errors
    /// The limit that stands longest in the way. Nothing is held then, and the same id may be asked for again.
    pub fn reserve(&mut self, at: At, draw: &Draw, out: &mut Vec<Entry>) -> Result<Amount, Denied> {
        assert!((1..=3).contains(&draw.accounts.len()), "one to three accounts pay");
        self.close_due(at, SWEEP_PER_DRAW, out);
        if !self.book.is_newest(draw.hold) {
            if let Some(total) = self.renew(at, draw.hold, out) {
                return Ok(total);
            }
            if self.book.ended.contains_key(&draw.hold) {
                return Err(Denied::never(DenyReason::Ended));
            }
        }
        if clamp(draw.amount) != draw.amount {
            return Err(Denied::never(DenyReason::TooLarge));
        }
        if self.book.live.len() >= self.config.live_max.min(LIVE_MAX) {
            return Err(FULL);
        }
        for (account, limits) in &draw.accounts {
            self.learn(at, *account, limits, out)?;
        }
        let pins = self.pins(&draw.accounts);
        self.check(&pins, draw.amount)?;
        let expires = at.now + draw.ttl + self.drift();
        let (hold, amount, ttl) = (draw.hold, draw.amount, draw.ttl);
        self.record(at, Fact::Reserve { hold, pins, amount, ttl, expires, from: None }, out);
        Ok(amount)
    }

    /// Lets what is live live on. What it holds, or `None` where it is not live.
    fn renew(&mut self, at: At, hold: HoldId, out: &mut Vec<Entry>) -> Option<Amount> {
        let held = self.book.live.get(&hold)?;
        let (total, expires) = (held.total, at.now + held.ttl + self.drift());
        self.record(at, Fact::Extend { hold, amount: Amount::ZERO, expires, from: None }, out);
        Some(total)
    }

    /// Raises what `hold` holds to `total`, and lets it live for its time to live from now. A total it already has only
    /// does the latter, so that a repeated extension holds nothing twice.
    ///
    /// # Errors
    /// The limit in the way, or [`DenyReason::Ended`].
    pub fn extend_to(
        &mut self,
        at: At,
        hold: HoldId,
        total: Amount,
        out: &mut Vec<Entry>,
    ) -> Result<Amount, Denied> {
        self.see(at.wall);
        let Some(held) = self.book.live.get(&hold) else {
            return Err(Denied::never(DenyReason::Ended));
        };
        if clamp(total) != total {
            return Err(Denied::never(DenyReason::TooLarge));
        }
        let amount = total.saturating_sub(held.total);
        if !planted!(ExtendUnchecked) {
            self.check(&held.pins, amount)?;
        }
        let total = held.total + amount;
        let expires = at.now + held.ttl + self.drift();
        self.record(at, Fact::Extend { hold, amount, expires, from: None }, out);
        Ok(total)
    }

    /// Ends a reservation with what was used, which may be more or less than was held.
    pub fn settle(
        &mut self,
        at: At,
        hold: HoldId,
        actual: Amount,
        estimated: bool,
        out: &mut Vec<Entry>,
    ) -> Settled {
        self.see(at.wall);
        let actual = clamp(actual);
        if self.finish(at, Fact::Settle { hold, actual, estimated }, hold, out) {
            return Settled::Charged;
        }
        match self.book.ended.get(&hold) {
            Some(ended) if ended.how == Terminal::Expired && !planted!(LateDropped) => {
                let pins = ended.pins.clone();
                self.late(at, hold, &pins, (actual, estimated), out)
            }
            _ => Settled::Ignored,
        }
    }

    /// Ends a reservation that brings its windows along, because this ledger may never have heard of it. `forgotten` says
    /// that it was granted in this run of the store: unknown then means that its end is no longer remembered.
    pub fn settle_pinned(
        &mut self,
        at: At,
        hold: HoldId,
        pinned: (&[BalanceKey], bool),
        usage: (Amount, bool),
        out: &mut Vec<Entry>,
    ) -> Settled {
        let (pins, forgotten) = pinned;
        let how = self.book.ended.get(&hold).map(|ended| ended.how);
        let live = self.book.live.contains_key(&hold);
        match how {
            None if !live && forgotten => Settled::Forgotten,
            None if !live => self.late(at, hold, pins, (clamp(usage.0), usage.1), out),
            Some(Terminal::Refunded) => self.late(at, hold, pins, (clamp(usage.0), usage.1), out),
            Some(Terminal::Settled | Terminal::Late) if planted!(SettleTwice) => {
                self.late(at, hold, pins, (clamp(usage.0), usage.1), out)
            }
            None | Some(Terminal::Settled | Terminal::Expired | Terminal::Late) => {
                self.settle(at, hold, usage.0, usage.1, out)
            }
        }
    }

    /// Ends a reservation of which nothing was used. False if it is not live.
    pub fn refund(&mut self, at: At, hold: HoldId, out: &mut Vec<Entry>) -> bool {
        self.see(at.wall);
        self.finish(at, Fact::Refund { hold }, hold, out)
    }

    /// As [`refund`](Self::refund); where the id is unknown, remembers that it has ended, so that a reservation which its
    /// refund overtook on the way is not granted.
    pub fn release(&mut self, at: At, hold: HoldId, out: &mut Vec<Entry>) {
        if !self.refund(at, hold, out) && !self.book.ended.contains_key(&hold) {
            self.record(at, Fact::Refund { hold }, out);
        }
    }

    /// An owner says what it holds, after a failover: taken as a fact, whatever the limits say.
    ///
    /// # Errors
    /// [`DenyReason::Ended`] or [`DenyReason::Full`].
    pub fn assert_held(
        &mut self,
        at: At,
        hold: HoldId,
        held: (&[BalanceKey], Amount, Duration),
        out: &mut Vec<Entry>,
    ) -> Result<Amount, Denied> {
        let (pins, total, ttl) = (held.0, clamp(held.1), held.2);
        self.see(at.wall);
        let expires = at.now + ttl + self.drift();
        if let Some(known) = self.book.live.get(&hold) {
            let amount = total.saturating_sub(known.total);
            let total = known.total + amount;
            self.record(at, Fact::Extend { hold, amount, expires, from: None }, out);
            return Ok(total);
        }
        if self.book.ended.contains_key(&hold) {
            return Err(Denied::never(DenyReason::Ended));
        }
        if self.book.live.len() >= self.config.live_max.min(LIVE_MAX) {
            return Err(FULL);
        }
        self.room_for(at, pins, out)?;
        let (pins, amount) = (pins.to_vec(), total);
        self.record(at, Fact::Reserve { hold, pins, amount, ttl, expires, from: None }, out);
        Ok(total)
    }

    /// Forgives an account up to `amount` of what it spent in its open window of that kind.
    pub fn forgive(
        &mut self,
        at: At,
        account: AccountId,
        kind: WindowKind,
        amount: Amount,
        out: &mut Vec<Entry>,
    ) {
        self.see(at.wall);
        let limits = self.book.accounts.get(&account).map(|known| known.limits);
        let window = limits.and_then(|limits| Window::open(kind, self.book.wall, &limits));
        let key = window.map(|window| BalanceKey { account, window });
        if let Some(key) = key.filter(|key| self.book.balances.contains_key(key)) {
            self.record(at, Fact::Forgive { key, amount }, out);
        }
    }

    /// Ends what has expired, at most `max` of it. `Break` if more is due.
    pub fn expire(&mut self, at: At, max: usize, out: &mut Vec<Entry>) -> ControlFlow<()> {
        self.see(at.wall);
        for _ in 0..max {
            match self.book.expiries.first().copied() {
                Some((expires, hold)) if expires <= at.now => {
                    self.finish(at, Fact::Expire { hold }, hold, out);
                }
                _ => return ControlFlow::Continue(()),
            }
        }
        ControlFlow::Break(())
    }

    /// Closes windows that are over, looking at no more than `max`.
    pub fn close_due(&mut self, at: At, max: usize, out: &mut Vec<Entry>) {
        self.see(at.wall);
        for _ in 0..max {
            let wall = self.book.wall;
            match self.book.due.first().copied() {
                Some((due, key)) if due <= wall => {
                    if !self.close(at, key, out) {
                        self.book.postpone(key, wall + SWEEP_AGAIN);
                    }
                }
                _ => return,
            }
        }
    }

    /// Applies a fact, deciding nothing: recovery, and a replica of this ledger.
    pub fn apply(&mut self, entry: &Entry) {
        self.book.apply(entry, &self.config);
    }

    /// When the next reservation expires.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Instant> {
        self.book.expiries.first().map(|(expires, _)| *expires)
    }

    /// The sums of every open balance, by account and window.
    pub fn balances(&self) -> impl Iterator<Item = (BalanceKey, &Sums)> {
        self.book.balances.iter().map(|(key, balance)| (*key, &balance.sums))
    }

    /// The sums of one open balance.
    #[must_use]
    pub fn balance(&self, key: &BalanceKey) -> Option<&Sums> {
        self.book.balances.get(key).map(|balance| &balance.sums)
    }

    /// What an account has left in its open window of that kind, under the limits it was last seen with.
    #[must_use]
    pub fn remaining(&self, account: AccountId, kind: WindowKind) -> Amount {
        let limits = self.book.accounts.get(&account).map_or_else(Limits::default, |a| a.limits);
        let used = Window::open(kind, self.book.wall, &limits)
            .map(|window| BalanceKey { account, window })
            .map_or(Amount::ZERO, |key| {
                self.used(key, &self.balance(&key).copied().unwrap_or_default(), &limits)
            });
        limits.cap(kind).left(used)
    }

    /// How many reservations are live.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.book.live.len()
    }

    /// What `hold` holds, while it is live.
    #[must_use]
    pub fn held(&self, hold: HoldId) -> Option<Amount> {
        self.book.live.get(&hold).map(|held| held.total)
    }

    /// Where `hold` counts, while it is live.
    #[must_use]
    pub fn pinned(&self, hold: HoldId) -> Option<&[BalanceKey]> {
        self.book.live.get(&hold).map(|held| held.pins.as_slice())
    }

    /// How `hold` ended, while that is remembered.
    #[must_use]
    pub fn ended(&self, hold: HoldId) -> Option<Terminal> {
        self.book.ended.get(&hold).map(|ended| ended.how)
    }

    /// What is live, by id.
    pub fn live(&self) -> impl Iterator<Item = HoldId> {
        self.book.live.keys().copied()
    }

    /// The latest wall time seen.
    #[must_use]
    pub fn wall(&self) -> Wall {
        self.book.wall
    }

    /// Every sum, and every equation that does not hold.
    #[must_use]
    pub fn audit(&self) -> Audit {
        Audit::of(&self.book)
    }

    /// Asserts what must always hold. Costs time in proportion to the whole ledger.
    pub fn invariants(&self) {
        self.book.invariants();
        let audit = self.audit();
        assert!(audit.violations.is_empty(), "the algebra is broken: {:?}", audit.violations);
        assert!(self.book.live.len() <= LIVE_MAX, "too many reservations");
        assert!(self.book.ended.len() <= self.config.remembered_max.max(1), "too many ends");
        for (key, sums) in self.balances() {
            let large = Unit::ALL.iter().any(|unit| unit.of(sums.moved()) >= 2 * MAX_SUM);
            assert!(!large, "{key:?} has left the numbers a double holds exactly");
        }
    }
}

const FULL: Denied = Denied { reason: DenyReason::Full, retry_after: FULL_RETRY };

impl Ledger {
    pub(super) fn see(&mut self, wall: Wall) {
        self.book.wall = self.book.wall.max(wall);
    }

    /// How much longer than its time a reservation lives here.
    fn drift(&self) -> Duration {
        if planted!(AllotmentIgnoresDrift) { Duration::ZERO } else { self.config.drift_max }
    }

    fn record(&mut self, at: At, fact: Fact, out: &mut Vec<Entry>) {
        let entry = Entry { at: at.now, wall: self.book.wall.max(at.wall), fact };
        self.book.apply(&entry, &self.config);
        out.push(entry);
    }

    /// A terminal entry of what is live, and the windows it was the last in. False, and nothing, if it is not live.
    fn finish(&mut self, at: At, fact: Fact, hold: HoldId, out: &mut Vec<Entry>) -> bool {
        let wall = self.book.wall;
        let Some(held) = self.book.live.get(&hold) else { return false };
        let over = held.pins.iter().filter(|pin| pin.window.is_over(wall));
        let pins: Vec<_> = over.copied().collect();
        self.record(at, fact, out);
        for pin in pins {
            self.close(at, pin, out);
        }
        true
    }

    fn late(
        &mut self,
        at: At,
        hold: HoldId,
        pins: &[BalanceKey],
        usage: (Amount, bool),
        out: &mut Vec<Entry>,
    ) -> Settled {
        self.see(at.wall);
        let pins: Vec<_> = pins.iter().filter_map(|pin| self.still_open(*pin)).collect();
        if self.room_for(at, &pins, out).is_err() {
            return Settled::Full;
        }
        let (actual, estimated) = usage;
        self.record(at, Fact::Late { hold, pins, actual, estimated }, out);
        Settled::Late
    }

    /// The balance itself while it is kept, else the account's open one of the same kind: somebody has to pay.
    fn still_open(&self, pin: BalanceKey) -> Option<BalanceKey> {
        if self.book.balances.contains_key(&pin) {
            return Some(pin);
        }
        let limits = self.book.accounts.get(&pin.account).map(|known| known.limits);
        let window = Window::open(pin.window.kind(), self.book.wall, &limits.unwrap_or_default())?;
        Some(BalanceKey { account: pin.account, window })
    }

    fn learn(
        &mut self,
        at: At,
        account: AccountId,
        limits: &Limits,
        out: &mut Vec<Entry>,
    ) -> Result<(), Denied> {
        if self.book.accounts.get(&account).is_some_and(|known| known.limits == *limits) {
            return Ok(());
        }
        self.room(at, account, out)?;
        self.record(at, Fact::Limits { account, limits: *limits }, out);
        Ok(())
    }

    fn room_for(
        &mut self,
        at: At,
        pins: &[BalanceKey],
        out: &mut Vec<Entry>,
    ) -> Result<(), Denied> {
        pins.iter().try_for_each(|pin| self.room(at, pin.account, out))
    }

    /// Makes room for one account more, if it is new.
    fn room(&mut self, at: At, account: AccountId, out: &mut Vec<Entry>) -> Result<(), Denied> {
        if self.book.accounts.contains_key(&account)
            || self.book.accounts.len() < self.config.accounts_max
        {
            return Ok(());
        }
        let account = *self.book.idle.first().ok_or(FULL)?;
        self.record(at, Fact::Retire { account }, out);
        Ok(())
    }

    /// Closes a window that is over and in which nothing is outstanding. False if it must stay.
    fn close(&mut self, at: At, key: BalanceKey, out: &mut Vec<Entry>) -> bool {
        let wall = self.book.wall;
        if !key.window.is_over(wall) {
            return false;
        }
        let Some(balance) = self.book.balances.get(&key) else { return true };
        let sums = balance.sums;
        let account = self.book.accounts.get(&key.account);
        let limits = account.map_or_else(Limits::default, |known| known.limits);
        if sums.outstanding != Amount::ZERO {
            return false;
        }
        let kind = key.window.kind();
        let debt = match kind {
            WindowKind::Day | WindowKind::Month => {
                limits.cap(kind).excess(sums.spent + sums.carried)
            }
            WindowKind::Rolling => Amount::ZERO,
        };
        let open = Window::open(kind, wall, &limits);
        let (forgiven, carried) = match open {
            _ if debt == Amount::ZERO => (Amount::ZERO, None),
            Some(window) if limits.carry_debt => (Amount::ZERO, Some((window, debt))),
            _ => (debt, None),
        };
        self.record(at, Fact::Close { key, forgiven, carried }, out);
        true
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
