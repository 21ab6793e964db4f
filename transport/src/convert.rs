//! From what people and wires write to what the plane takes. The only place that does.

mod sessions;
mod streams;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use control::balance::{self, Policy, Reported};
use control::id::AccountId;
use control::outcome::{Failure, Fault, Stage};
use control::plane::{self, AccountConfig, ModelConfig};
use control::quota::{self, Cap, Limits as QuotaLimits, OwnerId, StoreMode};
use control::rate::RateLimits;
use control::registry::Fingerprint;
use control::units::{Tokens, Usage};
use control::{affinity, attempt, breaker};
use proto::inference::v1::{Load as LoadSaid, Usage as UsageSaid};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::catalog::{CONFIGURED, Route, Silence};
use crate::config::{
    AuthRole, Config, Fallback, Limits, LoadBalancer, Route as Configured, Serves, Timeouts,
    WorkerTls,
};
use crate::keys::AccountIds;
use crate::quic::{Identity, Pin, Trust};
use crate::sources::Instance;
use crate::tls::TlsError;
use crate::upstream::{BadSecret, BadUrl, Failed, Secret, Target, WorkerLoad};
use crate::worker::continuing;

pub(crate) use sessions::{
    history_answer, line_said, message_said, messages_answer, session_answer, session_said,
    sessions_answer,
};
pub(crate) use streams::{resumed, resumed_said};

/// Endpoints without a stated maximum take what comes: how much that may be is said for connections, models and accounts.
const NO_LIMIT: u32 = u32::MAX;

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
            budget_burst: routing.retry_budget.burst,
            hedge_after: routing.hedge.after,
            hedge_share_percent: routing.hedge.share_percent,
            ..attempt::Config::default()
        },
        timeouts: timeouts(&routing.timeouts),
        models: models(config),
        accounts: accounts(config, ids),
        ..plane::Config::default()
    }
}

