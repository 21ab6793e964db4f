//! The scripts, and how an ask becomes the arguments of one. Pure: nothing is sent here. Numbers cross as decimal text below 2^53; what cannot is refused before
//! it is sent, in words, because a double would round it in silence.

use std::collections::BTreeMap;
use std::fmt::Write as _;
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

/// All asks of a tenant: any number of them in one call.
static LEDGER: LazyLock<Source> = LazyLock::new(|| {
    let text = folded(concat!(
        include_str!("book.lua"),
        include_str!("rare.lua"),
        include_str!("draws.lua"),
        include_str!("ends.lua"),
        include_str!("call.lua"),
    ));
    Source::new(Box::leak(text.into_boxed_str()))
});
static BALANCES: LazyLock<Source> = LazyLock::new(|| Source::new(include_str!("balances.lua")));

/// The text of each script with its name and its SHA: for whoever answers in a server's place.
#[must_use]
pub fn scripts() -> [(&'static str, &'static str, &'static str); 2] {
    [LEDGER.told("ledger"), BALANCES.told("balances")]
}

/// Puts constants in where they are named, `local NAME <const> = value`, and leaves whole lines of comments out. Redis' Lua
/// knows no constants: each would be a variable that every function which names it catches anew, with every call.
fn folded(text: &str) -> String {
    let (mut constants, mut rest) = (BTreeMap::new(), Vec::new());
    for line in text.lines() {
        match line.strip_prefix("local ").filter(|line| line.contains(" <const>")) {
            Some(line) => {
                let line = line.replace(" <const>", "");
                let (names, values) = line.split_once(" = ").unwrap_or_default();
                let pairs = names.split(", ").zip(values.split(", "));
                constants.extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
            }
            None if line.trim_start().starts_with("--") => {}
            None => rest.push(line),
        }
    }
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let mut folded = String::new();
    for line in rest {
        // What stands between quotes is every other part.
        for (nth, part) in line.split('\'').enumerate() {
            if nth > 0 {
                folded.push('\'');
            }
            for word in part.split_inclusive(|letter| !is_word(letter)) {
                let name = word.trim_end_matches(|letter| !is_word(letter));
                let value = constants.get(name).filter(|_| nth % 2 == 0);
                folded.push_str(value.map_or(name, String::as_str));
                folded.push_str(&word[name.len()..]);
            }
        }
        folded.push('\n');
    }
    folded
}

/// What the script does not find in the ask: what its owner was told.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// The run of the tenant's store that the owner believes in; `None` where it has not heard of any.
    pub believed: Option<&'a str>,
    /// The run that last confirmed what is settled.
    pub confirmed: Option<&'a str>,
}

/// What all asks of one call have in common.
#[derive(Clone, Copy, Debug)]
pub struct Together<'a> {
    /// Whose clocks count: the server's own, or, where `Some`, these (tests).
    pub at: Option<At>,
    /// Becomes part of the run of a book that is new: text that nobody else has.
    pub token: &'a str,
    /// The ledger's bounds, for each tenant.
    pub bounds: &'a LedgerConfig,
}

/// An ask as the script reads it.
#[derive(Clone, Debug)]
pub(super) struct Words {
    /// What it is about.
    pub hold: HoldId,
    words: [String; 7],
}

impl Words {
    /// What `ask` becomes.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] or [`StoreError::Unrepresentable`].
    pub fn of(ask: &Ask, told: Told<'_>) -> Result<Self, StoreError> {
        let believed = told.believed.unwrap_or_default();
        let nothing = Amount::ZERO;
        let (name, id, run, held, ttl, place) = match ask {
            Ask::Probe => return Err(StoreError::Unrepresentable("a probe has no tenant")),
            Ask::Reserve(draw) => {
                let accounts = accounts(&draw.accounts)?;
                ("reserve", draw.hold, believed, draw.amount, micros(draw.ttl)?, accounts)
            }
            Ask::Extend { hold, total } => {
                ("extend", *hold, believed, *total, String::new(), String::new())
            }
            Ask::Assert { hold, pins, total, ttl } => {
                ("assert", *hold, "", *total, micros(*ttl)?, balances(pins)?)
            }
            Ask::Settle { hold, pins, actual, estimated: _, confirmed: _ } => {
                let confirmed = told.confirmed.unwrap_or_default();
                ("settle", *hold, confirmed, *actual, String::new(), balances(pins)?)
            }
            Ask::Refund { hold } => ("refund", *hold, "", nothing, String::new(), String::new()),
        };
        let [tokens, money] = amount(held);
        let words = [name.to_owned(), hold(id), run.to_owned(), tokens, money, ttl, place];
        Ok(Self { hold: id, words })
    }

