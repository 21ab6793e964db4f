//! The slow, obvious ledger: entries in, sums out.
//!
//! Every entry is added up as it is read, in signed numbers that cannot wrap, and compared with what the real ledger says
//! of the same balances. It knows nothing of limits or of time; that is what makes it obvious.

use std::collections::{BTreeMap, BTreeSet};

use control::Wall;
use control::id::AccountId;
use control::quota::{
    BalanceKey, Cap, Entry, Fact, HoldId, Ledger, Limits, Sums, Window, WindowKind,
};
use control::units::Amount;

/// Tokens and micro-dollars.
pub(super) type Pair = [i128; 2];

/// The sums of one balance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    pub held: Pair,
    pub overrun: Pair,
    pub charged: Pair,
    pub refunded: Pair,
    pub expired: Pair,
    pub outstanding: Pair,
    pub late: Pair,
    pub forgiven: Pair,
    pub carried: Pair,
}

/// What one ledger's entries add up to.
#[derive(Clone, Debug, Default)]
pub(super) struct Book {
    pub rows: BTreeMap<BalanceKey, Row>,
    /// Rows of windows that are closed, per account and kind.
    pub closed: BTreeMap<(AccountId, WindowKind), Row>,
    pub live: BTreeMap<HoldId, (Vec<BalanceKey>, Pair)>,
    /// What had its terminal entry, what of that was charged by it, and what had its late one.
    pub ended: BTreeSet<HoldId>,
    settled: BTreeSet<HoldId>,
    pub late: BTreeSet<HoldId>,
    pub limits: BTreeMap<AccountId, Limits>,
    /// Balances the latest entry moved.
    touched: Vec<BalanceKey>,
}

impl Row {
    /// What counts as spent.
    pub fn spent(&self) -> Pair {
        minus(plus(self.charged, self.late), self.forgiven)
    }

    /// Forgives at most what was spent.
    fn forgive(&mut self, amount: Pair) {
        let spent = self.spent();
        self.forgiven = plus(self.forgiven, [amount[0].min(spent[0]), amount[1].min(spent[1])]);
    }

    /// What counts against a limit.
    pub fn used(&self) -> Pair {
        plus(plus(self.spent(), self.outstanding), self.carried)
    }

    fn add(&mut self, other: &Self) {
        let Self {
            held,
            overrun,
            charged,
            refunded,
            expired,
            outstanding,
            late,
            forgiven,
            carried,
        } = other;
        for (mine, others) in [
            (&mut self.held, held),
            (&mut self.overrun, overrun),
            (&mut self.charged, charged),
            (&mut self.refunded, refunded),
            (&mut self.expired, expired),
            (&mut self.outstanding, outstanding),
            (&mut self.late, late),
            (&mut self.forgiven, forgiven),
            (&mut self.carried, carried),
        ] {
            *mine = plus(*mine, *others);
        }
    }

    /// Which of the two equations does not hold.
    fn broken(&self) -> Option<&'static str> {
        let left = plus(self.held, self.overrun);
        let right = plus(plus(self.charged, self.refunded), plus(self.expired, self.outstanding));
        if left != right {
            return Some("held + overrun = charged + refunded + expired + outstanding");
        }
        let negative = |pair: Pair| pair.iter().any(|part| *part < 0);
        negative(self.outstanding).then_some("outstanding >= 0")
    }
}

impl Book {
    /// Adds an entry. The error says what is wrong with it.
    pub fn add(&mut self, entry: &Entry) -> Result<(), String> {
        match &entry.fact {
            Fact::Limits { account, limits } => {
                self.limits.insert(*account, *limits);
            }
            Fact::Reserve { hold, pins, amount, .. } => self.hold(*hold, pins, pair(*amount))?,
            Fact::Extend { hold, amount, .. } => self.extend(*hold, pair(*amount))?,
            Fact::Settle { hold, actual, .. } => self.settle(*hold, pair(*actual))?,
            Fact::Refund { hold } => self.give_back(*hold, false)?,
            Fact::Expire { hold } => self.give_back(*hold, true)?,
            Fact::Late { hold, pins, actual, .. } => {
                self.charge_late(*hold, pins, pair(*actual))?
            }
            Fact::Forgive { key, amount } => {
                self.row(key).forgive(pair(*amount));
            }
            Fact::Close { key, forgiven, carried } => self.close(key, *forgiven, *carried)?,
            Fact::Retire { account } => {
                self.limits.remove(account);
                self.rows.retain(|key, _| key.account != *account);
            }
            Fact::Acknowledged { .. } => {}
        }
        Ok(())
    }

