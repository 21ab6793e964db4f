//! The connection: one, multiplexed, redialled when it breaks; every call with a deadline, and no more of them at once
//! than may be.
//!
//! Nothing is repeated here except a script the server does not know yet. Who asks decides whether to ask again: asks are
//! idempotent, so a lost answer is no worse than a slow one.

use core::time::Duration;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ErrorKind,
    IntoConnectionInfo as _, RedisConnectionInfo, RedisError, ServerErrorKind, TlsCertificates,
    Value,
};
use tokio::sync::{OwnedMutexGuard, Semaphore};
use tokio::time::timeout;

use super::error::StoreError;
use super::script::{Call, Source};
use crate::config::Secret;
use crate::seam::{Dial, Network};

/// Where Redis is and how to speak to it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Hosts and ports. Standalone: the one among them that says it is the primary. Cluster: any of its nodes.
    pub addresses: Vec<(String, u16)>,
    /// It is a cluster.
    pub cluster: bool,
    /// Who we are; `None` is the default user.
    pub user: Option<String>,
    /// How we prove it.
    pub password: Option<Secret>,
    /// Which database. A cluster has only 0.
    pub db: u32,
    /// TLS, where wanted.
    pub tls: Option<Tls>,
    /// The longest a connection may take.
    pub dial_timeout: Duration,
    /// The longest a call may take, waiting for a connection included.
    pub call_timeout: Duration,
    /// Calls on their way at once, of the ledger and beside it each; the next is refused.
    pub in_flight_max: usize,
}

/// TLS 1.2 or 1.3 by rustls.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// The authorities trusted, PEM; `None` for those of the system.
    pub roots: Option<Vec<u8>>,
    /// Our own certificate chain and key, PEM, where the server wants to see one.
    pub identity: Option<(Vec<u8>, Secret)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            addresses: vec![("127.0.0.1".to_owned(), 6_379)],
            cluster: false,
            user: None,
            password: None,
            db: 0,
            tls: None,
            dial_timeout: Duration::from_secs(1),
            // Below the plane's own patience (250 ms), so that an ask is over here before it is given up there.
            call_timeout: Duration::from_millis(200),
            // A thousand calls are some milliseconds of a healthy server's time: more only wait in line.
            in_flight_max: 1_024,
        }
    }
}

/// Why the settings cannot be used at all. Found before anything is dialled.
#[derive(Debug, thiserror::Error)]
#[error("these Redis settings cannot be used: {0}")]
pub struct SettingsError(String);

/// Waits before dialling again: the first, doubling up to the last. A server that comes back is found within a second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// After so many calls in a row without an answer the connection is taken for dead: a network that swallows packets
/// breaks no connection for minutes.
const SILENT_MAX: u32 = 3;

/// Calls Redis. Cheap to share by reference; holds at most one connection (per node of a cluster).
#[derive(Debug)]
pub(super) struct Caller {
    dialler: Arc<Dialler>,
    link: Arc<Mutex<Option<Link>>>,
    dialling: Arc<tokio::sync::Mutex<Backoff>>,
    in_flight: Semaphore,
    silent: Arc<AtomicU32>,
}

#[derive(Clone)]
enum Link {
    One(u64, MultiplexedConnection),
    Cluster(u64, ClusterConnection),
}

#[derive(Debug)]
struct Dialler {
    settings: Settings,
    network: Network,
    one: Vec<Client>,
    cluster: Option<ClusterClient>,
}

#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
    not_before: Option<Instant>,
    last: String,
    /// Numbers links, so that only the one that failed is given up.
    links: u64,
}

impl Caller {
    pub fn new(settings: Settings, network: Network) -> Result<Self, SettingsError> {
        let in_flight = Semaphore::new(settings.in_flight_max);
        Ok(Self {
            dialler: Arc::new(Dialler::new(settings, network)?),
            link: Arc::default(),
            dialling: Arc::default(),
            in_flight,
            silent: Arc::default(),
        })
    }

    /// The same connection for what is asked beside the ledger, with as many calls on their way of its own: what is told
    /// behind the requests' backs refuses no reservation a place.
    pub fn beside(&self) -> Self {
        Self {
            dialler: Arc::clone(&self.dialler),
            link: Arc::clone(&self.link),
            dialling: Arc::clone(&self.dialling),
            in_flight: Semaphore::new(self.dialler.settings.in_flight_max),
            silent: Arc::clone(&self.silent),
        }
    }

    /// Runs a script.
    pub async fn call(&self, call: &Call<'_>) -> Result<Value, StoreError> {
        self.script(|whole| call.command(whole)).await
    }

    /// Runs one by its SHA, and where the server does not know it yet, by its text (`command(true)`).
    pub async fn script(&self, command: impl Fn(bool) -> Cmd) -> Result<Value, StoreError> {
        match self.send(&command(false)).await {
            Err(Failure::UnknownScript) => self.send(&command(true)).await,
            sent => sent,
        }
        .map_err(|failure| match failure {
            Failure::Store(error) => error,
            Failure::UnknownScript => {
                StoreError::Garbled("NOSCRIPT for a script's own text".into())
            }
        })
    }

