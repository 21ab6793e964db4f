//! The configuration of one seed. Every knob is drawn, so that no combination is always tried together (swarm testing,
//! Groce and others, 2012).
//!
//! Times are short against a production's: a world lasts two minutes, and what is to be seen is a breaker that opens,
//! comes back and opens again, not the wait in between.

use std::time::Duration;

use control::attempt::Timeouts;
use control::balance::{Fallback, Policy};
use control::id::AccountId;
use control::plane::{AccountConfig, Config, ModelConfig};
use control::quota::{Cap, Limits, OwnerId, Rolling, StoreMode};
use control::rate::RateLimits;
use control::rng::Rng;
use control::units::{Amount, MicroUsd, Price, Tokens};

use super::{Plan, Topology};

/// The account of a tenant.
#[must_use]
pub const fn tenant_account(tenant: u32) -> AccountId {
    AccountId(1_000 + tenant as u64)
}

/// The account of a tenant's user.
#[must_use]
pub const fn user_account(tenant: u32, user: u32) -> AccountId {
    AccountId(100_000 + (tenant as u64) * 1_000 + user as u64)
}

/// Draws a configuration for a topology. `load` is about how many tokens all tenants will use.
pub(super) fn draw(topology: &Topology, load: u64, rng: &mut Rng) -> Config {
    let mut config = Config { version: 1, ..Config::default() };
    timeouts(&mut config, rng);
    breaker(&mut config, rng);
    retries(&mut config, rng);
    quota(&mut config, topology, rng);
    config.balance.policy = policy(rng);
    config.balance.bound_percent = one_of(&[125, 125, 100, 150, 200], rng);
    config.affinity.ttl = seconds(2 + rng.below(90));
    config.affinity.memory = seconds(10 + rng.below(90));
    config.affinity.bindings_max = match (topology.gateways.len(), rng.below(4)) {
        // Homes of several gateways are computed, never bound: see design, section 4.
        (2.., _) => 0,
        (_, 0) => 8 + rng.below(64) as usize,
        _ => 100_000,
    };
    config.affinity.spills_before_migration = 1 + rng.below(4) as u32;
    config.session.waiting_max = rng.below(5) as u32;
    config.session.wait_max = millis(200 + rng.below(5_000));
    config.session.idempotency_ttl = seconds(150);
    config.output_default = Tokens(one_of(&[64, 256, 1_024], rng));
    if chance(15, rng) {
        config.requests_max = 8 + rng.below(200) as u32;
    }
    for model in 0..topology.models {
        config.models.insert(Plan::model_name(model).into(), self::model(rng));
    }
    accounts(&mut config, topology, load, rng);
    config
}

/// Changes some of a configuration, as somebody who edits the file while all runs.
pub(super) fn edit(config: &Config, topology: &Topology, load: u64, rng: &mut Rng) -> Config {
    let mut edited = config.clone();
    edited.version += 1;
    match rng.below(4) {
        0 => breaker(&mut edited, rng),
        1 => retries(&mut edited, rng),
        2 => accounts(&mut edited, topology, load, rng),
        _ => {
            for model in edited.models.values_mut() {
                *model = self::model(rng);
            }
        }
    }
    edited
}

fn timeouts(config: &mut Config, rng: &mut Rng) {
    config.timeouts = Timeouts {
        connect: millis(200 + rng.below(2_000)),
        first_token: millis(800 + rng.below(6_000)),
        between_tokens: millis(600 + rng.below(3_000)),
        request: millis(4_000 + rng.below(11_000)),
    };
}

fn breaker(config: &mut Config, rng: &mut Rng) {
    let breaker = &mut config.breaker;
    breaker.consecutive_failures = 2 + rng.below(6) as u32;
    breaker.window = seconds(2 + rng.below(20));
    breaker.window_requests_min = 5 + rng.below(20) as u32;
    breaker.failure_percent = 20 + rng.below(60) as u32;
    breaker.ejection_base = millis(300 + rng.below(3_000));
    breaker.fault_ejection_base = millis(1_000 + rng.below(5_000));
    breaker.ejection_max = millis(6_000 + rng.below(6_000));
    breaker.ejection_jitter_percent = rng.below(40) as u32;
    breaker.ejection_forget_after = seconds(2 + rng.below(30));
    breaker.ejection_percent_max = 30 + rng.below(71) as u32;
    breaker.probes_max = 1 + rng.below(3) as u32;
    breaker.probes_to_close = 1 + rng.below(2) as u32;
    breaker.probe_timeout = millis(500 + rng.below(4_000));
    breaker.slow_start = millis(one_of(&[0, 1_000, 5_000], rng));
    config.balance.panic_percent = one_of(&[0, 10, 10, 30, 50], rng);
}

fn retries(config: &mut Config, rng: &mut Rng) {
    let attempt = &mut config.attempt;
    attempt.attempts_max = 1 + rng.below(5) as u32;
    attempt.backoff_base = millis(5 + rng.below(100));
    attempt.backoff_max = millis(100 + rng.below(2_000));
    attempt.budget_ratio_percent = one_of(&[0, 10, 10, 20], rng);
    attempt.budget_floor_per_second = rng.below(6) as u32;
    attempt.budget_burst = 2 + rng.below(40) as u32;
    attempt.slow_failure_after = millis(500 + rng.below(10_000));
}

