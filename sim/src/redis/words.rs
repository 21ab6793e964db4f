//! From the arguments of a script to an ask, and from a reply to the words of a script. The scripts' own heads describe both.

use std::time::Duration;

use control::Wall;
use control::id::{AccountId, Minted, ReservationId};
use control::quota::{
    Ask, BalanceKey, Cap, Denied, DenyReason, Draw, HoldId, LedgerConfig, Limits, OwnerId, Reply,
    Rolling, RunId, Sums, Unit, Window, WindowKind,
};
use control::units::{Amount, MicroUsd, Tokens};

use super::resp::Said;

/// The run a script is told of, as a number: this server's own, or another.
pub(super) const HERE: RunId = RunId(1);
pub(super) const ELSEWHERE: RunId = RunId(2);

/// What every script is told before its ask.
pub(super) struct Common {
    /// Microseconds and milliseconds; `None` is the server's own time.
    pub at: Option<(u64, u64)>,
    pub token: String,
    pub bounds: LedgerConfig,
}

/// The arguments of one call, read from the first to the last.
pub(super) struct Arguments<'a>(std::slice::Iter<'a, Vec<u8>>);

/// An argument that no script has.
pub(super) struct Unreadable;

type Read<T> = Result<T, Unreadable>;

impl<'a> Arguments<'a> {
    pub fn new(words: &'a [Vec<u8>]) -> Self {
        Self(words.iter())
    }

    pub fn text(&mut self) -> Read<&'a str> {
        let word = self.0.next().ok_or(Unreadable)?;
        std::str::from_utf8(word).map_err(|_| Unreadable)
    }

    pub fn number(&mut self) -> Read<u64> {
        self.text()?.parse().map_err(|_| Unreadable)
    }

    pub fn common(&mut self) -> Read<Common> {
        let (now, wall) = (self.text()?, self.text()?);
        let at = match (now, wall) {
            ("", _) => None,
            (now, wall) => Some((parsed(now)?, parsed(wall)?)),
        };
        let token = self.text()?.to_owned();
        let mut count = || Ok(usize::try_from(self.number()?).unwrap_or(usize::MAX));
        let drift_max = Duration::from_micros(count()? as u64);
        let bounds = LedgerConfig {
            drift_max,
            live_max: count()?,
            accounts_max: count()?,
            remembered_max: count()?,
            remember: Duration::from_micros(count()? as u64),
        };
        Ok(Common { at, token, bounds })
    }

    /// The next ask, and the run its owner believes in; `here` is this server's run. `None` where there are no more.
    pub fn ask(&mut self, here: &str) -> Read<Option<(Option<RunId>, Ask)>> {
        if self.0.len() == 0 {
            return Ok(None);
        }
        let (name, hold) = (self.text()?, hold(self.text()?)?);
        let told = run(self.text()?).map(|run| if run == here { HERE } else { ELSEWHERE });
        let (amount, ttl, place) = (self.amount()?, self.text()?, self.text()?);
        let ttl = || parsed(ttl).map(Duration::from_micros);
        let ask = match name {
            "reserve" => {
                let accounts = accounts(place)?;
                Ask::Reserve(Draw { hold, accounts, amount, ttl: ttl()? })
            }
            "extend" => Ask::Extend { hold, total: amount },
            "assert" => Ask::Assert { hold, pins: balances(place)?, total: amount, ttl: ttl()? },
            "settle" => {
                let pins = balances(place)?;
                Ask::Settle { hold, pins, actual: amount, estimated: false, confirmed: told }
            }
            "refund" => Ask::Refund { hold },
            _ => return Err(Unreadable),
        };
        // A settlement is told which run confirmed its hold, and believes in none.
        Ok(Some((told.filter(|_| name != "settle"), ask)))
    }

    fn amount(&mut self) -> Read<Amount> {
        Ok(Amount { tokens: Tokens(self.number()?), money: MicroUsd(self.number()?) })
    }

    fn cap(&mut self) -> Read<Cap> {
        let (tokens, money) = (self.optional()?, self.optional()?);
        Ok(Cap { tokens: tokens.map(Tokens), money: money.map(MicroUsd) })
    }

    /// -1 is none.
    fn optional(&mut self) -> Read<Option<u64>> {
        match self.text()? {
            "-1" => Ok(None),
            text => parsed(text).map(Some),
        }
    }
}

/// Each behind an `A`, with its limits behind spaces.
fn accounts(text: &str) -> Read<Vec<(AccountId, Limits)>> {
    text.split('A').skip(1).map(account).collect()
}

