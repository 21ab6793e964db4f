//! What gateways share beside the ledger, as a server has it: each script runs as what it is specified to be, a pure store of
//! `control::shared`.
//!
//! A replica that takes over lacks the last writes, so what there was before each of the last of them is kept.

use std::collections::{BTreeMap, VecDeque};

use control::id::{AccountId, Digest, Minted, RequestId, SessionKey};
use control::plane::Idempotency;
use control::quota::OwnerId;
use control::rate::RateUnit;
use control::shared::{
    Claimant, HomeAnswer, Homes, KeyAnswer, Keys, RateCorrection, RateTake, Rates, RatesAnswer,
};

use super::resp::Said;
use super::words::{Arguments, Unreadable, hex, parsed};

/// Rates, keys and homes.
#[derive(Debug, Default)]
pub(super) struct Common {
    held: Held,
    /// As it was before each of the last writes.
    before: VecDeque<Held>,
}

#[derive(Clone, Debug, Default)]
struct Held {
    rates: BTreeMap<AccountId, Rates>,
    keys: Keys,
    homes: Homes,
    /// Sessions in the order in which they were heard of: the pure store knows them by number.
    names: BTreeMap<String, SessionKey>,
}

/// More than a failover loses.
const WRITES_MAX: usize = 256;

impl Common {
    /// Runs the script of that name; `None` where it is none of these. `now` in microseconds.
    pub fn run(
        &mut self,
        now: u64,
        script: &str,
        keys: &[&str],
        args: Arguments<'_>,
    ) -> Option<Result<Said, Unreadable>> {
        if !SCRIPTS.contains(&script) {
            return None;
        }
        if script != READS {
            if self.before.len() >= WRITES_MAX {
                self.before.pop_front();
            }
            self.before.push_back(self.held.clone());
        }
        Some(self.held.run(now, script, keys, args))
    }

    /// The last writes are gone.
    pub fn lose(&mut self, writes: usize) {
        for _ in 0..writes {
            let Some(before) = self.before.pop_back() else { return };
            self.held = before;
        }
    }
}

/// The one that writes nothing.
pub(super) const READS: &str = "home_read";

const SCRIPTS: [&str; 6] = ["rate_take", "rate_settle", "key_claim", "key_end", READS, "home_set"];

impl Held {
    fn run(
        &mut self,
        server: u64,
        script: &str,
        keys: &[&str],
        mut args: Arguments<'_>,
    ) -> Result<Said, Unreadable> {
        match script {
            READS | "home_set" => return self.home(server, keys, script == READS, &mut args),
            _ => {}
        }
        let now = match args.text()? {
            "" => server,
            told => parsed(told)?,
        };
        match script {
            "rate_take" => self.take(now, keys, &mut args),
            "rate_settle" => self.settle(now, keys, &mut args),
            _ => self.key(now, keys, script == "key_claim", &mut args),
        }
    }

    fn take(
        &mut self,
        now: u64,
        keys: &[&str],
        args: &mut Arguments<'_>,
    ) -> Result<Said, Unreadable> {
        let (lease, _slot) = (args.number()?, args.number()?);
        let (mut tenant, mut takes) = (AccountId(0), Vec::new());
        for key in keys {
            let (of, account, unit) = bucket(key)?;
            tenant = of;
            if args.text()? != unit_name(unit) {
                return Err(Unreadable);
            }
            let (drain, burst) = (args.number()?, args.number()?);
            takes.push(RateTake { account, unit, limit: 0, drain, burst });
        }
        let rates = self.rates.entry(tenant).or_default();
        rates.expire(now);
        Ok(match rates.take(now, lease, &takes) {
            RatesAnswer::Taken { until } => {
                Said::List(vec![Said::text("taken"), Said::Number(until)])
            }
            RatesAnswer::Refused { account, unit, retry_after, .. } => {
                let is_it = |take: &RateTake| (take.account, take.unit) == (account, unit);
                let at = takes.iter().position(is_it).ok_or(Unreadable)? + 1;
                let wait = u64::try_from(retry_after.as_micros()).map_err(|_| Unreadable)?;
                let numbers = [Said::Number(at as u64), Said::Number(wait)];
                Said::List([Said::text("refused")].into_iter().chain(numbers).collect())
            }
        })
    }

