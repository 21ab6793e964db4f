#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

fn chat(body: &str) -> Result<Ask<'_>, ApiError> {
    parse(Operation::ChatCompletions, body.as_bytes())
}

fn refusal(body: &str) -> (String, Option<String>) {
    let error = chat(body).unwrap_err();
    assert_eq!(error.status, 400, "{body}");
    (error.message.to_string(), error.param.as_deref().map(str::to_owned))
}

const HELLO: &str = r#"{"role":"user","content":"hello"}"#;

#[test]
fn all_that_matters_is_read_and_the_rest_is_left_alone() {
    let body = format!(
        r#"{{"model":"m","messages":[{{"role":"system","content":"s"}}, {HELLO}, {{"role":"assistant"}}],
            "stream":true,"stream_options":{{"include_usage":true}},"max_tokens":10,"n":3,
            "session_id":"s\u0000","user_id":"u","brand_new_field":{{"x":[1]}}}}"#
    );
    let ask = chat(&body).unwrap();
    assert_eq!((ask.model.as_str(), ask.stream), ("m", true));
    assert_eq!(ask.output_max, Some(Tokens(30)));
    assert_eq!(ask.session_id.as_deref(), Some("s\0"));
    assert_eq!(ask.user_id.as_deref(), Some("u"));
    let opening = format!(r#"{{"role":"system","content":"s"}}, {HELLO}"#);
    assert_eq!(ask.opening, Some(opening.as_str()));
}

#[test]
fn a_prompt_is_counted_by_what_the_model_reads_and_not_by_the_fields_around_it() {
    // A word, 4 for the message, 3 for the answer's opening.
    let bare = format!(r#"{{"model":"m","messages":[{HELLO}]}}"#);
    assert_eq!(chat(&bare).unwrap().prompt, Tokens(8));
    let dressed = format!(
        r#"{{"model":"m","messages":[{HELLO}],"stream":true,"stream_options":{{"include_usage":true}},
            "max_tokens":10,"temperature":0.5,"metadata":{{"a":"a long label that no model reads"}}}}"#
    );
    assert_eq!(chat(&dressed).unwrap().prompt, Tokens(8));
}

#[test]
fn a_null_is_an_absent_field() {
    let body = format!(
        r#"{{"model":"m","messages":[{HELLO}],"stream":null,"max_tokens":null,"n":null,"session_id":null,
            "stream_options":null}}"#
    );
    let ask = chat(&body).unwrap();
    assert_eq!((ask.stream, ask.output_max, ask.session_id), (false, None, None));
}

