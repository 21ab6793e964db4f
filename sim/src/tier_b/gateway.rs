//! A gateway's machine: the real gateway on a simulated world, life after life.
//!
//! The machine outlives the process: its disk, its registry cache and its operator's orders are here, and each start of
//! the host takes a new process on them. What `pointsman serve` does between configuration and signal is done here in
//! the same order.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use control::plane::{ControlPlane, Input};
use control::quota::OwnerId;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use transport::cache::{Keeping, Listed, ModelCache, Seen};
use transport::chat::Local;
use transport::config::{self, Config, Env, Flags, Role};
use transport::driver::{Progress, RecoveryError};
use transport::front::{Front, Limits, Listener, RpcDoor, Server, Settings};
use transport::gateway::{Gateway, StartError};
use transport::journal::OpenError;
use transport::keys::KeyHash;
use transport::seam::{Background, Beside, Disk, FaultyDisk, Network, Process, WallClock, World};
use transport::worker::Incoming;

use super::client::{PORT, key};
use super::consul;
use super::doors;
use super::plan::{Speaks, TierBPlan, gateway, replica};
use super::redis;
use super::replica::{MODEL, PORT as REPLICA_PORT};
use super::stage::Stage;
use super::wire::Sockets;
use super::worker;

/// Where the data directory lies on the simulated disk.
pub(super) const DIR: &str = "/data";
/// As `pointsman serve` waits for endpoints to say what they serve.
const DISCOVERY_WAIT: Duration = Duration::from_secs(3);
/// Shorter than in production, so that a rolling restart ends within a run.
const DRAIN_GRACE: Duration = Duration::from_secs(4);
/// For the last events of streams on their way to a store that is shared.
const STREAMS_WAIT: Duration = Duration::from_secs(2);
/// Orders of an operator that may wait: a plan has fewer.
const ORDERS_MAX: usize = 64;

/// The machine of one gateway.
pub(super) struct House {
    pub index: u8,
    pub disk: FaultyDisk,
    stage: Arc<Stage>,
    cache: Arc<Shelf>,
    inside: Mutex<Inside>,
}

/// What goes on in it.
#[derive(Default)]
struct Inside {
    orders: Option<mpsc::Sender<Order>>,
    gateway: Weak<Gateway>,
    /// How far the last process's shadow came.
    shadow: Option<Arc<Progress>>,
    /// Replicas that the configuration in force does not name.
    without: u8,
    /// Directories that were moved aside: each has a seed of its own, and is another owner at a ledger that is shared.
    directories: u32,
    /// How the last process ended, where it ended by itself.
    ended: Option<Ended>,
}

/// How a process ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It could not start.
    NotStarted(Obstacle, String),
    /// It was told to stop, and did; the words say what it could not write.
    Stopped(Option<String>),
}

/// What a process could not start over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// The journal does not replay.
    Diverged,
    /// The journal or its snapshots are not sound.
    Damaged,
    /// Anything else: a disk that fails.
    Other,
}

impl Obstacle {
    fn of(error: &StartError) -> Self {
        match error {
            StartError::Recovery(RecoveryError::Diverged { .. }) => Self::Diverged,
            StartError::Recovery(RecoveryError::Open(OpenError::Io { .. })) => Self::Other,
            StartError::Recovery(RecoveryError::Open(_) | RecoveryError::Snapshot(_)) => {
                Self::Damaged
            }
            StartError::Join(_)
            | StartError::Salt(_)
            | StartError::Cache(_)
            | StartError::Sessions(_)
            | StartError::Route(_)
            | StartError::Upstream(_)
            | StartError::Socket { .. }
            | StartError::Auth(_)
            | StartError::Consul(_)
            | StartError::Entropy(_) => Self::Other,
        }
    }
}

/// What an operator wants.
pub(super) enum Order {
    /// Another configuration.
    Reload,
    /// No new requests to a replica, or again.
    Drain(u8, bool),
    /// An end.
    Stop,
}

impl House {
    pub fn new(stage: &Arc<Stage>, index: u8) -> Arc<Self> {
        Arc::new(Self {
            index,
            disk: FaultyDisk::new(),
            stage: Arc::clone(stage),
            cache: Arc::default(),
            inside: Mutex::default(),
        })
    }