    fn settle(
        &mut self,
        now: u64,
        keys: &[&str],
        args: &mut Arguments<'_>,
    ) -> Result<Said, Unreadable> {
        let (mut tenant, mut corrections) = (AccountId(0), Vec::new());
        for key in keys {
            let (of, account, unit) = bucket(key)?;
            tenant = of;
            let (until, held, used) = (args.number()?, args.number()?, args.number()?);
            corrections.push(RateCorrection { account, unit, until, held, used });
        }
        self.rates.entry(tenant).or_default().correct(now, &corrections);
        Ok(Said::Number(1))
    }

    fn key(
        &mut self,
        now: u64,
        keys: &[&str],
        claims: bool,
        args: &mut Arguments<'_>,
    ) -> Result<Said, Unreadable> {
        let [key] = keys else { return Err(Unreadable) };
        let id = key.strip_prefix("chat:idempotent:").and_then(|id| id.split_once('.'));
        let (tenant, key) = id.ok_or(Unreadable)?;
        let (tenant, key) = (AccountId(hex(tenant)?), digest(key)?);
        let by = claimant(args.text()?)?;
        let idempotency = Idempotency { key, body: digest(args.text()?)? };
        if claims {
            let lease = args.number()?;
            return Ok(Said::text(match self.keys.claim(now, lease, tenant, idempotency, by) {
                KeyAnswer::Begun => "begun",
                KeyAnswer::InFlight => "running",
                KeyAnswer::Done => "done",
                KeyAnswer::Mismatch => "mismatch",
            }));
        }
        let (charged, keep) = match args.text()? {
            "" => (false, 0),
            keep => (true, parsed(keep)?),
        };
        self.keys.end(now, keep, tenant, (idempotency, by), charged);
        Ok(Said::Number(1))
    }

    fn home(
        &mut self,
        now: u64,
        keys: &[&str],
        reads: bool,
        args: &mut Arguments<'_>,
    ) -> Result<Said, Unreadable> {
        let [home, epoch] = keys else { return Err(Unreadable) };
        let name = home.strip_prefix("session_affinity:").ok_or(Unreadable)?;
        if transport::redis::home_keys(name)[1] != *epoch {
            return Err(Unreadable);
        }
        let next = SessionKey(self.names.len() as u64);
        let session = *self.names.entry(name.to_owned()).or_insert(next);
        if reads {
            return Ok(lives(self.homes.at(now, session)));
        }
        let (believed, endpoint) = (args.number()?, args.text()?);
        Ok(lives(if endpoint.is_empty() {
            self.homes.homeless(now, session, believed)
        } else {
            let ttl = args.number()?.saturating_mul(1_000);
            self.homes.accepted(now, session, endpoint, believed, ttl)
        }))
    }
}

fn lives(answer: HomeAnswer) -> Said {
    let (home, epoch) = match answer {
        HomeAnswer::Nowhere { epoch } => (Said::Nothing, epoch),
        HomeAnswer::At { endpoint, epoch } => (Said::text(endpoint), epoch),
    };
    Said::List(vec![home, Said::Number(epoch)])
}

fn bucket(key: &str) -> Result<(AccountId, AccountId, RateUnit), Unreadable> {
    let rest = key.strip_prefix("pointsman:rate:{").and_then(|rest| rest.split_once("}:"));
    let (tenant, rest) = rest.ok_or(Unreadable)?;
    let (account, unit) = rest.split_once(':').ok_or(Unreadable)?;
    let known = [RateUnit::Rpm, RateUnit::Tpm].into_iter().find(|known| unit_name(*known) == unit);
    Ok((AccountId(hex(tenant)?), AccountId(hex(account)?), known.ok_or(Unreadable)?))
}

const fn unit_name(unit: RateUnit) -> &'static str {
    match unit {
        RateUnit::Rpm => "rpm",
        RateUnit::Tpm => "tpm",
    }
}

fn digest(text: &str) -> Result<Digest, Unreadable> {
    u128::from_str_radix(text, 16).map(Digest).map_err(|_| Unreadable)
}

/// Owner, incarnation, counter.
fn claimant(text: &str) -> Result<Claimant, Unreadable> {
    let part = |from: usize, to: usize| hex(text.get(from..to).ok_or(Unreadable)?);
    let incarnation = u32::try_from(part(16, 24)?).map_err(|_| Unreadable)?;
    let request = RequestId(Minted { incarnation, counter: part(24, 40)? });
    Ok(Claimant { owner: OwnerId(part(0, 16)?), request })
}
