//! Gateways that share a ledger in a real Redis: one limit for all of them, and what happens while Redis is away.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

#[path = "redis/server.rs"]
#[allow(dead_code, reason = "shared with tests that do more to their servers")]
mod server;
#[path = "redis/usual.rs"]
mod usual;

use core::time::Duration;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use control::id::AccountId;
use control::plane::{Outcome, Refusal};
use control::quota::{LedgerConfig, WindowKind};
use control::units::Tokens;
use server::Server;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use transport::config::{Env, Flags, parse};
use transport::exchange::{Call, Chat, Operation, ReplyBody, Why};
use transport::front::Authenticate;
use transport::gateway::{Gateway, StartError};
use transport::redis::{JoinError, Settings, Store};
use transport::trace::Trace;
use usual::{ROUNDS, Usual, timed};

/// What every answer costs: 3 tokens of prompt and 5 of completion.
const COST: u64 = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_share_one_limit_and_overspend_nothing() {
    let redis = Server::start();
    let world = World::new(&redis, 200).await;
    // Nothing is drawn ahead where so little is allowed.
    let gateways = [world.gateway(), world.gateway()];
    let asked = (0..60).map(|index| ask(&gateways[index % 2], 5));
    let answered = futures_util::future::join_all(asked).await;
    let mut served = answered.iter().filter(|answer| answer.is_ok()).count() as u64;
    for answer in answered.iter().filter_map(|answer| answer.as_ref().err()) {
        assert!(matches!(answer, Why::Plane(Refusal::QuotaSpent(_))), "{answer:?}");
    }
    // What was held and not used is there again.
    while ask(&gateways[usize::from(served.is_multiple_of(2))], 5).await.is_ok() {
        served += 1;
    }
    let (spent, held) = world.settled(served * COST).await;
    assert_eq!((spent, held), (served * COST, 0));
    assert!(spent <= 200 && spent > 200 - 2 * COST, "{spent} of 200");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_a_gateway_spends_what_it_drew_and_no_more_and_nothing_is_lost() {
    let mut redis = Server::start();
    let world = World::new(&redis, 1_000_000).await;
    let gateway = world.gateway();
    let mut served = 0;
    for _ in 0..3 {
        ask(&gateway, 5).await.unwrap();
        served += 1;
    }
    assert!(says(&gateway, true), "{:?}", gateway.chat().checks().parts);
    // Something is drawn ahead; its answer came before that of the ask behind it.
    while world.settled(served * COST).await.1 == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let one = async || ask(&gateway, 5).await.unwrap();
    let usual = Usual::of(20, one).await;
    let one_wait = usual.with_one_wait(one).await;
    redis.kill();
    let first = timed(one).await;
    let next = Usual::of(20, one).await;
    served += 46;
    println!("the first after Redis died took {first:?}, before it {usual:?}, after it {next:?}");
    assert!(first < one_wait, "the first: {first:?}, and before {usual:?}");
    assert!(next.median < usual.waits(), "the next: {next:?}, and before {usual:?}");
    assert!(says(&gateway, false), "{:?}", gateway.chat().checks().parts);
    let figures = gateway.chat().metrics();
    assert!(figure(&gateway, "pointsman_quota_degraded 1"), "{figures}");
    assert!(
        figures.contains("pointsman_quota_store_asks_total{outcome=\"answered\"}"),
        "{figures}"
    );
    // More than was drawn ahead (4,096 tokens) is refused at once.
    let started = Instant::now();
    let refused = ask(&gateway, 5_000).await.unwrap_err();
    let unavailable = matches!(refused, Why::Plane(Refusal::QuotaUnavailable { .. }));
    assert!(unavailable, "{refused:?}");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    redis.up();
    let started = Instant::now();
    while !says(&gateway, true) {
        assert!(started.elapsed() < Duration::from_secs(20), "Redis is back and nobody notices");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    while ask(&gateway, 5_000).await.is_err() {
        assert!(started.elapsed() < Duration::from_secs(20), "Redis is back and is not asked");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    served += 1;
    // What was spent from the allotment shows at the store when the allotment ends; until then it is held.
    let (spent, held) = world.settled(5 * COST).await;
    assert!(spent + held >= served * COST, "{spent} spent and {held} held of {served} answers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_redis_costs_one_request_fifty_milliseconds_and_those_behind_it_nothing() {
    let redis = Server::start();
    let world = World::new(&redis, 1_000_000).await;
    let gateway = world.gateway();
    let one = async || ask(&gateway, 5).await.unwrap();
    let mut told = Vec::new();
    for _ in 0..ROUNDS {
        one().await;
        // Something is drawn ahead, and nothing else is held.
        while world.settled(0).await.1 == 0 || !figure(&gateway, "pointsman_quota_degraded 0") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let usual = Usual::of(20, one).await;
        let one_wait = usual.with_one_wait(one).await;
        redis.freeze();
        let first = timed(one).await;
        let next = Usual::of(20, one).await;
        // From here on it is away: whoever is not covered is refused at once, and this is said.
        let started = Instant::now();
        while !figure(&gateway, "pointsman_quota_degraded 1") || !says(&gateway, false) {
            assert!(started.elapsed() < Duration::from_secs(10), "nobody says that it is away");
            one().await;
        }
        let away = Usual::of(20, one).await;
        redis.thaw();
        let started = Instant::now();
        while !figure(&gateway, "pointsman_quota_degraded 0") || !says(&gateway, true) {
            assert!(started.elapsed() < Duration::from_secs(20), "it is back and nobody notices");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        told.push(format!("first {first:?}, before {usual:?}, behind it {next:?}, later {away:?}"));
        let others = next.slowest.max(away.slowest);
        if (usual.waits()..one_wait).contains(&first) && others < usual.waits() {
            println!("{told:#?}");
            assert!(!figure(&gateway, "pointsman_quota_late_total 0"), "it was late");
            return;
        }
    }
    panic!("in no round did one request wait once: {told:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_nothing_drawn_ahead_waits_for_a_slow_redis_and_is_answered() {
    let redis = Server::start();
    // So little is allowed that nothing is drawn ahead.
    let world = World::new(&redis, 200).await;
    let gateway = world.gateway();
    ask(&gateway, 5).await.unwrap();
    let mut refused = Vec::new();
    for _ in 0..ROUNDS {
        redis.freeze();
        let asked = tokio::spawn({
            let gateway = Arc::clone(&gateway);
            async move { ask(&gateway, 5).await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        redis.thaw();
        match asked.await.unwrap() {
            Ok(()) => return,
            Err(why) => refused.push(why),
        }
        while !says(&gateway, true) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    panic!("a pause of 100 ms is no reason to refuse: {refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_starts_without_redis_only_where_it_has_met_it() {
    let mut redis = Server::start();
    let world = World::new(&redis, 1_000).await;
    let dir = TempDir::new().unwrap();
    let tenant = {
        let gateway = world.gateway_in(dir.path()).unwrap();
        ask(&gateway, 5).await.unwrap();
        world.settled(COST).await;
        gateway.stop().unwrap();
        tenant(&gateway)
    };
    redis.kill();
    {
        let gateway = world.gateway_in(dir.path()).unwrap();
        assert_eq!(tenant, self::tenant(&gateway), "accounts are called as before");
        gateway.stop().unwrap();
    }
    let fresh = TempDir::new().unwrap();
    let refused = world.gateway_in(fresh.path()).err().unwrap();
    assert!(matches!(refused, StartError::Join(JoinError::NeverMet(_))), "{refused}");
    redis.up();
    redis.ask("FLUSHALL");
    redis.ask(&format!("SET pointsman:salt {}", "ab".repeat(32)));
    let refused = world.gateway_in(dir.path()).err().unwrap();
    assert!(matches!(refused, StartError::Join(JoinError::Strangers)), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_counted_for_itself_is_not_made_to_share() {
    let redis = Server::start();
    let world = World::new(&redis, 1_000).await;
    let dir = TempDir::new().unwrap();
    {
        let alone = World { redis: None, ..world.clone() };
        let gateway = alone.gateway_in(dir.path()).unwrap();
        ask(&gateway, 5).await.unwrap();
        gateway.stop().unwrap();
    }
    let refused = world.gateway_in(dir.path()).err().unwrap();
    let embedded = matches!(refused, StartError::Join(JoinError::OtherMode { embedded: true }));
    assert!(embedded && refused.to_string().contains("remove data.redis"), "{refused}");
}

/// Where gateways live: an upstream, perhaps a Redis, one limit a day.
#[derive(Clone)]
struct World {
    upstream: u16,
    redis: Option<u16>,
    daily: u64,
}

impl World {
    async fn new(redis: &Server, daily: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream));
            }
        });
        Self { upstream, redis: Some(redis.port), daily }
    }

    /// In a directory that nobody removes before the process ends.
    fn gateway(&self) -> Arc<Gateway> {
        self.gateway_in(&TempDir::new().unwrap().keep()).unwrap()
    }

    fn gateway_in(&self, dir: &Path) -> Result<Arc<Gateway>, StartError> {
        let redis = self.redis.map(|port| format!(", redis: {{addr: '127.0.0.1:{port}'}}"));
        let text = format!(
            "version: 1\ndata: {{dir: {}{}}}\ntenants: {{default: {{daily_tokens: {}}}}}\n\
             models: {{m: {{endpoints: [{{url: 'http://127.0.0.1:{}'}}]}}}}\n",
            dir.display(),
            redis.unwrap_or_default(),
            self.daily,
            self.upstream
        );
        let loaded = parse("p.yaml", text.as_bytes(), &Flags::default(), &Env::default()).unwrap();
        Gateway::start(&loaded.config)
    }

    /// Waits until the tenant has spent so much at the store. What is spent and held then.
    async fn settled(&self, spent: u64) -> (u64, u64) {
        let settings = Settings {
            addresses: vec![("127.0.0.1".to_owned(), self.redis.unwrap())],
            call_timeout: Duration::from_secs(5),
            ..Settings::default()
        };
        let store = Store::new(settings, LedgerConfig::default(), 1).unwrap();
        let ids = transport::keys::AccountIds::new(store.salt([0; 32]).await.unwrap());
        let tenant = ids.tenant("default");
        let started = Instant::now();
        loop {
            let balances = store.balances(tenant).await.unwrap();
            let of_day = balances
                .iter()
                .filter(|(key, _)| key.account == tenant && key.window.kind() == WindowKind::Day);
            let sums = of_day.map(|(_, sums)| (sums.spent.tokens.0, sums.outstanding.tokens.0));
            let now = sums.fold((0, 0), |sum, day| (sum.0 + day.0, sum.1 + day.1));
            if now.0 >= spent || started.elapsed() > Duration::from_secs(20) {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn tenant(gateway: &Gateway) -> AccountId {
    gateway.accounts().ids().tenant("default")
}

/// Whether the store's line in `/health` says that it is well (or that it is not). All else is well, above all the shadow,
/// which decides everything once more from the journal.
fn says(gateway: &Gateway, well: bool) -> bool {
    let parts = gateway.chat().checks().parts;
    assert!(parts.iter().any(|(part, ok, _)| part == "determinism" && *ok), "{parts:?}");
    parts.iter().any(|(part, ok, _)| part == "quota store" && *ok == well)
}

/// Whether a line stands among the metrics.
fn figure(gateway: &Gateway, line: &str) -> bool {
    gateway.chat().metrics().lines().any(|own| own == line)
}

/// One request of so many output tokens at most.
async fn ask(gateway: &Gateway, output_max: u64) -> Result<(), Why> {
    let caller = gateway.accounts().authenticate(None, None, &Trace::default()).await.unwrap();
    let call = Call {
        operation: Operation::ChatCompletions,
        model: "m".to_owned(),
        principal: caller.principal,
        session: None,
        session_name: None,
        user_name: None,
        idempotency: None,
        prompt: Tokens(3),
        output_max: Some(Tokens(output_max)),
        stream: false,
        patience: None,
        body: Bytes::from_static(b"{\"model\":\"m\",\"messages\":[]}"),
        trace: transport::trace::Trace::default(),
        behalf: None,
        stored: None,
    };
    let reply = gateway.chat().exchange(call).await.map_err(|refused| refused.why)?;
    let ReplyBody::Whole { end, .. } = reply.body else { panic!("no stream was asked for") };
    assert_eq!(end.outcome, Outcome::Completed);
    Ok(())
}

/// Answers one request after another, each with the same usage.
async fn answer(mut stream: TcpStream) {
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
        if rest.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            read.clear();
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}
