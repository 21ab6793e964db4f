//! Reading one segment, sound or not.

use std::io;

use super::directory::Directory;
use super::frame::{Kind, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SegmentHeader, u64_at};
use crate::seam::disk::ReadFile;

/// A segment open for reading, through a window of bounded size.
pub(super) struct Segment {
    file: Box<dyn ReadFile>,
    /// Bytes in the file when it was opened or refreshed. What a running writer adds later is not looked at.
    pub size: u64,
    window: Vec<u8>,
    window_at: u64,
}

/// What stands at an offset.
pub(super) enum Step {
    /// A sound record, and the offset behind it.
    Whole { kind: Kind, payload: Vec<u8>, next: u64 },
    /// Nothing: the segment ends here.
    End,
    /// Something that is not the record that should stand here.
    Bad(&'static str),
}

impl Segment {
    pub fn open(directory: &Directory, first: u64) -> io::Result<Self> {
        let file = directory.disk.open_read(&directory.segment(first))?;
        let size = file.size()?;
        Ok(Self { file, size, window: Vec::new(), window_at: 0 })
    }

    /// Looks again how long the file is. What was read ahead is forgotten: a writer may have cut it off since.
    pub fn refresh(&mut self) -> io::Result<()> {
        self.size = self.file.size()?;
        self.window.clear();
        Ok(())
    }

    /// The header; `None` where it is not sound.
    pub fn header(&mut self) -> io::Result<Option<SegmentHeader>> {
        Ok(SegmentHeader::decode(self.bytes(0, SEGMENT_HEADER)?))
    }

    /// What stands at `offset`, where the record of `position` should.
    pub fn step(&mut self, offset: u64, position: u64) -> io::Result<Step> {
        let bytes = self.bytes(offset, RECORD_HEADER)?;
        if bytes.is_empty() {
            return Ok(Step::End);
        }
        if bytes.len() < RECORD_HEADER {
            return Ok(Step::Bad("a record's header is cut short"));
        }
        let header = RecordHeader::decode(bytes);
        let Some(kind) = header.kind() else {
            return Ok(Step::Bad("what stands here is not a record"));
        };
        let bytes = self.bytes(offset, header.total())?;
        if bytes.len() < header.total() {
            return Ok(Step::Bad("a record is cut short"));
        }
        let payload = &bytes[header.payload()];
        if !header.matches(payload) {
            return Ok(Step::Bad("a record's checksum does not match"));
        }
        if header.position != position {
            return Ok(Step::Bad("a sound record of another position stands here"));
        }
        Ok(Step::Whole { kind, payload: payload.to_vec(), next: offset + header.total() as u64 })
    }

    /// The first offset at or behind `offset` where a sound record of `position` or later stands.
    pub fn find_sound(&mut self, offset: u64, position: u64) -> io::Result<Option<(u64, u64)>> {
        // A record takes at least its header, so this segment cannot hold later positions than these. Eight of every
        // sixteen bytes looked at must agree before a checksum is computed at all.
        let latest = position.saturating_add(self.size / RECORD_HEADER as u64 + 1);
        for at in offset..self.size.saturating_sub(RECORD_HEADER as u64 - 1) {
            let header = RecordHeader::decode(self.bytes(at, RECORD_HEADER)?);
            let plausible = (position..=latest).contains(&header.position)
                && header.kind().is_some()
                && header.total() as u64 <= self.size - at;
            if plausible && matches!(self.step(at, header.position)?, Step::Whole { .. }) {
                return Ok(Some((at, header.position)));
            }
        }
        Ok(None)
    }

    /// Whether a mark at or behind `offset` says that `position` had been synced.
    pub fn says_synced(&mut self, mut offset: u64, position: u64) -> io::Result<bool> {
        while let Some((at, found)) = self.find_sound(offset, position)? {
            let Step::Whole { kind, payload, next } = self.step(at, found)? else { break };
            if kind == Kind::Synced && synced_mark(&payload) > position {
                return Ok(true);
            }
            offset = next;
        }
        Ok(false)
    }

    /// Up to `want` bytes from `offset`; fewer where the segment ends.
    fn bytes(&mut self, offset: u64, want: usize) -> io::Result<&[u8]> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let want = want.min(left);
        let inside = offset.checked_sub(self.window_at).and_then(|at| usize::try_from(at).ok());
        if let Some(at) = inside
            && at + want <= self.window.len()
        {
            return Ok(&self.window[at..at + want]);
        }
        self.fill(offset, want.max(WINDOW.min(left)))?;
        let want = want.min(self.window.len());
        Ok(&self.window[..want])
    }

    fn fill(&mut self, offset: u64, size: usize) -> io::Result<()> {
        self.window.clear();
        self.window.resize(size, 0);
        self.window_at = offset;
        let mut filled = 0;
        while filled < size {
            match self.file.read_at(offset + filled as u64, &mut self.window[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        self.window.truncate(filled);
        Ok(())
    }
}

/// The position that a [`Kind::Synced`] mark names.
pub(super) fn synced_mark(payload: &[u8]) -> u64 {
    if payload.len() == 8 { u64_at(payload, 0) } else { 0 }
}

/// How much is read at once: large enough that reading is not bound by calls, small beside a segment.
const WINDOW: usize = 256 << 10;