fn account(text: &str) -> Read<(AccountId, Limits)> {
    let words: Vec<Vec<u8>> = text.split(' ').map(|word| word.as_bytes().to_vec()).collect();
    let mut words = Arguments::new(&words);
    let account = AccountId(hex(words.text()?)?);
    let (day, month) = (words.cap()?, words.cap()?);
    let window = words.optional()?.map(Duration::from_millis);
    let cap = words.cap()?;
    let rolling = window.map(|window| Rolling { window, cap });
    let carry_debt = words.text()? == "1";
    Ok((account, Limits { day, month, rolling, carry_debt }))
}

/// Each behind a `B`.
fn balances(text: &str) -> Read<Vec<BalanceKey>> {
    text.split('B').skip(1).map(balance).collect()
}

fn run(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

pub(super) fn parsed(text: &str) -> Read<u64> {
    text.parse().map_err(|_| Unreadable)
}

pub(super) fn hex(text: &str) -> Read<u64> {
    u64::from_str_radix(text, 16).map_err(|_| Unreadable)
}

/// Owner, allotment, incarnation, counter.
fn hold(text: &str) -> Read<HoldId> {
    let part = |from: usize, to: usize| hex(text.get(from..to).ok_or(Unreadable)?);
    let incarnation = u32::try_from(part(17, 25)?).map_err(|_| Unreadable)?;
    let minted = Minted { incarnation, counter: part(25, 41)? };
    let (owner, allotment) = (OwnerId(part(0, 16)?), part(16, 17)? == 1);
    Ok(HoldId { owner, allotment, id: ReservationId(minted) })
}

fn balance(text: &str) -> Read<BalanceKey> {
    let account = AccountId(hex(text.get(..16).ok_or(Unreadable)?)?);
    let number = |from: usize| parsed(text.get(from..from + 16).ok_or(Unreadable)?);
    let window = match text.get(16..17) {
        Some("0") => Window::Day(number(17)?),
        Some("1") => Window::Month(number(17)?),
        Some("2") => {
            let (start, until) = (Wall::from_millis(number(17)?), Wall::from_millis(number(33)?));
            Window::Rolling { start, until }
        }
        Some(_) | None => return Err(Unreadable),
    };
    Ok(BalanceKey { account, window })
}

/// A balance's name.
pub(super) fn named(key: &BalanceKey) -> String {
    let account = key.account.0;
    match key.window {
        Window::Day(day) => format!("{account:016x}0{day:016}"),
        Window::Month(month) => format!("{account:016x}1{month:016}"),
        Window::Rolling { start, until } => {
            format!("{account:016x}2{:016}{:016}", start.as_millis(), until.as_millis())
        }
    }
}

fn pair(amount: Amount) -> [Said; 2] {
    [Said::Number(amount.tokens.0), Said::Number(amount.money.0)]
}

/// A row of the script that reads balances.
pub(super) fn row(key: &BalanceKey, sums: &Sums) -> Said {
    let all = [
        sums.held,
        sums.overrun,
        sums.charged,
        sums.refunded,
        sums.expired,
        sums.outstanding,
        sums.late,
        sums.forgiven,
        sums.spent,
        sums.carried,
    ];
    let numbers = all.into_iter().flat_map(pair);
    Said::List([Said::text(named(key))].into_iter().chain(numbers).collect())
}

/// What the script answers to one ask.
pub(super) fn told(reply: &Reply) -> Said {
    let mut words = Vec::new();
    let mut say = |word: &str| words.push(Said::text(word));
    match reply {
        Reply::Granted { total, pins, .. } => {
            say("granted");
            words.extend(pair(*total));
            let pins: Vec<String> = pins.iter().map(|pin| format!("B{}", named(pin))).collect();
            words.push(Said::text(pins.concat()));
        }
        Reply::Done | Reply::Here => say("done"),
        Reply::OtherRun => say("other"),
        Reply::Denied(denied) => refused(denied, &mut words),
    }
    Said::List(words)
}

fn refused(Denied { reason, retry_after }: &Denied, words: &mut Vec<Said>) {
    let pause = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
    match reason {
        DenyReason::Ended => words.push(Said::text("ended")),
        DenyReason::TooLarge => words.push(Said::text("large")),
        // A ledger is never unreachable to itself.
        DenyReason::Full | DenyReason::StoreUnreachable => {
            words.extend([Said::text("full"), Said::Number(pause)]);
        }
        DenyReason::Spent { account, window, unit, remaining } => {
            let window = match window {
                WindowKind::Day => "0",
                WindowKind::Month => "1",
                WindowKind::Rolling => "2",
            };
            let unit = match unit {
                Unit::Tokens => 0,
                Unit::Money => 1,
            };
            words.extend([Said::text("spent"), Said::Number(pause)]);
            words.extend([Said::text(format!("{:016x}", account.0)), Said::text(window)]);
            words.push(Said::Number(unit));
            words.extend(pair(*remaining));
        }
    }
}
