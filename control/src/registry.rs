//! Who is there: endpoints, as several sources tell of them.
//!
//! Sources lie. A registry that is being restarted answers "nobody"; one behind a partition answers with last week; a
//! fleet that is half deployed is listed half. Obeying each answer turns a hiccup of the registry into an outage of
//! everything it lists, while the replicas themselves are well. So what a source says is judged by what kind it is:
//!
//! - An **authoritative** source (configuration) is somebody's decision. What it leaves out is removed, even the last.
//! - An **observed** source (discovery) only tells what it sees. It may add, change, and remove what others still
//!   serve; the last endpoints of a model it cannot remove. They stay, marked stale, and health decides: a dead one is
//!   ejected by its breaker, and may then be [pruned](Registry::prune). An answer of nobody, or silence, marks the
//!   whole source stale and changes nothing else.
//!
//! How one endpoint stands with one observed source, and what the source's next word does to it:
//!
//! | standing | listed | left out, others serve | left out, the last | nobody | dark  | older answer | prune   |
//! |----------|--------|------------------------|--------------------|--------|-------|--------------|---------|
//! | unlisted | listed | nothing                | nothing            | nothing| nothing| nothing     | nothing |
//! | listed   | listed | unlisted               | kept               | dark   | dark  | nothing      | nothing |
//! | kept     | listed | unlisted               | kept               | kept   | kept  | nothing      | unlisted|
//! | dark     | listed | unlisted               | kept               | dark   | dark  | nothing      | nothing |
//!
//! A model listed by an endpoint itself is that endpoint's word: where an answer lists the endpoint with other models,
//! the dropped model is believed dropped, or requests for it would meet "unknown model". An endpoint listed with *no*
//! models, which had some, is silence again: it keeps them.
//!
//! Answers carry versions that only grow; an older one changes nothing. A source whose own counter may begin again must
//! put its epoch into the upper bits. Several sources merge by name: the best of them (authoritative first, then in
//! order of their first answer) gives weight, tier and limit; models are united. A name somebody drained stays drained
//! until he says otherwise: over changed specs, and over going and coming back.
//!
//! Rejected: expiring what was not seen for a while. Silence is then a slow outage instead of a quick one.

mod apply;
mod slots;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::id::EndpointId;
use crate::time::Instant;

pub use apply::{Applied, Change, Ignored, Refused};

use slots::Slots;

/// Bounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Endpoints in all.
    pub endpoints_max: u32,
    /// Sources that may speak.
    pub sources_max: u32,
    /// Models of one endpoint; what is listed beyond is left out.
    pub models_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            // Ten times the largest fleets we know of; a few tens of megabytes.
            endpoints_max: 16_384,
            // Configuration, and a few kinds of discovery, each for a few regions.
            sources_max: 16,
            // Aggregating providers list some hundreds.
            models_max: 1_024,
        }
    }
}

/// An endpoint as a source describes it. What the shell needs to reach it (address, key) stays in the shell, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    /// Unique over all sources.
    pub name: Box<str>,
    /// Share of the traffic, relative to others; 0 is read as 1.
    pub weight: u32,
    /// Lower tiers are used first.
    pub tier: u8,
    /// Attempts that may be under way to it at once.
    pub in_flight_max: u32,
    /// Attempts it gets in a second, where that is limited; 0 is read as 1.
    pub rps_max: Option<u32>,
    /// The models it serves.
    pub models: Vec<Box<str>>,
    /// Whose broken streams it can continue: those of endpoints with the same mark, which is made of the model's revision,
    /// its tokenizer and its chat template. None: nobody's.
    pub fingerprint: Option<Fingerprint>,
}

/// What two endpoints have in common where one can continue the other's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fingerprint(pub u64);

/// How much a source's silence means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SourceKind {
    /// Configuration: what it leaves out is removed.
    Authoritative,
    /// Discovery: it never empties a pool.
    Observed,
}

/// An endpoint as all sources together describe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its id, until it is removed.
    pub id: EndpointId,
    /// The merged description; models are sorted.
    pub spec: EndpointSpec,
    /// No new picks, by an operator's word.
    pub draining: bool,
    /// Since when no source stands behind it: all that list it are dark, or have left it out.
    pub stale_since: Option<Instant>,
    /// Who lists it, the best first.
    pub sources: Vec<Box<str>>,
}

/// All endpoints, and what each source last said.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Registry {
    config: Config,
    /// In order of their first answer.
    sources: Vec<Source>,
    slots: Slots,
    names: BTreeMap<Box<str>, EndpointId>,
    /// No pool is empty.
    pools: BTreeMap<Box<str>, BTreeSet<EndpointId>>,
    /// Drained names, known or not, and when (by a count) each was drained. At most `endpoints_max`.
    drained: BTreeMap<Box<str>, u64>,
    version: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Source {
    name: Box<str>,
    kind: SourceKind,
    version: Option<u64>,
    stale_since: Option<Instant>,
    vouches: BTreeMap<Box<str>, Vouch>,
}

/// What one source says of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Vouch {
    spec: EndpointSpec,
    /// Set where the source has left it out and it was kept.
    kept_since: Option<Instant>,
}

