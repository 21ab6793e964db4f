//! What a script says, read strictly: anything else than its own words is an error, never a guess.

use core::time::Duration;

use control::Wall;
use control::id::AccountId;
use control::quota::{
    BalanceKey, Denied, DenyReason, HoldId, Reply, Sums, Unit, Window, WindowKind,
};
use control::units::{Amount, MicroUsd, Tokens};
use redis::Value;

use super::error::StoreError;

/// What a script says to each of its asks.
pub(super) type Replies = Vec<Result<Reply, StoreError>>;

/// The run a script answered in, and what it says to each ask, in their order. `holds` are what was asked about.
pub(super) fn replies(answer: Value, holds: &[HoldId]) -> Result<(String, Replies), StoreError> {
    let mut words = Words::of(answer)?;
    let run = words.text()?;
    if words.0.len() != holds.len() {
        let text = format!("{} answers to {} asks", words.0.len(), holds.len());
        return Err(garbled(&text));
    }
    let replies = words.0.zip(holds).map(|(answer, hold)| reply(answer, *hold)).collect();
    Ok((run, replies))
}

fn reply(answer: Value, hold: HoldId) -> Result<Reply, StoreError> {
    let mut words = Words::of(answer)?;
    let said = words.text()?;
    let reply = match said.as_str() {
        "granted" => Reply::Granted { hold, total: words.amount()?, pins: words.pins()? },
        "done" => Reply::Done,
        "other" => Reply::OtherRun,
        "ended" => Reply::Denied(Denied::never(DenyReason::Ended)),
        "large" => Reply::Denied(Denied::never(DenyReason::TooLarge)),
        "full" => Reply::Denied(Denied { reason: DenyReason::Full, retry_after: words.pause()? }),
        "spent" => Reply::Denied(words.spent()?),
        "oom" => return Err(StoreError::Full(words.text()?)),
        other => return Err(garbled(other)),
    };
    words.end()?;
    Ok(reply)
}

/// The balances a script read, in order.
pub(super) fn balances(answer: Value) -> Result<Vec<(BalanceKey, Sums)>, StoreError> {
    let Value::Array(rows) = answer else { return Err(garbled("balances")) };
    rows.into_iter().map(row).collect()
}

fn row(row: Value) -> Result<(BalanceKey, Sums), StoreError> {
    let mut words = Words::of(row)?;
    let key = balance(&words.text()?)?;
    let sums = Sums {
        held: words.amount()?,
        overrun: words.amount()?,
        charged: words.amount()?,
        refunded: words.amount()?,
        expired: words.amount()?,
        outstanding: words.amount()?,
        late: words.amount()?,
        forgiven: words.amount()?,
        spent: words.amount()?,
        carried: words.amount()?,
    };
    words.end()?;
    Ok((key, sums))
}

/// 32 bytes, in hex.
pub(super) fn salt(answer: Value) -> Result<[u8; 32], StoreError> {
    let wrong = || StoreError::Foreign("pointsman:salt is not 64 hex digits".into());
    let Value::BulkString(text) = answer else { return Err(wrong()) };
    let text = str::from_utf8(&text).map_err(|_| wrong())?;
    let mut salt = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return Err(wrong());
    }
    for (byte, at) in salt.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| wrong())?;
    }
    Ok(salt)
}

/// The policy by which a server evicts keys, from its `INFO memory`, unless it evicts none.
pub(super) fn evicting_policy(info: &Value) -> Option<String> {
    let Value::BulkString(bytes) = info else { return None };
    let text = String::from_utf8_lossy(bytes);
    let policy = text.lines().find_map(|line| line.strip_prefix("maxmemory_policy:"))?;
    (policy != "noeviction").then(|| policy.to_owned())
}

/// An answer, word by word.
struct Words(std::vec::IntoIter<Value>);

impl Words {
    fn of(answer: Value) -> Result<Self, StoreError> {
        let Value::Array(words) = answer else { return Err(garbled("an answer that is no list")) };
        Ok(Self(words.into_iter()))
    }

    fn text(&mut self) -> Result<String, StoreError> {
        match self.0.next() {
            Some(Value::BulkString(text)) => {
                String::from_utf8(text).map_err(|_| garbled("bytes that are no text"))
            }
            Some(Value::SimpleString(text)) => Ok(text),
            other => Err(garbled(&format!("{other:.80?}"))),
        }
    }

    fn number(&mut self) -> Result<u64, StoreError> {
        match self.0.next() {
            Some(Value::Int(number)) => {
                u64::try_from(number).map_err(|_| garbled("a number below zero"))
            }
            other => Err(garbled(&format!("{other:.80?}"))),
        }
    }

    fn amount(&mut self) -> Result<Amount, StoreError> {
        Ok(Amount { tokens: Tokens(self.number()?), money: MicroUsd(self.number()?) })
    }

    fn pause(&mut self) -> Result<Duration, StoreError> {
        self.number().map(Duration::from_millis)
    }

