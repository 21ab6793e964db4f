//! A disk in memory that does what disks do on their worst days.
//!
//! Two kinds of death are told apart. A **kill** ends a process: everything it wrote stays, because the kernel has it.
//! A **loss of power** ends the machine: of what was not synced, any part may be gone. The model is harsher than most
//! file systems: unsynced bytes survive as a random prefix or, on request, in random sectors with zeros between them,
//! and each name changed since its directory was synced is as it was before or as it is now, by chance.
//!
//! Handles belong to a process. [`FaultyDisk::process`] starts a new one; after a kill the old one's handles fail for
//! ever, so that a thread of a "dead" process cannot go on writing behind its successor's back.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control::rng::Rng;

use super::{AppendFile, Disk, DiskLock, LockError, ReadFile, Syncer};

/// A simulated disk, seen by one process. Clones are the same process.
#[derive(Clone)]
pub struct FaultyDisk {
    state: Arc<Mutex<State>>,
    process: u64,
}

/// How power is lost.
#[derive(Clone, Copy, Debug)]
pub struct PowerLoss {
    /// Decides what survives of what was not synced.
    pub seed: u64,
    /// Whether sectors written later may survive where earlier ones do not.
    pub reorder: bool,
}

impl Default for FaultyDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl FaultyDisk {
    /// An empty disk without faults, and its first process.
    #[must_use]
    pub fn new() -> Self {
        Self { state: Arc::default(), process: 0 }
    }

    /// The same disk as seen by a process started now.
    #[must_use]
    pub fn process(&self) -> Self {
        Self { state: Arc::clone(&self.state), process: self.state().process }
    }

    /// Kills every process. What they wrote stays; their locks are freed.
    pub fn kill(&self) {
        self.state().kill();
    }

    /// Kills every process after `bytes` more appended bytes, in the middle of a write if it comes so.
    pub fn kill_after(&self, bytes: u64) {
        self.state().kill_after = Some(bytes);
    }

    /// Switches the machine off and on.
    pub fn power_loss(&self, how: PowerLoss) {
        self.state().power_loss(how);
    }

    /// Limits the bytes that all files may hold together; `None` for no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Fails the next `count` appends with an I/O error, each after it has written half of its bytes.
    pub fn fail_appends(&self, count: u32) {
        self.state().appends_failing = count;
    }

    /// Fails the next `count` syncs of files.
    pub fn fail_syncs(&self, count: u32) {
        self.state().syncs_failing = count;
    }

    /// Makes each append take at most `bytes`; `None` for no limit.
    pub fn set_append_max(&self, bytes: Option<usize>) {
        self.state().append_max = bytes;
    }

    /// Makes each write and sync take so long, for whoever sleeps by [`Disk::latency`].
    pub fn set_latency(&self, latency: Duration) {
        self.state().latency = latency;
    }

    /// Inverts the bits of `mask` in one byte of a file, on the disk itself. False where there is no such byte.
    pub fn flip(&self, path: &Path, offset: u64, mask: u8) -> bool {
        self.alter(path, |bytes| {
            let byte = usize::try_from(offset).ok().and_then(|at| bytes.get_mut(at));
            byte.map(|byte| *byte ^= mask).is_some()
        })
    }

    /// Cuts a file to `size` bytes on the disk itself. False where it is shorter, or missing.
    pub fn cut(&self, path: &Path, size: u64) -> bool {
        self.alter(path, |bytes| {
            let fits = usize::try_from(size).ok().filter(|size| *size <= bytes.len());
            fits.map(|size| bytes.truncate(size)).is_some()
        })
    }

    /// Every file and what it holds.
    #[must_use]
    pub fn image(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.state();
        let held = |id| state.inodes.get(id).map(|inode| inode.bytes.clone()).unwrap_or_default();
        state.names.iter().map(|(path, id)| (path.clone(), held(id))).collect()
    }

    fn alter(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
        let mut state = self.state();
        let Some(inode) = state.named(path) else { return false };
        let changed = change(&mut inode.bytes);
        inode.same = 0;
        inode.sync();
        changed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked elsewhere leaves the disk as it is.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.process == self.process {
            Ok(state)
        } else {
            Err(io::Error::new(io::ErrorKind::BrokenPipe, "the simulated process is dead"))
        }
    }
}

