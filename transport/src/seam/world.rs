//! The machine a gateway runs on, as one value.
//!
//! [`World::real`] is the operating system; a simulator brings its own. Code that is handed a world does not ask which:
//! it draws time, disk, sockets and background work from it. What only a real machine has (threads, an admin socket, a
//! database of its own beside the journal) is chosen here too, because a simulated run must be one thread and one order.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use control::Wall;

use super::net::Network;
use super::{Disk, RealDisk};
use crate::cache::{CacheError, ModelCache, RegistryCache};
use crate::keys::{AccountIds, SaltError};

/// Where a gateway runs.
#[derive(Clone)]
pub struct World {
    /// Its files.
    pub disk: Arc<dyn Disk>,
    /// Its way to the endpoints.
    pub network: Network,
    /// Its calendar.
    pub wall: WallClock,
    /// Who does what goes on beside the requests.
    pub background: Background,
    /// What ends it.
    pub process: Arc<dyn Process>,
    /// What lies beside the journal.
    pub beside: Beside,
}

impl World {
    /// The machine this runs on.
    #[must_use]
    pub fn real() -> Self {
        Self {
            disk: Arc::new(RealDisk),
            network: Network::Real,
            wall: WallClock::System,
            background: Background::Threads,
            process: Arc::new(ThisProcess),
            beside: Beside::Files,
        }
    }
}

/// A calendar.
#[derive(Clone)]
pub enum WallClock {
    /// The operating system's.
    System,
    /// Somebody else's.
    Simulated(Arc<dyn Fn() -> Wall + Send + Sync>),
}

impl WallClock {
    /// What it shows.
    #[must_use]
    pub fn now(&self) -> Wall {
        match self {
            Self::System => {
                let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                let millis = since.unwrap_or_default().as_millis();
                Wall::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
            }
            Self::Simulated(now) => now(),
        }
    }
}

impl std::fmt::Debug for WallClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WallClock({})", self.now().as_millis())
    }
}

/// Who writes the journal, lets go of its old segments and follows it with the shadow plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Background {
    /// A thread for each: none of them may delay a request.
    Threads,
    /// Tasks of the runtime that starts the gateway. A disk that takes its time says so ([`Disk::latency`]) and is
    /// slept for, because nothing may block.
    Tasks,
}

/// The process, as far as it can end itself.
pub trait Process: Send + Sync + 'static {
    /// Ends it without another word. Does not return on a real machine. On a simulated one it does, and whoever
    /// called does nothing further.
    fn abort(&self, why: &str);
}

/// The process this runs in.
struct ThisProcess;

impl Process for ThisProcess {
    fn abort(&self, why: &str) {
        tracing::error!("{why}");
        // Where nobody listens to the log, as in a test, the last word is heard all the same.
        if !tracing::dispatcher::has_been_set() {
            let _ = writeln!(std::io::stderr(), "{why}");
        }
        std::process::abort()
    }
}

/// What lies beside the journal.
#[derive(Clone)]
pub enum Beside {
    /// The registry cache, the salt, the names of accounts and the admin socket, in the data directory.
    Files,
    /// Nothing: what is needed of them is given.
    Given {
        /// What endpoints said last.
        cache: Arc<dyn ModelCache>,
        /// The secret under which names become ids.
        salt: [u8; 32],
        /// The plane's seed for a data directory that is new.
        seed: u64,
    },
}

impl Beside {
    pub(crate) fn cache(&self, dir: &Path) -> Result<Arc<dyn ModelCache>, CacheError> {
        match self {
            Self::Files => Ok(Arc::new(RegistryCache::open_or_begin(dir)?)),
            Self::Given { cache, .. } => Ok(Arc::clone(cache)),
        }
    }

    pub(crate) fn ids(&self, dir: &Path) -> Result<AccountIds, SaltError> {
        match self {
            Self::Files => AccountIds::open(dir),
            Self::Given { salt, .. } => Ok(AccountIds::new(*salt)),
        }
    }

    pub(crate) fn seed(&self) -> Result<u64, getrandom::Error> {
        match self {
            Self::Files => getrandom::u64(),
            Self::Given { seed, .. } => Ok(*seed),
        }
    }

    pub(crate) fn has_files(&self) -> bool {
        matches!(self, Self::Files)
    }
}