/// In some worlds a silent attempt gets a second one beside it: sooner than a replica that is well answers, or only where one
/// is slow or silent.
pub(super) fn hedge(config: &mut Config, rng: &mut Rng) {
    if !chance(35, rng) {
        return;
    }
    config.attempt.hedge_after = millis(one_of(&[20, 100, 300, 1_000], rng));
    config.attempt.hedge_share_percent = one_of(&[0, 5, 20, 100], rng);
    for model in config.models.values_mut() {
        let own = millis(one_of(&[0, 50, 500], rng));
        model.hedge_after = chance(20, rng).then_some(own);
    }
}

/// How long a late store is waited for by who can do without it: less than it takes when all is well, or as long as by anybody.
pub(super) fn patience(config: &mut Config, rng: &mut Rng) {
    config.quota.fallback_after = millis(one_of(&[1, 5, 20, 50, 50, 1_000], rng));
}

fn quota(config: &mut Config, topology: &Topology, rng: &mut Rng) {
    let quota = &mut config.quota;
    quota.store = if topology.shared { StoreMode::Shared } else { StoreMode::Embedded };
    quota.owner = OwnerId::default();
    quota.slice = Tokens(one_of(&[16, 32, 64, 256], rng));
    quota.reservation_ttl = seconds(3 + rng.below(6));
    quota.drift_max = millis(200 + rng.below(800));
    quota.answer_timeout = millis(20 + rng.below(300));
    quota.probe_every = millis(200 + rng.below(1_500));
    quota.retry_max = millis(500 + rng.below(2_500));
    // The largest outlasts any silence of the store: then time ends it, not use.
    let drawn = one_of(&[0, 256, 1_024, 4_096, 200_000], rng);
    quota.allotment = Amount { tokens: Tokens(drawn), money: MicroUsd(drawn * 20) };
    quota.allotments_max = 1 + rng.below(16) as usize;
    quota.allotment_ttl = seconds(4 + rng.below(8));
    quota.ledger.drift_max = if topology.shared { quota.drift_max } else { Duration::ZERO };
}

fn policy(rng: &mut Rng) -> Policy {
    match rng.below(10) {
        0 => Policy::RoundRobin,
        1 => Policy::LeastLoad,
        2 => Policy::P2c,
        3 => Policy::Sticky { fallback: Fallback::RoundRobin },
        4 | 5 => Policy::Sticky { fallback: Fallback::Rendezvous },
        _ => Policy::Auto,
    }
}

fn model(rng: &mut Rng) -> ModelConfig {
    let mut price = || MicroUsd(one_of(&[0, 150_000, 1_000_000, 2_500_000, 15_000_000], rng));
    ModelConfig {
        price: Price { input: price(), output: price() },
        policy: chance(20, rng).then(|| policy(rng)),
        timeouts: None,
        concurrency_max: chance(10, rng).then(|| 2 + rng.below(40) as u32),
        hedge_after: None,
    }
}

/// Some tenants without limits, some with more than they need, some with less; users of some; and some with rates.
fn accounts(config: &mut Config, topology: &Topology, load: u64, rng: &mut Rng) {
    for tenant in 0..topology.tenants {
        let share = super::shape::TENANT_SHARES.get(tenant as usize).copied().unwrap_or(40);
        let expected = (load * share / 10_000).max(500);
        let mut account = AccountConfig::default();
        match rng.below(4) {
            0 => {}
            1 => account.limits.day.tokens = Some(Tokens(expected * 3)),
            2 => account.limits = tight(expected, rng),
            _ => account.rates = rates(expected, rng),
        }
        if chance(20, rng) {
            let cap = Cap { tokens: Some(Tokens(expected / 3 + 50)), money: None };
            let limits = Limits { day: cap, ..Limits::default() };
            account.per_user = Some(Box::new(AccountConfig { limits, ..AccountConfig::default() }));
        }
        config.accounts.insert(tenant_account(tenant), account);
    }
}

fn tight(expected: u64, rng: &mut Rng) -> Limits {
    let tokens = Tokens(expected * (10 + rng.below(80)) / 100 + 20);
    let cap = Cap { tokens: Some(tokens), money: None };
    let mut limits = Limits { carry_debt: chance(50, rng), ..Limits::default() };
    match rng.below(5) {
        0 => limits.month = cap,
        1 => limits.rolling = Some(Rolling { window: seconds(20 + rng.below(60)), cap }),
        2 => limits.day = Cap { tokens: None, money: Some(MicroUsd(tokens.0)) },
        _ => limits.day = cap,
    }
    limits
}

/// A tenant may ask so many times a minute.
pub(super) fn hurry(config: &mut Config, tenant: u32, rng: &mut Rng) {
    if let Some(account) = config.accounts.get_mut(&tenant_account(tenant)) {
        account.rates.rpm = Some(10 + rng.below(120) as u32);
    }
}

fn rates(expected: u64, rng: &mut Rng) -> RateLimits {
    let rpm = chance(50, rng).then(|| 20 + rng.below(200) as u32);
    let tpm = chance(50, rng).then(|| expected / 2 + 500);
    RateLimits { rpm, tpm }
}

/// One of a few values.
pub(super) fn one_of<T: Copy>(values: &[T], rng: &mut Rng) -> T {
    values[rng.below(values.len() as u64) as usize]
}

/// True in so many of a hundred cases.
pub(super) fn chance(percent: u64, rng: &mut Rng) -> bool {
    rng.below(100) < percent
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
