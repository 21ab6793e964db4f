//! What can go wrong, one enum for each moment: opening, appending, waiting.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::reader::End;

/// Why a data directory was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it.
    #[error("the data directory {} is in use by process {holder}: stop it, or choose another directory", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The process id that its lock names.
        holder: String,
    },
    /// A newer program wrote it. Nothing was touched.
    #[error("the data directory {} has format {found} and this program knows only up to {ours}: run a newer pointsman, or choose another directory; nothing was changed", dir.display())]
    NewerFormat {
        /// The directory.
        dir: PathBuf,
        /// Its format version.
        found: u32,
        /// Ours.
        ours: u32,
    },
    /// An older program wrote it, of which this one reads nothing any more. Nothing was touched.
    #[error("the data directory {} has format {found} and this program reads only {ours}: go on with the pointsman that wrote it, or choose another directory; nothing was changed", dir.display())]
    OlderFormat {
        /// The directory.
        dir: PathBuf,
        /// Its format version.
        found: u32,
        /// Ours.
        ours: u32,
    },
    /// There is data, and the file that says what it is does not say it.
    #[error("{} is missing or unreadable beside a journal: restore it from a backup, or choose another directory; nothing was changed", path.display())]
    NoFormat {
        /// Where the file should be.
        path: PathBuf,
    },
    /// The journal is damaged where no crash explains it.
    #[error("the journal in {} cannot be recovered: {end}; restore a backup, or see `pointsman journal verify`; nothing was changed", dir.display())]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// Where and how.
        end: Box<End>,
    },
    /// The journal's beginning is gone and no sound snapshot stands in for it.
    #[error("the journal in {} begins at position {first} and no sound snapshot leads there ({}): restore a backup; nothing was changed", dir.display(), reasons(rejected))]
    NoSnapshot {
        /// The directory.
        dir: PathBuf,
        /// The first position there is.
        first: u64,
        /// The snapshots that were tried, and what is wrong with each.
        rejected: Vec<String>,
    },
    /// The disk failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl OpenError {
    pub(super) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.to_path_buf(), source }
    }
}

fn reasons(rejected: &[String]) -> String {
    if rejected.is_empty() { "there is none".to_owned() } else { rejected.join("; ") }
}

/// Why the journal does not move.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// No space is left. The journal keeps trying.
    #[error("no space is left for {}: free some; the journal goes on by itself", path.display())]
    DiskFull {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// A write failed otherwise. The journal keeps trying.
    #[error("cannot write {}: {source}; the journal keeps trying", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Each segment is newer than the last durable snapshot. The journal goes on when a snapshot is written.
    #[error(
        "the journal's {segments} segments are full and no newer snapshot lets one go: snapshots have stalled"
    )]
    RingFull {
        /// How many segments the ring holds.
        segments: usize,
    },
    /// A sync failed: nobody knows what is on the disk. Final until a restart.
    #[error("cannot sync {}: {source}; what is on the disk is unknown: check the disk, then restart", path.display())]
    Sync {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A thread of the journal panicked. Final until a restart.
    #[error("the journal's writer broke: restart, and report this")]
    Broken,
    /// The journal was closed.
    #[error("the journal is closed")]
    Closed,
}

impl JournalError {
    /// Whether only a restart helps.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        match self {
            Self::DiskFull { .. } | Self::Write { .. } | Self::RingFull { .. } => false,
            Self::Sync { .. } | Self::Broken | Self::Closed => true,
        }
    }

    pub(super) fn write(path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            Self::DiskFull { path }
        } else {
            Self::Write { path, source }
        }
    }

    pub(super) fn sync(path: &Path, source: io::Error) -> Self {
        Self::Sync { path: path.to_path_buf(), source }
    }
}

/// Why a record was not taken.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// It is larger than a record may be.
    #[error("a record of {bytes} bytes is larger than the {max} that the journal takes")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The most that is taken.
        max: usize,
    },
    /// The buffer is full, though the disk works: it is slower than what is asked of it.
    #[error("the journal's disk cannot keep up")]
    Behind,
    /// The buffer is full, because the disk does not work.
    #[error("the journal does not move: {0}")]
    Failing(Arc<JournalError>),
}

/// What was waited for will not be written.
#[derive(Clone, Debug, thiserror::Error)]
#[error("not written to the journal: {0}")]
pub struct JournalFailed(pub Arc<JournalError>);
