//! What requests take while all is well, and so what one may take when it is not.

use core::time::Duration;
use std::time::Instant;

/// What a request waits for a silent Redis that can do without it, by default.
pub const WAIT: Duration = Duration::from_millis(50);

/// How often a wait is measured. One that is built in is there each time; what else the machine does is not.
pub const ROUNDS: usize = 3;

/// Requests of one kind, one after another.
#[derive(Debug)]
pub struct Usual {
    pub median: Duration,
    pub slowest: Duration,
}

impl Usual {
    /// Measures so many.
    pub async fn of(count: usize, mut one: impl AsyncFnMut()) -> Self {
        let mut took = Vec::with_capacity(count);
        for _ in 0..count {
            took.push(timed(&mut one).await);
        }
        took.sort();
        Self { median: took[count / 2], slowest: took[count - 1] }
    }

    /// The longest that a request may take which waits once. That is measured, too: the slowest of five that are made after a
    /// sleep of that length, and beyond it what the slowest took that did not wait, on this machine and in this run.
    pub async fn with_one_wait(&self, mut one: impl AsyncFnMut()) -> Duration {
        let slept = async || {
            tokio::time::sleep(WAIT).await;
            one().await;
        };
        Self::of(5, slept).await.slowest + self.slowest
    }

    /// What one takes at least that waits as well.
    pub fn waits(&self) -> Duration {
        WAIT + self.median / 2
    }
}

/// How long it takes.
pub async fn timed(mut one: impl AsyncFnMut()) -> Duration {
    let started = Instant::now();
    one().await;
    started.elapsed()
}
