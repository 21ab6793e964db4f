//! Consul: workers that registered as `llm-<MODEL_NAME>`, as long as their checks pass.
//!
//! One blocking query watches the list of services, one more each service whose name has the prefix. Consul answers a
//! blocking query when something changed after the index it names, or when its time is over; an index that goes backwards
//! (Consul was restored) starts again from nothing. Only instances whose checks all pass are listed.
//!
//! What an instance says of itself is in its `meta`: `model` (else what follows the prefix), `protocol` (`grpc` unless it
//! says `quic` or `http`), `weight` (else a hundred times its passing weight). An instance that makes no sense is left out
//! and told once, and does not hide the others.
//!
//! An instance is called by its service's id, which is unique on one node alone: an id at several addresses is called
//! `id@node` at each ([`distinct`]).

mod distinct;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use control::outcome::Failure;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::{Instance, Protocol, Told, listed};
use crate::upstream::{BaseUrl, Client, Failed, Limits, Target};
use distinct::{Found, distinct};

/// The most services that are watched: each holds a connection to Consul open.
pub const SERVICES_MAX: usize = 256;
/// The most bytes of one answer. An instance takes about two kilobytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// How long a blocking query may wait for a change. Consul adds up to a sixteenth. A network that swallows everything is
/// noticed when an answer is overdue, so this and [`SLACK`] are how long `/health` may call old news fresh; an empty answer
/// every ten seconds for each service costs next to nothing.
const WAIT: Duration = Duration::from_secs(10);
/// How much longer than that an answer may take.
const SLACK: Duration = Duration::from_secs(5);
/// After a failure the next question waits, from the first to the last of these.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// Answers that came at once, one after the other, are not asked for faster than this: somebody's registration flaps.
const PACE: Duration = Duration::from_millis(50);
/// Answers without an index cannot be waited for: they are asked for so often.
const UNINDEXED: Duration = Duration::from_secs(2);

/// Which Consul, and what of it.
#[derive(Clone)]
pub struct Settings {
    /// Its HTTP API, `http://host:8500`.
    pub addr: BaseUrl,
    /// Its ACL token, where it wants one.
    pub token: Option<HeaderValue>,
    /// The datacenter to look in; the agent's own where none is named.
    pub datacenter: Option<String>,
    /// How the names of the services begin.
    pub prefix: String,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("addr", &self.addr)
            .field("token", &self.token.as_ref().map(|_| "***"))
            .field("datacenter", &self.datacenter)
            .field("prefix", &self.prefix)
            .finish()
    }
}

/// Watches until the receiver is gone.
pub async fn watch(client: Client, settings: Settings, tell: mpsc::Sender<Told>) {
    let asker = Asker::new(client, settings);
    let (heard, mut hear) = mpsc::channel(16);
    let mut watched: BTreeMap<String, AbortOnDropHandle<()>> = BTreeMap::new();
    let mut known: BTreeMap<String, Vec<Found>> = BTreeMap::new();
    let mut refused = BTreeSet::new();
    let list = tokio::spawn(Arc::clone(&asker).follow_services(heard.clone()));
    let _list = AbortOnDropHandle::new(list);
    loop {
        let news = tokio::select! {
            biased;
            () = tell.closed() => return,
            news = hear.recv() => news,
        };
        match news {
            None => return,
            Some(News::Lost(why)) => {
                if tell.send(Told::Lost(why)).await.is_err() {
                    return;
                }
                continue;
            }
            Some(News::Services(names)) => {
                watched.retain(|name, _| names.contains(name));
                known.retain(|name, _| names.contains(name));
                for name in names {
                    watched.entry(name.clone()).or_insert_with(|| {
                        let follow = Arc::clone(&asker).follow_service(name, heard.clone());
                        AbortOnDropHandle::new(tokio::spawn(follow))
                    });
                }
            }
            Some(News::Instances(name, instances)) => {
                if watched.contains_key(&name) {
                    known.insert(name, instances);
                }
            }
        }
        // A service that has not answered yet may have instances: the list is told when it is whole.
        if watched.keys().all(|name| known.contains_key(name)) {
            let all = known.values().flatten().cloned().collect();
            let all = distinct(all, |why| told_once(&mut refused, why));
            if tell.send(Told::Instances(listed(all))).await.is_err() {
                return;
            }
        }
    }
}

/// What one of the watching tasks has to say.
enum News {
    Services(BTreeSet<String>),
    Instances(String, Vec<Found>),
    Lost(String),
}

