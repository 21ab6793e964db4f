//! A small ordered store of the process's own: sled in the data directory, or a map where there is no directory.
//!
//! All that a change writes is written together, and is on the disk when [`Kv::write`] returns: sled keeps what was written
//! since the last flush in the process, where `kill -9` would take it along.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::SessionError;
use crate::cache::open_when_let_go;

/// Page cache: some thousand messages, which is what is read between two flushes.
const CACHE_BYTES: u64 = 4 << 20;

/// The longest that a disk may take over one change or look-up.
pub(super) const DISK_WAIT: Duration = Duration::from_secs(5);

/// A key with what stands under it.
pub(super) type Pair = (Vec<u8>, Vec<u8>);

/// A key with what is to stand under it; `None` removes it.
pub(super) type Change = (Vec<u8>, Option<Vec<u8>>);

/// Keys with values, in order.
#[derive(Clone)]
pub(super) enum Kv {
    /// On a disk; nothing once it is closed.
    Sled(Arc<Mutex<Option<sled::Db>>>),
    /// In memory, for a machine without a disk of its own.
    Memory(Arc<Memory>),
}

/// Keys in memory.
#[derive(Default)]
pub(super) struct Memory {
    map: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
    /// How many flushes will fail, as those of a disk may.
    #[cfg(test)]
    pub failing: std::sync::atomic::AtomicU32,
}

/// Which way a range is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Forward,
    Backward,
}

impl Kv {
    /// Opens the store of a data directory.
    pub fn open(dir: &Path) -> Result<Self, SessionError> {
        let config = sled::Config::new()
            .path(dir.join("sessions"))
            .cache_capacity(CACHE_BYTES)
            .mode(sled::Mode::LowSpace);
        let db = open_when_let_go(&config).map_err(|error| failed(&error))?;
        Ok(Self::Sled(Arc::new(Mutex::new(Some(db)))))
    }

    /// One that is gone with the process.
    pub fn memory() -> Self {
        Self::Memory(Arc::default())
    }

    /// Lets go of the disk, though somebody may still know the store: the next process, or life, wants it.
    pub fn close(&self) {
        if let Self::Sled(db) = self {
            drop(db.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }

    /// Does something with the store, where the disk may take its time.
    pub async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, SessionError> + Send + 'static,
    ) -> Result<T, SessionError> {
        let worked = tokio::time::timeout(DISK_WAIT, self.finish(work)).await;
        worked.unwrap_or_else(|_| Err(SessionError::Store(slow())))
    }

    /// The same, however long that takes: work that was begun is done in the end, whether anybody waits for it or not.
    pub async fn finish<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, SessionError> + Send + 'static,
    ) -> Result<T, SessionError> {
        if let Self::Memory(_) = self {
            return work(self);
        }
        let store = self.clone();
        let worked = tokio::task::spawn_blocking(move || work(&store)).await;
        worked.unwrap_or_else(|_| Err(SessionError::Store("its task broke".to_owned())))
    }

    /// What stands under a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, SessionError> {
        match self {
            Self::Sled(db) => {
                let db = opened(db)?;
                let found = db.get(key).map_err(|error| failed(&error))?;
                Ok(found.map(|value| value.to_vec()))
            }
            Self::Memory(memory) => {
                let map = memory.map.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(map.get(key).cloned())
            }
        }
    }

    /// Writes all of it or nothing, and flushes it. After an error nobody knows which: it may be there, and may go yet.
    pub fn write(&self, changes: Vec<Change>) -> Result<(), SessionError> {
        match self {
            Self::Sled(db) => {
                let db = opened(db)?;
                let mut batch = sled::Batch::default();
                for (key, value) in changes {
                    match value {
                        Some(value) => batch.insert(key, value),
                        None => batch.remove(key),
                    }
                }
                db.apply_batch(batch).map_err(|error| failed(&error))?;
            }
            Self::Memory(memory) => {
                let mut map = memory.map.lock().unwrap_or_else(PoisonError::into_inner);
                for (key, value) in changes {
                    match value {
                        Some(value) => drop(map.insert(key, value)),
                        None => drop(map.remove(&key)),
                    }
                }
            }
        }
        self.flush()
    }

    /// Has everything that was written be on the disk.
    pub fn flush(&self) -> Result<(), SessionError> {
        match self {
            Self::Sled(db) => opened(db)?.flush().map(drop).map_err(|error| failed(&error)),
            #[cfg(test)]
            Self::Memory(memory) => memory.flush(),
            #[cfg(not(test))]
            Self::Memory(_) => Ok(()),
        }
    }

    /// At most so many of the keys from `from` on and before `to`.
    pub fn range(
        &self,
        from: &[u8],
        to: &[u8],
        way: Way,
        most: usize,
    ) -> Result<Vec<Pair>, SessionError> {
        match self {
            Self::Sled(db) => {
                let db = opened(db)?;
                let found = db.range(from..to).map(|pair| {
                    let (key, value) = pair.map_err(|error| failed(&error))?;
                    Ok((key.to_vec(), value.to_vec()))
                });
                match way {
                    Way::Forward => found.take(most).collect(),
                    Way::Backward => found.rev().take(most).collect(),
                }
            }
            Self::Memory(memory) => {
                let map = memory.map.lock().unwrap_or_else(PoisonError::into_inner);
                let bounds = (Bound::Included(from), Bound::Excluded(to));
                let found = map.range::<[u8], _>(bounds).map(|(k, v)| (k.clone(), v.clone()));
                Ok(match way {
                    Way::Forward => found.take(most).collect(),
                    Way::Backward => found.rev().take(most).collect(),
                })
            }
        }
    }
}

#[cfg(test)]
impl Memory {
    fn flush(&self) -> Result<(), SessionError> {
        use std::sync::atomic::Ordering::Relaxed;
        let fails = self.failing.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
        if fails { Err(SessionError::Store("the flush failed".to_owned())) } else { Ok(()) }
    }
}

/// What took too long is under way all the same.
pub(super) fn slow() -> String {
    format!("the disk took longer than {} s", DISK_WAIT.as_secs())
}

fn opened(db: &Mutex<Option<sled::Db>>) -> Result<sled::Db, SessionError> {
    let db = db.lock().unwrap_or_else(PoisonError::into_inner).clone();
    db.ok_or_else(|| SessionError::Store("it is closed".to_owned()))
}

fn failed(error: &sled::Error) -> SessionError {
    SessionError::Store(error.to_string())
}