impl Registry {
    /// Nobody yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            sources: Vec::new(),
            slots: Slots::default(),
            names: BTreeMap::new(),
            pools: BTreeMap::new(),
            drained: BTreeMap::new(),
            version: 0,
        }
    }

    /// Changes the bounds. Endpoints that are there stay, even above them; models are cut to the new bound.
    pub fn set_config(&mut self, config: Config) -> Vec<Change> {
        self.config = config;
        let names = self.names.keys().cloned().collect();
        self.refresh_all(names)
    }

    /// A source cannot be reached. What it said stands, marked stale.
    pub fn source_lost(&mut self, now: Instant, source: &str) {
        if let Some(index) = self.source_index(source) {
            self.mark_source_stale(now, index);
        }
    }

    /// Drains (or undrains) by name. `None` where nobody has the name; undraining is then remembered all the same.
    pub fn drain(&mut self, name: &str, on: bool) -> Option<EndpointId> {
        let id = self.find(name);
        if !on {
            self.drained.remove(name);
        } else if id.is_some() && !self.drained.contains_key(name) {
            self.remember_drained(name);
        }
        let endpoint = self.slots.get_mut(id?)?;
        if endpoint.draining != on {
            endpoint.draining = on;
            self.version += 1;
        }
        id
    }

    /// Drops an endpoint that every source listing it has left out and that was kept only because it was the last of
    /// a model: for when its health says that it is gone. `None` where some source still stands behind it, or is dark:
    /// a partition that hides both the source and the replicas must not be taken for their death.
    pub fn prune(&mut self, id: EndpointId) -> Option<Change> {
        let name = self.endpoint(id)?.spec.name.clone();
        let listing = || self.sources.iter().filter_map(|source| source.vouches.get(&name));
        if listing().any(|vouch| vouch.kept_since.is_none()) {
            return None;
        }
        for source in &mut self.sources {
            source.vouches.remove(&name);
        }
        let change = self.refresh(&name);
        self.version += 1;
        change
    }

    /// The endpoint, unless it was removed.
    #[must_use]
    pub fn endpoint(&self, id: EndpointId) -> Option<&Endpoint> {
        self.slots.get(id)
    }

    /// Who has the name now.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<EndpointId> {
        self.names.get(name).copied()
    }

    /// All endpoints, by slot.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.slots.iter()
    }

    /// All models, each with its pool, which is never empty. By name.
    pub fn models(&self) -> impl Iterator<Item = (&str, &BTreeSet<EndpointId>)> {
        self.pools.iter().map(|(model, pool)| (&**model, pool))
    }

    /// The endpoints that serve a model.
    #[must_use]
    pub fn pool(&self, model: &str) -> Option<&BTreeSet<EndpointId>> {
        self.pools.get(model)
    }

    /// Whether anybody lists the model.
    #[must_use]
    pub fn serves(&self, model: &str) -> bool {
        self.pools.contains_key(model)
    }

    /// The highest version that an answer of any source had.
    #[must_use]
    pub fn answer_version_max(&self) -> u64 {
        self.sources.iter().filter_map(|source| source.version).max().unwrap_or(0)
    }

    /// Counts up with every change of endpoints, specs or drains.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Asserts what must always hold.
    pub fn invariants(&self) {
        self.slots.invariants();
        assert_eq!(self.names.len(), self.slots.iter().count(), "a name for each endpoint");
        let mut listed = 0;
        for endpoint in self.slots.iter() {
            let name = &endpoint.spec.name;
            assert_eq!(self.names.get(name), Some(&endpoint.id), "{name} is found");
            assert_eq!(endpoint.draining, self.drained.contains_key(name), "{name} drains");
            let merged = self.merged(name).expect("an endpoint is listed by a source");
            assert_eq!(merged.spec, endpoint.spec, "{name} is what its sources say");
            assert_eq!(merged.stale_since, endpoint.stale_since, "{name} is as stale as they");
            assert_eq!(merged.sources, endpoint.sources, "{name} knows its sources");
            for model in &endpoint.spec.models {
                listed += 1;
                let member = self.pool(model).is_some_and(|pool| pool.contains(&endpoint.id));
                assert!(member, "{name} is in the pool of {model}");
            }
        }
        let members: usize = self.pools.values().map(BTreeSet::len).sum();
        assert_eq!(listed, members, "a stranger in a pool");
        assert!(self.pools.values().all(|pool| !pool.is_empty()), "an empty pool");
        for name in self.sources.iter().flat_map(|source| source.vouches.keys()) {
            assert!(self.names.contains_key(name), "{name} is listed and not there");
        }
    }

    fn source_index(&self, name: &str) -> Option<usize> {
        self.sources.iter().position(|source| *source.name == *name)
    }

    fn mark_source_stale(&mut self, now: Instant, index: usize) {
        let source = &mut self.sources[index];
        if source.stale_since.is_some() {
            return;
        }
        source.stale_since = Some(now);
        let names: Vec<_> = source.vouches.keys().cloned().collect();
        for name in names {
            self.refresh(&name);
        }
    }

    /// A full list forgets first who was drained longest ago of those that are gone. One is: whoever is being drained
    /// is there and not yet in the list.
    fn remember_drained(&mut self, name: &str) {
        if self.drained.len() >= self.config.endpoints_max as usize {
            let absent = self.drained.iter().filter(|(name, _)| !self.names.contains_key(*name));
            let oldest = absent.min_by_key(|(_, when)| **when).map(|(name, _)| name.clone());
            if let Some(oldest) = oldest {
                self.drained.remove(&oldest);
            }
        }
        let when = self.drained.values().max().map_or(0, |last| last + 1);
        self.drained.insert(name.into(), when);
    }
}

#[cfg(test)]
mod tests;
