//! How many sessions may move.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Instant;

/// A token bucket as one instant (GCRA, ITU-T I.371): when it would be full again. Full at the plane's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Budget {
    full_at: Instant,
}

impl Budget {
    /// Takes one, if there is one: `per_second` are refilled, at most `burst` are held.
    pub(super) fn take(&mut self, now: Instant, per_second: u32, burst: u32) -> bool {
        if per_second == 0 || burst == 0 {
            return false;
        }
        let each = Duration::from_secs(1) / per_second;
        let full_at = self.full_at.max(now) + each;
        if full_at.since(now) > each * burst {
            return false;
        }
        self.full_at = full_at;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_followed_by_the_rate() {
        let mut budget = Budget::default();
        let start = Instant::from_nanos(5);
        let granted =
            |budget: &mut Budget, at| (0..100).filter(|_| budget.take(at, 10, 20)).count();
        assert_eq!(granted(&mut budget, start), 20);
        assert_eq!(granted(&mut budget, start + Duration::from_millis(99)), 0);
        assert_eq!(granted(&mut budget, start + Duration::from_millis(350)), 3);
        assert_eq!(granted(&mut budget, start + Duration::from_secs(60)), 20);
    }

    #[test]
    fn no_rate_and_no_burst_grant_nothing() {
        assert!(!Budget::default().take(Instant::ZERO, 0, 20));
        assert!(!Budget::default().take(Instant::ZERO, 10, 0));
    }
}
