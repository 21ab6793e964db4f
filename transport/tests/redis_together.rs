//! Two gateways over one real Redis: one rate, one answer for one idempotency key, one home for one session; and each for
//! itself while Redis is away.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

#[path = "redis/server.rs"]
#[allow(dead_code, reason = "shared with tests that do more to their servers")]
mod server;
#[path = "redis/usual.rs"]
mod usual;

use core::time::Duration;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use control::id::Digest;
use control::plane::{Idempotency, Refusal, Session, SessionKind};
use control::rate::RateUnit;
use control::units::Tokens;
use server::Server;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use transport::config::{Env, Flags, parse};
use transport::exchange::{Call, Chat, Operation, Reply, ReplyBody, Why};
use transport::front::Authenticate;
use transport::gateway::Gateway;
use transport::redis::{key_key, rate_key, scoped_name};
use usual::{ROUNDS, Usual, timed};

/// What every answer costs: 3 tokens of prompt and 5 of completion.
const COST: u64 = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_is_one_for_both_gateways_and_not_one_each() {
    let redis = Server::start();
    let world = World::new(&redis, "{rpm: 10}").await;
    let gateways = world.two();
    let started = Instant::now();
    let asked = (0..40).map(|number| ask(&gateways[number % 2], Ask::default()));
    let answered = futures_util::future::join_all(asked).await;
    let served = answered.iter().filter(|answer| answer.is_ok()).count() as u64;
    let mut in_vain = 0;
    for refused in answered.iter().filter_map(|answer| answer.as_ref().err()) {
        // A slow machine asked the ledger in vain. It had a place among the ten, and may have given it back.
        if matches!(refused, Why::Plane(Refusal::QuotaUnavailable { .. })) {
            in_vain += 1;
            continue;
        }
        let Why::Plane(Refusal::RateLimited { unit, limit, retry_after, .. }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!((*unit, *limit), (RateUnit::Rpm, 10));
        assert!(
            !retry_after.is_zero() && *retry_after <= Duration::from_secs(6),
            "{retry_after:?}"
        );
    }
    // One more every six seconds, where the machine is slow.
    let drained = started.elapsed().as_secs() / 6;
    let told = format!("{served} of 10 a minute were served, {in_vain} asked the ledger in vain");
    assert!((1..=10 + drained).contains(&served) && served + in_vain >= 10, "{told}");
    let tenant = gateways[0].accounts().ids().tenant("default");
    assert!(!redis.ask(&format!("GET {}", rate_key(tenant, tenant, RateUnit::Rpm))).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_were_held_and_not_used_are_there_again_for_both() {
    let redis = Server::start();
    let world = World::new(&redis, "{tpm: 1000}").await;
    let gateways = world.two();
    let tenant = gateways[0].accounts().ids().tenant("default");
    let bucket = rate_key(tenant, tenant, RateUnit::Tpm);
    let begun = now();
    for number in 0..40 {
        // Of each answer 303 tokens are held: four of them were too much.
        let ask = ask(&gateways[number % 2], Ask { output_max: 300, ..Ask::default() });
        ask.await.unwrap();
        // What was used is told behind the answer's back.
        within(|| !redis.ask(&format!("GET {bucket}")).contains(' ')).await;
    }
    // All that was used stands there: 60 ms of a minute for each token.
    let tat: u64 = redis.ask(&format!("GET {bucket}")).parse().unwrap();
    let used = 40 * COST * 60_000;
    assert!((begun + used..=now() + used).contains(&tat), "{begun} {tat} {used}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_is_answered_once_over_both_gateways() {
    let redis = Server::start();
    let world = World::new(&redis, "{}").await;
    let gateways = world.two();
    let tenant = gateways[0].accounts().ids().tenant("default");
    let said = |key| get(&redis, &key_key(tenant, Digest(key)));
    world.hold(true);
    let (first, second) = tokio::join!(ask(&gateways[0], keyed(1, 7)), async {
        within(|| said(1).starts_with("running ")).await;
        let second = ask(&gateways[1], keyed(1, 7)).await;
        world.hold(false);
        second
    });
    assert!(first.is_ok(), "{first:?}");
    assert!(refused(second, |why| *why == Refusal::IdempotencyInFlight { by: None }));
    within(|| said(1).starts_with("done ")).await;
    let again = ask(&gateways[1], keyed(1, 7)).await;
    assert!(refused(again, |why| *why == Refusal::IdempotencyDone { by: None }));
    let other = ask(&gateways[1], keyed(1, 8)).await;
    assert!(refused(other, |why| *why == Refusal::IdempotencyMismatch { by: None }));
    // Who answered it says so once more.
    assert!(ask(&gateways[0], keyed(1, 7)).await.is_ok());
    // What failed is free again, at the other one too.
    world.replicas.iter().for_each(|replica| replica.break_off(true));
    assert!(ask(&gateways[0], keyed(2, 7)).await.is_err());
    within(|| said(2).is_empty()).await;
    world.replicas.iter().for_each(|replica| replica.break_off(false));
    assert!(ask(&gateways[1], keyed(2, 7)).await.is_ok());
    assert_eq!(world.answered(), 2, "each key was answered once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_named_session_has_one_home_over_both_gateways_and_moves_once() {
    let redis = Server::start();
    let world = World::new(&redis, "{}").await;
    let gateways = world.two();
    let home = |name: &str| get(&redis, &format!("session_affinity:{name}"));
    let epoch = |name: &str| get(&redis, &format!("{{session_affinity:{name}}}:epoch"));
    let named = |name: &'static str| Ask { session: Some(name), ..Ask::default() };
    let first = ask(&gateways[0], named("s1")).await.unwrap().replica;
    within(|| home("s1") == first).await;
    assert_eq!(epoch("s1"), "1");
    // Where the others say it lives counts, and not what both would compute alone.
    for (number, replica) in ["left", "right"].into_iter().enumerate() {
        let name = ["s2", "s3"][number];
        redis.ask(&format!("SET session_affinity:{name} {replica}"));
        redis.ask(&format!("SET {{session_affinity:{name}}}:epoch 7"));
        for gateway in [&gateways[0], &gateways[1], &gateways[0]] {
            assert_eq!(ask(gateway, named(name)).await.unwrap().replica, replica, "{name}");
        }
        assert_eq!((home(name), epoch(name)), (replica.to_owned(), "7".to_owned()));
    }
    // Its home breaks off: it moves, once, and both know.
    world.of(&first).break_off(true);
    let second = ask(&gateways[1], named("s1")).await.unwrap().replica;
    assert_ne!(second, first);
    within(|| home("s1") == second).await;
    assert_eq!(epoch("s1"), "2");
    world.of(&first).break_off(false);
    for number in 0..6 {
        let replica = ask(&gateways[number % 2], named("s1")).await.unwrap().replica;
        assert_eq!(replica, second, "it stays where it moved to");
    }
    assert_eq!((home("s1"), epoch("s1")), (second, "2".to_owned()));
    // What nobody of ours wrote stops nobody.
    redis.ask("LPUSH session_affinity:s4 precious");
    assert!(ask(&gateways[0], named("s4")).await.is_ok());
    assert_eq!(redis.ask("TYPE session_affinity:s4"), "list");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_costs_redis_one_script_of_the_ledger_at_each_end_and_one_for_each_thing_it_names()
 {
    let redis = Server::start();
    let ledger_and_rate = ["reserve", "settle", "rate take", "rate settle"];
    for (tenant, scripts) in [("{}", &ledger_and_rate[..2]), ("{tpm: 1000000}", &ledger_and_rate)] {
        redis.ask("FLUSHALL");
        let world = World::new(&redis, tenant).await;
        let gateway = world.gateway();
        // The first tells the server its scripts, and draws ahead.
        ask(&gateway, Ask::default()).await.unwrap();
        within(|| gateway.untold() == 0).await;
        let before = scripts_run(&redis);
        const REQUESTS: usize = 20;
        for _ in 0..REQUESTS {
            ask(&gateway, Ask::default()).await.unwrap();
        }
        let at_most = before + REQUESTS * scripts.len();
        // A settlement may leave together with the reservation after it, so it may be fewer. They have come to rest.
        let mut run = before;
        while gateway.untold() > 0 || run != scripts_run(&redis) {
            run = scripts_run(&redis);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        assert!(run > before, "nobody asked Redis");
        // What is drawn ahead is one more now and then.
        assert!(
            run <= at_most + REQUESTS / 4,
            "{} scripts for {REQUESTS} requests, {scripts:?}",
            run - before
        );
        tokio::task::spawn_blocking(move || gateway.stop()).await.unwrap().unwrap();
    }
}

/// Calls of scripts so far, as the server counts them.
fn scripts_run(redis: &Server) -> usize {
    let text = redis.ask("INFO commandstats");
    let calls = |line: &str| line.split("calls=").nth(1)?.split(',').next()?.parse::<usize>().ok();
    text.lines().filter(|line| line.starts_with("cmdstat_eval")).filter_map(calls).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_each_limits_for_itself_and_when_it_is_back_they_share_again() {
    let mut redis = Server::start();
    let world = World { fallback: "50ms", ..World::new(&redis, "{rpm: 600}").await };
    let gateways = world.two();
    let tenant = gateways[0].accounts().ids().tenant("default");
    let bucket = rate_key(tenant, tenant, RateUnit::Rpm);
    for gateway in &gateways {
        ask(gateway, Ask { session: Some("s1"), ..Ask::default() }).await.unwrap();
    }
    within(|| says(&gateways[0], true)).await;
    let one = async || drop(ask(&gateways[0], Ask::default()).await.unwrap());
    let usual = Usual::of(20, one).await;
    let one_wait = usual.with_one_wait(one).await;
    redis.kill();
    let first = timed(one).await;
    let next = Usual::of(20, one).await;
    println!("the first after Redis died took {first:?}, before it {usual:?}, after it {next:?}");
    assert!(first < one_wait, "the first: {first:?}, and before {usual:?}");
    assert!(next.median < usual.waits(), "the next: {next:?}, and before {usual:?}");
    within(|| says(&gateways[0], false)).await;
    let figures = gateways[0].chat().metrics();
    for line in [
        "pointsman_shared_asks_total{part=\"rates\",outcome=\"answered\"}",
        // With its line's end: what the figure means begins with a 1 as well.
        "pointsman_shared_degraded 1\n",
    ] {
        assert!(figures.contains(line), "{line}: {figures}");
    }
    redis.up();
    redis.ask("FLUSHALL");
    let started = Instant::now();
    while redis.ask(&format!("EXISTS {bucket}")) != "1" || !says(&gateways[0], true) {
        assert!(started.elapsed() < Duration::from_secs(20), "Redis is back and nobody asks it");
        let _ = ask(&gateways[0], Ask::default()).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(gateways[0].chat().metrics().contains("pointsman_shared_degraded 0"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_redis_is_waited_for_once_whatever_is_needed_of_it() {
    let redis = Server::start();
    let world = World { fallback: "50ms", ..World::new(&redis, "{rpm: 600000}").await };
    let gateway = world.gateway();
    let (mut keys, mut told) = (0, Vec::new());
    // A rate and a home; a rate alone; a rate and a key.
    let mut one = async || {
        keys += 1;
        let named = Ask { session: Some("s1"), ..Ask::default() };
        let needs = [named, Ask::default(), keyed(keys, 7)][(keys % 3) as usize];
        drop(ask(&gateway, needs).await.unwrap());
    };
    for _ in 0..ROUNDS {
        let usual = Usual::of(30, &mut one).await;
        let one_wait = usual.with_one_wait(&mut one).await;
        redis.freeze();
        let first = timed(&mut one).await;
        let next = Usual::of(30, &mut one).await;
        within(|| says(&gateway, false)).await;
        for line in ["pointsman_shared_degraded 1\n", "pointsman_quota_degraded 1\n"] {
            within(|| gateway.chat().metrics().contains(line)).await;
        }
        redis.thaw();
        let started = Instant::now();
        while !says(&gateway, true) || gateway.chat().metrics().contains("_degraded 1\n") {
            assert!(started.elapsed() < Duration::from_secs(20), "it is back and nobody asks it");
            one().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        told.push(format!("first {first:?}, before {usual:?}, behind it {next:?}"));
        let once = (usual.waits()..one_wait).contains(&first);
        if once && next.slowest < usual.waits() {
            return println!("{told:#?}");
        }
    }
    panic!("in no round did one request wait once: {told:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_a_gateway_charged_for_when_it_came_back_is_done_for_the_others() {
    let redis = Server::start();
    let world = World::new(&redis, "{}").await;
    let dir = TempDir::new().unwrap();
    let gateway = world.gateway_in(dir.path());
    let tenant = gateway.accounts().ids().tenant("default");
    let said = || get(&redis, &key_key(tenant, Digest(1)));
    world.replicas.iter().for_each(|replica| replica.hangs.store(true, Ordering::Relaxed));
    let begun = ask(&gateway, Ask { stream: true, ..keyed(1, 7) }).await.unwrap();
    let ReplyBody::Stream { mut parts, .. } = begun.body else { panic!("{:?}", begun.body) };
    assert!(parts.recv().await.is_some(), "its client was sent something");
    assert!(said().starts_with("running "), "{}", said());
    // As if it had been killed: nothing that happens from here on is heard.
    gateway.driver().end();
    tokio::task::spawn_blocking(move || gateway.stop()).await.unwrap().unwrap();
    assert!(said().starts_with("running "), "{}", said());
    let back = world.gateway_in(dir.path());
    within(|| said().starts_with("done ")).await;
    let again = ask(&world.gateway(), keyed(1, 7)).await;
    assert!(refused(again, |why| *why == Refusal::IdempotencyDone { by: None }));
    tokio::task::spawn_blocking(move || back.stop()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_last_request_did_is_told_before_its_gateway_stops() {
    let mut redis = Server::start();
    let world = World::new(&redis, "{}").await;
    let gateway = world.gateway();
    let tenant = gateway.accounts().ids().tenant("default");
    let key = key_key(tenant, Digest(1));
    world.hold(true);
    let asking = Arc::clone(&gateway);
    let asking = tokio::spawn(async move { ask(&asking, keyed(1, 7)).await });
    within(|| get(&redis, &key).starts_with("running ")).await;
    // Away when the request ends, and back a moment later.
    redis.kill();
    world.hold(false);
    asking.await.unwrap().unwrap();
    let telling = Arc::clone(&gateway);
    let telling = tokio::spawn(async move {
        // Once is enough where it is back within a second; how long it takes is the machine's.
        while !telling.all_told().await {}
    });
    redis.up();
    tokio::time::timeout(Duration::from_secs(20), telling).await.unwrap().unwrap();
    tokio::task::spawn_blocking(move || gateway.stop()).await.unwrap().unwrap();
    let said = get(&redis, &key);
    assert!(said.starts_with("done "), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_foreign_key_switches_nothing_off_for_the_others() {
    let redis = Server::start();
    let world = World::new(&redis, "{}").await;
    let gateways = world.two();
    let tenant = gateways[0].accounts().ids().tenant("default");
    ask(&gateways[0], Ask::default()).await.unwrap();
    redis.ask(&format!("SET {} precious", key_key(tenant, Digest(9))));
    assert!(ask(&gateways[0], keyed(9, 7)).await.is_ok(), "it is decided here alone");
    world.hold(true);
    // The next key is claimed all the same, so that it is answered once.
    let (first, second) = tokio::join!(ask(&gateways[0], keyed(10, 7)), async {
        within(|| get(&redis, &key_key(tenant, Digest(10))).starts_with("running ")).await;
        let second = ask(&gateways[1], keyed(10, 7)).await;
        world.hold(false);
        second
    });
    assert!(first.is_ok(), "{first:?}");
    assert!(refused(second, |why| *why == Refusal::IdempotencyInFlight { by: None }));
    assert!(gateways[0].chat().metrics().contains("pointsman_shared_degraded 0"));
    assert_eq!(get(&redis, &key_key(tenant, Digest(9))), "precious");
}

/// Where gateways live: two replicas, a Redis, and what the tenant may.
struct World {
    replicas: [Arc<Replica>; 2],
    redis: u16,
    tenant: &'static str,
    /// `data.redis.fallback_after`. Where it is not the matter, it is the longest: one limit for all is kept by whoever hears
    /// Redis, and a machine with two cores may be slow to.
    fallback: &'static str,
}

#[derive(Default)]
struct Replica {
    name: &'static str,
    port: u16,
    /// It answers nobody for now.
    holds: AtomicBool,
    breaks_off: AtomicBool,
    /// It begins a stream, and says no more.
    hangs: AtomicBool,
    answered: AtomicU64,
}

impl Replica {
    async fn start(name: &'static str) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let replica = Arc::new(Self { name, port, ..Self::default() });
        let serves = Arc::clone(&replica);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&serves)));
            }
        });
        replica
    }

    fn break_off(&self, breaks: bool) {
        self.breaks_off.store(breaks, Ordering::Relaxed);
    }
}

impl World {
    async fn new(redis: &Server, tenant: &'static str) -> Self {
        let replicas = [Replica::start("left").await, Replica::start("right").await];
        Self { replicas, redis: redis.port, tenant, fallback: "250ms" }
    }

    fn two(&self) -> [Arc<Gateway>; 2] {
        [self.gateway(), self.gateway()]
    }

    /// In a directory that nobody removes before the process ends.
    fn gateway(&self) -> Arc<Gateway> {
        self.gateway_in(&TempDir::new().unwrap().keep())
    }

    fn gateway_in(&self, dir: &Path) -> Arc<Gateway> {
        let endpoint = |replica: &Replica| {
            format!("{{name: {}, url: 'http://127.0.0.1:{}'}}", replica.name, replica.port)
        };
        let text = format!(
            "version: 1\ndata: {{dir: {}, redis: {{addr: '127.0.0.1:{}', fallback_after: {}}}}}\ntenants: {{default: {}}}\n\
             models: {{m: {{endpoints: [{}, {}]}}}}\n",
            dir.display(),
            self.redis,
            self.fallback,
            self.tenant,
            endpoint(&self.replicas[0]),
            endpoint(&self.replicas[1]),
        );
        let loaded = parse("p.yaml", text.as_bytes(), &Flags::default(), &Env::default()).unwrap();
        Gateway::start(&loaded.config).unwrap()
    }

    /// The replicas keep whoever asks waiting, or let go of them.
    fn hold(&self, holds: bool) {
        self.replicas.iter().for_each(|replica| replica.holds.store(holds, Ordering::Relaxed));
    }

    fn of(&self, name: &str) -> &Replica {
        self.replicas.iter().find(|replica| replica.name == name).unwrap()
    }

    fn answered(&self) -> u64 {
        self.replicas.iter().map(|replica| replica.answered.load(Ordering::Relaxed)).sum()
    }
}

#[derive(Clone, Copy, Default)]
struct Ask {
    output_max: u64,
    session: Option<&'static str>,
    idempotency: Option<Idempotency>,
    stream: bool,
}

fn keyed(key: u128, body: u128) -> Ask {
    let idempotency = Some(Idempotency { key: Digest(key), body: Digest(body) });
    Ask { idempotency, ..Ask::default() }
}

async fn ask(gateway: &Gateway, ask: Ask) -> Result<Reply, Why> {
    let trace = transport::trace::Trace::default();
    let caller = gateway.accounts().authenticate(None, None, &trace).await.unwrap();
    let session = ask.session.map(|name| Session {
        key: gateway.accounts().session_key(&caller.principal, name),
        kind: SessionKind::Named,
    });
    let call = Call {
        operation: Operation::ChatCompletions,
        model: "m".to_owned(),
        principal: caller.principal,
        session,
        user_name: caller.user_name(),
        session_name: ask.session.map(|name| scoped_name("default", name).into()),
        idempotency: ask.idempotency,
        prompt: Tokens(3),
        output_max: Some(Tokens(ask.output_max.max(5))),
        stream: ask.stream,
        patience: None,
        body: Bytes::from_static(b"{\"model\":\"m\",\"messages\":[]}"),
        trace,
        behalf: None,
        stored: None,
    };
    gateway.chat().exchange(call).await.map_err(|refused| refused.why)
}

fn refused(answer: Result<Reply, Why>, is_it: impl Fn(&Refusal) -> bool) -> bool {
    match answer {
        Err(Why::Plane(refusal)) if is_it(&refusal) => true,
        other => panic!("{other:?}"),
    }
}

/// Whether the part's line in `/health` says that it is well (or that it is not). The shadow, which decides everything once
/// more from the journal, is well in any case.
fn says(gateway: &Gateway, well: bool) -> bool {
    let parts = gateway.chat().checks().parts;
    assert!(parts.iter().any(|(part, ok, _)| part == "determinism" && *ok), "{parts:?}");
    parts
        .iter()
        .any(|(part, ok, text)| part == "shared limits" && *ok == well && text != "not asked yet")
}

/// A key's text; none where there is no such key.
fn get(redis: &Server, key: &str) -> String {
    redis.try_ask(&format!("GET {key}")).unwrap_or_default()
}

async fn within(is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(10), "it never came to be so");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_micros()).unwrap()
}

/// Answers one request after another, each with the same usage.
async fn answer(mut stream: TcpStream, replica: Arc<Replica>) {
    let body = r#"{"id":"x","object":"chat.completion","model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"a b c d e"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}}"#;
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let (mut read, mut part) = (Vec::new(), [0; 4_096]);
    while let Ok(count @ 1..) = stream.read(&mut part).await {
        read.extend_from_slice(&part[..count]);
        let text = String::from_utf8_lossy(&read).to_lowercase();
        let Some((head, rest)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if rest.len() < length.map_or(0, |length| length.parse().unwrap()) {
            continue;
        }
        read.clear();
        while replica.holds.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if replica.breaks_off.load(Ordering::Relaxed) {
            return;
        }
        if replica.hangs.load(Ordering::Relaxed) {
            let begun = r#"{"id":"x","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"a"},"finish_reason":null}]}"#;
            let head =
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
            stream.write_all(format!("{head}data: {begun}\n\n").as_bytes()).await.unwrap();
            return std::future::pending().await;
        }
        replica.answered.fetch_add(1, Ordering::Relaxed);
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}
