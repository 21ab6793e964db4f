//! What clients live through in one scenario, over all its seeds.
//!
//! In trouble only the requests that arrive while it lasts are counted: in the minutes before and after, nearly all are
//! served, and a share of everything would hide what the trouble was like. In calm all are. How long the trouble outlives
//! itself is a figure of its own: until when at least half of a model's requests still failed.

use std::collections::BTreeMap;
use std::time::Duration;

use control::attempt::Why;
use control::id::AccountId;
use control::outcome::{Failure, Stage};
use control::plane::{Outcome, Refusal};
use control::quota::{Unit, WindowKind};
use control::rate::RateUnit;

use super::scenario::{Scenario, Times};
use super::subject::Subject;
use crate::check::Violation;
use crate::chronicle::{End, Notes, Record};
use crate::plan::{Host, tenant_account};

/// Why a request was not answered whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    /// An account's quota.
    Quota(AccountId, WindowKind, Unit),
    /// An account's rate, a minute.
    Rate(AccountId, bool, u64),
    /// The model's own limit of requests at once.
    Busy,
    /// Every endpoint of the model had its maximum in flight.
    Full,
    /// Every endpoint that was left was ejected.
    Ejected,
    /// Every endpoint was asked, or drains, or is gone.
    NobodyLeft,
    /// A timeout of the request or its attempt.
    Timed(Stage),
    /// It did not stream, and had not come when its request's time was over.
    Unheard,
    /// Attempts failed, for the reason given no other was made.
    Failed(GaveUp),
    /// The answer broke off.
    Broken,
    /// Anything else, in a word.
    Other(&'static str),
}

/// Why no other attempt was made, in an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum GaveUp {
    AttemptsSpent,
    DeadlineTooNear,
    SlowFailure,
    BudgetSpent,
    Hopeless,
}

/// The figures of a scenario.
#[derive(Clone, Debug, Default)]
pub(super) struct Lived {
    pub all: Counts,
    /// By model.
    pub models: BTreeMap<u32, Counts>,
    /// By tenant and user.
    pub accounts: BTreeMap<AccountId, Counts>,
    /// By model: the longest that its trouble outlived itself, in ms, and whether the end of it was seen.
    pub back_after: BTreeMap<u32, Back>,
    /// Ejections while the trouble lasted and after it: the longest of each replica.
    pub ejections: BTreeMap<u32, Duration>,
    pub violations: Vec<(u64, Violation)>,
}

/// How long a model stayed away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Back {
    pub after_ms: u64,
    pub never: bool,
}

/// What became of some requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub asked: u64,
    pub served: u64,
    /// Whatever was not served, by cause.
    pub causes: BTreeMap<Cause, u64>,
    pub attempts: u64,
    /// Requests that were sent to somebody.
    pub sent: u64,
    pub first_ms: Vec<u32>,
    pub whole_ms: Vec<u32>,
}

/// Requests are looked at together for so long, to see when a model is back.
const SLICE_NS: u64 = 5_000_000_000;

impl Lived {
    /// Takes in one run.
    pub fn add(&mut self, subject: &Subject, scenario: Scenario, times: Times, notes: Notes) {
        let from = times.from * 1_000_000;
        let until = from + scenario.lasts_ms() * 1_000_000;
        for ejection in notes.ejections.iter().filter(|ejection| ejection.at >= from) {
            let replica = ejection.replica - crate::chronicle::id_of(Host::Replica(0));
            let longest = self.ejections.entry(replica).or_default();
            *longest = (*longest).max(ejection.length);
        }
        let visitor = tenant_account(subject.topology.tenants);
        let records = notes.requests.records();
        let records: Vec<&Record> =
            records.iter().filter(|record| record.principal.tenant != visitor).collect();
        for (model, back) in backs(&records, until, times.until * 1_000_000) {
            let worst = self.back_after.entry(model).or_default();
            *worst = (*worst).max(back);
        }
        let counted =
            |record: &&&Record| scenario == Scenario::Calm || (from..until).contains(&record.at);
        for record in records.iter().filter(counted) {
            self.all.add(record);
            if let Some(model) = model_of(record) {
                self.models.entry(model).or_default().add(record);
            }
            for account in record.principal.accounts() {
                self.accounts.entry(account).or_default().add(record);
            }
        }
    }

