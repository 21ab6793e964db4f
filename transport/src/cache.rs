//! What endpoints said they serve, kept for the day when they do not answer.
//!
//! A gateway that starts while a provider is down would otherwise know none of its models, and refuse as unknown what
//! it served a minute before. The cache is a small sled database beside the journal: it may be deleted at any time.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use control::Wall;
use serde::{Deserialize, Serialize};

use crate::sources::Instance;

/// Page cache. The registry is some kilobytes; sled's default of a gigabyte is for databases.
const CACHE_BYTES: u64 = 1 << 20;

/// Its directory in the data directory.
const NAME: &str = "registry-cache";
/// Where one goes that cannot be opened.
pub const DAMAGED: &str = "registry-cache.damaged";
/// Its lock's error does not survive into the kind: a message is all there is.
const LOCKED: &str = "could not acquire lock";

/// A place where what endpoints said outlives the process.
pub trait ModelCache: Send + Sync + 'static {
    /// What `endpoint`, at this address, said last. Another address is another endpoint.
    fn get(&self, endpoint: &str, address: &str) -> Option<Seen>;

    /// Keeps what `endpoint` says; resolves when it is on the disk.
    fn keep(self: Arc<Self>, endpoint: String, address: String, seen: Seen) -> Keeping;

    /// Whom a source of endpoints listed last.
    fn listed(&self, source: &str) -> Option<Listed>;

    /// Keeps whom it lists; resolves when it is on the disk.
    fn keep_listed(self: Arc<Self>, source: String, listed: Listed) -> Keeping;
}

/// Resolves when something is kept, or cannot be.
pub type Keeping = Pin<Box<dyn Future<Output = Result<(), CacheError>> + Send>>;

/// Models by endpoint, as last seen.
pub struct RegistryCache {
    models: sled::Tree,
    sources: sled::Tree,
}

/// What an endpoint said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Its models.
    pub models: Vec<Box<str>>,
    /// When it said so.
    pub at: Wall,
}

/// Whom a source of endpoints listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The workers, by name.
    pub instances: Vec<Instance>,
    /// When it last said so.
    pub at: Wall,
}

/// The cache cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the registry cache cannot be used ({0}); it may be deleted while the gateway is stopped")]
pub struct CacheError(String);

impl From<sled::Error> for CacheError {
    fn from(error: sled::Error) -> Self {
        Self(error.to_string())
    }
}

impl RegistryCache {
    /// Opens the cache of a data directory.
    ///
    /// # Errors
    /// Where it is damaged or its disk fails.
    pub fn open(dir: &Path) -> Result<Self, CacheError> {
        let config = sled::Config::new()
            .path(dir.join(NAME))
            .cache_capacity(CACHE_BYTES)
            .mode(sled::Mode::LowSpace);
        let db = open_when_let_go(&config)?;
        Ok(Self { models: db.open_tree("models")?, sources: db.open_tree("sources")? })
    }

    /// The same; one that is damaged is moved aside, to [`DAMAGED`], and begun anew. It is a memory of what endpoints say
    /// again: no reason not to start.
    ///
    /// # Errors
    /// Where another process holds it, or a new one cannot be made either.
    pub fn open_or_begin(dir: &Path) -> Result<Self, CacheError> {
        let why = match Self::open(dir) {
            Err(why) if !why.0.contains(LOCKED) => why,
            opened => return opened,
        };
        let (from, to) = (dir.join(NAME), dir.join(DAMAGED));
        tracing::warn!("{why}; it is moved to {DAMAGED} in the data directory, and begun anew");
        // The one before it, if any.
        let _ = std::fs::remove_dir_all(&to);
        std::fs::rename(&from, &to).map_err(|error| CacheError(format!("{}: {error}", why.0)))?;
        Self::open(dir)
    }

    /// What `endpoint`, at this address, said last. Another address is another endpoint.
    #[must_use]
    pub fn get(&self, endpoint: &str, address: &str) -> Option<Seen> {
        let bytes = self.models.get(key(endpoint, address)).ok()??;
        serde_json::from_slice(&bytes).ok()
    }

    /// Keeps what `endpoint` says, on the disk when this returns.
    ///
    /// # Errors
    /// Where the disk fails.
    pub fn insert(&self, endpoint: &str, address: &str, seen: &Seen) -> Result<(), CacheError> {
        put(&self.models, &key(endpoint, address), seen)
    }

    /// Whom `source` listed last.
    #[must_use]
    pub fn listed(&self, source: &str) -> Option<Listed> {
        let bytes = self.sources.get(source).ok()??;
        serde_json::from_slice(&bytes).ok()
    }

