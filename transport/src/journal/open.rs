//! From a directory as a crash left it to a journal that can be appended to.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use super::appender::{Appender, Shared};
use super::directory::{Directory, Format};
use super::error::OpenError;
use super::frame::{self, Kind, SEGMENT_HEADER, SegmentHeader};
use super::keeper::Keeper;
use super::reader::{End, Reader, Records};
use super::snapshot::{self, Rejected, Snapshot};
use super::tasks::Tasks;
use super::writer::{self, Tail, Writer};
use super::{FORMAT_VERSION, Journal, Options, Workers};
use crate::seam::disk::DiskLock;
use crate::seam::{Background, Disk};

/// What was found in a data directory.
pub struct Opened {
    /// The state to begin with; `None` for an empty plane at position 0.
    pub snapshot: Option<Snapshot>,
    /// The records that come after it. They were all read and found sound.
    pub tail: Records,
    /// The position of the next record to be appended.
    pub next: u64,
    /// This run's number, from 1. Larger than that of any run before.
    pub incarnation: u32,
    /// The run before, 0 for a new directory.
    pub last_incarnation: u32,
    /// The version of the plane's decisions that last opened the directory. Ours, for a new one.
    pub logic_version: u32,
    /// The plane's seed.
    pub seed: u64,
    /// What recovery had to do.
    pub report: RecoveryReport,
}

/// What recovery had to do. Prints as words for the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The snapshot's position.
    pub snapshot: Option<u64>,
    /// How many records come after it.
    pub records: u64,
    /// What was cut off the journal's end.
    pub cut: Option<Cut>,
    /// Unsound snapshots that were passed over and set aside, and what is wrong with each.
    pub rejected: Vec<String>,
}

/// An end of the journal that was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The position of the first record that is gone.
    pub position: u64,
    /// How many bytes were cut.
    pub bytes: u64,
    /// Where, and what was wrong.
    pub end: End,
}

impl fmt::Display for RecoveryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.snapshot {
            Some(position) => write!(f, "the snapshot of position {position}")?,
            None => f.write_str("an empty plane")?,
        }
        write!(f, " and {} records after it", self.records)?;
        if let Some(cut) = &self.cut {
            write!(f, "; cut {} bytes at position {}: {}", cut.bytes, cut.position, cut.end)?;
        }
        self.rejected.iter().try_for_each(|rejected| write!(f, "; set aside: {rejected}"))
    }
}

pub(super) fn open(
    disk: Arc<dyn Disk>,
    dir: &Path,
    options: &Options,
) -> Result<(Journal, Opened), OpenError> {
    let directory = Directory::new(disk, dir);
    // Before the lock, whose file would be a change.
    directory.read_format()?;
    directory.create()?;
    let mut lock = directory.lock()?;
    let rebooted = introduce(&directory, lock.as_mut(), false)?;
    let format = directory.format_or_new(options)?;
    let found = Found::look(&directory, format, rebooted)?;
    found.clean(&directory)?;
    let tail = found.tail(&directory, format, options)?;
    if format.logic != options.logic_version {
        directory.write_format(Format { logic: options.logic_version, ..format })?;
    }
    introduce(&directory, lock.as_mut(), true)?;
    let opened = found.opened(&directory, format)?;
    let header = SegmentHeader {
        format: FORMAT_VERSION,
        logic: options.logic_version,
        incarnation: opened.incarnation,
        seed: format.seed,
        first: opened.next,
    };
    let shared = Arc::new(Shared::new(directory, header, options, &tail));
    let writer = Writer::new(Arc::clone(&shared), tail, options);
    let keeper = Keeper::new(Arc::clone(&shared), options);
    let workers = match options.background {
        Background::Threads => Workers::Threads(vec![
            spawn(&shared, "journal-writer", move || writer.run())?,
            spawn(&shared, "journal-keeper", move || keeper.run())?,
        ]),
        Background::Tasks => Workers::Tasks(Tasks::start(&shared, writer, keeper)),
    };
    Ok((Journal { appender: Appender::new(shared), workers, _lock: lock }, opened))
}

