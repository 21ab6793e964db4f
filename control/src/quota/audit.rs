//! The sums of everything, and whether they add up.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::book::{Book, slot};
use super::sums::{Equation, Sums};
use super::terms::{BalanceKey, WindowKind};
use crate::id::AccountId;
use crate::units::Amount;

/// Every sum of a ledger, and every equation that does not hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Open balances, by account and window.
    pub balances: Vec<(BalanceKey, Sums)>,
    /// Closed windows, summed by account and kind. Only where something happened.
    pub history: Vec<(AccountId, WindowKind, Sums)>,
    /// The history of accounts that were dropped to make room.
    pub retired: Vec<(WindowKind, Sums)>,
    /// Live reservations.
    pub live: usize,
    /// What does not add up. Empty, always.
    pub violations: Vec<Violation>,
}

/// An equation that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Where: an open balance, or a history.
    pub place: Place,
    /// Which.
    pub equation: Equation,
    /// The sums that break it.
    pub sums: Sums,
}

/// Where sums stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// An open balance.
    Balance(BalanceKey),
    /// An account's closed windows.
    History(AccountId, WindowKind),
    /// Closed windows of accounts that were dropped.
    Retired(WindowKind),
}

impl Audit {
    pub(super) fn of(book: &Book) -> Self {
        let mut audit = Self { live: book.live.len(), ..Self::default() };
        let held = held(book);
        for (key, balance) in &book.balances {
            let place = Place::Balance(*key);
            audit.check(place, &balance.sums, held.get(key).copied().unwrap_or_default());
            audit.balances.push((*key, balance.sums));
        }
        for (account, known) in &book.accounts {
            for kind in WindowKind::ALL {
                let sums = known.history[slot(kind)];
                audit.check(Place::History(*account, kind), &sums, Amount::ZERO);
                if sums != Sums::default() {
                    audit.history.push((*account, kind, sums));
                }
            }
        }
        for kind in WindowKind::ALL {
            let sums = book.retired[slot(kind)];
            audit.check(Place::Retired(kind), &sums, Amount::ZERO);
            if sums != Sums::default() {
                audit.retired.push((kind, sums));
            }
        }
        audit
    }

    fn check(&mut self, place: Place, sums: &Sums, outstanding: Amount) {
        let mut broken = sums.violations();
        if sums.outstanding != outstanding {
            broken.push(Equation::Outstanding);
        }
        let violations = broken.into_iter();
        self.violations.extend(violations.map(|equation| Violation {
            place,
            equation,
            sums: *sums,
        }));
    }
}

/// What the live reservations hold in each balance, counted from scratch.
fn held(book: &Book) -> BTreeMap<BalanceKey, Amount> {
    let mut held: BTreeMap<BalanceKey, Amount> = BTreeMap::new();
    for hold in book.live.values() {
        for pin in &hold.pins {
            *held.entry(*pin).or_default() += hold.total;
        }
    }
    held
}
