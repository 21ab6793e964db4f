//! The scripts, and how an ask becomes the arguments of one. Pure: nothing is sent here. Numbers cross as decimal text below 2^53; what cannot is refused before
//! it is sent, in words, because a double would round it in silence.

use std::sync::LazyLock;

use control::id::{AccountId, Minted, ReservationId};
use control::quota::{Ask, At, BalanceKey, Cap, HoldId, LedgerConfig, Limits, Window};
use control::units::Amount;
use core::time::Duration;
use redis::{Cmd, Script};

use super::error::StoreError;

/// Every number is below this: Lua's numbers are doubles, exact up to here.
pub const NUMBER_MAX: u64 = (1 << 53) - 1;

/// The most balances one hold may name: three accounts with three windows each.
const PINS_MAX: usize = 9;

/// Days and months beyond this are not dates: 27,000 years.
const DAYS_MAX: u64 = 10_000_000;

/// One script, and what a server calls it once it knows it.
pub(super) struct Source {
    text: &'static str,
    sha: String,
}

impl Source {
    pub fn new(text: &'static str) -> Self {
        Self { text, sha: Script::new(text).get_hash().to_owned() }
    }

    /// For whoever answers in a server's place: name, text and SHA.
    pub fn told(&'static self, name: &'static str) -> (&'static str, &'static str, &'static str) {
        (name, self.text, &self.sha)
    }

    /// The beginning of a call: by SHA, or where the server does not know the script yet, with its text.
    pub fn command(&self, whole: bool) -> Cmd {
        let mut command = redis::cmd(if whole { "EVAL" } else { "EVALSHA" });
        command.arg(if whole { self.text } else { &self.sha });
        command
    }
}

macro_rules! script {
    ($name:ident, $($file:literal),+) => {
        static $name: LazyLock<Source> =
            LazyLock::new(|| Source::new(concat!($(include_str!($file)),+)));
    };
}

script!(RESERVE, "book.lua", "limits.lua", "reserve.lua");
script!(EXTEND, "book.lua", "limits.lua", "extend.lua");
script!(ASSERT, "book.lua", "assert.lua");
script!(SETTLE, "book.lua", "settle.lua");
script!(REFUND, "book.lua", "refund.lua");
script!(BALANCES, "balances.lua");

/// The text of each script with its name and its SHA: for whoever answers in a server's place.
#[must_use]
pub fn scripts() -> [(&'static str, &'static str, &'static str); 6] {
    [
        RESERVE.told("reserve"),
        EXTEND.told("extend"),
        ASSERT.told("assert"),
        SETTLE.told("settle"),
        REFUND.told("refund"),
        BALANCES.told("balances"),
    ]
}

/// What the scripts do not find in the ask.
#[derive(Clone, Debug)]
pub struct Told<'a> {
    /// Whose clocks count: the server's own, or, where `Some`, these (tests).
    pub at: Option<At>,
    /// The run of the tenant's store that the owner believes in; `None` where it has not heard of any.
    pub believed: Option<&'a str>,
    /// The run that last confirmed what is settled.
    pub confirmed: Option<&'a str>,
    /// Becomes part of the run of a book that is new: text that nobody else has.
    pub token: &'a str,
    /// The ledger's bounds, for each tenant.
    pub bounds: &'a LedgerConfig,
}

/// A call of a script, ready to be sent.
pub(super) struct Call {
    pub script: &'static Source,
    pub keys: [String; 6],
    pub args: Vec<String>,
}

impl Call {
    /// By SHA, or with the script's text.
    pub fn command(&self, whole: bool) -> Cmd {
        let mut command = self.script.command(whole);
        command.arg(self.keys.len()).arg(&self.keys).arg(&self.args);
        command
    }

    /// What `ask` becomes for `tenant`.
    ///
    /// # Errors
    /// [`StoreError::Unrepresentable`].
    pub fn of(tenant: AccountId, ask: &Ask, told: &Told<'_>) -> Result<Self, StoreError> {
        let mut args = told.common()?;
        let script = match ask {
            Ask::Probe => return Err(StoreError::Unrepresentable("a probe has no tenant")),
            Ask::Reserve(draw) => {
                args.extend([hold(draw.hold), micros(draw.ttl)?]);
                args.extend(amount(draw.amount));
                for (account, limits) in &draw.accounts {
                    args.push(format!("{:016x}", account.0));
                    args.extend(limits_of(limits)?);
                }
                &*RESERVE
            }
            Ask::Extend { hold: id, total } => {
                args.push(hold(*id));
                args.extend(amount(*total));
                &*EXTEND
            }
            Ask::Assert { hold: id, pins, total, ttl } => {
                args.push(hold(*id));
                args.extend(amount(*total));
                args.push(micros(*ttl)?);
                args.extend(balances(pins)?);
                &*ASSERT
            }
            Ask::Settle { hold: id, pins, actual, estimated: _, confirmed: _ } => {
                args.push(hold(*id));
                args.extend(amount(*actual));
                args.push(told.confirmed.unwrap_or_default().to_owned());
                args.extend(balances(pins)?);
                &*SETTLE
            }
            Ask::Refund { hold: id } => {
                args.push(hold(*id));
                &*REFUND
            }
        };
        Ok(Self { script, keys: keys(tenant), args })
    }

