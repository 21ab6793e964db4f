//! What is refused, and in which words.

use std::time::Duration;

use control::id::AccountId;
use control::outcome::Failure;
use control::plane::{Refusal, Spent};
use control::quota::{Unit, WindowKind};
use http::Method;
use http_body_util::Full;
use tokio::io::AsyncWriteExt;
use transport::exchange::Why;
use transport::front::Limits;

use crate::world::{ANSWER, Act, Answer, HELLO, KEY, World, bearer, read_all, request, said, send};

fn answering() -> World {
    World::new(|_| Act::Whole(ANSWER))
}

fn small(body_max: usize) -> World {
    let limits = Limits { body_max, body_time: Duration::from_millis(200), ..Limits::default() };
    World::with(limits, Duration::from_secs(5), None, |_| Act::Whole(ANSWER))
}

async fn ask(world: &World, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut asked = request(Method::POST, world.url("/v1/chat/completions"));
    for (name, value) in headers {
        asked = asked.header(*name, *value);
    }
    send(asked.body(Full::from(body.to_owned())).unwrap()).await
}

#[tokio::test]
async fn a_stranger_is_told_how_to_authorize() {
    let world = answering();
    for (header, words) in [
        (None, "No API key"),
        (Some("Bearer sk-wrong"), "not known"),
        (Some("Bearer sk-old"), "expired"),
        (Some("Basic abc"), "another scheme"),
        (Some("Bearer"), "no key after"),
    ] {
        let headers: Vec<_> = header.map(|value| ("authorization", value)).into_iter().collect();
        let answer = ask(&world, &headers, HELLO).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (401, "invalid_api_key"));
        assert!(answer.error()["message"].as_str().unwrap().contains(words), "{}", answer.text());
        assert!(answer.header("www-authenticate").starts_with("Bearer"));
        assert!(answer.header("x-request-id").starts_with("req_local-"));
        assert_eq!(answer.header("x-pointsman-replica"), "none");
        assert_eq!(answer.header("x-pointsman-attempts"), "0");
        assert!(!answer.text().contains("sk-"), "a key is never repeated");
    }
    let models = send(request(Method::GET, world.url("/v1/models")).body(Full::default()).unwrap());
    assert_eq!(models.await.status, 401);
    assert!(world.chat.calls.lock().unwrap().is_empty());
    world.quiet().await;
}

#[tokio::test]
async fn each_fault_of_a_request_has_its_code_and_names_the_field() {
    let world = answering();
    let cases = [
        ("{", 400, "invalid_json", None),
        ("", 400, "invalid_json", None),
        (r#"{"messages":[{}]}"#, 400, "missing_required_parameter", Some("model")),
        (r#"{"model":"demo"}"#, 400, "missing_required_parameter", Some("messages")),
        (r#"{"model":"demo","messages":7}"#, 400, "invalid_type", Some("messages")),
        (r#"{"model":"demo","messages":[{}],"n":0}"#, 400, "invalid_value", Some("n")),
        (r#"{"model":"demo","model":"x","messages":[{}]}"#, 400, "duplicate_field", Some("model")),
        (r#"{"model":"demos","messages":[{}]}"#, 404, "model_not_found", Some("model")),
        (
            r#"{"model":"demo","messages":[{}],"user_id":"mallory"}"#,
            403,
            "user_forbidden",
            Some("user_id"),
        ),
    ];
    for (body, status, code, param) in cases {
        let answer = world.post("/v1/chat/completions", body).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code), "{body}");
        assert_eq!(answer.error()["param"].as_str(), param, "{body}");
        assert_eq!(answer.header("content-type"), "application/json");
    }
    let deep = format!(r#"{{"model":"demo","messages":[{{}}],"x":{}}}"#, "[".repeat(100_000));
    assert_eq!(world.post("/v1/chat/completions", deep).await.code(), "body_too_deep");
    world.quiet().await;
}

#[tokio::test]
async fn a_model_is_refused_to_a_key_that_may_not_use_it_and_a_near_one_is_named() {
    let world = answering();
    let with = |model: &str| HELLO.replace("demo", model);
    let narrow = [("authorization", "Bearer sk-demo-only")];
    let answer = ask(&world, &narrow, &with("gpt-4o-mini")).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (403, "model_not_allowed"));
    let answer = ask(&world, &narrow, &with("gpt4o-mini")).await;
    assert!(!answer.text().contains("gpt-4o-mini"), "not named to whom it is not open");
    let answer = world.post("/v1/chat/completions", with("gpt4o-mini")).await;
    assert!(answer.text().contains("Did you mean 'gpt-4o-mini'?"), "{}", answer.text());
    assert!(answer.text().contains("/v1/models"));
}

#[tokio::test]
async fn headers_that_contradict_each_other_are_refused() {
    let world = answering();
    let key = ("authorization", &*bearer());
    for (headers, code) in [
        (vec![key, key], "duplicate_header"),
        (vec![key, ("x-session-id", "a"), ("x-session-id", "a")], "duplicate_header"),
        (vec![key, ("idempotency-key", "a"), ("idempotency-key", "b")], "duplicate_header"),
        (vec![key, ("x-session-id", "")], "empty_header"),
        (vec![key, ("idempotency-key", "")], "empty_header"),
        (vec![("authorization", "")], "empty_header"),
        (vec![key, ("x-session-id", "a")], "session_conflict"),
        (vec![key, ("x-request-timeout", "soon")], "invalid_header"),
        (vec![key, ("idempotency-key", &"k".repeat(256))], "invalid_header"),
        (vec![key, ("x-session-id", &"k".repeat(257))], "invalid_value"),
    ] {
        let body = HELLO.replacen('{', r#"{"session_id":"b","#, 1);
        let answer = ask(&world, &headers, &body).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, code), "{headers:?}");
    }
}

#[tokio::test]
async fn a_form_is_refused_and_a_missing_type_is_not() {
    let world = answering();
    let key = ("authorization", &*bearer());
    let form = ("content-type", "application/x-www-form-urlencoded");
    let answer = ask(&world, &[key, form], HELLO).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (415, "unsupported_content_type"));
    assert!(answer.text().contains("application/json"));
    assert_eq!(ask(&world, &[key], HELLO).await.status, 200);
}

#[tokio::test]
async fn an_oversized_body_gets_its_413_however_it_is_sent() {
    let world = small(1_000);
    let big = HELLO.replace("secret", &"s".repeat(3_000));
    let answer = world.post("/v1/chat/completions", big.clone()).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (413, "body_too_large"));
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n\
         transfer-encoding: chunked\r\n\r\n"
    );
    let chunks = format!("{:x}\r\n{big}\r\n0\r\n\r\n", big.len());
    let mut socket = world.raw(head + &chunks).await;
    let answer = read_all(&mut socket, Duration::from_secs(5)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&answer));
    world.quiet().await;
}

