//! Reading a journal, whether or not somebody writes it.
//!
//! A reader takes no lock and changes nothing. Beside a running writer its last record may be half there; that reads as
//! [`End::Torn`] and means no harm, and [`Records::until`] avoids it. A segment may also be reclaimed between the listing
//! and the reading, which reads as [`End::Missing`].

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::FORMAT_VERSION;
use super::directory::{Directory, Format, segment_name};
use super::error::OpenError;
use super::frame::{Kind, SEGMENT_HEADER, SegmentHeader, u32_at};
use super::scan::{Segment, Step, synced_mark};
use super::snapshot::{self, Snapshot};
use crate::seam::Disk;

/// A data directory, read-only.
pub struct Reader {
    directory: Directory,
    format: Format,
}

impl Reader {
    /// Looks into `dir`.
    ///
    /// # Errors
    /// Where it is not a data directory, is newer than this program, or cannot be read.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, OpenError> {
        let directory = Directory::new(disk, dir);
        let path = directory.root.join("FORMAT");
        let format = directory.read_format()?.ok_or(OpenError::NoFormat { path })?;
        Ok(Self { directory, format })
    }

    pub(super) fn new(directory: Directory, format: Format) -> Self {
        Self { directory, format }
    }

    /// What the directory says of itself.
    #[must_use]
    pub const fn format(&self) -> Format {
        self.format
    }

    /// The first position retained, if there is any segment.
    ///
    /// # Errors
    /// Where the directory cannot be listed.
    pub fn retained_from(&self) -> io::Result<Option<u64>> {
        Ok(self.directory.list_segments()?.first().copied())
    }

    /// The newest sound snapshot at or before `position`, and a line for each unsound one that was passed over.
    ///
    /// # Errors
    /// Where the directory cannot be listed.
    pub fn snapshot_at(&self, position: u64) -> io::Result<(Option<Snapshot>, Vec<String>)> {
        let (found, rejected) = snapshot::newest(&self.directory, position)?;
        Ok((found, rejected.into_iter().map(|rejected| rejected.to_string()).collect()))
    }

    /// The records from `from` on.
    ///
    /// # Errors
    /// Where the directory cannot be listed.
    pub fn records(&self, from: u64) -> io::Result<Records> {
        let mut segments = VecDeque::from(self.directory.list_segments()?);
        while segments.len() > 1 && segments[1] <= from {
            segments.pop_front();
        }
        let next = segments.front().copied().filter(|first| *first <= from).unwrap_or(from);
        Ok(Records {
            directory: self.directory.clone(),
            seed: self.format.seed,
            segments,
            current: None,
            last: None,
            next,
            wanted: from..u64::MAX,
            incarnation: 0,
            synced: 0,
            end: None,
        })
    }
}

/// One record, as it was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in the journal, from 0.
    pub position: u64,
    /// Which run of the program wrote it, from 1.
    pub incarnation: u32,
    /// By which version of the plane's decisions.
    pub logic_version: u32,
    /// What was appended.
    pub payload: Bytes,
}

/// How a journal ends.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// At the end of a record.
    Clean,
    /// In the middle of a record, with nothing sound behind it: a crash, or a write that is going on.
    Torn {
        /// The last segment's file name.
        segment: String,
        /// Where in it the last whole record ends; 0 where not even its header is whole.
        offset: u64,
        /// How many bytes lie behind that.
        bytes: u64,
        /// What is wrong with them.
        what: &'static str,
    },
    /// Something is wrong although sound records follow.
    Corrupt {
        /// The record that should be here.
        position: u64,
        /// The segment's file name.
        segment: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: &'static str,
        /// Whether the record had reached the disk. If not, a loss of power explains this.
        synced: bool,
    },
    /// Records are missing altogether.
    Missing {
        /// The position that should come next.
        expected: u64,
        /// The next one there is.
        found: Option<u64>,
    },
    /// A newer program wrote this segment.
    Newer {
        /// The segment's file name.
        segment: String,
        /// Its format version.
        format: u32,
    },
    /// A segment could not be read.
    Unreadable {
        /// The segment's file name.
        segment: String,
        /// What the system said.
        error: String,
    },
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => f.write_str("the journal ends with a whole record"),
            Self::Torn { segment, offset, bytes, what } => write!(
                f,
                "the journal's last {bytes} bytes, from offset {offset} of {segment}, are torn: {what}"
            ),
            Self::Corrupt { position, segment, offset, what, synced } => {
                let when = if *synced { "it had been synced" } else { "it had not been synced" };
                write!(
                    f,
                    "the record at position {position} is damaged: {what}, at offset {offset} of {segment}, \
                     though sound records follow; {when}"
                )
            }
            Self::Missing { expected, found: Some(found) } => {
                write!(f, "positions {expected} to {} are missing", found.saturating_sub(1))
            }
            Self::Missing { expected, found: None } => {
                write!(f, "the segment that holds position {expected} is missing")
            }
            Self::Newer { segment, format } => {
                write!(f, "{segment} has format {format}, newer than {FORMAT_VERSION}")
            }
            Self::Unreadable { segment, error } => write!(f, "cannot read {segment}: {error}"),
        }
    }
}

/// The records of a journal, in order. When they end, [`Records::end`] says how.
pub struct Records {
    directory: Directory,
    seed: u64,
    /// First positions of the segments not yet opened.
    segments: VecDeque<u64>,
    current: Option<Open>,
    last: Option<SegmentHeader>,
    next: u64,
    wanted: Range<u64>,
    incarnation: u32,
    synced: u64,
    end: Option<End>,
}

struct Open {
    segment: Segment,
    header: SegmentHeader,
    offset: u64,
}

