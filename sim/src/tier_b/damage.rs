//! A bit that flips in a written journal, and what may come of it.
//!
//! The bit is one that recovery must read: in the segment of the newest snapshot's position or behind it. Whatever stands
//! behind the damage proves that the record had been whole, so recovery must refuse, name the position, and change
//! nothing. Only at the very end damage looks like a torn tail, and then just that record may be cut. The frames are
//! read by code of our own, so that a reader that skips a checksum is found out.
//!
//! To flip bits under a running process was rejected: who reads what when would be the shadow's pace, not the plan's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use transport::seam::{Disk, FaultyDisk};

use super::book::Broken;
use super::gateway::DIR;

/// Bytes of a segment before its first record, and of a record before its payload.
const SEGMENT_HEADER: usize = 40;
const RECORD_HEADER: usize = 16;

/// A damaged journal.
#[derive(Clone, Debug)]
pub(super) struct Damage {
    spot: Spot,
    /// What the directory held afterwards, without the lock's file.
    image: BTreeMap<PathBuf, Vec<u8>>,
}

/// Where the damage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    /// The position of the record that is damaged; of the next one where it is a mark or a segment's header.
    pub position: u64,
    /// Nothing stands behind it.
    pub is_last: bool,
}

impl Damage {
    /// Flips a bit so many bytes before the journal's end, going round in what recovery reads. `None` where there is
    /// nothing to damage, or the journal's end is torn already.
    pub fn inflict(disk: &FaultyDisk, from_end: u64, bit: u8) -> Option<Self> {
        let segments = must_read(&disk.image());
        let total: usize = segments.iter().map(|(_, bytes)| bytes.len()).sum();
        let mut left = usize::try_from(from_end).unwrap_or(0) % total.max(1);
        for (at, (path, bytes)) in segments.iter().enumerate().rev() {
            if left >= bytes.len() {
                left -= bytes.len();
                continue;
            }
            let (offset, is_newest) = (bytes.len() - 1 - left, at + 1 == segments.len());
            let spot = spot(bytes, first_of(path)?, offset, is_newest)?;
            disk.flip(path, offset as u64, 1 << (bit % 8));
            return Some(Self { spot, image: kept(disk) });
        }
        None
    }

    pub fn spot(&self) -> Spot {
        self.spot
    }

    /// The process refused to start on it.
    pub fn refused(&self, disk: &FaultyDisk, why: &str) -> Result<(), Broken> {
        let Spot { position, .. } = self.spot;
        if !why.contains(&format!("position {position} ")) {
            return Err((10, format!("record {position} is damaged, and the refusal says: {why}")));
        }
        if kept(disk) != self.image {
            return Err((
                10,
                format!("refusing a damaged record {position} changed the directory"),
            ));
        }
        Ok(())
    }
}

impl Spot {
    /// The process started on it, and goes on at `next`; `lost` where power was lost besides.
    pub fn accepted(&self, next: u64, lost: bool) -> Result<(), Broken> {
        let Self { position, is_last } = *self;
        if !is_last {
            return Err((10, format!("record {position} is damaged, and recovery went on")));
        }
        if next == position || (lost && next < position) {
            return Ok(());
        }
        Err((
            10,
            format!("the last record, {position}, is damaged, and recovery goes on at {next}"),
        ))
    }
}

/// What an operator does with a directory that cannot be recovered.
pub(super) fn move_aside(disk: &FaultyDisk) {
    let process = disk.process();
    for path in disk.image().into_keys() {
        if let Ok(inside) = path.strip_prefix(DIR) {
            let aside = Path::new("/aside").join(inside);
            let _ = process.rename(&path, &aside);
            // Or the next loss of power may bring it back.
            for changed in [&path, &aside].into_iter().filter_map(|path| path.parent()) {
                let _ = process.sync_dir(changed);
            }
        }
    }
}

/// The segments that recovery has to read, in order.
fn must_read(image: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(DIR);
    let inside = |sub: &'static str, suffix: &'static str| {
        image.iter().filter(move |(path, _)| {
            path.parent() == Some(&dir.join(sub)) && path.to_string_lossy().ends_with(suffix)
        })
    };
    let snapshot = inside("snapshots", ".snap").filter_map(|(path, _)| first_of(path)).max();
    let segments: Vec<_> = inside("journal", ".seg").collect();
    let behind = |at: usize| segments.get(at + 1).and_then(|(path, _)| first_of(path));
    let is_needed = |at: usize| behind(at).is_none_or(|next| next > snapshot.unwrap_or(0));
    let needed = segments.iter().enumerate().filter(|(at, _)| is_needed(*at));
    needed.map(|(_, (path, bytes))| ((*path).clone(), (*bytes).clone())).collect()
}

/// Files are named after a position.
fn first_of(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.parse().ok()
}

