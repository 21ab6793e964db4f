//! Registries at work: what they list becomes endpoints, and what they listed last outlives their silence and ours.
//!
//! A registry says the same again and again. Only what differs goes to the plane, and so into the journal; that it was said
//! again is worth a time in memory, and once a minute one on the disk.
//!
//! A gateway that starts while a registry is down begins with what that said before, and says so. An endpoint that its
//! registry leaves out is not taken from the plane by us: the plane prunes it when its own probes fail, and until then it
//! may be picked, so that it stays in the catalog for as long as the plane knows it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use control::Wall;
use control::plane::Input;
use http::HeaderValue;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::Gateway;
use crate::cache::Listed;
use crate::catalog::Catalog;
use crate::config::{Consul, Discovery, DnsName};
use crate::convert;
use crate::sources::{Instance, Told, consul, dns};
use crate::upstream::{Client, Settings, SetupError};

/// How often the age of what a lost registry said is told again.
const TELL_AGE_EVERY: Duration = Duration::from_secs(10);
/// How often it is kept that a registry said again what it had said.
const KEEP_SAME_EVERY: Duration = Duration::from_secs(60);
/// What waits to be taken in. The next answer is whole: a longer queue would only be older.
const TOLD_MAX: usize = 4;

/// Starts to watch every registry of the configuration.
///
/// # Errors
/// Where the certificates of one cannot be read.
pub(super) fn start(
    gateway: &Arc<Gateway>,
    discovery: &Discovery,
) -> Result<Vec<AbortOnDropHandle<()>>, SetupError> {
    let mut tasks = Vec::new();
    if let Some(configured) = &discovery.consul {
        let client = client(gateway, configured)?;
        let (tell, told) = mpsc::channel(TOLD_MAX);
        let source = Source::new("consul".to_owned());
        match settings(configured) {
            Err(why) => gateway.health.note(&source.part(), Some((false, why))),
            Ok(settings) => {
                tasks.push(source.start(gateway, told));
                let watch = consul::watch(client, settings, tell);
                tasks.push(AbortOnDropHandle::new(tokio::spawn(watch)));
            }
        }
    }
    for name in &discovery.dns {
        let DnsName { host, port, model, protocol } = name.clone();
        let (tell, told) = mpsc::channel(TOLD_MAX);
        tasks.push(Source::new(format!("dns {host}:{port}")).start(gateway, told));
        let watch = dns::watch(dns::Settings { host, port, model, protocol }, tell);
        tasks.push(AbortOnDropHandle::new(tokio::spawn(watch)));
    }
    Ok(tasks)
}

/// One of its own, where it believes others than endpoints do, or shows what endpoints are not to see.
fn client(gateway: &Gateway, configured: &Consul) -> Result<Client, SetupError> {
    let (extra_ca, own) = (configured.ca.clone(), configured.own.clone());
    if extra_ca.is_none() && own.is_none() {
        return Ok(gateway.upstream.clone());
    }
    let settings = Settings { extra_ca, own, ..Settings::default() };
    Client::over(&settings, &gateway.world.network)
}

fn settings(configured: &Consul) -> Result<consul::Settings, String> {
    let Consul { addr, token, datacenter, service_prefix, .. } = configured;
    let token = token.as_ref().map(|token| HeaderValue::from_str(token.expose()));
    Ok(consul::Settings {
        addr: addr.to_string().parse().map_err(|why| format!("discovery.consul.addr: {why}"))?,
        token: token
            .transpose()
            .map_err(|_| "discovery.consul.token holds characters that no token has".to_owned())?,
        datacenter: datacenter.clone(),
        prefix: service_prefix.clone(),
    })
}

/// One registry.
struct Source {
    name: String,
}

impl Source {
    fn new(name: String) -> Self {
        Self { name }
    }

    fn start(self, gateway: &Arc<Gateway>, told: mpsc::Receiver<Told>) -> AbortOnDropHandle<()> {
        self.begin(gateway);
        AbortOnDropHandle::new(tokio::spawn(self.follow(Arc::downgrade(gateway), told)))
    }

    fn part(&self) -> String {
        format!("registry {}", self.name)
    }

    /// With what it said before this process began.
    fn begin(&self, gateway: &Gateway) {
        if let Some(listed) = gateway.cache.listed(&self.name) {
            let age = age(listed.at, gateway.world.wall.now());
            gateway.health.registry_stale(&self.name, age);
            let age = words(age);
            gateway.found(&self.name, &listed.instances, true);
            let count = listed.instances.len();
            let text = format!("not heard yet: {count} workers as it listed them {age} ago");
            tracing::info!(source = self.name, "{text}");
            gateway.health.note(&self.part(), Some((false, text)));
        } else {
            gateway.health.note(&self.part(), Some((false, "not heard yet".to_owned())));
        }
    }

