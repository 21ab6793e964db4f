//! A ledger of our own, folded from the facts in a gateway's journal: plain sums, no code of the product's.
//!
//! Checks 1 (the algebra, exactly one terminal entry) and 2 (the bound) are made on every fact; the sums are compared
//! with the product's own at moments when both have seen the same records.

use std::collections::BTreeMap;
use std::time::Duration;

use control::id::AccountId;
use control::quota::{BalanceKey, Entry, Fact, HoldId, Limits, WindowKind};
use control::units::Amount;

/// Tokens and micro-USD, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub tokens: u64,
    pub money: u64,
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.money += other.money;
    }

    fn take(&mut self, other: Self) -> bool {
        let enough = self.tokens >= other.tokens && self.money >= other.money;
        self.tokens = self.tokens.saturating_sub(other.tokens);
        self.money = self.money.saturating_sub(other.money);
        enough
    }

    fn above(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.saturating_sub(other.tokens),
            money: self.money.saturating_sub(other.money),
        }
    }
}

impl From<Amount> for Sum {
    fn from(amount: Amount) -> Self {
        Self { tokens: amount.tokens.0, money: amount.money.0 }
    }
}

/// One account in one window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Balance {
    pub held: Sum,
    pub overrun: Sum,
    pub charged: Sum,
    pub refunded: Sum,
    pub expired: Sum,
    pub outstanding: Sum,
    pub late: Sum,
    pub forgiven: Sum,
}

/// How a reservation stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Held.
    Live {
        /// In which balances.
        pins: Vec<BalanceKey>,
        /// How much.
        amount: Sum,
    },
    /// Charged.
    Settled(Sum),
    /// Given back.
    Refunded,
    /// Forgotten by its owner.
    Expired,
}

/// What a gateway's journal says of money and tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Book {
    pub holds: BTreeMap<HoldId, Hold>,
    pub balances: BTreeMap<BalanceKey, Balance>,
    /// The plan's limits, in tokens a day.
    limits: BTreeMap<AccountId, u64>,
    /// What counts whatever the limits say: an owner of it said so.
    allowed: BTreeMap<AccountId, u64>,
    /// A store forgot something: what was held may have been more than it knows.
    has_lost: bool,
    /// What a stream may use while a store is asked for more.
    awaited: u64,
}

/// A fact that contradicts what was before: the invariant's number, and how.
pub(super) type Broken = (u8, String);

/// The most a reservation may be overrun by: a slice of 256 tokens, which is what a stream may use before the next one
/// is granted, and what the estimate of a plan's longest prompt (61 words) may be wrong by.
const OVERRUN_MAX: u64 = 256 + 128;
/// How many tokens the product may count where a script says one: half of its bytes.
const COUNTED_MAX: u64 = 7;

impl Book {
    /// An empty one, under the plan's limits.
    pub fn new(limits: BTreeMap<AccountId, u64>) -> Self {
        Self { limits, ..Self::default() }
    }

    /// The same where a store is asked, which may take `answer` to say nothing, while a token comes every `each`.
    pub fn awaiting(mut self, answer: Duration, each: Duration) -> Self {
        let tokens = answer.as_millis() / each.as_millis().max(1);
        self.awaited = COUNTED_MAX * tokens as u64;
        self
    }

