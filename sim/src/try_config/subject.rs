//! The user's configuration, as a world knows it.
//!
//! A world numbers what a file names: endpoints become `replica-0`, `replica-1`, models `m0`, `m1`, tenants and users
//! accounts. The names are kept, to speak of what was found in the file's own words.
//!
//! Decided here: an endpoint that is asked what it serves cannot be asked by a simulator, so it is taken to serve one
//! model, `discovered`, together with all of its kind. A key without a user pays as one of its tenant's users does; where
//! several keys belong to one user, only the user's limits count. A provider's own `timeout` is not simulated.

use std::collections::{BTreeMap, BTreeSet};

use control::id::AccountId;
use control::plane::{AccountConfig, Config as PlaneConfig};
use control::quota::Cap;
use transport::catalog::Route;
use transport::config::{Config, DEFAULT_TENANT};
use transport::convert;
use transport::keys::AccountIds;

use crate::plan::{
    DiskPlan, GatewayPlan, LinkPlan, Plan, ReplicaPlan, Topology, tenant_account, user_account,
};

/// What is tried.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub config: PlaneConfig,
    pub topology: Topology,
    /// By replica.
    pub endpoints: Vec<String>,
    /// By model.
    pub models: Vec<String>,
    /// By tenant.
    pub tenants: Vec<Tenant>,
    /// What the file leaves open, and how it was read.
    pub notes: Vec<String>,
}

/// Somebody who pays.
#[derive(Clone, Debug)]
pub(super) struct Tenant {
    pub name: String,
    pub callers: Vec<Caller>,
}

/// Somebody who calls for a tenant.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// Its account beside the tenant's: the number, and the key of the file its limits stand under.
    pub user: Option<(u32, String)>,
    /// Models it may call.
    pub models: Vec<u32>,
}

/// What a healthy endpoint is taken to be: one accelerator under a common inference server.
pub(super) const PREFILL_RATE: u32 = 8_000;
pub(super) const WRITE_RATE: u32 = 50;
pub(super) const SLOTS: u32 = 256;

/// Endpoints a world takes.
const ENDPOINTS_MAX: usize = 500;
/// Tenants, and callers of each, that are tried: the limits of any more are of the same kinds.
const TENANTS_MAX: usize = 60;
const CALLERS_MAX: usize = 60;

/// The model of endpoints that are asked what they serve.
const DISCOVERED: &str = "discovered";

impl Subject {
    /// # Errors
    /// In words, where a file describes what a world cannot hold.
    pub fn of(config: &Config) -> Result<Self, String> {
        // The salt is a constant: the same file is the same world.
        let ids = AccountIds::new([7; 32]);
        let mut notes = Vec::new();
        let demo = config.is_demo();
        let routes = if demo { BTreeMap::new() } else { routes_of(config, &mut notes)? };
        let models = models_of(config, &routes, demo);
        let index: BTreeMap<&str, u32> = models.iter().map(String::as_str).zip(0..).collect();
        let mut endpoints: Vec<String> = routes.keys().map(ToString::to_string).collect();
        let mut replicas: Vec<ReplicaPlan> =
            routes.values().map(|route| replica(route, &index)).collect();
        if demo {
            notes.push("the file names no endpoint: the built-in model `demo` is tried".to_owned());
            endpoints = (0..3).map(|index| format!("demo-{index}")).collect();
            replicas = vec![replica_of(&[0], 100, 1, None, None); 3];
        }
        if replicas.is_empty() || replicas.len() > ENDPOINTS_MAX {
            let count = replicas.len();
            return Err(format!("{count} endpoints: a simulated world holds 1 to {ENDPOINTS_MAX}"));
        }
        let tenants = tenants_of(config, &index, &mut notes);
        let config = plane_config(config, &ids, &models, &tenants);
        let topology = topology(replicas, models.len() as u32, tenants.len() as u32);
        Ok(Self { config, topology, endpoints, models, tenants, notes })
    }

    /// Replicas that serve a model, those of its first tier before the others.
    pub fn pool(&self, model: u32) -> Vec<u32> {
        let replicas = (0..).zip(&self.topology.replicas);
        let mut pool: Vec<(u8, u32)> = replicas
            .filter(|(_, replica)| replica.models.contains(&model))
            .map(|(index, replica)| (replica.tier, index))
            .collect();
        pool.sort_unstable();
        pool.into_iter().map(|(_, index)| index).collect()
    }

    /// The limits of a caller, tenant first, each with the key of the file it stands under.
    pub fn limits_of(&self, tenant: usize, caller: &Caller) -> Vec<(String, &AccountConfig)> {
        let own = self.tenants.get(tenant).map_or("", |tenant| &tenant.name);
        let account = self.config.accounts.get(&tenant_account(tenant as u32));
        let mut limits: Vec<_> =
            account.map(|account| (format!("tenants.{own}"), account)).into_iter().collect();
        if let Some((user, key)) = &caller.user {
            let listed = self.config.accounts.get(&user_account(tenant as u32, *user));
            let shared = account.and_then(|account| account.per_user.as_deref());
            limits.extend(listed.or(shared).map(|account| (key.clone(), account)));
        }
        limits
    }