    fn pins(&mut self) -> Result<Vec<BalanceKey>, StoreError> {
        let text = self.text()?;
        let mut fields = text.split('B');
        if fields.next() != Some("") {
            return Err(garbled(&text));
        }
        fields.map(balance).collect()
    }

    fn spent(&mut self) -> Result<Denied, StoreError> {
        let retry_after = self.pause()?;
        let account = AccountId(hex(&self.text()?)?);
        let window = match self.text()?.as_str() {
            "0" => WindowKind::Day,
            "1" => WindowKind::Month,
            "2" => WindowKind::Rolling,
            other => return Err(garbled(other)),
        };
        let unit = match self.number()? {
            0 => Unit::Tokens,
            1 => Unit::Money,
            other => return Err(garbled(&other.to_string())),
        };
        let remaining = self.amount()?;
        Ok(Denied { reason: DenyReason::Spent { account, window, unit, remaining }, retry_after })
    }

    fn end(&mut self) -> Result<(), StoreError> {
        match self.0.next() {
            None => Ok(()),
            Some(more) => Err(garbled(&format!("{more:.80?} after the end"))),
        }
    }
}

fn balance(text: &str) -> Result<BalanceKey, StoreError> {
    let wrong = || garbled(text);
    let account = AccountId(hex(text.get(..16).ok_or_else(wrong)?)?);
    let digits = |from: usize| {
        let number = text.get(from..from + 16).and_then(|digits| digits.parse::<u64>().ok());
        number.ok_or_else(wrong)
    };
    let (window, length) = match text.get(16..17) {
        Some("0") => (Window::Day(digits(17)?), 33),
        Some("1") => (Window::Month(digits(17)?), 33),
        Some("2") => {
            let (start, until) = (digits(17)?, digits(33)?);
            let (start, until) = (Wall::from_millis(start), Wall::from_millis(until));
            (Window::Rolling { start, until }, 49)
        }
        Some(_) | None => return Err(wrong()),
    };
    if text.len() == length { Ok(BalanceKey { account, window }) } else { Err(wrong()) }
}

fn hex(text: &str) -> Result<u64, StoreError> {
    u64::from_str_radix(text, 16).map_err(|_| garbled(text))
}

fn garbled(what: &str) -> StoreError {
    StoreError::Garbled(what.chars().take(120).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use control::id::{Minted, ReservationId};
    use control::quota::OwnerId;

    use super::*;

    fn hold() -> HoldId {
        HoldId::request(OwnerId(1), ReservationId(Minted { incarnation: 1, counter: 1 }))
    }

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn a_refusal_is_read_with_all_it_says() {
        let words = vec![
            text("spent"),
            Value::Int(1_500),
            text("00000000000000ff"),
            text("1"),
            Value::Int(1),
            Value::Int(7),
            Value::Int(0),
        ];
        let answer = Value::Array(vec![text("abc.1"), Value::Array(words)]);
        let (run, replies) = replies(answer, &[hold()]).unwrap();
        assert_eq!(run, "abc.1");
        let reason = DenyReason::Spent {
            account: AccountId(255),
            window: WindowKind::Month,
            unit: Unit::Money,
            remaining: Amount { tokens: Tokens(7), money: MicroUsd(0) },
        };
        let retry_after = Duration::from_millis(1_500);
        assert_eq!(replies, [Ok(Reply::Denied(Denied { reason, retry_after }))]);
    }

    #[test]
    fn what_no_script_says_is_an_error_and_no_guess() {
        let answers = [
            Value::Nil,
            Value::Int(1),
            Value::Array(vec![]),
            Value::Array(vec![text("maybe")]),
            Value::Array(vec![text("done"), text("and more")]),
            Value::Array(vec![text("granted"), Value::Int(-1), Value::Int(0), text("")]),
            Value::Array(vec![text("granted"), Value::Int(1)]),
            Value::Array(vec![text("granted"), Value::Int(1), Value::Int(1), text("x")]),
            Value::Array(vec![text("granted"), Value::Int(1), Value::Int(1), text("B1")]),
            Value::Array(vec![Value::BulkString(vec![0xff])]),
        ];
        for answer in answers {
            // What was said to the other ask stands.
            let done = Value::Array(vec![text("done")]);
            let both = Value::Array(vec![text("r"), answer.clone(), done]);
            let (_, read) = replies(both, &[hold(); 2]).unwrap();
            assert!(matches!(read[0], Err(StoreError::Garbled(_))), "{answer:?}: {read:?}");
            assert_eq!(read[1], Ok(Reply::Done));
        }
        for answers in [0, 1, 3] {
            let mut said = vec![text("r")];
            said.extend((0..answers).map(|_| Value::Array(vec![text("done")])));
            let read = replies(Value::Array(said), &[hold(); 2]);
            assert!(matches!(read, Err(StoreError::Garbled(_))), "{answers} answers to 2 asks");
        }
    }
}
