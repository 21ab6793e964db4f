//! The sums of one balance, and the algebra they obey.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::terms::smaller;
use crate::units::Amount;

/// What has happened to one balance, in both units. After every entry, in each unit:
///
/// ```text
/// held + overrun = charged + refunded + expired + outstanding
/// spent          = charged + late - forgiven
/// ```
///
/// `outstanding` and `spent` are kept beside the others, not derived, so that the algebra can fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Reserved and extended, ever.
    pub held: Amount,
    /// Used beyond what was held.
    pub overrun: Amount,
    /// Used and settled in time.
    pub charged: Amount,
    /// Held, not used, returned.
    pub refunded: Amount,
    /// Held and returned because the owner was not heard of.
    pub expired: Amount,
    /// Held now.
    pub outstanding: Amount,
    /// Used, and settled after the end.
    pub late: Amount,
    /// Spent, and no longer held against the account.
    pub forgiven: Amount,
    /// What counts as spent.
    pub spent: Amount,
    /// Debt taken over from an earlier window. Part of what counts against the limit, not of the algebra.
    pub carried: Amount,
}

/// One of the two equations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Equation {
    /// `held + overrun = charged + refunded + expired + outstanding`.
    Holdings,
    /// `spent = charged + late - forgiven`.
    Spending,
    /// `outstanding` equals what the live reservations hold.
    Outstanding,
}

impl Sums {
    /// What counts against the limit: spent, held, and debt taken over.
    #[must_use]
    pub fn used(&self) -> Amount {
        if planted!(Overdraft) {
            return self.spent + self.carried;
        }
        self.spent + self.outstanding + self.carried
    }

    /// The equations that do not hold. Empty, always.
    #[must_use]
    pub fn violations(&self) -> Vec<Equation> {
        let mut broken = Vec::new();
        let ended = self.charged + self.refunded + self.expired;
        if self.held + self.overrun != ended + self.outstanding {
            broken.push(Equation::Holdings);
        }
        if self.spent + self.forgiven != self.charged + self.late {
            broken.push(Equation::Spending);
        }
        broken
    }

    /// Everything that moved here: what [`super::MAX_SUM`] bounds.
    pub(super) fn moved(&self) -> Amount {
        self.held + self.overrun + self.late + self.carried
    }

    pub(super) fn hold(&mut self, amount: Amount) {
        self.held += amount;
        self.outstanding += amount;
    }

    pub(super) fn settle(&mut self, total: Amount, actual: Amount) {
        self.outstanding = self.outstanding.saturating_sub(total);
        self.overrun += actual.saturating_sub(total);
        self.refunded += total.saturating_sub(actual);
        self.charged += actual;
        self.spent += actual;
    }

    pub(super) fn refund(&mut self, total: Amount) {
        self.outstanding = self.outstanding.saturating_sub(total);
        self.refunded += total;
    }

    pub(super) fn expire(&mut self, total: Amount) {
        self.outstanding = self.outstanding.saturating_sub(total);
        self.expired += total;
    }

    pub(super) fn late(&mut self, actual: Amount) {
        self.late += actual;
        self.spent += actual;
    }

    /// Forgives at most what was spent.
    pub(super) fn forgive(&mut self, amount: Amount) {
        let amount = smaller(amount, self.spent);
        self.forgiven += amount;
        self.spent = self.spent.saturating_sub(amount);
    }

    /// Adds a closed window's sums to a history. Carried debt is not history: it lives on in another window.
    pub(super) fn absorb(&mut self, other: &Self) {
        self.held += other.held;
        self.overrun += other.overrun;
        self.charged += other.charged;
        self.refunded += other.refunded;
        self.expired += other.expired;
        self.outstanding += other.outstanding;
        self.late += other.late;
        self.forgiven += other.forgiven;
        self.spent += other.spent;
    }
}
