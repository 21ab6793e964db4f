//! What a request becomes on its way to the chat role.

use std::path::Path;
use std::time::Duration;

use control::plane::SessionKind;
use control::units::Tokens;
use http::Method;
use http_body_util::Full;
use serde_json::json;
use transport::exchange::{Call, Operation};
use transport::front::Limits;

use crate::world::{ANSWER, Act, HELLO, World, bearer, request, send};

fn answering() -> World {
    World::new(|_| Act::Whole(ANSWER))
}

async fn call(world: &World, headers: &[(&str, &str)], body: &str) -> Call {
    let mut asked =
        request(Method::POST, world.url("/v1/chat/completions")).header("authorization", bearer());
    for (name, value) in headers {
        asked = asked.header(*name, *value);
    }
    let answer = send(asked.body(Full::from(body.to_owned())).unwrap()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    world.last_call()
}

#[tokio::test]
async fn a_whole_answer_passes_byte_for_byte_and_says_who_gave_it() {
    let world = answering();
    let answer = world.post("/v1/chat/completions", HELLO).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, ANSWER));
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("x-request-id"), "req_1-beef");
    assert_eq!(answer.header("x-pointsman-replica"), "replica-b");
    assert_eq!(answer.header("x-pointsman-attempts"), "2");
    let call = world.last_call();
    assert_eq!(call.operation, Operation::ChatCompletions);
    assert_eq!(call.body, HELLO, "the body goes on as it came");
    assert_eq!(call.output_max, None);
    assert!(call.prompt > Tokens(4), "{}", call.prompt);
    world.quiet().await;
}

#[tokio::test]
async fn headers_reach_the_call() {
    let world = answering();
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [("x-request-timeout", "2.5"), ("traceparent", trace)];
    let call = call(&world, &headers, HELLO).await;
    assert_eq!(call.patience, Some(Duration::from_millis(2_500)));
    let told = call.trace.outgoing().unwrap();
    assert_eq!(told.headers().collect::<Vec<_>>(), [("traceparent", trace)]);
    assert_eq!(call.idempotency, None);
}

#[tokio::test]
async fn an_exchange_has_the_shorter_of_what_its_client_and_the_server_give_it() {
    let limits = Limits { exchange_time: Some(Duration::from_secs(3)), ..Limits::default() };
    let world = World::with(limits, Duration::from_secs(5), None, |_| Act::Whole(ANSWER));
    for (said, given) in [(Some("2.5"), 2_500), (Some("9"), 3_000), (None, 3_000)] {
        let headers: Vec<_> = said.map(|said| ("x-request-timeout", said)).into_iter().collect();
        let call = call(&world, &headers, HELLO).await;
        assert_eq!(call.patience, Some(Duration::from_millis(given)), "{said:?}");
    }
}

#[tokio::test]
async fn a_session_is_the_same_from_header_and_body_and_never_stored() {
    let world = answering();
    let named = HELLO.replacen('{', r#"{"session_id":"s1","#, 1);
    let by_header = call(&world, &[("x-session-id", "s1")], HELLO).await.session.unwrap();
    let by_body = call(&world, &[], &named).await.session.unwrap();
    let by_both = call(&world, &[("x-session-id", "s1")], &named).await.session.unwrap();
    assert_eq!((by_header, by_both), (by_body, by_body));
    assert_eq!(by_header.kind, SessionKind::Named);
    let other = call(&world, &[("x-session-id", "s2")], HELLO).await.session.unwrap();
    assert_ne!(other.key, by_header.key);
}

#[tokio::test]
async fn a_conversation_without_a_name_is_known_by_its_opening() {
    let world = answering();
    let messages = |more: &str| {
        format!(
            r#"{{"model":"demo","messages":[{{"role":"system","content":"s"}},{{"role":"user","content":"a"}}{more}]}}"#
        )
    };
    let first = call(&world, &[], &messages("")).await.session.unwrap();
    let later = messages(r#",{"role":"assistant","content":"b"},{"role":"user","content":"c"}"#);
    assert_eq!(call(&world, &[], &later).await.session, Some(first));
    assert_ne!(call(&world, &[], HELLO).await.session, Some(first));
    assert_eq!(first.kind, SessionKind::Hint);
}

#[tokio::test]
async fn an_idempotency_key_is_bound_to_path_and_body() {
    let world = answering();
    let headers = [("idempotency-key", "k1")];
    let first = call(&world, &headers, HELLO).await.idempotency.unwrap();
    assert_eq!(call(&world, &headers, HELLO).await.idempotency, Some(first));
    let other = call(&world, &headers, &HELLO.replace("secret", "joke")).await.idempotency.unwrap();
    assert_eq!(other.key, first.key);
    assert_ne!(other.body, first.body);
}

#[tokio::test]
async fn two_tenants_never_meet_in_a_session_or_an_idempotency_key() {
    let world = answering();
    let named = HELLO.replacen('{', r#"{"session_id":"s1","#, 1);
    for body in [HELLO, &named] {
        let ours = call(&world, &[("idempotency-key", "k1")], body).await;
        let asked = request(Method::POST, world.url("/v1/chat/completions"))
            .header("authorization", "Bearer sk-other-tenant")
            .header("idempotency-key", "k1")
            .body(Full::from(body.to_owned()));
        assert_eq!(send(asked.unwrap()).await.status, 200);
        let theirs = world.last_call();
        assert_ne!(ours.session.unwrap().key, theirs.session.unwrap().key);
        assert_ne!(ours.idempotency.unwrap().key, theirs.idempotency.unwrap().key);
    }
}

#[tokio::test]
async fn a_user_named_in_the_body_is_part_of_who_pays() {
    let world = answering();
    let named = HELLO.replacen('{', r#"{"user_id":"bob","#, 1);
    assert!(call(&world, &[], &named).await.principal.user.is_some());
    assert!(call(&world, &[], HELLO).await.principal.user.is_none());
}

#[tokio::test]
async fn embeddings_are_answered_under_both_paths() {
    let world = answering();
    for path in ["/v1/embeddings", "/api/v1/embeddings"] {
        let answer = world.post(path, r#"{"model":"demo","input":["a","b"]}"#).await;
        assert_eq!(answer.status, 200);
        let call = world.last_call();
        assert_eq!(call.operation, Operation::Embeddings);
        assert_eq!((call.output_max, call.session), (Some(Tokens::ZERO), None));
    }
}

#[tokio::test]
async fn hostile_strings_are_content_like_any_other() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/blns/blns.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("SKIPPED: {} is not there", path.display());
        return;
    };
    let strings: Vec<String> = serde_json::from_str(&text).unwrap();
    assert!(strings.len() > 400);
    let world = answering();
    for hostile in &strings {
        let body = json!({
            "model": "demo",
            "messages": [{"role": "user", "content": hostile}],
            "session_id": format!("s{}", hostile.chars().take(60).collect::<String>()),
            "user_id": format!("u{}", hostile.chars().take(60).collect::<String>()),
            "stop": [hostile],
        });
        let answer = world.post("/v1/chat/completions", body.to_string()).await;
        assert_eq!(answer.status, 200, "{hostile:?}: {}", answer.text());
        assert_eq!(world.last_call().body, body.to_string(), "{hostile:?}");

        let body = json!({"model": hostile, "messages": [{"role": "user", "content": "x"}]});
        let answer = world.post("/v1/chat/completions", body.to_string()).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (404, "model_not_found"));
    }
    world.quiet().await;
}
