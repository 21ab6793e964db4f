//! Who serves what, under which address and name: what the hands need to know about endpoints.
//!
//! The plane knows endpoints by name; addresses, keys and upstream model names stay here. A catalog is a value: a change
//! makes a new one, which requests that begin from then on see whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use control::registry::{EndpointSpec, Fingerprint};

use crate::exchange::Model;
use crate::upstream::Target;

/// The catalog in effect.
pub type SharedCatalog = Arc<ArcSwap<Catalog>>;

/// The source of all endpoints that the configuration names.
pub const CONFIGURED: &str = "config";

/// All endpoints by name.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    routes: BTreeMap<Box<str>, Route>,
    prices: BTreeMap<Box<str>, (f64, f64)>,
    since: BTreeMap<Box<str>, u64>,
    silence: Silence,
}

/// How long a worker may be silent before the first token of an answer.
///
/// The plane's own timer is for streams: an OpenAI-compatible server shows nothing of an answer that does not stream before
/// its end. A worker does, so it is held to the model's timer there too.
#[derive(Clone, Debug, Default)]
pub struct Silence {
    /// For models that say nothing; `None` where nothing was configured at all.
    pub general: Option<Duration>,
    /// For models with timeouts of their own.
    pub models: BTreeMap<Box<str>, Duration>,
}

/// One endpoint.
#[derive(Clone, Debug)]
pub struct Route {
    /// Where it is and how it is spoken to.
    pub target: Target,
    /// Who provides it: a provider's name, or `pointsman` for own replicas.
    pub provider: String,
    /// Its weight among its peers.
    pub weight: u32,
    /// Its tier: lower is asked first.
    pub tier: u8,
    /// The most attempts at once.
    pub in_flight_max: u32,
    /// The most requests it gets in a second, where that is limited.
    pub rps_max: Option<u32>,
    /// The longest one attempt may take there, beside the model's timeouts.
    pub attempt_max: Option<Duration>,
    /// Public model names, each with the name the endpoint knows it by, where that differs.
    pub models: BTreeMap<Box<str>, Option<Box<str>>>,
    /// Whether its models are asked for at `/v1/models`.
    pub discover: bool,
    /// Models it is not asked for, although it lists them.
    pub except: BTreeSet<Box<str>>,
    /// Which source names it: [`CONFIGURED`], or a registry.
    pub source: Box<str>,
    /// Whether its source lists it now. One that does not is called until the plane has forgotten it.
    pub listed: bool,
    /// Whose broken streams it continues, where it said so.
    pub fingerprint: Option<Fingerprint>,
    /// Whether it was asked what it is. Only workers are, beside those that are asked for their models.
    pub described: bool,
}

impl Route {
    /// Whether it has still to say what it serves, or, a worker, whose streams it continues.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        let is_worker = self.target.base_url.is_worker();
        (self.discover && self.models.is_empty()) || (is_worker && !self.described)
    }
}

impl Catalog {
    /// A catalog of `routes`. Models that `before` knew keep the second since when they are known; its times of silence stay.
    #[must_use]
    pub fn new(
        mut routes: BTreeMap<Box<str>, Route>,
        prices: BTreeMap<Box<str>, (f64, f64)>,
        before: &Self,
        now_seconds: u64,
    ) -> Self {
        // Who is called at the same address is who was asked there.
        for (name, route) in routes.iter_mut().filter(|(_, route)| !route.described) {
            let known = before.routes.get(name);
            let known = known.filter(|known| known.target.base_url == route.target.base_url);
            // What the configuration has said of it, it no longer says.
            let known = known.filter(|known| known.target.continues.is_none());
            if let Some(known) = known {
                (route.described, route.fingerprint) = (known.described, known.fingerprint);
            }
        }
        let models = routes.values().flat_map(|route| route.models.keys());
        let since = models
            .map(|name| (name.clone(), before.since.get(name).copied().unwrap_or(now_seconds)))
            .collect();
        Self { routes, prices, since, silence: before.silence.clone() }
    }

    /// The same with other times of silence.
    #[must_use]
    pub fn with_silence(mut self, silence: Silence) -> Self {
        self.silence = silence;
        self
    }

