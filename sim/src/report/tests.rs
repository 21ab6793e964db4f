//! What a page is put together from.

#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

use super::*;

#[test]
fn a_place_is_filled_once_and_never_read_again() {
    assert_eq!(fill("{{a}}, {{b}}.", &[("a", "{{b}}"), ("b", "{{a}}")]), "{{b}}, {{a}}.");
}

#[test]
fn escaped_data_means_what_it_meant_before() {
    let text = "</script><!--<script>&amp;]]>\u{2028}\u{2029}\u{0}\u{1f600}\\u003c\"'";
    let json = serde_json::to_string(text).unwrap();
    let safe = script_safe(&json);
    assert!(!safe.contains(['<', '>', '&', '\u{2028}', '\u{2029}', '\u{0}']), "{safe}");
    assert_eq!(serde_json::from_str::<String>(&safe).unwrap(), text);
}

#[test]
fn our_own_script_does_not_end_its_element() {
    let ours = SCRIPTS.concat();
    for end in ["</script", "<script", "<!--"] {
        assert!(!ours.to_lowercase().contains(end), "{end}");
    }
    assert!(!STYLE.to_lowercase().contains("</style"));
}

#[test]
fn a_page_asks_nobody_for_anything() {
    for part in [TEMPLATE, STYLE].into_iter().chain(SCRIPTS) {
        for asking in
            ["http:", "https:", "//cdn", "url(", "@import", " src=", "<link", "fetch(", "import("]
        {
            assert!(!part.contains(asking), "{asking} in {}", part.lines().next().unwrap());
        }
    }
    assert!(TEMPLATE.contains("default-src 'none'"));
}

#[test]
fn a_long_text_is_cut_between_characters_and_says_so() {
    let long = "\u{1f600}".repeat(TEXT_MAX + 1);
    let cut = text::clipped(&long);
    assert!(cut.starts_with(&"\u{1f600}".repeat(TEXT_MAX)));
    assert!(cut.ends_with(&format!("… ({} characters)", TEXT_MAX + 1)), "{cut}");
    assert_eq!(text::clipped("short"), "short");
}