impl Disk for FaultyDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.live()?;
        state.dirs.extend(dir.ancestors().map(Path::to_path_buf));
        Ok(())
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        let mut state = self.live()?;
        if !path.parent().is_some_and(|dir| state.dirs.contains(dir)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let id = state.open_or_create(path);
        Ok(Box::new(Handle { disk: self.clone(), id }))
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        let id = *self.live()?.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Handle { disk: self.clone(), id }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.live()?;
        let inside = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.live()?;
        let id = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_path_buf(), id);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.live()?.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.live()?.sync_dir(dir);
        Ok(())
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn DiskLock>, LockError> {
        let mut state = self.live().map_err(LockError::Io)?;
        let id = state.open_or_create(path);
        let text = state.inodes.get(&id).map(|inode| inode.bytes.clone()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        if !state.locks.insert(path.to_path_buf()) {
            return Err(LockError::Held(text));
        }
        let handle = Handle { disk: self.clone(), id };
        Ok(Box::new(Locked { handle, path: path.to_path_buf(), previous: text }))
    }

    fn boot_id(&self) -> Option<String> {
        Some(format!("boot-{}", self.state().boot))
    }

    fn process_id(&self) -> u32 {
        u32::try_from(self.process).unwrap_or(u32::MAX)
    }

    fn latency(&self) -> Duration {
        self.state().latency
    }
}

#[derive(Default)]
struct State {
    names: BTreeMap<PathBuf, u64>,
    names_durable: BTreeMap<PathBuf, u64>,
    dirs: BTreeSet<PathBuf>,
    inodes: BTreeMap<u64, Inode>,
    inode_next: u64,
    locks: BTreeSet<PathBuf>,
    process: u64,
    boot: u64,
    capacity: Option<u64>,
    append_max: Option<usize>,
    appends_failing: u32,
    syncs_failing: u32,
    kill_after: Option<u64>,
    latency: Duration,
}

#[derive(Default)]
struct Inode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// How long a prefix of both is known to be the same.
    same: usize,
}

impl Inode {
    fn sync(&mut self) {
        self.durable.truncate(self.same);
        self.durable.extend_from_slice(&self.bytes[self.same.min(self.bytes.len())..]);
        self.same = self.bytes.len();
    }

    fn truncate(&mut self, size: usize) {
        self.bytes.truncate(size);
        self.same = self.same.min(size);
    }

    fn power_loss(&mut self, rng: &mut Rng, reorder: bool) {
        // A cut that was not synced may not have happened.
        if self.durable.len() > self.same && rng.below(2) == 0 {
            self.bytes.clone_from(&self.durable);
        }
        let fresh = self.bytes.len() - self.same.min(self.bytes.len());
        let kept = self.same + usize::try_from(rng.below(fresh as u64 + 1)).unwrap_or(0);
        self.bytes.truncate(kept);
        if reorder {
            for at in self.same..self.bytes.len() {
                let sector_start = at % SECTOR == 0 || at == self.same;
                if sector_start && rng.below(2) == 0 {
                    let end = ((at / SECTOR + 1) * SECTOR).min(self.bytes.len());
                    self.bytes[at..end].fill(0);
                }
            }
        }
        self.sync();
    }
}

/// What a disk writes at once, or not at all.
const SECTOR: usize = 512;

impl State {
    fn named(&mut self, path: &Path) -> Option<&mut Inode> {
        let id = self.names.get(path)?;
        self.inodes.get_mut(id)
    }

    fn open_or_create(&mut self, path: &Path) -> u64 {
        if let Some(id) = self.names.get(path) {
            return *id;
        }
        let id = self.inode_next;
        self.inode_next += 1;
        self.inodes.insert(id, Inode::default());
        self.names.insert(path.to_path_buf(), id);
        id
    }

    fn kill(&mut self) {
        self.process += 1;
        self.locks.clear();
        self.kill_after = None;
    }

