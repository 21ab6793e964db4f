//! Who may come in, how busy the worker is, and when it closes.

use core::time::Duration;
use std::sync::{Arc, Mutex, PoisonError};

use proto::inference::v1::Load;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// A draining worker is not asked again before this: by then a gateway has learned of others.
const COME_BACK_DRAINING: Duration = Duration::from_secs(5);
/// What a refused caller waits, at least and at most.
const COME_BACK: core::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_secs(5);

/// Bounds what runs.
#[derive(Debug)]
pub(super) struct Desk {
    seats: Arc<Semaphore>,
    seats_max: u32,
    closed: CancellationToken,
    cut: CancellationToken,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// What the backend tells of itself.
    told: Option<Told>,
    /// How long answers take, the recent ones counting most.
    takes: Option<Duration>,
}

/// A backend's own figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub running: Option<u32>,
    pub queued: Option<u32>,
    pub kv_used_permille: Option<u32>,
}

/// A place for one answer; giving it up is dropping it.
#[derive(Debug)]
pub(super) struct Seat {
    desk: Arc<Desk>,
    since: Instant,
    permit: Option<OwnedSemaphorePermit>,
}

impl Desk {
    pub fn new(seats_max: u32) -> Arc<Self> {
        let seats_max = seats_max.max(1);
        Arc::new(Self {
            seats: Arc::new(Semaphore::new(seats_max as usize)),
            seats_max,
            closed: CancellationToken::new(),
            cut: CancellationToken::new(),
            seen: Mutex::default(),
        })
    }

    /// A seat, or the refusal.
    pub fn enter(self: &Arc<Self>) -> Result<Seat, Status> {
        if self.is_draining() {
            let words = "this worker is draining: ask another";
            return Err(come_back(Code::Unavailable, words, COME_BACK_DRAINING));
        }
        let Ok(permit) = Arc::clone(&self.seats).try_acquire_owned() else {
            let words = format!("this worker runs {} answers, its most", self.seats_max);
            return Err(come_back(Code::ResourceExhausted, words, self.seat_free_in()));
        };
        Ok(Seat { desk: Arc::clone(self), since: Instant::now(), permit: Some(permit) })
    }

    /// With answers that each take so long, a seat gets free about every so-many-th part of it.
    fn seat_free_in(&self) -> Duration {
        let takes = self.seen().takes.unwrap_or(Duration::from_secs(1));
        (takes / self.seats_max).clamp(*COME_BACK.start(), *COME_BACK.end())
    }

    pub fn running(&self) -> u32 {
        let free = u32::try_from(self.seats.available_permits()).unwrap_or(u32::MAX);
        self.seats_max.saturating_sub(free)
    }

    pub fn load(&self) -> Load {
        let told = self.seen().told.unwrap_or_default();
        Load {
            queued: told.queued.unwrap_or(0),
            running: told.running.unwrap_or_else(|| self.running()),
            running_max: self.seats_max,
            kv_used_permille: told.kv_used_permille,
        }
    }

    /// What the backend says now; `None` where it says nothing.
    pub fn tell(&self, told: Option<Told>) {
        self.seen().told = told;
    }

    pub fn drain(&self) {
        self.closed.cancel();
    }

    pub fn is_draining(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Ends whatever still runs.
    pub fn cut(&self) {
        self.cut.cancel();
    }

    /// Resolves when what runs must end.
    pub async fn is_cut(&self) {
        self.cut.cancelled().await;
    }

    /// Resolves once nothing runs.
    pub async fn idle(&self) {
        // The semaphore is never closed.
        let _ = self.seats.acquire_many(self.seats_max).await;
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let took = self.since.elapsed();
        let mut seen = self.desk.seen();
        seen.takes = Some(seen.takes.map_or(took, |before| (before * 7 + took) / 8));
        drop(seen);
        drop(self.permit.take());
    }
}

/// A refusal with the time after which to ask again.
fn come_back(code: Code, words: impl Into<String>, after: Duration) -> Status {
    let mut status = Status::new(code, words);
    // Digits are always allowed in metadata.
    if let Ok(millis) = after.as_millis().to_string().parse() {
        status.metadata_mut().insert("retry-after-ms", millis);
    }
    status
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_desk_says_when_a_seat_may_be_free() {
        let desk = Desk::new(2);
        let first = desk.enter().unwrap();
        tokio::time::advance(Duration::from_secs(4)).await;
        drop(first);
        let _seats = [desk.enter().unwrap(), desk.enter().unwrap()];
        let refused = desk.enter().unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert_eq!(refused.metadata().get("retry-after-ms").unwrap(), "2000");
        assert_eq!((desk.load().running, desk.load().running_max), (2, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_draining_desk_lets_nobody_in_and_waits_for_who_sits() {
        let desk = Desk::new(1);
        let seat = desk.enter().unwrap();
        desk.drain();
        assert_eq!(desk.enter().unwrap_err().code(), Code::Unavailable);
        let soon = Duration::from_millis(10);
        assert!(tokio::time::timeout(soon, desk.idle()).await.is_err());
        drop(seat);
        tokio::time::timeout(soon, desk.idle()).await.unwrap();
    }

    #[test]
    fn what_the_backend_tells_goes_before_what_is_counted_here() {
        let desk = Desk::new(4);
        let told = Told { running: Some(9), queued: Some(3), kv_used_permille: Some(870) };
        desk.tell(Some(told));
        let load = desk.load();
        assert_eq!((load.running, load.queued, load.kv_used_permille), (9, 3, Some(870)));
        desk.tell(None);
        assert_eq!((desk.load().running, desk.load().kv_used_permille), (0, None));
    }
}