    /// Compares what moved since the last time with what the ledger says, and with the algebra.
    pub fn compare(&mut self, ledger: &Ledger) -> Result<(), String> {
        let touched = std::mem::take(&mut self.touched);
        touched.iter().try_for_each(|key| self.compare_one(key, ledger))
    }

    /// What counts against an account's limit over a window of this kind that is open at `wall`, added up from every
    /// balance it has.
    pub fn used(&self, key: &BalanceKey, wall: Wall) -> Pair {
        let limits = self.limits.get(&key.account).copied().unwrap_or_default();
        let own = self.rows.get(key).map_or([0, 0], Row::used);
        let others = self.rows.range(..).filter(|(other, _)| {
            other.account == key.account
                && other.window.kind() == key.window.kind()
                && *other != key
        });
        let cap = match key.window.kind() {
            WindowKind::Day => limits.day,
            WindowKind::Month => limits.month,
            WindowKind::Rolling => {
                let counts = |window: Window| match window {
                    Window::Rolling { until, .. } => until > wall,
                    Window::Day(_) | Window::Month(_) => false,
                };
                let slices = others.filter(|(other, _)| counts(other.window));
                let own = if counts(key.window) { own } else { [0, 0] };
                return slices.fold(own, |sum, (_, row)| plus(sum, row.used()));
            }
        };
        if !limits.carry_debt {
            return own;
        }
        // Debt of windows that are over and still wait for a reservation counts already.
        let cap = [cap.tokens.map(|t| t.0), cap.money.map(|m| m.0)];
        let debts = others.filter(|(other, _)| other.window < key.window).map(|(_, row)| {
            let debt = |unit: usize| {
                cap[unit].map_or(0, |cap| (row.used()[unit] - i128::from(cap)).max(0))
            };
            [debt(0), debt(1)]
        });
        debts.fold(own, plus)
    }

    /// What an account may spend over windows of a kind: tokens, micro-dollars.
    pub fn caps(&self, account: AccountId, kind: WindowKind) -> [Option<i128>; 2] {
        let limits = self.limits.get(&account).copied().unwrap_or_default();
        caps_of(&limits, kind)
    }

    /// Compares every balance.
    pub fn compare_all(&self, ledger: &Ledger) -> Result<(), String> {
        for key in self.rows.keys() {
            self.compare_one(key, ledger)?;
        }
        let (mine, theirs) = (self.live.len(), ledger.outstanding());
        if mine != theirs {
            return Err(format!(
                "{mine} reservations are live by the entries, {theirs} by the ledger"
            ));
        }
        Ok(())
    }

    /// The sums of an account over all windows of a kind, closed ones included.
    pub fn total(&self, account: AccountId, kind: WindowKind) -> Row {
        let mut total = self.closed.get(&(account, kind)).copied().unwrap_or_default();
        let open =
            self.rows.iter().filter(|(key, _)| key.account == account && key.window.kind() == kind);
        open.for_each(|(_, row)| total.add(row));
        total
    }

    fn compare_one(&self, key: &BalanceKey, ledger: &Ledger) -> Result<(), String> {
        let row = self.rows.get(key).copied().unwrap_or_default();
        if let Some(equation) = row.broken() {
            return Err(format!("{equation} does not hold for {key:?}: {row:?}"));
        }
        match ledger.balance(key) {
            Some(sums) if same(&row, sums) => Ok(()),
            Some(sums) => {
                Err(format!("the entries of {key:?} add up to {row:?}, and it says {sums:?}"))
            }
            None if row == Row::default() => Ok(()),
            None => {
                Err(format!("{key:?} has {row:?} by its entries, and the ledger does not know it"))
            }
        }
    }

    fn row(&mut self, key: &BalanceKey) -> &mut Row {
        self.touched.push(*key);
        self.rows.entry(*key).or_default()
    }

    fn hold(&mut self, hold: HoldId, pins: &[BalanceKey], amount: Pair) -> Result<(), String> {
        if self.live.contains_key(&hold) {
            return Err(format!("{hold:?} is held twice"));
        }
        if self.ended.contains(&hold) {
            return Err(format!("{hold:?} is held again after its end"));
        }
        for pin in pins {
            let row = self.row(pin);
            row.held = plus(row.held, amount);
            row.outstanding = plus(row.outstanding, amount);
        }
        self.live.insert(hold, (pins.to_vec(), amount));
        Ok(())
    }

    fn extend(&mut self, hold: HoldId, amount: Pair) -> Result<(), String> {
        let Some((pins, total)) = self.live.get_mut(&hold) else {
            return Err(format!("{hold:?} is extended and not live"));
        };
        *total = plus(*total, amount);
        for pin in pins.clone() {
            let row = self.row(&pin);
            row.held = plus(row.held, amount);
            row.outstanding = plus(row.outstanding, amount);
        }
        Ok(())
    }

