//! The plane's state at a position, whole or not at all.
//!
//! ```text
//! magic [8] | format u32 | logic u32 | incarnation u32 | position u64 | length u64 | crc u32 | payload
//! ```

use std::fmt;
use std::io;

use bytes::Bytes;

use super::FORMAT_VERSION;
use super::directory::Directory;
use super::frame::{u32_at, u64_at};
use crate::seam::disk;

/// The plane's state before the record at `position`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The first record that is not in it.
    pub position: u64,
    /// The incarnation that wrote it.
    pub incarnation: u32,
    /// The version of the plane's decisions that wrote it.
    pub logic_version: u32,
    /// The state.
    pub payload: Bytes,
}

/// A snapshot that is there and cannot be used.
pub(super) struct Rejected {
    pub position: u64,
    pub why: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the snapshot of position {} {}", self.position, self.why)
    }
}

const MAGIC: &[u8; 8] = b"PTSMSNP\n";
const HEADER: usize = 40;

/// Writes a snapshot so that it is durable when this returns, and never seen by halves.
pub(super) fn write(directory: &Directory, snapshot: &Snapshot) -> io::Result<()> {
    let path = directory.snapshot(snapshot.position);
    disk::replace(directory.disk.as_ref(), &path, &encode(snapshot))
}

/// Reads the snapshot of `position`; a reason where it is not sound.
pub(super) fn read(directory: &Directory, position: u64) -> Result<Snapshot, Rejected> {
    let rejected = |why: String| Rejected { position, why };
    let bytes = disk::read_all(directory.disk.as_ref(), &directory.snapshot(position))
        .map_err(|error| rejected(format!("cannot be read: {error}")))?;
    decode(&bytes, position).map_err(|why| rejected(why.to_owned()))
}

/// The newest sound snapshot at or before `latest`, and the unsound ones passed over on the way.
pub(super) fn newest(
    directory: &Directory,
    latest: u64,
) -> io::Result<(Option<Snapshot>, Vec<Rejected>)> {
    let mut rejected = Vec::new();
    for position in directory.list_snapshots()?.into_iter().rev() {
        if position > latest {
            continue;
        }
        match read(directory, position) {
            Ok(snapshot) => return Ok((Some(snapshot), rejected)),
            Err(reason) => rejected.push(reason),
        }
    }
    Ok((None, rejected))
}

fn encode(snapshot: &Snapshot) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + snapshot.payload.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&snapshot.logic_version.to_le_bytes());
    bytes.extend_from_slice(&snapshot.incarnation.to_le_bytes());
    bytes.extend_from_slice(&snapshot.position.to_le_bytes());
    bytes.extend_from_slice(&(snapshot.payload.len() as u64).to_le_bytes());
    let crc = checksum(&bytes, &snapshot.payload);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&snapshot.payload);
    bytes
}

fn decode(bytes: &[u8], position: u64) -> Result<Snapshot, &'static str> {
    if bytes.len() < HEADER || !bytes.starts_with(MAGIC) {
        return Err("is not a snapshot");
    }
    if u64_at(bytes, 28) != (bytes.len() - HEADER) as u64 {
        return Err("is cut short");
    }
    if checksum(&bytes[..HEADER - 4], &bytes[HEADER..]) != u32_at(bytes, HEADER - 4) {
        return Err("does not match its checksum");
    }
    if u32_at(bytes, 8) > FORMAT_VERSION {
        return Err("was written by a newer program");
    }
    if u64_at(bytes, 20) != position {
        return Err("is named after another position");
    }
    Ok(Snapshot {
        position,
        incarnation: u32_at(bytes, 16),
        logic_version: u32_at(bytes, 12),
        payload: Bytes::copy_from_slice(&bytes[HEADER..]),
    })
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}
