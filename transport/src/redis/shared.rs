//! A gateway joins those who share a ledger.
//!
//! Accounts are keyed hashes of names, so all who count in one ledger must hash under one salt. The first who comes leaves
//! his in Redis (`pointsman:salt`, the one key that never expires), the others take it over, and each keeps it in his data
//! directory: a gateway that starts while Redis is away goes on with that. One who finds another salt than he has kept
//! does not start: somebody emptied Redis, or named another one, and his accounts would count from nought in silence.

use core::time::Duration;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use control::quota::{self, LedgerConfig, OwnerId};

use super::{SessionLog, Settings, SettingsError, Store, StoreError, StreamLog, Tls};
use crate::config::Redis;
use crate::keys::{AccountIds, SaltError};
use crate::seam::Network;

/// A gateway's part in a shared ledger.
pub struct Shared {
    /// The ledger.
    pub store: Arc<Store>,
    /// The log of streams, beside it.
    pub log: Arc<StreamLog>,
    /// Stored sessions, beside both.
    pub sessions: Arc<SessionLog>,
    /// This life of this process among all that share them: drawn at random.
    pub life: u64,
    /// Ids that all who share it agree on.
    pub ids: AccountIds,
    /// This gateway there.
    pub owner: OwnerId,
    /// How many asks may be on their way.
    pub in_flight_max: usize,
}

/// Why a gateway cannot join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The settings make no sense.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The file with the authorities cannot be read.
    #[error("cannot read data.redis.tls_ca {}: {source}", path.display())]
    Authorities {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It has never met the others, and does not meet them now.
    #[error(
        "this gateway has not shared a ledger before, and its Redis does not answer ({0}): start Redis first, \
         or correct data.redis"
    )]
    NeverMet(StoreError),
    /// Those who share that Redis are others than before.
    #[error(
        "Redis knows other accounts than this data directory: it was emptied, or is another one. Point data.redis \
         to the one used before, or start with a new data directory"
    )]
    Strangers,
    /// A salt cannot be read or kept.
    #[error(transparent)]
    Salt(#[from] SaltError),
    /// No thread or runtime for the first question.
    #[error("cannot ask Redis: {0}")]
    Runtime(String),
    /// The directory has a ledger of its own, or none where one is wanted.
    #[error(
        "this data directory was made {}: what it counted cannot be moved. Start with a new data directory, or {}",
        if *.embedded { "without data.redis" } else { "with data.redis" },
        if *.embedded { "remove data.redis" } else { "name that Redis again" }
    )]
    OtherMode {
        /// True where its ledger is its own.
        embedded: bool,
    },
}

/// How long a first start waits for a Redis that is being started beside it.
const FIRST_MEETING: Duration = Duration::from_secs(10);

impl Shared {
    /// Joins on a simulated machine, where all share the ids that they are given and nobody is asked for them.
    ///
    /// # Errors
    /// [`JoinError::Settings`].
    pub(crate) fn given(
        redis: &Redis,
        ids: AccountIds,
        owner: OwnerId,
        (salt, network): (u64, Network),
    ) -> Result<Self, JoinError> {
        let settings = settings(redis)?;
        let in_flight_max = settings.in_flight_max;
        let log = Arc::new(StreamLog::over(settings.clone(), network.clone())?);
        let sessions = Arc::new(SessionLog::new(settings.clone(), network.clone())?);
        let store = Arc::new(Store::over(settings, bounds(), salt, network)?);
        Ok(Self { store, log, sessions, life: salt, ids, owner, in_flight_max })
    }

    /// Joins. Blocks for some seconds at most, and not at all where the salt is known and Redis is away.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn join(redis: &Redis, dir: &Path, salt: u64) -> Result<Self, JoinError> {
        let own = AccountIds::open(dir)?;
        let settings = settings(redis)?;
        let kept = AccountIds::shared(dir)?;
        let proposal = kept.as_ref().unwrap_or(&own).salt();
        let patience = if kept.is_some() { Duration::ZERO } else { FIRST_MEETING };
        let ids = match (first_question(settings.clone(), proposal, patience)?, kept) {
            (Ok(found), Some(kept)) if found == kept.salt() => kept,
            (Ok(_), Some(_)) => return Err(JoinError::Strangers),
            (Ok(found), None) => {
                let ids = AccountIds::new(found);
                ids.keep_shared(dir)?;
                ids
            }
            (Err(error), Some(kept)) => {
                tracing::warn!("starting without the quota store: {error}");
                kept
            }
            (Err(error), None) => return Err(JoinError::NeverMet(error)),
        };
        let in_flight_max = settings.in_flight_max;
        let log = Arc::new(StreamLog::new(settings.clone())?);
        let sessions = Arc::new(SessionLog::new(settings.clone(), Network::Real)?);
        let store = Arc::new(Store::new(settings, bounds(), salt)?);
        Ok(Self { store, log, sessions, life: salt, ids, owner: own.owner(), in_flight_max })
    }
}

/// The bounds of each tenant's ledger: the same for all gateways of one version. It expires later than owners stop.
fn bounds() -> LedgerConfig {
    LedgerConfig { drift_max: quota::Config::default().drift_max, ..LedgerConfig::default() }
}

fn settings(redis: &Redis) -> Result<Settings, JoinError> {
    let tls = match &redis.tls_ca {
        None => None,
        Some(path) => {
            let file = |source| JoinError::Authorities { path: path.clone(), source };
            Some(Tls { roots: Some(std::fs::read(path).map_err(file)?), identity: None })
        }
    };
    Ok(Settings {
        addresses: redis.addr.0.clone(),
        cluster: redis.cluster,
        user: redis.user.clone(),
        password: redis.password.clone(),
        db: redis.db,
        tls,
        dial_timeout: redis.dial_timeout,
        call_timeout: redis.read_timeout.max(redis.write_timeout),
        ..Settings::default()
    })
}

/// Asks on a thread and a connection of its own: a gateway starts in one go, and its connection belongs to its runtime.
fn first_question(
    settings: Settings,
    proposal: [u8; 32],
    patience: Duration,
) -> Result<Result<[u8; 32], StoreError>, JoinError> {
    let runtime = |why: std::io::Error| JoinError::Runtime(why.to_string());
    let store = Store::new(settings, bounds(), 0)?;
    let ask = move || {
        let started = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(async {
            loop {
                match store.salt(proposal).await {
                    Err(_) if started.elapsed() < patience => {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    answer => {
                        if let Some(policy) = store.evicts().await {
                            tracing::warn!(
                                "Redis evicts keys ({policy}): a ledger that forgets lets accounts overspend; set \
                                 maxmemory-policy noeviction"
                            );
                        }
                        return answer;
                    }
                }
            }
        }))
    };
    let thread = std::thread::Builder::new().name("redis-join".into());
    let asked = thread.spawn(ask).map_err(runtime)?.join();
    asked.map_err(|_| JoinError::Runtime("the thread that asks broke".into()))?.map_err(runtime)
}
