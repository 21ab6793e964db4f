//! What users spent on a day, in a real Redis: the sums that other programs read, and that nothing else depends on.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use transport::config::Role;

use crate::server::Server;
use crate::world::{LONG, Replica, Site, dir, keys};

/// `DIR` is put in by whoever starts it.
fn shared(redis: &Server) -> String {
    format!("data: {{dir: DIR, redis: {{addr: '127.0.0.1:{}'}}}}\n{}", redis.port, keys())
}

async fn site(dir: &Path, replica: &Replica, redis: &Server) -> Site {
    Site::new(dir, replica, &shared(redis)).await
}

/// Asks once, and returns what the client was told that it used.
async fn used(site: &Site, key: &str, more: Value) -> u64 {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    let answer = site.post(key, "/v1/chat/completions", body.to_string(), &[]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    if body["stream"] == json!(true) {
        return 0;
    }
    answer.json()["usage"]["total_tokens"].as_u64().unwrap()
}

/// The keys of a user: one, or two where midnight came in between.
fn days(redis: &Server, user: &str) -> Vec<String> {
    let list = "return table.concat(redis.call('KEYS', ARGV[1]), ' ')";
    let keys = redis.ask(&format!("EVAL \"{list}\" 0 token:{user}:????-??-??"));
    keys.split_whitespace().map(str::to_owned).collect()
}

fn sum(redis: &Server, user: &str) -> u64 {
    let days = days(redis, user).into_iter();
    days.map(|key| redis.ask(&format!("GET {key}")).parse::<u64>().unwrap()).sum()
}

async fn comes_to(redis: &Server, user: &str, tokens: u64) {
    let began = Instant::now();
    while sum(redis, user) != tokens {
        assert!(began.elapsed() < LONG, "{user} has {} and not {tokens}", sum(redis, user));
        sleep(Duration::from_millis(10)).await;
    }
}

async fn dropped(site: &Site) -> u64 {
    let text = site.get("ann", "/metrics").await.text().to_owned();
    let line = text.lines().find_map(|line| {
        line.strip_prefix("pointsman_token_projections_dropped_total ").map(str::to_owned)
    });
    line.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_sum_of_the_day_is_what_their_clients_were_told_over_all_gateways() {
    let (redis, replica, homes) = (Server::start(), Replica::new().await, [dir(), dir()]);
    let one = site(homes[0].path(), &replica, &redis).await;
    let two = site(homes[1].path(), &replica, &redis).await;
    let (mut ann, mut bob, mut other) = (0, 0, 0);
    for turn in 0..20 {
        let at = if turn % 2 == 0 { &one } else { &two };
        ann += used(at, "ann", json!({})).await;
        bob += used(at, "app", json!({"user_id": "bob"})).await;
        other += used(at, "other", json!({})).await;
        // Nobody in particular.
        used(at, "app", json!({})).await;
    }
    assert!(ann > 0 && bob > 0 && other > 0);
    comes_to(&redis, "ann", ann).await;
    comes_to(&redis, "bob", bob).await;
    comes_to(&redis, "acme%:ann", other).await;
    for key in ["ann", "bob", "acme%:ann"].iter().flat_map(|user| days(&redis, user)) {
        let ttl: u64 = redis.ask(&format!("TTL {key}")).parse().unwrap();
        assert!((172_700..=172_800).contains(&ttl), "{key} lives for {ttl} s");
        assert_eq!(redis.ask(&format!("TYPE {key}")), "string");
    }
    assert!(days(&redis, "*key*").is_empty(), "a key is no user");
    // A stream counts as well, by our own count where its replica says nothing.
    used(&one, "ann", json!({"stream": true})).await;
    let began = Instant::now();
    while sum(&redis, "ann") <= ann {
        assert!(began.elapsed() < LONG, "the stream was not counted");
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((dropped(&one).await, dropped(&two).await), (0, 0));
    one.close().await;
    two.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_role_spends_nothing_and_writes_nothing() {
    let (redis, replica, homes) = (Server::start(), Replica::new().await, [dir(), dir()]);
    let models = format!("models: {{m: {{endpoints: [{{url: 'http://{}'}}]}}}}\n", replica.addr);
    let text = format!("{models}server: {{grpc: {{addr: '127.0.0.1:0'}}}}\n{}", shared(&redis));
    let chat = Site::playing(Role::Chat, homes[0].path(), &text).await;
    let text = format!("chats: [{{url: 'chat://{}'}}]\n{}", chat.rpc.unwrap(), shared(&redis));
    let edge = Site::playing(Role::Gateway, homes[1].path(), &text).await;
    let mut told = 0;
    for _ in 0..5 {
        told += used(&edge, "ann", json!({})).await;
    }
    comes_to(&redis, "ann", told).await;
    sleep(Duration::from_millis(200)).await;
    assert_eq!(sum(&redis, "ann"), told, "each token is counted once");
    edge.close().await;
    chat.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_key_or_no_redis_hurts_nothing_but_the_sum() {
    let (mut redis, replica, home) = (Server::start(), Replica::new().await, dir());
    let site = site(home.path(), &replica, &redis).await;
    let told = used(&site, "ann", json!({})).await;
    comes_to(&redis, "ann", told).await;
    let key = days(&redis, "ann").remove(0);
    redis.ask(&format!("DEL {key}"));
    redis.ask(&format!("LPUSH {key} precious"));
    used(&site, "ann", json!({})).await;
    let began = Instant::now();
    while dropped(&site).await == 0 {
        assert!(began.elapsed() < LONG, "nobody noticed the foreign key");
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(redis.ask(&format!("LINDEX {key} 0")), "precious");
    assert_eq!(redis.ask(&format!("TTL {key}")), "-1");
    let bob = used(&site, "bob", json!({})).await;
    comes_to(&redis, "bob", bob).await;
    // A number that somebody left there to stay gets its time with the next tokens.
    let theirs = days(&redis, "bob").remove(0);
    redis.ask(&format!("SET {theirs} 100"));
    let more = used(&site, "bob", json!({})).await;
    comes_to(&redis, "bob", 100 + more).await;
    assert_ne!(redis.ask(&format!("TTL {theirs}")), "-1");
    redis.kill();
    let before = dropped(&site).await;
    let began = Instant::now();
    for _ in 0..5 {
        used(&site, "bob", json!({})).await;
    }
    assert!(began.elapsed() < Duration::from_secs(3), "requests waited: {:?}", began.elapsed());
    while dropped(&site).await < before + 5 {
        assert!(began.elapsed() < LONG, "what was missed was not counted");
        sleep(Duration::from_millis(10)).await;
    }
    redis.up();
    redis.ask("FLUSHALL");
    let (began, mut sent) = (Instant::now(), 0);
    while sum(&redis, "bob") == 0 {
        assert!(began.elapsed() < LONG, "Redis is back and hears nothing");
        sent += used(&site, "bob", json!({})).await;
        sleep(Duration::from_millis(50)).await;
    }
    assert!(sum(&redis, "bob") <= sent, "what was missed is not told later");
    site.close().await;
}
