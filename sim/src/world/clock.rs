//! Clocks that are fast, slow, wrong, and set.

use std::time::Duration;

use control::{Instant, Wall};

/// Simulated time: nanoseconds since the world's start. True time, which nobody in the world can see.
pub(super) type Nanos = u64;

pub(super) const MICRO: Nanos = 1_000;
pub(super) const MILLI: Nanos = 1_000_000;
pub(super) const SECOND: Nanos = 1_000_000_000;

/// The calendar at the world's start: noon, so that only worlds whose clocks jump far cross midnight.
pub(super) const EPOCH: Wall = Wall::from_millis(20_000 * 86_400_000 + 43_200_000);

/// One host's clocks.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    /// What the monotonic clock showed at `since`.
    base: u64,
    since: Nanos,
    ppm: i64,
    wall_off_ms: i64,
}

impl Clock {
    pub fn new(ppm: i32, wall_off_ms: i64) -> Self {
        Self { base: 0, since: 0, ppm: i64::from(ppm), wall_off_ms }
    }

    /// What the host's monotonic clock shows.
    pub fn now(&self, at: Nanos) -> Instant {
        let gone = scale(at.saturating_sub(self.since), 1_000_000 + self.ppm, 1_000_000);
        Instant::from_nanos(self.base + gone)
    }

    /// When the host's clock will show `then`. Not before `now`.
    pub fn until(&self, now: Nanos, then: Instant) -> Nanos {
        let ahead = then.as_nanos().saturating_sub(self.base);
        // One more: a timer never fires early.
        let gone = scale(ahead, 1_000_000, 1_000_000 + self.ppm).saturating_add(1);
        self.since.saturating_add(gone).max(now)
    }

    /// How long a local duration takes.
    pub fn span(&self, local: Duration) -> Nanos {
        let nanos = u64::try_from(local.as_nanos()).unwrap_or(u64::MAX);
        scale(nanos, 1_000_000, 1_000_000 + self.ppm)
    }

    /// What the host's wall clock shows.
    pub fn wall(&self, at: Nanos) -> Wall {
        let millis = scale(at, 1_000_000 + self.ppm, 1_000_000) / MILLI;
        let shown = EPOCH.as_millis() + millis;
        Wall::from_millis(shown.saturating_add_signed(self.wall_off_ms))
    }

    pub fn jump(&mut self, by_ms: i64) {
        self.wall_off_ms += by_ms;
    }

    /// A process starts: its monotonic clock goes on from the last record plus what the wall clock says has passed.
    pub fn restart(&mut self, at: Nanos, last: Instant, then: Wall) {
        let away = self.wall(at).as_millis().saturating_sub(then.as_millis());
        let away = if then == Wall::default() { 0 } else { away };
        self.base = last.as_nanos() + away * MILLI;
        self.since = at;
    }
}

fn scale(nanos: u64, times: i64, by: i64) -> u64 {
    if times == by {
        return nanos;
    }
    let scaled = u128::from(nanos) * u128::from(times.unsigned_abs());
    u64::try_from(scaled / u128::from(by.unsigned_abs())).unwrap_or(u64::MAX)
}