    fn settle(&mut self, hold: HoldId, actual: Pair) -> Result<(), String> {
        let (pins, total) = self.end(hold, "settled")?;
        self.settled.insert(hold);
        for pin in pins {
            let row = self.row(&pin);
            row.outstanding = minus(row.outstanding, total);
            row.charged = plus(row.charged, actual);
            row.overrun = plus(row.overrun, above(actual, total));
            row.refunded = plus(row.refunded, above(total, actual));
        }
        Ok(())
    }

    fn give_back(&mut self, hold: HoldId, expired: bool) -> Result<(), String> {
        if !self.live.contains_key(&hold) && !expired && !self.ended.contains(&hold) {
            // Refused before it was ever asked for: remembered, so that it is not granted later.
            self.ended.insert(hold);
            return Ok(());
        }
        let (pins, total) = self.end(hold, if expired { "expired" } else { "refunded" })?;
        for pin in pins {
            let row = self.row(&pin);
            row.outstanding = minus(row.outstanding, total);
            let part = if expired { &mut row.expired } else { &mut row.refunded };
            *part = plus(*part, total);
        }
        Ok(())
    }

    fn charge_late(
        &mut self,
        hold: HoldId,
        pins: &[BalanceKey],
        actual: Pair,
    ) -> Result<(), String> {
        if self.live.contains_key(&hold) {
            return Err(format!("{hold:?} is charged late while it is live"));
        }
        if self.settled.contains(&hold) || !self.late.insert(hold) {
            return Err(format!("{hold:?} is charged a second time, late"));
        }
        self.ended.insert(hold);
        for pin in pins {
            let row = self.row(pin);
            row.late = plus(row.late, actual);
        }
        Ok(())
    }

    fn close(
        &mut self,
        key: &BalanceKey,
        forgiven: Amount,
        carried: Option<(control::quota::Window, Amount)>,
    ) -> Result<(), String> {
        let mut row = self.rows.remove(key).unwrap_or_default();
        if row.outstanding != [0, 0] {
            return Err(format!("{key:?} is closed while it holds {:?}", row.outstanding));
        }
        row.forgive(pair(forgiven));
        row.carried = [0, 0];
        if let Some((window, amount)) = carried {
            // It counts where it is taken over, and no longer here.
            let to = self.row(&BalanceKey { account: key.account, window });
            to.carried = plus(to.carried, pair(amount));
        }
        self.closed.entry((key.account, key.window.kind())).or_default().add(&row);
        Ok(())
    }

    fn end(&mut self, hold: HoldId, how: &str) -> Result<(Vec<BalanceKey>, Pair), String> {
        self.ended.insert(hold);
        let live = self.live.remove(&hold);
        live.ok_or_else(|| format!("{hold:?} is {how} and not live: a second terminal entry"))
    }
}

/// A limit over windows of a kind: tokens, micro-dollars.
pub(super) fn caps_of(limits: &Limits, kind: WindowKind) -> [Option<i128>; 2] {
    let cap = match kind {
        WindowKind::Day => limits.day,
        WindowKind::Month => limits.month,
        WindowKind::Rolling => limits.rolling.map_or(Cap::NONE, |rolling| rolling.cap),
    };
    [cap.tokens.map(|tokens| tokens.0.into()), cap.money.map(|money| money.0.into())]
}

/// Both units of an amount.
pub(super) const fn pair(amount: Amount) -> Pair {
    [amount.tokens.0 as i128, amount.money.0 as i128]
}

pub(super) const fn plus(one: Pair, two: Pair) -> Pair {
    [one[0] + two[0], one[1] + two[1]]
}

pub(super) const fn minus(one: Pair, two: Pair) -> Pair {
    [one[0] - two[0], one[1] - two[1]]
}

/// How far one lies above another.
pub(super) fn above(one: Pair, two: Pair) -> Pair {
    [(one[0] - two[0]).max(0), (one[1] - two[1]).max(0)]
}

fn same(row: &Row, sums: &Sums) -> bool {
    let Row { held, overrun, charged, refunded, expired, outstanding, late, forgiven, carried } =
        *row;
    [held, overrun, charged, refunded, expired, outstanding, late, forgiven, carried, row.spent()]
        == [
            pair(sums.held),
            pair(sums.overrun),
            pair(sums.charged),
            pair(sums.refunded),
            pair(sums.expired),
            pair(sums.outstanding),
            pair(sums.late),
            pair(sums.forgiven),
            pair(sums.carried),
            pair(sums.spent),
        ]
}
