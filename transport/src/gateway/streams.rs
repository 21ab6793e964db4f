//! A gateway's resumable streams: in its own memory, and where gateways share a Redis, there too.

use std::sync::Arc;

use super::StartError;
use crate::config::{Config, Role};
use crate::health::Health;
use crate::redis::Shared;
use crate::seam::World;
use crate::streams::{Limits, Streams};

/// As the configuration says. A process that is asked over gRPC is one of several to whoever asks, so that each of its
/// lives has a name even where nothing is shared.
pub(super) fn of(
    config: &Config,
    shared: Option<&Shared>,
    health: &Arc<Health>,
    world: &World,
) -> Result<Arc<Streams>, StartError> {
    let limits = Limits::from(&config.streams);
    Ok(match shared {
        Some(Shared { log, life, .. }) => {
            Streams::shared(limits, Arc::clone(log), *life, Arc::clone(health))
        }
        None if config.role == Role::Chat || config.server.grpc_addr.is_some() => {
            Streams::named(limits, world.beside.seed().map_err(StartError::Entropy)?)
        }
        None => Streams::new(limits),
    })
}
