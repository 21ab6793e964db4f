//! How segments look, byte by byte. All numbers are little-endian.
//!
//! ```text
//! segment  magic [8] | format u32 | logic u32 | incarnation u32 | seed u64 | first position u64 | crc u32
//! record   kind u8 << 24 | length u24 | crc u32 | position u64 | payload
//! ```
//!
//! The checksum covers everything but itself. Marks are records of the journal's own: they take no position, they carry
//! that of the next record.

use std::ops::Range;

/// The largest payload: what three bytes can count.
pub const RECORD_BYTES_MAX: usize = (1 << 24) - 1;

/// Bytes before a payload.
pub(super) const RECORD_HEADER: usize = 16;
/// Bytes of a segment before its first record.
pub(super) const SEGMENT_HEADER: usize = 40;
/// Bytes of a [`Kind::Synced`] mark.
pub(super) const SYNCED_BYTES: usize = RECORD_HEADER + 8;

const MAGIC: &[u8; 8] = b"PTSMJRN\n";

/// What a record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Somebody's payload.
    Payload = 1,
    /// A process opened the journal here; its incarnation as u32.
    Opened = 2,
    /// All positions below this u64 were synced before the mark was written.
    Synced = 3,
}

impl Kind {
    fn of(tag: u32) -> Option<Self> {
        [Self::Payload, Self::Opened, Self::Synced].into_iter().find(|kind| *kind as u32 == tag)
    }
}

/// The first bytes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub format: u32,
    pub logic: u32,
    /// Of the process that began the segment.
    pub incarnation: u32,
    pub seed: u64,
    pub first: u64,
}

impl SegmentHeader {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SEGMENT_HEADER);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.format.to_le_bytes());
        bytes.extend_from_slice(&self.logic.to_le_bytes());
        bytes.extend_from_slice(&self.incarnation.to_le_bytes());
        bytes.extend_from_slice(&self.seed.to_le_bytes());
        bytes.extend_from_slice(&self.first.to_le_bytes());
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` where the bytes are not a whole, sound header. (Its format may still be newer than ours.)
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let sound = bytes.len() >= SEGMENT_HEADER
            && bytes.starts_with(MAGIC)
            && crc32fast::hash(&bytes[..SEGMENT_HEADER - 4]) == u32_at(bytes, SEGMENT_HEADER - 4);
        sound.then(|| Self {
            format: u32_at(bytes, 8),
            logic: u32_at(bytes, 12),
            incarnation: u32_at(bytes, 16),
            seed: u64_at(bytes, 20),
            first: u64_at(bytes, 28),
        })
    }
}

/// The first bytes of a record, not yet checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordHeader {
    word: u32,
    crc: u32,
    pub position: u64,
}

impl RecordHeader {
    /// From at least [`RECORD_HEADER`] bytes.
    pub fn decode(bytes: &[u8]) -> Self {
        Self { word: u32_at(bytes, 0), crc: u32_at(bytes, 4), position: u64_at(bytes, 8) }
    }

    pub fn kind(&self) -> Option<Kind> {
        Kind::of(self.word >> 24)
    }

    /// Header and payload together.
    pub fn total(&self) -> usize {
        RECORD_HEADER + (self.word as usize & RECORD_BYTES_MAX)
    }

    pub fn payload(&self) -> Range<usize> {
        RECORD_HEADER..self.total()
    }

    pub fn matches(&self, payload: &[u8]) -> bool {
        self.crc == checksum(self.word, self.position, payload)
    }
}

/// Appends a record to `into`. `payload` is at most [`RECORD_BYTES_MAX`] long.
pub(super) fn encode(into: &mut Vec<u8>, kind: Kind, position: u64, payload: &[u8]) {
    debug_assert!(payload.len() <= RECORD_BYTES_MAX, "the caller checked the length");
    let word = (kind as u32) << 24 | payload.len() as u32;
    into.extend_from_slice(&word.to_le_bytes());
    into.extend_from_slice(&checksum(word, position, payload).to_le_bytes());
    into.extend_from_slice(&position.to_le_bytes());
    into.extend_from_slice(payload);
}

fn checksum(word: u32, position: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&word.to_le_bytes());
    hasher.update(&position.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// The number at `at`, which the caller knows to lie inside.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

/// The number at `at`, which the caller knows to lie inside.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}
