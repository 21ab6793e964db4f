//! The shadow plane: replays in the background what the plane has done, compares, and makes the snapshots.
//!
//! So production proves its own determinism all the time, and no request waits for a snapshot. A divergence stops the
//! snapshots (the ring then fills and says so) and is reported; the plane itself goes on.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use control::journal::Replay;

use crate::journal::{Appender, End, Reader, Records};
use crate::seam::Disk;

/// How often the shadow looks for new records.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);
/// Records between two snapshots: a restart then replays at most about a second's worth of work (some 10 us a record).
const SNAPSHOT_EVERY: u64 = 100_000;
/// Records replayed before the thread looks whether it should stop.
const BATCH: u64 = 4_096;

/// A plane that follows another through its journal.
pub struct Shadow {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    appender: Appender,
    replay: Replay,
    /// Where the last batch ended in the journal.
    records: Option<Records>,
    position: u64,
    snapshot_at: u64,
    progress: Arc<Progress>,
}

/// How far the shadow is, for `/health` and the metrics.
#[derive(Debug, Default)]
pub struct Progress {
    position: AtomicU64,
    diverged: AtomicBool,
}

impl Progress {
    /// All records before this one were reproduced.
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// Whether a record led elsewhere than it had led.
    pub fn diverged(&self) -> bool {
        self.diverged.load(Ordering::Relaxed)
    }
}

