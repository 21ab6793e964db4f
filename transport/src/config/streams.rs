//! `streams`: answers that outlive their client's connection.

use std::time::Duration;

use super::reader::Section;
use super::server::seconds;
use super::units::ByteSize;
use crate::streams::Limits;

/// What resumable streams may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Streams {
    /// How long an answer goes on without a client.
    pub grace: Duration,
    /// How long it is kept after its end.
    pub kept: Duration,
    /// Streams kept at once, running and ended.
    pub streams_max: u32,
    /// Events kept of each.
    pub entries_max: u32,
    /// And bytes.
    pub bytes_max: ByteSize,
}

impl Streams {
    pub(super) fn read(section: &Section<'_>) -> Self {
        let limits = Limits::default();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Self {
            grace: section.between("grace", limits.grace, seconds(1)..=seconds(600)),
            kept: section.between("kept", limits.kept, seconds(0)..=seconds(3_600)),
            streams_max: section.between("streams_max", count(limits.streams_max), 0..=100_000),
            // Fewer than a reader is sent in the time between two of its signs would stall it.
            entries_max: section.between("entries_max", count(limits.entries_max), 256..=1_000_000),
            bytes_max: section.between(
                "bytes_max",
                ByteSize(limits.bytes_max as u64),
                ByteSize(64 << 10)..=ByteSize::mib(64),
            ),
        }
    }
}

impl From<&Streams> for Limits {
    fn from(streams: &Streams) -> Self {
        Self {
            grace: streams.grace,
            kept: streams.kept,
            streams_max: streams.streams_max as usize,
            entries_max: streams.entries_max as usize,
            bytes_max: usize::try_from(streams.bytes_max.0).unwrap_or(usize::MAX),
        }
    }
}
