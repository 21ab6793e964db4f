//! The thread beside the writer: it syncs by the interval and lets go of what snapshots have made superfluous.

use std::io;
use std::sync::{Arc, MutexGuard};
use std::thread;
use std::time::Duration;

use super::Options;
use super::appender::{Chores, Shared, sync_interval};
use super::error::JournalError;
use super::snapshot;

pub(super) struct Keeper {
    shared: Arc<Shared>,
    interval: Option<Duration>,
}

impl Keeper {
    pub fn new(shared: Arc<Shared>, options: &Options) -> Self {
        Self { shared, interval: sync_interval(options.fsync) }
    }

    pub fn run(self) {
        let _alarm = Alarm(Arc::clone(&self.shared));
        let mut dirty = false;
        loop {
            let chores =
                self.shared.wait_chore(self.timeout(dirty), |chores| self.is_idle(chores, dirty));
            if !self.attend(chores, &mut dirty) {
                return;
            }
        }
    }

    /// Nothing to sync: sleep until there is. Something to sync: let the interval pass.
    pub fn timeout(&self, dirty: bool) -> Option<Duration> {
        self.interval.filter(|_| dirty)
    }

    pub fn is_idle(&self, chores: &Chores, dirty: bool) -> bool {
        let wakes_on_dirty = self.interval.is_some() && !dirty;
        !(chores.closing || chores.reclaim || chores.pressed || (wakes_on_dirty && chores.dirty))
    }

    /// Does what there is to do; false when that was the last. `dirty` says that a sync is due when the interval is over.
    pub fn attend(&self, mut chores: MutexGuard<'_, Chores>, dirty: &mut bool) -> bool {
        if chores.closing {
            // The writer syncs at the end.
            return false;
        }
        let (reclaim, pressed) = (chores.reclaim, chores.pressed);
        (chores.reclaim, chores.pressed) = (false, false);
        if reclaim || pressed {
            drop(chores);
            self.reclaim(pressed);
        } else if *dirty {
            *dirty = false;
            if let Err(error) = self.sync(chores) {
                self.shared.fail(error);
                return false;
            }
        } else {
            *dirty = chores.dirty;
        }
        true
    }

    fn sync(&self, mut chores: MutexGuard<'_, Chores>) -> Result<(), JournalError> {
        // In this order: what is written by now lies in this segment, or in one that was synced when it was finished.
        chores.dirty = false;
        let written = self.shared.written();
        let syncer = Arc::clone(&chores.syncer);
        drop(chores);
        self.shared.sync(syncer.as_ref(), &self.shared.directory.journal(), written)
    }

    /// Keeps the last two snapshots and the segments behind the older of them. With the ring full it keeps one: nothing
    /// newer than a durable snapshot is let go, but the fallback is.
    fn reclaim(&self, pressed: bool) {
        let kept = if pressed { 1 } else { 2 };
        match self.let_go(kept) {
            Ok(true) => self.shared.nudge(),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "cannot remove old journal segments"),
        }
    }

    fn let_go(&self, kept: usize) -> io::Result<bool> {
        let directory = &self.shared.directory;
        let snapshots = directory.list_snapshots()?;
        let Some(oldest) = snapshots.len().checked_sub(kept) else { return Ok(false) };
        let boundary = snapshots[oldest];
        // Whoever is the only way back has to be sound.
        if kept == 1 && snapshot::read(directory, boundary).is_err() {
            return Ok(false);
        }
        for position in &snapshots[..oldest] {
            directory.disk.remove(&directory.snapshot(*position))?;
        }
        for set_aside in directory.list_set_aside()?.into_iter().filter(|at| *at < boundary) {
            directory.disk.remove(&directory.set_aside(set_aside))?;
        }
        let mut any = false;
        loop {
            let mut ring = self.shared.ring();
            if ring.len() < 2 || ring[1] > boundary {
                return Ok(any);
            }
            // From the oldest on: what a crash leaves is without a gap.
            let first = ring[0];
            ring.remove(0);
            drop(ring);
            match directory.disk.remove(&directory.segment(first)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    self.shared.ring().insert(0, first);
                    return Err(error);
                }
                _ => any = true,
            }
        }
    }
}

/// Says so when whoever holds it breaks; without it nothing would be written or synced any more, and nobody would know.
pub(super) struct Alarm(pub Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.fail(JournalError::Broken);
        }
    }
}