    /// Runs one that touches one key.
    pub async fn script_on(
        &self,
        source: &Source,
        key: String,
        arguments: impl Fn(&mut Cmd),
    ) -> Result<Value, StoreError> {
        let command = |whole| {
            let mut command = source.command(whole);
            command.arg(1).arg(&key);
            arguments(&mut command);
            command
        };
        self.script(command).await
    }

    /// Any other command.
    pub async fn command(&self, command: &Cmd) -> Result<Value, StoreError> {
        self.send(command).await.map_err(Failure::into_store)
    }

    async fn send(&self, command: &Cmd) -> Result<Value, Failure> {
        let limit = self.dialler.settings.call_timeout;
        let Ok(_place) = self.in_flight.try_acquire() else {
            return Err(StoreError::Busy(self.dialler.settings.in_flight_max).into());
        };
        let sent = timeout(limit, async {
            let mut link = self.link().await.map_err(Failure::Store)?;
            let id = link.id();
            Ok((id, link.send(command).await))
        });
        match sent.await {
            Err(_) => {
                if self.silent.fetch_add(1, Ordering::Relaxed) + 1 >= SILENT_MAX {
                    self.silent.store(0, Ordering::Relaxed);
                    *self.slot() = None;
                }
                Err(StoreError::Unanswered(limit.as_millis()).into())
            }
            Ok(Err(failure)) => Err(failure),
            Ok(Ok((id, answer))) => {
                self.silent.store(0, Ordering::Relaxed);
                answer.map_err(|error| self.failed(id, &error))
            }
        }
    }

    fn failed(&self, link: u64, error: &RedisError) -> Failure {
        if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) {
            return Failure::UnknownScript;
        }
        // One that is loading serves on this very connection, once it has.
        let is_loading = error.kind() == ErrorKind::Server(ServerErrorKind::BusyLoading);
        let error = StoreError::of(error);
        // A cluster's connection mends itself.
        if error.wants_new_link() && !is_loading && !self.dialler.settings.cluster {
            let mut slot = self.slot();
            if slot.as_ref().is_some_and(|current| current.id() == link) {
                *slot = None;
            }
        }
        Failure::Store(error)
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, or a new one. Dialling goes on though the caller has stopped waiting; one at a time does it.
    async fn link(&self) -> Result<Link, StoreError> {
        if let Some(link) = self.slot().clone() {
            return Ok(link);
        }
        let backoff = Arc::clone(&self.dialling).lock_owned().await;
        if let Some(link) = self.slot().clone() {
            return Ok(link);
        }
        if backoff.not_before.is_some_and(|moment| Instant::now() < moment) {
            return Err(StoreError::Away(backoff.last.clone()));
        }
        let (dialler, slot) = (Arc::clone(&self.dialler), Arc::clone(&self.link));
        let dialled = tokio::spawn(dial(dialler, slot, backoff)).await;
        dialled.unwrap_or_else(|_| Err(StoreError::Away("the dialling task ended".into())))
    }
}

async fn dial(
    dialler: Arc<Dialler>,
    slot: Arc<Mutex<Option<Link>>>,
    mut backoff: OwnedMutexGuard<Backoff>,
) -> Result<Link, StoreError> {
    backoff.links += 1;
    match dialler.dial(backoff.links).await {
        Ok(link) => {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(link.clone());
            (backoff.failures, backoff.not_before) = (0, None);
            Ok(link)
        }
        Err(why) => {
            let (first, last) = BACKOFF;
            // Five doublings pass the longest wait.
            let wait = first.saturating_mul(1 << backoff.failures.min(5)).min(last);
            backoff.failures = backoff.failures.saturating_add(1);
            backoff.not_before = Some(Instant::now() + wait);
            backoff.last.clone_from(&why);
            Err(StoreError::Away(why))
        }
    }
}

/// Why a command has no answer: as an owner is told, or a script to be sent whole.
enum Failure {
    Store(StoreError),
    UnknownScript,
}

