//! How fast each endpoint is asked.
//!
//! A provider that allows so many requests a second answers the next one with 429, which costs a retry, and where many
//! are sent, an account. So an endpoint with a stated rate is passed over while it has had its requests, and the pick
//! goes to the next best.
//!
//! The rule is GCRA (ITU-T I.371, annex A): one instant for each endpoint says when all that it was sent will have been
//! worth its time. Sending may run ahead of that by [`AHEAD`]: in any window of length `w` an endpoint gets at most
//! `rps_max * (w + AHEAD) + 1` attempts. Counting per calendar second was rejected: it lets twice the rate through at
//! the seam.
//!
//! An endpoint that says it is full (429, 503) is passed over too, for as long as it asks. Its breaker does not open for that,
//! so without a pause a replica that is full for good would take its share of every round, and of the retry budget. Where
//! all others are as full, it is asked all the same: the pause says whom to prefer, not whom to forbid.
//!
//! An endpoint whose instant has passed is as one that was never asked, so the table holds what was asked lately and is
//! in the registry still: it is bounded by the registry.

use alloc::collections::BTreeMap;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::EndpointId;
use crate::time::Instant;

/// How far sending may run ahead: requests arrive in clumps, and a tenth of a second's worth is what a provider that
/// counts whole seconds does not notice.
const AHEAD: Duration = Duration::from_millis(100);

/// When each endpoint has worked off what it was sent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Throttle {
    worked_off: BTreeMap<EndpointId, Instant>,
}

impl Throttle {
    /// How long until `id` may be sent one more. Zero: now.
    pub fn wait(&self, now: Instant, id: EndpointId) -> Duration {
        self.worked_off.get(&id).map_or(Duration::ZERO, |due| due.since(now + AHEAD))
    }

    /// One is sent, to an endpoint that may get `rps_max` a second.
    pub fn sent(&mut self, now: Instant, id: EndpointId, rps_max: u32) {
        let due = self.worked_off.entry(id).or_insert(now);
        *due = (*due).max(now) + Duration::from_secs(1) / rps_max.max(1);
    }

    /// The endpoint is full, and wants to be left alone for so long.
    pub fn pushed_back(&mut self, now: Instant, id: EndpointId, pause: Duration) {
        let due = self.worked_off.entry(id).or_insert(now);
        *due = (*due).max(now + pause + AHEAD);
    }

    /// The endpoint is gone.
    pub fn remove(&mut self, id: EndpointId) {
        self.worked_off.remove(&id);
    }

    /// How many endpoints are remembered.
    pub fn len(&self) -> usize {
        self.worked_off.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: EndpointId = EndpointId { slot: 0, generation: 0 };

    #[test]
    fn a_second_never_holds_more_than_the_rate_and_a_tenth_of_it() {
        let mut throttle = Throttle::default();
        let mut sent = 0;
        for millis in 0..1_000 {
            let now = Instant::ZERO + Duration::from_millis(millis);
            while throttle.wait(now, ID).is_zero() {
                throttle.sent(now, ID, 50);
                sent += 1;
            }
        }
        assert_eq!(sent, 6 + 49, "five ahead and one, then one every 20 ms");
    }

    #[test]
    fn the_wait_it_names_is_enough_and_not_longer() {
        let mut throttle = Throttle::default();
        throttle.sent(Instant::ZERO, ID, 1);
        let wait = throttle.wait(Instant::ZERO, ID);
        assert_eq!(wait, Duration::from_millis(900));
        assert!(!throttle.wait(Instant::ZERO + wait - Duration::from_nanos(1), ID).is_zero());
        assert!(throttle.wait(Instant::ZERO + wait, ID).is_zero());
    }
}