#[test]
fn a_wrong_field_is_named_with_what_was_expected() {
    let cases = [
        (r#""model":7"#, "model", "'model' must be a string; it is a number."),
        (r#""model":"m","messages":{}"#, "messages", "it is an object."),
        (r#""model":"m","messages":[]"#, "messages", "is empty"),
        (r#""model":"m","messages":[{},"x"]"#, "messages[1]", "it is a string."),
        (
            r#""model":"m","messages":[{}],"stream":"yes""#,
            "stream",
            "true or false; it is a string",
        ),
        (r#""model":"m","messages":[{}],"stream_options":[]"#, "stream_options", "an object"),
        (
            r#""model":"m","messages":[{}],"stream_options":{"include_usage":1}"#,
            "stream_options.include_usage",
            "true or false",
        ),
        (r#""model":"m","messages":[{}],"max_tokens":-1"#, "max_tokens", "whole number from 0"),
        (r#""model":"m","messages":[{}],"max_tokens":1.5"#, "max_tokens", "whole number"),
        (r#""model":"m","messages":[{}],"max_tokens":1e400"#, "max_tokens", "whole number"),
        (
            r#""model":"m","messages":[{}],"max_completion_tokens":"9""#,
            "max_completion_tokens",
            "it is a string",
        ),
        (r#""model":"m","messages":[{}],"n":0"#, "n", "from 1 to 128"),
        (r#""model":"m","messages":[{}],"n":129"#, "n", "from 1 to 128"),
        (r#""model":"m","messages":[{}],"session_id":"""#, "session_id", "is empty"),
        (r#""model":"m","messages":[{}],"user_id":[]"#, "user_id", "a string; it is an array"),
        (r#""model":"\ud800","messages":[{}]"#, "model", "surrogate"),
        (r#""messages":[{}]"#, "model", "is missing"),
        (r#""model":"m""#, "messages", "is missing"),
        (r#""model":"m","model":"n","messages":[{}]"#, "model", "appears twice"),
        (r#""model":"m","mod\u0065l":"n","messages":[{}]"#, "model", "appears twice"),
    ];
    for (fields, param, words) in cases {
        let (message, named) = refusal(&format!("{{{fields}}}"));
        assert_eq!(named.as_deref(), Some(param), "{fields}: {message}");
        assert!(message.contains(words), "{fields}: {message}");
    }
}

#[test]
fn a_session_id_of_257_bytes_is_too_long_and_one_of_256_is_not() {
    let with = |len: usize| {
        format!(r#"{{"model":"m","messages":[{{}}],"session_id":"{}"}}"#, "s".repeat(len))
    };
    assert!(chat(&with(256)).is_ok());
    assert!(refusal(&with(257)).0.contains("257 bytes"));
}

#[test]
fn broken_json_is_placed_and_never_repeated() {
    for (body, place) in [
        ("", "The body is empty"),
        (" \n", "The body is empty"),
        ("{\"model\": \"hush-hush\",\n oops}", "line 2 column 2"),
        ("{\"model\": \"hush-hush", "EOF while parsing"),
        ("{\"model\": \"hush-hush\"} trailing", "trailing characters"),
        ("[\"hush-hush\"]", "must be a JSON object"),
        ("\"hush-hush\"", "must be a JSON object"),
        ("nullo", "must be a JSON object"),
    ] {
        let (message, _) = refusal(body);
        assert!(message.contains(place), "{body}: {message}");
        assert!(!message.contains("hush"), "{message}");
    }
}

#[test]
fn what_is_not_utf8_is_placed() {
    let error = parse(Operation::ChatCompletions, b"{\n\"model\": \"\xff\"}").unwrap_err();
    assert!(error.message.contains("line 2, column 11"), "{}", error.message);
}

#[test]
fn deep_nesting_is_refused_at_any_depth_a_body_can_hold() {
    for depth in [scan::DEPTH_MAX, 1_000_000] {
        let body = format!(
            r#"{{"model":"m","messages":[{{}}],"x":{}{}}}"#,
            "[".repeat(depth),
            "]".repeat(depth)
        );
        assert!(refusal(&body).0.contains("levels deep"));
    }
    let fine = scan::DEPTH_MAX - 1;
    let body = format!(
        r#"{{"model":"m","messages":[{{}}],"x":{}{}}}"#,
        "[".repeat(fine),
        "]".repeat(fine)
    );
    assert!(chat(&body).is_ok());
}

#[test]
fn the_opening_is_the_same_in_every_turn_of_a_conversation() {
    let first = format!(r#"{{"model":"m","messages":[{{"role":"system"}},{HELLO}]}}"#);
    let later = format!(
        r#"{{"stream":true,"messages":[{{"role":"system"}},{HELLO},{{"role":"assistant"}},{{"role":"user"}}],"model":"m"}}"#
    );
    let opening = chat(&first).unwrap().opening;
    assert!(opening.is_some());
    assert_eq!(opening, chat(&later).unwrap().opening);
    assert_eq!(chat(r#"{"model":"m","messages":[{"role":"system"}]}"#).unwrap().opening, None);
}

#[test]
fn embeddings_need_an_input_and_promise_no_output() {
    let embed = |body: &'static str| parse(Operation::Embeddings, body.as_bytes());
    for good in [r#""text""#, r#"["a","b"]"#, "[1,2,3]", "[[1],[2]]"] {
        let body = format!(r#"{{"model":"m","input":{good}}}"#).leak();
        let ask = embed(body).unwrap();
        assert_eq!((ask.output_max, ask.stream, ask.opening), (Some(Tokens::ZERO), false, None));
    }
    for bad in ["[]", "[ ]", "{}", "7", "true"] {
        let body = format!(r#"{{"model":"m","input":{bad}}}"#).leak();
        assert_eq!(embed(body).unwrap_err().param.as_deref(), Some("input"), "{bad}");
    }
    assert!(embed(r#"{"model":"m"}"#).unwrap_err().message.contains("'input' is missing"));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_or_refused_and_never_panic(bytes in proptest::collection::vec(0_u8.., 0..200)) {
        let _ = parse(Operation::ChatCompletions, &bytes);
    }

    #[test]
    fn a_wrong_turn_anywhere_in_a_good_body_is_read_or_refused(at in 0_usize..200, byte in 0_u8..) {
        let body = format!(r#"{{"model":"m","messages":[{{"role":"system"}}, {HELLO}],"max_tokens":10,"n":2}}"#);
        let mut body = body.into_bytes();
        let at = at % body.len();
        body[at] = byte;
        if let Err(error) = parse(Operation::ChatCompletions, &body) {
            proptest::prop_assert_eq!(error.status, 400);
        }
    }
}
