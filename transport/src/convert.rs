//! From what people and wires write to what the plane takes. The only place that does.

use std::collections::BTreeMap;

use control::balance::{self, Policy};
use control::id::AccountId;
use control::plane::{self, AccountConfig, ModelConfig};
use control::quota::{self, Cap, Limits as QuotaLimits, OwnerId, StoreMode};
use control::rate::RateLimits;
use control::{affinity, attempt, breaker};

use crate::catalog::Route;
use crate::config::{
    Config, Fallback, Limits, LoadBalancer, Route as Configured, Serves, Timeouts,
};
use crate::keys::AccountIds;
use crate::upstream::{BadSecret, BadUrl, Secret, Target};

/// Endpoints without a stated maximum take this many attempts at once: more than one inference server runs, so that it
/// limits only what has gone astray.
const IN_FLIGHT_MAX: u32 = 1_024;

/// The plane's part of a configuration, under the version by which the plane will know it.
#[must_use]
pub fn plane_config(config: &Config, ids: &AccountIds, version: u64) -> plane::Config {
    let routing = &config.routing;
    plane::Config {
        version,
        balance: balance::Config {
            policy: policy(routing.load_balancer, routing.fallback),
            bound_percent: routing.bound_percent,
            panic_percent: routing.breaker.panic_percent,
            ..balance::Config::default()
        },
        affinity: affinity::Config {
            ttl: routing.affinity.ttl,
            bindings_max: routing.affinity.sessions_max as usize,
            ..affinity::Config::default()
        },
        breaker: breaker_config(config),
        attempt: attempt::Config {
            attempts_max: routing.max_retries + 1,
            backoff_base: routing.backoff.base,
            backoff_max: routing.backoff.max,
            budget_ratio_percent: routing.retry_budget.percent,
            budget_floor_per_second: routing.retry_budget.floor_per_second,
            ..attempt::Config::default()
        },
        timeouts: timeouts(&routing.timeouts),
        models: models(config),
        accounts: accounts(config, ids),
        ..plane::Config::default()
    }
}

/// The plane's quota policy: a ledger of its own, or an owner's part in the one that is shared.
#[must_use]
pub fn quota_config(owner: Option<OwnerId>) -> quota::Config {
    let alone = quota::Config::default();
    match owner {
        None => alone,
        Some(owner) => quota::Config { store: StoreMode::Shared, owner, ..alone },
    }
}

fn breaker_config(config: &Config) -> breaker::Config {
    let configured = &config.routing.breaker;
    breaker::Config {
        consecutive_failures: configured.consecutive_failures,
        window: configured.window,
        window_requests_min: configured.window_requests_min,
        failure_percent: configured.failure_percent,
        ejection_base: configured.ejection_base,
        ejection_max: configured.ejection_max,
        ejection_percent_max: configured.ejected_percent_max,
        probes_max: configured.probes_max,
        probe_timeout: configured.probe_timeout,
        slow_start: configured.slow_start,
        ..breaker::Config::default()
    }
}

fn policy(load_balancer: LoadBalancer, fallback: Fallback) -> Policy {
    match load_balancer {
        LoadBalancer::Auto => Policy::Auto,
        LoadBalancer::RoundRobin => Policy::RoundRobin,
        LoadBalancer::LeastLoad => Policy::LeastLoad,
        LoadBalancer::P2c => Policy::P2c,
        LoadBalancer::Sticky => Policy::Sticky {
            fallback: match fallback {
                Fallback::Rendezvous => balance::Fallback::Rendezvous,
                Fallback::RoundRobin => balance::Fallback::RoundRobin,
            },
        },
    }
}

fn timeouts(configured: &Timeouts) -> attempt::Timeouts {
    attempt::Timeouts {
        connect: configured.connect,
        first_token: configured.first_token,
        between_tokens: configured.between_tokens,
        request: configured.request,
    }
}

fn models(config: &Config) -> BTreeMap<Box<str>, ModelConfig> {
    let fallback = config.routing.fallback;
    let model = |(name, model): (&String, &crate::config::Model)| {
        let converted = ModelConfig {
            policy: model.policy.map(|chosen| policy(chosen, fallback)),
            price: model.price,
            timeouts: Some(timeouts(&model.timeouts)),
            concurrency_max: model.concurrency,
        };
        (name.as_str().into(), converted)
    };
    config.models.iter().map(model).collect()
}

