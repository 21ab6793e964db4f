//! Successes and failures of the last while, in tenths of it.
//!
//! A list of every result would be exact and unbounded. Ten buckets forget in steps of a tenth, which no threshold of
//! 50% notices, and cost the same at any traffic.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::{Instant, saturating_nanos};

/// Tenths: see the module.
pub(super) const BUCKETS: u64 = 10;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Window {
    buckets: [Bucket; BUCKETS as usize],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Bucket {
    /// Which tenth since the plane's start, counted from 1; 0 for one that was never used.
    number: u64,
    succeeded: u32,
    failed: u32,
}

impl Window {
    /// Counts one result.
    pub(super) fn insert(&mut self, now: Instant, window: Duration, success: bool) {
        let number = number(now, window);
        let bucket = &mut self.buckets[(number % BUCKETS) as usize];
        if bucket.number != number {
            *bucket = Bucket { number, succeeded: 0, failed: 0 };
        }
        let count = if success { &mut bucket.succeeded } else { &mut bucket.failed };
        *count = count.saturating_add(1);
    }

    /// (failed, total) of the tenth `now` lies in and the nine before it.
    pub(super) fn counts(&self, now: Instant, window: Duration) -> (u32, u32) {
        let newest = number(now, window);
        let live = |bucket: &&Bucket| bucket.number > 0 && bucket.number + BUCKETS > newest;
        self.buckets.iter().filter(live).fold((0, 0), |(failed, total), bucket| {
            let all = bucket.succeeded.saturating_add(bucket.failed);
            (bucket.failed.saturating_add(failed), all.saturating_add(total))
        })
    }
}

pub(super) fn number(now: Instant, window: Duration) -> u64 {
    let width = (saturating_nanos(window) / BUCKETS).max(1);
    // Saturating: only a window of nanoseconds, centuries on, could reach the end.
    (now.as_nanos() / width).saturating_add(1).min(u64::MAX - BUCKETS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_counts_for_nine_to_ten_tenths_and_its_bucket_is_used_again() {
        let length = Duration::from_secs(10);
        let at = |second| Instant::ZERO + Duration::from_secs(second);
        let mut window = Window::default();
        window.insert(at(20), length, false);
        window.insert(at(21), length, true);
        assert_eq!(window.counts(at(29), length), (1, 2));
        assert_eq!(window.counts(at(30), length), (0, 1), "the failure's tenth is over");
        window.insert(at(30), length, false);
        assert_eq!(window.counts(at(30), length), (1, 2));
        assert_eq!(window.counts(at(1_000), length), (0, 0));
    }

    #[test]
    fn the_end_of_time_and_a_window_of_nothing_do_no_harm() {
        let mut window = Window::default();
        window.insert(Instant::FAR_FUTURE, Duration::ZERO, false);
        assert_eq!(window.counts(Instant::FAR_FUTURE, Duration::ZERO), (1, 1));
    }
}
