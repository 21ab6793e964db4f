//! Turns: what the model sees, what the client gets, what is kept, in which order.

use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::world::{Answer, Replica, Site, client, contents, dir, keys};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_brings_what_is_new_and_the_model_sees_all_of_it() {
    let (replica, home) = (Replica::new().await, dir());
    let site = Site::new(home.path(), &replica, &keys()).await;
    let opening =
        json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"}]);
    let first = site.say("ann", None, opening, json!({})).await;
    let session = first.session();
    assert_eq!(first.json()["choices"][0]["message"]["content"], "re: one");
    let second = site.turn("ann", Some(&session), "two", json!({"stream": true})).await;
    assert_eq!(second.session(), session);
    assert!(second.is_done(), "{}", second.text());
    site.turn("ann", Some(&session), "three", json!({})).await;
    let asked = replica.asked();
    let seen: Vec<&str> = asked["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["content"].as_str().unwrap())
        .collect();
    assert_eq!(seen, ["be brief", "one", "re: one", "two", "re: two", "three"]);
    assert!(asked.get("session_id").is_none() && asked.get("user_id").is_none());
    let kept = site.messages("ann", &session).await;
    assert_eq!(
        contents(&kept),
        ["be brief", "one", "re: one", "two", "re: two", "three", "re: three"]
    );
    assert!(kept.iter().all(|entry| entry["status"] == "complete" && entry["in_context"] == true));
    let told = site.get("ann", &format!("/api/v1/sessions/{session}")).await.json();
    assert_eq!((&told["id"], &told["user_id"]), (&json!(session), &json!("ann")));
    assert_eq!((&told["message_count"], &told["status"]), (&json!(7), &json!("active")));
    let tokens: u64 = kept.iter().map(|entry| entry["token_count"].as_u64().unwrap()).sum();
    assert_eq!(told["token_count"], json!(tokens));
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_stored_form_stores_or_adds() {
    let (replica, home) = (Replica::new().await, dir());
    let site = Site::new(home.path(), &replica, &keys()).await;
    let session = site.turn("ann", None, "one", json!({})).await.session();
    let body = json!({"model": "m", "session_id": session, "messages": [{"role": "user", "content": "x"}]});
    let plain = site.post("ann", "/v1/chat/completions", body.to_string(), &[]).await;
    assert_eq!((plain.status.as_u16(), plain.header("x-session-id")), (200, "-"));
    assert!(plain.json().get("session_id").is_none());
    assert_eq!(replica.asked()["messages"].as_array().unwrap().len(), 1);
    assert_eq!(site.messages("ann", &session).await.len(), 2);
    // Nothing that was refused is kept either.
    let refused = site.turn("ann", Some(&session), "x", json!({"n": 2})).await;
    assert_eq!(
        (refused.status.as_u16(), refused.json()["error"]["param"].clone()),
        (400, json!("n"))
    );
    assert_eq!(site.messages("ann", &session).await.len(), 2);
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_turn_waits_for_the_first_and_sees_its_answer() {
    let (replica, home) = (Replica::new().await, dir());
    let site = Site::new(home.path(), &replica, &keys()).await;
    let session = site.turn("ann", None, "one", json!({})).await.session();
    let turns = ["slow a", "slow b", "slow c"]
        .map(|text| site.turn("ann", Some(&session), text, json!({"stream": text.ends_with('b')})));
    for answer in futures_util::future::join_all(turns).await {
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let kept = site.messages("ann", &session).await;
    let kept = contents(&kept);
    assert_eq!(kept.len(), 8);
    for pair in kept.chunks(2) {
        assert_eq!(pair[1], format!("re: {}", pair[0]), "{kept:?}");
    }
    // The last saw all before it.
    assert_eq!(replica.asked()["messages"].as_array().unwrap().len(), 7);
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_turns_wait_than_may() {
    let (replica, home) = (Replica::new().await, dir());
    let site = Site::new(home.path(), &replica, &keys()).await;
    let session = site.turn("ann", None, "one", json!({})).await.session();
    let turns = (0..8).map(|n| {
        site.turn("ann", Some(&session), if n < 5 { "slow" } else { "slower" }, json!({}))
    });
    let answers = futures_util::future::join_all(turns).await;
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status != 200).collect();
    // One runs, four wait; on a busy machine one may be over before the last arrives.
    let served = answers.len() - refused.len();
    assert!((1..=3).contains(&refused.len()), "{served} of 8 were answered");
    for answer in refused {
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (409, "turn_conflict"));
        assert_eq!(answer.header("retry-after"), "1");
    }
    assert_eq!(site.messages("ann", &session).await.len(), 2 + 2 * served);
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_answer_is_kept_as_it_was_delivered_and_marked() {
    let (replica, home) = (Replica::new().await, dir());
    let site = Site::new(home.path(), &replica, &keys()).await;
    let broken = site.turn("ann", None, "break here", json!({"stream": true})).await;
    assert!(!broken.is_done());
    let session = broken.header("x-session-id").to_owned();
    site.has("ann", &session, 2).await;
    let kept = site.messages("ann", &session).await;
    assert_eq!(contents(&kept), ["break here", "re: break here"]);
    assert_eq!((&kept[0]["status"], &kept[1]["status"]), (&json!("complete"), &json!("broken")));
    // It goes on from there.
    assert_eq!(site.turn("ann", Some(&session), "and?", json!({})).await.status, 200);
    assert_eq!(replica.asked()["messages"].as_array().unwrap().len(), 3);
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_that_left_was_given_is_kept_and_the_turn_is_free() {
    let (replica, home) = (Replica::new().await, dir());
    let site = Site::new(home.path(), &replica, &keys()).await;
    let (session, mut body) = begun(&site, "dawdle about it for a while").await;
    for _ in 0..6 {
        body.frame().await.unwrap().unwrap();
    }
    drop(body);
    site.has("ann", &session, 2).await;
    let kept = site.messages("ann", &session).await;
    let said = contents(&kept)[1].to_owned();
    assert!("re: dawdle about it for a while".starts_with(&said) && !said.is_empty(), "{said}");
    assert_eq!(kept[1]["status"], "broken");
    assert_eq!(site.turn("ann", Some(&session), "go on", json!({})).await.status, 200);
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_at_the_finish_reason_has_had_all_of_it() {
    let (replica, home) = (Replica::new().await, dir());
    let site = Site::new(home.path(), &replica, &keys()).await;
    let call = json!({"role": "assistant", "content": null, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]});
    replica.will_say(call);
    let (session, mut body) = begun(&site, "hesitate").await;
    let mut read = Vec::new();
    while memchr::memmem::find(&read, b"\"finish_reason\":\"stop\"").is_none() {
        read.extend_from_slice(&body.frame().await.unwrap().unwrap().into_data().unwrap());
    }
    drop(body);
    site.has("ann", &session, 2).await;
    assert_eq!(site.messages("ann", &session).await[1]["status"], "complete");
    // So its call goes upstream with its result.
    let result = json!([{"role": "tool", "tool_call_id": "c1", "content": "seen"}]);
    assert_eq!(site.say("ann", Some(&session), result, json!({})).await.status, 200);
    assert_eq!(replica.asked()["messages"][1]["tool_calls"][0]["id"], "c1");
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_key_gets_the_same_answer_and_keeps_no_second_turn() {
    let (replica, home) = (Replica::new().await, dir());
    let site = Site::new(home.path(), &replica, &keys()).await;
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "once"}]}).to_string();
    let headers = [("idempotency-key", "k1")];
    let ask = || site.post("ann", "/api/v1/chat/completions", body.clone(), &headers);
    let (first, again) = (ask().await, ask().await);
    assert_eq!((first.session(), &first.body), (again.session(), &again.body));
    assert_eq!(replica.times(), 1);
    assert_eq!(site.messages("ann", &first.session()).await.len(), 2);
    assert_eq!(site.get("ann", "/api/v1/sessions").await.json()["total"], 1);
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_its_owners_and_its_sessions() {
    let (replica, home) = (Replica::new().await, dir());
    let site = Site::new(home.path(), &replica, &keys()).await;
    let mut sessions = Vec::new();
    for _ in 0..2 {
        sessions.push(site.turn("ann", None, "hi", json!({})).await.session());
    }
    let asked = replica.times();
    let first = once(&site, "ann", &sessions[0]).await;
    assert_eq!(first.session(), sessions[0]);
    for other in [&*sessions[1], ""] {
        let refused = once(&site, "ann", other).await;
        assert_eq!(
            (refused.status.as_u16(), refused.code().as_str()),
            (422, "idempotency_mismatch")
        );
    }
    let again = once(&site, "ann", &sessions[0]).await;
    assert_eq!((again.session(), &again.body), (sessions[0].clone(), &first.body));
    // Another user, and a key of nobody's, by itself and for a third: each gets an answer and a session of their own.
    let bobs = once(&site, "bob", "").await;
    assert_eq!(site.messages("bob", &bobs.session()).await.len(), 2);
    let apps = once(&site, "app", "").await;
    assert_eq!(site.messages("app", &apps.session()).await.len(), 2);
    assert_eq!(replica.times(), asked + 3);
    // A plain answer says nothing but what the body asks for: whoever of the tenant repeats it gets it.
    let headers = [("idempotency-key", "k2")];
    let plain = |user| site.post(user, "/v1/chat/completions", ONCE.to_owned(), &headers);
    let (anns, bobs) = (plain("ann").await, plain("bob").await);
    assert_eq!((anns.status.as_u16(), &anns.body), (200, &bobs.body));
    assert_eq!(replica.times(), asked + 4);
    site.close().await;
}

const ONCE: &str = r#"{"model":"m","messages":[{"role":"user","content":"once"}]}"#;

/// The session stands in the header: key, path and body are the same whoever asks.
async fn once(site: &Site, user: &str, session: &str) -> Answer {
    let headers = [("idempotency-key", "k1"), ("x-session-id", session)];
    let headers = if session.is_empty() { &headers[..1] } else { &headers[..] };
    site.post(user, "/api/v1/chat/completions", ONCE.to_owned(), headers).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_leaves_out_what_does_not_fit_and_never_half_a_call() {
    let (replica, home) = (Replica::new().await, dir());
    let more = format!("{}session: {{max_tokens: 90}}\n", keys());
    let site = Site::new(home.path(), &replica, &more).await;
    let call = json!({"role": "assistant", "content": null, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]});
    replica.will_say(call.clone());
    let opening =
        json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": "look"}]);
    let session = site.say("ann", None, opening, json!({"stream": true})).await.session();
    let result = json!([{"role": "tool", "tool_call_id": "c1", "content": "seen ".repeat(10)}]);
    assert_eq!(site.say("ann", Some(&session), result, json!({})).await.status, 200);
    assert_eq!(replica.asked()["messages"][2]["tool_calls"][0]["function"]["name"], "look");
    for turn in 0..6 {
        let text = format!("turn {turn} {}", "word ".repeat(5));
        assert_eq!(site.turn("ann", Some(&session), &text, json!({})).await.status, 200);
        let asked = replica.asked();
        let seen = asked["messages"].as_array().unwrap();
        assert_eq!(seen[0]["content"], "be brief");
        let has =
            |role: &str, key: &str| seen.iter().any(|m| m["role"] == role && !m[key].is_null());
        assert_eq!(has("assistant", "tool_calls"), has("tool", "tool_call_id"), "{asked}");
    }
    let seen = replica.asked()["messages"].as_array().unwrap().len();
    assert!((3..12).contains(&seen), "{seen}");
    assert_eq!(site.messages("ann", &session).await.len(), 5 + 12);
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_said_and_kept() {
    let (replica, home) = (Replica::new().await, dir());
    let more = format!("{}session: {{messages_max: 4, sessions_max: 2}}\n", keys());
    let site = Site::new(home.path(), &replica, &more).await;
    let session = site.turn("ann", None, "1", json!({})).await.session();
    assert_eq!(site.turn("ann", Some(&session), "2", json!({})).await.status, 200);
    let full = site.turn("ann", Some(&session), "3", json!({})).await;
    assert_eq!((full.status.as_u16(), full.code().as_str()), (409, "session_full"));
    assert_eq!(full.header("x-should-retry"), "false");
    assert_eq!(site.turn("ann", None, "1", json!({})).await.status, 200);
    let many = site.turn("ann", None, "1", json!({})).await;
    assert_eq!((many.status.as_u16(), many.code().as_str()), (409, "too_many_sessions"));
    // Others have their own, and whoever removes one may begin another.
    assert_eq!(site.turn("bob", None, "1", json!({})).await.status, 200);
    let gone = site.delete("ann", &format!("/api/v1/sessions/{session}?purge=true")).await;
    assert_eq!(gone.json()["deleted"], true);
    assert_eq!(site.turn("ann", None, "1", json!({})).await.status, 200);
    let messages: Vec<Value> =
        (0..1_001).map(|n| json!({"role": "user", "content": n.to_string()})).collect();
    let many = site.say("bob", None, json!(messages), json!({})).await;
    assert_eq!(
        (many.status.as_u16(), many.json()["error"]["param"].clone()),
        (400, json!("messages"))
    );
    for path in ["/api/v1/sessions?page_size=101", "/api/v1/sessions?page=0"] {
        assert_eq!(site.get("ann", path).await.status, 400);
    }
    sleep(Duration::from_millis(1)).await;
    site.close().await;
}

/// A stream of ann's, as it begins: its session, and what is still to be read.
async fn begun(site: &Site, text: &str) -> (String, Incoming) {
    let messages = json!([{"role": "user", "content": text}]);
    let body = json!({"model": "m", "stream": true, "messages": messages});
    let request = Request::post(format!("http://{}/api/v1/chat/completions", site.addr))
        .header("authorization", "Bearer KEY-ann")
        .body(Full::from(body.to_string()));
    let answer = client().request(request.unwrap()).await.unwrap();
    let session = answer.headers()["x-session-id"].to_str().unwrap().to_owned();
    (session, answer.into_body())
}
