//! The driver's end of the journal, and what it shares with the threads at the other end.

use std::mem;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::directory::Directory;
use super::error::{JournalError, JournalFailed, Refused};
use super::frame::{self, Kind, RECORD_BYTES_MAX, RECORD_HEADER, SYNCED_BYTES, SegmentHeader};
use super::snapshot::{self, Snapshot};
use super::writer::Tail;
use super::{FsyncPolicy, Options};
use crate::seam::Background;
use crate::seam::disk::Syncer;

/// Appends records and tells how far they have come. Clones append to the same journal.
///
/// Positions count from 0. Every number here is a bound: *written* 7 says that positions 0 to 6 are.
#[derive(Clone)]
pub struct Appender {
    shared: Arc<Shared>,
}

impl Appender {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Takes a record and returns its position. Copies into memory and never waits for the disk: made to be called under
    /// the driver's lock.
    ///
    /// # Errors
    /// [`Refused`] where the record is too large or the buffer full. While the disk fails, records are still taken until
    /// the buffer is full: what runs may end. Ask [`Appender::admits`] before letting something new begin.
    pub fn append(&self, payload: &[u8]) -> Result<u64, Refused> {
        let mut buffer = self.shared.buffer();
        buffer.refuse(payload.len())?;
        let position = buffer.next;
        frame::encode(&mut buffer.bytes, Kind::Payload, position, payload);
        buffer.next += 1;
        let wake = mem::take(&mut buffer.idle);
        drop(buffer);
        if wake {
            self.shared.work.ring();
        }
        Ok(position)
    }

    /// Whether something new should begin: the disk works and half of the buffer is free for what it will lead to.
    ///
    /// # Errors
    /// Why not.
    pub fn admits(&self) -> Result<(), Refused> {
        let buffer = self.shared.buffer();
        match &buffer.failure {
            Some(error) => Err(Refused::Failing(Arc::clone(error))),
            None if buffer.closing => Err(Refused::Failing(Arc::new(JournalError::Closed))),
            None if buffer.bytes.len() > buffer.max / 2 => Err(Refused::Behind),
            None => Ok(()),
        }
    }

    /// All positions below this one survive a kill of the process (under [`FsyncPolicy::Always`], a loss of power too).
    #[must_use]
    pub fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Acquire)
    }

    /// All positions below this one survive a loss of power.
    #[must_use]
    pub fn synced(&self) -> u64 {
        self.shared.synced.load(Ordering::Acquire)
    }

    /// All positions below this one lie in finished segments, which never change again.
    #[must_use]
    pub fn finished(&self) -> u64 {
        self.shared.finished.load(Ordering::Acquire)
    }

    /// Waits until the record at `position` is written. Costs one load where it already is. While the disk fails in a way
    /// that may pass, this goes on waiting: bring your own deadline.
    ///
    /// # Errors
    /// Where it will not be written: the journal was closed, or broke for good.
    pub async fn wait_written(&self, position: u64) -> Result<(), JournalFailed> {
        while self.written() <= position {
            let progress = self.shared.progress.notified();
            tokio::pin!(progress);
            // Registered before the second look, or progress between the two would be slept through.
            progress.as_mut().enable();
            if self.written() > position {
                break;
            }
            if let Some(error) = self.shared.stopped() {
                return Err(JournalFailed(error));
            }
            progress.await;
        }
        Ok(())
    }

    /// Why nothing moves, if so. Clears by itself when it passes; see [`JournalError::is_final`].
    #[must_use]
    pub fn failure(&self) -> Option<Arc<JournalError>> {
        self.shared.buffer().failure.clone()
    }

    /// Asks for the current segment to be finished before anything further is written.
    pub fn roll(&self) {
        let mut buffer = self.shared.buffer();
        buffer.roll = true;
        buffer.idle = false;
        drop(buffer);
        self.shared.work.ring();
    }

    /// Stores the plane's state before the record at `position`, durable when this returns, and lets go of what only an
    /// older snapshot needed: the last two are kept, so that a damaged one has a fallback. Blocks for the disk.
    ///
    /// # Errors
    /// Where the snapshot cannot be stored. Nothing is let go then.
    pub fn write_snapshot(&self, position: u64, payload: Bytes) -> std::io::Result<()> {
        let shared = &self.shared;
        assert!(position <= self.written(), "a snapshot holds only what is written");
        let SegmentHeader { incarnation, logic: logic_version, .. } = shared.header;
        let taken = Snapshot { position, incarnation, logic_version, payload };
        snapshot::write(&shared.directory, &taken)?;
        shared.chore(|chores| chores.reclaim = true);
        Ok(())
    }

    pub(super) fn close(&self) {
        self.shared.close();
    }
}

