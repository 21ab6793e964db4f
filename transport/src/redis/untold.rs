//! What the shared store is still to be told, counted: whoever stops waits for it, for a bounded time.
//!
//! Notes leave behind an answer's back, so the last of them wait when the last answer is out. A process that ended then would
//! leave keys claimed and rates held until their leases are over, though Redis is there and takes them within a moment.
//! Rejected: to close the queues and join their tasks. The plane holds the queues' other end until the journal is closed.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How much waits, or is on its way.
#[derive(Debug, Default)]
pub struct Untold {
    count: Mutex<usize>,
    none: Condvar,
}

/// One thing to be told. It is told, or given up, when this is dropped.
#[derive(Debug)]
pub(super) struct One(Arc<Untold>);

impl Untold {
    pub(super) fn one(self: &Arc<Self>) -> One {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        One(Arc::clone(self))
    }

    /// What is left now.
    #[must_use]
    pub fn left(&self) -> usize {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks until all is told, or for so long. What is left then.
    #[must_use]
    pub fn wait(&self, patience: Duration) -> usize {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.none.wait_timeout_while(count, patience, |count| *count > 0);
        let (count, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *count
    }
}

impl Drop for One {
    fn drop(&mut self) {
        let mut count = self.0.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        if *count == 0 {
            self.0.none.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::time::Instant;

    use super::*;

    #[test]
    fn who_waits_waits_for_the_last_and_no_longer_than_it_wants() {
        let untold = Arc::<Untold>::default();
        assert_eq!(untold.wait(Duration::from_secs(60)), 0, "nothing to wait for");
        let (first, last) = (untold.one(), untold.one());
        drop(first);
        assert_eq!((untold.left(), untold.wait(Duration::from_millis(10))), (1, 1));
        let telling = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            drop(last);
        });
        let started = Instant::now();
        assert_eq!(untold.wait(Duration::from_secs(60)), 0);
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
        telling.join().unwrap();
    }
}