impl Records {
    /// Stops, cleanly, before `position`.
    #[must_use]
    pub fn until(mut self, position: u64) -> Self {
        self.wanted.end = position;
        self
    }

    /// Goes on up to `position` after a clean end, with what was written since. For whoever follows a writer: nothing is
    /// read twice.
    ///
    /// # Errors
    /// Where the directory or its last segment cannot be looked at.
    pub fn go_on(&mut self, position: u64) -> io::Result<()> {
        let last = self.segments.back().copied().or(self.last.map(|header| header.first));
        let listed = self.directory.list_segments()?;
        self.segments
            .extend(listed.into_iter().filter(|first| last.is_none_or(|last| *first > last)));
        if let Some(open) = &mut self.current {
            open.segment.refresh()?;
        }
        (self.end, self.wanted.end) = (None, position);
        Ok(())
    }

    /// How the journal ends; `None` until the records are exhausted.
    #[must_use]
    pub const fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// The position behind the last record seen.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.next
    }

    /// The last incarnation that was seen to open the journal; 0 before any was.
    #[must_use]
    pub const fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// All positions below this one are known to have been synced.
    #[must_use]
    pub const fn synced(&self) -> u64 {
        self.synced
    }

    /// The header of the last sound segment.
    pub(super) const fn last_header(&self) -> Option<SegmentHeader> {
        self.last
    }

    fn advance(&mut self) -> Result<Record, End> {
        loop {
            if self.next >= self.wanted.end {
                return Err(End::Clean);
            }
            let Some(mut open) = self.current.take() else {
                self.open_next()?;
                continue;
            };
            let step = open.segment.step(open.offset, self.next);
            let step = step.map_err(|error| unreadable(open.header.first, &error));
            let at = open.offset;
            if let Ok(Step::Whole { next, .. }) = step {
                open.offset = next;
            }
            let ended = matches!(step, Ok(Step::End)) && !self.segments.is_empty();
            let open = if ended { continue } else { self.current.insert(open) };
            match step? {
                Step::End => return Err(End::Clean),
                Step::Bad(what) => {
                    let first = open.header.first;
                    return Err(self.judge(first, at, what));
                }
                Step::Whole { kind, payload, .. } => {
                    let logic_version = open.header.logic;
                    if let Some(record) = self.take(kind, payload, logic_version) {
                        return Ok(record);
                    }
                }
            }
        }
    }

    /// Takes note of a sound record; returns it where somebody asked for it.
    fn take(&mut self, kind: Kind, payload: Vec<u8>, logic_version: u32) -> Option<Record> {
        match kind {
            Kind::Payload => {
                let position = self.next;
                self.next += 1;
                let incarnation = self.incarnation;
                let payload = Bytes::from(payload);
                let record = Record { position, incarnation, logic_version, payload };
                self.wanted.contains(&position).then_some(record)
            }
            Kind::Opened => {
                if payload.len() == 4 {
                    self.incarnation = self.incarnation.max(u32_at(&payload, 0));
                }
                None
            }
            Kind::Synced => {
                self.synced = self.synced.max(synced_mark(&payload));
                None
            }
        }
    }

    fn open_next(&mut self) -> Result<(), End> {
        let Some(first) = self.segments.pop_front() else { return Err(End::Clean) };
        if first != self.next {
            return Err(End::Missing { expected: self.next, found: Some(first) });
        }
        let mut segment = match Segment::open(&self.directory, first) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(End::Missing { expected: first, found: None });
            }
            opened => opened.map_err(|error| unreadable(first, &error))?,
        };
        let header = segment.header().map_err(|error| unreadable(first, &error))?;
        let Some(header) = header else {
            return Err(self.judge(first, 0, "the segment's header is not whole"));
        };
        if header.format > FORMAT_VERSION {
            return Err(End::Newer { segment: segment_name(first), format: header.format });
        }
        let foreign = if header.seed != self.seed {
            Some("the segment belongs to another plane")
        } else if header.first != first {
            Some("the segment's name is not its own")
        } else {
            None
        };
        if let Some(what) = foreign {
            let segment = segment_name(first);
            return Err(End::Corrupt { position: first, segment, offset: 0, what, synced: true });
        }
        self.incarnation = self.incarnation.max(header.incarnation);
        // A segment is begun only when the one before is synced.
        self.synced = self.synced.max(first);
        self.last = Some(header);
        self.current = Some(Open { segment, header, offset: SEGMENT_HEADER as u64 });
        Ok(())
    }

    /// Tells a torn tail from damage: it is a tail only if nothing sound stands behind it.
    fn judge(&mut self, first: u64, offset: u64, what: &'static str) -> End {
        let (name, position) = (segment_name(first), self.next);
        if !self.segments.is_empty() {
            return End::Corrupt { position, segment: name, offset, what, synced: true };
        }
        let look = || {
            let mut segment = Segment::open(&self.directory, first)?;
            let follows = segment.find_sound(offset, position)?.is_some();
            let synced = self.synced > position || segment.says_synced(offset, position)?;
            io::Result::Ok((segment.size, follows, synced))
        };
        match look() {
            Ok((size, false, _)) => {
                End::Torn { segment: name, offset, bytes: size.saturating_sub(offset), what }
            }
            Ok((_, true, synced)) => End::Corrupt { position, segment: name, offset, what, synced },
            Err(error) => unreadable(first, &error),
        }
    }
}

impl Iterator for Records {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        if self.end.is_some() {
            return None;
        }
        match self.advance() {
            Ok(record) => Some(record),
            Err(end) => {
                self.end = Some(end);
                None
            }
        }
    }
}

fn unreadable(first: u64, error: &io::Error) -> End {
    End::Unreadable { segment: segment_name(first), error: error.to_string() }
}
