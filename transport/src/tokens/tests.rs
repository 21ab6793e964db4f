#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

use proptest::prelude::*;

use super::*;

/// Texts whose count in `cl100k_base` has been published: in tiktoken's examples, OpenAI's cookbook on counting tokens and
/// its help article on what tokens are; the last three in tutorials that print the token ids.
const PUBLISHED: [(&str, u64); 8] = [
    ("tiktoken is great!", 6),
    ("antidisestablishmentarianism", 6),
    ("2 + 2 = 4", 7),
    ("お誕生日おめでとう", 9),
    ("You miss 100% of the shots you don't take", 11),
    ("Hello, world! How are you today?", 9),
    ("Hello, how are you doing today?", 8),
    ("The quick brown fox jumps over the lazy dog.", 10),
];

#[test]
fn the_stated_error_holds_on_the_published_counts() {
    let (mut estimated, mut published) = (0, 0);
    for (text, count) in PUBLISHED {
        let guess = estimate(text).0;
        assert!(guess.abs_diff(count) <= 2, "{text:?}: {guess} instead of {count}");
        estimated += guess;
        published += count;
    }
    assert!(
        estimated.abs_diff(published) * 100 <= published * 7,
        "{estimated} instead of {published}"
    );
}

#[test]
fn every_class_counts_as_its_table_says() {
    for (text, count) in [
        ("", 0),
        ("word", 1),
        ("extraordinary", 2),
        ("привет", 3),
        ("漢字かな한글", 6),
        ("1234567", 3),
        ("----------------", 4),
        ("a    b", 3),
        ("a\n\n\nb", 3),
        ("🙂🙂", 4),
        ("\u{1}", 1),
    ] {
        assert_eq!(estimate(text), Tokens(count), "{text:?}");
    }
}

#[test]
fn a_chat_counts_its_texts_and_what_the_template_adds() {
    let plain = br#"{"model":"m","messages":[{"role":"user","content":"one two three"}]}"#;
    assert_eq!(estimate_prompt(plain), Tokens(3 + 4 + 3));
    let parts =
        br#"{"messages":[{"role":"user","content":[{"type":"text","text":"one two three"}]}]}"#;
    assert_eq!(estimate_prompt(parts), estimate_prompt(plain));
    let image = br#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]}"#;
    assert_eq!(estimate_prompt(image), Tokens(765 + 4 + 3));
    let escaped = br#"{"messages":[{"role":"user","content":"one\ntwo"}]}"#;
    assert_eq!(estimate_prompt(escaped), Tokens(3 + 4 + 3));
}

#[test]
fn tools_count_as_the_text_the_model_reads() {
    let body = br#"{"messages":[],"tools":[{"type":"function","function":{"name":"lookup","description":"find it"}}]}"#;
    // function: 1, name: 1 + 1, description: 1 + 2.
    assert_eq!(estimate_prompt(body), Tokens(3 + 6));
}

#[test]
fn embeddings_count_texts_and_token_ids() {
    assert_eq!(estimate_prompt(br#"{"input":"one two"}"#), Tokens(2));
    assert_eq!(estimate_prompt(br#"{"input":["one two","three"]}"#), Tokens(3));
    assert_eq!(estimate_prompt(br#"{"input":[[1,2,3],[4]]}"#), Tokens(4));
}

#[test]
fn a_body_that_cannot_be_read_counts_by_its_length() {
    assert_eq!(estimate_prompt(b"not json"), Tokens(2));
    assert_eq!(estimate_prompt(b"[]"), Tokens(1));
    let deep = format!("{{\"messages\":{}", "[".repeat(4_000));
    assert_eq!(estimate_prompt(deep.as_bytes()), Tokens(deep.len().div_ceil(4) as u64));
}

proptest! {
    #[test]
    fn a_count_never_exceeds_two_per_character_and_is_zero_only_for_blanks(text in "\\PC*") {
        let count = estimate(&text).0;
        prop_assert!(count <= 2 * text.chars().count() as u64);
        prop_assert!(count > 0 || text.chars().all(char::is_whitespace));
    }

    #[test]
    fn joining_texts_never_adds_more_than_the_seam(one in "\\PC*", two in "\\PC*") {
        let joined = estimate(&format!("{one}{two}")).0;
        let apart = estimate(&one).0 + estimate(&two).0;
        prop_assert!(joined <= apart + 1, "{} for {}", joined, apart);
    }
}
