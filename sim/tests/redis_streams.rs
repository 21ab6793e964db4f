//! The simulated Redis beside a real one: the same random asks for the log of streams go to both, through the product's client,
//! and the answers are the same.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

#[path = "../../transport/tests/redis/script.rs"]
#[allow(dead_code, reason = "shared with tests that ask a ledger")]
mod script;
#[path = "../../transport/tests/redis/server.rs"]
#[allow(dead_code, reason = "shared with tests that do more to their servers")]
mod server;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::ready;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use control::quota::At;
use control::{Instant, Wall};
use script::Rng;
use sim::redis::converse;
use tokio::net::TcpListener;
use transport::redis::{Owned, Settings, Shipment, StreamLog};

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn the_simulated_server_keeps_streams_as_a_real_one_does() {
    let real = server::Server::start();
    let mut heard = BTreeMap::new();
    for seed in 0..20 {
        real.ask("FLUSHALL");
        let clock = Arc::<AtomicU64>::default();
        let simulated = log_at(simulated(Arc::clone(&clock)).await.1);
        let mut both = Both {
            real: log_at(real.port),
            simulated,
            flush: &|| {
                // All that is there was to live for an hour.
                real.ask("FLUSHALL");
                clock.fetch_add(HOUR.as_micros() as u64 + 1_000, Ordering::Relaxed);
            },
            heads: BTreeMap::new(),
            heard: &mut heard,
        };
        let rng = &mut Rng(seed);
        for step in 0..300 {
            both.step(rng, &format!("seed {seed}, step {step}")).await;
        }
    }
    println!("6000 asks compared: {heard:?}");
    for answer in ANSWERS {
        let count = heard.get(answer).copied().unwrap_or(0);
        assert!(count >= 20, "`{answer}` was heard {count} times: too seldom to compare anything");
    }
}

#[tokio::test]
async fn a_failover_takes_the_last_events_and_a_restart_without_data_all() {
    let (server, port) = simulated(Arc::default()).await;
    let log = log_at(port);
    let last = async || log.last("a").await.unwrap().map(|last| last.seq);
    for from in 1..=3 {
        assert_eq!(log.append("a", &shipment(from, 1, false)).await, Ok(from));
    }
    server.lock().unwrap().fail_over(1);
    assert_eq!(last().await, Some(2));
    server.lock().unwrap().restart(true);
    assert_eq!(last().await, Some(2));
    server.lock().unwrap().fail_over(2);
    assert_eq!(last().await, None);
    assert_eq!(log.append("a", &shipment(1, 1, false)).await, Ok(1));
    server.lock().unwrap().restart(false);
    assert_eq!(last().await, None);
}

#[tokio::test]
async fn what_nobody_touches_goes_at_its_time_and_a_sign_of_life_too() {
    let clock = Arc::<AtomicU64>::default();
    let (_, port) = simulated(Arc::clone(&clock)).await;
    let log = log_at(port);
    let wait = |span: Duration| {
        clock.fetch_add(span.as_micros() as u64, Ordering::Relaxed);
    };
    log.append("a", &shipment(1, 2, false)).await.unwrap();
    log.live("one", HOUR).await.unwrap();
    wait(HOUR / 2);
    assert!(log.is_alive("one").await.unwrap());
    log.touch("a", HOUR).await.unwrap();
    wait(HOUR / 2 + Duration::from_secs(1));
    assert!(!log.is_alive("one").await.unwrap());
    assert_eq!(log.read("a", 0).await.unwrap().len(), 2, "it was touched");
    wait(HOUR);
    assert_eq!(log.read("a", 0).await.unwrap().len(), 0);
}

/// What has to be heard often enough.
const ANSWERS: [&str; 16] = [
    "appended",
    "missing",
    "forgotten",
    "foreign",
    "kept",
    "touched",
    "whose",
    "of nobody",
    "claimed",
    "refused",
    "beat",
    "read",
    "nothing",
    "last",
    "alive",
    "dead",
];

/// Both servers.
struct Both<'a> {
    real: StreamLog,
    simulated: StreamLog,
    flush: &'a dyn Fn(),
    /// The last event of each stream, as it was meant to be.
    heads: BTreeMap<String, u64>,
    heard: &'a mut BTreeMap<&'static str, usize>,
}

