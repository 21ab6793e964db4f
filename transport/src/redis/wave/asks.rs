//! The scripts, and how what is asked becomes the arguments of one. Pure: nothing is sent here.

use std::sync::LazyLock;

use control::id::{AccountId, Minted, RequestId};
use control::shared::{Claimant, KeyClaim, Noted, RateCorrection, RateTake, SLOT_MICROS};
use redis::Cmd;

use crate::redis::error::StoreError;
use crate::redis::names::{home_keys, key_key, rate_key, unit_name};
use crate::redis::script::{NUMBER_MAX, Source};

macro_rules! script {
    ($name:ident, $($file:literal),+) => {
        static $name: LazyLock<Source> =
            LazyLock::new(|| Source::new(concat!($(include_str!(concat!("../", $file))),+)));
    };
}

script!(RATE_TAKE, "rate.lua", "rate_take.lua");
script!(RATE_SETTLE, "rate.lua", "rate_settle.lua");
script!(KEY_CLAIM, "key.lua", "key_claim.lua");
script!(KEY_END, "key.lua", "key_end.lua");
script!(HOME_READ, "home_read.lua");
script!(HOME_SET, "home_set.lua");

/// The text of each script with its name and its SHA: for whoever answers in a server's place.
#[must_use]
pub fn wave_scripts() -> [(&'static str, &'static str, &'static str); 6] {
    [
        RATE_TAKE.told("rate_take"),
        RATE_SETTLE.told("rate_settle"),
        KEY_CLAIM.told("key_claim"),
        KEY_END.told("key_end"),
        HOME_READ.told("home_read"),
        HOME_SET.told("home_set"),
    ]
}

/// A call of a script, ready to be sent.
pub(super) struct Ask {
    script: &'static Source,
    keys: Vec<String>,
    args: Vec<String>,
    /// To ask it twice is to ask it once.
    pub is_repeatable: bool,
}

impl Ask {
    /// By SHA, or with the script's text.
    pub fn command(&self, whole: bool) -> Cmd {
        let mut command = self.script.command(whole);
        command.arg(self.keys.len()).arg(&self.keys).arg(&self.args);
        command
    }
}

type Asked = Result<Ask, StoreError>;

pub(super) fn rates_take(
    tenant: AccountId,
    now: Option<u64>,
    lease: u64,
    takes: &[RateTake],
) -> Asked {
    let mut args = vec![stamp(now)?, number(lease)?, number(SLOT_MICROS)?];
    for take in takes {
        args.push(unit_name(take.unit).to_owned());
        args.extend([number(take.drain)?, number(take.burst)?]);
    }
    let keys = takes.iter().map(|take| rate_key(tenant, take.account, take.unit)).collect();
    // It counts twice, and drains.
    Ok(Ask { script: &RATE_TAKE, keys, args, is_repeatable: true })
}

pub(super) fn rates_settle(
    tenant: AccountId,
    now: Option<u64>,
    corrections: &[RateCorrection],
) -> Asked {
    let mut args = vec![stamp(now)?];
    for RateCorrection { until, held, used, .. } in corrections {
        args.extend([moment(*until)?, number(*held)?, number(*used)?]);
    }
    let keys = corrections.iter().map(|one| rate_key(tenant, one.account, one.unit)).collect();
    // Twice would let go what others hold.
    Ok(Ask { script: &RATE_SETTLE, keys, args, is_repeatable: false })
}

pub(super) fn key_claim(
    tenant: AccountId,
    now: Option<u64>,
    lease: u64,
    KeyClaim { idempotency, by }: &KeyClaim,
) -> Asked {
    let args = vec![stamp(now)?, claimant(by), digest(idempotency.body.0), number(lease)?];
    let keys = vec![key_key(tenant, idempotency.key)];
    Ok(Ask { script: &KEY_CLAIM, keys, args, is_repeatable: true })
}

/// `None` for a note about anything else.
pub(super) fn key_end(
    tenant: AccountId,
    now: Option<u64>,
    noted: &Noted,
) -> Result<Option<Ask>, StoreError> {
    let Noted::Key { idempotency, by, charged, keep } = noted else { return Ok(None) };
    let keep = if *charged { number(*keep)? } else { String::new() };
    let args = vec![stamp(now)?, claimant(by), digest(idempotency.body.0), keep];
    let keys = vec![key_key(tenant, idempotency.key)];
    Ok(Some(Ask { script: &KEY_END, keys, args, is_repeatable: true }))
}

pub(super) fn home_read(name: &str) -> Ask {
    let keys = home_keys(name).into();
    Ask { script: &HOME_READ, keys, args: Vec::new(), is_repeatable: true }
}

pub(super) fn home_set(name: &str, noted: &Noted) -> Asked {
    let args = match noted {
        Noted::Home { session: _, endpoint, believed, ttl } => {
            let millis = ttl.div_ceil(1_000);
            let spans = [number(millis)?, number(millis.saturating_mul(2))?];
            let [ttl, memory] = spans;
            vec![number(*believed)?, endpoint.to_string(), ttl, memory]
        }
        Noted::Homeless { session: _, believed } => vec![number(*believed)?, String::new()],
        Noted::Rates(_) | Noted::Key { .. } => return Ok(home_read(name)),
    };
    Ok(Ask { script: &HOME_SET, keys: home_keys(name).into(), args, is_repeatable: true })
}

fn stamp(now: Option<u64>) -> Result<String, StoreError> {
    now.map_or(Ok(String::new()), moment)
}

/// Microseconds since 1970. Today's are a fifth of the range, and are past a quarter of it in 2041.
fn moment(value: u64) -> Result<String, StoreError> {
    let fits = value <= NUMBER_MAX;
    if fits { Ok(value.to_string()) } else { Err(StoreError::TooLarge("a moment", value)) }
}

/// A span or a count.
fn number(value: u64) -> Result<String, StoreError> {
    // A quarter of the range, so that sums of a time, a span and a use stay in it.
    let fits = value <= NUMBER_MAX / 4;
    if fits { Ok(value.to_string()) } else { Err(StoreError::TooLarge("a number", value)) }
}

fn digest(digest: u128) -> String {
    format!("{digest:032x}")
}

fn claimant(Claimant { owner, request }: &Claimant) -> String {
    let RequestId(Minted { incarnation, counter }) = request;
    format!("{:016x}{incarnation:08x}{counter:016x}", owner.0)
}

#[cfg(test)]
mod tests {
    use control::rate::RateUnit;

    use super::*;

    #[test]
    fn a_moment_may_be_far_and_a_span_only_as_long_as_sums_bear() {
        // The first of January 2050.
        let far = 2_524_608_000_000_000;
        let of = |until, used| {
            let (account, unit) = (AccountId(1), RateUnit::Tpm);
            rates_settle(
                account,
                Some(far),
                &[RateCorrection { account, unit, until, held: 0, used }],
            )
        };
        assert!(of(far, 1).is_ok());
        assert!(matches!(of(NUMBER_MAX + 1, 1), Err(StoreError::TooLarge(..))));
        assert!(matches!(of(far, far), Err(StoreError::TooLarge(..))));
    }
}
