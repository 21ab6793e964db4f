//! One pass over a JSON text before anybody parses it: how deep it is.
//!
//! Our own parser skips what it does not need without recursion, so a body of a million brackets would pass here and
//! break the parser of whoever recurses upstream.

use memchr::{memchr, memchr2};

/// Deepest nesting let through: deeper than any tool schema, and no deeper than strict parsers upstream take.
pub(super) const DEPTH_MAX: usize = 128;

/// The deepest nesting of arrays and objects. Total: text that is no JSON gives some figure, and the parser refuses it
/// afterwards.
pub(super) fn depth(json: &str) -> usize {
    let bytes = json.as_bytes();
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => at = string_end(bytes, at) + 1,
            _ => {}
        }
    }
    deepest
}

/// Where the string that begins at `at` ends: the place of its closing quote, or the end of the text.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
    loop {
        match memchr2(b'"', b'\\', bytes.get(at..).unwrap_or_default()) {
            None => return bytes.len(),
            Some(found) if bytes[at + found] == b'"' => return at + found,
            Some(found) => at = (at + found + 2).min(bytes.len()),
        }
    }
}

/// Line and column, from 1, of a byte's place.
pub(super) fn position(bytes: &[u8], offset: usize) -> (usize, usize) {
    let (mut line, mut start) = (1, 0);
    while let Some(found) = memchr(b'\n', &bytes[start..offset.min(bytes.len())]) {
        start += found + 1;
        line += 1;
    }
    (line, offset - start + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn value() -> impl Strategy<Value = Value> {
        let text = "[\\[\\]{}\",\\\\é你a]{0,12}";
        let leaf = prop_oneof![text.prop_map(Value::from), any::<i32>().prop_map(Value::from)];
        leaf.prop_recursive(6, 40, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(text, inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// By recursion over the parsed value.
    fn walk(value: &Value) -> usize {
        match value {
            Value::Array(items) => 1 + items.iter().map(walk).max().unwrap_or(0),
            Value::Object(map) => 1 + map.values().map(walk).max().unwrap_or(0),
            Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
    }

    proptest! {
        #[test]
        fn one_pass_sees_what_a_parser_sees(value in value()) {
            prop_assert_eq!(depth(&value.to_string()), walk(&value));
        }

        #[test]
        fn any_text_is_scanned_to_its_end(text in ".*") {
            depth(&text);
        }
    }

    #[test]
    fn brackets_inside_strings_are_text() {
        assert_eq!(depth(r#"{"a": "[[[[\"[[", "b": [[]]}"#), 3);
        assert_eq!(depth(r#""\\" [[ "#), 2);
    }

    #[test]
    fn a_million_brackets_are_counted_without_recursion() {
        assert_eq!(depth(&"[".repeat(1_000_000)), 1_000_000);
    }

    #[test]
    fn an_unfinished_string_ends_with_the_text() {
        for text in ["\"", "\"abc", "\"abc\\", "\"abc\\\"", "{\"é"] {
            let _ = depth(text);
        }
    }

    #[test]
    fn a_position_counts_lines_and_columns_from_one() {
        assert_eq!(position(b"ab\ncd", 0), (1, 1));
        assert_eq!(position(b"ab\ncd", 4), (2, 2));
    }
}