    /// The process that runs, if it serves.
    pub fn gateway(&self) -> Option<Arc<Gateway>> {
        self.inside().gateway.upgrade()
    }

    /// How far the shadow of the last process came.
    pub fn shadow(&self) -> Option<Arc<Progress>> {
        self.inside().shadow.clone()
    }

    /// Gives an order. False where nobody is there to take it.
    pub fn order(&self, order: Order) -> bool {
        let orders = self.inside().orders.clone();
        orders.is_some_and(|orders| orders.try_send(order).is_ok())
    }

    /// Whether the process lets a replica run dry; `None` where it is down, does not know the replica now, or has orders
    /// that it has not taken yet (it may be asleep): one of them may say otherwise.
    pub fn drains(&self, which: u8) -> Option<bool> {
        let waiting =
            self.inside().orders.as_ref().map(|orders| orders.max_capacity() - orders.capacity());
        if waiting != Some(0) {
            return None;
        }
        let view = self.gateway()?.driver().look(ControlPlane::view);
        let name = self.stage.plan.behind(self.index, which);
        let known = view.endpoints.iter().find(|endpoint| *endpoint.name == *name)?;
        Some(known.draining)
    }

    /// Changes the file that the next reload or start reads.
    pub fn edit_config(&self, without: u8) {
        self.inside().without = without;
    }

    /// Its directory was moved aside.
    pub fn begins_anew(&self) {
        self.inside().directories += 1;
    }

