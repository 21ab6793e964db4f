//! A timer that is moved far more often than it fires.
//!
//! Every chunk of a stream moves the time by which the next one is due. Resetting tokio's timer each time would take its
//! driver's lock once per token; so it is left where it is and, when it fires, asked again whether the time has come.

use core::pin::Pin;

use control::outcome::{Failure, Stage};
use tokio::time::{Instant, Sleep, sleep_until};

use super::Limits;
use super::failed::Failed;

/// How long a stream may still be silent. The time that our own caller spends between two of its questions is not the
/// replica's.
#[derive(Debug)]
pub(super) struct Patience {
    limits: Limits,
    timer: Timer,
    /// What is waited for, and until when.
    stage: Stage,
    due: Instant,
    /// When the caller was last given something.
    left: Instant,
}

impl Patience {
    /// For a call that began then, until its first token.
    pub(super) fn new(began: Instant, limits: &Limits) -> Self {
        let due = began + limits.first_token;
        Self {
            limits: *limits,
            timer: Timer::new(due.min(limits.deadline)),
            stage: Stage::FirstToken,
            due,
            left: Instant::now(),
        }
    }

    /// The caller asks again.
    pub(super) fn resume(&mut self) {
        let now = Instant::now();
        self.due += now.duration_since(self.left);
        self.left = now;
    }

    /// The caller is given something.
    pub(super) fn pause(&mut self) {
        self.left = Instant::now();
    }

    /// Something that counts has come: the next has its own time.
    pub(super) fn moved(&mut self) {
        self.stage = Stage::BetweenTokens;
        self.due = Instant::now() + self.limits.between_tokens;
    }

    /// # Errors
    /// Where it is over.
    pub(super) fn check(&self, now: Instant) -> Result<(), Failed> {
        if now >= self.limits.deadline {
            return Err(Failed::new(Failure::Timeout(Stage::Deadline), "while streaming"));
        }
        if now >= self.due {
            return Err(Failed::new(Failure::Timeout(self.stage), "while streaming"));
        }
        Ok(())
    }

    /// Waits until it is over, and says how. Cancel-safe.
    pub(super) async fn over(&mut self) -> Failed {
        loop {
            let due = self.due.min(self.limits.deadline);
            self.timer.passed(due).await;
            if let Err(failed) = self.check(due) {
                return failed;
            }
        }
    }
}

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