    /// Takes a fact.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), Broken> {
        match &entry.fact {
            Fact::Limits { account, limits } => self.limited(*account, limits),
            Fact::Reserve { hold, pins, amount, .. } => self.reserve(*hold, pins, (*amount).into()),
            Fact::Extend { hold, amount, .. } => self.extend(*hold, (*amount).into()),
            Fact::Settle { hold, actual, .. } => {
                let actual: Sum = (*actual).into();
                if let Some(Hold::Live { amount, .. }) = self.holds.get(hold)
                    && !self.has_lost
                    && actual.above(*amount).tokens > self.overrun_max()
                {
                    return Err((2, format!("{hold:?} held {amount:?} and used {actual:?}")));
                }
                self.end(*hold, Hold::Settled(actual), |balance, held| {
                    balance.charged.add(actual);
                    balance.overrun.add(actual.above(held));
                    balance.refunded.add(held.above(actual));
                })
            }
            Fact::Refund { hold } => {
                self.end(*hold, Hold::Refunded, |balance, held| balance.refunded.add(held))
            }
            Fact::Expire { hold } => {
                self.end(*hold, Hold::Expired, |balance, held| balance.expired.add(held))
            }
            Fact::Late { hold, pins, actual, .. } => {
                if matches!(self.holds.get(hold), Some(Hold::Live { .. } | Hold::Settled(_))) {
                    return Err((1, format!("{hold:?} is charged late though it was not lost")));
                }
                for pin in pins {
                    self.balances.entry(*pin).or_default().late.add((*actual).into());
                }
                self.holds.insert(*hold, Hold::Settled((*actual).into()));
                Ok(())
            }
            Fact::Forgive { key, amount } => {
                self.balances.entry(*key).or_default().forgiven.add((*amount).into());
                Ok(())
            }
            Fact::Close { key, .. } => match self.balances.remove(key) {
                Some(balance) if balance.outstanding != Sum::default() => {
                    Err((1, format!("{key:?} is closed while something is held in it")))
                }
                Some(_) | None => Ok(()),
            },
            Fact::Retire { account } => {
                self.balances.retain(|key, _| key.account != *account);
                Ok(())
            }
            Fact::Acknowledged { .. } => Ok(()),
        }
    }

    /// How many requests' reservations are held. What is drawn ahead is held for nobody yet.
    pub fn live(&self) -> usize {
        let live = self.holds.iter().filter(|(_, hold)| matches!(hold, Hold::Live { .. }));
        live.filter(|(id, _)| !id.allotment).count()
    }

    /// The accounts that a live hold counts in.
    pub fn accounts_of(&self, id: HoldId) -> Vec<AccountId> {
        let Some(Hold::Live { pins, .. }) = self.holds.get(&id) else { return Vec::new() };
        let mut accounts: Vec<AccountId> = pins.iter().map(|pin| pin.account).collect();
        accounts.dedup();
        accounts
    }

    /// What one stream may use beyond what is held for it, at most.
    pub fn overrun_max(&self) -> u64 {
        OVERRUN_MAX + self.awaited
    }

    /// What is drawn ahead of an account.
    pub fn drawn_ahead(&self, account: AccountId) -> u64 {
        let live = self.holds.iter().filter(|(id, _)| id.allotment);
        let amounts = live.filter_map(|(_, hold)| match hold {
            Hold::Live { pins, amount } if pins.iter().any(|pin| pin.account == account) => {
                Some(amount.tokens)
            }
            Hold::Live { .. } | Hold::Settled(_) | Hold::Refunded | Hold::Expired => None,
        });
        amounts.sum()
    }

    /// What an entry holds counts whatever the limits say.
    pub fn allow(&mut self, entry: &Entry) {
        let (accounts, amount) = match &entry.fact {
            Fact::Reserve { pins, amount, .. } => {
                let mut accounts: Vec<AccountId> = pins.iter().map(|pin| pin.account).collect();
                accounts.dedup();
                (accounts, *amount)
            }
            Fact::Extend { hold, amount, .. } => (self.accounts_of(*hold), *amount),
            Fact::Limits { .. }
            | Fact::Settle { .. }
            | Fact::Refund { .. }
            | Fact::Expire { .. }
            | Fact::Late { .. }
            | Fact::Forgive { .. }
            | Fact::Close { .. }
            | Fact::Retire { .. }
            | Fact::Acknowledged { .. } => return,
        };
        for account in accounts {
            *self.allowed.entry(account).or_default() += amount.tokens.0;
        }
    }

    /// The book of a store that forgot: what it still has, whatever the limits say of that.
    pub fn of_what_is_left<'a>(
        &self,
        kept: impl Iterator<Item = &'a Entry>,
    ) -> Result<Self, Broken> {
        let (allowed, awaited) = (self.allowed.clone(), self.awaited);
        let mut left = Self { allowed, awaited, has_lost: true, ..Self::default() };
        for entry in kept {
            left.shared(entry)?;
        }
        left.limits.clone_from(&self.limits);
        Ok(left)
    }

    /// Takes a fact of a ledger that is shared. There, what nobody holds may be refunded: an owner who gave up waiting says
    /// so before its ask has arrived, which then comes too late.
    pub fn shared(&mut self, entry: &Entry) -> Result<(), Broken> {
        if let Fact::Refund { hold } = &entry.fact
            && !self.holds.contains_key(hold)
        {
            self.holds.insert(*hold, Hold::Refunded);
            return Ok(());
        }
        self.apply(entry)
    }

    fn reserve(&mut self, id: HoldId, pins: &[BalanceKey], amount: Sum) -> Result<(), Broken> {
        if self.holds.contains_key(&id) {
            return Err((1, format!("{id:?} is reserved a second time")));
        }
        for pin in pins {
            let balance = self.balances.entry(*pin).or_default();
            balance.held.add(amount);
            balance.outstanding.add(amount);
        }
        let pins = pins.to_vec();
        self.holds.insert(id, Hold::Live { pins: pins.clone(), amount });
        pins.iter().try_for_each(|pin| self.bounded(pin))
    }

    fn extend(&mut self, id: HoldId, more: Sum) -> Result<(), Broken> {
        let Some(Hold::Live { pins, amount }) = self.holds.get_mut(&id) else {
            return Err((1, format!("{id:?} is extended and not held")));
        };
        amount.add(more);
        let pins = pins.clone();
        for pin in &pins {
            let balance = self.balances.entry(*pin).or_default();
            balance.held.add(more);
            balance.outstanding.add(more);
        }
        if more == Sum::default() {
            return Ok(());
        }
        pins.iter().try_for_each(|pin| self.bounded(pin))
    }

    fn end(
        &mut self,
        id: HoldId,
        how: Hold,
        count: impl Fn(&mut Balance, Sum),
    ) -> Result<(), Broken> {
        let (pins, amount) = match self.holds.insert(id, how.clone()) {
            Some(Hold::Live { pins, amount }) => (pins, amount),
            before => return Err((1, format!("{id:?} ends as {how:?} and was {before:?}"))),
        };
        for pin in pins {
            let balance = self.balances.entry(pin).or_default();
            count(balance, amount);
            if !balance.outstanding.take(amount) {
                return Err((1, format!("{pin:?} gives back more than is held in it")));
            }
            let (mut left, mut right) = (balance.held, balance.charged);
            left.add(balance.overrun);
            for term in [balance.refunded, balance.expired, balance.outstanding] {
                right.add(term);
            }
            if left != right {
                return Err((1, format!("{pin:?} does not add up: {balance:?}")));
            }
        }
        Ok(())
    }

    /// Check 2, at the moment something was granted: what is spent and held stays below the limit and what was overrun.
    fn bounded(&self, key: &BalanceKey) -> Result<(), Broken> {
        let limit = self.limits.get(&key.account).filter(|_| key.window.kind() == WindowKind::Day);
        let (Some(limit), Some(balance)) = (limit, self.balances.get(key)) else { return Ok(()) };
        let granted = balance.charged.tokens + balance.outstanding.tokens;
        let allowed = self.allowed.get(&key.account).copied().unwrap_or_default();
        if granted > limit + balance.overrun.tokens + balance.late.tokens + allowed {
            return Err((2, format!("{key:?} is granted beyond its {limit} tokens: {balance:?}")));
        }
        Ok(())
    }

    /// The product's limits are the plan's.
    fn limited(&self, account: AccountId, limits: &Limits) -> Result<(), Broken> {
        let known = limits.day.tokens.map(|tokens| tokens.0);
        let planned = self.limits.get(&account).copied();
        // An account without limits of its own (a key, a free tenant) is none of the plan's.
        if planned.is_some() && known != planned {
            let text = format!("{account:?} is limited to {known:?} and should be to {planned:?}");
            return Err((2, text));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use control::id::{Minted, ReservationId};
    use control::quota::{OwnerId, Window};
    use control::units::{MicroUsd, Tokens};
    use control::{Instant, Wall};

    use super::*;

    #[test]
    fn what_is_held_ends_once_and_adds_up() {
        let mut book = book();
        assert_eq!(book.apply(&reserve(1, 60)), Ok(()));
        assert_eq!(book.apply(&extend(1, 20)), Ok(()));
        assert_eq!(book.apply(&settle(1, 90)), Ok(()));
        let balance = book.balances[&pin()];
        assert_eq!((balance.charged.tokens, balance.overrun.tokens), (90, 10));
        assert_eq!((balance.outstanding.tokens, book.live()), (0, 0));
    }

    #[test]
    fn a_second_end_and_a_second_beginning_break_the_first() {
        for second in [settle(1, 10), refund(1), reserve(1, 5), extend(1, 5)] {
            let mut book = book();
            assert_eq!(book.apply(&reserve(1, 10)), Ok(()));
            assert_eq!(book.apply(&settle(1, 10)), Ok(()));
            let broken = book.apply(&second).map_err(|(invariant, _)| invariant);
            assert_eq!(broken, Err(1), "{second:?}");
        }
        assert_eq!(book().apply(&refund(9)).map_err(|(invariant, _)| invariant), Err(1));
    }

    #[test]
    fn a_grant_beyond_the_limit_breaks_the_second_and_an_overrun_raises_it() {
        let mut book = book();
        assert_eq!(book.apply(&reserve(1, 90)), Ok(()));
        assert_eq!(book.clone().apply(&reserve(2, 11)).map_err(|(number, _)| number), Err(2));
        assert_eq!(book.clone().apply(&extend(1, 11)).map_err(|(number, _)| number), Err(2));
        assert_eq!(book.apply(&settle(1, 190)), Ok(()));
        assert_eq!(book.apply(&reserve(2, 10)), Ok(()), "what was overrun is not counted twice");
        assert_eq!(book.apply(&reserve(3, 1)).map_err(|(number, _)| number), Err(2));
    }

    #[test]
    fn an_overrun_of_more_than_a_slice_breaks_the_second() {
        let mut book = book();
        assert_eq!(book.apply(&reserve(1, 10)), Ok(()));
        let broken = book.apply(&settle(1, 11 + OVERRUN_MAX));
        assert_eq!(broken.map_err(|(number, _)| number), Err(2));
    }

    /// One account that may use 100 tokens a day.
    fn book() -> Book {
        Book::new([(AccountId(1), 100)].into())
    }

    fn pin() -> BalanceKey {
        BalanceKey { account: AccountId(1), window: Window::Day(20_000) }
    }

    fn hold(counter: u64) -> HoldId {
        HoldId::request(OwnerId(1), ReservationId(Minted { incarnation: 1, counter }))
    }

    fn amount(tokens: u64) -> Amount {
        Amount { tokens: Tokens(tokens), money: MicroUsd::ZERO }
    }

    fn entry(fact: Fact) -> Entry {
        Entry { at: Instant::ZERO, wall: Wall::default(), fact }
    }

    fn reserve(id: u64, tokens: u64) -> Entry {
        entry(Fact::Reserve {
            hold: hold(id),
            pins: vec![pin()],
            amount: amount(tokens),
            ttl: std::time::Duration::from_secs(60),
            expires: Instant::FAR_FUTURE,
            from: None,
        })
    }

    fn extend(id: u64, tokens: u64) -> Entry {
        let expires = Instant::FAR_FUTURE;
        entry(Fact::Extend { hold: hold(id), amount: amount(tokens), expires, from: None })
    }

    fn settle(id: u64, tokens: u64) -> Entry {
        entry(Fact::Settle { hold: hold(id), actual: amount(tokens), estimated: false })
    }

    fn refund(id: u64) -> Entry {
        entry(Fact::Refund { hold: hold(id) })
    }
}
