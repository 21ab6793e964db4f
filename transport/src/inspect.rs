//! Looking into a data directory: what the plane was, why it did what it did, whether its sums hold.
//!
//! Everything here reads and nothing writes, so it works beside a running server (whose admin socket calls the same
//! functions) and on a stopped directory alike.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use control::Wall;
use control::id::RequestId;
use control::journal::{Divergence, Explanation, LOGIC_VERSION, Replay, decode};
use control::plane::{ControlPlane, Durable, Input};
use control::quota::{Audit, Quota};

use crate::journal::{End, OpenError, Reader};
use crate::seam::RealDisk;

/// A data directory that is looked into.
pub struct Inspection {
    reader: Reader,
}

/// Why an inspection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The directory cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The directory cannot be read.
    #[error("cannot read the data directory: {0}")]
    Read(#[from] io::Error),
    /// A snapshot was made by another version of the decisions.
    #[error(
        "the snapshot at position {0} was made by another version of pointsman: look into this directory with that one"
    )]
    OtherLogic(u64),
    /// The ring no longer holds what is asked for.
    #[error("{0}")]
    NotRetained(String),
    /// A record does not follow from those before it.
    #[error("record {position}: {divergence}")]
    Diverged {
        /// Which record.
        position: u64,
        /// How.
        divergence: Divergence,
    },
}

/// What `journal verify` found.
#[derive(Debug)]
pub struct Verified {
    /// The first position that was replayed.
    pub from: u64,
    /// Records whose effects were reproduced.
    pub reproduced: u64,
    /// Records of another version's decisions, applied as facts.
    pub applied: u64,
    /// Where it begins: the plane's first step, or a snapshot.
    pub from_snapshot: bool,
    /// How the journal ends.
    pub end: End,
    /// The first record that does not follow, or cannot be read.
    pub failure: Option<(u64, String)>,
    /// The plane at the end.
    pub plane: ControlPlane,
}

impl Verified {
    /// Whether every record was reproduced up to a clean end, or to one torn by a crash or by a writer at work.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.failure.is_none() && matches!(self.end, End::Clean | End::Torn { .. })
    }
}

/// What `quota audit` found.
#[derive(Debug)]
pub struct Audited {
    /// Every balance of the plane, with what does not hold.
    pub audit: Audit,
    /// Entries of the ledger that were summed up again.
    pub entries: u64,
    /// Where the sums of the entries and the plane's own differ.
    pub differences: Vec<String>,
}

impl Audited {
    /// Whether the algebra holds and the entries sum up to the balances.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.audit.violations.is_empty() && self.differences.is_empty()
    }
}

impl Inspection {
    /// Looks into `dir`.
    ///
    /// # Errors
    /// Where it is no data directory of this version.
    pub fn open(dir: &Path) -> Result<Self, InspectError> {
        Ok(Self { reader: Reader::open(Arc::new(RealDisk), dir)? })
    }

    /// Where the longest possible replay begins: the plane's first step, or the oldest snapshot that is retained.
    fn begin(&self, newest: bool) -> Result<(Replay, u64, bool), InspectError> {
        let retained = self.reader.retained_from()?.unwrap_or(0);
        if retained == 0 && !newest {
            return Ok((Replay::new(self.reader.format().seed), 0, false));
        }
        let found =
            if newest { self.reader.snapshot_at(u64::MAX)? } else { self.oldest(retained)? };
        match found.0 {
            None if retained == 0 => Ok((Replay::new(self.reader.format().seed), 0, false)),
            None => Err(InspectError::NotRetained(format!(
                "records are retained from position {retained}, and no sound snapshot stands before them"
            ))),
            Some(snapshot) => {
                let replay = Replay::restore(&snapshot.payload)
                    .map_err(|_| InspectError::OtherLogic(snapshot.position))?;
                Ok((replay, snapshot.position, true))
            }
        }
    }

    /// The oldest snapshot from which all records are still there.
    fn oldest(&self, retained: u64) -> io::Result<(Option<crate::journal::Snapshot>, Vec<String>)> {
        let mut best = self.reader.snapshot_at(u64::MAX)?;
        while let Some(snapshot) = &best.0 {
            let Some(before) = snapshot.position.checked_sub(1) else { break };
            let older = self.reader.snapshot_at(before)?;
            match &older.0 {
                Some(found) if found.position >= retained => best = older,
                _ => break,
            }
        }
        Ok(best)
    }

    /// Replays all that is retained and compares the effects, record by record. `visit` sees the plane after each.
    ///
    /// # Errors
    /// Where the replay cannot begin.
    pub fn replay(
        &self,
        mut visit: impl FnMut(&mut ControlPlane, u64),
    ) -> Result<Verified, InspectError> {
        let (replay, from, from_snapshot) = self.begin(false)?;
        self.run(replay, from, from_snapshot, &mut visit)
    }

