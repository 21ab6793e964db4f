//! The words of quota: limits, windows, who holds what, and why something was denied.

use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{AccountId, ReservationId};
use crate::time::{Instant, Wall};
use crate::units::{Amount, MicroUsd, Tokens};

/// A request to hold quota: all of these accounts in both units, or none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserve {
    /// Names the reservation. The same id, asked again, gets the same answer and holds nothing twice.
    pub id: ReservationId,
    /// One to three accounts, the root (tenant) first, each with its limits as configured now.
    pub accounts: Vec<(AccountId, Limits)>,
    /// What to hold, in both units: the price is pinned here.
    pub amount: Amount,
    /// How long it is held without a word from its owner. Every extension starts it anew.
    pub ttl: Duration,
}

/// What an account may spend. The default has no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Per UTC day.
    pub day: Cap,
    /// Per UTC month.
    pub month: Cap,
    /// In any span of a given length, where one is wanted.
    pub rolling: Option<Rolling>,
    /// What was spent above a day's or a month's limit: true takes it from the next window, false forgives it when the
    /// window closes. (A rolling window has no reset: what was spent leaves it by age.)
    pub carry_debt: bool,
}

/// A limit over any span of `window`. Counted in slices of a 32nd of it, so that spending leaves at most a 32nd of the
/// window late, never early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rolling {
    /// The span. Below 32 ms it is counted as 32 ms.
    pub window: Duration,
    /// What may be spent in it.
    pub cap: Cap,
}

/// A limit per unit; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cap {
    /// At most so many tokens.
    pub tokens: Option<Tokens>,
    /// At most so much money.
    pub money: Option<MicroUsd>,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Unit {
    /// Model tokens.
    Tokens,
    /// Micro-USD.
    Money,
}

/// Over what it is counted. Days and months are UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum WindowKind {
    /// A UTC day.
    Day,
    /// A UTC month.
    Month,
    /// Any span of a given length.
    Rolling,
}

/// One window of the calendar, or one slice of a rolling window. Pinned when a reservation is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Window {
    /// Days since 1970-01-01.
    Day(u64),
    /// Months since January 1970.
    Month(u64),
    /// A slice: from when, and until when it counts.
    Rolling {
        /// Its first moment.
        start: Wall,
        /// It counts before this moment: its own end plus the window's length.
        until: Wall,
    },
}

/// One balance: an account in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BalanceKey {
    /// Whose.
    pub account: AccountId,
    /// When.
    pub window: Window,
}

/// The process that holds reservations. Unique among all that share a store; minted afresh with each data directory, so
/// that a wiped gateway cannot meet its old ids.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct OwnerId(pub u64);

/// The ledger's name for what is held: reservation ids are unique within their owner only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HoldId {
    /// Who holds it.
    pub owner: OwnerId,
    /// True where it is an allotment, drawn ahead to be spent while the store is away. Allotments count on their own.
    pub allotment: bool,
    /// Its number at that owner.
    pub id: ReservationId,
}

/// Both clocks of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct At {
    /// The ledger's own monotonic clock.
    pub now: Instant,
    /// Wall time, for the calendar.
    pub wall: Wall,
}

/// A refusal, and when to ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denied {
    /// Why.
    pub reason: DenyReason,
    /// When asking again may succeed. Zero where it never will.
    pub retry_after: Duration,
}

/// Why quota was denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DenyReason {
    /// An account's limit. Of several, the one that lasts longest.
    Spent {
        /// Whose limit.
        account: AccountId,
        /// Over which window.
        window: WindowKind,
        /// Of what.
        unit: Unit,
        /// What that window has left. A unit without a limit shows [`MAX_SUM`].
        remaining: Amount,
    },
    /// The amount is above [`MAX_AMOUNT`]: no account may hold so much at once.
    TooLarge,
    /// The ledger holds as many reservations or accounts as it may.
    Full,
    /// The reservation is unknown, or has had its terminal entry.
    Ended,
    /// The shared ledger does not answer, and the allotments drawn beforehand do not cover this.
    StoreUnreachable,
}

/// The most one reservation or settlement may be, per unit: 2^36 (68 billion tokens, 68,719 USD). Far above any real
/// request, and [`LIVE_MAX`] of them stay below 2^52: see [`MAX_SUM`].
pub const MAX_AMOUNT: u64 = 1 << 36;

/// New reservations stop when a balance has moved this much: 2^52. What is then live may still overrun by at most another
/// 2^52, so that every sum stays below 2^53, where the doubles of Redis' Lua cease to be exact.
pub const MAX_SUM: u64 = 1 << 52;

/// The most live reservations any configuration may ask for: 2^16, so that [`MAX_AMOUNT`] times this is [`MAX_SUM`].
pub const LIVE_MAX: usize = 1 << 16;

/// Slices of a rolling window: a 32nd is late by 2 minutes in an hour and costs at most 34 balances per account.
const ROLLING_SLICES: u64 = 32;

const MILLIS_PER_DAY: u64 = 86_400_000;

impl Window {
    /// Its kind.
    #[must_use]
    pub const fn kind(self) -> WindowKind {
        match self {
            Self::Day(_) => WindowKind::Day,
            Self::Month(_) => WindowKind::Month,
            Self::Rolling { .. } => WindowKind::Rolling,
        }
    }

