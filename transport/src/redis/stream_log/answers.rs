//! What Redis answers about streams, read strictly: anything else is an error, and none repeats what may be somebody's
//! answer.

use bytes::Bytes;
use redis::Value;

use super::Logged;
use crate::redis::error::StoreError;

/// The entries of a stream.
pub(super) fn logged(answer: Value) -> Result<Vec<Logged>, StoreError> {
    let Value::Array(entries) = answer else { return Err(garbled("entries")) };
    entries.into_iter().map(entry).collect()
}

fn entry(entry: Value) -> Result<Logged, StoreError> {
    let wrong = || StoreError::Foreign("an entry of stream:chat:* that no gateway wrote".into());
    let [id, fields] = several(&entry).map_err(|_| wrong())?;
    let Value::Array(fields) = fields else { return Err(wrong()) };
    let id = text(id).map_err(|_| wrong())?;
    let seq = id.strip_suffix("-0").and_then(|seq| seq.parse().ok()).ok_or_else(wrong)?;
    let field = |name: &str| {
        fields.chunks_exact(2).find_map(|pair| {
            let [Value::BulkString(key), Value::BulkString(value)] = pair else { return None };
            (key == name.as_bytes()).then_some(value)
        })
    };
    let event = field("event").ok_or_else(wrong)?;
    let is_final = field("is_final").is_some_and(|flag| flag == b"1");
    Ok(Logged { seq, is_final, event: Bytes::from(event.clone()) })
}

/// A list of so many.
pub(super) fn several<const N: usize>(answer: &Value) -> Result<&[Value; N], StoreError> {
    let Value::Array(values) = answer else { return Err(garbled("a list")) };
    values.as_slice().try_into().map_err(|_| garbled("a list of its length"))
}

/// So many numbers, none below 0.
pub(super) fn integers<const N: usize>(answer: &Value) -> Result<[u64; N], StoreError> {
    let mut numbers = [0; N];
    for (number, value) in numbers.iter_mut().zip(several::<N>(answer)?) {
        *number = self::number(value)?;
    }
    Ok(numbers)
}

/// A number that is not below 0.
pub(super) fn number(value: &Value) -> Result<u64, StoreError> {
    u64::try_from(integer(value)?).map_err(|_| garbled("a number from 0 on"))
}

/// Any whole number.
pub(super) fn integer(value: &Value) -> Result<i64, StoreError> {
    if let Value::Int(number) = value { Ok(*number) } else { Err(garbled("a number")) }
}

/// A text.
pub(super) fn text(value: &Value) -> Result<String, StoreError> {
    let Value::BulkString(bytes) = value else { return Err(garbled("a text")) };
    String::from_utf8(bytes.clone()).map_err(|_| garbled("a text in UTF-8"))
}

fn garbled(wanted: &str) -> StoreError {
    StoreError::Garbled(format!("not {wanted}, where the log of streams was asked for it"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn entry_of(id: &str, fields: &[&str]) -> Value {
        Value::Array(vec![bulk(id), Value::Array(fields.iter().map(|field| bulk(field)).collect())])
    }

    #[test]
    fn an_entry_is_read_by_the_names_of_its_fields() {
        let fields =
            ["token", "a", "seq", "7", "is_final", "1", "more", "x", "event", "data: a\n\n"];
        let read = logged(Value::Array(vec![entry_of("7-0", &fields)])).unwrap();
        let event = Bytes::from_static(b"data: a\n\n");
        assert_eq!(read, [Logged { seq: 7, is_final: true, event }]);
    }

    #[test]
    fn what_no_gateway_wrote_is_foreign_and_not_repeated() {
        for entry in [
            entry_of("1700000000000-3", &["event", "secret"]),
            entry_of("7-0", &["token", "secret"]),
            entry_of("x-0", &["event", "secret"]),
            bulk("secret"),
        ] {
            let refused = logged(Value::Array(vec![entry])).unwrap_err();
            assert!(matches!(refused, StoreError::Foreign(_)), "{refused}");
            assert!(!refused.to_string().contains("secret"));
        }
        assert!(integers::<3>(&Value::Array(vec![Value::Int(1)])).is_err());
        assert!(number(&Value::Int(-1)).is_err());
    }
}