    /// Reads `count` balances of `tenant`, those after `after`.
    pub fn balances(tenant: AccountId, after: Option<&BalanceKey>, count: usize) -> Self {
        let after = after.map(balance).unwrap_or_default();
        let args = vec![after, count.to_string()];
        Self { script: &*BALANCES, keys: keys(tenant), args }
    }
}

/// The keys of one tenant, all in one slot of a cluster: `pointsman:ledger:{<tenant, 16 hex>}:<name>`.
pub fn keys(tenant: AccountId) -> [String; 6] {
    ["book", "expiries", "ends", "idle", "due", "index"]
        .map(|name| format!("pointsman:ledger:{{{:016x}}}:{name}", tenant.0))
}

impl Told<'_> {
    fn common(&self) -> Result<Vec<String>, StoreError> {
        let (now, wall) = match self.at {
            None => (String::new(), String::new()),
            Some(at) => {
                let now = number(at.now.as_nanos() / 1_000, "the time")?;
                (now, number(at.wall.as_millis(), "the wall time")?)
            }
        };
        let bounds = self.bounds;
        let count = |count: usize| number(count as u64, "a bound of the ledger");
        Ok(vec![
            now,
            wall,
            self.believed.unwrap_or_default().to_owned(),
            self.token.to_owned(),
            micros(bounds.drift_max)?,
            count(bounds.live_max.min(control::quota::LIVE_MAX))?,
            count(bounds.accounts_max)?,
            count(bounds.remembered_max)?,
            micros(bounds.remember)?,
        ])
    }
}

fn number(value: u64, what: &'static str) -> Result<String, StoreError> {
    if value > NUMBER_MAX { Err(StoreError::TooLarge(what, value)) } else { Ok(value.to_string()) }
}

fn micros(span: Duration) -> Result<String, StoreError> {
    // A hundredth of the range, so that sums of a time and two spans stay in it.
    let value = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
    let fits = value <= NUMBER_MAX / 100;
    if fits { Ok(value.to_string()) } else { Err(StoreError::TooLarge("a time to live", value)) }
}

/// What is above the most that may be asked for is refused or cut by the script whatever it is, so that it may as well be
/// the largest number.
fn amount(amount: Amount) -> [String; 2] {
    [amount.tokens.0, amount.money.0].map(|value| value.min(NUMBER_MAX).to_string())
}

fn limits_of(limits: &Limits) -> Result<Vec<String>, StoreError> {
    let mut args = Vec::with_capacity(8);
    cap(&limits.day, &mut args)?;
    cap(&limits.month, &mut args)?;
    match &limits.rolling {
        None => args.extend(["-1", "-1", "-1"].map(str::to_owned)),
        Some(rolling) => {
            let millis = u64::try_from(rolling.window.as_millis()).unwrap_or(u64::MAX);
            if millis > NUMBER_MAX / 100 {
                return Err(StoreError::TooLarge("a rolling window", millis));
            }
            args.push(millis.to_string());
            cap(&rolling.cap, &mut args)?;
        }
    }
    args.push(u8::from(limits.carry_debt).to_string());
    Ok(args)
}

fn cap(cap: &Cap, args: &mut Vec<String>) -> Result<(), StoreError> {
    for value in [cap.tokens.map(|tokens| tokens.0), cap.money.map(|money| money.0)] {
        args.push(match value {
            None => "-1".to_owned(),
            Some(value) => number(value, "a limit")?,
        });
    }
    Ok(())
}

fn balances(pins: &[BalanceKey]) -> Result<Vec<String>, StoreError> {
    if pins.len() > PINS_MAX {
        return Err(StoreError::Unrepresentable("a hold counts in nine balances at most"));
    }
    let sane = |pin: &BalanceKey| match pin.window {
        Window::Day(day) => day < DAYS_MAX,
        Window::Month(month) => month < DAYS_MAX,
        Window::Rolling { start, until } => start.max(until).as_millis() < NUMBER_MAX / 100,
    };
    if !pins.iter().all(sane) {
        return Err(StoreError::Unrepresentable("a window that lies thousands of years away"));
    }
    Ok(pins.iter().map(balance).collect())
}

fn hold(hold: HoldId) -> String {
    let HoldId { owner, allotment, id: ReservationId(Minted { incarnation, counter }) } = hold;
    format!("{:016x}{}{incarnation:08x}{counter:016x}", owner.0, u8::from(allotment))
}

fn balance(key: &BalanceKey) -> String {
    let account = key.account.0;
    match key.window {
        Window::Day(day) => format!("{account:016x}0{day:016}"),
        Window::Month(month) => format!("{account:016x}1{month:016}"),
        Window::Rolling { start, until } => {
            format!("{account:016x}2{:016}{:016}", start.as_millis(), until.as_millis())
        }
    }
}
