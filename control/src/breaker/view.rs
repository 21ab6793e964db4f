//! What the breaker says to others.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::id::EndpointId;
use crate::outcome::Fault;
use crate::time::Instant;

/// Whether an endpoint may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admission {
    /// Ask it.
    Allowed {
        /// The share of its weight it should get, 1 to 1000: less than 1000 in slow start. A half-open endpoint with
        /// a free probe slot has 1000: the slots limit it, and a thin share would leave it unprobed at low traffic.
        share_permille: u32,
    },
    /// Do not.
    Refused {
        /// When to look again, at the latest.
        until: Instant,
        /// Why it was ejected.
        cause: Cause,
    },
}

/// The three states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Phase {
    /// Traffic flows.
    Closed,
    /// Refused.
    Open,
    /// A limited number of probes decides.
    HalfOpen,
}

/// Why a breaker moved, or stands where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// Opened: failures in a row.
    ConsecutiveFailures {
        /// How many.
        count: u32,
    },
    /// Opened: too many of the window's requests failed.
    FailureRate {
        /// Failures in the window.
        failed: u32,
        /// Successes and failures in the window.
        total: u32,
    },
    /// Opened: only the endpoint's operator can mend it.
    Fault(Fault),
    /// Opened again: a probe failed.
    ProbeFailed,
    /// Opened again: a probe fell silent until its deadline.
    ProbeExpired,
    /// Half-open: the ejection's time is over.
    EjectionOver,
    /// Closed: enough probes succeeded.
    ProbesSucceeded,
    /// Still closed, with a larger share.
    SlowStart,
    /// Closed by an operator.
    Reset,
    /// No such endpoint.
    Unknown,
}

/// What an attempt was begun with: one stay of the breaker in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// Which stay in which state. Never given twice.
    pub generation: u64,
    /// Whether it holds a probe slot.
    pub probe: bool,
    /// Tells the probes of one stay apart.
    pub serial: u32,
}

impl Ticket {
    /// For an endpoint that is not known: moves nothing.
    pub(super) const NOBODYS: Self = Self { generation: 0, probe: false, serial: 0 };
}

/// A breaker moved: update what may be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// Whose.
    pub id: EndpointId,
    /// Where it stood.
    pub from: Phase,
    /// Where it stands. The same as `from` for a step of slow start, and where an open one was found to be at fault.
    pub to: Phase,
    /// The share of its weight it gets from now on, in thousandths; 0 while open.
    pub share_permille: u32,
    /// Why.
    pub cause: Cause,
    /// The end of the ejection, while open.
    pub until: Option<Instant>,
}

/// A breaker as shown to people, and to whoever counts a pool's [`EjectionRoom`](super::EjectionRoom).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateView {
    /// Its state.
    pub phase: Phase,
    /// Since when. The plane's start for one that never moved.
    pub since: Instant,
    /// The end of the ejection, while open.
    pub until: Option<Instant>,
    /// Why it was ejected, until it closes.
    pub cause: Option<Cause>,
    /// The share of its weight it gets, in thousandths; 0 while open.
    pub share_permille: u32,
    /// Probes under way.
    pub probes: u32,
    /// Doublings of the next ejection, not counting what quiet time has forgotten since.
    pub ejections: u32,
    /// Failures in a row, while closed.
    pub consecutive_failures: u32,
    /// How often it should have been ejected and was not, for want of room in its pool.
    pub withheld: u64,
}

impl StateView {
    /// Whether it counts as ejected: open, or half-open.
    #[must_use]
    pub const fn ejected(&self) -> bool {
        !matches!(self.phase, Phase::Closed)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        })
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConsecutiveFailures { count } => write!(f, "{count} failures in a row"),
            Self::FailureRate { failed, total } => {
                write!(f, "{failed} of the last {total} requests failed")
            }
            Self::Fault(fault) => write!(f, "{fault}"),
            Self::ProbeFailed => f.write_str("a probe failed"),
            Self::ProbeExpired => f.write_str("a probe was not answered in time"),
            Self::EjectionOver => f.write_str("the ejection is over, a probe may pass"),
            Self::ProbesSucceeded => f.write_str("the probes succeeded"),
            Self::SlowStart => f.write_str("returning, with a larger share"),
            Self::Reset => f.write_str("reset by an operator"),
            Self::Unknown => f.write_str("no such endpoint"),
        }
    }
}