    /// The key of the file that an account's limits stand under.
    pub fn key_of(&self, account: AccountId) -> String {
        for (tenant, named) in (0..).zip(&self.tenants) {
            if tenant_account(tenant) == account {
                return format!("tenants.{}", named.name);
            }
            for (user, key) in named.callers.iter().filter_map(|caller| caller.user.as_ref()) {
                if user_account(tenant, *user) == account {
                    return key.clone();
                }
            }
        }
        account.to_string()
    }
}

fn routes_of(
    config: &Config,
    notes: &mut Vec<String>,
) -> Result<BTreeMap<Box<str>, Route>, String> {
    let mut routes = convert::routes(config).map_err(|why| why.to_string())?;
    let asked: Vec<String> = routes
        .iter_mut()
        .filter(|(_, route)| route.discover && route.models.is_empty())
        .map(|(name, route)| {
            route.models.insert(DISCOVERED.into(), None);
            name.to_string()
        })
        .collect();
    if !asked.is_empty() {
        let names = asked.join(", ");
        notes.push(format!(
            "{names}: asked for models when served; taken to serve one model, `{DISCOVERED}`"
        ));
    }
    let timed = routes.iter().filter(|(_, route)| route.attempt_max.is_some());
    let timed: Vec<&str> = timed.map(|(name, _)| &**name).collect();
    if !timed.is_empty() {
        notes.push(format!("providers' own timeout is not simulated: {}", timed.join(", ")));
    }
    Ok(routes)
}

fn models_of(config: &Config, routes: &BTreeMap<Box<str>, Route>, demo: bool) -> Vec<String> {
    let served = routes.values().flat_map(|route| route.models.keys());
    let mut models: BTreeSet<String> = served.map(ToString::to_string).collect();
    models.extend(config.models.keys().cloned());
    if demo {
        models.insert("demo".to_owned());
    }
    models.into_iter().collect()
}

fn replica(route: &Route, index: &BTreeMap<&str, u32>) -> ReplicaPlan {
    let models: Vec<u32> =
        route.models.keys().filter_map(|name| index.get(&**name).copied()).collect();
    replica_of(&models, route.weight, route.tier, Some(route.in_flight_max), route.rps_max)
}

fn replica_of(
    models: &[u32],
    weight: u32,
    tier: u8,
    in_flight_max: Option<u32>,
    rps_max: Option<u32>,
) -> ReplicaPlan {
    ReplicaPlan {
        models: models.to_vec(),
        weight,
        tier,
        // As the transport fills it in.
        in_flight_max: in_flight_max.unwrap_or(u32::MAX),
        rps_max,
        prefill_rate: PREFILL_RATE,
        rate: WRITE_RATE,
        slots: SLOTS,
        tells_usage: true,
        core: true,
        fingerprint: None,
        tells: None,
    }
}

fn topology(replicas: Vec<ReplicaPlan>, models: u32, tenants: u32) -> Topology {
    Topology {
        shared: false,
        gateways: vec![GatewayPlan { ppm: 0, wall_off_ms: 0, core: true }],
        replicas,
        models,
        tenants,
        link: LinkPlan { base_us: 500, jitter_us: 500 },
        disk: DiskPlan { write_us: 150, sync_every_ms: 100, snapshot_every_ms: 30_000 },
        registry_every_ms: 0,
        store_ppm: 0,
    }
}

/// Who calls: with keys, those who have one; without, everybody the file names, as loopback lets them.
fn tenants_of(
    config: &Config,
    index: &BTreeMap<&str, u32>,
    notes: &mut Vec<String>,
) -> Vec<Tenant> {
    let all: Vec<u32> = index.values().copied().collect();
    let mut tenants: Vec<Tenant> = Vec::new();
    for key in &config.keys {
        let at = tenants.iter().position(|tenant| tenant.name == key.tenant).unwrap_or_else(|| {
            tenants.push(Tenant { name: key.tenant.clone(), callers: Vec::new() });
            tenants.len() - 1
        });
        let models = key.models.as_ref().map_or_else(
            || all.clone(),
            |names| names.iter().filter_map(|name| index.get(name.as_str()).copied()).collect(),
        );
        let user = match &key.user {
            Some(user) => user_key(config, &key.tenant, user),
            None => format!("keys ({})", key.name),
        };
        let callers = &mut tenants[at].callers;
        let known = |caller: &Caller| caller.user.as_ref().is_some_and(|(_, name)| *name == user);
        if !callers.iter().any(known) {
            let number = callers.len() as u32;
            callers.push(Caller { user: Some((number, user)), models });
        }
    }
    if config.keys.is_empty() {
        tenants = without_keys(config, &all);
    }
    if tenants.len() > TENANTS_MAX || tenants.iter().any(|t| t.callers.len() > CALLERS_MAX) {
        notes.push(format!(
            "tried with the first {TENANTS_MAX} tenants and {CALLERS_MAX} callers of each"
        ));
        tenants.truncate(TENANTS_MAX);
        tenants.iter_mut().for_each(|tenant| tenant.callers.truncate(CALLERS_MAX));
    }
    tenants
}

