//! Whether an amount fits, and when it will.

use alloc::vec::Vec;
use core::time::Duration;

use super::super::sums::Sums;
use super::super::terms::{
    BalanceKey, Cap, Denied, DenyReason, Limits, MAX_SUM, Unit, Window, WindowKind,
};
use super::{FULL, Ledger};
use crate::id::AccountId;
use crate::time::Wall;
use crate::units::Amount;

impl Ledger {
    pub(super) fn pins(&self, accounts: &[(AccountId, Limits)]) -> Vec<BalanceKey> {
        let open = |kind, limits| Window::open(kind, self.book.wall, limits);
        let mut pins = Vec::with_capacity(accounts.len() * 3);
        for (account, limits) in accounts {
            let windows = WindowKind::ALL.into_iter().filter_map(|kind| open(kind, limits));
            pins.extend(windows.map(|window| BalanceKey { account: *account, window }));
        }
        pins
    }

    pub(super) fn check(&self, pins: &[BalanceKey], amount: Amount) -> Result<(), Denied> {
        let unknown = Limits::default();
        let mut latest: Option<(AccountId, &Limits)> = None;
        let refusals = pins.iter().filter_map(|pin| {
            // An account's windows stand side by side: it is looked up once.
            let limits = match latest {
                Some((account, limits)) if account == pin.account => limits,
                _ => self.book.accounts.get(&pin.account).map_or(&unknown, |known| &known.limits),
            };
            latest = Some((pin.account, limits));
            self.refusal(*pin, limits, amount)
        });
        refusals.max_by_key(|denied| denied.retry_after).map_or(Ok(()), Err)
    }

    fn refusal(&self, pin: BalanceKey, limits: &Limits, amount: Amount) -> Option<Denied> {
        let kind = pin.window.kind();
        let cap = limits.cap(kind);
        let unopened = Sums::default();
        let own = self.balance(&pin).unwrap_or(&unopened);
        let moved = own.moved() + amount;
        if Unit::ALL.iter().any(|unit| unit.of(amount) > 0 && unit.of(moved) > MAX_SUM) {
            return Some(FULL);
        }
        if cap == Cap::NONE {
            return None;
        }
        let used = self.used(pin, own, limits);
        // A unit nothing is asked of passes: an extension by nothing only lives longer, a free model costs no money.
        let over = |unit: Unit| {
            let asked = unit.of(amount);
            asked > 0 && cap.of(unit).is_some_and(|cap| unit.of(used) + asked > cap)
        };
        let unit = Unit::ALL.into_iter().find(|unit| over(*unit))?;
        let remaining = cap.left(used);
        let reason = DenyReason::Spent { account: pin.account, window: kind, unit, remaining };
        Some(Denied { reason, retry_after: self.retry_after(pin, unit, limits, (used, amount)) })
    }

    /// What counts against the limit of `pin`'s window.
    pub(super) fn used(&self, pin: BalanceKey, own: &Sums, limits: &Limits) -> Amount {
        let own = own.used();
        match pin.window.kind() {
            WindowKind::Day | WindowKind::Month if !limits.carry_debt => own,
            kind @ (WindowKind::Day | WindowKind::Month) => {
                // Debt of windows that have ended and wait for their last reservation.
                let cap = limits.cap(kind);
                let first = if kind == WindowKind::Day { Window::Day(0) } else { Window::Month(0) };
                let from = BalanceKey { account: pin.account, window: first };
                let earlier = self.book.balances.range(from..pin);
                earlier.fold(own, |sum, (_, balance)| sum + cap.excess(balance.sums.used()))
            }
            WindowKind::Rolling => {
                self.slices(pin.account).fold(Amount::ZERO, |sum, (_, sums)| sum + sums.used())
            }
        }
    }

    /// The rolling slices of an account that still count, oldest first.
    fn slices(&self, account: AccountId) -> impl Iterator<Item = (Wall, &Sums)> {
        let nought = Window::Rolling { start: Wall::default(), until: Wall::default() };
        let from = BalanceKey { account, window: nought };
        let own = self.book.balances.range(from..);
        own.take_while(move |(key, _)| key.account == account || planted!(RollingOfOthers))
            .filter_map(|(key, balance)| match key.window {
                Window::Rolling { until, .. } if until > self.book.wall => {
                    Some((until, &balance.sums))
                }
                Window::Rolling { .. } | Window::Day(_) | Window::Month(_) => None,
            })
    }

    fn retry_after(
        &self,
        pin: BalanceKey,
        unit: Unit,
        limits: &Limits,
        (used, amount): (Amount, Amount),
    ) -> Duration {
        let wall = self.book.wall;
        match pin.window.kind() {
            WindowKind::Day => wall.until_next_day(),
            WindowKind::Month => wall.until_next_month(),
            WindowKind::Rolling => {
                let cap = limits.cap(WindowKind::Rolling).of(unit).unwrap_or(MAX_SUM);
                let mut over = (unit.of(used) + unit.of(amount)).saturating_sub(cap);
                let mut until = wall;
                for (leaves, sums) in self.slices(pin.account) {
                    if over == 0 {
                        break;
                    }
                    over = over.saturating_sub(unit.of(sums.used()));
                    until = leaves;
                }
                Duration::from_millis(until.as_millis().saturating_sub(wall.as_millis()))
            }
        }
    }
}