impl Shadow {
    /// A shadow that begins with `state`, the plane's state before record `next`. The last snapshot on the disk is that of
    /// `snapshot_at`, 0 where there is none.
    ///
    /// # Panics
    /// Where `state` is not what [`Replay::snapshot`] made.
    #[must_use]
    pub fn new(
        disk: Arc<dyn Disk>,
        dir: &Path,
        appender: Appender,
        state: &[u8],
        next: u64,
        snapshot_at: u64,
    ) -> Self {
        let replay = Replay::restore(state).expect("a state that was just made restores");
        let progress = Arc::<Progress>::default();
        progress.position.store(next, Ordering::Relaxed);
        let dir = dir.to_owned();
        let (records, position) = (None, next);
        Self { disk, dir, appender, replay, records, position, snapshot_at, progress }
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Follows until `stop` is set, then makes a last snapshot of what was written. For a thread of its own.
    pub fn run(mut self, stop: &AtomicBool) {
        while let Some(pause) = self.round(stop.load(Ordering::Acquire)) {
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
    }

    /// The same as a task, which ends by being dropped; [`Shadow::round`] then makes the last snapshot.
    pub async fn run_as_task(shadow: Arc<Mutex<Self>>) {
        let round = || shadow.lock().unwrap_or_else(PoisonError::into_inner).round(false);
        while let Some(pause) = round() {
            if pause.is_zero() {
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Replays a batch, and makes a snapshot where one is due or, `stopping`, where there is anything new. Says how long
    /// to wait before the next round; `None` after the last.
    pub fn round(&mut self, stopping: bool) -> Option<Duration> {
        let followed = self.follow();
        if self.progress.diverged() {
            return None;
        }
        if let Err(error) = followed {
            tracing::warn!(%error, "the shadow plane cannot read the journal");
        }
        if self.position - self.snapshot_at >= SNAPSHOT_EVERY
            || self.holds_the_ring()
            || (stopping && self.position > self.snapshot_at)
        {
            self.snapshot();
        }
        let idle = self.position == self.appender.written();
        (!stopping).then_some(if idle { FOLLOW_EVERY } else { Duration::ZERO })
    }

    /// Whether segments were finished that only a newer snapshot lets go. Counting records alone would never make one
    /// where the whole ring holds fewer than [`SNAPSHOT_EVERY`], and the journal would stand still for ever.
    fn holds_the_ring(&self) -> bool {
        let finished = self.appender.finished();
        self.snapshot_at < finished && finished <= self.position
    }

    /// Replays a batch of what was written since.
    fn follow(&mut self) -> std::io::Result<()> {
        let written = self.appender.written();
        if self.position >= written {
            return Ok(());
        }
        let mut records = self.records(written.min(self.position + BATCH))?;
        for record in records.by_ref() {
            if let Err(divergence) = self.replay.apply(&record.payload) {
                let position = record.position;
                tracing::error!(position, "the plane is not deterministic: {divergence}");
                self.progress.diverged.store(true, Ordering::Relaxed);
                return Ok(());
            }
            while self.replay.plane_mut().poll_observation().is_some() {}
            self.position = record.position + 1;
        }
        if records.end() == Some(&End::Clean) {
            self.records = Some(records);
        }
        self.progress.position.store(self.position, Ordering::Relaxed);
        Ok(())
    }

    /// The records from here to `until`, going on where the last batch ended: to begin each batch at its segment's
    /// beginning would read a segment a hundred times over.
    fn records(&mut self, until: u64) -> std::io::Result<Records> {
        if let Some(mut records) = self.records.take() {
            records.go_on(until)?;
            return Ok(records);
        }
        let reader = Reader::open(Arc::clone(&self.disk), &self.dir)
            .map_err(|error| std::io::Error::other(error.to_string()))?;
        Ok(reader.records(self.position)?.until(until))
    }

    fn snapshot(&mut self) {
        match self.appender.write_snapshot(self.position, self.replay.snapshot().into()) {
            Ok(()) => self.snapshot_at = self.position,
            Err(error) => tracing::warn!(%error, "no snapshot could be written"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use std::time::Instant;

    use control::Wall;
    use control::journal::{LOGIC_VERSION, Recorder};
    use control::plane::{ControlPlane, Input};
    use control::{Instant as Moment, Machine};

    use super::*;
    use crate::driver::recover;
    use crate::journal::Options;
    use crate::seam::FaultyDisk;

    #[test]
    fn a_ring_of_fewer_records_than_a_snapshot_takes_goes_on_turning() {
        let disk = FaultyDisk::new();
        let mut taken = 0;
        // The second life begins with a full ring and a snapshot that is older than its segments.
        for _life in 0..2 {
            taken = live(&disk, taken);
            disk.kill();
        }
        assert!(taken < SNAPSHOT_EVERY, "or this shows nothing");
        let kept = disk.process().list(Path::new("/data/journal")).unwrap();
        assert!(kept.len() <= 2, "{kept:?}");
    }

    /// Appends a thousand records to a ring that holds some hundred. Returns the position behind the last.
    fn live(disk: &FaultyDisk, from: u64) -> u64 {
        let options = Options {
            segment_bytes: 4_096,
            segments_max: 2,
            logic_version: LOGIC_VERSION,
            ..Options::default()
        };
        let disk: Arc<dyn Disk> = Arc::new(disk.process());
        let dir = Path::new("/data");
        let recovered = recover(Arc::clone(&disk), dir, &options).unwrap();
        assert_eq!(recovered.next, from, "nothing that was written is lost");
        let mut plane: ControlPlane = recovered.plane;
        let appender = recovered.journal.appender();
        let (state, snapshot) = (&recovered.state, recovered.snapshot);
        let mut shadow = Shadow::new(disk, dir, appender.clone(), state, from, snapshot);
        let began = Instant::now();
        for count in 0..1_000 {
            let now = Moment::from_nanos(plane.now().as_nanos() + 1_000_000);
            let input = Input::WallTime(Wall::from_millis((from + count) * 1_000));
            let mut recorder = Recorder::default();
            recorder.begin(now, &input);
            plane.handle(now, input);
            let effects: Vec<_> = std::iter::from_fn(|| plane.poll_effect()).collect();
            let record = recorder.finish(&effects);
            while appender.append(record).is_err() {
                assert!(began.elapsed() < Duration::from_secs(20), "the ring stands still");
                let _ = shadow.round(false);
            }
        }
        let until = from + 1_000;
        while appender.written() < until {
            assert!(began.elapsed() < Duration::from_secs(20), "the ring stands still");
            let _ = shadow.round(false);
        }
        assert!(!shadow.progress().diverged());
        until
    }
}