struct Asker {
    client: Client,
    target: Target,
    datacenter: Option<String>,
    prefix: String,
}

impl Asker {
    fn new(client: Client, settings: Settings) -> Arc<Self> {
        let Settings { addr, token, datacenter, prefix } = settings;
        let mut target = Target::new(addr);
        if let Some(mut token) = token {
            token.set_sensitive(true);
            target.headers.insert(HeaderName::from_static("x-consul-token"), token);
        }
        Arc::new(Self { client, target, datacenter, prefix })
    }

    async fn follow_services(self: Arc<Self>, tell: mpsc::Sender<News>) {
        let mut query = Query::new("/catalog/services".to_owned());
        loop {
            let news = match query.next::<BTreeMap<String, Vec<String>>>(&self).await {
                Ok(services) => {
                    let ours = services.into_keys().filter(|name| name.starts_with(&self.prefix));
                    let names: BTreeSet<String> = ours.take(SERVICES_MAX + 1).collect();
                    if names.len() > SERVICES_MAX {
                        let prefix = &self.prefix;
                        News::Lost(format!(
                            "Consul lists more than {SERVICES_MAX} services that begin with {prefix:?}: \
                             choose a longer discovery.consul.service_prefix"
                        ))
                    } else {
                        News::Services(names)
                    }
                }
                Err(why) => News::Lost(why),
            };
            if tell.send(news).await.is_err() {
                return;
            }
        }
    }

    async fn follow_service(self: Arc<Self>, name: String, tell: mpsc::Sender<News>) {
        let mut query = Query::new(format!("/health/service/{}?passing=true", escaped(&name)));
        let mut refused = BTreeSet::new();
        loop {
            let news = match query.next::<Vec<Entry>>(&self).await {
                Ok(entries) => {
                    let instances = entries.into_iter().filter_map(|entry| {
                        entry
                            .found(&name, &self.prefix)
                            .map_err(|why| told_once(&mut refused, why))
                            .ok()
                    });
                    News::Instances(name.clone(), instances.collect())
                }
                Err(why) => News::Lost(why),
            };
            if tell.send(news).await.is_err() {
                return;
            }
        }
    }
}

/// What makes no sense in a registration is worth one line, not one at every change.
fn told_once(refused: &mut BTreeSet<String>, why: String) {
    const REMEMBERED_MAX: usize = 1_000;
    if refused.len() < REMEMBERED_MAX && refused.insert(why.clone()) {
        tracing::warn!("a worker in Consul is left out: {why}");
    }
}

/// A blocking query, asked again and again.
struct Query {
    path: String,
    index: u64,
    failures: u32,
    asked: Option<Instant>,
}

impl Query {
    fn new(path: String) -> Self {
        Self { path, index: 0, failures: 0, asked: None }
    }

    /// The next answer. Waits before it asks again after a failure.
    async fn next<T: for<'de> Deserialize<'de>>(&mut self, asker: &Asker) -> Result<T, String> {
        sleep(self.pause()).await;
        self.asked = Some(Instant::now());
        let path = self.path_of(asker);
        let wait = if self.index == 0 { Duration::ZERO } else { WAIT };
        let got = asker.client.get(&asker.target, &path, limits(wait)).await;
        let answer = got.map_err(|failed| told(&asker.target.base_url, &failed)).and_then(|got| {
            let answer = serde_json::from_slice(&got.body)
                .map_err(|why| format!("Consul's answer to {} makes no sense: {why}", self.path))?;
            Ok((index_of(&got.headers), answer))
        });
        match answer {
            Ok((index, answer)) => {
                self.failures = 0;
                // Backwards, or none at all: whatever is known of the past does not hold any more.
                self.index = if index < self.index { 0 } else { index };
                Ok(answer)
            }
            Err(why) => {
                self.failures = self.failures.saturating_add(1);
                // Whatever changed meanwhile must be heard at once.
                self.index = 0;
                Err(why)
            }
        }
    }

    fn pause(&self) -> Duration {
        if self.failures > 0 {
            let doubled = BACKOFF.0.saturating_mul(1 << (self.failures - 1).min(10));
            return doubled.min(BACKOFF.1);
        }
        // Without an index there is nothing to wait for on the other side.
        let pace = if self.index == 0 { UNINDEXED } else { PACE };
        self.asked.map_or(Duration::ZERO, |asked| pace.saturating_sub(asked.elapsed()))
    }