fn accounts(config: &Config, ids: &AccountIds) -> BTreeMap<AccountId, AccountConfig> {
    let mut accounts = BTreeMap::new();
    for (name, tenant) in &config.tenants {
        let carry_debt = tenant.carry_debt;
        let per_user = tenant.per_user.as_ref().map(|limits| Box::new(account(limits, carry_debt)));
        let of_tenant = AccountConfig { per_user, ..account(&tenant.limits, carry_debt) };
        accounts.insert(ids.tenant(name), of_tenant);
        for (user, limits) in &tenant.users {
            accounts.insert(ids.user(name, user), account(limits, carry_debt));
        }
    }
    for key in &config.keys {
        let carry_debt = config.tenants.get(&key.tenant).is_some_and(|tenant| tenant.carry_debt);
        accounts.insert(ids.key(&key.name), account(&key.limits, carry_debt));
    }
    accounts
}

fn account(limits: &Limits, carry_debt: bool) -> AccountConfig {
    AccountConfig {
        limits: QuotaLimits {
            day: Cap { tokens: limits.daily_tokens, money: limits.daily_usd },
            month: Cap { tokens: limits.monthly_tokens, money: limits.monthly_usd },
            rolling: None,
            carry_debt,
        },
        rates: RateLimits { rpm: limits.rpm, tpm: limits.tpm.map(|tokens| tokens.0) },
        per_user: None,
    }
}

/// Prices as `/api/v1/models` shows them: USD per 1,000,000 tokens.
#[must_use]
pub fn prices(config: &Config) -> BTreeMap<Box<str>, (f64, f64)> {
    let usd = |money: control::units::MicroUsd| money.0 as f64 / 1e6;
    let priced = config.models.iter().filter(|(_, model)| model.price != Default::default());
    priced
        .map(|(name, model)| {
            (name.as_str().into(), (usd(model.price.input), usd(model.price.output)))
        })
        .collect()
}

/// Why a configured endpoint cannot be called.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// Its address.
    #[error("endpoint {0}: {1}")]
    Url(String, BadUrl),
    /// Its key.
    #[error("endpoint {0}: api_key: {1}")]
    Key(String, BadSecret),
}

/// Endpoints by name. What one name stands for in several places becomes one endpoint, if it is the same address with
/// the same standing; otherwise each model has an endpoint of its own, `name:model`.
///
/// # Errors
/// Where an address or a key is not usable.
pub fn routes(config: &Config) -> Result<BTreeMap<Box<str>, Route>, RouteError> {
    let mut routes: BTreeMap<Box<str>, (Configured, Route)> = BTreeMap::new();
    for configured in config.routes() {
        let route = route(&configured)?;
        let name: Box<str> = configured.name.as_str().into();
        match routes.get_mut(&name) {
            None => drop(routes.insert(name, (configured, route))),
            Some((first, known)) if same_standing(first, &configured) => {
                known.models.extend(route.models);
                known.discover |= route.discover;
            }
            Some(_) => {
                let model = route.models.keys().next().cloned().unwrap_or_default();
                routes.insert(format!("{name}:{model}").into(), (configured, route));
            }
        }
    }
    Ok(routes.into_iter().map(|(name, (_, route))| (name, route)).collect())
}

fn same_standing(one: &Configured, other: &Configured) -> bool {
    let standing = |route: &Configured| {
        (
            route.url.to_string(),
            route.priority,
            route.weight,
            route.in_flight_max,
            route.max_rps,
            route.http2,
        )
    };
    standing(one) == standing(other) && one.api_key == other.api_key
}

fn route(configured: &Configured) -> Result<Route, RouteError> {
    let name = || configured.name.clone();
    let base_url =
        configured.url.to_string().parse().map_err(|error| RouteError::Url(name(), error))?;
    let api_key = configured.api_key.as_ref().map(|key| Secret::new(key.expose())).transpose();
    let mut target = Target::new(base_url);
    target.api_key = api_key.map_err(|error| RouteError::Key(name(), error))?;
    target.http2_only = configured.http2;
    let mut models = BTreeMap::new();
    if let Serves::Model { name, upstream } = &configured.serves {
        let upstream = (upstream != name).then(|| upstream.as_str().into());
        models.insert(name.as_str().into(), upstream);
    }
    let except = match &configured.serves {
        Serves::Discovered { except } => except.iter().map(|name| name.as_str().into()).collect(),
        Serves::Model { .. } => Default::default(),
    };
    Ok(Route {
        target,
        provider: configured.provider.clone().unwrap_or_else(|| "pointsman".to_owned()),
        weight: configured.weight,
        tier: u8::try_from(configured.priority).unwrap_or(u8::MAX),
        in_flight_max: configured.in_flight_max.unwrap_or(IN_FLIGHT_MAX),
        rps_max: configured.max_rps,
        attempt_max: configured.timeout,
        models,
        discover: matches!(configured.serves, Serves::Discovered { .. }),
        except,
    })
}