fn spawn(
    shared: &Arc<Shared>,
    name: &str,
    run: impl FnOnce() + Send + 'static,
) -> Result<thread::JoinHandle<()>, OpenError> {
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(run);
    spawned.map_err(|error| {
        // Ends the thread that was started before this one.
        shared.close();
        OpenError::io("start a thread for", &shared.directory.root, error)
    })
}

/// Writes our process id into the lock, and, when the directory has been `recovered`, the machine's boot id. Until then
/// the old one stays: it tells a restart of the machine from one of the process. Says which it was.
fn introduce(
    directory: &Directory,
    lock: &mut dyn DiskLock,
    recovered: bool,
) -> Result<bool, OpenError> {
    let boot = directory.disk.boot_id().unwrap_or_default();
    let before = lock.previous().lines().nth(1).unwrap_or_default().to_owned();
    let shown = if recovered { &boot } else { &before };
    let text = format!("{}\n{shown}\n", directory.disk.process_id());
    let written = lock.write(&text).and_then(|()| directory.disk.sync_dir(&directory.root));
    written.map_err(|error| OpenError::io("write", &directory.root.join("LOCK"), error))?;
    Ok(!before.is_empty() && !boot.is_empty() && before != boot)
}

/// What a read-only look at the directory found, before anything is changed.
struct Found {
    snapshot: Option<Snapshot>,
    rejected: Vec<Rejected>,
    records: u64,
    cut: Option<Cut>,
    next: u64,
    last_incarnation: u32,
    /// The last sound segment.
    last: Option<SegmentHeader>,
    /// Whether the journal reaches up to the snapshot. A loss of power may take records that a snapshot has in it.
    reached: bool,
}

impl Found {
    fn look(directory: &Directory, format: Format, rebooted: bool) -> Result<Self, OpenError> {
        let list = |error| OpenError::io("list", &directory.root, error);
        let (snapshot, rejected) = snapshot::newest(directory, u64::MAX).map_err(list)?;
        let from = snapshot.as_ref().map_or(0, |snapshot| snapshot.position);
        let first = directory.list_segments().map_err(list)?.first().copied();
        if let Some(first) = first.filter(|first| snapshot.is_none() && *first > 0) {
            let rejected = rejected.iter().map(Rejected::to_string).collect();
            return Err(OpenError::NoSnapshot { dir: directory.root.clone(), first, rejected });
        }
        let mut tail = Reader::new(directory.clone(), format).records(from).map_err(list)?;
        let records = tail.by_ref().count() as u64;
        let end = tail.end().cloned().unwrap_or(End::Clean);
        let of_snapshot = snapshot.as_ref().map_or(0, |snapshot| snapshot.incarnation);
        Ok(Self {
            rejected,
            records,
            cut: cut(directory, end, tail.position(), rebooted)?,
            next: tail.position().max(from),
            last_incarnation: tail.incarnation().max(of_snapshot),
            last: tail.last_header(),
            reached: tail.position() >= from,
            snapshot,
        })
    }

    /// Cuts what is torn and sets aside what is unsound.
    fn clean(&self, directory: &Directory) -> Result<(), OpenError> {
        let disk = directory.disk.as_ref();
        for Rejected { position, .. } in &self.rejected {
            let path = directory.snapshot(*position);
            let aside = directory.set_aside(*position);
            disk.rename(&path, &aside).map_err(|error| OpenError::io("rename", &path, error))?;
        }
        // Leftovers of a crash in the middle of a snapshot cost only space, and so does failing to remove them.
        for name in disk.list(&directory.snapshots()).unwrap_or_default() {
            if name.ends_with(".tmp") {
                let _ = disk.remove(&directory.snapshots().join(name));
            }
        }
        if let Some((first, 0)) = self.cut_at() {
            let path = directory.segment(first);
            disk.remove(&path).map_err(|error| OpenError::io("remove", &path, error))?;
        }
        Ok(())
    }