    fn path_of(&self, asker: &Asker) -> String {
        let mut path = self.path.clone();
        let mut add = |name: &str, value: &str| {
            path.push(if path.contains('?') { '&' } else { '?' });
            path.push_str(name);
            path.push('=');
            path.push_str(value);
        };
        if let Some(datacenter) = &asker.datacenter {
            add("dc", &escaped(datacenter));
        }
        if self.index > 0 {
            add("index", &self.index.to_string());
            add("wait", &format!("{}s", WAIT.as_secs()));
        }
        path
    }
}

fn limits(wait: Duration) -> Limits {
    let within = wait + wait / 16 + SLACK;
    Limits {
        connect: Duration::from_secs(5),
        first_token: within,
        between_tokens: within,
        whole_answer: within,
        deadline: Instant::now() + within,
        answer_bytes_max: ANSWER_BYTES_MAX,
    }
}

/// Why Consul does not tell, for its operator.
fn told(addr: &BaseUrl, failed: &Failed) -> String {
    let status = failed.upstream.as_ref().map(|said| said.status);
    match status {
        Some(403) => format!(
            "Consul at {addr} refuses the ACL token (403): discovery.consul.token needs service:read and node:read"
        ),
        Some(status) => format!("Consul at {addr} answers with status {status}"),
        None => match Unproven::of(addr, failed) {
            Some(Unproven::They) => format!(
                "Consul at {addr} is not believed ({}): name the authority of its certificate as \
                 discovery.consul.ca",
                failed.detail
            ),
            Some(Unproven::We) => format!(
                "Consul at {addr} does not answer: {failed}; where it asks who calls, show it \
                 discovery.consul.cert and discovery.consul.key"
            ),
            None => format!("Consul at {addr} does not answer: {failed}"),
        },
    }
}

/// Who failed to prove who it is, where a connection over TLS failed for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unproven {
    /// The agent, to us.
    They,
    /// Maybe we, to the agent: it hears that we show nothing, or not what it believes, when the connection stands already,
    /// and closes it.
    We,
}

impl Unproven {
    /// By the words of the TLS library, which has no others for it this far from the handshake.
    pub(crate) fn of(addr: &BaseUrl, failed: &Failed) -> Option<Self> {
        if failed.detail.contains("invalid peer certificate") {
            return Some(Self::They);
        }
        (addr.is_tls() && failed.failure == Failure::ConnectionLost).then_some(Self::We)
    }
}

fn index_of(headers: &HeaderMap) -> u64 {
    let index = headers.get("x-consul-index").and_then(|value| value.to_str().ok()?.parse().ok());
    index.unwrap_or(0)
}

/// For a part of a path or a query: everything but what needs no escape is escaped.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// An instance, as `/v1/health/service` lists it. Only what is used of it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    node: Node,
    service: Service,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    #[serde(default)]
    node: String,
    #[serde(default)]
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "ID")]
    id: String,
    #[serde(default)]
    address: String,
    port: i64,
    #[serde(default)]
    meta: Option<BTreeMap<String, String>>,
    #[serde(default)]
    weights: Weights,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Weights {
    passing: u32,
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1 }
    }
}

impl Entry {
    fn found(self, service_name: &str, prefix: &str) -> Result<Found, String> {
        let Self { node, service } = self;
        let Service { id, address, port, meta, weights } = service;
        let meta = meta.unwrap_or_default();
        let said = |key: &str| meta.get(key).map(|value| value.trim()).filter(|v| !v.is_empty());
        let model = said("model").or(service_name.strip_prefix(prefix)).unwrap_or_default();
        if model.is_empty() {
            return Err(format!("{id} names no model in its meta"));
        }
        let protocol = match said("protocol") {
            None => Protocol::Grpc,
            Some(name) => Protocol::named(name).ok_or_else(|| {
                format!("{id} speaks {name:?}: its meta may say grpc, quic or http")
            })?,
        };
        let weight = match said("weight") {
            None => weights.passing.saturating_mul(100),
            Some(text) => {
                text.parse().map_err(|_| format!("{id} has weight {text:?} in its meta"))?
            }
        };
        let pin = said("pin").map(str::to_owned);
        let host = if address.is_empty() { node.address } else { address };
        let port = u16::try_from(port).ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| format!("{id} has no port"))?;
        if host.is_empty() {
            return Err(format!("{id} has no address"));
        }
        let instance = Instance {
            name: id,
            model: model.to_owned(),
            protocol,
            host,
            port,
            weight: weight.max(1),
            pin: pin.filter(|_| protocol == Protocol::Quic),
        };
        Ok(Found { node: node.node, instance })
    }
}

#[cfg(test)]
mod tests;