    fn power_loss(&mut self, how: PowerLoss) {
        self.kill();
        self.boot += 1;
        let mut rng = Rng::new(how.seed);
        for inode in self.inodes.values_mut() {
            inode.power_loss(&mut rng, how.reorder);
        }
        let all: BTreeSet<_> =
            self.names.keys().chain(self.names_durable.keys()).cloned().collect();
        for path in all {
            if self.names.get(&path) != self.names_durable.get(&path) && rng.below(2) == 0 {
                match self.names_durable.get(&path) {
                    Some(id) => self.names.insert(path, *id),
                    None => self.names.remove(&path),
                };
            }
        }
        self.names_durable.clone_from(&self.names);
    }

    fn sync_dir(&mut self, dir: &Path) {
        self.names_durable.retain(|path, _| path.parent() != Some(dir));
        let inside = self.names.iter().filter(|(path, _)| path.parent() == Some(dir));
        self.names_durable.extend(inside.map(|(path, id)| (path.clone(), *id)));
        let used: BTreeSet<u64> =
            self.names.values().chain(self.names_durable.values()).copied().collect();
        self.inodes.retain(|id, _| used.contains(id));
    }

    fn append(&mut self, id: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut count = bytes.len().min(self.append_max.unwrap_or(usize::MAX));
        let failing = self.appends_failing > 0;
        if failing {
            self.appends_failing -= 1;
            count /= 2;
        }
        if let Some(capacity) = self.capacity {
            let used: u64 = self.inodes.values().map(|inode| inode.bytes.len() as u64).sum();
            count = count.min(usize::try_from(capacity.saturating_sub(used)).unwrap_or(usize::MAX));
        }
        let killed = self.kill_after.is_some_and(|left| left <= count as u64);
        if let Some(left) = &mut self.kill_after {
            count = count.min(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= count as u64;
        }
        // A file without a name left lives as long as somebody holds it.
        self.inodes.entry(id).or_default().bytes.extend_from_slice(&bytes[..count]);
        if killed {
            self.kill();
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        match count {
            _ if failing => Err(io::Error::other("simulated: the write failed")),
            0 if !bytes.is_empty() => Err(io::ErrorKind::StorageFull.into()),
            count => Ok(count),
        }
    }
}

struct Handle {
    disk: FaultyDisk,
    id: u64,
}

impl AppendFile for Handle {
    fn size(&self) -> io::Result<u64> {
        let state = self.disk.live()?;
        Ok(state.inodes.get(&self.id).map_or(0, |inode| inode.bytes.len() as u64))
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.live()?.append(self.id, bytes)
    }

    fn truncate(&mut self, size: u64) -> io::Result<()> {
        let size = usize::try_from(size).map_err(io::Error::other)?;
        self.disk.live()?.inodes.entry(self.id).or_default().truncate(size);
        Ok(())
    }

    fn syncer(&self) -> io::Result<Arc<dyn Syncer>> {
        Ok(Arc::new(Self { disk: self.disk.clone(), id: self.id }))
    }
}

impl Syncer for Handle {
    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.live()?;
        if state.syncs_failing > 0 {
            state.syncs_failing -= 1;
            return Err(io::Error::other("simulated: the sync failed"));
        }
        state.inodes.entry(self.id).or_default().sync();
        Ok(())
    }
}

impl ReadFile for Handle {
    fn size(&self) -> io::Result<u64> {
        AppendFile::size(self)
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let state = self.disk.live()?;
        let Some(inode) = state.inodes.get(&self.id) else { return Ok(0) };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(inode.bytes.len());
        let count = into.len().min(inode.bytes.len() - start);
        into[..count].copy_from_slice(&inode.bytes[start..start + count]);
        Ok(count)
    }
}

struct Locked {
    handle: Handle,
    path: PathBuf,
    previous: String,
}

impl DiskLock for Locked {
    fn previous(&self) -> &str {
        &self.previous
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        let mut state = self.handle.disk.live()?;
        let inode = state.inodes.entry(self.handle.id).or_default();
        inode.bytes = text.as_bytes().to_vec();
        inode.same = 0;
        inode.sync();
        Ok(())
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // A dead process's locks are free already, and may be somebody else's by now.
        if let Ok(mut state) = self.handle.disk.live() {
            state.locks.remove(&self.path);
        }
    }
}
