//! What the scripts say, read strictly: anything else than their own words is an error, and none repeats a user's.

use core::time::Duration;

use control::shared::{HomeAnswer, KeyAnswer, RateTake, RatesAnswer};
use redis::Value;

use crate::redis::error::StoreError;

/// Whether the rates let it through; a refusal names one of `takes` by its place.
pub(super) fn rates(answer: Value, takes: &[RateTake]) -> Result<RatesAnswer, StoreError> {
    let Value::Array(words) = answer else { return Err(garbled("rates")) };
    match words.as_slice() {
        [word, Value::Int(until)] if is(word, "taken") => {
            let until = u64::try_from(*until).map_err(|_| garbled("the end of a slot"))?;
            Ok(RatesAnswer::Taken { until })
        }
        [word, Value::Int(at), Value::Int(wait)] if is(word, "refused") => {
            let at = usize::try_from(*at).ok().and_then(|at| takes.get(at.checked_sub(1)?));
            let take = at.ok_or_else(|| garbled("one of the rates"))?;
            let wait = u64::try_from(*wait).map_err(|_| garbled("a wait"))?;
            Ok(RatesAnswer::Refused {
                account: take.account,
                unit: take.unit,
                limit: take.limit,
                retry_after: Duration::from_micros(wait),
            })
        }
        _ => Err(garbled("rates")),
    }
}

/// What the request of a key is.
pub(super) fn key(answer: &Value) -> Result<KeyAnswer, StoreError> {
    let known = [
        ("begun", KeyAnswer::Begun),
        ("running", KeyAnswer::InFlight),
        ("done", KeyAnswer::Done),
        ("mismatch", KeyAnswer::Mismatch),
    ];
    let said = known.into_iter().find(|(word, _)| is(answer, word));
    said.map(|(_, said)| said).ok_or_else(|| garbled("a key"))
}

/// Where a session lives.
pub(super) fn home(answer: &Value) -> Result<HomeAnswer, StoreError> {
    let Value::Array(words) = answer else { return Err(garbled("a home")) };
    let [home, Value::Int(epoch)] = words.as_slice() else { return Err(garbled("a home")) };
    let epoch = u64::try_from(*epoch).map_err(|_| garbled("an epoch"))?;
    if *home == Value::Nil {
        return Ok(HomeAnswer::Nowhere { epoch });
    }
    let Value::BulkString(name) = home else { return Err(garbled("a home")) };
    let name = str::from_utf8(name).ok();
    let endpoint = name.filter(|name| !name.is_empty() && name.len() <= NAME_BYTES_MAX);
    let foreign = || StoreError::Foreign("a session_affinity:* that is no name".into());
    Ok(HomeAnswer::At { endpoint: endpoint.ok_or_else(foreign)?.into(), epoch })
}

/// It was done, or had been.
pub(super) fn done(answer: &Value) -> Result<(), StoreError> {
    if matches!(answer, Value::Int(0 | 1)) { Ok(()) } else { Err(garbled("an end")) }
}

/// Longer than any endpoint's name: what is longer goes into no journal.
const NAME_BYTES_MAX: usize = 1_024;

fn is(value: &Value, word: &str) -> bool {
    matches!(value, Value::BulkString(bytes) if bytes == word.as_bytes())
}

fn garbled(wanted: &str) -> StoreError {
    StoreError::Garbled(format!("not {wanted}, where it was asked for that"))
}

#[cfg(test)]
mod tests {
    use control::id::AccountId;
    use control::rate::RateUnit;

    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn list(words: &[Value]) -> Value {
        Value::Array(words.to_vec())
    }

    fn take() -> RateTake {
        let (account, unit) = (AccountId(7), RateUnit::Tpm);
        RateTake { account, unit, limit: 60, drain: 1, burst: 1 }
    }

    #[test]
    fn a_refusal_names_the_limit_that_stands_in_the_way() {
        let refused = list(&[text("refused"), Value::Int(1), Value::Int(1_500)]);
        let (account, unit) = (AccountId(7), RateUnit::Tpm);
        let retry_after = Duration::from_micros(1_500);
        let expected = RatesAnswer::Refused { account, unit, limit: 60, retry_after };
        assert_eq!(rates(refused, &[take()]), Ok(expected));
        let taken = list(&[text("taken"), Value::Int(9)]);
        assert_eq!(rates(taken, &[take()]), Ok(RatesAnswer::Taken { until: 9 }));
    }

    #[test]
    fn what_no_script_says_is_an_error_and_no_guess() {
        for answer in [
            Value::Nil,
            Value::Int(1),
            list(&[]),
            list(&[text("taken")]),
            list(&[text("taken"), Value::Int(-1)]),
            list(&[text("refused"), Value::Int(0), Value::Int(1)]),
            list(&[text("refused"), Value::Int(2), Value::Int(1)]),
            list(&[text("refused"), Value::Int(1), Value::Int(-1)]),
            list(&[text("perhaps"), Value::Int(1)]),
        ] {
            let read = rates(answer.clone(), &[take()]);
            assert!(matches!(read, Err(StoreError::Garbled(_))), "{answer:?}: {read:?}");
        }
        assert!(key(&text("perhaps")).is_err() && key(&Value::Nil).is_err());
        assert!(done(&Value::Int(2)).is_err() && done(&Value::Nil).is_err());
        let bad = [
            list(&[text(""), Value::Int(1)]),
            list(&[text(&"x".repeat(2_000)), Value::Int(1)]),
            list(&[Value::BulkString(vec![0xff]), Value::Int(1)]),
            list(&[Value::Nil, Value::Int(-1)]),
            list(&[Value::Int(1), Value::Int(1)]),
            list(&[Value::Nil]),
            Value::Nil,
        ];
        for answer in bad {
            assert!(home(&answer).is_err(), "{answer:?}");
        }
        assert_eq!(home(&list(&[Value::Nil, Value::Int(3)])), Ok(HomeAnswer::Nowhere { epoch: 3 }));
    }
}
