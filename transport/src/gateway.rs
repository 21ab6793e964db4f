//! A gateway, put together: recovery, plane, upstreams, discovery, admin socket; and taken apart again in order.

mod discovery;
mod follower;
mod sources;
mod streams;

pub use discovery::discovery_limits;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use control::journal::LOGIC_VERSION;
use control::plane::Input;
use control::quota::{OwnerId, StoreMode};
use control::registry::{Fingerprint, SourceKind};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::accounts::Accounts;
use crate::admin::{self, Running};
use crate::auth::Remote;
use crate::cache::{CacheError, ModelCache};
use crate::catalog::{CONFIGURED, Catalog, SharedCatalog};
use crate::chat::Local;
use crate::config::{Config, Fsync, Role};
use crate::convert::{self, RouteError};
use crate::driver::{Clock, Driver, Recovered, RecoveryError, Shadow, recover};
use crate::front::Authenticate;
use crate::health::Health;
use crate::journal::{FsyncPolicy, Journal, Options};
use crate::keys::{AccountIds, SaltError};
use crate::redis::{Counter, Desk, JoinError, Shared, Untold};
use crate::seam::{Beside, World};
use crate::sessions::{Limits, SessionError, Sessions};
use crate::streams::Streams;
use crate::till::Till;
use crate::upstream::{Client, Failed, Settings, SetupError};
use follower::Follower;

