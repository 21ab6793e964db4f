//! Sessions in a real Redis: two gateways, one conversation; and what happens while Redis is away.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::server::Server;
use crate::world::{LONG, Replica, Site, contents, dir, keys};

async fn site(dir: &Path, replica: &Replica, redis: &Server) -> Site {
    let more =
        format!("data: {{dir: DIR, redis: {{addr: '127.0.0.1:{}'}}}}\n{}", redis.port, keys());
    Site::new(dir, replica, &more).await
}

/// Waits until somebody has the turn of a session.
async fn held(redis: &Server, session: &str) {
    let began = Instant::now();
    while redis.ask(&format!("EXISTS {{session:{session}}}:turn")) != "1" {
        assert!(began.elapsed() < LONG, "nobody takes the turn");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_see_one_session_and_answer_its_turns_in_order() {
    let (redis, replica, homes) = (Server::start(), Replica::new().await, [dir(), dir()]);
    let one = site(homes[0].path(), &replica, &redis).await;
    let two = site(homes[1].path(), &replica, &redis).await;
    let session = one.turn("ann", None, "one", json!({})).await.session();
    assert_eq!(
        two.turn("ann", Some(&session), "two", json!({"stream": true})).await.session(),
        session
    );
    assert_eq!(replica.asked()["messages"].as_array().unwrap().len(), 3);
    let turns = (0..6).map(|n| {
        let at = if n % 2 == 0 { &one } else { &two };
        let text = format!("slow {n}");
        let session = session.clone();
        async move { at.turn("ann", Some(&session), &text, json!({"stream": n > 2})).await }
    });
    for answer in futures_util::future::join_all(turns).await {
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let kept = one.messages("ann", &session).await;
    assert_eq!(
        kept.iter().map(|m| &m["message"]).collect::<Vec<_>>(),
        two.messages("ann", &session).await.iter().map(|m| &m["message"]).collect::<Vec<_>>()
    );
    let kept = contents(&kept);
    assert_eq!(kept.len(), 16);
    for pair in kept.chunks(2) {
        assert_eq!(pair[1], format!("re: {}", pair[0]));
    }
    assert_eq!(replica.asked()["messages"].as_array().unwrap().len(), 15, "the last saw all");
    one.close().await;
    two.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wait_for_another_gateways_turn_is_not_the_replicas_fault() {
    let (redis, replica, homes) = (Server::start(), Replica::new().await, [dir(), dir()]);
    let one = site(homes[0].path(), &replica, &redis).await;
    let more = format!(
        "data: {{dir: DIR, redis: {{addr: '127.0.0.1:{}'}}}}\nrouting: {{timeouts: {{connect: 500ms, first_token: 700ms}}}}\n{}",
        redis.port,
        keys()
    );
    let two = Site::new(homes[1].path(), &replica, &more).await;
    let session = one.turn("ann", None, "one", json!({})).await.session();
    let long = format!("dawdle {}", "on ".repeat(30));
    let first = one.turn("ann", Some(&session), &long, json!({"stream": true}));
    let second = async {
        held(&redis, &session).await;
        let began = Instant::now();
        let answer = two.turn("ann", Some(&session), "slow", json!({"stream": true})).await;
        (answer, began.elapsed())
    };
    let (first, (second, took)) = tokio::join!(first, second);
    assert!(first.is_done());
    assert!(took > Duration::from_millis(1_200), "it waited for nothing: {took:?}");
    assert!(second.is_done(), "{}", second.text());
    assert_eq!(replica.times(), 3, "asked once each");
    one.close().await;
    two.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_those_of_the_documents_and_tenants_never_meet() {
    let (redis, replica, home) = (Server::start(), Replica::new().await, dir());
    let site = site(home.path(), &replica, &redis).await;
    let session = site.turn("ann", None, "hi", json!({})).await.session();
    let others = site.turn("other", None, "ho", json!({})).await.session();
    assert_eq!(redis.ask(&format!("HGET session:{session} user_id")), "ann");
    assert_eq!(redis.ask(&format!("LLEN session_messages:{session}")), "2");
    assert_eq!(redis.ask("ZCARD user_sessions:ann"), "1");
    assert_eq!(redis.ask("LLEN history:ann"), "2");
    assert_eq!(redis.ask(&format!("HGET session:acme%:{others} tenant")), "acme");
    assert_eq!(redis.ask("ZCARD user_sessions:acme%:ann"), "1");
    assert_eq!(redis.ask("LLEN history:acme%:ann"), "2");
    // The record does not expire, and no turn is held.
    assert_eq!(redis.ask(&format!("TTL session_messages:{session}")), "-1");
    assert_eq!(redis.ask(&format!("EXISTS {{session:{session}}}:turn")), "0");
    for turn in 0..30 {
        site.turn("ann", Some(&session), &format!("n{turn}"), json!({})).await;
    }
    assert_eq!(redis.ask("LLEN history:ann"), "40");
    let history = site.get("ann", "/history").await.json();
    assert_eq!(history[39], json!({"role": "assistant", "text": "re: n29"}));
    site.delete("ann", &format!("/api/v1/sessions/{session}")).await;
    assert_eq!(redis.ask(&format!("LLEN session_messages:{session}")), "62");
    // A line that somebody else wrote is not shown, and in nobody's way.
    redis.ask("LPUSH history:ann foreign");
    assert_eq!(site.get("ann", "/history").await.json().as_array().unwrap().len(), 40);
    let purged = site.delete("ann", &format!("/api/v1/sessions/{session}?purge=true")).await;
    assert_eq!(purged.status, 200, "{}", purged.text());
    assert_eq!(redis.ask("LREM history:ann 0 foreign"), "1");
    assert_eq!(redis.ask(&format!("EXISTS session_messages:{session}")), "0");
    assert_eq!(redis.ask(&format!("EXISTS session:{session}")), "0");
    assert_eq!(redis.ask("EXISTS history:ann"), "0");
    assert_eq!(site.get("ann", "/api/v1/sessions").await.json()["total"], 0);
    // What somebody else wrote there is no panic, and not repeated.
    redis.ask(&format!("RPUSH session_messages:acme%:{others} secret"));
    let foreign = site.get("other", &format!("/api/v1/sessions/{others}")).await;
    assert_eq!(
        (foreign.status.as_u16(), foreign.code().as_str()),
        (503, "session_store_unavailable")
    );
    assert!(!site.get("ann", "/health").await.text().contains("secret"));
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_the_stored_form_says_so_and_the_plain_one_goes_on() {
    let (mut redis, replica, home) = (
        Server::start_with(&["appendonly yes", "appendfsync always"]),
        Replica::new().await,
        dir(),
    );
    let site = site(home.path(), &replica, &redis).await;
    let session = site.turn("ann", None, "one", json!({})).await.session();
    let running = site.turn(
        "ann",
        Some(&session),
        "dawdle on this, and it will be too late for it",
        json!({"stream": true}),
    );
    let killing = async {
        held(&redis, &session).await;
        replica.is_asked(2).await;
        redis.kill();
    };
    let (cut, ()) = tokio::join!(running, killing);
    assert!(!cut.is_done(), "what could not be kept was not acknowledged");
    assert!(cut.text().contains("session_not_stored"), "{}", cut.text());
    assert!(cut.text().contains("may not have been stored"), "nobody knows: {}", cut.text());
    let began = Instant::now();
    let refused = site.turn("ann", Some(&session), "two", json!({})).await;
    assert_eq!(
        (refused.status.as_u16(), refused.code().as_str()),
        (503, "session_store_unavailable")
    );
    assert_eq!(refused.header("retry-after"), "1");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(site.get("ann", "/api/v1/sessions").await.status, 503);
    let plain = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]}).to_string();
    assert_eq!(site.post("ann", "/v1/chat/completions", plain, &[]).await.status, 200);
    let health = site.get("ann", "/health").await.json();
    assert_eq!(health["checks"]["session store"]["healthy"], false, "{health}");
    let figures = site.get("ann", "/metrics").await;
    assert!(figures.text().contains("pointsman_session_refusals_total{reason=\"store\"}"));
    assert!(figures.text().contains("pointsman_session_turns_total{outcome=\"lost\"} 1"));
    redis.up();
    let began = Instant::now();
    while site.get("ann", "/api/v1/sessions").await.status != 200 {
        assert!(began.elapsed() < LONG, "Redis is back, and not asked");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(contents(&site.messages("ann", &session).await), ["one", "re: one"]);
    // The lease of the turn that was cut goes with its time.
    let again = site.turn("ann", Some(&session), "two", json!({})).await;
    assert_eq!(again.status, 200, "{}", again.text());
    assert_eq!(site.get("ann", "/health").await.json()["checks"]["session store"]["healthy"], true);
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_lease_costs_order_and_the_figures_stay_right() {
    let (redis, replica, homes) = (Server::start(), Replica::new().await, [dir(), dir()]);
    let one = site(homes[0].path(), &replica, &redis).await;
    let two = site(homes[1].path(), &replica, &redis).await;
    let session = one.turn("ann", None, "one", json!({})).await.session();
    let lease = format!("{{session:{session}}}:turn");
    let long = format!("dawdle {}", "on ".repeat(120));
    let first = one.turn("ann", Some(&session), &long, json!({"stream": true}));
    let second = async {
        held(&redis, &session).await;
        replica.is_asked(2).await;
        assert_eq!(redis.ask(&format!("DEL {lease}")), "1");
        let answer = two.turn("ann", Some(&session), "meanwhile", json!({})).await;
        // Whoever lost it and still runs takes it again, once it is free.
        held(&redis, &session).await;
        answer
    };
    let (first, second) = tokio::join!(first, second);
    assert!(first.is_done() && second.status == 200, "{}", first.text());
    let kept = one.messages("ann", &session).await;
    assert_eq!(contents(&kept)[..4], ["one", "re: one", "meanwhile", "re: meanwhile"]);
    assert_eq!(contents(&kept)[4..], [&*long, &*format!("re: {long}")]);
    let told = two.get("ann", &format!("/api/v1/sessions/{session}")).await.json();
    let sum: u64 = kept.iter().map(|entry| entry["token_count"].as_u64().unwrap()).sum();
    assert_eq!((&told["message_count"], &told["token_count"]), (&json!(6), &json!(sum)));
    // And it goes on from there.
    assert_eq!(two.turn("ann", Some(&session), "last", json!({})).await.status, 200);
    assert_eq!(replica.asked()["messages"].as_array().unwrap().len(), 7);
    assert_eq!(one.messages("ann", &session).await.len(), 8);
    one.close().await;
    two.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_a_silent_redis_gave_to_nobody_is_let_go() {
    let (redis, replica, home) = (Server::start(), Replica::new().await, dir());
    let site = site(home.path(), &replica, &redis).await;
    let session = site.turn("ann", None, "one", json!({})).await.session();
    // Reads go on, so that it comes as far as to ask for its turn.
    let paused = Duration::from_millis(1_500);
    redis.ask(&format!("CLIENT PAUSE {} WRITE", paused.as_millis()));
    let began = Instant::now();
    let refused = site.turn("ann", Some(&session), "two", json!({})).await;
    assert_eq!(refused.code(), "session_store_unavailable", "{}", refused.text());
    assert!(began.elapsed() < paused, "it was asked too late to find Redis silent");
    // What it was asked it does afterwards: it gives the turn to a request that is over.
    sleep(paused.saturating_sub(began.elapsed())).await;
    let lease = format!("{{session:{session}}}:turn");
    while redis.ask(&format!("EXISTS {lease}")) != "0" {
        assert!(began.elapsed() < Duration::from_secs(10), "the turn stays with nobody");
        sleep(Duration::from_millis(20)).await;
    }
    let again = site.turn("ann", Some(&session), "two", json!({})).await;
    assert_eq!(again.status, 200, "{}", again.text());
    assert!(began.elapsed() < Duration::from_secs(10), "it waited for nobody's turn");
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_among_a_users_sessions_that_no_session_has_is_given_back() {
    let (redis, replica, home) = (Server::start(), Replica::new().await, dir());
    let more = format!(
        "data: {{dir: DIR, redis: {{addr: '127.0.0.1:{}'}}}}\nsession: {{sessions_max: 2}}\n{}",
        redis.port,
        keys()
    );
    let site = Site::new(home.path(), &replica, &more).await;
    let minutes_ago = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() - 90_000;
    for ghost in ["one", "two"] {
        redis.ask(&format!("ZADD user_sessions:ann {minutes_ago} {ghost}"));
    }
    let began = site.turn("ann", None, "hi", json!({})).await;
    assert_eq!(began.status, 200, "{}", began.text());
    redis.ask(&format!("ZADD user_sessions:ann {minutes_ago} three"));
    assert_eq!(site.get("ann", "/api/v1/sessions").await.json()["total"], 1);
    assert_eq!(redis.ask("ZCARD user_sessions:ann"), "1");
    // One that is being made just now keeps its place.
    redis.ask(&format!("ZADD user_sessions:ann {} four", minutes_ago + 90_000));
    assert_eq!(site.get("ann", "/api/v1/sessions").await.json()["total"], 2);
    assert_eq!(site.turn("ann", None, "no", json!({})).await.code(), "too_many_sessions");
    site.close().await;
}