    /// The same scenario of other seeds.
    pub fn join(&mut self, other: Self) {
        self.all.join(other.all);
        for (model, counts) in other.models {
            self.models.entry(model).or_default().join(counts);
        }
        for (account, counts) in other.accounts {
            self.accounts.entry(account).or_default().join(counts);
        }
        for (model, back) in other.back_after {
            let worst = self.back_after.entry(model).or_default();
            *worst = (*worst).max(back);
        }
        for (replica, length) in other.ejections {
            let longest = self.ejections.entry(replica).or_default();
            *longest = (*longest).max(length);
        }
        self.violations.extend(other.violations);
    }
}

impl Back {
    /// `120 s`, or that no end was seen.
    pub fn told(self) -> String {
        let seconds = self.after_ms / 1_000;
        if self.never { format!("more than {seconds} s") } else { format!("{seconds} s") }
    }
}

impl Counts {
    fn add(&mut self, record: &Record) {
        self.asked += 1;
        self.attempts += u64::from(record.attempts);
        self.sent += u64::from(record.attempts > 0);
        let millis =
            |until: u64| u32::try_from((until - record.at) / 1_000_000).unwrap_or(u32::MAX);
        self.first_ms.extend(record.first.map(millis));
        match cause_of(record) {
            Some(cause) => *self.causes.entry(cause).or_default() += 1,
            None => {
                self.served += 1;
                self.whole_ms.extend(record.end.as_ref().map(|(at, _)| millis(*at)));
            }
        }
    }

    fn join(&mut self, other: Self) {
        self.asked += other.asked;
        self.served += other.served;
        self.attempts += other.attempts;
        self.sent += other.sent;
        for (cause, count) in other.causes {
            *self.causes.entry(cause).or_default() += count;
        }
        self.first_ms.extend(other.first_ms);
        self.whole_ms.extend(other.whole_ms);
    }

    /// How many of a hundred.
    pub fn percent(&self, count: u64) -> f64 {
        count as f64 * 100.0 / self.asked.max(1) as f64
    }
}

impl Cause {
    /// Whether a limit that the operator set refused it: that is what limits are for.
    pub const fn is_policy(&self) -> bool {
        match self {
            Self::Quota(..) | Self::Rate(..) | Self::Busy => true,
            Self::Full
            | Self::Ejected
            | Self::NobodyLeft
            | Self::Timed(_)
            | Self::Unheard
            | Self::Failed(_)
            | Self::Broken
            | Self::Other(_) => false,
        }
    }

    /// Whether it follows from too little room, of which calm says more.
    pub const fn is_consequence(&self) -> bool {
        matches!(self, Self::Full | Self::Ejected | Self::NobodyLeft)
    }

    /// In a few words, for a table.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Quota(..) => "quota",
            Self::Rate(..) => "rate",
            Self::Busy => "model busy",
            Self::Full => "endpoints full",
            Self::Ejected => "endpoints ejected",
            Self::NobodyLeft => "nobody left",
            Self::Timed(Stage::FirstToken) => "no first token in time",
            Self::Timed(Stage::BetweenTokens) => "stalled",
            Self::Timed(Stage::Deadline) => "deadline",
            Self::Unheard => "never came",
            Self::Failed(_) => "failed",
            Self::Broken => "broken",
            Self::Other(word) => word,
        }
    }
}

/// The model's number in the world.
fn model_of(record: &Record) -> Option<u32> {
    record.model.strip_prefix('m')?.parse().ok()
}