/// The plane's quota policy: a ledger of its own, or an owner's part in the one that is shared.
/// At the edge nothing is spent, and only rates are shared.
#[must_use]
pub fn quota_config(config: &Config, owner: Option<OwnerId>, is_edge: bool) -> quota::Config {
    let alone = quota::Config::default();
    let redis = config.data.redis.as_ref();
    let fallback_after = redis.map_or(alone.fallback_after, |redis| redis.fallback_after);
    let shared = quota::Config { fallback_after, ..alone.clone() };
    match owner {
        None => alone,
        Some(_) if is_edge => quota::Config { store: StoreMode::Edge, ..shared },
        Some(owner) => quota::Config { store: StoreMode::Shared, owner, ..shared },
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
            hedge_after: model.hedge_after,
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

/// How long workers may be silent before the first token.
#[must_use]
pub fn silence(config: &Config) -> Silence {
    let of_model = |(name, model): (&String, &crate::config::Model)| {
        (name.as_str().into(), model.timeouts.first_token)
    };
    Silence {
        general: Some(config.routing.timeouts.first_token),
        models: config.models.iter().map(of_model).collect(),
    }
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
    /// A file of its TLS.
    #[error("endpoint {0}: tls: {1}")]
    Tls(String, TlsError),
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
    // Whose answers it continues is said of one model.
    let goes_on = one.continues.is_some() || other.continues.is_some();
    !goes_on
        && standing(one) == standing(other)
        && one.api_key == other.api_key
        && one.tls == other.tls
}

fn route(configured: &Configured) -> Result<Route, RouteError> {
    let name = || configured.name.clone();
    let base_url =
        configured.url.to_string().parse().map_err(|error| RouteError::Url(name(), error))?;
    let api_key = configured.api_key.as_ref().map(|key| Secret::new(key.expose())).transpose();
    let mut target = Target::new(base_url);
    target.api_key = api_key.map_err(|error| RouteError::Key(name(), error))?;
    target.http2_only = configured.http2;
    if let Some(tls) = &configured.tls {
        target.trust = Some(trust(tls).map_err(|error| RouteError::Tls(name(), error))?);
    }
    let mut models = BTreeMap::new();
    if let Serves::Model { name, upstream } = &configured.serves {
        let revision = configured.continues.as_deref();
        target.continues = revision.map(|revision| continuing(name, revision).into());
        let upstream = (upstream != name).then(|| upstream.as_str().into());
        models.insert(name.as_str().into(), upstream);
    }
    let except = match &configured.serves {
        Serves::Discovered { except } => except.iter().map(|name| name.as_str().into()).collect(),
        Serves::Model { .. } => Default::default(),
    };
    let own = target.continues.as_deref().and_then(fingerprint);
    Ok(Route {
        target,
        provider: configured.provider.clone().unwrap_or_else(|| "pointsman".to_owned()),
        weight: configured.weight,
        tier: u8::try_from(configured.priority).unwrap_or(u8::MAX),
        in_flight_max: configured.in_flight_max.unwrap_or(NO_LIMIT),
        rps_max: configured.max_rps,
        attempt_max: configured.timeout,
        models,
        discover: matches!(configured.serves, Serves::Discovered { .. }),
        except,
        source: CONFIGURED.into(),
        listed: true,
        fingerprint: own,
        described: own.is_some(),
    })
}

/// The auth role, as it is called.
///
/// # Errors
/// Where its certificates cannot be read.
pub(crate) fn auth_target(role: &AuthRole) -> Result<Target, RouteError> {
    let name = || "auth.url".to_owned();
    let base_url = role.url.to_string().parse();
    let mut target = Target::new(base_url.map_err(|error| RouteError::Url(name(), error))?);
    if let Some(tls) = &role.tls {
        target.trust = Some(trust(tls).map_err(|error| RouteError::Tls(name(), error))?);
    }
    Ok(target)
}

fn trust(tls: &WorkerTls) -> Result<Arc<Trust>, TlsError> {
    let mut trust = match (&tls.pin, &tls.ca) {
        (Some(pin), _) => Trust::pinned(*pin),
        (None, Some(ca)) => Trust::authorities(ca)?,
        (None, None) => Trust::default(),
    };
    if let Some((cert, key)) = &tls.own {
        trust = trust.showing(Identity::read(cert, key)?);
    }
    Ok(Arc::new(trust))
}

/// A worker that a registry lists.
///
/// # Errors
/// Where its address makes no URL; in words for whoever registered it.
pub(crate) fn found(source: &str, instance: &Instance) -> Result<Route, String> {
    let Instance { name, model, weight, pin, .. } = instance;
    let url = instance.url();
    let base_url = url.parse().map_err(|why| format!("{name} is at {url}: {why}"))?;
    let mut target = Target::new(base_url);
    if let Some(pin) = pin {
        let pin: Pin = pin.parse().map_err(|why| format!("{name} has meta.pin {pin:?}: {why}"))?;
        target.trust = Some(Arc::new(Trust::pinned(pin)));
    }
    Ok(Route {
        target,
        provider: "pointsman".to_owned(),
        weight: *weight,
        tier: 1,
        in_flight_max: NO_LIMIT,
        rps_max: None,
        attempt_max: None,
        models: BTreeMap::from([(model.as_str().into(), None)]),
        discover: false,
        except: BTreeSet::new(),
        source: source.into(),
        listed: true,
        fingerprint: None,
        described: false,
    })
}

/// What a worker's status means. `comes_back`: it named a time after which to ask again. `begun`: a chunk had come.
///
/// `UNAVAILABLE` with such a time is a worker that drains or is full for now, and healthy. Without one it is a worker, or
/// something before it, that cannot serve: taken for mere backpressure, a dead backend that refuses at once would look
/// like the least busy of all.
pub(crate) fn failure(code: Code, comes_back: bool, begun: bool) -> Failure {
    match code {
        Code::InvalidArgument => Failure::ClientError(400),
        Code::NotFound => Failure::EndpointFault(Fault::UnknownModel),
        Code::PermissionDenied => Failure::EndpointFault(Fault::Forbidden),
        Code::Unauthenticated => Failure::EndpointFault(Fault::KeyRefused),
        Code::ResourceExhausted => Failure::Backpressure(429),
        Code::Unavailable if comes_back => Failure::Backpressure(503),
        // Our own side says so, of a message above the limit.
        Code::OutOfRange => Failure::TooLarge,
        // What a worker says that is asked to go on with an answer, and cannot.
        Code::FailedPrecondition => Failure::CannotResume,
        Code::Cancelled | Code::Unavailable if begun => Failure::Truncated,
        Code::Cancelled => Failure::ConnectionLost,
        Code::Unavailable => Failure::Status(502),
        _ if begun => Failure::ErrorInAnswer,
        Code::DeadlineExceeded => Failure::Status(504),
        Code::Unimplemented => Failure::Status(501),
        Code::Ok
        | Code::Unknown
        | Code::AlreadyExists
        | Code::Aborted
        | Code::Internal
        | Code::DataLoss => Failure::Status(500),
    }
}

/// What a worker says that was used, with the part of the prompt that was cached. `None` where it is above every context
/// window: no ledger should be charged with it.
pub(crate) fn usage(said: &UsageSaid) -> Option<(Usage, u64)> {
    const COUNT_MAX: u64 = 1 << 32;
    let (prompt, completion) = (said.prompt_tokens, said.completion_tokens);
    let possible = prompt <= COUNT_MAX && completion <= COUNT_MAX;
    let usage = Usage { prompt: Tokens(prompt), completion: Tokens(completion) };
    possible.then_some((usage, said.cached_tokens.min(prompt)))
}

/// More requests than any worker has, running and waiting: the plane counts no more either.
const LOAD_MAX: u32 = balance::REPORTED_MAX;

/// What a worker says of its load; `None` where it cannot be true, and then nothing of it is believed. The wire has whole
/// numbers, so that there is no such thing as half a request, or one that is not a number: whoever reads figures (the
/// worker) has refused those.
pub(crate) fn load(said: &LoadSaid, at: Instant) -> Option<WorkerLoad> {
    let LoadSaid { queued, running, running_max, kv_used_permille } = *said;
    let possible = queued <= LOAD_MAX
        && running <= LOAD_MAX
        && kv_used_permille.is_none_or(|used| used <= 1_000);
    possible.then_some(WorkerLoad { queued, running, running_max, kv_used_permille, at })
}

/// The same, as the plane takes it.
pub(crate) fn reported(load: WorkerLoad) -> Reported {
    let WorkerLoad { queued, running, kv_used_permille, .. } = load;
    Reported { queued, running, kv_used_permille }
}

/// What a worker says of whose streams it continues, as the plane compares it.
pub(crate) fn fingerprint(said: &str) -> Option<Fingerprint> {
    let digest = Sha256::digest(said.as_bytes());
    let first = digest.first_chunk().copied().map(u64::from_be_bytes);
    first.filter(|_| !said.is_empty()).map(Fingerprint)
}

/// The other way round.
pub(crate) fn usage_said(usage: Usage, cached_tokens: u64) -> UsageSaid {
    let (prompt_tokens, completion_tokens) = (usage.prompt.0, usage.completion.0);
    UsageSaid { prompt_tokens, completion_tokens, cached_tokens }
}

/// What a worker says to its caller where its backend failed.
pub(crate) fn status(failed: &Failed) -> Status {
    let words = |code: Code| Status::new(code, format!("the backend: {}", failed.failure));
    match failed.failure {
        Failure::Connect | Failure::ConnectionLost => words(Code::Unavailable),
        Failure::Timeout(Stage::Deadline) => words(Code::DeadlineExceeded),
        Failure::Backpressure(_) => {
            let mut status = words(Code::ResourceExhausted);
            // Long enough that a full backend is not asked again at once.
            let after = failed.retry_after.map_or(1_000, |after| after.as_millis());
            if let Ok(after) = after.to_string().parse() {
                status.metadata_mut().insert("retry-after-ms", after);
            }
            status
        }
        Failure::ClientError(_) => Status::invalid_argument(refusal_words(failed)),
        Failure::CannotResume => words(Code::FailedPrecondition),
        Failure::EndpointFault(Fault::UnknownModel) => words(Code::NotFound),
        Failure::EndpointFault(Fault::KeyRefused | Fault::Forbidden | Fault::AccountEmpty) => {
            words(Code::PermissionDenied)
        }
        Failure::Timeout(Stage::FirstToken | Stage::BetweenTokens)
        | Failure::Status(_)
        | Failure::Truncated
        | Failure::ErrorInAnswer
        | Failure::Garbage
        | Failure::TooLarge => words(Code::Internal),
    }
}

/// How the backend refused the request itself: for the caller, who wrote the request.
fn refusal_words(failed: &Failed) -> String {
    // It goes into a header.
    const LENGTH_MAX: usize = 2_048;
    let said = failed.upstream.as_ref();
    let said: Option<serde_json::Value> =
        said.and_then(|said| serde_json::from_slice(&said.body).ok());
    let words = said.as_ref().and_then(|said| {
        let places = ["/error/message", "/message", "/error", "/detail"];
        places.into_iter().find_map(|place| said.pointer(place)?.as_str())
    });
    let words = words.unwrap_or("the backend refused the request and did not say why");
    words[..words.floor_char_boundary(LENGTH_MAX)].to_owned()
}