impl Both<'_> {
    async fn step(&mut self, rng: &mut Rng, named: &str) {
        let id = rng.of(&["req_1-1.a", "req_1-2.a", "req_1-1.b"]).to_owned();
        let whose = rng.of(&["1:2", "1:-"]).to_owned();
        if rng.one_in(60) {
            (self.flush)();
            self.heads.clear();
        }
        match rng.below(13) {
            0..=3 => self.append(rng, &id, named).await,
            4 => {
                let owner = rng.of(&["a", "b"]).to_owned();
                let epoch = 1 + rng.below(4);
                let owned = Owned { owner, whose, running: rng.one_in(2), epoch, ttl: HOUR };
                let (one, two) =
                    (self.real.keep(&id, &owned).await, self.simulated.keep(&id, &owned).await);
                self.hear("kept");
                same(named, &one, &two);
            }
            5 => {
                let ttl = if rng.one_in(8) { Duration::ZERO } else { HOUR };
                if ttl.is_zero() {
                    self.heads.remove(&id);
                }
                self.hear("touched");
                same(
                    named,
                    &self.real.touch(&id, ttl).await,
                    &self.simulated.touch(&id, ttl).await,
                );
            }
            6 => {
                let (one, two) = (self.real.whose(&id).await, self.simulated.whose(&id).await);
                self.hear(if matches!(one, Ok(Some(_))) { "whose" } else { "of nobody" });
                same(named, &one, &two);
            }
            7 => {
                let read = rng.one_in(2).then(|| rng.below(9));
                let behind = rng.of(&[0, 0, 1, 5]);
                let one = self.real.claim(&id, &whose, read, behind).await;
                self.hear(if matches!(one, Ok(Some(_))) { "claimed" } else { "refused" });
                same(named, &one, &self.simulated.claim(&id, &whose, read, behind).await);
            }
            8 => {
                let (epoch, read) = (1 + rng.below(4), rng.below(9));
                let one = self.real.beat(&id, epoch, read, HOUR).await;
                self.hear("beat");
                same(named, &one, &self.simulated.beat(&id, epoch, read, HOUR).await);
            }
            9 => {
                let after = rng.below(20);
                let one = self.real.read(&id, after).await;
                let is_empty = one.as_ref().is_ok_and(Vec::is_empty);
                self.hear(if is_empty { "nothing" } else { "read" });
                same(named, &one, &self.simulated.read(&id, after).await);
            }
            10 => {
                self.hear("last");
                same(named, &self.real.last(&id).await, &self.simulated.last(&id).await);
            }
            11 if rng.one_in(4) => {
                self.heads.remove(&id);
                self.hear("forgotten");
                same(named, &self.real.forget(&id).await, &self.simulated.forget(&id).await);
            }
            _ => self.lives(rng, named).await,
        }
    }

    async fn append(&mut self, rng: &mut Rng, id: &str, named: &str) {
        let head = self.heads.get(id).copied().unwrap_or_default();
        let from = match rng.below(6) {
            // Once more, or less than is there.
            0 => 1 + rng.below(head + 1),
            // A hole.
            1 => head + 1 + rng.below(3),
            _ => head + 1,
        };
        let count = 1 + rng.below(6);
        let mut shipment = shipment(from, count, rng.one_in(8));
        shipment.entries_max = rng.of(&[3, 50, 8_192]);
        shipment.kept_from = if rng.one_in(2) { 1 } else { from };
        let one = self.real.append(id, &shipment).await;
        self.hear(match one {
            Ok(last) if last < from => "missing",
            Ok(_) => "appended",
            Err(_) => "foreign",
        });
        same(named, &one, &self.simulated.append(id, &shipment).await);
        let head = head.max(one.unwrap_or(head));
        self.heads.insert(id.to_owned(), head);
    }

    async fn lives(&mut self, rng: &mut Rng, named: &str) {
        let name = rng.of(&["a", "b", "c"]);
        if rng.one_in(4) {
            let (one, two) =
                (self.real.live(name, HOUR).await, self.simulated.live(name, HOUR).await);
            return same(named, &one, &two);
        }
        let one = self.real.is_alive(name).await;
        self.hear(if one == Ok(true) { "alive" } else { "dead" });
        same(named, &one, &self.simulated.is_alive(name).await);
    }

    fn hear(&mut self, answer: &'static str) {
        *self.heard.entry(answer).or_insert(0) += 1;
    }
}

fn same(named: &str, real: &impl Debug, simulated: &impl Debug) {
    assert_eq!(format!("{real:?}"), format!("{simulated:?}"), "{named}");
}

fn shipment(from: u64, count: u64, is_end: bool) -> Shipment {
    let chunk = |seq| {
        let choice = format!("{{\"delta\":{{\"content\":\"t{seq}\"}},\"finish_reason\":null}}");
        Bytes::from(format!("id: {seq}\ndata: {{\"choices\":[{choice}]}}\n\n"))
    };
    let events = (from..from + count).map(chunk).collect();
    Shipment { kept_from: 1, from, events, is_end, entries_max: 8_192, ttl: HOUR }
}

fn log_at(port: u16) -> StreamLog {
    let settings = Settings {
        addresses: vec![("127.0.0.1".to_owned(), port)],
        // Patient: the machine may be busy, and this is no test of speed.
        dial_timeout: Duration::from_secs(10),
        call_timeout: Duration::from_secs(10),
        ..Settings::default()
    };
    StreamLog::new(settings).unwrap()
}

/// A simulated server on a port of this machine, whose clock is the test's.
async fn simulated(clock: Arc<AtomicU64>) -> (Arc<Mutex<sim::redis::Server>>, u16) {
    let server = Arc::<Mutex<sim::redis::Server>>::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let behind = Arc::clone(&server);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (server, clock) = (Arc::clone(&behind), Arc::clone(&clock));
            tokio::spawn(converse(stream, move |command| {
                let now = Instant::from_nanos(clock.load(Ordering::Relaxed) * 1_000);
                let at = At { now, wall: Wall::from_millis(0) };
                ready(Some(server.lock().unwrap().answer(at, &command)))
            }));
        }
    });
    (server, port)
}
