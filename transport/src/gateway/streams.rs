//! A gateway's resumable streams: in its own memory, and where gateways share a Redis, there too.

use std::sync::Arc;

use crate::config::Config;
use crate::health::Health;
use crate::redis::Shared;
use crate::streams::{Limits, Streams};

/// As the configuration says.
pub(super) fn of(config: &Config, shared: Option<&Shared>, health: &Arc<Health>) -> Arc<Streams> {
    let limits = Limits::from(&config.streams);
    match shared {
        None => Streams::new(limits),
        Some(Shared { log, life, .. }) => {
            Streams::shared(limits, Arc::clone(log), *life, Arc::clone(health))
        }
    }
}
