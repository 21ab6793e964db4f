//! The thread that writes.
//!
//! It owns the open segment. Between groups the file always ends with a whole record; when a write fails, the file is cut
//! back to that point before anything else is tried, so that half a record is never followed by a whole one.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::appender::{Group, Shared};
use super::directory::Directory;
use super::error::JournalError;
use super::frame::{self, Kind, SEGMENT_HEADER, SYNCED_BYTES, SegmentHeader};
use super::{FsyncPolicy, Options};
use crate::seam::disk::{self, AppendFile, Syncer};

/// The open segment, as recovery leaves it: synced, and ending with a whole record.
pub(super) struct Tail {
    pub file: Box<dyn AppendFile>,
    pub syncer: Arc<dyn Syncer>,
    pub first: u64,
    pub size: u64,
    /// The position of the next record.
    pub next: u64,
    /// First positions of all segments, this one last.
    pub firsts: Vec<u64>,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    segment: Tail,
    /// The file may be longer than `segment.size`, by a part of a failed write.
    torn: bool,
    /// The last position that a [`Kind::Synced`] mark in this segment tells of.
    marked: u64,
    segment_bytes: u64,
    segments_max: usize,
    sync_always: bool,
    /// Taken and not yet written, where writing is a task's work.
    pending: Option<Group>,
}

/// How a step of a writing task went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// A group is written.
    Written,
    /// It is not: another attempt may help.
    Failed,
    /// The journal is over.
    Over,
}

/// The first pause after a failed write, and the longest. A full disk is not freed in less, and a second is short enough
/// that nobody has to ask for another attempt.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(10);
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Buffers that a burst made larger than this are given back: an idle gateway should be small.
const SPARE_BYTES_MAX: usize = 1 << 20;

impl Writer {
    pub fn new(shared: Arc<Shared>, segment: Tail, options: &Options) -> Self {
        Self {
            shared,
            torn: false,
            marked: segment.next,
            segment,
            segment_bytes: options.segment_bytes,
            // One to write and one to reclaim: with fewer the ring could not turn.
            segments_max: options.segments_max.max(2),
            sync_always: options.fsync == FsyncPolicy::Always,
            pending: None,
        }
    }

    /// Takes what has gathered, unless an earlier group still waits. Says whether there is something to write.
    pub fn take(&mut self) -> bool {
        if self.pending.is_none() {
            self.pending = self.shared.take_gathered();
        }
        self.pending.is_some()
    }

    /// Writes what was taken.
    pub fn turn(&mut self) -> Turn {
        let Some(mut group) = self.pending.take() else { return Turn::Written };
        let Err(error) = self.write(&mut group) else {
            self.shared.recover();
            return Turn::Written;
        };
        self.pending = Some(group);
        let over = error.is_final();
        tracing::error!(%error, "the journal does not move");
        self.shared.fail(error);
        if over { Turn::Over } else { Turn::Failed }
    }

    /// Writes and syncs what is left, and ends the journal.
    pub fn close(&mut self) {
        // As a thread does: whatever fails is tried once more.
        let mut failures = 0;
        while failures < 2 && self.take() {
            match self.turn() {
                Turn::Written => {}
                Turn::Failed => failures += 1,
                Turn::Over => break,
            }
        }
        if failures < 2
            && self.shared.stopped().is_none()
            && let Err(error) = self.finish()
        {
            self.shared.fail(error);
        }
        self.shared.stop();
    }

    pub fn run(mut self) {
        let _alarm = Alarm(Arc::clone(&self.shared));
        let mut spare = Vec::new();
        while let Some(mut group) = self.shared.take_group(spare) {
            if !self.settle(&mut group) {
                return;
            }
            spare = group.bytes;
            if spare.capacity() > SPARE_BYTES_MAX {
                spare = Vec::new();
            }
        }
        if self.shared.stopped().is_none()
            && let Err(error) = self.finish()
        {
            self.shared.fail(error);
        }
    }