    /// Keeps whom `source` lists, on the disk when this returns.
    ///
    /// # Errors
    /// Where the disk fails.
    pub fn insert_listed(&self, source: &str, listed: &Listed) -> Result<(), CacheError> {
        put(&self.sources, source.as_bytes(), listed)
    }
}

fn put(tree: &sled::Tree, key: &[u8], value: &impl Serialize) -> Result<(), CacheError> {
    let bytes = serde_json::to_vec(value).map_err(|error| CacheError(error.to_string()))?;
    tree.insert(key, bytes)?;
    tree.flush()?;
    Ok(())
}

impl ModelCache for RegistryCache {
    fn get(&self, endpoint: &str, address: &str) -> Option<Seen> {
        Self::get(self, endpoint, address)
    }

    fn keep(self: Arc<Self>, endpoint: String, address: String, seen: Seen) -> Keeping {
        beside(move || self.insert(&endpoint, &address, &seen))
    }

    fn listed(&self, source: &str) -> Option<Listed> {
        Self::listed(self, source)
    }

    fn keep_listed(self: Arc<Self>, source: String, listed: Listed) -> Keeping {
        beside(move || self.insert_listed(&source, &listed))
    }
}

/// Where a disk may take its time.
fn beside(keep: impl FnOnce() -> Result<(), CacheError> + Send + 'static) -> Keeping {
    Box::pin(async move {
        let kept = tokio::task::spawn_blocking(keep).await;
        // A panic there has been printed, and the next answer is kept again.
        kept.unwrap_or(Ok(()))
    })
}

/// A database that was closed in this process is held by its own threads for some milliseconds more.
pub(crate) fn open_when_let_go(config: &sled::Config) -> Result<sled::Db, sled::Error> {
    const TRIES: u32 = 100;
    const PAUSE: Duration = Duration::from_millis(10);
    for _ in 1..TRIES {
        match config.open() {
            Err(sled::Error::Io(error)) if error.to_string().contains(LOCKED) => {
                std::thread::sleep(PAUSE);
            }
            opened => return opened,
        }
    }
    config.open()
}

fn key(endpoint: &str, address: &str) -> Vec<u8> {
    [endpoint.as_bytes(), b"\0", address.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[test]
    fn what_was_seen_is_there_after_a_restart_and_belongs_to_its_address() {
        let dir = tempfile::tempdir().unwrap();
        let seen = Seen { models: vec!["m".into()], at: Wall::from_millis(5) };
        {
            let cache = RegistryCache::open(dir.path()).unwrap();
            cache.insert("a", "http://one", &seen).unwrap();
        }
        let cache = RegistryCache::open(dir.path()).unwrap();
        assert_eq!(cache.get("a", "http://one"), Some(seen));
        assert_eq!(cache.get("a", "http://two"), None);
    }

    /// The names of the files that a cache is made of. Its own directory is gone, and sled with it.
    fn files() -> Vec<std::ffi::OsString> {
        let dir = tempfile::tempdir().unwrap();
        drop(RegistryCache::open(dir.path()).unwrap());
        let files = std::fs::read_dir(dir.path().join(NAME)).unwrap().map(Result::unwrap);
        let files = files.filter(|file| file.path().is_file());
        files.map(|file| file.file_name()).collect()
    }

    #[test]
    fn a_damaged_cache_is_moved_aside_and_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join(NAME), dir.path().join(DAMAGED));
        std::fs::create_dir(&from).unwrap();
        for file in files() {
            std::fs::write(from.join(file), "rubbish ".repeat(1_000)).unwrap();
        }
        // What was moved aside before gives way.
        std::fs::create_dir(&to).unwrap();
        std::fs::write(to.join("older"), "").unwrap();
        assert!(RegistryCache::open(dir.path()).is_err());
        let seen = Seen { models: vec!["m".into()], at: Wall::from_millis(5) };
        let cache = RegistryCache::open_or_begin(dir.path()).unwrap();
        assert_eq!(cache.get("a", "http://one"), None);
        cache.insert("a", "http://one", &seen).unwrap();
        assert_eq!(cache.get("a", "http://one"), Some(seen));
        assert!(to.join("conf").exists() && !to.join("older").exists());
    }

    #[test]
    fn one_file_of_it_that_is_damaged_ends_no_start() {
        for file in files() {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join(NAME)).unwrap();
            let path = dir.path().join(NAME).join(&file);
            std::fs::write(path, "rubbish ".repeat(1_000)).unwrap();
            RegistryCache::open_or_begin(dir.path()).unwrap();
        }
    }

    #[test]
    fn a_cache_that_another_holds_stays_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let _held = RegistryCache::open_or_begin(dir.path()).unwrap();
        assert!(RegistryCache::open_or_begin(dir.path()).is_err());
        assert!(!dir.path().join(DAMAGED).exists());
    }
}
