//! A gateway's journal: what was recorded, what of it a killed process leaves behind, and what a loss of power.
//!
//! Records are written in groups that take a while, and synced at intervals. When a record is written and when it is
//! synced is known as soon as it is made, unless the disk is full or does not sync; then it is known when that ends.

use super::clock::{MICRO, MILLI, Nanos};
use crate::plan::DiskPlan;

/// Not yet known.
pub(super) const NEVER: Nanos = Nanos::MAX;

/// The records of one gateway, as far as recovery needs them.
pub(super) struct Journal {
    /// Whether records are kept: only of gateways that the plan lets die.
    kept: bool,
    sync_every: Nanos,
    pub write: Nanos,
    pub full: bool,
    pub sync_fails: bool,
    bytes: Vec<u8>,
    records: Vec<Record>,
    /// The position of the first kept record.
    first: u64,
    /// The position of the next record.
    next: u64,
    /// When the latest record is written.
    written: Nanos,
    /// The last two snapshots, the older first.
    snapshots: Vec<Snapshot>,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    end: usize,
    written: Nanos,
    synced: Nanos,
}

#[derive(Clone, Debug)]
struct Snapshot {
    /// The position of the first record that it does not hold.
    position: u64,
    /// From when on it is on the disk.
    from: Nanos,
    bytes: Vec<u8>,
}

/// What a dead process left behind.
pub(super) struct Left {
    /// The state to begin with; `None` is the beginning.
    pub snapshot: Option<Vec<u8>>,
    /// The records since, oldest first.
    pub tail: Vec<Vec<u8>>,
    /// The position of the record that would be next.
    pub next: u64,
}

impl Journal {
    pub fn new(disk: &DiskPlan, kept: bool) -> Self {
        Self {
            kept,
            sync_every: disk.sync_every_ms * MILLI,
            write: disk.write_us * MICRO,
            full: false,
            sync_fails: false,
            bytes: Vec::new(),
            records: Vec::new(),
            first: 0,
            next: 0,
            written: 0,
            snapshots: Vec::new(),
        }
    }

    /// Appends a record. Returns its position, and when what depends on it may be sent: once it is written, or synced,
    /// where every group is.
    pub fn append(&mut self, now: Nanos, record: &[u8]) -> (u64, Nanos) {
        let position = self.next;
        self.next += 1;
        // Those before it are written before it.
        let written = match self.full {
            true => NEVER,
            false => self.written.max(now + self.write),
        };
        if !self.full {
            self.written = written;
        }
        let synced = self.synced(written);
        if self.kept {
            self.bytes.extend_from_slice(record);
            self.records.push(Record { end: self.bytes.len(), written, synced });
        }
        (position, if self.sync_every == 0 { synced } else { written })
    }

    /// The disk has room again, or syncs again: what waited is written and synced from now on.
    pub fn mended(&mut self, now: Nanos) {
        let write = self.write;
        for record in self.records.iter_mut().rev().take_while(|record| record.synced == NEVER) {
            if record.written == NEVER && !self.full {
                record.written = now + write;
            }
            if record.written != NEVER && !self.sync_fails {
                record.synced = record.written.max(now) + self.sync_every + write;
            }
        }
        if !self.full {
            self.written = self.written.max(now + write);
        }
    }

    /// Remembers a snapshot of the state behind the latest record.
    pub fn snapshot(&mut self, now: Nanos, bytes: Vec<u8>) {
        let from = self.records.last().map_or(now, |record| record.synced.max(now));
        if from == NEVER {
            return;
        }
        self.snapshots.push(Snapshot { position: self.next, from, bytes });
        if self.snapshots.len() > 2 {
            self.snapshots.remove(0);
            self.forget_before(self.snapshots[0].position);
        }
    }

    pub fn is_kept(&self) -> bool {
        self.kept
    }

    /// The process dies: what was not written is gone, and without power what was not synced. What is left is all there
    /// is from now on.
    pub fn die(&mut self, now: Nanos, power: bool, torn: bool) -> Left {
        let safe = |record: &Record| {
            let since = if power { record.synced } else { record.written };
            since <= now
        };
        let mut left = self.records.iter().take_while(|record| safe(record)).count();
        if power && !torn {
            // Power may fail between two bytes: of what was written and not synced, a part may be there.
            left = left.max(self.records.iter().take_while(|r| r.written <= now).count() / 2);
            left = left.max(self.records.iter().take_while(|record| safe(record)).count());
        }
        let next = self.first + left as u64;
        self.snapshots.retain(|snapshot| snapshot.from <= now && snapshot.position <= next);
        self.records.truncate(left);
        self.bytes.truncate(self.records.last().map_or(0, |record| record.end));
        (self.next, self.written) = (next, now);
        for record in &mut self.records {
            record.synced = record.synced.min(now);
        }
        let snapshot = self.snapshots.last().cloned();
        let from = snapshot.as_ref().map_or(self.first, |snapshot| snapshot.position);
        let tail = (from..next).map(|position| self.record(position).to_vec()).collect();
        Left { snapshot: snapshot.map(|snapshot| snapshot.bytes), tail, next }
    }

    fn record(&self, position: u64) -> &[u8] {
        let index = (position - self.first) as usize;
        let start = if index == 0 { 0 } else { self.records[index - 1].end };
        &self.bytes[start..self.records[index].end]
    }

    fn synced(&self, written: Nanos) -> Nanos {
        match (written, self.sync_fails, self.sync_every) {
            (NEVER, _, _) | (_, true, _) => NEVER,
            (_, _, 0) => written,
            (_, _, every) => written.div_ceil(every) * every + self.write,
        }
    }

    fn forget_before(&mut self, position: u64) {
        let gone = (position - self.first) as usize;
        let bytes = if gone == 0 { 0 } else { self.records[gone - 1].end };
        self.records.drain(..gone);
        self.bytes.drain(..bytes);
        self.records.iter_mut().for_each(|record| record.end -= bytes);
        self.first = position;
    }
}
