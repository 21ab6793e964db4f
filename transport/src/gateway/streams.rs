//! A gateway's resumable streams: in its own memory, and where gateways share a Redis, there too.

use std::sync::Arc;

use crate::config::Config;
use crate::redis::Shared;
use crate::streams::{Limits, Streams};

/// As the configuration says.
pub(super) fn of(config: &Config, shared: Option<&Shared>) -> Arc<Streams> {
    let limits = Limits::from(&config.streams);
    match shared {
        None => Streams::new(limits),
        Some(shared) => Streams::shared(limits, Arc::clone(&shared.log), shared.life),
    }
}