/// Why a gateway cannot start. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its data directory cannot be gone on with.
    #[error("{0}")]
    Recovery(#[from] RecoveryError),
    /// Its salt cannot be read or made.
    #[error("{0}")]
    Salt(#[from] SaltError),
    /// It cannot join those who share a quota ledger.
    #[error("{0}")]
    Join(#[from] JoinError),
    /// Its registry cache cannot be opened.
    #[error("{0}")]
    Cache(#[from] CacheError),
    /// Its stored sessions cannot be opened.
    #[error("the stored sessions of the data directory cannot be opened: {0}")]
    Sessions(#[from] SessionError),
    /// An endpoint of the configuration cannot be called.
    #[error("{0}")]
    Route(#[from] RouteError),
    /// The upstream client cannot be set up.
    #[error("{0}")]
    Upstream(#[from] SetupError),
    /// Consul cannot be asked at all.
    #[error("discovery.consul: {0}")]
    Consul(SetupError),
    /// The auth role cannot be asked at all.
    #[error("auth: {0}")]
    Auth(Failed),
    /// Its admin socket cannot be bound.
    #[error("cannot bind the admin socket {path}: {source}", path = path.display())]
    Socket {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// There is no randomness for a new directory's seed.
    #[error("the operating system gives no randomness: {0}")]
    Entropy(getrandom::Error),
}

/// A gateway at work. Serve its [`chat`](Self::chat) for whom its [`auth`](Self::auth) lets in; then [`stop`](Self::stop).
pub struct Gateway {
    world: World,
    chat: Local,
    accounts: Arc<Accounts>,
    health: Arc<Health>,
    driver: Arc<Driver>,
    catalog: SharedCatalog,
    cache: Arc<dyn ModelCache>,
    upstream: Client,
    /// Orders changes of catalog and membership.
    changing: Mutex<()>,
    /// Rung when somebody is listed who has not said yet what he serves, or whose streams he continues.
    newcomers: Arc<Notify>,
    version: AtomicU64,
    tasks: Mutex<Vec<AbortOnDropHandle<()>>>,
    shadow: Mutex<Option<Follower>>,
    journal: Mutex<Option<Journal>>,
    /// Where operators ask, on a machine that has such sockets.
    socket: Option<PathBuf>,
    /// Its part in what gateways share.
    shared: Option<Shared>,
    /// What those who share that are still to be told.
    untold: Option<Arc<Untold>>,
    /// Quota is decided elsewhere.
    is_edge: bool,
    streams: Arc<Streams>,
    /// Who judges keys.
    auth: Arc<dyn Authenticate>,
    /// Stored sessions, where this process keeps them.
    sessions: Option<Arc<Sessions>>,
}

/// An answer that does not stream: 64 MiB hold a million tokens of text, or ten thousand embeddings.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// How long a stop waits until the shared store is told what the last requests did: some tries, where it is coming back.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl Gateway {
    /// Recovers what is in the data directory, and brings the plane to the configuration.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running then.
    pub fn start(config: &Config) -> Result<Arc<Self>, StartError> {
        Self::start_in(config, World::real())
    }

    /// The same on a machine that may be a simulated one.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running then.
    pub fn start_in(config: &Config, world: World) -> Result<Arc<Self>, StartError> {
        let dir = &config.data.dir;
        let options = journal_options(config, &world)?;
        let recovered = recover(Arc::clone(&world.disk), dir, &options)?;
        tracing::info!("recovered {}", recovered.report);
        let has_files = world.beside.has_files();
        let joined = join(config, &world)?;
        let ids = match &joined {
            Some(joined) => joined.ids.clone(),
            None => world.beside.ids(dir)?,
        };
        let accounts = Accounts::new(config, ids, has_files.then_some(dir));
        let health = Health::new();
        if let Some(cut) = &recovered.report.cut {
            health.note("recovery", Some((true, format!("cut {} torn bytes", cut.bytes))));
        }
        let catalog: SharedCatalog = Arc::new(ArcSwap::from_pointee(Catalog::default()));
        let cache = world.beside.cache(dir)?;
        let upstream =
            Client::over(&Settings::default(), &world.network)?.dated(world.wall.clone());
        let sessions = stored_sessions(config, joined.as_ref(), &world, &health)?;
        let is_edge = config.role == Role::Gateway;
        let (counter, desk) =
            joined.as_ref().map(|shared| desk_of(shared, &health, is_edge)).unzip();
        let (driver, shadow, journal) = drive(recovered, &world, (dir, &health), counter);
        let chat = Local::new(
            Arc::clone(&driver),
            upstream.clone(),
            Arc::clone(&catalog),
            Arc::clone(&health),
            ANSWER_BYTES_MAX,
            sessions.clone(),
        );
        let socket = config.server.admin.socket.clone();
        let auth = auth_of(config, &upstream, &accounts, &health)?;
        let streams = streams::of(config, joined.as_ref(), &health, &world)?;
        // Above all that the plane has believed: the calendar may have been set back since.
        let version = AtomicU64::new(driver.look(|plane| plane.version_max()));
        let gateway = Arc::new(Self {
            world,
            chat,
            accounts,
            health,
            driver,
            catalog,
            cache,
            upstream,
            changing: Mutex::default(),
            newcomers: Arc::default(),
            version,
            tasks: Mutex::default(),
            shadow: Mutex::new(Some(shadow)),
            journal: Mutex::new(Some(journal)),
            socket: has_files.then(|| socket.unwrap_or_else(|| admin::socket_path(dir))),
            shared: joined,
            untold: desk.as_ref().map(Desk::untold),
            is_edge,
            streams,
            auth,
            sessions,
        });
        gateway.start_desk(desk);
        gateway.reconfigure(config)?;
        gateway.check_ledger()?;
        gateway.start_tasks(config)?;
        Ok(gateway)
    }

    /// Asks of the plane reach the shared store from here on, those first that its restart made.
    fn start_desk(&self, desk: Option<Desk>) {
        let Some(desk) = desk else { return };
        let task = tokio::spawn(desk.run(Arc::clone(&self.driver)));
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.push(AbortOnDropHandle::new(task));
    }

    /// Where the ledger is was settled with the first thing this directory counted.
    fn check_ledger(&self) -> Result<(), JoinError> {
        let store = self.driver.look(|plane| plane.ledger().config().store);
        let embedded = store != StoreMode::Shared;
        // The gateway role calls everybody by the names that all use, and spends nothing.
        if embedded == (self.shared.is_none() || self.is_edge) {
            return Ok(());
        }
        Err(JoinError::OtherMode { embedded })
    }

    fn start_tasks(self: &Arc<Self>, config: &Config) -> Result<(), StartError> {
        let dir = &config.data.dir;
        let spawn = |task| AbortOnDropHandle::new(task);
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = &self.socket {
            let running = Arc::new(Running::new(Arc::clone(&self.driver), dir.to_owned()));
            let listener = admin::bind(socket)
                .map_err(|source| StartError::Socket { path: socket.clone(), source })?;
            tasks.push(spawn(tokio::spawn(admin::serve(listener, running))));
        }
        tasks.push(spawn(tokio::spawn(Arc::clone(&self.driver).run_timers())));
        tasks.push(spawn(tokio::spawn(discovery::run(Arc::downgrade(self)))));
        tasks.push(spawn(tokio::spawn(Arc::clone(&self.streams).run())));
        tasks.extend(sources::start(self, &config.discovery).map_err(StartError::Consul)?);
        Ok(())
    }

    /// The chat role.
    #[must_use]
    pub fn chat(&self) -> Local {
        self.chat.clone()
    }

    /// Its resumable streams.
    #[must_use]
    pub fn streams(&self) -> Arc<Streams> {
        Arc::clone(&self.streams)
    }

    /// Who may ask: the keys of this process, or those of the auth role.
    #[must_use]
    pub fn auth(&self) -> Arc<dyn Authenticate> {
        Arc::clone(&self.auth)
    }

    /// The ledger for services beside it: none in the gateway role, which has none.
    #[must_use]
    pub fn till(&self) -> Option<Arc<Till>> {
        let store = self.shared.as_ref().map(|shared| Arc::clone(&shared.store));
        let till = Till::new(Arc::clone(&self.driver), store, self.accounts.ids().clone());
        (!self.is_edge).then(|| Arc::new(till))
    }

    /// The keys of this process, and the names of accounts.
    #[must_use]
    pub fn accounts(&self) -> Arc<Accounts> {
        Arc::clone(&self.accounts)
    }

    /// The state of its parts.
    #[must_use]
    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// What drives its plane: for whoever inspects it, and for operators' orders.
    #[must_use]
    pub fn driver(&self) -> Arc<Driver> {
        Arc::clone(&self.driver)
    }

    /// Requests under way.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.driver.look(|plane| plane.requests())
    }

    /// The catalog in effect.
    #[must_use]
    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.load_full()
    }

    /// Asks every endpoint whose models are discovered, now, and returns when each has answered or failed.
    pub async fn discover(&self) {
        discovery::discover_all(self).await;
    }

    /// Takes a configuration. Requests under way keep their price, deadline and attempt.
    ///
    /// # Errors
    /// Where an endpoint cannot be called: then nothing has changed.
    pub fn reconfigure(&self, config: &Config) -> Result<(), RouteError> {
        let mut routes = convert::routes(config)?;
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.catalog.load();
        for (name, route) in routes.iter_mut().filter(|(_, route)| route.discover) {
            let known = before.route(name).map(|known| known.models.keys().cloned().collect());
            let address = route.target.base_url.to_string();
            let found: Vec<Box<str>> = known
                .or_else(|| self.cache.get(name, &address).map(|seen| seen.models))
                .unwrap_or_default();
            for model in found.into_iter().filter(|model| !route.except.contains(model)) {
                route.models.entry(model).or_default();
            }
        }
        for (name, route) in before.routes().filter(|(_, route)| *route.source != *CONFIGURED) {
            routes.entry(name.into()).or_insert_with(|| route.clone());
        }
        let catalog = Catalog::new(routes, convert::prices(config), &before, self.now_seconds())
            .with_silence(convert::silence(config));
        drop(before);
        let config = &*self.accounts.set_config(config);
        if let Some(sessions) = &self.sessions {
            sessions.set_limits(Limits::from(&config.session));
        }
        let version = self.next_version();
        let mut plane = convert::plane_config(config, self.accounts.ids(), version);
        let owner = self.shared.as_ref().map(|shared| shared.owner);
        plane.quota = convert::quota_config(config, owner, self.is_edge);
        self.driver.submit(Input::Configured(Box::new(plane)));
        self.publish(catalog);
        Ok(())
    }

    /// Makes a catalog known, first to the hands and then to the plane, so that what is picked can be called.
    fn publish(&self, catalog: Catalog) {
        self.publish_source(catalog, CONFIGURED);
    }

    /// The same for another source than the configuration; of its endpoints, those that it lists.
    fn publish_source(&self, catalog: Catalog, source: &str) {
        let endpoints = catalog
            .routes()
            .filter(|(_, route)| *route.source == *source && route.listed)
            .filter(|(_, route)| !route.models.is_empty())
            .filter_map(|(name, _)| catalog.spec(name))
            .collect();
        let is_configured = source == CONFIGURED;
        let kind = if is_configured { SourceKind::Authoritative } else { SourceKind::Observed };
        let is_anybody_new = catalog.routes().any(|(_, route)| route.is_unknown());
        let before = self.catalog.swap(Arc::new(catalog));
        let after = self.catalog.load();
        for (name, _) in before.routes().filter(|(name, _)| after.route(name).is_none()) {
            self.health.forget(name);
        }
        drop(after);
        if is_anybody_new {
            self.newcomers.notify_one();
        }
        let (source, version) = (source.into(), self.next_version());
        self.driver.submit(Input::Membership { source, kind, version, endpoints });
    }

    /// An endpoint said what it serves.
    fn discovered(&self, endpoint: &str, models: &[Box<str>]) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.catalog.load();
        let after = before.with_models(endpoint, models, self.now_seconds());
        let changed = after.route(endpoint).map(|route| &route.models)
            != before.route(endpoint).map(|route| &route.models);
        drop(before);
        if changed {
            tracing::info!(instance_id = endpoint, models = models.len(), "models discovered");
            self.publish(after);
        }
    }

    /// An endpoint at this address was asked what it serves, and this came of it: of no interest where it has left since.
    fn asked(&self, endpoint: &str, address: &str, state: Option<(bool, String)>) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let catalog = self.catalog.load();
        let route = catalog.route(endpoint);
        if route.is_some_and(|route| route.target.base_url.to_string() == address) {
            self.health.discovery(endpoint, state);
        }
    }

    /// An endpoint said whose streams it continues.
    fn described(&self, endpoint: &str, fingerprint: Option<Fingerprint>) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.catalog.load_full();
        let Some(route) = before.route(endpoint) else { return };
        if route.described && route.fingerprint == fingerprint {
            return;
        }
        let after = before.with_fingerprint(endpoint, fingerprint);
        let source = route.source.clone();
        self.publish_source(after, &source);
    }

    /// Grows over restarts too: it counts from the wall clock's milliseconds.
    fn next_version(&self) -> u64 {
        let now = self.world.wall.now().as_millis();
        let next = |last: u64| Some(now.max(last + 1));
        let last = self.version.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        last.map_or(now, |last| now.max(last + 1))
    }

    /// Waits until the turns of stored sessions that are over are written, a few seconds at most. Before [`stop`](Self::stop):
    /// what comes later finds no store. False where some are left.
    pub async fn turns_written(&self) -> bool {
        match &self.sessions {
            Some(sessions) => sessions.turns_written().await,
            None => true,
        }
    }

    /// What the shared store is still to be told of requests that are over.
    #[must_use]
    pub fn untold(&self) -> usize {
        self.untold.as_ref().map_or(0, |untold| untold.left())
    }

    /// Waits until the others have been told what the last requests did, some seconds at most. Before [`stop`](Self::stop),
    /// which ends those that tell it. False where something is left, and said in the log: claims end with their time.
    pub async fn all_told(&self) -> bool {
        let Some(untold) = &self.untold else { return true };
        let left = untold.wait(LAST_WORDS).await;
        if left > 0 {
            tracing::warn!(
                left,
                "the shared store was not told everything: claims end with their time"
            );
        }
        left == 0
    }

    /// Stops what runs beside requests, makes a last snapshot, and closes the journal. The requests are over by now. Blocks:
    /// it belongs on a thread of its own.
    ///
    /// # Errors
    /// Where the disk does not take what is left.
    pub fn stop(&self) -> Result<(), crate::journal::JournalFailed> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let shadow = self.shadow.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(shadow) = shadow {
            shadow.finish();
        }
        if let Some(socket) = &self.socket {
            let _ = std::fs::remove_file(socket);
        }
        self.driver.end();
        if let Some(sessions) = &self.sessions {
            sessions.close();
        }
        let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner).take();
        journal.map_or(Ok(()), Journal::close)
    }

    fn now_seconds(&self) -> u64 {
        self.world.wall.now().as_millis() / 1_000
    }
}