    fn run(
        &self,
        mut replay: Replay,
        from: u64,
        from_snapshot: bool,
        visit: &mut dyn FnMut(&mut ControlPlane, u64),
    ) -> Result<Verified, InspectError> {
        let (mut reproduced, mut applied, mut failure) = (0, 0, None);
        let mut records = self.reader.records(from)?;
        for record in &mut records {
            let step = if record.logic_version == LOGIC_VERSION {
                reproduced += 1;
                replay.apply(&record.payload).map(|_| ())
            } else {
                applied += 1;
                replay.apply_facts(&record.payload)
            };
            if let Err(divergence) = step {
                reproduced -= u64::from(record.logic_version == LOGIC_VERSION);
                failure = Some((record.position, divergence.to_string()));
                break;
            }
            visit(replay.plane_mut(), record.position);
        }
        let end = records.end().cloned().unwrap_or(End::Clean);
        if let (None, End::Corrupt { position, .. }) = (&failure, &end) {
            failure = Some((*position, end.to_string()));
        }
        let plane = replay.into_plane();
        Ok(Verified { from, reproduced, applied, from_snapshot, end, failure, plane })
    }

    /// Why a request went where it went.
    ///
    /// # Errors
    /// Where the journal does not hold the request, saying what it does hold.
    pub fn explain(&self, request: RequestId) -> Result<Explained, InspectError> {
        let mut explanation = Explanation::of(request);
        let mut seen: Option<(RequestId, RequestId)> = None;
        let mut wall = Vec::new();
        let verified = self.replay(|plane, _| {
            while let Some(observation) = plane.poll_observation() {
                if let control::plane::Observation::Arrived { request, .. } = &observation {
                    seen = Some(seen.map_or((*request, *request), |(first, _)| (first, *request)));
                }
                let before = explanation.lines().len();
                explanation.observe(plane, &observation);
                wall.extend((before..explanation.lines().len()).map(|_| plane.wall()));
            }
        })?;
        if explanation.lines().is_empty() {
            let retained = seen.map_or("no request at all".into(), |(first, last)| {
                format!("the requests from {first} to {last}")
            });
            return Err(InspectError::NotRetained(format!(
                "{request} is not in the journal, which holds {retained}"
            )));
        }
        if let Some((position, what)) = verified.failure {
            tracing::warn!(position, "the journal does not replay to its end: {what}");
        }
        Ok(Explained { explanation, wall })
    }

    /// The plane at the journal's end, from the newest snapshot on.
    ///
    /// # Errors
    /// Where it cannot be restored.
    pub fn plane(&self) -> Result<ControlPlane, InspectError> {
        let (replay, from, from_snapshot) = self.begin(true)?;
        let verified = self.run(replay, from, from_snapshot, &mut |_, _| {})?;
        Ok(verified.plane)
    }

    /// Sums the ledger's entries up again, apart from the plane, and compares.
    ///
    /// # Errors
    /// Where the replay cannot be made.
    pub fn audit(&self) -> Result<Audited, InspectError> {
        let verified = self.replay(|_, _| {})?;
        let (mut ledger, mut entries) = (self.ledger_at_begin()?, 0);
        for record in self.reader.records(verified.from)? {
            let Ok(record) = decode(&record.payload) else { break };
            if let Input::Restarted { wall, .. } | Input::WallTime(wall) = record.input {
                ledger.wall(record.now, wall);
            }
            for durable in &record.durables {
                if let Durable::Entry(entry) = durable {
                    ledger.apply_entry(entry);
                    entries += 1;
                }
            }
        }
        let (audit, again) = (verified.plane.audit(), ledger.audit().unwrap_or_default());
        let mut differences = compare(&audit, &again);
        if let Some((position, what)) = verified.failure {
            differences
                .push(format!("the journal does not replay beyond record {position}: {what}"));
        }
        Ok(Audited { audit, entries, differences })
    }

    fn ledger_at_begin(&self) -> Result<Quota, InspectError> {
        let (replay, _, _) = self.begin(false)?;
        Ok(replay.plane().ledger().clone())
    }
}

/// An explanation with the wall time of each line.
#[derive(Debug)]
pub struct Explained {
    explanation: Explanation,
    wall: Vec<Wall>,
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.explanation.lines();
        let Some(first) = lines.first() else { return Ok(()) };
        if let Some(wall) = self.wall.first() {
            writeln!(f, "at {}", crate::wall::rfc3339(*wall))?;
        }
        for line in lines {
            let since = line.at.since(first.at);
            writeln!(f, "{:>9.3} s  {}", since.as_secs_f64(), line.text)?;
        }
        if !self.explanation.is_over() {
            writeln!(f, "             under way")?;
        }
        Ok(())
    }
}

fn compare(plane: &Audit, entries: &Audit) -> Vec<String> {
    let mut differences = Vec::new();
    for (key, sums) in &plane.balances {
        match entries.balances.iter().find(|(again, _)| again == key) {
            Some((_, again)) if again == sums => {}
            Some((_, again)) => differences
                .push(format!("{key:?}: the plane says {sums:?}, its entries sum up to {again:?}")),
            None => differences.push(format!("{key:?}: no entry accounts for it")),
        }
    }
    if plane.history != entries.history || plane.retired != entries.retired {
        differences.push("closed windows: the plane and its entries differ".to_owned());
    }
    differences
}
