//! The plane's write-ahead log, the half that touches the disk.
//!
//! The driver encodes what happened (position, instant, input, digest of the effects) under its lock; this module makes
//! those bytes survive. It knows nothing of what is inside a record.
//!
//! **What is promised.** A record is *written* when the kernel has it: from then on a kill of the process loses nothing.
//! It is *synced* when the disk has it: from then on a loss of power loses nothing. An answer waits for *written*
//! ([`Appender::wait_written`]), because waiting for a sync would add milliseconds to each first token; how much a loss of
//! power may cost is the operator's choice ([`FsyncPolicy`]). What reads back is always a prefix of what was appended:
//! never a hole, never garbage.
//!
//! **Group commit.** [`Appender::append`] copies into a bounded buffer and never touches the disk. One thread takes what
//! has gathered and writes it at once, while the next group gathers in a second buffer. Syncs and the removal of old
//! segments run in a thread beside it, so that neither delays a write. (An async file API was rejected: it is a thread
//! pool with more steps, and its latency is the pool's.)
//!
//! **When the disk says no.** A failed write leaves the file cut back to its last whole group; the group is kept and
//! tried again, and [`Appender::failure`] says why nothing moves. A failed sync is final: the kernel may have dropped
//! the pages, and a second sync would report success for data that is gone. The ring of segments is never overwritten:
//! full behind a stalled snapshot, the journal waits, and its buffer then refuses.
//!
//! **Recovery.** A bad last record with nothing valid behind it is a torn tail: cut, and reported. A bad record *followed*
//! by valid ones is damage, and opening is refused with nothing changed: losing acknowledged records is for people to
//! decide. The exception is a machine that lost power: it may write later sectors before earlier ones, so a hole among
//! records that were never synced is cut like a torn tail, provided the machine was restarted since the directory was
//! last opened.
//!
//! ```text
//! LOCK                             held while a process owns the directory; its pid and the machine's boot id
//! FORMAT                           format version, logic version, plane seed
//! journal/<first position>.seg     header, then records
//! snapshots/<position>.snap        the plane's state before the record at <position>
//! ```

mod appender;
mod directory;
mod error;
mod frame;
mod keeper;
mod open;
mod reader;
mod scan;
mod snapshot;
mod tasks;
#[cfg(test)]
mod tests;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

pub use appender::Appender;
pub use directory::Format;
pub use error::{JournalError, JournalFailed, OpenError, Refused};
pub use frame::RECORD_BYTES_MAX;
pub use open::{Cut, Opened, RecoveryReport};
pub use reader::{End, Reader, Record, Records};
pub use snapshot::Snapshot;

use crate::seam::disk::DiskLock;
use crate::seam::{Background, Disk};

/// The version of everything on the disk: layout, framing, and the codec of the records inside. Raised with any change that
/// a program would misread; a directory with another one is refused. One number with that of the records inside.
pub const FORMAT_VERSION: u32 = control::journal::FORMAT_VERSION;

/// How the journal is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// A segment is finished when the next group would take it beyond this many bytes. Default 64 MiB: a minute or so of
    /// a busy gateway, small enough to replay in a second.
    pub segment_bytes: u64,
    /// How many segments the ring holds. Default 16, which makes at most 1 GiB.
    pub segments_max: usize,
    /// When written records are synced.
    pub fsync: FsyncPolicy,
    /// How many bytes may wait in memory for the writer, beside the group it is writing. Default 8 MiB: a second of
    /// records at 20 times the expected load. Never more than a segment.
    pub buffer_max: usize,
    /// The version of the plane's decisions, kept with each segment: records are only replayed by the logic that wrote
    /// them.
    pub logic_version: u32,
    /// The plane's seed for a directory that is new. An existing one keeps its own.
    pub seed: u64,
    /// Who writes. Tasks belong to the runtime around [`Journal::open`].
    pub background: Background,
}

/// When written records are synced to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsyncPolicy {
    /// Only when a segment is finished and at the end. A loss of power may cost a segment.
    Never,
    /// This long after a write at the latest. A loss of power may cost about as much.
    Interval(Duration),
    /// With each group, before it counts as written. A loss of power costs nothing that was answered.
    Always,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            segments_max: 16,
            // 100 ms: ten syncs a second are a load no disk notices.
            fsync: FsyncPolicy::Interval(Duration::from_millis(100)),
            buffer_max: 8 << 20,
            logic_version: 1,
            seed: 0,
            background: Background::Threads,
        }
    }
}

/// An open journal: the lock on its directory and those who write. Dropping it does what [`Journal::close`] does.
pub struct Journal {
    appender: Appender,
    workers: Workers,
    /// Held for its drop, after the workers have ended.
    _lock: Box<dyn DiskLock>,
}

/// Who writes.
enum Workers {
    Threads(Vec<JoinHandle<()>>),
    Tasks(tasks::Tasks),
}

impl Journal {
    /// Opens or creates the journal in `dir`, recovers what is in it, and starts the writer.
    ///
    /// # Errors
    /// Where the directory is in use, newer than this program, damaged, or the disk fails. Nothing but the lock's text
    /// has then been changed.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: &Options,
    ) -> Result<(Self, Opened), OpenError> {
        open::open(disk, dir, options)
    }

    /// The handle that the driver appends with. Cheap to clone.
    #[must_use]
    pub fn appender(&self) -> Appender {
        self.appender.clone()
    }

    /// Writes and syncs what was appended, and ends those who write. Later appends are refused.
    ///
    /// # Errors
    /// Where the disk refuses to take what is left, after one more attempt.
    pub fn close(mut self) -> Result<(), JournalFailed> {
        self.stop();
        match self.appender.failure() {
            Some(error) => Err(JournalFailed(error)),
            None => Ok(()),
        }
    }

    fn stop(&mut self) {
        self.appender.close();
        match &mut self.workers {
            Workers::Threads(threads) => {
                for thread in threads.drain(..) {
                    // A panic in there has already been recorded as the journal's failure.
                    let _ = thread.join();
                }
            }
            Workers::Tasks(tasks) => tasks.finish(),
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.stop();
    }
}
