//! Files, as little of them as a write-ahead log needs.
//!
//! The surface is small on purpose: append, cut, sync, read, list, rename, remove, lock. What a real disk does behind a
//! caller's back (short writes, a sync that fails, names that are not durable before their directory is) is part of the
//! contract, so that [`FaultyDisk`] may do all of it and code that passes there holds on [`RealDisk`].

mod faulty;
mod real;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use faulty::{FaultyDisk, PowerLoss};
pub use real::RealDisk;

/// A file system, real or simulated.
pub trait Disk: Send + Sync + 'static {
    /// Creates `dir` and its parents where they are missing.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Opens a file for appending; creates it where it is missing. The name is durable after [`Disk::sync_dir`].
    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>>;
    /// Opens a file for reading. Others may append to it meanwhile.
    fn open_read(&self, path: &Path) -> io::Result<Box<dyn ReadFile>>;
    /// The names of the files in `dir`, sorted; none where `dir` does not exist.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Gives a file another name, replacing what had it. Atomic for readers, durable after [`Disk::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file's name.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes names created, changed and removed in `dir` survive a loss of power.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the exclusive lock that the file at `path` stands for, without waiting. Freed when dropped, and by the
    /// death of the process.
    fn lock(&self, path: &Path) -> Result<Box<dyn DiskLock>, LockError>;
    /// Names the machine's current run; another after a restart of the machine. `None` where nobody can tell.
    fn boot_id(&self) -> Option<String>;
    /// Names the process that uses the disk.
    fn process_id(&self) -> u32 {
        std::process::id()
    }
    /// How long a write or a sync takes, on a disk that only says so: a real one takes its time by itself.
    fn latency(&self) -> Duration {
        Duration::ZERO
    }
}

/// A file that only grows, except that its end may be cut off.
pub trait AppendFile: Send {
    /// Its length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Writes at the end, possibly fewer bytes than given; says how many. On an error the file may have grown.
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Cuts the file to `size` bytes. Later appends go there.
    fn truncate(&mut self, size: u64) -> io::Result<()>;
    /// A handle that syncs this file, for use beside the appending thread.
    fn syncer(&self) -> io::Result<Arc<dyn Syncer>>;
}

/// Syncs one file.
pub trait Syncer: Send + Sync {
    /// Returns when all that was appended before the call would survive a loss of power. After an error nobody knows
    /// what is on the disk, and a second call may report success without having written anything: do not retry.
    fn sync(&self) -> io::Result<()>;
}

/// A file open for reading.
pub trait ReadFile: Send {
    /// Its length in bytes, now.
    fn size(&self) -> io::Result<u64>;
    /// Reads from `offset`, possibly fewer bytes than asked for; zero only at the end.
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<usize>;
}

/// An exclusive lock and the short text in its file, by which the holder introduces itself.
pub trait DiskLock: Send + Sync {
    /// The text as it was before this holder.
    fn previous(&self) -> &str;
    /// Replaces the text and syncs it.
    fn write(&mut self, text: &str) -> io::Result<()>;
}

/// Why a lock was not taken.
#[derive(Debug)]
pub enum LockError {
    /// Somebody holds it; the text is what they wrote.
    Held(String),
    /// The lock's file could not be used.
    Io(io::Error),
}

/// Reads a whole file.
///
/// # Errors
/// What opening or reading reports.
pub fn read_all(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let mut file = disk.open_read(path)?;
    let size = usize::try_from(file.size()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while filled < size {
        match file.read_at(filled as u64, &mut bytes[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Appends all of `bytes`, however many calls it takes. On an error the file may hold a part of them.
///
/// # Errors
/// What appending reports; a file that takes nothing counts as [`io::ErrorKind::WriteZero`].
pub fn append_all(file: &mut dyn AppendFile, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.append(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Puts a file in place so that, whatever happens, `path` holds either what it held or all of `bytes`: a temporary
/// file beside it, sync, rename, sync of the directory.
///
/// # Errors
/// What any of the steps reports. The temporary file is removed where that is possible.
pub fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let temporary = Path::new(&name);
    let placed = place(disk, temporary, path, bytes);
    if placed.is_err() {
        // Best effort: the error worth reporting is the first one.
        let _ = disk.remove(temporary);
    }
    placed
}

fn place(disk: &dyn Disk, temporary: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = disk.open_append(temporary)?;
    file.truncate(0)?;
    append_all(file.as_mut(), bytes)?;
    file.syncer()?.sync()?;
    disk.rename(temporary, path)?;
    disk.sync_dir(path.parent().unwrap_or(Path::new(".")))
}

#[cfg(test)]
mod tests;