#[tokio::test]
async fn a_client_that_writes_all_before_it_reads_still_sees_its_refusal() {
    let limits = Limits { body_max: 4 << 20, ..Limits::default() };
    let world = World::with(limits, Duration::from_secs(5), None, |_| Act::Whole(ANSWER));
    // More than the kernel buffers on the way, so that a server that closes early resets the connection.
    let body = vec![b' '; 12 << 20];
    for (key, status) in [(KEY, "413"), ("sk-wrong", "401")] {
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut socket = world.raw(head).await;
        socket.write_all(&body).await.expect("the server reads it away");
        let answer = read_all(&mut socket, Duration::from_secs(5)).await.unwrap();
        assert!(answer.starts_with(format!("HTTP/1.1 {status}").as_bytes()));
    }
}

#[tokio::test]
async fn a_body_far_over_the_limit_is_refused_without_being_waited_for() {
    let world = small(1_000);
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\
         content-length: 99999999999\r\n\r\n"
    );
    let mut socket = world.raw(head).await;
    let answer = read_all(&mut socket, Duration::from_secs(5)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 413"));
}

#[tokio::test]
async fn a_body_that_stalls_gets_a_408() {
    let world = small(1_000);
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: 500\r\n\r\n"
    );
    let mut socket = world.raw(head).await;
    socket.write_all(b"{\"model\":").await.unwrap();
    let answer = read_all(&mut socket, Duration::from_secs(5)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer));
    world.quiet().await;
}

#[tokio::test]
async fn the_planes_refusals_leave_with_what_sdks_obey() {
    let wait = Duration::from_millis(2_100);
    let spent = Spent {
        account: AccountId(9),
        window: WindowKind::Day,
        unit: Unit::Tokens,
        retry_after: Duration::from_secs(60),
    };
    let rate = Refusal::RateLimited {
        account: AccountId(9),
        unit: control::rate::RateUnit::Rpm,
        limit: 3,
        retry_after: wait,
    };
    let nobody =
        Refusal::NobodyLeft { members: 3, draining: 0, ejected: 3, full: 0, retry_after: wait };
    for (refusal, status, code, after, retry) in [
        (Refusal::QuotaSpent(spent), 402, "insufficient_quota", "60", "false"),
        (rate, 429, "rate_limited", "3", "-"),
        (Refusal::TurnConflict, 409, "turn_conflict", "1", "-"),
        (nobody, 503, "nobody_left", "3", "-"),
    ] {
        let world = World::new(move |_| Act::Refuse(Why::Plane(refusal.clone())));
        let answer = world.post("/v1/chat/completions", HELLO).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code));
        assert_eq!((answer.header("retry-after"), answer.header("x-should-retry")), (after, retry));
        assert_eq!(answer.header("x-request-id"), "req_1-beef");
        assert_eq!(answer.header("x-pointsman-attempts"), "3");
        world.quiet().await;
    }
}

#[tokio::test]
async fn upstreams_own_words_about_a_request_pass_untouched() {
    const BODY: &str =
        r#"{"error":{"message":"no such voice","type":"t","param":"voice","code":null,"x":1}}"#;
    let world = World::new(|_| {
        Act::Refuse(Why::Upstream { failure: Failure::ClientError(422), said: said(422, BODY) })
    });
    let answer = world.post("/v1/chat/completions", HELLO).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (422, BODY));
}

#[tokio::test]
async fn a_process_that_cannot_serve_says_503_and_keeps_its_reasons() {
    let world = World::new(|_| Act::Refuse(Why::JournalUnavailable("/var/x: disk full".into())));
    let answer = world.post("/v1/chat/completions", HELLO).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "journal_unavailable"));
    assert!(!answer.text().contains("/var/x"));
    let world = World::new(|_| Act::Refuse(Why::Draining));
    let answer = world.post("/v1/chat/completions", HELLO).await;
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, "1"));
}

#[tokio::test]
async fn a_bug_is_a_500_in_the_same_shape_and_the_next_request_is_fine() {
    let world = World::new(|call| {
        if call.body.windows(4).any(|bytes| bytes == b"boom") {
            Act::Panic
        } else {
            Act::Whole(ANSWER)
        }
    });
    let answer = world.post("/v1/chat/completions", HELLO.replace("secret", "boom")).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (500, "internal_error"));
    assert_eq!(world.post("/v1/chat/completions", HELLO).await.status, 200);
    world.quiet().await;
    let figures = world.get("/metrics", "*/*").await;
    let line = r#"gateway_requests_total{provider="pointsman",model="demo",status="500"} 1"#;
    assert!(figures.text().contains(line), "{}", figures.text());
}
