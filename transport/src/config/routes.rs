//! One table of who serves what, from the four ways to say it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::trust::WorkerTls;
use super::units::{Secret, Url};
use super::{Config, Endpoint, Provider, Rule, Upstream};

/// A place where requests for a model, or for several, can be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Which models.
    pub serves: Serves,
    /// The endpoint's name in logs, `explain` and `drain`.
    pub name: String,
    /// The provider it belongs to, where it does.
    pub provider: Option<String>,
    /// Where it is.
    pub url: Url,
    /// What it is asked with.
    pub api_key: Option<Secret>,
    /// Its tier: a lower number is asked first.
    pub priority: u32,
    /// Its share within the tier.
    pub weight: u32,
    /// Requests a second it gets.
    pub max_rps: Option<u32>,
    /// Requests it gets at once.
    pub in_flight_max: Option<u32>,
    /// The longest one attempt there may take, beside the model's timeouts.
    pub timeout: Option<Duration>,
    /// Whether HTTP/2 is spoken to it without TLS too.
    pub http2: bool,
    /// TLS with it, where it is a worker over QUIC.
    pub tls: Option<WorkerTls>,
    /// What it runs, where it continues the answers of others that run the same.
    pub continues: Option<String>,
}

/// Which models a route serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serves {
    /// One.
    Model {
        /// Our name of it.
        name: String,
        /// Its own name of it.
        upstream: String,
    },
    /// What it lists at `/v1/models`.
    Discovered {
        /// Except these, about which a rule says something else.
        except: BTreeSet<String>,
    },
}

impl Route {
    /// Whether a request for `model` may go there, as far as the file can tell.
    #[must_use]
    pub fn may_serve(&self, model: &str) -> bool {
        match &self.serves {
            Serves::Model { name, .. } => name == model,
            Serves::Discovered { except } => !except.contains(model),
        }
    }
}

impl Config {
    /// Every route, `models` first, then `upstreams`, then `providers` and their `rules`. A rule replaces what its provider
    /// says of that model; one that is not enabled takes the model away from it.
    #[must_use]
    pub fn routes(&self) -> Vec<Route> {
        let replicas = self.models.iter().flat_map(|(name, model)| {
            model.endpoints.iter().map(move |endpoint| of_endpoint(name, endpoint))
        });
        let upstreams = self.upstreams.iter().map(of_upstream);
        let providers =
            self.providers.iter().flat_map(|(name, provider)| self.of_provider(name, provider));
        replicas.chain(upstreams).chain(providers).collect()
    }

    fn of_provider(&self, name: &str, provider: &Provider) -> Vec<Route> {
        let rules: Vec<&Rule> = self.rules.iter().filter(|rule| rule.provider_id == name).collect();
        let ruled: BTreeSet<String> = rules.iter().map(|rule| rule.model_name.clone()).collect();
        let mut routes: Vec<Route> = rules
            .iter()
            .filter(|rule| rule.is_enabled)
            .map(|rule| Route {
                serves: named(provider, &rule.model_name),
                priority: rule.priority,
                weight: rule.weight,
                max_rps: Some(provider.max_rps.map_or(rule.max_rps, |max| max.min(rule.max_rps))),
                ..at_provider(name, provider)
            })
            .collect();
        match &provider.models {
            Some(models) => {
                routes.extend(models.keys().filter(|model| !ruled.contains(*model)).map(|model| {
                    Route { serves: named(provider, model), ..at_provider(name, provider) }
                }))
            }
            None => routes.push(Route {
                serves: Serves::Discovered { except: ruled },
                ..at_provider(name, provider)
            }),
        }
        routes
    }
}

fn named(provider: &Provider, model: &str) -> Serves {
    let upstream = provider.models.as_ref().and_then(|models| models.get(model));
    let upstream = upstream.cloned().unwrap_or_else(|| model.to_owned());
    Serves::Model { name: model.to_owned(), upstream }
}

fn at_provider(name: &str, provider: &Provider) -> Route {
    Route {
        serves: Serves::Discovered { except: BTreeSet::new() },
        name: name.to_owned(),
        provider: Some(name.to_owned()),
        url: provider.base_url.clone(),
        api_key: provider.api_key.clone(),
        priority: provider.priority,
        weight: provider.weight,
        max_rps: provider.max_rps,
        in_flight_max: None,
        timeout: provider.timeout,
        http2: provider.http2,
        tls: None,
        continues: None,
    }
}

fn of_endpoint(model: &str, endpoint: &Endpoint) -> Route {
    let upstream = endpoint.model.clone().unwrap_or_else(|| model.to_owned());
    Route {
        serves: Serves::Model { name: model.to_owned(), upstream },
        name: endpoint.name.clone(),
        provider: None,
        url: endpoint.url.clone(),
        api_key: endpoint.api_key.clone(),
        priority: endpoint.priority,
        weight: endpoint.weight,
        max_rps: None,
        in_flight_max: endpoint.in_flight_max,
        timeout: None,
        http2: endpoint.http2,
        tls: endpoint.tls.clone(),
        continues: endpoint.continues.clone(),
    }
}

fn of_upstream(upstream: &Upstream) -> Route {
    Route {
        serves: Serves::Discovered { except: BTreeSet::new() },
        name: upstream.name.clone(),
        provider: None,
        url: upstream.url.clone(),
        api_key: upstream.api_key.clone(),
        priority: upstream.priority,
        weight: upstream.weight,
        max_rps: None,
        in_flight_max: upstream.in_flight_max,
        timeout: None,
        http2: upstream.http2,
        tls: upstream.tls.clone(),
        continues: None,
    }
}