    /// The window of that kind that is open at `wall`. `None` for a rolling one where the limits have none.
    #[must_use]
    pub fn open(kind: WindowKind, wall: Wall, limits: &Limits) -> Option<Self> {
        match kind {
            WindowKind::Day => Some(Self::Day(wall.day())),
            WindowKind::Month => Some(Self::Month(wall.month())),
            WindowKind::Rolling => limits.rolling.map(|rolling| {
                let width = slice_millis(rolling.window);
                let start = wall.as_millis() / width * width;
                let until = Wall::from_millis(start.saturating_add(width)) + rolling.window;
                Self::Rolling { start: Wall::from_millis(start), until }
            }),
        }
    }

    /// True once it has stopped counting. Cheaper than to ask when.
    pub(super) fn is_over(self, wall: Wall) -> bool {
        match self {
            Self::Day(day) => day < wall.day(),
            Self::Month(month) => month < wall.month(),
            Self::Rolling { until, .. } => until <= wall,
        }
    }

    /// When it stops counting. `seen` is a moment at which it was named: an earlier month has ended by then.
    pub(super) fn end(self, seen: Wall) -> Wall {
        match self {
            Self::Day(day) => Wall::from_millis((day + 1).saturating_mul(MILLIS_PER_DAY)),
            Self::Month(month) if month >= seen.month() => seen + seen.until_next_month(),
            Self::Month(_) => seen,
            Self::Rolling { until, .. } => until,
        }
    }
}

fn slice_millis(window: Duration) -> u64 {
    u64::try_from(window.as_millis()).unwrap_or(u64::MAX).div_ceil(ROLLING_SLICES).max(1)
}

impl WindowKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Day, Self::Month, Self::Rolling];
}

impl Unit {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tokens, Self::Money];

    pub(super) const fn of(self, amount: Amount) -> u64 {
        match self {
            Self::Tokens => amount.tokens.0,
            Self::Money => amount.money.0,
        }
    }
}

impl Cap {
    /// No limit.
    pub const NONE: Self = Self { tokens: None, money: None };

    pub(super) fn of(self, unit: Unit) -> Option<u64> {
        match unit {
            Unit::Tokens => self.tokens.map(|tokens| tokens.0),
            Unit::Money => self.money.map(|money| money.0),
        }
    }

    /// What is left of it after `used`, floored at zero.
    pub(super) fn left(self, used: Amount) -> Amount {
        let left = |unit: Unit| self.of(unit).unwrap_or(MAX_SUM).saturating_sub(unit.of(used));
        Amount { tokens: Tokens(left(Unit::Tokens)), money: MicroUsd(left(Unit::Money)) }
    }

    /// How far `used` lies above it; zero in a unit without a limit.
    pub(super) fn excess(self, used: Amount) -> Amount {
        let above = |unit: Unit| self.of(unit).map_or(0, |cap| unit.of(used).saturating_sub(cap));
        Amount { tokens: Tokens(above(Unit::Tokens)), money: MicroUsd(above(Unit::Money)) }
    }
}

impl Limits {
    pub(super) fn cap(&self, kind: WindowKind) -> Cap {
        match kind {
            WindowKind::Day => self.day,
            WindowKind::Month => self.month,
            WindowKind::Rolling => self.rolling.map_or(Cap::NONE, |rolling| rolling.cap),
        }
    }
}

impl HoldId {
    /// A request's reservation.
    #[must_use]
    pub const fn request(owner: OwnerId, id: ReservationId) -> Self {
        Self { owner, allotment: false, id }
    }

    /// An allotment.
    #[must_use]
    pub const fn allotment(owner: OwnerId, id: ReservationId) -> Self {
        Self { owner, allotment: true, id }
    }
}

impl Denied {
    /// A refusal that no waiting mends.
    #[must_use]
    pub const fn never(reason: DenyReason) -> Self {
        Self { reason, retry_after: Duration::ZERO }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            DenyReason::Spent { account, window, unit, remaining } => {
                let (span, left) = (window.name(), remaining);
                match unit {
                    Unit::Tokens => write!(f, "{account} has {} left {span}", left.tokens)?,
                    Unit::Money => write!(f, "{account} has {} left {span}", left.money)?,
                }
                write!(f, "; ask again in {} s", self.retry_after.as_secs())
            }
            DenyReason::TooLarge => f.write_str("more than any request may reserve"),
            DenyReason::Full => f.write_str("the ledger holds as much as it may; ask again"),
            DenyReason::Ended => f.write_str("the reservation has ended"),
            DenyReason::StoreUnreachable => f.write_str("the shared ledger does not answer"),
        }
    }
}

impl WindowKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Day => "today",
            Self::Month => "this month",
            Self::Rolling => "in its rolling window",
        }
    }
}

/// The smaller of two amounts, unit by unit.
pub(super) const fn smaller(one: Amount, two: Amount) -> Amount {
    one.saturating_sub(one.saturating_sub(two))
}

/// True where `part` is at most `whole` in both units.
pub(super) fn covers(whole: Amount, part: Amount) -> bool {
    part.saturating_sub(whole) == Amount::ZERO
}

/// An amount no larger than [`MAX_AMOUNT`] in either unit.
pub(super) const fn clamp(amount: Amount) -> Amount {
    smaller(amount, Amount { tokens: Tokens(MAX_AMOUNT), money: MicroUsd(MAX_AMOUNT) })
}