    /// How long they are, in bytes.
    pub fn bytes(&self) -> usize {
        self.words.iter().map(String::len).sum()
    }
}

/// A call of a script, ready to be sent.
pub(super) struct Call<'a> {
    script: &'static Source,
    keys: [String; 6],
    args: Vec<String>,
    asks: &'a [Words],
}

impl<'a> Call<'a> {
    /// By SHA, or with the script's text.
    pub fn command(&self, whole: bool) -> Cmd {
        let mut command = self.script.command(whole);
        command.arg(self.keys.len()).arg(&self.keys).arg(&self.args);
        for ask in self.asks {
            command.arg(&ask.words);
        }
        command
    }

    /// Asks of `tenant`, one after the other.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`].
    pub fn of(
        tenant: AccountId,
        asks: &'a [Words],
        together: &Together<'_>,
    ) -> Result<Self, StoreError> {
        Ok(Self { script: &*LEDGER, keys: keys(tenant), args: together.words()?, asks })
    }

    /// Reads `count` balances of `tenant`, those after `after`.
    pub fn balances(tenant: AccountId, after: Option<&BalanceKey>, count: usize) -> Self {
        let after = after.map(|key| balance(key).split_off(1)).unwrap_or_default();
        let args = vec![after, count.to_string()];
        Self { script: &*BALANCES, keys: keys(tenant), args, asks: &[] }
    }

    /// Reads these balances of `tenant`: at least one, and no more than a hold may name.
    ///
    /// # Errors
    /// [`StoreError::Unrepresentable`].
    pub fn standing(tenant: AccountId, wanted: &[BalanceKey]) -> Result<Self, StoreError> {
        balances(wanted)?;
        let mut args = vec![String::new(), "0".to_owned()];
        args.extend(wanted.iter().map(|key| balance(key).split_off(1)));
        Ok(Self { script: &*BALANCES, keys: keys(tenant), args, asks: &[] })
    }
}

/// The keys of one tenant, all in one slot of a cluster: `pointsman:ledger:2:{<tenant, 16 hex>}:<name>`. The number is that of
/// their layout: gateways of another one count in keys of their own.
pub fn keys(tenant: AccountId) -> [String; 6] {
    ["book", "expiries", "ends", "idle", "due", "index"]
        .map(|name| format!("pointsman:ledger:2:{{{:016x}}}:{name}", tenant.0))
}

impl Together<'_> {
    fn words(&self) -> Result<Vec<String>, StoreError> {
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

/// Each behind an `A`, with its limits.
fn accounts(accounts: &[(AccountId, Limits)]) -> Result<String, StoreError> {
    let mut text = String::with_capacity(64 * accounts.len());
    for (account, limits) in accounts {
        // A text takes what is written to it.
        let _ = write!(text, "A{:016x}", account.0);
        cap(&limits.day, &mut text)?;
        cap(&limits.month, &mut text)?;
        match &limits.rolling {
            None => text.push_str(" -1 -1 -1"),
            Some(rolling) => {
                let millis = u64::try_from(rolling.window.as_millis()).unwrap_or(u64::MAX);
                if millis > NUMBER_MAX / 100 {
                    return Err(StoreError::TooLarge("a rolling window", millis));
                }
                let _ = write!(text, " {millis}");
                cap(&rolling.cap, &mut text)?;
            }
        }
        text.push_str(if limits.carry_debt { " 1" } else { " 0" });
    }
    Ok(text)
}

fn cap(cap: &Cap, text: &mut String) -> Result<(), StoreError> {
    for value in [cap.tokens.map(|tokens| tokens.0), cap.money.map(|money| money.0)] {
        text.push(' ');
        match value {
            None => text.push_str("-1"),
            Some(value) => text.push_str(&number(value, "a limit")?),
        }
    }
    Ok(())
}

/// One behind the other.
fn balances(pins: &[BalanceKey]) -> Result<String, StoreError> {
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

/// The field of a balance.
fn balance(key: &BalanceKey) -> String {
    let account = key.account.0;
    match key.window {
        Window::Day(day) => format!("B{account:016x}0{day:016}"),
        Window::Month(month) => format!("B{account:016x}1{month:016}"),
        Window::Rolling { start, until } => {
            format!("B{account:016x}2{:016}{:016}", start.as_millis(), until.as_millis())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_put_in_where_they_are_named_and_nowhere_else() {
        let text = "-- about A\nlocal A <const>, B_C <const> = 1, 'x'\n  -- B_C\ncall(A, 'A', AB, t[B_C]) A\n";
        assert_eq!(folded(text), "call(1, 'A', AB, t['x']) 1\n");
        let (_, ledger, _) = LEDGER.told("ledger");
        assert!(!ledger.contains("<const>") && !ledger.contains("--"), "{ledger}");
    }
}