    /// Tries until the group is written. False when the journal is over before that.
    fn settle(&mut self, group: &mut Group) -> bool {
        let mut pause = PAUSE_MIN;
        let mut closing = false;
        loop {
            let Err(error) = self.write(group) else {
                self.shared.recover();
                return true;
            };
            let over = closing || error.is_final();
            if pause == PAUSE_MIN || over {
                tracing::error!(%error, "the journal does not move");
            }
            self.shared.fail(error);
            if over {
                return false;
            }
            closing = self.shared.pause(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Writes the group, to its end or not at all. Safe to call again after an error.
    fn write(&mut self, group: &mut Group) -> Result<(), JournalError> {
        self.mend()?;
        let records = (group.bytes.len() - SYNCED_BYTES) as u64;
        let holds_some = self.segment.first < group.first;
        let fits = self.segment.size + records + SYNCED_BYTES as u64 <= self.segment_bytes;
        if holds_some && (group.roll || !fits) {
            self.roll(group.first)?;
        }
        if records > 0 {
            let synced = self.shared.synced();
            let skip = self.mark(group, synced);
            self.append(&group.bytes[skip..])?;
            self.marked = synced;
            if self.sync_always {
                self.sync(group.next)?;
            }
            self.shared.publish_written(group.next);
            if !self.sync_always {
                self.dirty();
            }
        }
        Ok(())
    }

    /// Cuts off what a failed write left.
    fn mend(&mut self) -> Result<(), JournalError> {
        if self.torn {
            let cut = self.segment.file.truncate(self.segment.size);
            cut.map_err(|error| self.failed(error))?;
            self.torn = false;
        }
        Ok(())
    }

    /// Puts a mark before the records where there is a newer sync to tell of. Says how many bytes to skip. Recovery needs
    /// the marks to tell damage from what a loss of power may do.
    fn mark(&self, group: &mut Group, synced: u64) -> usize {
        if synced <= self.marked {
            return SYNCED_BYTES;
        }
        let mut mark = Vec::with_capacity(SYNCED_BYTES);
        frame::encode(&mut mark, Kind::Synced, group.first, &synced.to_le_bytes());
        group.bytes[..SYNCED_BYTES].copy_from_slice(&mark);
        0
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), JournalError> {
        match disk::append_all(self.segment.file.as_mut(), bytes) {
            Ok(()) => {
                self.segment.size += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.torn = true;
                let error = self.failed(error);
                // At once, so that a reader does not meet the torn part for longer than it must. If this fails too, it
                // is done before the next attempt.
                let _ = self.mend();
                Err(error)
            }
        }
    }

    fn sync(&self, next: u64) -> Result<(), JournalError> {
        let path = self.shared.directory.segment(self.segment.first);
        self.shared.sync(self.segment.syncer.as_ref(), &path, next)
    }

    /// Finishes the segment and begins the one whose first record is `first`. The finished one is synced before: if the
    /// next could survive a loss of power that this one does not, there would be a hole.
    fn roll(&mut self, first: u64) -> Result<(), JournalError> {
        if self.shared.ring().len() >= self.segments_max {
            self.shared.chore(|chores| chores.pressed = true);
            return Err(JournalError::RingFull { segments: self.segments_max });
        }
        self.sync(first)?;
        let directory = &self.shared.directory;
        let path = directory.segment(first);
        let failed = |error| JournalError::write(&path, error);
        let header = SegmentHeader { first, ..self.shared.header };
        let file = create_segment(directory, &header).map_err(failed)?;
        let syncer = file.syncer().map_err(failed)?;
        let journal = directory.journal();
        directory.disk.sync_dir(&journal).map_err(|error| JournalError::sync(&journal, error))?;
        self.segment.file = file;
        self.segment.syncer = Arc::clone(&syncer);
        self.segment.first = first;
        self.segment.size = SEGMENT_HEADER as u64;
        self.marked = first;
        self.shared.ring().push(first);
        self.shared.publish_finished(first);
        self.shared.chores().syncer = syncer;
        Ok(())
    }

    fn dirty(&self) {
        let mut chores = self.shared.chores();
        let first = !chores.dirty;
        chores.dirty = true;
        drop(chores);
        if first {
            self.shared.chore(|_| {});
        }
    }

    /// Syncs, and leaves a mark that says so: damage even to the last record is then told from a torn tail.
    fn finish(&mut self) -> Result<(), JournalError> {
        self.mend()?;
        let next = self.shared.written();
        self.sync(next)?;
        let mut mark = Vec::with_capacity(SYNCED_BYTES);
        frame::encode(&mut mark, Kind::Synced, next, &next.to_le_bytes());
        // Only a help to recovery: the records are safe without it.
        if self.append(&mark).is_ok() {
            self.sync(next)?;
        }
        Ok(())
    }

    fn failed(&self, error: io::Error) -> JournalError {
        JournalError::write(&self.shared.directory.segment(self.segment.first), error)
    }
}

/// Begins a segment. One of the same name can only be left from an earlier attempt, and holds no record.
pub(super) fn create_segment(
    directory: &Directory,
    header: &SegmentHeader,
) -> io::Result<Box<dyn AppendFile>> {
    let mut file = directory.disk.open_append(&directory.segment(header.first))?;
    file.truncate(0)?;
    disk::append_all(file.as_mut(), &header.encode())?;
    Ok(file)
}

/// Ends every wait when the thread ends, however it ends.
struct Alarm(Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.fail(JournalError::Broken);
        }
        self.0.stop();
    }
}
