//! Where things lie in a data directory, and the file that says what it is.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::OpenError;
use super::{FORMAT_VERSION, Options};
use crate::seam::Disk;
use crate::seam::disk::{self, DiskLock, LockError};

/// A data directory on a disk.
#[derive(Clone)]
pub(super) struct Directory {
    pub disk: Arc<dyn Disk>,
    pub root: PathBuf,
}

/// What the file `FORMAT` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// [`FORMAT_VERSION`] of the program that wrote the directory.
    pub format: u32,
    /// The version of the plane's decisions that last opened it.
    pub logic: u32,
    /// The seed of the plane whose journal this is.
    pub seed: u64,
}

impl Directory {
    pub fn new(disk: Arc<dyn Disk>, root: &Path) -> Self {
        Self { disk, root: root.to_path_buf() }
    }

    pub fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    pub fn segment(&self, first: u64) -> PathBuf {
        self.journal().join(segment_name(first))
    }

    pub fn snapshot(&self, position: u64) -> PathBuf {
        self.snapshots().join(format!("{position:020}.snap"))
    }

    /// The first positions of the segments there are, in order.
    pub fn list_segments(&self) -> io::Result<Vec<u64>> {
        Ok(numbered(&self.disk.list(&self.journal())?, ".seg"))
    }

    /// The positions of the snapshots there are, in order.
    pub fn list_snapshots(&self) -> io::Result<Vec<u64>> {
        Ok(numbered(&self.disk.list(&self.snapshots())?, ".snap"))
    }

    /// Where an unsound snapshot is kept for whoever wants to know why.
    pub fn set_aside(&self, position: u64) -> PathBuf {
        self.snapshots().join(format!("{position:020}.snap.bad"))
    }

    /// The positions of the snapshots set aside, in order.
    pub fn list_set_aside(&self) -> io::Result<Vec<u64>> {
        Ok(numbered(&self.disk.list(&self.snapshots())?, ".snap.bad"))
    }

    /// Creates the directories where they are missing.
    pub fn create(&self) -> Result<(), OpenError> {
        let create = |dir: &Path| {
            self.disk.create_dir(dir).map_err(|error| OpenError::io("create", dir, error))
        };
        create(&self.journal())?;
        create(&self.snapshots())
    }

    pub fn lock(&self) -> Result<Box<dyn DiskLock>, OpenError> {
        let path = self.root.join("LOCK");
        self.disk.lock(&path).map_err(|error| match error {
            LockError::Held(text) => {
                let holder = text.lines().next().filter(|pid| !pid.is_empty());
                let holder = holder.unwrap_or("unknown").to_owned();
                OpenError::Locked { dir: self.root.clone(), holder }
            }
            LockError::Io(error) => OpenError::io("lock", &path, error),
        })
    }

    /// What `FORMAT` says; `None` where there is no such file. Refuses a newer one.
    pub fn read_format(&self) -> Result<Option<Format>, OpenError> {
        let path = self.root.join("FORMAT");
        let bytes = match disk::read_all(self.disk.as_ref(), &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| OpenError::io("read", &path, error))?,
        };
        let text = String::from_utf8_lossy(&bytes);
        let version = field(&text, "format").and_then(|text| text.parse().ok());
        match version {
            Some(found) if found < FORMAT_VERSION => {
                Err(OpenError::OlderFormat { dir: self.root.clone(), found, ours: FORMAT_VERSION })
            }
            Some(found) if found > FORMAT_VERSION => {
                Err(OpenError::NewerFormat { dir: self.root.clone(), found, ours: FORMAT_VERSION })
            }
            version => version
                .and_then(|format| parse(&text, format))
                .map(Some)
                .ok_or(OpenError::NoFormat { path }),
        }
    }

    pub fn write_format(&self, format: Format) -> Result<(), OpenError> {
        let path = self.root.join("FORMAT");
        let Format { format, logic, seed } = format;
        let text = format!("pointsman-data\nformat {format}\nlogic {logic}\nseed {seed:016x}\n");
        disk::replace(self.disk.as_ref(), &path, text.as_bytes())
            .map_err(|error| OpenError::io("write", &path, error))
    }

    /// The format of this directory, written now if the directory is new.
    pub fn format_or_new(&self, options: &Options) -> Result<Format, OpenError> {
        if let Some(format) = self.read_format()? {
            return Ok(format);
        }
        let path = self.root.join("FORMAT");
        let listed = self
            .list_segments()
            .and_then(|segments| Ok(segments.is_empty() && self.list_snapshots()?.is_empty()));
        if !listed.map_err(|error| OpenError::io("list", &self.root, error))? {
            return Err(OpenError::NoFormat { path });
        }
        let (logic, seed) = (options.logic_version, options.seed);
        let format = Format { format: FORMAT_VERSION, logic, seed };
        self.write_format(format)?;
        // The directory itself is new as well. Its parent may not be ours to open; then its entry has to wait.
        let _ = self.disk.sync_dir(self.root.parent().unwrap_or(Path::new(".")));
        Ok(format)
    }
}

/// The file name of the segment that begins at `first`. Twenty digits hold every position and sort as numbers do.
pub(super) fn segment_name(first: u64) -> String {
    format!("{first:020}.seg")
}

fn numbered(names: &[String], suffix: &str) -> Vec<u64> {
    let number = |name: &String| {
        let digits = name.strip_suffix(suffix).filter(|digits| digits.len() == 20)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
    };
    names.iter().filter_map(number).collect()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines().filter(|_| text.starts_with("pointsman-data\n"));
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
}

fn parse(text: &str, format: u32) -> Option<Format> {
    let logic = field(text, "logic")?.parse().ok()?;
    let seed = u64::from_str_radix(field(text, "seed")?, 16).ok()?;
    Some(Format { format, logic, seed })
}