/// Whoever still holds a part of a gateway that is gone meets a driver that takes nothing in, and not a journal that is closed.
impl Drop for Gateway {
    fn drop(&mut self) {
        self.driver.end();
    }
}

/// Where conversations are kept. The gateway role keeps nothing: the chat role alone writes messages.
fn stored_sessions(
    config: &Config,
    joined: Option<&Shared>,
    world: &World,
    health: &Arc<Health>,
) -> Result<Option<Arc<Sessions>>, SessionError> {
    if config.role == Role::Gateway {
        return Ok(None);
    }
    let log = joined.map(|joined| Arc::clone(&joined.sessions));
    Sessions::open(config, log, world, health).map(Some)
}

/// Joins those who share a ledger, where the configuration names one.
fn join(config: &Config, world: &World) -> Result<Option<Shared>, StartError> {
    let Some(redis) = &config.data.redis else { return Ok(None) };
    let salt = getrandom::u64().map_err(StartError::Entropy)?;
    Ok(Some(match &world.beside {
        Beside::Files => Shared::join(redis, &config.data.dir, salt)?,
        Beside::Given { salt: of_all, seed, .. } => {
            let (ids, owner) = (AccountIds::new(*of_all), OwnerId(control::rng::mix(*seed)));
            Shared::given(redis, ids, owner, (salt, world.network.clone()))?
        }
    }))
}