/// Why it was not answered whole; nothing where it was.
fn cause_of(record: &Record) -> Option<Cause> {
    let Some((_, end)) = &record.end else { return Some(Cause::Other("lost with its record")) };
    Some(match end {
        End::Finished(Outcome::Completed) => return None,
        End::Finished(Outcome::Broken(Failure::Timeout(stage))) => Cause::Timed(*stage),
        End::Finished(Outcome::Broken(_)) => Cause::Broken,
        End::Finished(Outcome::QuotaSpent(spent)) | End::Refused(Refusal::QuotaSpent(spent)) => {
            Cause::Quota(spent.account, spent.window, spent.unit)
        }
        // Nobody here leaves: it is how a new life ends what the last one had begun to answer.
        End::Finished(Outcome::Cancelled) | End::Refused(Refusal::ClientGone | Refusal::Lost) => {
            Cause::Other("gateway died")
        }
        End::Finished(Outcome::QuotaUnavailable { .. })
        | End::Refused(Refusal::QuotaUnavailable { .. }) => Cause::Other("quota unavailable"),
        End::Refused(Refusal::RateLimited { account, unit, limit, .. }) => {
            Cause::Rate(*account, *unit == RateUnit::Tpm, *limit)
        }
        End::Refused(Refusal::ModelBusy { .. }) => Cause::Busy,
        End::Refused(Refusal::NobodyLeft { ejected, full, .. }) => match (ejected, full) {
            (1.., _) => Cause::Ejected,
            (0, 1..) => Cause::Full,
            (0, 0) => Cause::NobodyLeft,
        },
        End::Refused(Refusal::Failed { failure, .. }) => match (record.gave_up, failure) {
            (Some(why @ (Why::AttemptsSpent | Why::BudgetSpent)), _) => Cause::Failed(why.into()),
            (_, Failure::Timeout(Stage::Deadline)) if !record.stream => Cause::Unheard,
            (_, Failure::Timeout(stage)) => Cause::Timed(*stage),
            (Some(why), _) => Cause::Failed(why.into()),
            (None, _) => Cause::Failed(GaveUp::Hopeless),
        },
        End::Refused(Refusal::UnknownModel) => Cause::Other("unknown model"),
        End::Refused(Refusal::Overloaded) => Cause::Other("gateway full"),
        End::Refused(
            Refusal::TurnConflict
            | Refusal::IdempotencyInFlight { .. }
            | Refusal::IdempotencyDone { .. }
            | Refusal::IdempotencyMismatch { .. },
        ) => Cause::Other("conflict"),
    })
}

impl From<Why> for GaveUp {
    fn from(why: Why) -> Self {
        match why {
            Why::AttemptsSpent => Self::AttemptsSpent,
            Why::DeadlineTooNear => Self::DeadlineTooNear,
            Why::SlowFailure => Self::SlowFailure,
            Why::BudgetSpent => Self::BudgetSpent,
            Why::Committed | Why::NotRetryable => Self::Hopeless,
        }
    }
}

/// By model: until when at least half of what arrived after the trouble still failed, slice by slice.
fn backs(records: &[&Record], trouble_end: u64, until: u64) -> BTreeMap<u32, Back> {
    let mut slices: BTreeMap<(u32, u64), (u64, u64)> = BTreeMap::new();
    for record in records.iter().filter(|record| record.at >= trouble_end) {
        let Some(model) = model_of(record) else { continue };
        let cause = cause_of(record);
        if cause.as_ref().is_some_and(Cause::is_policy) {
            continue;
        }
        let slice = slices.entry((model, (record.at - trouble_end) / SLICE_NS)).or_default();
        slice.0 += 1;
        slice.1 += u64::from(cause.is_some());
    }
    let mut backs: BTreeMap<u32, Back> = BTreeMap::new();
    let mut away: BTreeMap<u32, bool> = BTreeMap::new();
    // Slice by slice: the first one in which most are served ends it. What fails later is not this trouble's.
    for ((model, slice), (asked, failed)) in slices {
        let back = backs.entry(model).or_default();
        let still = away.entry(model).or_insert(true);
        *still &= failed * 2 >= asked;
        if *still {
            let after = (slice + 1) * SLICE_NS;
            *back = Back { after_ms: after / 1_000_000, never: trouble_end + after >= until };
        }
    }
    backs
}
