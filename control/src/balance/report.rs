//! What endpoints say of their load, and what is believed of it.
//!
//! **The problem.** This plane counts what it sent. A replica that a second gateway keeps busy looks idle to it, and gets
//! the half of everything that comes. The replica knows better, and says so; but what it says is late, may be wrong, and
//! comes from outside.
//!
//! **What is made of it.** Only what this plane cannot know itself: the reported work less its own in flight at that moment
//! is the work of *others*, and is added to its own, exact count wherever loads are compared. So what is dispatched and
//! what ends between two reports is counted at once, and nothing is counted twice. A key-value cache that is nearly full
//! makes whoever comes next wait for somebody's end, so there the work counts up to twice.
//!
//! **How long.** [`FRESH`], then a quarter less each [`STEP`]; after [`GONE`] it is as if nothing had been said. The count
//! moves at the beginning of whichever step comes next: no timer, because nobody but a pick asks for it.
//!
//! **A lie** can make an endpoint look busy, never idle: nobody has less than what this plane gave it. And what looking busy
//! drives to the others stays within the load bound there, on this plane's own count: see `Scope::least`.
//!
//! Homes, and whether they are above the bound, are not moved by reports. What every gateway computes alike must not depend
//! on what one of them heard last.
//!
//! **Rejected:** taking the reported total for the load. Two reports a second apart would both miss what was sent in
//! between, and a burst would all go to whoever was idle a second ago.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::Balancer;
use crate::id::EndpointId;
use crate::time::Instant;

/// Requests that an endpoint may say it has; more counts as this many. Some ten times what the largest servers queue.
pub const REPORTED_MAX: u32 = 1 << 16;

/// How long a report counts whole. Workers report once a second while they stream: two may be lost.
pub const FRESH: Duration = Duration::from_secs(3);

/// How long each of the quarters lasts that are left then.
pub const STEP: Duration = Duration::from_secs(1);

/// When nothing is left.
pub const GONE: Duration = Duration::from_secs(6);

/// Above this, in permille, a key-value cache is nearly full.
const KV_DEAR: u32 = 900;

/// Quarters that a report has.
const QUARTERS: u32 = 4;

/// Reports aged in one step. A thousand take some 100 us, after a silence of seconds; more wait for the next step.
const AGED_MAX: usize = 1_024;

/// What an endpoint says of its load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reported {
    /// Requests that wait there, whoever sent them.
    pub queued: u32,
    /// Requests that run there.
    pub running: u32,
    /// Use of its key-value cache in thousandths, where it tells.
    pub kv_used_permille: Option<u32>,
}

/// A report, as far as it still counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    /// Work of others when it came.
    others: u32,
    at: Instant,
    /// Quarters that are left of it.
    left: u32,
}

impl Report {
    fn new(now: Instant, load: Reported, own: u32) -> Self {
        let total = load.queued.saturating_add(load.running).min(REPORTED_MAX);
        let own = if planted!(ReportCountsOwn) { 0 } else { own };
        let full = load.kv_used_permille.unwrap_or(0).min(1_000).saturating_sub(KV_DEAR);
        let waiting = (total.max(1) * full).div_ceil(1_000 - KV_DEAR);
        Self { others: total.saturating_sub(own) + waiting, at: now, left: QUARTERS }
    }

    /// The work of others that is still believed in.
    pub(super) fn others(self) -> u32 {
        self.others * self.left / QUARTERS
    }

    /// When it counts less.
    pub(super) fn due(self) -> Instant {
        self.at + FRESH + STEP * (QUARTERS - self.left)
    }

    fn age(&mut self, now: Instant) {
        while self.left > 0 && self.due() <= now {
            self.left -= 1;
        }
    }
}

impl Balancer {
    /// An endpoint says how busy it is. False, and no change, if it is gone.
    pub fn reported(&mut self, now: Instant, id: EndpointId, load: Reported) -> bool {
        let report = Report::new(now, load, self.in_flight(id));
        self.forget_report(id);
        let kept = (report.others > 0).then_some(report);
        let known = self.change(id, |seat| seat.report = kept);
        if known && let Some(report) = kept {
            self.aging.insert((report.due(), id));
        }
        known
    }

    /// What was reported long ago counts less. Called before anything else is done at `now`.
    pub fn age(&mut self, now: Instant) {
        for _ in 0..AGED_MAX {
            let Some((due, id)) = self.aging.first().copied().filter(|(due, _)| *due <= now) else {
                return;
            };
            if planted!(ReportNeverAged) {
                return;
            }
            self.aging.remove(&(due, id));
            let mut left = None;
            self.change(id, |seat| {
                if let Some(report) = &mut seat.report {
                    report.age(now);
                }
                seat.report = seat.report.filter(|report| report.left > 0);
                left = seat.report;
            });
            if let Some(report) = left {
                self.aging.insert((report.due(), id));
            }
        }
    }

    /// Work of others at an endpoint, by its own word and as far as that is still believed in.
    #[must_use]
    pub fn others(&self, id: EndpointId) -> u32 {
        self.seat(id).map_or(0, |seat| seat.others())
    }

    /// What an endpoint said counts no more.
    pub(super) fn forget_report(&mut self, id: EndpointId) {
        if let Some(report) = self.seat(id).and_then(|seat| seat.report) {
            self.aging.remove(&(report.due(), id));
        }
    }

    /// Asserts that what is to be aged is what counts.
    pub(super) fn reports_are_aging(&self) {
        let reports = self.seats.iter().flatten().filter_map(|seat| Some((seat.id, seat.report?)));
        let mut count = 0;
        for (id, report) in reports {
            assert!((1..=QUARTERS).contains(&report.left) && report.others > 0);
            assert!(
                self.aging.contains(&(report.due(), id)),
                "a report of {id:?} is kept for good"
            );
            count += 1;
        }
        assert_eq!(self.aging.len(), count, "what nobody reported is aged");
    }
}
