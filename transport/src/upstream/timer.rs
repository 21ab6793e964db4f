//! A timer that is moved far more often than it fires.
//!
//! Every chunk of a stream moves the time by which the next one is due. Resetting tokio's timer each time would take its
//! driver's lock once per token; so it is left where it is and, when it fires, asked again whether the time has come.

use core::pin::Pin;

use tokio::time::{Instant, Sleep, sleep_until};

#[derive(Debug)]
pub(super) struct Timer {
    sleep: Pin<Box<Sleep>>,
}

impl Timer {
    pub(super) fn new(due: Instant) -> Self {
        Self { sleep: Box::pin(sleep_until(due)) }
    }

    /// Waits until `due`. Cancel-safe.
    pub(super) async fn passed(&mut self, due: Instant) {
        if due < self.sleep.deadline() {
            self.sleep.as_mut().reset(due);
        }
        loop {
            self.sleep.as_mut().await;
            if self.sleep.deadline() >= due {
                return;
            }
            self.sleep.as_mut().reset(due);
        }
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_timer_moved_later_and_earlier_fires_when_due() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let mut timer = Timer::new(after(5));
        timer.passed(after(40)).await;
        assert!(start.elapsed() >= Duration::from_millis(40), "it was moved later");
        timer.passed(after(20)).await;
        assert!(timer.sleep.is_elapsed(), "the past has passed");

        let mut timer = Timer::new(after(60_000));
        timer.passed(after(80)).await;
        let waited = start.elapsed();
        assert!(waited >= Duration::from_millis(80) && waited < Duration::from_secs(30));
    }
}