/// What stands at `offset` of a segment; `None` where the segment does not end with a whole record.
fn spot(bytes: &[u8], first: u64, offset: usize, is_newest: bool) -> Option<Spot> {
    let (mut at, mut end, mut position) = (0, SEGMENT_HEADER, first);
    let mut found = None;
    loop {
        let here = at <= offset && offset < end;
        if here {
            found = Some(Spot { position, is_last: is_newest && end == bytes.len() });
        }
        if end == bytes.len() {
            return found;
        }
        let header = bytes.get(end..end + RECORD_HEADER)?;
        let length = u32::from_le_bytes([header[0], header[1], header[2], 0]) as usize;
        position = u64::from_le_bytes(header[8..].try_into().ok()?);
        (at, end) = (end, end + RECORD_HEADER + length);
        if end > bytes.len() {
            return None;
        }
    }
}

fn kept(disk: &FaultyDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut image = disk.image();
    image.remove(&Path::new(DIR).join("LOCK"));
    image
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use std::sync::Arc;

    use control::journal::{LOGIC_VERSION, Recorder};
    use control::plane::Input;
    use control::{Instant, Wall};
    use transport::driver::{RecoveryError, recover};
    use transport::journal::{OpenError, Options};
    use transport::seam::disk::PowerLoss;

    use super::*;

    #[test]
    fn damage_before_sound_records_is_refused_with_its_position_and_every_other_end_breaks_the_tenth()
     {
        let disk = written();
        let damage = Damage::inflict(&disk, 60, 3).unwrap();
        let Spot { position, is_last } = damage.spot();
        assert!(!is_last && position > 0, "{damage:?}");
        let why = recovered(&disk).unwrap_err().to_string();
        assert_eq!(damage.refused(&disk, &why), Ok(()));
        let broken = |judged: Result<(), Broken>| judged.unwrap_err().0;
        assert_eq!(broken(damage.refused(&disk, "something is wrong")), 10);
        assert_eq!(broken(damage.spot().accepted(position, false)), 10);
        disk.flip(&Path::new(DIR).join("FORMAT"), 3, 1);
        assert_eq!(broken(damage.refused(&disk, &why)), 10, "it touched what it refused");
    }

    #[test]
    fn damage_at_the_very_end_may_cut_that_record_and_no_other() {
        let disk = written();
        let damage = Damage::inflict(&disk, 0, 3).unwrap();
        let spot @ Spot { position, is_last: true } = damage.spot() else { panic!("{damage:?}") };
        assert_eq!(recovered(&disk).unwrap(), position);
        assert_eq!(spot.accepted(position, false), Ok(()));
        for next in [position - 1, position + 1] {
            assert_eq!(spot.accepted(next, false).unwrap_err().0, 10, "{next}");
        }
        assert_eq!(spot.accepted(position - 1, true), Ok(()), "the power took it");
    }

    #[test]
    fn every_bit_of_a_journal_is_refused_or_cut() {
        let bits = written().image().into_values().map(|bytes| bytes.len() as u64).sum();
        for from_end in (0..bits).step_by(7) {
            let disk = written();
            let Some(damage) = Damage::inflict(&disk, from_end, (from_end % 8) as u8) else {
                panic!("{from_end}: nothing was damaged");
            };
            let judged = match recovered(&disk) {
                Ok(next) => damage.spot().accepted(next, false),
                Err(RecoveryError::Open(error @ OpenError::Damaged { .. })) => {
                    damage.refused(&disk, &error.to_string())
                }
                Err(error) => panic!("{from_end}: {error}"),
            };
            assert_eq!(judged, Ok(()), "{from_end}: {:?}", damage.spot());
        }
    }

    #[test]
    fn a_directory_that_was_moved_aside_begins_anew() {
        let disk = written();
        Damage::inflict(&disk, 60, 3).unwrap();
        move_aside(&disk);
        disk.power_loss(PowerLoss { seed: 1, reorder: true });
        assert_eq!(recovered(&disk).unwrap(), 0);
    }

    /// A journal of some records, as a kill leaves it.
    fn written() -> FaultyDisk {
        let disk = FaultyDisk::new();
        let options = options();
        let recovered = recover(Arc::new(disk.process()), Path::new(DIR), &options).unwrap();
        let appender = recovered.journal.appender();
        for count in 0..6_u64 {
            let now = Instant::from_nanos(count * 1_000_000);
            let input = Input::WallTime(Wall::from_millis(count));
            let mut plane = Recorder::default();
            plane.begin(now, &input);
            appender.append(plane.finish(&[])).unwrap();
        }
        recovered.journal.close().unwrap();
        disk.kill();
        disk
    }

    /// The position that recovery goes on at. What the records decide is not asked: they are none of a plane's.
    fn recovered(disk: &FaultyDisk) -> Result<u64, RecoveryError> {
        use transport::journal::Journal;
        let disk = Arc::new(disk.process());
        let (journal, opened) = Journal::open(disk, Path::new(DIR), &options())?;
        drop(journal);
        Ok(opened.next)
    }

    fn options() -> Options {
        Options { segment_bytes: 64 << 10, logic_version: LOGIC_VERSION, ..Options::default() }
    }
}
