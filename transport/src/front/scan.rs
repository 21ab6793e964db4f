//! One pass over a JSON text before anybody parses it: how deep it is, and about how many tokens it holds.
//!
//! Depth: our own parser skips what it does not need without recursion, so a body of a million brackets would pass
//! here and break the parser of whoever recurses upstream. Tokens: quota is reserved before the answer is known, and
//! no tokenizer fits every model. The estimate is four ASCII characters a token, one token for any other character
//! (within some 20% for English and code, above the true count for most other scripts), one for each structural
//! comma (which covers the role markers of a message and makes an array of token ids count itself), and a flat figure
//! for an inline picture. It is corrected by the settlement; its error is part of the ledger's stated overrun.

use control::units::Tokens;
use memchr::{memchr, memchr2};

/// What the pass found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Scan {
    /// Deepest nesting of arrays and objects.
    pub(super) depth: usize,
    /// Estimated prompt tokens.
    pub(super) tokens: Tokens,
}

/// Deepest nesting let through: deeper than any tool schema, and no deeper than strict parsers upstream take.
pub(super) const DEPTH_MAX: usize = 128;

/// What a picture costs where it arrives inline: about a 1024 x 1024 one in high detail (85 + 4 x 170).
const PICTURE_TOKENS: u64 = 765;

/// A `data:` string shorter than this is as well counted as text.
const PICTURE_BYTES_MIN: usize = 1_024;

/// Reads `json` once. Total: text that is no JSON gives some figures, and the parser refuses it afterwards.
pub(super) fn scan(json: &str) -> Scan {
    let bytes = json.as_bytes();
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut ascii, mut tokens) = (0_u64, 0_u64);
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' => tokens += 1,
            b'"' => {
                let end = string_end(bytes, at);
                let text = &bytes[at..end];
                if text.starts_with(b"data:") && text.len() >= PICTURE_BYTES_MIN {
                    tokens += PICTURE_TOKENS;
                } else {
                    let (narrow, wide) = widths(text);
                    ascii += narrow;
                    tokens += wide;
                }
                at = end + 1;
            }
            _ => {}
        }
    }
    Scan { depth: deepest, tokens: Tokens(tokens + ascii.div_ceil(4)) }
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

/// ASCII characters, and all others, of a piece of UTF-8.
fn widths(text: &[u8]) -> (u64, u64) {
    let ascii = text.iter().filter(|byte| byte.is_ascii()).count();
    // A character that is not ASCII has exactly one leading byte, 0xC0 or above.
    let wide = text.iter().filter(|&&byte| byte >= 0xC0).count();
    (ascii as u64, wide as u64)
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

    /// By recursion over the parsed value: the deepest nesting, and the texts of all strings.
    fn walk(value: &Value, texts: &mut Vec<String>) -> usize {
        match value {
            Value::Array(items) => 1 + items.iter().map(|v| walk(v, texts)).max().unwrap_or(0),
            Value::Object(map) => {
                texts.extend(map.keys().cloned());
                1 + map.values().map(|v| walk(v, texts)).max().unwrap_or(0)
            }
            Value::String(text) => {
                texts.push(text.clone());
                0
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
    }

    proptest! {
        #[test]
        fn one_pass_sees_what_a_parser_sees(value in value()) {
            let mut texts = Vec::new();
            let depth = walk(&value, &mut texts);
            let scanned = scan(&value.to_string());
            prop_assert_eq!(scanned.depth, depth);
            let wide = texts.iter().flat_map(|text| text.chars()).filter(|c| !c.is_ascii()).count();
            prop_assert!(scanned.tokens.0 >= wide as u64);
        }

        #[test]
        fn any_text_is_scanned_to_its_end(text in ".*") {
            scan(&text);
        }
    }

    fn tokens(json: &str) -> u64 {
        scan(json).tokens.0
    }

    #[test]
    fn brackets_inside_strings_are_text() {
        assert_eq!(scan(r#"{"a": "[[[[\"[[", "b": [[]]}"#).depth, 3);
        assert_eq!(scan(r#""\\" [[ "#).depth, 2);
    }

    #[test]
    fn a_million_brackets_are_counted_without_recursion() {
        assert_eq!(scan(&"[".repeat(1_000_000)).depth, 1_000_000);
    }

    #[test]
    fn an_unfinished_string_ends_with_the_text() {
        for text in ["\"", "\"abc", "\"abc\\", "\"abc\\\"", "{\"é"] {
            let _ = scan(text);
        }
    }

    #[test]
    fn english_is_four_letters_a_token_and_other_scripts_one() {
        assert_eq!(tokens(&format!("\"{}\"", "a".repeat(400))), 100);
        assert_eq!(tokens("\"你好世界\""), 4);
        assert_eq!(tokens("[1,2,3,4,5]"), 4);
    }

    #[test]
    fn an_inline_picture_does_not_count_by_its_size() {
        let picture = format!("\"data:image/png;base64,{}\"", "A".repeat(1_000_000));
        assert_eq!(tokens(&picture), PICTURE_TOKENS);
    }

    #[test]
    fn a_position_counts_lines_and_columns_from_one() {
        assert_eq!(position(b"ab\ncd", 0), (1, 1));
        assert_eq!(position(b"ab\ncd", 4), (2, 2));
    }
}
