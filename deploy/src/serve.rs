//! `pointsman serve`: from flags to a gateway that serves, and from a signal to one that has left nothing behind.

mod demo_fleet;
mod doors;
mod keys;
mod own_key;
mod reload;
mod told;
mod welcome;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use transport::config::{self, Config, Env, Errors, Flags, Loaded, LogFormat, LogLevel, Role};
use transport::front::{Front, Limits, Listener, Server, Settings};
use transport::gateway::Gateway;
use transport::logs;

use crate::cli::ServeArgs;
use crate::spans::{Spans, SpansError};
use demo_fleet::DemoFleet;
use doors::{Claims, Doors};
use told::Told;

/// How long a start waits for endpoints to say what they serve. Those that take longer are served when they have said.
const DISCOVERY_WAIT: Duration = Duration::from_secs(3);

/// How long a stop waits for the last events of streams that were still running.
const STREAMS_WAIT: Duration = Duration::from_secs(2);

/// What stops a start, and the exit status that says so.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("{0}")]
    Config(#[from] Errors),
    #[error("{0}")]
    Logs(#[from] logs::SettingsError),
    #[error("cannot listen on {addr} ({key}): {source}")]
    Listen { addr: std::net::SocketAddr, key: &'static str, source: std::io::Error },
    #[error("{0}")]
    Rpc(#[from] transport::front::RpcError),
    #[error("{0}")]
    Gateway(#[from] transport::gateway::StartError),
    #[error("{0}")]
    Tls(#[from] transport::tls::TlsError),
    #[error("{0}")]
    OwnKey(#[from] own_key::OwnKeyError),
    #[error("{0}")]
    Spans(#[from] SpansError),
    #[error("the built-in replicas cannot start: {0}")]
    Demo(std::io::Error),
    #[error("{0}")]
    Runtime(std::io::Error),
}

pub fn run(args: &ServeArgs) -> ExitCode {
    match start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pointsman cannot serve: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &ServeArgs) -> Result<(), StartError> {
    let flags = Flags {
        listen: args.listen.clone(),
        data: args.data.clone(),
        upstreams: args.upstream.clone(),
        role: args.role.into(),
        ..Flags::default()
    };
    let env = Env::process();
    let loaded = config::load(args.config.as_deref(), &flags, &env)?;
    let (level, format) = log_words(&loaded.config.log);
    let settings = logs::Settings::new(Some(level), format)?;
    // Only a second start in one process could fail here, and there is none.
    let _ = logs::init(settings);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(StartError::Runtime)?;
    let served = runtime.block_on(async {
        let told = Told::listen();
        match loaded.config.role {
            Role::Auth => keys::serve(args.config.clone(), (flags, env), loaded, &told).await,
            Role::All | Role::Gateway | Role::Chat => {
                serve(args, (flags, env), loaded, &told).await
            }
        }
    });
    // A start that was given up may still read its journal: that ends with the process.
    runtime.shutdown_background();
    served
}

async fn serve(
    args: &ServeArgs,
    (flags, env): (Flags, Env),
    loaded: Loaded,
    told: &Told,
) -> Result<(), StartError> {
    let Loaded { mut config, fingerprint, .. } = loaded;
    let fleet = if config.is_demo() {
        Some(DemoFleet::start().await.map_err(StartError::Demo)?)
    } else {
        None
    };
    if let Some(fleet) = &fleet {
        fleet.join(&mut config);
    }
    let claims = Claims::take(&config)?;
    let widest = claims.widest();
    let own_key = own_key::if_needed(&config, widest)?;
    let spans = Spans::start(&config.monitoring.tracing, "pointsman", &env)?;
    let Some(gateway) = told.before(started(&config)).await else {
        tracing::info!("stopped before it served: it was told to stop while it started");
        return Ok(());
    };
    let gateway = gateway?;
    if !widest.ip().is_loopback() {
        gateway.accounts().shut();
    }
    if let Some(own) = &own_key {
        gateway.accounts().set_own_key(own.entry.clone(), &config);
    }
    let _ = told.before(tokio::time::timeout(DISCOVERY_WAIT, gateway.discover())).await;
    let settings = Settings {
        limits: limits(&config),
        streams: gateway.streams(),
        tracer: spans.tracer(),
        edge: config.role == Role::Gateway,
        till: gateway.till(),
    };
    let front = Front::with(Arc::new(gateway.chat()), gateway.auth(), settings);
    // First what is claimed: who shares its port with it must not take that.
    let doors = claims.open()?;
    let admin = admin_server(&config, &front, limits(&config))?;
    let health = gateway.health();
    health.set_serving(true);
    welcome::print(&config, &doors, &gateway.catalog(), own_key.as_ref(), fleet.is_some());
    let reloading = args.config.clone().map(|path| {
        let watched =
            reload::Watched { path, flags, env, fingerprint, started_with: config.clone() };
        tokio::spawn(reload::run(watched, Arc::clone(&gateway)))
    });
    let served = tokio::select! {
        served = serve_doors(doors, &front, &config, (health, told)) => served,
        () = admin => unreachable!("the admin server runs until it is dropped"),
    };
    if let Some(task) = reloading {
        task.abort();
    }
    stop_gateway(gateway).await;
    spans.stop().await;
    served
}

/// The gateway, started on a thread of its own: journals and stores are waited for there, signals here.
async fn started(config: &Config) -> Result<Arc<Gateway>, StartError> {
    let config = config.clone();
    match tokio::task::spawn_blocking(move || Gateway::start(&config)).await {
        Ok(started) => Ok(started?),
        Err(error) => Err(StartError::Runtime(error.into())),
    }
}

/// Serves at every door until the process is told to stop, or one of them fails.
async fn serve_doors(
    doors: Doors,
    front: &Front<transport::chat::Local>,
    config: &Config,
    (health, told): (Arc<transport::health::Health>, &Told),
) -> Result<(), StartError> {
    let stop = CancellationToken::new();
    let grace = config.server.http.drain_grace;
    let told = async {
        tokio::select! {
            () = told.stop() => {
                tracing::info!("draining: no new requests; what runs may finish");
                // `/ready` says so first.
                health.set_serving(false);
                stop.cancel();
            }
            () = stop.cancelled() => {}
        }
    };
    let http = async {
        let Some(listener) = doors.http else { return };
        let server = Server::new(limits(config), front.meters()).listen(listener);
        let drained = server.serve(front.router(), stop.cancelled(), grace).await;
        if drained.cut > 0 {
            tracing::warn!(
                connections = drained.cut,
                "the grace time was over: what still ran was cut"
            );
        }
    };
    let grpc = async {
        let Some(door) = doors.grpc else { return Ok(()) };
        let served = front.serve_rpc(door, stop.cancelled(), grace).await;
        stop.cancel();
        served.map_err(StartError::Rpc)
    };
    let quota = async {
        let Some(door) = doors.quota else { return Ok(()) };
        let served = front.serve_quota(door, stop.cancelled(), grace).await;
        stop.cancel();
        served.map_err(StartError::Rpc)
    };
    let ((), (), grpc, quota) = tokio::join!(told, http, grpc, quota);
    grpc.and(quota)
}

/// Requests that were cut tell the plane so within moments; then the journal is closed.
async fn stop_gateway(gateway: Arc<Gateway>) {
    // Those whose clients are away ran on until here.
    gateway.streams().stop(STREAMS_WAIT).await;
    let settled = async {
        while gateway.requests() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(2), settled).await.is_err() {
        tracing::warn!("requests are still under way: they will be settled at the next start");
    }
    if !gateway.turns_written().await {
        tracing::warn!(
            "turns of sessions are not written: they are lost, and their clients were not told that they are kept"
        );
    }
    // What is left was said.
    let _ = gateway.all_told().await;
    let stopped = tokio::task::spawn_blocking(move || gateway.stop()).await;
    match stopped {
        Ok(Ok(())) => tracing::info!("stopped; everything is written"),
        Ok(Err(error)) => tracing::error!(%error, "stopped, but the journal could not be closed"),
        Err(error) => tracing::error!(%error, "stopping broke"),
    }
}

fn log_words(log: &config::Log) -> (&'static str, Option<&'static str>) {
    let level = match log.level {
        LogLevel::Trace => "trace",
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
    };
    let format = match log.format {
        LogFormat::Auto => None,
        LogFormat::Json => Some("json"),
        LogFormat::Text => Some("text"),
    };
    (level, format)
}

fn limits(config: &Config) -> Limits {
    let http = &config.server.http;
    Limits {
        connections_max: http.connections_max as usize,
        header_time: http.header_timeout,
        body_max: usize::try_from(http.body_bytes_max.0).unwrap_or(usize::MAX),
        exchange_time: Some(http.timeout),
        ..Limits::default()
    }
}

/// Health, and metrics where they are wanted, on a port of their own. A default port that somebody else has is no reason not to serve.
fn admin_server(
    config: &Config,
    front: &Front<transport::chat::Local>,
    limits: Limits,
) -> Result<impl Future<Output = ()> + use<>, StartError> {
    let addr = config.server.admin.addr;
    let bound = match Listener::bind(addr) {
        Ok(listener) => Some(listener),
        Err(error) if addr == config::Admin::default_addr(config.role) => {
            let instead = match config.role {
                Role::All | Role::Gateway => "they are at the API's port too",
                Role::Chat | Role::Auth => "give this process a server.admin.addr of its own",
            };
            tracing::warn!(%error, "no health or metrics on {addr}: somebody else listens there; {instead}");
            None
        }
        Err(source) => {
            return Err(StartError::Listen { addr, key: "server.admin.addr", source });
        }
    };
    let (meters, router) =
        (front.meters(), front.meta_router(config.monitoring.prometheus_enabled));
    Ok(async move {
        if let Some(listener) = bound {
            let server = Server::new(limits, meters).listen(listener);
            server.serve(router, std::future::pending(), Duration::ZERO).await;
        }
        std::future::pending().await
    })
}