    /// How long a worker may be silent before the first token of an answer of `model`.
    #[must_use]
    pub fn silence(&self, model: &str) -> Option<Duration> {
        self.silence.models.get(model).copied().or(self.silence.general)
    }

    /// Where to send a request for `model` to `endpoint`, and the model's name there if it differs.
    #[must_use]
    pub fn target(&self, endpoint: &str, model: &str) -> Option<(&Target, Option<&str>)> {
        let route = self.routes.get(endpoint)?;
        let upstream = route.models.get(model)?;
        Some((&route.target, upstream.as_deref()))
    }

    /// All endpoints.
    pub fn routes(&self) -> impl Iterator<Item = (&str, &Route)> {
        self.routes.iter().map(|(name, route)| (&**name, route))
    }

    /// One endpoint.
    #[must_use]
    pub fn route(&self, endpoint: &str) -> Option<&Route> {
        self.routes.get(endpoint)
    }

    /// The same catalog with what an endpoint said it serves. Names that the configuration maps keep their mapping.
    #[must_use]
    pub fn with_models(&self, endpoint: &str, found: &[Box<str>], now_seconds: u64) -> Self {
        let mut routes = self.routes.clone();
        if let Some(route) = routes.get_mut(endpoint) {
            route.models.retain(|name, upstream| upstream.is_some() || found.contains(name));
            for name in found.iter().filter(|name| !route.except.contains(*name)) {
                route.models.entry(name.clone()).or_default();
            }
        }
        Self::new(routes, self.prices.clone(), self, now_seconds)
    }

    /// The same catalog with what a source lists now. What it listed before stays as long as `picked` says that it may be
    /// picked; an endpoint that the configuration names too is called as that says.
    #[must_use]
    pub fn with_source(
        &self,
        source: &str,
        listed: BTreeMap<Box<str>, Route>,
        picked: impl Fn(&str) -> bool,
        now_seconds: u64,
    ) -> Self {
        let mut routes = self.routes.clone();
        routes.retain(|name, route| *route.source != *source || picked(name));
        for route in routes.values_mut().filter(|route| *route.source == *source) {
            route.listed = false;
        }
        for (name, route) in listed {
            if routes.get(&name).is_none_or(|known| known.source == route.source) {
                routes.insert(name, route);
            }
        }
        Self::new(routes, self.prices.clone(), self, now_seconds)
    }

    /// The same catalog with whose streams an endpoint continues.
    #[must_use]
    pub fn with_fingerprint(&self, endpoint: &str, said: Option<Fingerprint>) -> Self {
        let mut after = self.clone();
        if let Some(route) = after.routes.get_mut(endpoint) {
            (route.described, route.fingerprint) = (true, said);
        }
        after
    }

    /// Whether anybody who serves a model could continue an answer of it that another began.
    #[must_use]
    pub fn resumes(&self, model: &str) -> bool {
        let serving = self.routes.values().filter(|route| route.models.contains_key(model));
        serving.filter(|route| route.fingerprint.is_some()).count() > 0
    }

    /// An endpoint as the plane's registry takes it.
    #[must_use]
    pub fn spec(&self, endpoint: &str) -> Option<EndpointSpec> {
        let route = self.routes.get(endpoint)?;
        Some(EndpointSpec {
            name: endpoint.into(),
            weight: route.weight,
            tier: route.tier,
            in_flight_max: route.in_flight_max,
            rps_max: route.rps_max,
            models: route.models.keys().cloned().collect(),
            fingerprint: route.fingerprint,
        })
    }

    /// Public models, by name. The provider is that of the first endpoint in the lowest tier.
    #[must_use]
    pub fn models(&self) -> Vec<Model> {
        let mut providers: BTreeMap<&str, (u8, &str)> = BTreeMap::new();
        for route in self.routes.values() {
            for name in route.models.keys() {
                let mine = (route.tier, route.provider.as_str());
                let known = providers.entry(name).or_insert(mine);
                if mine.0 < known.0 {
                    *known = mine;
                }
            }
        }
        providers
            .into_iter()
            .map(|(name, (_, provider))| Model {
                name: name.to_owned(),
                provider: provider.to_owned(),
                created: self.since.get(name).copied().unwrap_or_default(),
                price: self.prices.get(name).copied(),
            })
            .collect()
    }
}
