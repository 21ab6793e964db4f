//! From a data directory to a plane that goes on where the last one stopped.

use std::path::Path;
use std::sync::Arc;

use control::journal::{Divergence, LOGIC_VERSION, Replay};
use control::plane::ControlPlane;

use crate::journal::{Journal, OpenError, Opened, Options, RecoveryReport};
use crate::seam::Disk;

/// What recovery found and made.
pub struct Recovered {
    /// The plane as of the last record.
    pub plane: ControlPlane,
    /// The same state as bytes, for the shadow to begin with.
    pub state: Vec<u8>,
    /// The position of the next record.
    pub next: u64,
    /// The position of the last snapshot on the disk, 0 where there is none.
    pub snapshot: u64,
    /// This life's number.
    pub incarnation: u32,
    /// The open journal; closing it flushes and syncs.
    pub journal: Journal,
    /// What had to be done.
    pub report: RecoveryReport,
    /// Whether the records were written by another version's decisions, and applied as facts.
    pub upgraded: bool,
}

/// Why a data directory cannot be gone on with. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A snapshot cannot be read by this version.
    #[error(
        "the snapshot at position {0} cannot be read by this version of pointsman: start the version that wrote it, or move the data directory away"
    )]
    Snapshot(u64),
    /// A record does not lead where it led.
    #[error(
        "record {position} does not replay: {divergence}. Keep the directory, run `pointsman journal verify` on it, and report this: it is a bug"
    )]
    Diverged {
        /// Which record.
        position: u64,
        /// How.
        divergence: Divergence,
    },
}

/// Opens `dir` and brings a plane to where the last life stopped.
///
/// # Errors
/// Where the directory is locked, corrupt, newer, or does not replay.
pub fn recover(
    disk: Arc<dyn Disk>,
    dir: &Path,
    options: &Options,
) -> Result<Recovered, RecoveryError> {
    let (journal, opened) = Journal::open(disk, dir, options)?;
    let upgraded = opened.logic_version != LOGIC_VERSION;
    let Opened { snapshot, tail, next, incarnation, seed, report, .. } = opened;
    let mut replay = match &snapshot {
        None => Replay::new(seed),
        Some(snapshot) => Replay::restore(&snapshot.payload)
            .map_err(|_| RecoveryError::Snapshot(snapshot.position))?,
    };
    for record in tail {
        let step = if record.logic_version == LOGIC_VERSION {
            replay.apply(&record.payload).map(|_| ())
        } else {
            replay.apply_facts(&record.payload)
        };
        let position = record.position;
        step.map_err(|divergence| RecoveryError::Diverged { position, divergence })?;
    }
    let snapshot = snapshot.map_or(0, |snapshot| snapshot.position);
    let state = replay.snapshot();
    let plane = replay.into_plane();
    Ok(Recovered { plane, state, next, snapshot, incarnation, journal, report, upgraded })
}
