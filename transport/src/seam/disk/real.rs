//! The operating system's files.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use super::{AppendFile, Disk, DiskLock, LockError, ReadFile, Syncer};

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Box::new(Appending { file: Arc::new(Synced(file)) }))
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        Ok(Box::new(Reading { file: File::open(path)? }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            // A name that is not Unicode is none of ours.
            if let (true, Ok(name)) =
                (entry.file_type()?.is_file(), entry.file_name().into_string())
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // Elsewhere a directory cannot be opened as a file, and its entries are durable with the files themselves.
        if cfg!(unix) {
            let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn DiskLock>, LockError> {
        lock(path)
    }

    fn boot_id(&self) -> Option<String> {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(id.trim().to_owned()).filter(|id| !id.is_empty())
    }
}

fn lock(path: &Path) -> Result<Box<dyn DiskLock>, LockError> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(LockError::Io)?;
    let held = match file.try_lock() {
        Ok(()) => false,
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(error)) => return Err(LockError::Io(error)),
    };
    let mut text = String::new();
    // The text only serves people and the choice of a word: unreadable counts as empty.
    let _ = Read::by_ref(&mut file).take(LOCK_TEXT_MAX).read_to_string(&mut text);
    if held { Err(LockError::Held(text)) } else { Ok(Box::new(Locked { file, previous: text })) }
}

/// A process id and a boot id take 50 bytes; more than this is not ours.
const LOCK_TEXT_MAX: u64 = 1_024;

struct Synced(File);

impl Syncer for Synced {
    fn sync(&self) -> io::Result<()> {
        // Data and length; other metadata (times) is not needed to read the file back.
        self.0.sync_data()
    }
}

struct Appending {
    file: Arc<Synced>,
}

impl AppendFile for Appending {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.0.metadata()?.len())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&self.file.0).write(bytes)
    }

    fn truncate(&mut self, size: u64) -> io::Result<()> {
        self.file.0.set_len(size)
    }

    fn syncer(&self) -> io::Result<Arc<dyn Syncer>> {
        Ok(Arc::clone(&self.file) as Arc<dyn Syncer>)
    }
}

struct Reading {
    file: File,
}

impl ReadFile for Reading {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.file.seek(SeekFrom::Start(offset))?;
        loop {
            match self.file.read(into) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }
}

struct Locked {
    file: File,
    previous: String,
}

impl DiskLock for Locked {
    fn previous(&self) -> &str {
        &self.previous
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        // Over the old text and then cut: a kill in between leaves one or the other, not nothing.
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(text.as_bytes())?;
        self.file.set_len(text.len() as u64)?;
        self.file.sync_data()
    }
}
