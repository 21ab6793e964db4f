//! Streams that any gateway can resume, over a real Redis: gateways that die, readers that move, a Redis that goes away.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

#[path = "redis/server.rs"]
#[allow(dead_code, reason = "shared with tests that do more to their servers")]
mod server;

use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use control::id::{AccountId, Minted, Principal, RequestId};
use control::plane::Outcome;
use control::units::Usage;
use server::Server;
use tokio::sync::mpsc::{self, Sender};
use tokio::time::timeout;
use transport::exchange::{End, Part};
use transport::health::Health;
use transport::redis::{Settings, StreamLog};
use transport::streams::{Last, Limits, Missed, Next, Reach, Reader, Scribe, Streams, Whose};

const LONG: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_gateway_serves_what_was_and_what_comes() {
    let redis = Server::start();
    let (one, two) = (gateway(&redis, 1), gateway(&redis, 2));
    let (mut here, parts) = one.open(7).await;
    assert_eq!(here.reader.id(), "req_1-7.0000000000000001");
    parts.send_numbers(1..=3).await;
    here.until("id: 3\n").await;
    let id = here.reader.id().to_owned();
    for stranger in [whose(2, Some(1)), whose(1, Some(2)), whose(1, None)] {
        assert_eq!(two.streams.resume(&id, stranger, 0).await.err(), Some(Missed::Unknown));
    }
    drop(here);
    let mut there = two.resume(&id, 1).await.unwrap();
    assert!(!there.reader.is_here());
    there.until("id: 3\n").await;
    parts.send_numbers(4..=400).await;
    parts.end().await;
    let rest = there.rest().await;
    assert_eq!(rest, (numbers(2..=400) + "id: 401\ndata: [DONE]\n\n", Next::Over));
    // Who cannot read on cuts nobody off.
    let mut there = two.resume(&id, 400).await.unwrap();
    assert_eq!(two.resume(&id, 402).await.err(), Some(Missed::Beyond { head: 401 }));
    assert_eq!(there.rest().await, ("id: 401\ndata: [DONE]\n\n".to_owned(), Next::Over));
    // After the end as well: from the beginning, and nothing behind the end.
    assert_eq!(two.resume(&id, 0).await.unwrap().rest().await.0.matches("[DONE]").count(), 1);
    assert_eq!(two.resume(&id, 401).await.err(), Some(Missed::Complete));
    assert_eq!(two.resume(&id, 402).await.err(), Some(Missed::Beyond { head: 401 }));
    // The contract's keys and fields.
    let entries = "redis.call('XRANGE', KEYS[1], '2-0', '2-0')[1][2]";
    let script = format!("return table.concat({entries}, '|')");
    let told = redis.ask(&format!("EVAL \"{script}\" 1 stream:chat:{id}"));
    assert!(told.starts_with("token||seq|2|is_final|0|finish_reason||event|id: 2"), "{told}");
    let ttl = |key: &str| redis.ask(&format!("PTTL {key}:{id}")).parse::<i64>().unwrap();
    assert!((1..=60_000).contains(&ttl("stream:chat")), "{}", ttl("stream:chat"));
    assert!((1..=60_000).contains(&ttl("chat:req:meta")), "{}", ttl("chat:req:meta"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seam_is_told_elsewhere_too_in_its_place() {
    let redis = Server::start();
    let (one, two) = (gateway(&redis, 1), gateway(&redis, 2));
    let (mut here, parts) = one.open(7).await;
    parts.send_numbers(1..=2).await;
    let seam = ": resumed after 2 tokens by w1\n\n";
    parts.0.send(Part::Bytes(Bytes::from_static(seam.as_bytes()))).await.unwrap();
    parts.send_numbers(3..=3).await;
    here.until("id: 3\n").await;
    let id = here.reader.id().to_owned();
    parts.end().await;
    let end = "id: 4\ndata: [DONE]\n\n";
    let told = [numbers(2..=2), seam.to_owned(), numbers(3..=3), end.to_owned()].concat();
    assert_eq!(two.resume(&id, 1).await.unwrap().rest().await, (told, Next::Over));
    assert_eq!(two.resume(&id, 3).await.unwrap().rest().await, (end.to_owned(), Next::Over));
}

#[test]
fn when_its_gateway_dies_a_stream_is_given_whole_and_ends_honestly() {
    let redis = Server::start();
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().build().unwrap()
    };
    let (dying, living) = (runtime(), runtime());
    // What its client had seen is in the log, though nobody had a chance to write anything more.
    let (id, seen, _parts) = dying.block_on(async {
        let one = gateway(&redis, 1);
        let (mut here, parts) = one.open(7).await;
        parts.send_numbers(1..=50).await;
        here.until("id: 50\n").await;
        (here.reader.id().to_owned(), here.text.clone(), parts)
    });
    dying.shutdown_background();
    living.block_on(async {
        let two = gateway(&redis, 2);
        let mut there = two.resume(&id, 20).await.unwrap();
        let started = Instant::now();
        let (text, end) = there.rest().await;
        assert_eq!(end, Next::Lost, "{text}");
        assert_eq!(numbers(1..=20) + &text, seen);
        assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_elsewhere_takes_over_and_keeps_the_stream_alive() {
    let redis = Server::start();
    let grace = Duration::from_secs(2);
    let one = gateway_with(&redis, 1, Limits { grace, ..Limits::default() });
    let two = gateway(&redis, 2);
    let (mut here, parts) = one.open(7).await;
    parts.send_numbers(1..=1).await;
    here.until("id: 1\n").await;
    let id = here.reader.id().to_owned();
    let mut there = two.resume(&id, 1).await.unwrap();
    assert_eq!(here.rest().await.1, Next::TakenOver, "the gateway of the attempt hears of it");
    // One who reads elsewhere is there, for longer than the grace time of one who is not.
    let began = Instant::now();
    let mut number = 2;
    while began.elapsed() < grace * 2 {
        parts.send_numbers(number..=number).await;
        there.until(&format!("id: {number}\n")).await;
        number += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Back to the first: then the other is cut off.
    let mut back = one.resume(&id, u64::from(number) - 1).await.unwrap();
    assert!(back.reader.is_here());
    assert_eq!(there.rest().await.1, Next::TakenOver);
    parts.send_numbers(number..=number).await;
    back.until(&format!("id: {number}\n")).await;
    drop((there, back));
    timeout(LONG, parts.0.closed()).await.expect("nobody reads it any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_does_not_answer_holds_nobody_up_and_is_caught_up_with() {
    let redis = Server::start();
    let (one, two) = (gateway(&redis, 1), gateway(&redis, 2));
    let (mut here, parts) = one.open(7).await;
    parts.send_numbers(1..=2).await;
    here.until("id: 2\n").await;
    assert_eq!(here.reader.reach().await, Reach::AnyGateway);
    redis.freeze();
    let began = Instant::now();
    parts.send_numbers(3..=3).await;
    here.until("id: 3\n").await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(here.text.contains(": the log of streams does not answer"), "{}", here.text);
    let began = Instant::now();
    for number in 4..=300 {
        parts.send_numbers(number..=number).await;
        here.until(&format!("id: {number}\n")).await;
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(here.reader.reach().await, Reach::ThisGateway);
    let began = Instant::now();
    let id = here.reader.id().to_owned();
    assert!(matches!(two.resume(&id, 0).await.err(), Some(Missed::Away(_))));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    redis.thaw();
    here.until(": the log of streams answers again").await;
    drop(here);
    let mut there = two.resume(&id, 0).await.unwrap();
    parts.end().await;
    assert_eq!(there.rest().await, (numbers(1..=300) + "id: 301\ndata: [DONE]\n\n", Next::Over));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_known_to_be_silent_holds_no_new_stream_up() {
    let redis = Server::start();
    let patience = Duration::from_secs(3);
    let slow = settings(std::slice::from_ref(&redis), false);
    let slow = Settings { call_timeout: patience, dial_timeout: patience, ..slow };
    let one = gateway_at(slow, 1);
    let (mut first, parts) = one.open(1).await;
    redis.freeze();
    parts.send_numbers(1..=1).await;
    first.until("id: 1\n").await;
    for request in 2..=9 {
        let began = Instant::now();
        let (mut next, parts) = one.open(request).await;
        parts.send_numbers(1..=1).await;
        assert_eq!(next.reader.reach().await, Reach::ThisGateway);
        next.until("id: 1\n").await;
        assert!(began.elapsed() < patience / 2, "{:?}", began.elapsed());
    }
    let (mut last, parts) = one.open(10).await;
    parts.send_numbers(1..=1).await;
    redis.thaw();
    last.until(": the log of streams answers again").await;
    let mut there = gateway(&redis, 2).resume(last.reader.id(), 0).await.unwrap();
    parts.end().await;
    assert_eq!(there.rest().await, (numbers(1..=1) + "id: 2\ndata: [DONE]\n\n", Next::Over));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_came_here_while_redis_was_away_count_afterwards() {
    let redis = Server::start();
    let grace = Duration::from_secs(4);
    let one = gateway_with(&redis, 1, Limits { grace, ..Limits::default() });
    let two = gateway(&redis, 2);
    let (mut here, parts) = one.open(7).await;
    parts.send_numbers(1..=1).await;
    here.until("id: 1\n").await;
    let id = here.reader.id().to_owned();
    redis.freeze();
    let mut first = one.resume(&id, 1).await.unwrap();
    let mut second = one.resume(&id, 1).await.unwrap();
    assert_eq!(first.rest().await.1, Next::TakenOver);
    parts.send_numbers(2..=2).await;
    second.until("id: 2\n").await;
    redis.thaw();
    second.until(": the log of streams answers again").await;
    // The next, here and elsewhere, is the one that counts.
    let mut third = one.resume(&id, 2).await.unwrap();
    assert_eq!(second.rest().await.1, Next::TakenOver);
    drop((first, second));
    parts.send_numbers(3..=3).await;
    third.until("id: 3\n").await;
    let mut there = two.resume(&id, 3).await.unwrap();
    let (began, mut number) = (Instant::now(), 4);
    while began.elapsed() < grace * 2 {
        parts.send_numbers(number..=number).await;
        there.until(&format!("id: {number}\n")).await;
        number += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(third.rest().await.1, Next::TakenOver);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_redis_acknowledged_and_lost_is_written_again() {
    let redis = Server::start();
    let (one, two) = (gateway(&redis, 1), gateway(&redis, 2));
    let (mut here, parts) = one.open(7).await;
    parts.send_numbers(1..=5).await;
    here.until("id: 5\n").await;
    let id = here.reader.id().to_owned();
    redis.ask(&format!("XDEL stream:chat:{id} 4-0 5-0"));
    redis.ask(&format!("XSETID stream:chat:{id} 3-0"));
    parts.send_numbers(6..=6).await;
    here.until("id: 6\n").await;
    // Nor does it end a reader there that nothing is known of its stream for a moment.
    let mut there = two.resume(&id, 2).await.unwrap();
    there.until("id: 6\n").await;
    redis.ask(&format!("DEL chat:req:meta:{id}"));
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    redis.ask(&format!("DEL stream:chat:{id}"));
    parts.send_numbers(7..=7).await;
    there.until("id: 7\n").await;
    parts.end().await;
    let end = "id: 8\ndata: [DONE]\n\n";
    assert_eq!(there.rest().await, (numbers(3..=7) + end, Next::Over));
    let mut whole = two.resume(&id, 0).await.unwrap();
    assert_eq!(whole.rest().await, (numbers(1..=7) + end, Next::Over));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_made_room_here_is_forgotten_there() {
    let redis = Server::start();
    let one = gateway_with(&redis, 1, Limits { streams_max: 2, ..Limits::default() });
    for request in 1..=8 {
        let (mut here, parts) = one.open(request).await;
        parts.end().await;
        assert_eq!(here.rest().await.1, Next::Over);
        drop(here);
        // An ended stream makes room once its end is written.
        let began = Instant::now();
        while one.streams.reserve().is_err() {
            assert!(began.elapsed() < LONG);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let began = Instant::now();
    let kept = || redis.ask("EVAL \"return #redis.call('KEYS','*chat:*')\" 0");
    while kept().parse::<usize>().unwrap() > 4 {
        assert!(began.elapsed() < LONG, "{} keys of two streams", kept());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_left_before_it_heard_of_its_stream_leaves_none() {
    let redis = Server::start();
    let one = gateway(&redis, 1);
    redis.freeze();
    let (mut here, parts) = one.open(7).await;
    assert!(timeout(Duration::from_millis(20), here.reader.reach()).await.is_err());
    drop(here);
    timeout(Duration::from_secs(5), parts.0.closed()).await.expect("nobody can come back to it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_opened_while_redis_is_away_says_that_it_is_kept_here_alone() {
    let mut redis = Server::start();
    let one = gateway(&redis, 1);
    redis.kill();
    let (mut here, parts) = one.open(7).await;
    let began = Instant::now();
    parts.send_numbers(1..=1).await;
    assert_eq!(here.reader.reach().await, Reach::ThisGateway);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    here.until("id: 1\n").await;
    let id = here.reader.id().to_owned();
    drop(here);
    let mut back = one.resume(&id, 0).await.unwrap();
    parts.end().await;
    let (text, end) = back.rest().await;
    assert!(text.ends_with(&(numbers(1..=1) + "id: 2\ndata: [DONE]\n\n")), "{text}");
    assert_eq!(end, Next::Over);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_trimmed_here_is_trimmed_there_and_said_to_be_gone() {
    let redis = Server::start();
    let limits = Limits { entries_max: 256, ..Limits::default() };
    let (one, two) = (gateway_with(&redis, 1, limits), gateway(&redis, 2));
    let (mut here, parts) = one.open(7).await;
    for number in 1..=600 {
        parts.send_numbers(number..=number).await;
        here.until(&format!("id: {number}\n")).await;
    }
    let id = here.reader.id().to_owned();
    drop(here);
    let Some(Missed::Gone { first }) = two.resume(&id, 0).await.err() else { panic!("it is kept") };
    assert!((345..=346).contains(&first), "{first}");
    let mut there = two.resume(&id, first - 1).await.unwrap();
    parts.end().await;
    let from = u32::try_from(first).unwrap();
    assert_eq!(there.rest().await.0, numbers(from..=600) + "id: 601\ndata: [DONE]\n\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_data_under_a_streams_key_breaks_nothing_but_its_reach() {
    let redis = Server::start();
    let one = gateway(&redis, 1);
    for (request, damage) in [(7, "SET"), (8, "XADD")] {
        let key = format!("stream:chat:req_1-{request:x}.0000000000000001");
        redis.ask(&match damage {
            "SET" => format!("SET {key} x"),
            _ => format!("XADD {key} * event x"),
        });
        let (mut here, parts) = one.open(request).await;
        parts.send_numbers(1..=1).await;
        assert_eq!(here.reader.reach().await, Reach::ThisGateway, "{damage}");
        parts.end().await;
        assert!(here.rest().await.0.ends_with("id: 2\ndata: [DONE]\n\n"), "{damage}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_keeps_streams_too() {
    let nodes = Server::cluster(3);
    let (one, two) = (gateway_at(settings(&nodes, true), 1), gateway_at(settings(&nodes, true), 2));
    for request in 1..=6 {
        let (mut here, parts) = one.open(request).await;
        parts.send_numbers(1..=20).await;
        here.until("id: 20\n").await;
        assert_eq!(here.reader.reach().await, Reach::AnyGateway);
        let id = here.reader.id().to_owned();
        drop(here);
        let mut there = two.resume(&id, 0).await.unwrap();
        parts.end().await;
        assert_eq!(there.rest().await, (numbers(1..=20) + "id: 21\ndata: [DONE]\n\n", Next::Over));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keeper_that_breaks_leaves_no_reader_waiting_and_no_place_taken() {
    let streams = Streams::new(Limits { streams_max: 1, ..Limits::default() });
    let (sender, parts) = mpsc::channel(32);
    let id = RequestId(Minted { incarnation: 1, counter: 7 });
    let reader = streams.reserve().unwrap().open(id, whose(1, None), parts, Box::new(Broken));
    let mut reader = Client { reader, text: String::new() };
    assert!(streams.reserve().is_err());
    drop(sender);
    assert_eq!(reader.rest().await, (String::new(), Next::Lost));
    while streams.reserve().is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

struct Broken;

impl Scribe for Broken {
    fn end(&mut self, _: &Last) -> Option<String> {
        panic!("a bug, on purpose")
    }
}

/// One gateway's streams, and what runs beside them.
struct Gateway {
    streams: Arc<Streams>,
    _run: tokio_util::task::AbortOnDropHandle<()>,
}

fn gateway(redis: &Server, life: u64) -> Gateway {
    gateway_with(redis, life, Limits::default())
}

fn gateway_with(redis: &Server, life: u64, limits: Limits) -> Gateway {
    gateway_of(settings(std::slice::from_ref(redis), false), life, limits)
}

fn gateway_at(settings: Settings, life: u64) -> Gateway {
    gateway_of(settings, life, Limits::default())
}

fn gateway_of(settings: Settings, life: u64, limits: Limits) -> Gateway {
    let log = Arc::new(StreamLog::new(settings).unwrap());
    let streams = Streams::shared(limits, log, life, Health::new());
    let run = tokio::spawn(Arc::clone(&streams).run());
    Gateway { streams, _run: tokio_util::task::AbortOnDropHandle::new(run) }
}

fn settings(servers: &[Server], cluster: bool) -> Settings {
    let addresses = servers.iter().map(|server| ("127.0.0.1".to_owned(), server.port)).collect();
    Settings { addresses, cluster, ..Settings::default() }
}

fn whose(tenant: u64, key: Option<u64>) -> Whose {
    let principal = Principal { tenant: AccountId(tenant), user: None, key: key.map(AccountId) };
    Whose::from(&principal)
}

impl Gateway {
    async fn open(&self, request: u64) -> (Client, Parts) {
        let (sender, parts) = mpsc::channel(32);
        let id = RequestId(Minted { incarnation: 1, counter: request });
        let place = self.streams.reserve().unwrap();
        let reader = place.open(id, whose(1, Some(1)), parts, Box::new(Words));
        (Client { reader, text: String::new() }, Parts(sender))
    }

    async fn resume(&self, id: &str, after: u64) -> Result<Client, Missed> {
        let reader = self.streams.resume(id, whose(1, Some(1)), after).await?;
        Ok(Client { reader, text: String::new() })
    }
}

struct Parts(Sender<Part>);

impl Parts {
    async fn send_numbers(&self, numbers: std::ops::RangeInclusive<u32>) {
        for number in numbers {
            let event = Bytes::from(format!("data: {number}\n\n"));
            timeout(LONG, self.0.send(Part::Bytes(event))).await.unwrap().unwrap();
        }
    }

    async fn end(&self) {
        let (usage, outcome) = (Usage::default(), Outcome::Completed);
        let end =
            End { outcome, detail: None, usage, first_token: None, resumed: None, error: None };
        self.0.send(Part::End(end)).await.unwrap();
    }
}

struct Words;

impl Scribe for Words {
    fn end(&mut self, last: &Last) -> Option<String> {
        let completed = matches!(last, Last::End(End { outcome: Outcome::Completed, .. }));
        (!completed).then(|| "{\"error\":{}}".to_owned())
    }
}

struct Client {
    reader: Reader,
    text: String,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({:?})", self.text)
    }
}

impl Client {
    async fn until(&mut self, words: &str) {
        while !self.text.contains(words) {
            let next = timeout(LONG, self.reader.next()).await;
            let next = next.unwrap_or_else(|_| panic!("{words:?} never comes: {}", self.text));
            let Next::Bytes(bytes) = next else {
                panic!("{next:?} before {words:?}: {}", self.text)
            };
            self.text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }

    /// All that has come, and how it ended.
    async fn rest(&mut self) -> (String, Next) {
        loop {
            let next = timeout(LONG, self.reader.next()).await.unwrap();
            let Next::Bytes(bytes) = next else { return (self.text.clone(), next) };
            self.text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }
}

fn numbers(numbers: std::ops::RangeInclusive<u32>) -> String {
    numbers.map(|number| format!("id: {number}\ndata: {number}\n\n")).collect()
}