    /// How the process ended, once.
    pub fn take_ended(&self) -> Option<Ended> {
        self.inside().ended.take()
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config(&self) -> Config {
        let without = self.inside().without;
        config_of(&self.stage.plan, self.index, without)
    }

    fn world(self: &Arc<Self>) -> World {
        let (stage, index) = (Arc::clone(&self.stage), self.index);
        let salt = [self.stage.plan.tenants_of(index).wrapping_add(1); 32];
        World {
            disk: Arc::new(self.disk.process()) as Arc<dyn Disk>,
            network: Network::Simulated(Arc::new(Sockets::new(&self.stage, &gateway(index)))),
            wall: WallClock::Simulated(Arc::new(move || stage.wall(index))),
            background: Background::Tasks,
            process: Arc::new(Simulated(Arc::clone(self))),
            beside: Beside::Given {
                cache: Arc::clone(&self.cache) as Arc<dyn ModelCache>,
                salt,
                seed: self.seed(),
            },
        }
    }

    /// Of a plane in a new directory.
    fn seed(&self) -> u64 {
        let directories = u64::from(self.inside().directories);
        self.stage.plan.seed ^ u64::from(self.index) ^ (directories << 32)
    }

    /// Who it is at a ledger that is shared: as the product makes it of that seed.
    pub fn owner(&self) -> OwnerId {
        OwnerId(control::rng::mix(self.seed()))
    }

    fn ends(&self, how: Ended) {
        let mut inside = self.inside();
        inside.ended = Some(how);
        inside.orders = None;
    }

    /// One life of the process.
    pub async fn live(self: Arc<Self>) -> turmoil::Result {
        let name = gateway(self.index);
        let config = self.config();
        let started = match Gateway::start_in(&config, self.world()) {
            Ok(started) => started,
            Err(error) => {
                self.stage.word(format!("{name} cannot start: {error}"));
                self.ends(Ended::NotStarted(Obstacle::of(&error), error.to_string()));
                return Ok(());
            }
        };
        let (orders, taken) = mpsc::channel(ORDERS_MAX);
        {
            let mut inside = self.inside();
            inside.gateway = Arc::downgrade(&started);
            inside.shadow = started.health().shadow();
            inside.orders = Some(orders);
        }
        let _ = timeout(DISCOVERY_WAIT, started.discover()).await;
        let front = self.front(&started);
        let port = if config.role == Role::Chat { doors::PORT } else { PORT };
        let door = Sockets::new(&self.stage, &name).listen(port).await?;
        started.health().set_serving(true);
        self.stage.word(format!("{name} serves"));
        let (stop, stopping) = oneshot::channel();
        tokio::spawn(Arc::clone(&self).obey(Arc::clone(&started), taken, stop));
        let stopping = async { drop(stopping.await) };
        if config.role == Role::Chat {
            let door = RpcDoor::plain(Incoming::Simulated(Box::new(door)));
            front.serve_rpc(door, stopping, DRAIN_GRACE).await?;
        } else {
            let listener = Listener::simulated(Box::new(door));
            let server = Server::new(Limits::default(), front.meters()).listen(listener);
            server.serve(front.router(), stopping, DRAIN_GRACE).await;
        }
        // Those whose clients are away ran on until here.
        started.streams().stop(STREAMS_WAIT).await;
        let settled = async {
            // The store that is shared hears of the last of them, as long as it answers.
            while started.requests() > 0 || started.untold() > 0 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = timeout(Duration::from_secs(2), settled).await;
        let _ = (started.turns_written().await, started.all_told().await);
        let stopped = started.stop();
        self.stage.word(format!("{name} stopped: {stopped:?}"));
        self.ends(Ended::Stopped(stopped.err().map(|error| error.to_string())));
        Ok(())
    }

    /// As `pointsman serve` makes it of a role.
    fn front(&self, started: &Gateway) -> Front<Local> {
        let edge = self.stage.plan.is_door(self.index);
        let (streams, till) = (started.streams(), started.till());
        let settings = Settings { edge, streams, till, ..Settings::default() };
        Front::with(Arc::new(started.chat()), started.auth(), settings)
    }

    async fn obey(
        self: Arc<Self>,
        gateway: Arc<Gateway>,
        mut orders: mpsc::Receiver<Order>,
        stop: oneshot::Sender<()>,
    ) {
        while let Some(order) = orders.recv().await {
            match order {
                Order::Reload => {
                    let reloaded = gateway.reconfigure(&self.config());
                    self.stage.word(format!("gateway-{} reloaded: {reloaded:?}", self.index));
                }
                Order::Drain(which, on) => {
                    let endpoint = self.stage.plan.behind(self.index, which).into();
                    gateway.driver().submit(Input::Drain { endpoint, on });
                }
                Order::Stop => {
                    gateway.health().set_serving(false);
                    drop(gateway);
                    let _ = stop.send(());
                    return;
                }
            }
        }
    }
}

/// A process that ends itself: its files are cut off at once, and the machine's keeper hears of it.
struct Simulated(Arc<House>);

impl Process for Simulated {
    fn abort(&self, why: &str) {
        let House { index, disk, stage, .. } = &*self.0;
        disk.kill();
        stage.word(format!("gateway-{index} aborts: {why}"));
        stage.scene().aborted.push((*index, why.to_owned()));
    }
}

/// A registry cache that outlives processes.
#[derive(Default)]
struct Shelf(Mutex<Shelved>);

#[derive(Default)]
struct Shelved {
    /// By endpoint and address.
    seen: BTreeMap<(String, String), Seen>,
    /// By registry.
    listed: BTreeMap<String, Listed>,
}

impl Shelf {
    fn inside(&self) -> MutexGuard<'_, Shelved> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ModelCache for Shelf {
    fn get(&self, endpoint: &str, address: &str) -> Option<Seen> {
        self.inside().seen.get(&(endpoint.to_owned(), address.to_owned())).cloned()
    }

    fn keep(self: Arc<Self>, endpoint: String, address: String, seen: Seen) -> Keeping {
        self.inside().seen.insert((endpoint, address), seen);
        Box::pin(std::future::ready(Ok(())))
    }

    fn listed(&self, source: &str) -> Option<Listed> {
        self.inside().listed.get(source).cloned()
    }

    fn keep_listed(self: Arc<Self>, source: String, listed: Listed) -> Keeping {
        self.inside().listed.insert(source, listed);
        Box::pin(std::future::ready(Ok(())))
    }
}

/// A tenant's name: each gateway has its own, for each has a ledger of its own.
pub(super) fn tenant(gateway: u8, tenant: Option<u8>) -> String {
    match tenant {
        Some(tenant) => format!("tenant-{gateway}-{tenant}"),
        None => format!("tenant-{gateway}-free"),
    }
}

/// A gateway's configuration, without its last replicas.
fn config_of(plan: &TierBPlan, index: u8, without: u8) -> Config {
    let role = doors::role(plan, index);
    let text = yaml(plan, index, without);
    let flags = Flags { role, ..Flags::default() };
    let loaded = config::parse("plan", text.as_bytes(), &flags, &Env::default());
    let mut config = match loaded {
        Ok(loaded) => loaded.config,
        Err(errors) => panic!("the plan's configuration is refused: {errors}\n{text}"),
    };
    // Below what a file may say: a minute's records must turn the ring.
    config.journal.segment_bytes = transport::config::ByteSize(plan.knobs.segment_bytes);
    config.data.dir = PathBuf::from(DIR);
    config
}

/// Where a replica is for a gateway, and whom to believe there.
fn url(plan: &TierBPlan, of: u8, index: u8) -> String {
    let (name, (grpc, quic)) = (replica(index), worker::ports(plan, of));
    match plan.speaks(index) {
        Speaks::Http => format!("'http://{name}:{REPLICA_PORT}'"),
        Speaks::Grpc => format!("'grpc://{name}:{grpc}'"),
        Speaks::Quic => {
            let pin = worker::identity().pin();
            format!("'quic://{name}:{quic}', tls: {{pin: '{pin}'}}")
        }
    }
}

fn yaml(plan: &TierBPlan, index: u8, without: u8) -> String {
    let k = &plan.knobs;
    let fsync = if k.fsync_ms == 0 { "always".into() } else { format!("{}ms", k.fsync_ms) };
    let mut text = format!(
        "version: 1\n\
         journal: {{segments_max: {}, fsync: {fsync}}}\n\
         routing:\n  max_retries: {}\n  load_balancer: {}\n\
         \x20 timeouts: {{connect: {}ms, first_token: {}ms, between_tokens: {}ms, request: {}ms}}\n\
         \x20 retry_budget: {{percent: {}}}\n\
         \x20 hedge: {{after: {}ms, share_percent: 100}}\n\
         \x20 breaker: {{consecutive_failures: {}, ejection_base: {}ms, ejection_max: {}ms, \
         probe_timeout: {}ms, slow_start: 1s}}\n",
        k.segments_max,
        k.max_retries,
        k.load_balancer,
        k.connect_ms,
        k.first_token_ms,
        k.between_tokens_ms,
        k.request_ms,
        k.retry_percent,
        k.hedge_ms,
        k.breaker_failures,
        k.ejection_ms,
        4 * k.ejection_ms,
        k.first_token_ms,
    );
    if k.grace_ms > 0 {
        let _ = writeln!(text, "streams: {{grace: {}ms}}", k.grace_ms);
    }
    if plan.consul {
        let _ = writeln!(
            text,
            "discovery: {{consul: {{addr: 'http://{}:{}'}}}}",
            consul::HOST,
            consul::PORT
        );
    }
    let endpoints: Vec<String> = (0..plan.replicas - without)
        .map(|at| format!("{{url: {}, name: {}}}", url(plan, index, at), replica(at)))
        .collect();
    let endpoints = endpoints.join(", ");
    let (input, output) = k.price;
    let price = format!("price: {{input: {input}, output: {output}}}");
    // Where a model's endpoints are discovered it has no prices: those belong to the models that are listed.
    let _ = match k.discovered {
        _ if plan.consul => Ok(()),
        true => writeln!(text, "upstreams: [{endpoints}]"),
        false => writeln!(text, "models:\n  {MODEL}: {{endpoints: [{endpoints}], {price}}}"),
    };
    if plan.shared {
        let _ = writeln!(text, "data: {{redis: {{addr: '{}:{}'}}}}", redis::HOST, redis::PORT);
    }
    text.push_str(&doors::listed(plan, index, without));
    let index = plan.tenants_of(index);
    text.push_str("tenants:\n");
    let tenants = (0..k.tenant_tokens.len()).map(|at| u8::try_from(at).ok()).chain([None]);
    let mut keys = String::from("keys:\n");
    for (at, number) in tenants.enumerate() {
        let name = tenant(index, number);
        let limits = match k.tenant_tokens.get(at) {
            Some(tokens) => format!("{{daily_tokens: {tokens}}}"),
            None => "{}".to_owned(),
        };
        let _ = writeln!(text, "  {name}: {limits}");
        let hash = KeyHash::of(&key(index, number));
        let _ = writeln!(keys, "  - {{hash: '{hash}', tenant: {name}, name: {name}}}");
    }
    text + &keys
}