    /// The segment that is cut, and the offset.
    fn cut_at(&self) -> Option<(u64, u64)> {
        let cut = self.cut.as_ref()?;
        match &cut.end {
            // Not even the header is sound: the segment was to begin with the next record.
            End::Torn { offset: 0, .. } | End::Corrupt { offset: 0, .. } => Some((cut.position, 0)),
            End::Torn { offset, .. } | End::Corrupt { offset, .. } => {
                Some((self.last.as_ref()?.first, *offset))
            }
            End::Clean | End::Missing { .. } | End::Newer { .. } | End::Unreadable { .. } => None,
        }
    }

    /// The segment to go on in: the last one, or a new one where another logic wrote that.
    fn tail(
        &self,
        directory: &Directory,
        format: Format,
        options: &Options,
    ) -> Result<Tail, OpenError> {
        let list = |error| OpenError::io("list", &directory.root, error);
        let mut firsts = directory.list_segments().map_err(list)?;
        let incarnation = self.last_incarnation + 1;
        let logic = options.logic_version;
        let going_on = self.last.filter(|last| last.logic == logic && self.reached);
        let first = going_on.map_or(self.next, |last| last.first);
        let path = directory.segment(first);
        let io = |error| OpenError::io("write", &path, error);
        let mut file = match going_on {
            Some(_) => directory.disk.open_append(&path).map_err(io)?,
            None => {
                if firsts.last() != Some(&first) {
                    firsts.push(first);
                }
                let seed = format.seed;
                let header =
                    SegmentHeader { format: FORMAT_VERSION, logic, incarnation, seed, first };
                writer::create_segment(directory, &header).map_err(io)?
            }
        };
        if let (Some(_), Some((_, offset))) =
            (going_on, self.cut_at().filter(|(at, _)| *at == first))
        {
            file.truncate(offset).map_err(io)?;
        }
        let mut mark = Vec::new();
        frame::encode(&mut mark, Kind::Opened, self.next, &incarnation.to_le_bytes());
        let start = file.size().map_err(io)?;
        debug_assert!(start >= SEGMENT_HEADER as u64, "a segment has its header");
        crate::seam::disk::append_all(file.as_mut(), &mark).map_err(io)?;
        let syncer = file.syncer().map_err(io)?;
        syncer.sync().map_err(io)?;
        directory.disk.sync_dir(&directory.journal()).map_err(io)?;
        Ok(Tail { file, syncer, first, size: start + mark.len() as u64, next: self.next, firsts })
    }

    fn opened(self, directory: &Directory, format: Format) -> Result<Opened, OpenError> {
        let from = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.position);
        let tail = Reader::new(directory.clone(), format).records(from);
        let tail = tail.map_err(|error| OpenError::io("list", &directory.root, error))?;
        Ok(Opened {
            tail: tail.until(self.next),
            next: self.next,
            incarnation: self.last_incarnation + 1,
            last_incarnation: self.last_incarnation,
            logic_version: format.logic,
            seed: format.seed,
            report: RecoveryReport {
                snapshot: self.snapshot.as_ref().map(|snapshot| snapshot.position),
                records: self.records,
                cut: self.cut,
                rejected: self.rejected.iter().map(Rejected::to_string).collect(),
            },
            snapshot: self.snapshot,
        })
    }
}

/// What to cut off, or why to refuse.
fn cut(
    directory: &Directory,
    end: End,
    position: u64,
    rebooted: bool,
) -> Result<Option<Cut>, OpenError> {
    let dir = directory.root.clone();
    match end {
        End::Clean => Ok(None),
        End::Torn { bytes, .. } => Ok(Some(Cut { position, bytes, end })),
        End::Corrupt { ref segment, offset, synced: false, .. } if rebooted => {
            let path = directory.journal().join(segment);
            let size = directory.disk.open_read(&path).and_then(|file| file.size());
            let size = size.map_err(|error| OpenError::io("read", &path, error))?;
            Ok(Some(Cut { position, bytes: size.saturating_sub(offset), end }))
        }
        End::Newer { format, .. } => {
            Err(OpenError::NewerFormat { dir, found: format, ours: FORMAT_VERSION })
        }
        End::Corrupt { .. } | End::Missing { .. } | End::Unreadable { .. } => {
            Err(OpenError::Damaged { dir, end: Box::new(end) })
        }
    }
}
