//! What a run costs: time of this process, and of those it started, on all cores.

use std::fs;
use std::time::{Duration, Instant};

/// Measures from when it was made.
pub(super) struct Meter {
    started: Instant,
    cpu: Option<Duration>,
}

impl Meter {
    pub fn start() -> Self {
        Self { started: Instant::now(), cpu: used() }
    }

    /// Time on the wall.
    pub fn wall(&self) -> Duration {
        self.started.elapsed()
    }

    /// Time on all cores. `None` where the system does not say.
    pub fn cpu(&self) -> Option<Duration> {
        Some(used()?.saturating_sub(self.cpu?))
    }
}

/// How many of something in each `per`. Nothing is not divided by.
pub(super) fn rate(count: f64, time: Duration, per: Duration) -> f64 {
    count * per.as_secs_f64() / time.as_secs_f64().max(1e-3)
}

/// What Linux says this process has used. It counts in hundredths of a second, on every machine (`USER_HZ`).
fn used() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the process stands in parentheses and may hold anything.
    let mut numbers = stat.rsplit_once(')')?.1.split_whitespace().skip(USER_AT);
    let mut ticks = || numbers.next()?.parse::<u64>().ok();
    // Of the process, and of those it started and has waited for, each as user and as system.
    Some(Duration::from_millis((ticks()? + ticks()? + ticks()? + ticks()?) * 10))
}

/// Fields after the name and before the first ticks; three more follow.
const USER_AT: usize = 11;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted_and_no_time_is_not_divided_by() {
        let meter = Meter::start();
        let enough = |used: Duration| used >= Duration::from_millis(10);
        while !meter.cpu().is_none_or(enough) {
            assert!(meter.wall() < Duration::from_secs(30), "work is not counted");
        }
        assert!(rate(1.0, Duration::ZERO, Duration::from_secs(1)).is_finite());
    }
}
