//! What happened, as facts that only ever get appended.
//!
//! An entry holds everything needed to apply it without deciding again: amounts in both units (so the price is pinned),
//! the windows it falls into, the moment it expires. A newer version of the logic applies old entries as they stand.

use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::terms::{BalanceKey, HoldId, Limits, Window};
use crate::id::{AccountId, ReservationId};
use crate::time::{Instant, Wall};
use crate::units::Amount;

/// One fact and when it became one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// On the ledger's own clock.
    pub at: Instant,
    /// The latest wall time the ledger had seen.
    pub wall: Wall,
    /// What happened.
    pub fact: Fact,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    /// An account was first seen, or its limits changed.
    Limits {
        /// Whose.
        account: AccountId,
        /// From now on.
        limits: Limits,
    },
    /// Quota is held. Every balance in `pins` holds the whole amount.
    Reserve {
        /// Names what is held.
        hold: HoldId,
        /// The balances it counts in, the root account's first. They stay the same until it ends.
        pins: Vec<BalanceKey>,
        /// How much.
        amount: Amount,
        /// How long it lives without a word from its owner.
        ttl: Duration,
        /// When it expires.
        expires: Instant,
        /// The owner's allotment it is a part of, if it is not held in the ledger itself.
        from: Option<ReservationId>,
    },
    /// More is held, and for longer.
    Extend {
        /// What is extended.
        hold: HoldId,
        /// How much more; may be nothing, to live longer.
        amount: Amount,
        /// When it now expires.
        expires: Instant,
        /// The owner's allotment the addition is a part of, if it is not held in the ledger itself.
        from: Option<ReservationId>,
    },
    /// Terminal: it was used. What differs from the amount held is charged on top (overrun) or returned (refund).
    Settle {
        /// What ended.
        hold: HoldId,
        /// What was used.
        actual: Amount,
        /// True where the count is our own estimate.
        estimated: bool,
    },
    /// Terminal: it was not used.
    Refund {
        /// What ended.
        hold: HoldId,
    },
    /// Terminal: its owner was not heard of in time.
    Expire {
        /// What ended.
        hold: HoldId,
    },
    /// It was used after all: settled after it had expired, or after a failover forgot it. At most once per hold.
    Late {
        /// What had ended.
        hold: HoldId,
        /// Where it counts: its own windows while they are kept, else those now open.
        pins: Vec<BalanceKey>,
        /// What was used.
        actual: Amount,
        /// True where the count is our own estimate.
        estimated: bool,
    },
    /// Spending that is not held against the account any more.
    Forgive {
        /// Which balance.
        key: BalanceKey,
        /// How much.
        amount: Amount,
    },
    /// A window is over and nothing in it is outstanding: its sums move to the account's history.
    Close {
        /// Which balance.
        key: BalanceKey,
        /// Debt that is forgiven.
        forgiven: Amount,
        /// Debt that another window of the account takes over.
        carried: Option<(Window, Amount)>,
    },
    /// An account that has nothing but history makes room: its sums move to the ledger's retired ones.
    Retire {
        /// Whose.
        account: AccountId,
    },
    /// Owner's side only: the shared ledger has acknowledged a terminal entry.
    Acknowledged {
        /// Of what.
        hold: HoldId,
    },
}

/// How a reservation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Terminal {
    /// Used and charged.
    Settled,
    /// Not used.
    Refunded,
    /// Its owner was not heard of in time.
    Expired,
    /// Charged after its end.
    Late,
}
