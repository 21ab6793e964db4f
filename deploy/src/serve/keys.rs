//! `pointsman serve --role auth`: no plane, no journal, no data directory; keys, two ports, and the file that names the keys.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use transport::auth;
use transport::config::{Config, Env, Flags, Loaded, POLL_INTERVAL, restart_required, watch};
use transport::front::{Limits, Listener, Server};

use super::StartError;
use super::doors::{Claims, Doors};
use super::told::Told;
use crate::out::say;
use crate::spans::Spans;

/// Probes and scrapes come from a handful of places.
const PAGES_MAX: usize = 64;

pub async fn serve(
    path: Option<PathBuf>,
    (flags, env): (Flags, Env),
    loaded: Loaded,
    told: &Told,
) -> Result<(), StartError> {
    let Loaded { config, fingerprint, .. } = loaded;
    // Both ports are bound before anything is served: who is in the way is named.
    let claims = Claims::take(&config)?;
    let pages = pages(&config)?;
    let spans = Spans::start(&config.monitoring.tracing, "pointsman-auth", &env)?;
    let role = auth::Role::new(&config, spans.tracer());
    let limits = Limits { connections_max: PAGES_MAX, ..Limits::default() };
    let (server, router) = (Server::new(limits, Arc::default()).listen(pages), role.router());
    let _pages = AbortOnDropHandle::new(tokio::spawn(async move {
        server.serve(router, std::future::pending(), config.server.http.drain_grace).await;
    }));
    let doors = claims.open()?;
    greet(&config, &doors);
    let watching = path.map(|path| {
        let changes = watch(path, flags, env, fingerprint, POLL_INTERVAL);
        AbortOnDropHandle::new(tokio::spawn(reload(changes, Arc::clone(&role), config.clone())))
    });
    role.set_serving(true);
    let stop = CancellationToken::new();
    let door = doors.grpc.expect("the auth role always has an address for gRPC");
    let grace = config.server.http.drain_grace;
    let serving = async {
        let served = role.serve(door, stop.cancelled(), grace).await;
        stop.cancel();
        served
    };
    let stopping = async {
        tokio::select! {
            () = told.stop() => {
                tracing::info!("draining: no new requests; what runs may finish");
                role.set_serving(false);
                stop.cancel();
            }
            () = stop.cancelled() => {}
        }
    };
    let (served, ()) = tokio::join!(serving, stopping);
    drop(watching);
    spans.stop().await;
    tracing::info!("stopped");
    served.map_err(StartError::Rpc)
}

/// `/health` and its like have a port of their own here, and nothing else has them: one that is taken is an error.
fn pages(config: &Config) -> Result<Listener, StartError> {
    let addr = config.server.admin.addr;
    let taken = |source| StartError::Listen { addr, key: "server.admin.addr", source };
    Listener::bind(addr).map_err(taken)
}

fn greet(config: &Config, doors: &Doors) {
    let scheme = if config.server.grpc_tls.is_some() { "auths" } else { "auth" };
    let addr = doors.addr;
    say!("pointsman {} serves {scheme}://{addr} (gRPC)", env!("CARGO_PKG_VERSION"));
    say!("  keys: {}", config.keys.len());
    let pages = if config.monitoring.prometheus_enabled { "health and metrics" } else { "health" };
    say!("  {pages}: http://{}/health", config.server.admin.addr);
    say!("the other roles: auth: {{url: {scheme}://{addr}}}");
}

/// A changed file changes the keys; one that is refused changes nothing, and is named.
async fn reload(
    mut changes: tokio::sync::mpsc::Receiver<Result<Loaded, transport::config::Errors>>,
    role: Arc<auth::Role>,
    started_with: Config,
) {
    while let Some(change) = changes.recv().await {
        match change {
            Ok(loaded) => {
                role.reconfigure(&loaded.config);
                for warning in &loaded.warnings {
                    tracing::warn!("{warning}");
                }
                let waiting = restart_required(&started_with, &loaded.config);
                let keys = loaded.config.keys.len();
                if waiting.is_empty() {
                    tracing::info!(keys, "the changed configuration is in effect");
                } else {
                    let waiting = waiting.join(", ");
                    tracing::warn!(
                        keys,
                        "the changed configuration is in effect, except what needs a restart: {waiting}"
                    );
                }
            }
            Err(errors) => {
                tracing::error!(
                    "the changed configuration is refused, the old keys stay: {errors}"
                );
                role.refuse(errors.to_string());
            }
        }
    }
}
