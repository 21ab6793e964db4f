//! What the shared store is still to be told, counted: whoever stops waits for it, for a bounded time.
//!
//! Notes leave behind an answer's back, so the last of them wait when the last answer is out. A process that ended then would
//! leave keys claimed and rates held until their leases are over, though Redis is there and takes them within a moment.
//! Rejected: to close the queues and join their tasks. The plane holds the queues' other end until the journal is closed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// How much waits, or is on its way.
#[derive(Debug, Default)]
pub struct Untold(watch::Sender<usize>);

/// One thing to be told. It is told, or given up, when this is dropped.
#[derive(Debug)]
pub(super) struct One(Arc<Untold>);

impl Untold {
    pub(super) fn one(self: &Arc<Self>) -> One {
        self.0.send_modify(|count| *count += 1);
        One(Arc::clone(self))
    }

    /// What is left now.
    #[must_use]
    pub fn left(&self) -> usize {
        *self.0.borrow()
    }

    /// Waits until all is told, or for so long. What is left then.
    pub async fn wait(&self, patience: Duration) -> usize {
        let mut counts = self.0.subscribe();
        // Whether all was told or time is up, the count says; and its sender is here.
        let _ = timeout(patience, counts.wait_for(|count| *count == 0)).await;
        self.left()
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_waits_waits_for_the_last_and_no_longer_than_it_wants() {
        let untold = Arc::<Untold>::default();
        let began = Instant::now();
        assert_eq!(untold.wait(Duration::from_secs(60)).await, 0, "nothing to wait for");
        assert!(began.elapsed().is_zero());
        let (first, last) = (untold.one(), untold.one());
        drop(first);
        assert_eq!((untold.left(), untold.wait(Duration::from_secs(2)).await), (1, 1));
        assert_eq!(began.elapsed(), Duration::from_secs(2));
        let telling = async {
            sleep(Duration::from_secs(3)).await;
            drop(last);
        };
        let (left, ()) = tokio::join!(untold.wait(Duration::from_secs(60)), telling);
        assert_eq!((left, began.elapsed()), (0, Duration::from_secs(5)));
    }
}