/// What the appender, the writer and the keeper share.
pub(super) struct Shared {
    pub directory: Directory,
    /// For segments begun in this run; `first` is set for each.
    pub header: SegmentHeader,
    buffer: Mutex<Buffer>,
    /// The writer waits here.
    work: Bell,
    written: AtomicU64,
    synced: AtomicU64,
    finished: AtomicU64,
    sync_failed: Mutex<bool>,
    progress: Notify,
    chores: Mutex<Chores>,
    /// The keeper waits here.
    chore: Bell,
    /// First positions of the segments, oldest first; the last is being written.
    ring: Mutex<Vec<u64>>,
}

/// Where records gather.
struct Buffer {
    /// Room for a [`Kind::Synced`] mark, then records.
    bytes: Vec<u8>,
    first: u64,
    next: u64,
    max: usize,
    /// The writer waits for work, and wants to be woken.
    idle: bool,
    roll: bool,
    /// Something has changed that makes another attempt worthwhile.
    nudged: bool,
    closing: bool,
    /// The writer will write no more.
    stopped: bool,
    failure: Option<Arc<JournalError>>,
}

/// Records to be written at once.
pub(super) struct Group {
    /// [`SYNCED_BYTES`] of room, then the records.
    pub bytes: Vec<u8>,
    pub first: u64,
    pub next: u64,
    /// Whether a new segment is to be begun for them.
    pub roll: bool,
}

/// What the keeper has to do.
pub(super) struct Chores {
    /// Something was written since the last sync.
    pub dirty: bool,
    /// A snapshot was written.
    pub reclaim: bool,
    /// The ring is full.
    pub pressed: bool,
    pub closing: bool,
    /// Of the segment that is being written.
    pub syncer: Arc<dyn Syncer>,
}

impl Buffer {
    fn refuse(&self, payload: usize) -> Result<(), Refused> {
        let max = self.max.saturating_sub(SYNCED_BYTES + RECORD_HEADER).min(RECORD_BYTES_MAX);
        if payload > max {
            return Err(Refused::TooLarge { bytes: payload, max });
        }
        let full = self.bytes.len() + RECORD_HEADER + payload > self.max;
        let over = self.stopped || self.closing;
        match &self.failure {
            Some(error) if over || full => Err(Refused::Failing(Arc::clone(error))),
            None if over => Err(Refused::Failing(Arc::new(JournalError::Closed))),
            None if full => Err(Refused::Behind),
            Some(_) | None => Ok(()),
        }
    }

    fn has_work(&self) -> bool {
        self.next > self.first || self.roll
    }

    /// Everything that has gathered; `spare` gathers the next. None after the end.
    fn take(&mut self, mut spare: Vec<u8>) -> Option<Group> {
        if self.stopped {
            return None;
        }
        spare.clear();
        spare.resize(SYNCED_BYTES, 0);
        self.idle = false;
        let bytes = mem::replace(&mut self.bytes, spare);
        let (first, next) = (self.first, self.next);
        self.first = next;
        Some(Group { bytes, first, next, roll: mem::take(&mut self.roll) })
    }
}

impl Shared {
    pub fn new(
        directory: Directory,
        header: SegmentHeader,
        options: &Options,
        tail: &Tail,
    ) -> Self {
        // A group goes into one segment whole, so it may not be larger than one.
        let segment = usize::try_from(options.segment_bytes).unwrap_or(usize::MAX);
        let buffer = Buffer {
            bytes: vec![0; SYNCED_BYTES],
            first: tail.next,
            next: tail.next,
            max: options.buffer_max.min(segment),
            idle: false,
            roll: false,
            nudged: false,
            closing: false,
            stopped: false,
            failure: None,
        };
        let chores = Chores {
            dirty: false,
            reclaim: true,
            pressed: false,
            closing: false,
            syncer: Arc::clone(&tail.syncer),
        };
        Self {
            directory,
            header,
            buffer: Mutex::new(buffer),
            work: Bell::new(options.background),
            written: AtomicU64::new(tail.next),
            synced: AtomicU64::new(tail.next),
            finished: AtomicU64::new(tail.first),
            sync_failed: Mutex::new(false),
            progress: Notify::new(),
            chores: Mutex::new(chores),
            chore: Bell::new(options.background),
            ring: Mutex::new(tail.firsts.clone()),
        }
    }

    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        // Nothing that runs under these locks can panic half-way through a change.
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn ring(&self) -> MutexGuard<'_, Vec<u64>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for records and takes them all, leaving `spare` to gather the next. `None` when the journal closes and
    /// nothing is left.
    pub fn take_group(&self, spare: Vec<u8>) -> Option<Group> {
        let mut buffer = self.buffer();
        while !buffer.has_work() {
            if buffer.closing || buffer.stopped {
                return None;
            }
            buffer.idle = true;
            buffer = self.work.wait(buffer);
        }
        buffer.take(spare)
    }

    /// Takes the records that have gathered, if any. Where there are none, the next one rings.
    pub fn take_gathered(&self) -> Option<Group> {
        let mut buffer = self.buffer();
        if !buffer.has_work() {
            buffer.idle = true;
            return None;
        }
        buffer.take(Vec::new())
    }

