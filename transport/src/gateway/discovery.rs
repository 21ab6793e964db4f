//! Asking endpoints what they serve.
//!
//! An endpoint that does not answer keeps what it said last; what it said last also outlives a restart, in the
//! registry cache. "Nothing" is not believed either: an endpoint that is starting says so, and would lose its traffic.

use std::sync::Weak;
use std::time::Duration;

use futures_util::future::join_all;

use super::Gateway;
use crate::cache::Seen;
use crate::catalog::Route;
use crate::upstream::{Described, Limits};

/// How often endpoints are asked again.
const EVERY: Duration = Duration::from_secs(30);
/// How often while one of them has never answered.
const EVERY_UNKNOWN: Duration = Duration::from_secs(1);

/// How long a list of models may take and how large it may be: aggregators list some hundreds, in about 200 KiB.
#[must_use]
pub fn discovery_limits() -> Limits {
    const WITHIN: Duration = Duration::from_secs(5);
    Limits {
        connect: WITHIN,
        first_token: WITHIN,
        between_tokens: WITHIN,
        whole_answer: WITHIN,
        deadline: tokio::time::Instant::now() + WITHIN,
        answer_bytes_max: 4 << 20,
    }
}

/// Asks until the gateway is gone: in rounds, and at once when a registry or the configuration lists somebody new.
pub(super) async fn run(gateway: Weak<Gateway>) {
    loop {
        let Some(strong) = gateway.upgrade() else { return };
        discover_all(&strong).await;
        let unknown = strong.catalog().routes().any(|(_, route)| route.is_unknown());
        let newcomers = std::sync::Arc::clone(&strong.newcomers);
        drop(strong);
        let pause = if unknown { EVERY_UNKNOWN } else { EVERY };
        let _ = tokio::time::timeout(pause, newcomers.notified()).await;
    }
}

/// Asks each once, all at the same time.
pub(super) async fn discover_all(gateway: &Gateway) {
    let catalog = gateway.catalog();
    let told = |route: &Route| route.discover || route.target.base_url.is_worker();
    let asked = catalog.routes().filter(|(_, route)| told(route)).map(async |(name, route)| {
        let address = route.target.base_url.to_string();
        match gateway.upstream.discover(&route.target, discovery_limits()).await {
            Ok(described) if !route.discover => {
                gateway.chat.load_heard(name);
                gateway.described(name, described.fingerprint);
                gateway.asked(name, &address, None);
            }
            Ok(described) if described.models.is_empty() => {
                let text = format!("{address} lists no models; keeping those it listed before");
                gateway.asked(name, &address, Some((false, text)));
            }
            Ok(Described { models, fingerprint }) => {
                gateway.described(name, fingerprint);
                gateway.chat.load_heard(name);
                let models: Vec<Box<str>> = models.into_iter().map(|m| m.id.into()).collect();
                gateway.discovered(name, &models);
                gateway.asked(name, &address, None);
                let seen = Seen { models, at: gateway.world.wall.now() };
                keep(gateway, name, address, seen).await;
            }
            Err(failed) => {
                let text = format!("{address} does not say what it serves: {}", failed.detail);
                gateway.asked(name, &address, Some((false, text)));
            }
        }
    });
    join_all(asked).await;
}

async fn keep(gateway: &Gateway, name: &str, address: String, seen: Seen) {
    let cache = std::sync::Arc::clone(&gateway.cache);
    if let Err(error) = cache.keep(name.to_owned(), address, seen).await {
        gateway.health.note("registry cache", Some((false, error.to_string())));
    }
}
