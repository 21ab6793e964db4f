//! What accounts have spent and hold, whenever that changes.

use std::collections::BTreeMap;

use control::id::AccountId;
use control::quota::{Cap, Entry, Fact, Ledger, Limits, Sums, Unit, WindowKind};
use control::units::Amount;

use super::Names;
use crate::story::Quota;

/// The lines of all accounts.
#[derive(Default)]
pub(crate) struct Quotas {
    limits: BTreeMap<AccountId, Limits>,
    /// The latest limit of each line: a reload may take it away.
    caps: BTreeMap<Line, u64>,
    lines: BTreeMap<Line, Vec<(u64, u64, u64)>>,
}

/// One account in one kind of window and one unit.
type Line = (AccountId, WindowKind, Unit);

impl Quotas {
    /// A ledger took entries.
    pub fn moved<'a>(&mut self, at: u64, made: impl Iterator<Item = &'a Entry>, ledger: &Ledger) {
        let mut any = false;
        for entry in made {
            any = true;
            if let Fact::Limits { account, limits } = &entry.fact {
                self.limits.insert(*account, *limits);
            }
        }
        if any {
            self.sample(at, ledger);
        }
    }

    /// The store is another one.
    pub fn replaced(&mut self, at: u64, ledger: &Ledger) {
        self.sample(at, ledger);
    }

    fn sample(&mut self, at: u64, ledger: &Ledger) {
        for ((account, kind), sums) in open(ledger) {
            for unit in Unit::ALL {
                let Some(cap) = self.cap((account, kind, unit)) else { continue };
                self.caps.insert((account, kind, unit), cap);
                let of = |amount: Amount| match unit {
                    Unit::Tokens => amount.tokens.0,
                    Unit::Money => amount.money.0,
                };
                let (spent, out) =
                    (of(sums.spent).saturating_add(of(sums.carried)), of(sums.outstanding));
                let line = self.lines.entry((account, kind, unit)).or_default();
                match line.last_mut() {
                    Some(last) if (last.1, last.2) == (spent, out) => {}
                    // Of several changes at one instant, the last is what holds.
                    Some(last) if last.0 == at => *last = (at, spent, out),
                    _ => line.push((at, spent, out)),
                }
            }
        }
    }

    fn cap(&self, (account, kind, unit): Line) -> Option<u64> {
        let limits = self.limits.get(&account)?;
        let cap = match kind {
            WindowKind::Day => limits.day,
            WindowKind::Month => limits.month,
            WindowKind::Rolling => limits.rolling.map_or(Cap::NONE, |rolling| rolling.cap),
        };
        match unit {
            Unit::Tokens => cap.tokens.map(|tokens| tokens.0),
            Unit::Money => cap.money.map(|money| money.0),
        }
    }

    /// The lines, each under its account's name.
    pub fn told(&mut self, names: &Names) -> Vec<Quota> {
        let lines = std::mem::take(&mut self.lines);
        let told = lines.into_iter().map(|((account, kind, unit), points)| {
            // Short: it stands beside a lane. Where no unit is named it is tokens.
            let unit_name = match unit {
                Unit::Tokens => "",
                Unit::Money => " µ$",
            };
            let window = match kind {
                WindowKind::Day => "day",
                WindowKind::Month => "month",
                WindowKind::Rolling => "rolling",
            };
            Quota {
                account: format!("{} {window}{unit_name}", names.account(account)),
                limit: self.caps.get(&(account, kind, unit)).copied(),
                points,
            }
        });
        told.collect()
    }
}

/// What counts now, by account and kind: the latest day and month, and every slice of a rolling window.
fn open(ledger: &Ledger) -> BTreeMap<(AccountId, WindowKind), Sums> {
    let mut open: BTreeMap<(AccountId, WindowKind), Sums> = BTreeMap::new();
    // Balances come by account and, within it, by window: a later day replaces an earlier one.
    for (key, sums) in ledger.balances() {
        let kind = key.window.kind();
        let known = open.entry((key.account, kind)).or_default();
        match kind {
            WindowKind::Day | WindowKind::Month => *known = *sums,
            WindowKind::Rolling => {
                known.spent += sums.spent;
                known.outstanding += sums.outstanding;
            }
        }
    }
    open
}