    async fn follow(self, gateway: Weak<Gateway>, mut told: mpsc::Receiver<Told>) {
        let mut lost: Option<String> = None;
        let mut heard: Option<Heard> = None;
        loop {
            let next = tokio::time::timeout(TELL_AGE_EVERY, told.recv()).await;
            let Some(gateway) = gateway.upgrade() else { return };
            match next {
                Ok(None) => return,
                Ok(Some(Told::Instances(instances))) => {
                    let was_lost = lost.take().is_some();
                    if was_lost {
                        tracing::info!(source = self.name, "the registry is heard again");
                    }
                    heard = Some(self.hear(&gateway, instances, heard, was_lost).await);
                }
                Ok(Some(Told::Lost(why))) => {
                    let said = self.note_lost(&gateway, &why, heard.as_ref());
                    if lost.is_none() {
                        tracing::warn!(source = self.name, "a registry is lost: {why}; {said}");
                        let source = self.name.as_str().into();
                        gateway.driver.submit(Input::SourceLost { source });
                    }
                    lost = Some(why);
                }
                Err(_) => {
                    if let Some(why) = &lost {
                        let _ = self.note_lost(&gateway, why, heard.as_ref());
                    }
                }
            }
        }
    }

    /// What it lists, where that is news; else that it says so still.
    async fn hear(
        &self,
        gateway: &Gateway,
        instances: Vec<Instance>,
        before: Option<Heard>,
        was_lost: bool,
    ) -> Heard {
        let at = gateway.world.wall.now();
        let same = before.filter(|before| before.listed.instances == instances);
        gateway.found(&self.name, &instances, was_lost || same.is_none());
        gateway.health.registry_stale(&self.name, Duration::ZERO);
        let text = format!("{} workers", instances.len());
        gateway.health.note(&self.part(), Some((true, text)));
        let kept = same.map(|same| same.kept).filter(|kept| kept.elapsed() < KEEP_SAME_EVERY);
        let listed = Listed { instances, at };
        let kept = match kept {
            Some(kept) => kept,
            None => {
                self.keep(gateway, listed.clone()).await;
                Instant::now()
            }
        };
        Heard { listed, kept }
    }

    /// Tells health and metrics that it is not heard, and returns what stands meanwhile, and how old that is.
    fn note_lost(&self, gateway: &Gateway, why: &str, heard: Option<&Heard>) -> String {
        let listed = heard.map(|heard| heard.listed.clone());
        let said = listed.or_else(|| gateway.cache.listed(&self.name)).map_or_else(
            || "it has never said who is there".to_owned(),
            |listed| {
                let age = age(listed.at, gateway.world.wall.now());
                gateway.health.registry_stale(&self.name, age);
                let age = words(age);
                format!("what it said {age} ago stands, {} workers", listed.instances.len())
            },
        );
        gateway.health.note(&self.part(), Some((false, format!("{why}; {said}"))));
        said
    }

    async fn keep(&self, gateway: &Gateway, listed: Listed) {
        let kept = Arc::clone(&gateway.cache).keep_listed(self.name.clone(), listed).await;
        if let Err(error) = kept {
            gateway.health.note("registry cache", Some((false, error.to_string())));
        }
    }
}

/// What a registry said in this process's time.
struct Heard {
    /// Last, and when.
    listed: Listed,
    /// Since when the disk has it.
    kept: Instant,
}

fn age(then: Wall, now: Wall) -> Duration {
    Duration::from_millis(now.as_millis().saturating_sub(then.as_millis()))
}

fn words(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3_600),
    }
}

impl Gateway {
    /// A source says who is there. What it has said before is told to the plane again only where the catalog differs from it:
    /// the configuration named one of them meanwhile, or the plane has forgotten one that was left out.
    fn found(&self, source: &str, instances: &[Instance], is_news: bool) {
        let mut listed = BTreeMap::new();
        for instance in instances {
            match convert::found(source, instance) {
                Ok(route) => drop(listed.insert(instance.name.as_str().into(), route)),
                Err(why) if is_news => tracing::warn!(source, "a worker is left out: {why}"),
                Err(_) => {}
            }
        }
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.catalog.load();
        let known: std::collections::BTreeSet<Box<str>> = self
            .driver
            .look(|plane| plane.view().endpoints.into_iter().map(|one| one.name).collect());
        let after =
            before.with_source(source, listed, |name| known.contains(name), self.now_seconds());
        let is_same = !is_news
            && standing(&before, source).eq(standing(&after, source))
            && !is_outlived(&after, source);
        drop(before);
        if !is_same {
            self.publish_source(after, source);
        }
    }
}

/// Whether somebody whom a source lists no more, and who stayed as the last of a model, is the last no longer. A source that
/// lists nobody takes nobody along.
fn is_outlived(catalog: &Catalog, source: &str) -> bool {
    if !standing(catalog, source).any(|(_, listed)| listed) {
        return false;
    }
    let serves = |model: &str| {
        catalog.routes().any(|(_, route)| route.listed && route.models.contains_key(model))
    };
    let left_out = catalog.routes().filter(|(_, route)| *route.source == *source && !route.listed);
    left_out.map(|(_, route)| route).any(|route| route.models.keys().all(|model| serves(model)))
}

/// Whom a catalog has of a source, and whether that lists them now.
fn standing<'a>(catalog: &'a Catalog, source: &'a str) -> impl Iterator<Item = (&'a str, bool)> {
    let routes = catalog.routes().filter(move |(_, route)| *route.source == *source);
    routes.map(|(name, route)| (name, route.listed))
}

#[cfg(test)]
mod tests;
