#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

use proptest::prelude::*;

use super::*;

const STREAM: Rewrite<'static> = Rewrite {
    model: None,
    completion_max: None,
    completion_max_key: CompletionMaxKey::MaxTokens,
    stream: true,
};

fn rewritten(body: &str, how: &Rewrite<'_>) -> Result<String, BadBody> {
    let out = rewrite(&Bytes::copy_from_slice(body.as_bytes()), how)?;
    Ok(String::from_utf8(out.body.to_vec()).unwrap())
}

fn capped(body: &str, most: u64) -> Result<String, BadBody> {
    rewritten(body, &Rewrite { completion_max: Some(Tokens(most)), ..Rewrite::default() })
}

#[test]
fn a_body_that_needs_no_change_is_the_same_bytes() {
    let body = Bytes::from_static(b" {\"model\" : \"m\",\"x\":1.0e2 , \"n\":9007199254740993}\n");
    let out = rewrite(&body, &Rewrite { model: Some("m"), ..Rewrite::default() }).unwrap();
    assert_eq!(out.body.as_ptr(), body.as_ptr());
    let asked = Bytes::from_static(br#"{"stream_options":{"include_usage":true}}"#);
    let out = rewrite(&asked, &STREAM).unwrap();
    assert_eq!(out.body.as_ptr(), asked.as_ptr());
    assert!(out.usage_asked);
}

#[test]
fn what_is_ours_is_taken_out_and_the_rest_keeps_every_byte() {
    for (body, expected) in [
        (r#"{"session_id":"s","model":"m"}"#, r#"{"model":"m"}"#),
        (r#"{"model":"m" , "user_id":"u"}"#, r#"{"model":"m"}"#),
        (
            r#"{ "a": 1.0e2,"session_id":"s","user_id":{"x":[1]}, "b" : [ 1 ] }"#,
            r#"{ "a": 1.0e2,"b" : [ 1 ] }"#,
        ),
        (r#"{"session_id":1}"#, "{}"),
        (r#"{"s\u0065ssion_id":"s","a":1}"#, r#"{"a":1}"#),
        (r#"{"a":1,"a":2,"user_id":3}"#, r#"{"a":1,"a":2}"#),
    ] {
        assert_eq!(rewritten(body, &Rewrite::default()).unwrap(), expected, "{body}");
    }
}

#[test]
fn a_mapped_model_replaces_the_name_in_its_place() {
    let how = Rewrite { model: Some("org/\"m\""), ..Rewrite::default() };
    assert_eq!(
        rewritten(r#"{"a":1, "model" :  "x" ,"b":2}"#, &how).unwrap(),
        r#"{"a":1, "model" :  "org/\"m\"" ,"b":2}"#
    );
    assert_eq!(rewritten("{ }", &how).unwrap(), r#"{"model":"org/\"m\""}"#);
}

#[test]
fn usage_is_asked_for_whatever_the_client_said() {
    for (body, expected) in [
        (r#"{"a":1}"#, r#"{"a":1,"stream_options":{"include_usage":true}}"#),
        (r#"{"stream_options":null}"#, r#"{"stream_options":{"include_usage":true}}"#),
        (r#"{"stream_options":{}}"#, r#"{"stream_options":{"include_usage":true}}"#),
        (
            r#"{"stream_options":{"include_usage":false, "x":1}}"#,
            r#"{"stream_options":{"include_usage":true, "x":1}}"#,
        ),
    ] {
        let out = rewrite(&Bytes::from(body), &STREAM).unwrap();
        assert_eq!(out.body, expected);
        assert!(!out.usage_asked);
    }
    for wrong in
        ["1", "[]", r#"{"include_usage":"yes"}"#, r#"{"include_usage":true,"include_usage":false}"#]
    {
        let body = format!(r#"{{"stream_options":{wrong}}}"#);
        assert_eq!(rewritten(&body, &STREAM), Err(BadBody::WrongType("stream_options")), "{wrong}");
    }
    assert_eq!(
        rewritten(r#"{"stream_options":1}"#, &Rewrite::default()).unwrap(),
        r#"{"stream_options":1}"#
    );
}

#[test]
fn the_completion_is_capped_under_both_names() {
    assert_eq!(capped(r#"{"max_tokens":50}"#, 100).unwrap(), r#"{"max_tokens":50}"#);
    assert_eq!(capped(r#"{"max_tokens": 500}"#, 100).unwrap(), r#"{"max_tokens": 100}"#);
    assert_eq!(capped(r#"{"max_tokens":null}"#, 100).unwrap(), r#"{"max_tokens":100}"#);
    assert_eq!(capped(r#"{"a":1}"#, 100).unwrap(), r#"{"a":1,"max_tokens":100}"#);
    assert_eq!(
        capped(r#"{"max_completion_tokens":500,"max_tokens":50}"#, 100).unwrap(),
        r#"{"max_completion_tokens":100,"max_tokens":50}"#
    );
    for wrong in ["\"5\"", "-1", "1.5", "[]", "1e9"] {
        let body = format!(r#"{{"max_tokens":{wrong}}}"#);
        assert_eq!(capped(&body, 100), Err(BadBody::WrongType("max_tokens")), "{wrong}");
    }
    let how = Rewrite {
        completion_max: Some(Tokens(7)),
        completion_max_key: CompletionMaxKey::MaxCompletionTokens,
        ..Rewrite::default()
    };
    assert_eq!(rewritten("{}", &how).unwrap(), r#"{"max_completion_tokens":7}"#);
}

#[test]
fn what_cannot_be_sent_says_why() {
    for (body, why) in [
        ("", BadBody::Malformed { line: 1, column: 0 }),
        ("{", BadBody::Malformed { line: 1, column: 1 }),
        ("{\"a\":1}x", BadBody::Malformed { line: 1, column: 8 }),
        ("[]", BadBody::NotAnObject),
        ("null", BadBody::NotAnObject),
        ("\"x\"", BadBody::NotAnObject),
        (r#"{"model":"a","model":"b"}"#, BadBody::Duplicate("model")),
        (r#"{"model":"a","mod\u0065l":"b"}"#, BadBody::Duplicate("model")),
        (r#"{"user_id":"a","user_id":"b"}"#, BadBody::Duplicate("user_id")),
    ] {
        assert_eq!(rewritten(body, &Rewrite::default()), Err(why), "{body}");
    }
    let broken = Bytes::from_static(b"{\n\"a\":\"\xFF\"}");
    let why = BadBody::Malformed { line: 2, column: 6 };
    assert_eq!(rewrite(&broken, &Rewrite::default()), Err(why));
}

#[test]
fn nesting_is_bounded_and_brackets_in_texts_do_not_count() {
    let nested = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
    let deepest = nested(DEPTH_MAX - 1);
    assert_eq!(rewritten(&deepest, &Rewrite::default()).unwrap(), deepest);
    assert_eq!(rewritten(&nested(DEPTH_MAX), &Rewrite::default()), Err(BadBody::TooDeep));
    assert_eq!(rewritten(&"[".repeat(1_000_000), &Rewrite::default()), Err(BadBody::TooDeep));
    let text = format!("{{\"a\":\"\\\"{}\"}}", "[".repeat(1_000));
    assert_eq!(rewritten(&text, &Rewrite::default()).unwrap(), text);
}

fn bodies() -> impl Strategy<Value = Vec<(String, String)>> {
    let key = prop::sample::select(vec![
        "model",
        "session_id",
        "user_id",
        "max_tokens",
        "stream_options",
        "messages",
        "a\\n",
        "ж",
    ]);
    let value = prop::sample::select(vec![
        "1",
        "null",
        "\"x\"",
        "1.50",
        "[1, {\"model\":2}]",
        "{\"include_usage\" : false}",
        "{}",
        "99999",
    ]);
    prop::collection::vec((key.prop_map(str::to_owned), value.prop_map(str::to_owned)), 0..7)
}

proptest! {
    /// Against the obvious way: parse to a map, change it, compare as maps.
    #[test]
    fn the_result_means_what_a_map_would_mean(members in bodies(), space in "[ \n]{0,2}") {
        let text: Vec<_> = members.iter().map(|(k, v)| format!("{space}\"{k}\"{space}:{v}{space}")).collect();
        let text = format!("{{{}}}", text.join(","));
        let how = Rewrite { model: Some("mapped"), completion_max: Some(Tokens(9)), ..STREAM };
        let Ok(out) = rewritten(&text, &how) else { return Ok(()) };

        let mut expected: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
        expected.remove("session_id");
        expected.remove("user_id");
        expected.insert("model".into(), "mapped".into());
        let limit = expected.get("max_tokens").and_then(serde_json::Value::as_u64).unwrap_or(9).min(9);
        expected.insert("max_tokens".into(), limit.into());
        expected.insert("stream_options".into(), serde_json::json!({"include_usage": true}));
        let out: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&out).unwrap();
        prop_assert_eq!(out, expected);
    }

    #[test]
    fn no_input_panics(body in prop::collection::vec(any::<u8>(), 0..60)) {
        let how = Rewrite { model: Some("m"), completion_max: Some(Tokens(9)), ..STREAM };
        let _ = rewrite(&Bytes::from(body), &how);
    }
}

#[test]
fn several_choices_share_what_was_granted() {
    assert_eq!(capped(r#"{"n":4,"max_tokens":100}"#, 200).unwrap(), r#"{"n":4,"max_tokens":50}"#);
    assert_eq!(capped(r#"{"n":4,"max_tokens":10}"#, 200).unwrap(), r#"{"n":4,"max_tokens":10}"#);
    assert_eq!(capped(r#"{"n":4,"max_tokens":9}"#, 2).unwrap(), r#"{"n":4,"max_tokens":1}"#);
}
