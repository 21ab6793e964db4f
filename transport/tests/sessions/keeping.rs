//! What is kept, for whom, and how long.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::world::{LONG, Replica, Site, contents, dir, keys};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_elses_session_is_not_there() {
    let (replica, home) = (Replica::new().await, dir());
    let site = Site::new(home.path(), &replica, &keys()).await;
    let session = site.turn("ann", None, "mine", json!({})).await.session();
    let never = "sess_00000000000000000000000000000000";
    let asked = replica.times();
    // Another user, another tenant's user of that name, and a key that speaks for others but names nobody.
    for user in ["bob", "other", "app"] {
        for (id, path) in [(&*session, ""), (never, ""), ("x:y\u{2f}", "")] {
            let id = id.replace('/', "%2F");
            let told = site.get(user, &format!("/api/v1/sessions/{id}{path}")).await;
            assert_eq!((told.status.as_u16(), told.code().as_str()), (404, "session_not_found"));
        }
        let messages = site.get(user, &format!("/api/v1/sessions/{session}/messages")).await;
        let deleted = site.delete(user, &format!("/api/v1/sessions/{session}?purge=true")).await;
        let turn = site.turn(user, Some(&session), "hi", json!({})).await;
        assert_eq!([messages.status, deleted.status, turn.status].map(|s| s.as_u16()), [404; 3]);
        assert_eq!(messages.body, site.get(user, &format!("/api/v1/sessions/{never}")).await.body);
        assert_eq!(site.get(user, "/api/v1/sessions").await.json()["total"], 0);
        assert_eq!(site.get(user, "/history").await.json(), json!([]));
    }
    assert_eq!(replica.times(), asked, "nothing was asked for any of them");
    assert_eq!(site.get("mallory", "/api/v1/sessions").await.status, 401);
    assert_eq!(site.get("ann", "/api/v1/sessions?user_id=bob").await.status, 403);
    // Who may speak for a user sees what is the user's.
    let named = site.get("app", &format!("/api/v1/sessions/{session}?user_id=ann")).await;
    assert_eq!(named.json()["message_count"], 2);
    assert_eq!(site.messages("ann", &session).await.len(), 2);
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_user_is_called_what_a_keys_own_sessions_are() {
    let (replica, home) = (Replica::new().await, dir());
    let site = Site::new(home.path(), &replica, &keys()).await;
    let session = site.turn("app", None, "mine", json!({})).await.session();
    let path = format!("/api/v1/sessions/{session}");
    assert_eq!(site.get("app", &path).await.json()["user_id"], "key/app");
    for query in ["user_id=key/app", "user_id=key%2Fapp", "user_id=key/spare"] {
        for path in [&*path, "/api/v1/sessions", "/history"] {
            let refused = site.get("app", &format!("{path}?{query}")).await;
            assert_eq!((refused.status.as_u16(), refused.code().as_str()), (400, "invalid_value"));
        }
    }
    let refused = site.turn("app", Some(&session), "x", json!({"user_id": "key/app"})).await;
    assert_eq!(refused.json()["error"]["param"], "user_id");
    assert!(refused.text().contains("must not begin with 'key/'"), "{}", refused.text());
    assert_eq!(site.messages("app", &session).await.len(), 2);
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clearing_ends_the_context_and_keeps_the_conversation() {
    let (replica, home) = (Replica::new().await, dir());
    let site = Site::new(home.path(), &replica, &keys()).await;
    let session = site.turn("ann", None, "before", json!({})).await.session();
    let path = format!("/api/v1/sessions/{session}");
    let cleared = site.delete("ann", &path).await.json();
    assert_eq!((&cleared["cleared"], &cleared["deleted"]), (&json!(true), &json!(false)));
    let told = site.get("ann", &path).await.json();
    assert_eq!((&told["message_count"], &told["token_count"]), (&json!(2), &json!(0)));
    site.turn("ann", Some(&session), "after", json!({})).await;
    assert_eq!(replica.asked()["messages"].as_array().unwrap().len(), 1);
    let kept = site.messages("ann", &session).await;
    assert_eq!(contents(&kept), ["before", "re: before", "after", "re: after"]);
    let in_context: Vec<bool> = kept.iter().map(|m| m["in_context"].as_bool().unwrap()).collect();
    assert_eq!(in_context, [false, false, true, true]);
    assert_eq!(site.delete("ann", &format!("{path}?purge=true")).await.status, 200);
    assert_eq!(site.get("ann", &path).await.status, 404);
    assert_eq!(site.get("ann", "/history").await.json(), json!([]), "it went with its session");
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_and_the_time_to_live_take_nothing() {
    let (replica, home) = (Replica::new().await, dir());
    let more = format!("{}session: {{ttl: 1s}}\n", keys());
    let site = Site::new(home.path(), &replica, &more).await;
    let session = site.turn("ann", None, "one", json!({})).await.session();
    site.turn("ann", Some(&session), "two", json!({"stream": true})).await;
    site.close().await;
    let site = Site::new(home.path(), &replica, &more).await;
    let began = Instant::now();
    let listed = loop {
        let listed = site.get("ann", "/api/v1/sessions").await.json();
        if listed["data"][0]["status"] == "idle" {
            break listed;
        }
        assert!(began.elapsed() < LONG, "its time is over: {listed}");
        sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(listed["data"][0]["id"], json!(session));
    assert_eq!(site.messages("ann", &session).await.len(), 4);
    site.turn("ann", Some(&session), "three", json!({})).await;
    assert_eq!(replica.asked()["messages"].as_array().unwrap().len(), 5);
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_have_pages_and_the_last_used_session_is_first() {
    let (replica, home) = (Replica::new().await, dir());
    let site = Site::new(home.path(), &replica, &keys()).await;
    let mut sessions = Vec::new();
    for text in ["a", "b", "c"] {
        sessions.push(site.turn("ann", None, text, json!({})).await.session());
        sleep(Duration::from_millis(3)).await;
    }
    site.turn("ann", Some(&sessions[0]), "again", json!({})).await;
    let page = site.get("ann", "/api/v1/sessions?page=1&page_size=2").await.json();
    let ids: Vec<&str> =
        page["data"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [&sessions[0], &sessions[2]]);
    assert_eq!((&page["total"], &page["page_size"]), (&json!(3), &json!(2)));
    let rest = site.get("ann", "/api/v1/sessions?page=2&page_size=2").await.json();
    assert_eq!(rest["data"][0]["id"], json!(sessions[1]));
    let path = format!("/api/v1/sessions/{}/messages?page=2&page_size=3", sessions[0]);
    let part = site.get("ann", &path).await.json();
    assert_eq!(part["data"][0]["index"], 3);
    assert_eq!(contents(part["data"].as_array().unwrap()), ["re: again"]);
    assert!(part["data"][0]["token_count"].as_u64().unwrap() < 20, "its own, not a sum");
    // What was said last, in whichever session, oldest first, 40 lines.
    for turn in 0..20 {
        site.turn("ann", Some(&sessions[1]), &format!("n{turn}"), json!({})).await;
    }
    let history = site.get("ann", "/history?user_id=ann").await.json();
    let lines = history.as_array().unwrap();
    assert_eq!(
        (lines.len(), &lines[0], &lines[39]),
        (
            40,
            &json!({"role": "user", "text": "n0"}),
            &json!({"role": "assistant", "text": "re: n19"}),
        )
    );
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_strings_come_back_byte_for_byte() {
    let Some(text) = data("blns/blns.json") else { return };
    let strings: Vec<String> = serde_json::from_str(&text).unwrap();
    let (replica, home) = (Replica::new().await, dir());
    let more = format!("{}session: {{max_tokens: 1000000}}\n", keys());
    let site = Site::new(home.path(), &replica, &more).await;
    let mut session: Option<String> = None;
    for chunk in strings.chunks(40) {
        let messages: Vec<Value> =
            chunk.iter().map(|text| json!({"role": "user", "content": text})).collect();
        let stream = json!({"stream": session.is_some()});
        let answer = site.say("ann", session.as_deref(), json!(messages), stream).await;
        session = Some(answer.session());
    }
    let kept = site.messages("ann", &session.unwrap()).await;
    let mut kept = contents(&kept).into_iter();
    for chunk in strings.chunks(40) {
        for sent in chunk {
            assert_eq!(kept.next(), Some(&**sent));
        }
        assert_eq!(kept.next().unwrap(), format!("re: {}", chunk.last().unwrap()));
    }
    // A user may be called anything, too.
    for user in strings.iter().filter(|user| !user.is_empty() && user.len() <= 256).take(60) {
        let begun = site.turn("app", None, "hi", json!({"user_id": user})).await;
        let named: String = user.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let path = format!("/api/v1/sessions/{}?user_id={named}", begun.session());
        assert_eq!(site.get("app", &path).await.json()["user_id"], json!(user));
    }
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_conversations_with_tools_run_through_a_session() {
    let Some(text) = data("tau-bench/airline_60_runs.json") else { return };
    let runs: Vec<Value> = serde_json::from_str(&text).unwrap();
    let (replica, home) = (Replica::new().await, dir());
    let site = Site::new(home.path(), &replica, &keys()).await;
    let mut turns = 0;
    for (number, run) in runs.iter().take(12).enumerate() {
        let messages = run["messages"].as_array().unwrap();
        let (mut session, mut new, mut sent): (Option<String>, Vec<Value>, Vec<Value>) =
            Default::default();
        for message in messages {
            if message["role"] != "assistant" {
                new.push(message.clone());
                continue;
            }
            replica.will_say(message.clone());
            sent.append(&mut new.clone());
            let stream = json!({"stream": turns % 2 == 0});
            let answer =
                site.say("ann", session.as_deref(), json!(std::mem::take(&mut new)), stream).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            session = Some(answer.session());
            sent.push(message.clone());
            turns += 1;
            whole_pairs(&replica.asked());
        }
        let kept = site.messages("ann", &session.unwrap()).await;
        assert_eq!(kept.len(), sent.len(), "run {number}");
        for (kept, sent) in kept.iter().zip(&sent) {
            let kept = &kept["message"];
            assert_eq!((&kept["role"], &kept["content"]), (&sent["role"], &sent["content"]));
            assert_eq!(calls(kept), calls(sent));
            if sent["role"] != "assistant" {
                assert_eq!(kept, sent);
            }
        }
    }
    assert!(turns > 100, "{turns}");
    site.close().await;
}

/// Each call in a request is followed by its result, and each result by its call.
fn whole_pairs(asked: &Value) {
    let mut open = 0;
    for message in asked["messages"].as_array().unwrap() {
        if message["role"] == "tool" {
            assert!(open > 0, "a result without its call");
            open -= 1;
        } else {
            assert_eq!(open, 0, "a call without its result");
            open = message["tool_calls"].as_array().map_or(0, Vec::len);
        }
    }
    assert_eq!(open, 0);
}

fn calls(message: &Value) -> Vec<(Value, Value)> {
    let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
    calls.into_iter().map(|call| (call["id"].clone(), call["function"].clone())).collect()
}

/// Material that lies beside the repository, where it does.
fn data(name: &str) -> Option<String> {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data").join(name);
    let text = std::fs::read_to_string(&path).ok();
    if text.is_none() {
        eprintln!("SKIPPED: {} is not there", path.display());
    }
    text
}