    /// Sleeps until another attempt is worthwhile, at most `pause`. True when the journal is closing.
    pub fn pause(&self, pause: Duration) -> bool {
        let buffer = self.buffer();
        let mut buffer = self.work.wait_while(buffer, Some(pause), |buffer| {
            !buffer.nudged && !buffer.closing && !buffer.stopped
        });
        buffer.nudged = false;
        buffer.closing || buffer.stopped
    }

    /// Ends a writer's pause.
    pub fn nudge(&self) {
        self.buffer().nudged = true;
        self.work.ring();
    }

    pub fn publish_written(&self, next: u64) {
        self.written.store(next, Ordering::Release);
        self.progress.notify_waiters();
    }

    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Syncs, and publishes that all below `next` is synced. One at a time, and never again after one failed: the system
    /// reports a lost page to one caller only.
    pub fn sync(&self, syncer: &dyn Syncer, path: &Path, next: u64) -> Result<(), JournalError> {
        let mut failed = self.sync_failed.lock().unwrap_or_else(PoisonError::into_inner);
        if *failed {
            return Err(JournalError::Closed);
        }
        if let Err(error) = syncer.sync() {
            *failed = true;
            return Err(JournalError::sync(path, error));
        }
        self.synced.fetch_max(next, Ordering::AcqRel);
        Ok(())
    }

    pub fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    pub fn publish_finished(&self, next: u64) {
        self.finished.store(next, Ordering::Release);
    }

    /// Says why nothing moves; a failure that is final ends the journal. The first final one stays.
    pub fn fail(&self, error: JournalError) {
        let mut buffer = self.buffer();
        if buffer.failure.as_ref().is_some_and(|failure| failure.is_final()) {
            return;
        }
        let last = error.is_final();
        buffer.failure = Some(Arc::new(error));
        buffer.stopped |= last;
        drop(buffer);
        if last {
            self.work.ring();
            self.progress.notify_waiters();
        }
    }

    /// The disk works again.
    pub fn recover(&self) {
        let mut buffer = self.buffer();
        if buffer.failure.as_ref().is_some_and(|failure| !failure.is_final()) {
            buffer.failure = None;
        }
    }

    /// The writer has ended.
    pub fn stop(&self) {
        self.buffer().stopped = true;
        self.progress.notify_waiters();
    }

    /// Why the journal is over, if it is.
    pub fn stopped(&self) -> Option<Arc<JournalError>> {
        let buffer = self.buffer();
        let error = || buffer.failure.clone().unwrap_or_else(|| Arc::new(JournalError::Closed));
        buffer.stopped.then(error)
    }

    pub fn close(&self) {
        self.buffer().closing = true;
        self.work.ring();
        self.chore(|chores| chores.closing = true);
    }

    pub fn chores(&self) -> MutexGuard<'_, Chores> {
        self.chores.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the keeper something to do.
    pub fn chore(&self, add: impl FnOnce(&mut Chores)) {
        add(&mut self.chores());
        self.chore.ring();
    }

    /// Waits for chores while `idle` says so, at most `timeout`.
    pub fn wait_chore(
        &self,
        timeout: Option<Duration>,
        idle: impl Fn(&Chores) -> bool,
    ) -> MutexGuard<'_, Chores> {
        self.chore.wait_while(self.chores(), timeout, |chores| idle(chores))
    }

    /// Rings when there are records to write.
    pub fn work_rings(&self) -> Notified<'_> {
        self.work.rings()
    }

    /// Rings when there is something for the keeper.
    pub fn chore_rings(&self) -> Notified<'_> {
        self.chore.rings()
    }
}

/// Wakes one waiter: a thread, or a task.
struct Bell {
    thread: Condvar,
    task: Option<Notify>,
}

impl Bell {
    fn new(background: Background) -> Self {
        let task = match background {
            Background::Threads => None,
            Background::Tasks => Some(Notify::new()),
        };
        Self { thread: Condvar::new(), task }
    }

    fn ring(&self) {
        match &self.task {
            None => self.thread.notify_all(),
            Some(task) => task.notify_one(),
        }
    }

    /// For a task alone.
    fn rings(&self) -> Notified<'_> {
        self.task.as_ref().expect("only tasks wait without a thread").notified()
    }

    /// For a thread alone.
    fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.thread.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Option<Duration>,
        mut idle: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'a, T> {
        let Some(timeout) = timeout else {
            let waited = self.thread.wait_while(guard, idle);
            return waited.unwrap_or_else(PoisonError::into_inner);
        };
        let waited = self.thread.wait_timeout_while(guard, timeout, |value| idle(value));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Whether, and when, the keeper syncs.
pub(super) const fn sync_interval(policy: FsyncPolicy) -> Option<Duration> {
    match policy {
        FsyncPolicy::Interval(interval) => Some(interval),
        FsyncPolicy::Never | FsyncPolicy::Always => None,
    }
}