fn without_keys(config: &Config, all: &[u32]) -> Vec<Tenant> {
    let caller = |user| Caller { user, models: all.to_vec() };
    let mut names: Vec<&String> = config.tenants.keys().collect();
    let default = DEFAULT_TENANT.to_owned();
    if names.is_empty() {
        names.push(&default);
    }
    let tenant = |name: &String| {
        let settings = config.tenants.get(name);
        let mut callers = vec![caller(None)];
        let listed = settings.into_iter().flat_map(|settings| settings.users.keys());
        for (number, user) in (0..).zip(listed) {
            callers.push(caller(Some((number, user_key(config, name, user)))));
        }
        if settings.is_some_and(|settings| settings.per_user.is_some()) {
            let number = callers.len() as u32;
            callers.push(caller(Some((number, format!("tenants.{name}.per_user")))));
        }
        Tenant { name: name.clone(), callers }
    };
    names.into_iter().map(tenant).collect()
}

fn user_key(config: &Config, tenant: &str, user: &str) -> String {
    let listed = config.tenants.get(tenant).is_some_and(|t| t.users.contains_key(user));
    match listed {
        true => format!("tenants.{tenant}.users.{user}"),
        false => format!("tenants.{tenant}.per_user ({user})"),
    }
}

/// The plane's configuration, under the world's names.
fn plane_config(
    config: &Config,
    ids: &AccountIds,
    models: &[String],
    tenants: &[Tenant],
) -> PlaneConfig {
    let mut plane = convert::plane_config(config, ids, 1);
    // What an embedded ledger expires, nobody else holds: see the quota room.
    plane.quota.ledger.drift_max = std::time::Duration::ZERO;
    let mut named = std::mem::take(&mut plane.models);
    for (number, name) in (0..).zip(models) {
        if let Some(settings) = named.remove(name.as_str()) {
            plane.models.insert(Plan::model_name(number).into(), settings);
        }
    }
    let accounts = std::mem::take(&mut plane.accounts);
    for (tenant, named) in (0..).zip(tenants) {
        let own = accounts.get(&ids.tenant(&named.name)).cloned().unwrap_or_default();
        plane.accounts.insert(tenant_account(tenant), own);
        for (number, key) in named.callers.iter().filter_map(|caller| caller.user.as_ref()) {
            if let Some(limits) = limits_under(config, ids, &accounts, &named.name, key) {
                plane.accounts.insert(user_account(tenant, *number), limits);
            }
        }
    }
    plane
}

/// The limits of a listed user, or of a key and its user together.
fn limits_under(
    config: &Config,
    ids: &AccountIds,
    accounts: &BTreeMap<AccountId, AccountConfig>,
    tenant: &str,
    key: &str,
) -> Option<AccountConfig> {
    if let Some(user) = key.strip_prefix(&format!("tenants.{tenant}.users.")) {
        let own = accounts.get(&ids.user(tenant, user)).cloned()?;
        let mut keys =
            config.keys.iter().filter(|k| k.tenant == tenant && k.user.as_deref() == Some(user));
        return match (keys.next(), keys.next()) {
            (Some(only), None) => {
                let of_key = accounts.get(&ids.key(&only.name))?;
                Some(smaller(&own, of_key))
            }
            _ => Some(own),
        };
    }
    let name = key.strip_prefix("keys (")?.strip_suffix(')')?;
    accounts.get(&ids.key(name)).cloned()
}

/// The smaller of each limit.
fn smaller(one: &AccountConfig, other: &AccountConfig) -> AccountConfig {
    fn least<T: Ord + Copy>(one: Option<T>, other: Option<T>) -> Option<T> {
        one.into_iter().chain(other).min()
    }
    let cap = |one: Cap, other: Cap| Cap {
        tokens: least(one.tokens, other.tokens),
        money: least(one.money, other.money),
    };
    let mut least_of_both = one.clone();
    least_of_both.limits.day = cap(one.limits.day, other.limits.day);
    least_of_both.limits.month = cap(one.limits.month, other.limits.month);
    least_of_both.rates.rpm = least(one.rates.rpm, other.rates.rpm);
    least_of_both.rates.tpm = least(one.rates.tpm, other.rates.tpm);
    least_of_both
}