/// Who judges keys, as the configuration says.
fn auth_of(
    config: &Config,
    client: &Client,
    accounts: &Arc<Accounts>,
    health: &Arc<Health>,
) -> Result<Arc<dyn Authenticate>, StartError> {
    let Some(role) = &config.auth.remote else {
        return Ok(Arc::<Accounts>::clone(accounts));
    };
    let target = convert::auth_target(role)?;
    let (accounts, health) = (Arc::clone(accounts), Arc::clone(health));
    let remote = Remote::new(client, &target, &config.auth, accounts, health);
    Ok(Arc::new(remote.map_err(StartError::Auth)?))
}

fn journal_options(config: &Config, world: &World) -> Result<Options, StartError> {
    let journal = &config.journal;
    Ok(Options {
        segment_bytes: journal.segment_bytes.0,
        segments_max: journal.segments_max as usize,
        fsync: match journal.fsync {
            Fsync::Never => FsyncPolicy::Never,
            Fsync::Always => FsyncPolicy::Always,
            Fsync::Every(every) => FsyncPolicy::Interval(every),
        },
        logic_version: LOGIC_VERSION,
        seed: world.beside.seed().map_err(StartError::Entropy)?,
        background: world.background,
        ..Options::default()
    })
}

/// Both sides of the desk before what is shared. The gateway role spends nothing.
fn desk_of(shared: &Shared, health: &Arc<Health>, is_edge: bool) -> (Counter, Desk) {
    Desk::new(Arc::clone(&shared.store), shared.in_flight_max, Arc::clone(health), !is_edge)
}

/// From a recovered plane to a driven one, with its shadow behind it. What was under way when the last life ended is settled
/// here, and the store that is shared is to hear of it: `counter` keeps that until its desk runs.
fn drive(
    recovered: Recovered,
    world: &World,
    (dir, health): (&Path, &Arc<Health>),
    counter: Option<Counter>,
) -> (Arc<Driver>, Follower, Journal) {
    let Recovered { plane, state, next, snapshot, incarnation, journal, .. } = recovered;
    let (last, then) = (plane.now(), plane.wall());
    let clock = Clock::after(last, then, world.wall.clone());
    let observer = Box::new(Arc::clone(health));
    let driver = Driver::new(plane, clock, journal.appender(), observer, world, dir);
    if let Some(counter) = counter {
        driver.set_carrier(Box::new(counter));
    }
    driver.submit(Input::Restarted { incarnation, wall: world.wall.now() });
    let shadow =
        Shadow::new(Arc::clone(&world.disk), dir, journal.appender(), &state, next, snapshot);
    health.follow(shadow.progress());
    (driver, Follower::start(shadow, world.background), journal)
}