impl Failure {
    fn into_store(self) -> StoreError {
        match self {
            Self::Store(error) => error,
            Self::UnknownScript => {
                StoreError::Garbled("NOSCRIPT for what is no script's SHA".into())
            }
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Link {
    const fn id(&self) -> u64 {
        match self {
            Self::One(id, _) | Self::Cluster(id, _) => *id,
        }
    }

    async fn send(&mut self, command: &Cmd) -> Result<Value, RedisError> {
        match self {
            Self::One(_, connection) => connection.req_packed_command(command).await,
            Self::Cluster(_, connection) => connection.req_packed_command(command).await,
        }
        .and_then(Value::extract_error)
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Link({})", self.id())
    }
}

impl Dialler {
    fn new(settings: Settings, network: Network) -> Result<Self, SettingsError> {
        let wrong = |error: RedisError| SettingsError(error.to_string());
        if settings.addresses.is_empty() {
            return Err(SettingsError("no address".into()));
        }
        if settings.cluster && settings.db != 0 {
            return Err(SettingsError("a cluster has database 0 alone".into()));
        }
        let is_simulated = matches!(network, Network::Simulated(_));
        if is_simulated && (settings.cluster || settings.tls.is_some()) {
            return Err(SettingsError("a simulated network has no clusters and no TLS".into()));
        }
        let certificates = settings.tls.as_ref().map(Tls::certificates);
        let mut infos = Vec::new();
        for (host, port) in &settings.addresses {
            let (host, port) = (host.clone(), *port);
            let address = match &settings.tls {
                None => ConnectionAddr::Tcp(host, port),
                Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
            };
            let info = address.into_connection_info().map_err(wrong)?;
            infos.push(info.set_redis_settings(settings.login()));
        }
        if settings.cluster {
            let mut builder = ClusterClientBuilder::new(infos)
                .connection_timeout(settings.dial_timeout)
                // The deadline of a call is ours: this one only keeps a dead node from being waited for by others.
                .response_timeout(settings.call_timeout.saturating_mul(2))
                // Redirections while slots move; anything longer is the owner's to repeat.
                .retries(3)
                .max_retry_wait(50);
            if let Some(certificates) = certificates {
                builder = builder.certs(certificates);
            }
            let cluster = Some(builder.build().map_err(wrong)?);
            return Ok(Self { settings, network, one: Vec::new(), cluster });
        }
        let clients = infos.into_iter().map(|info| match &certificates {
            Some(certificates) => Client::build_with_tls(info, certificates.clone()),
            None => Client::open(info),
        });
        let one = clients.collect::<Result<_, _>>().map_err(wrong)?;
        Ok(Self { settings, network, one, cluster: None })
    }

    async fn dial(&self, id: u64) -> Result<Link, String> {
        let limit = self.settings.dial_timeout;
        if let Some(cluster) = &self.cluster {
            return match timeout(limit, cluster.get_async_connection()).await {
                Ok(Ok(connection)) => Ok(Link::Cluster(id, connection)),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no connection within {} ms", limit.as_millis())),
            };
        }
        let mut why = Vec::new();
        for (client, (host, port)) in self.one.iter().zip(&self.settings.addresses) {
            match timeout(limit, self.dial_one(client)).await {
                Ok(Ok(connection)) => return Ok(Link::One(id, connection)),
                Ok(Err(error)) => why.push(format!("{host}:{port}: {error}")),
                Err(_) => {
                    why.push(format!(
                        "{host}:{port}: no connection within {} ms",
                        limit.as_millis()
                    ));
                }
            }
        }
        Err(why.join("; "))
    }

    /// A connection to a primary. A replica refuses writes, so there is no use in it.
    async fn dial_one(&self, client: &Client) -> Result<MultiplexedConnection, String> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.settings.dial_timeout))
            // The deadline of a call is ours alone.
            .set_response_timeout(None);
        let connected = match &self.network {
            Network::Real => client.get_multiplexed_async_connection_with_config(&config).await,
            Network::Simulated(dial) => connect(&**dial, client, config).await,
        };
        let mut connection = connected.map_err(|error| error.to_string())?;
        let info: String = redis::cmd("INFO")
            .arg("replication")
            .query_async(&mut connection)
            .await
            .map_err(|error| error.to_string())?;
        if info.contains("role:master") { Ok(connection) } else { Err("is a replica".into()) }
    }
}

/// A connection over a simulated network.
async fn connect(
    dial: &dyn Dial,
    client: &Client,
    config: AsyncConnectionConfig,
) -> Result<MultiplexedConnection, RedisError> {
    let info = client.get_connection_info();
    let ConnectionAddr::Tcp(host, port) = info.addr() else {
        return Err(io::Error::from(io::ErrorKind::Unsupported).into());
    };
    let stream = dial.dial(host, *port).await?;
    let login = info.redis_settings();
    let (connection, driver) =
        MultiplexedConnection::new_with_config(login, stream, config).await?;
    // It ends with the last of the connection's handles.
    tokio::spawn(driver);
    Ok(connection)
}

impl Settings {
    fn login(&self) -> RedisConnectionInfo {
        let mut login = RedisConnectionInfo::default().set_db(i64::from(self.db));
        if let Some(user) = &self.user {
            login = login.set_username(user);
        }
        if let Some(password) = &self.password {
            login = login.set_password(password.expose());
        }
        login
    }
}

impl Tls {
    fn certificates(&self) -> TlsCertificates {
        TlsCertificates {
            root_cert: self.roots.clone(),
            client_tls: self.identity.as_ref().map(|(chain, key)| ClientTlsConfig {
                client_cert: chain.clone(),
                client_key: key.expose().as_bytes().to_vec(),
            }),
        }
    }
}
