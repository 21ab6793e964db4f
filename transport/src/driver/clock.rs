//! The plane's clock: never backwards, not even over a restart.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use control::{Instant, Wall};

use crate::seam::WallClock;

/// Maps the machine's monotonic clock to the plane's [`Instant`], continuing from where the last life stopped.
#[derive(Debug)]
pub struct Clock {
    started: tokio::time::Instant,
    base: Instant,
    latest: AtomicU64,
    wall: WallClock,
}

impl Clock {
    /// A clock that shows `base` now.
    #[must_use]
    pub fn continuing(base: Instant, wall: WallClock) -> Self {
        let latest = AtomicU64::new(base.as_nanos());
        Self { started: tokio::time::Instant::now(), base, latest, wall }
    }

    /// A clock for a plane whose last record was taken at `last`, when the wall clock showed `then`. The time in between
    /// counts, unless the wall clock was set back meanwhile.
    #[must_use]
    pub fn after(last: Instant, then: Wall, wall: WallClock) -> Self {
        let away = wall.now().as_millis().saturating_sub(then.as_millis());
        let away = if then == Wall::default() { 0 } else { away };
        Self::continuing(last + Duration::from_millis(away), wall)
    }

    /// The plane's time.
    pub fn now(&self) -> Instant {
        let now = (self.base + self.started.elapsed()).as_nanos();
        Instant::from_nanos(self.latest.fetch_max(now, Ordering::Relaxed).max(now))
    }

    /// The plane's instant on the runtime's clock, for sleeping.
    pub fn deadline(&self, at: Instant) -> tokio::time::Instant {
        self.started + at.since(self.base)
    }

    /// The wall clock.
    pub fn wall(&self) -> Wall {
        self.wall.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_clock_continues_and_never_steps_back() {
        let clock = Clock::continuing(Instant::from_nanos(1_000), WallClock::System);
        let first = clock.now();
        assert!(first >= Instant::from_nanos(1_000));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(clock.now().since(first), Duration::from_secs(3));
    }

    #[tokio::test]
    async fn a_wall_clock_that_was_set_back_adds_nothing() {
        let future = Wall::from_millis(WallClock::System.now().as_millis() + 3_600_000);
        let clock = Clock::after(Instant::from_nanos(5_000_000_000), future, WallClock::System);
        assert!(clock.now().since(Instant::from_nanos(5_000_000_000)) < Duration::from_secs(1));
    }
}
