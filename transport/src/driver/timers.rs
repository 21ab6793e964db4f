//! The timers' task: comes back when the plane asked for it, and tells it the wall clock once a second.

use std::sync::Arc;
use std::time::Duration;

use control::Machine;
use control::plane::Input;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::Driver;

/// How often the plane is told the wall clock. Quota windows turn at midnight: a second late is nobody's loss.
const WALL_EVERY: Duration = Duration::from_secs(1);

impl Driver {
    /// Runs the plane's timers until the task is dropped.
    pub async fn run_timers(self: Arc<Self>) {
        let mut wall = interval(WALL_EVERY);
        wall.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.arm();
            tokio::select! {
                biased;
                () = self.wake.notified() => {}
                () = sleep_until(due.unwrap_or_else(far_away)), if due.is_some() => {
                    self.submit(Input::Timeout);
                }
                _ = wall.tick() => self.tell_wall(),
            }
        }
    }

    /// When to wake; remembered, so that only an earlier timer disturbs the sleep.
    fn arm(&self) -> Option<Instant> {
        let mut core = self.lock();
        core.armed = core.plane.poll_timeout().map(|(due, _)| due);
        core.armed.map(|due| self.clock.deadline(due))
    }

    /// A journal that takes no work is not filled with clock ticks.
    fn tell_wall(&self) {
        if self.journal.admits().is_ok() {
            self.submit(Input::WallTime(self.clock.wall()));
        }
    }
}

/// A day: a sleep that is never awaited, because its branch is off.
fn far_away() -> Instant {
    Instant::now() + Duration::from_secs(86_400)
}
