//! The plane's policy numbers, room by room.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::input::{Arrival, Session};
use super::request::ATTEMPTS_MAX;
use crate::id::{AccountId, Principal};
use crate::units::{Price, Tokens};
use crate::{affinity, attempt, balance, breaker, quota, rate, registry, session};

/// A whole configuration. The plane compares it with the one before and touches only what changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Grows with every configuration that took effect.
    pub version: u64,
    /// Membership.
    pub registry: registry::Config,
    /// Picking.
    pub balance: balance::Config,
    /// Sessions' homes.
    pub affinity: affinity::Config,
    /// Ejection and return.
    pub breaker: breaker::Config,
    /// Retries and their budget.
    pub attempt: attempt::Config,
    /// Timeouts of models without their own.
    pub timeouts: attempt::Timeouts,
    /// The ledger.
    pub quota: quota::Config,
    /// Requests and tokens a minute.
    pub rate: rate::Config,
    /// What models bear at once.
    pub concurrency: rate::ConcurrencyConfig,
    /// Turn order and idempotency keys.
    pub session: session::Config,
    /// Models with settings of their own.
    pub models: BTreeMap<Box<str>, ModelConfig>,
    /// Accounts with limits of their own.
    pub accounts: BTreeMap<AccountId, AccountConfig>,
    /// Completion tokens held for a request that does not stream and names no maximum.
    pub output_default: Tokens,
    /// Requests the plane holds at once; more are shed. 10,000 requests of about 1 KiB are 10 MiB.
    pub requests_max: u32,
}

/// What is particular to one model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// How its endpoints are picked, where not as by default.
    pub policy: Option<balance::Policy>,
    /// What its tokens cost.
    pub price: Price,
    /// Its timeouts, where not the default ones.
    pub timeouts: Option<attempt::Timeouts>,
    /// The most requests at once, where that is limited.
    pub concurrency_max: Option<u32>,
    /// How long a first token is waited for before a second attempt is made beside the first, where not as by default.
    /// Zero: for ever.
    pub hedge_after: Option<Duration>,
}

/// What an account may do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AccountConfig {
    /// Tokens and money over windows.
    pub limits: quota::Limits,
    /// Requests and tokens a minute.
    pub rates: rate::RateLimits,
    /// For a tenant: what each of its users without an account of their own may do.
    pub per_user: Option<Box<AccountConfig>>,
}

impl AccountConfig {
    /// Whether any quota of its own holds it back.
    pub(super) fn is_limited(&self) -> bool {
        let quota::Limits { day, month, rolling, carry_debt: _ } = &self.limits;
        *day != quota::Cap::NONE || *month != quota::Cap::NONE || rolling.is_some()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            version: 0,
            registry: registry::Config::default(),
            balance: balance::Config::default(),
            affinity: affinity::Config::default(),
            breaker: breaker::Config::default(),
            attempt: attempt::Config::default(),
            timeouts: attempt::Timeouts::default(),
            quota: quota::Config::default(),
            rate: rate::Config::default(),
            concurrency: rate::ConcurrencyConfig::default(),
            session: session::Config::default(),
            models: BTreeMap::new(),
            accounts: BTreeMap::new(),
            // Half of what 99 % of the answers in the Mooncake trace stay under; a longer one is settled as overrun.
            output_default: Tokens(1_024),
            requests_max: 10_000,
        }
    }
}

impl Config {
    /// The accounts of `who`, from the root down, each with what it may do.
    pub(super) fn accounts_of(
        &self,
        who: &Principal,
    ) -> impl Iterator<Item = (AccountId, Option<&AccountConfig>)> {
        let tenant = self.accounts.get(&who.tenant);
        let per_user = tenant.and_then(|tenant| tenant.per_user.as_deref());
        let user = who.user.map(|id| (id, self.accounts.get(&id).or(per_user)));
        let key = who.key.map(|id| (id, self.accounts.get(&id)));
        core::iter::once((who.tenant, tenant)).chain(user).chain(key)
    }

    /// The timeouts of a model.
    pub(super) fn timeouts_of(&self, model: &str) -> &attempt::Timeouts {
        self.models.get(model).and_then(|model| model.timeouts.as_ref()).unwrap_or(&self.timeouts)
    }

    /// How long a request's first token is waited for before a second attempt is made, where one ever is. A turn of a stored
    /// session is sent only when no other process has one of the same session: until then its attempt is silent, and no
    /// replica is to blame for it.
    pub(super) fn hedge_after(&self, arrival: &Arrival) -> Option<Duration> {
        let own = self.models.get(&arrival.model).and_then(|model| model.hedge_after);
        let may_wait = arrival.session.as_ref().is_some_and(Session::is_stored);
        let after = own.unwrap_or(self.attempt.hedge_after);
        Some(after).filter(|after| !after.is_zero() && !may_wait)
    }

    /// How a model's endpoints are picked.
    pub(super) fn policy_of(&self, model: &str) -> balance::Policy {
        self.models.get(model).and_then(|model| model.policy).unwrap_or(self.balance.policy)
    }

    /// As it can be obeyed: an attempt's id has room for [`ATTEMPTS_MAX`] attempts.
    pub(super) fn within_bounds(mut self) -> Self {
        self.attempt.attempts_max = self.attempt.attempts_max.min(ATTEMPTS_MAX);
        self
    }

    /// The price of a model: nothing where none is configured.
    pub(super) fn price_of(&self, model: &str) -> Price {
        self.models.get(model).map(|model| model.price).unwrap_or_default()
    }
}
