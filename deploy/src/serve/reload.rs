//! A changed configuration file is applied while everything runs; a bad one is refused, and named until it is mended.

use std::path::PathBuf;
use std::sync::Arc;

use transport::config::{
    Config, Env, Fingerprint, Flags, Loaded, POLL_INTERVAL, restart_required, watch,
};
use transport::gateway::Gateway;

/// The part of `/health` that speaks of this.
const PART: &str = "configuration";

/// What is watched, and what the process was started with.
pub struct Watched {
    pub path: PathBuf,
    pub flags: Flags,
    pub env: Env,
    pub fingerprint: Fingerprint,
    pub started_with: Config,
}

pub async fn run(watched: Watched, gateway: Arc<Gateway>) {
    let Watched { path, flags, env, fingerprint, started_with } = watched;
    let mut changes = watch(path, flags, env, fingerprint, POLL_INTERVAL);
    while let Some(change) = changes.recv().await {
        let applied = match change {
            Ok(loaded) => apply(&gateway, &started_with, &loaded),
            Err(errors) => Err(errors.to_string()),
        };
        match applied {
            Ok(()) => gateway.health().note(PART, None),
            Err(why) => {
                tracing::error!("the changed configuration is refused, the old one stays: {why}");
                gateway.health().note(PART, Some((false, format!("refused: {why}"))));
            }
        }
    }
}

fn apply(gateway: &Gateway, started_with: &Config, loaded: &Loaded) -> Result<(), String> {
    gateway.reconfigure(&loaded.config).map_err(|error| error.to_string())?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let waiting = restart_required(started_with, &loaded.config);
    if waiting.is_empty() {
        tracing::info!("the changed configuration is in effect");
    } else {
        tracing::warn!(
            "the changed configuration is in effect, except what needs a restart: {}",
            waiting.join(", ")
        );
    }
    Ok(())
}
