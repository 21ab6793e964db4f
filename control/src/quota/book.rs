//! The ledger's state: the fold of its entries, and nothing decided.
//!
//! `apply` is total: an entry that does not fit (a second terminal, an extension of what has ended) changes nothing, so
//! that no record of a journal can bring recovery down.

use alloc::collections::btree_map::Entry;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::entry::{Entry as Record, Fact, Terminal};
use super::ledger::LedgerConfig;
use super::sums::Sums;
use super::terms::{BalanceKey, HoldId, Limits, Window, WindowKind};
use crate::id::AccountId;
use crate::time::{Instant, Wall};
use crate::units::Amount;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Book {
    pub live: BTreeMap<HoldId, Hold>,
    pub expiries: BTreeSet<(Instant, HoldId)>,
    pub ended: BTreeMap<HoldId, Ended>,
    ended_order: VecDeque<(Instant, HoldId)>,
    pub accounts: BTreeMap<AccountId, Account>,
    /// Accounts without a balance: history that may be retired when room is needed.
    pub idle: BTreeSet<AccountId>,
    pub balances: BTreeMap<BalanceKey, Balance>,
    /// When to look whether a balance can be closed.
    pub due: BTreeSet<(Wall, BalanceKey)>,
    /// The history of accounts that were dropped to make room, per kind of window.
    pub retired: [Sums; 3],
    /// The latest wall time seen: a backward jump never reopens a window.
    pub wall: Wall,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hold {
    pub pins: Vec<BalanceKey>,
    pub total: Amount,
    pub ttl: Duration,
    pub expires: Instant,
}

/// A terminal entry, remembered so that it stays the only one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ended {
    pub how: Terminal,
    /// Where a late settlement would count. Only what expired needs it.
    pub pins: Vec<BalanceKey>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Account {
    pub limits: Limits,
    /// Sums of closed windows, per kind.
    pub history: [Sums; 3],
    /// How many balances it has.
    balances: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Balance {
    pub sums: Sums,
    due: Wall,
}

impl Book {
    pub fn apply(&mut self, entry: &Record, config: &LedgerConfig) {
        self.wall = self.wall.max(entry.wall);
        match &entry.fact {
            Fact::Limits { account, limits } => self.set_limits(*account, *limits),
            Fact::Reserve { hold, pins, amount, ttl, expires, from: _ } => {
                let (pins, total) = (pins.clone(), *amount);
                self.insert(*hold, Hold { pins, total, ttl: *ttl, expires: *expires });
            }
            Fact::Extend { hold, amount, expires, from: _ } => {
                self.extend(*hold, *amount, *expires);
            }
            Fact::Settle { hold, actual, estimated: _ } => {
                self.end(entry.at, *hold, Terminal::Settled, config, |sums, total| {
                    sums.settle(total, *actual);
                });
            }
            Fact::Refund { hold } => {
                self.end(entry.at, *hold, Terminal::Refunded, config, Sums::refund);
            }
            Fact::Expire { hold } => {
                self.end(entry.at, *hold, Terminal::Expired, config, Sums::expire);
            }
            Fact::Late { hold, pins, actual, estimated: _ } => {
                self.late(entry.at, *hold, pins, *actual, config);
            }
            Fact::Forgive { key, amount } => self.balance(*key).forgive(*amount),
            Fact::Close { key, forgiven, carried } => self.close(*key, *forgiven, *carried),
            Fact::Retire { account } => self.retire(*account),
            Fact::Acknowledged { .. } => {}
        }
    }

    /// True where no entry was ever applied.
    pub fn is_untouched(&self) -> bool {
        *self == Self { wall: self.wall, ..Self::default() }
    }

    /// Looks at a balance again later. Soft: not an entry.
    pub fn postpone(&mut self, key: BalanceKey, until: Wall) {
        if let Some(balance) = self.balances.get_mut(&key) {
            self.due.remove(&(balance.due, key));
            balance.due = until;
            self.due.insert((until, key));
        }
    }

    fn retire(&mut self, account: AccountId) {
        if !self.idle.remove(&account) {
            return;
        }
        if let Some(account) = self.accounts.remove(&account) {
            for (retired, sums) in self.retired.iter_mut().zip(&account.history) {
                retired.absorb(sums);
            }
        }
    }

    fn set_limits(&mut self, account: AccountId, limits: Limits) {
        let idle = &mut self.idle;
        let known = self.accounts.entry(account).or_insert_with(|| {
            idle.insert(account);
            Account::default()
        });
        known.limits = limits;
    }

    /// True where every id that is live or remembered is smaller: then this one is neither. Owners count upwards, so
    /// this spares nearly every reservation two searches. False proves nothing.
    pub fn is_newest(&self, id: HoldId) -> bool {
        self.live.last_key_value().is_none_or(|(last, _)| *last < id)
            && self.ended.last_key_value().is_none_or(|(last, _)| *last < id)
    }

    fn insert(&mut self, id: HoldId, hold: Hold) {
        let known = |book: &Self| book.live.contains_key(&id) || book.ended.contains_key(&id);
        if !self.is_newest(id) && known(self) {
            return;
        }
        for pin in &hold.pins {
            self.balance(*pin).hold(hold.total);
        }
        self.expiries.insert((hold.expires, id));
        self.live.insert(id, hold);
    }

    fn extend(&mut self, id: HoldId, amount: Amount, expires: Instant) {
        let Some(hold) = self.live.get_mut(&id) else { return };
        self.expiries.remove(&(hold.expires, id));
        self.expiries.insert((expires, id));
        hold.expires = expires;
        hold.total += amount;
        if amount == Amount::ZERO {
            return;
        }
        let pins = hold.pins.clone();
        for pin in pins {
            self.balance(pin).hold(amount);
        }
    }

    fn end(
        &mut self,
        at: Instant,
        id: HoldId,
        how: Terminal,
        config: &LedgerConfig,
        change: impl Fn(&mut Sums, Amount),
    ) {
        let stays = planted!(ReleaseAfterExpiry) && how == Terminal::Expired;
        let held = if stays { self.live.get(&id).cloned() } else { self.live.remove(&id) };
        let Some(hold) = held else {
            // A refund may overtake its reservation: remembered, so that the reservation then finds itself ended.
            if how == Terminal::Refunded {
                self.remember(at, id, Ended { how, pins: Vec::new() }, config);
            }
            return;
        };
        self.expiries.remove(&(hold.expires, id));
        for pin in &hold.pins {
            change(self.balance(*pin), hold.total);
        }
        let pins = if how == Terminal::Expired { hold.pins } else { Vec::new() };
        self.remember(at, id, Ended { how, pins }, config);
    }

    fn late(
        &mut self,
        at: Instant,
        id: HoldId,
        pins: &[BalanceKey],
        actual: Amount,
        config: &LedgerConfig,
    ) {
        let charged = matches!(
            self.ended.get(&id),
            Some(Ended { how: Terminal::Late | Terminal::Settled, .. })
        );
        if charged && !planted!(SettleTwice) || self.live.contains_key(&id) {
            return;
        }
        for pin in pins {
            self.balance(*pin).late(actual);
        }
        let ended = Ended { how: Terminal::Late, pins: Vec::new() };
        if let Some(known) = self.ended.get_mut(&id) {
            *known = ended;
        } else {
            self.remember(at, id, ended, config);
        }
    }

    fn remember(&mut self, at: Instant, id: HoldId, ended: Ended, config: &LedgerConfig) {
        let Entry::Vacant(new) = self.ended.entry(id) else { return };
        new.insert(ended);
        self.ended_order.push_back((at, id));
        while let Some((since, oldest)) = self.ended_order.front().copied() {
            let full = self.ended_order.len() > config.remembered_max;
            if !full && at.since(since) <= config.remember {
                break;
            }
            self.ended_order.pop_front();
            self.ended.remove(&oldest);
        }
    }

    /// The sums of a balance, opened if it is new.
    fn balance(&mut self, key: BalanceKey) -> &mut Sums {
        match self.balances.entry(key) {
            Entry::Occupied(known) => &mut known.into_mut().sums,
            Entry::Vacant(new) => {
                let due = key.window.end(self.wall);
                self.due.insert((due, key));
                self.idle.remove(&key.account);
                self.accounts.entry(key.account).or_default().balances += 1;
                &mut new.insert(Balance { sums: Sums::default(), due }).sums
            }
        }
    }

    fn close(&mut self, key: BalanceKey, forgiven: Amount, carried: Option<(Window, Amount)>) {
        let Some(mut balance) = self.balances.remove(&key) else { return };
        self.due.remove(&(balance.due, key));
        balance.sums.forgive(forgiven);
        if let Some((window, debt)) = carried {
            self.balance(BalanceKey { account: key.account, window }).carried += debt;
        }
        if let Some(account) = self.accounts.get_mut(&key.account) {
            account.history[slot(key.window.kind())].absorb(&balance.sums);
            account.balances = account.balances.saturating_sub(1);
            if account.balances == 0 {
                self.idle.insert(key.account);
            }
        }
    }

    pub fn invariants(&self) {
        assert_eq!(self.live.len(), self.expiries.len(), "each reservation has one expiry");
        assert_eq!(self.ended.len(), self.ended_order.len(), "each end is remembered once");
        assert_eq!(self.balances.len(), self.due.len(), "each balance is due once");
        assert!(self.live.keys().all(|id| !self.ended.contains_key(id)), "live and ended");
        for (key, balance) in &self.balances {
            assert!(self.due.contains(&(balance.due, *key)), "{key:?} is due");
            assert!(self.accounts.contains_key(&key.account), "{key:?} has an account");
        }
        let counted: usize = self.accounts.values().map(|account| account.balances as usize).sum();
        assert_eq!(counted, self.balances.len(), "accounts count their balances");
    }
}

/// Where a kind of window stands in a history.
pub(super) const fn slot(kind: WindowKind) -> usize {
    match kind {
        WindowKind::Day => 0,
        WindowKind::Month => 1,
        WindowKind::Rolling => 2,
    }
}
