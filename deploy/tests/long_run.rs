//! Ten thousand requests through the real binary, with everything going wrong that can: and its journal reproduces them.
//!
//! Replicas are processes of their own that refuse, break off, die, hang and talk nonsense; clients leave in the middle,
//! share sessions, repeat idempotency keys and run out of quota; the configuration changes under load. Afterwards the
//! journal must lead to the same effects, record by record, and what it says of each request must be what that request's
//! client saw.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use control::journal::decode;
use support::client::{Answer, Ask};
use support::journal::{Told, audit, frames};
use support::load::Load;
use support::{Server, World, copy, free_port, get, new_key, overwrite, printed, run, until};

const REQUESTS: usize = 10_000;
const CLIENTS: usize = 64;
/// More than an answer of the dying replica may have.
const LONG: u64 = 24;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_with_every_fault_are_reproduced_from_the_journal() {
    let world = World::new();
    let keys = Keys::new();
    let replicas = [
        world.replica("steady", "--ttft 1ms --gap 0ms"),
        world.replica(
            "failing",
            "--ttft 1ms --gap 0ms --fail-rate 0.3 --error-in-stream 0.1 --seed 2",
        ),
        world.replica("dying", "--ttft 0ms --gap 0ms --die-after 20"),
        world.replica("hanging", "--ttft 1ms --gap 1ms --hang 0.01 --seed 4"),
        world.replica("babbling", "--ttft 1ms --gap 0ms --garbage 0.4 --seed 5"),
    ];
    let fresh = world.replica("fresh", "--ttft 1ms --gap 1ms");
    let port = free_port();
    let endpoints: Vec<_> = replicas.iter().map(Server::endpoint).collect();
    world.write_config(&configuration(&world, port, &endpoints, &keys));
    let mut gateway = world.gateway(port);
    gateway.start();

    let replicas = replicas.map(|replica| Arc::new(Mutex::new(replica)));
    let undertaker = Undertaker::of(&replicas[2]);
    let began = Instant::now();
    let asks = keys.clone();
    let load = Load::start(port, CLIENTS, REQUESTS, move |number| ask(number, &asks));
    load.reach(REQUESTS / 3).await;
    let more: Vec<_> = endpoints.iter().cloned().chain([fresh.endpoint()]).collect();
    world.write_config(&configuration(&world, port, &more, &keys));
    let answers = load.finish().await;
    println!("{} answers in {:?}", answers.len(), began.elapsed());
    let deaths = undertaker.stop();

    check_at_rest(port);
    let metrics = get(port, "/metrics").unwrap().1;
    let running = run("journal verify", &world.data());
    assert!(running.status.success(), "{}", printed(&running));
    assert!(gateway.process.stop().success(), "SIGTERM ends it well");
    check_answers(&answers, deaths);
    check_metrics(&metrics);
    check_directory(&world, &answers);
    println!("all of it in {:?}", began.elapsed());
}

/// What the clients present.
#[derive(Clone)]
struct Keys {
    /// Rich, poor, and in no hurry: (key, hash).
    acme: (String, String),
    poor: (String, String),
    slow: (String, String),
}

impl Keys {
    fn new() -> Self {
        Self { acme: new_key(), poor: new_key(), slow: new_key() }
    }
}

fn configuration(world: &World, port: u16, endpoints: &[String], keys: &Keys) -> String {
    format!(
        "version: 1
server:
  http: {{addr: '127.0.0.1:{port}', drain_grace: 5s}}
  admin: {{addr: '127.0.0.1:0'}}
data: {{dir: '{data}'}}
routing:
  timeouts: {{connect: 2s, first_token: 1s, between_tokens: 1s, request: 4s}}
  breaker: {{consecutive_failures: 4, window: 5s, failure_percent: 30, ejection_base: 200ms, ejection_max: 1s, slow_start: 500ms}}
models:
  demo:
    endpoints: [{endpoints}]
    price: {{input: 1, output: 2}}
tenants:
  acme: {{daily_tokens: 100000000}}
  poor: {{daily_tokens: 2000}}
  slow: {{rpm: 30}}
keys:
  - {{name: acme, tenant: acme, hash: '{acme}'}}
  - {{name: poor, tenant: poor, hash: '{poor}'}}
  - {{name: slow, tenant: slow, hash: '{slow}'}}
log: {{level: info, format: json}}
",
        data = world.data().display(),
        endpoints = endpoints.join(", "),
        acme = keys.acme.1,
        poor = keys.poor.1,
        slow = keys.slow.1,
    )
}

/// The `number`th request: the same in each run.
fn ask(number: usize, keys: &Keys) -> Ask {
    let key = match number % 50 {
        7 => &keys.poor.0,
        8 => &keys.slow.0,
        _ => &keys.acme.0,
    };
    let ask = Ask { key: Some(key.clone()), tokens: 3 + (number % 7) as u64, ..Ask::default() };
    match number % 40 {
        // Two of them share a key, whose second use gets the first one's answer or waits its turn.
        9 => Ask { idempotency: Some(format!("key-{}", number / 80)), tokens: 4, ..ask },
        19 => Ask { stream: true, tokens: LONG, leave_after: Some(3), ..ask },
        29 => Ask { stream: true, tokens: LONG, ..ask },
        _ => {
            let session = number.is_multiple_of(3).then(|| format!("session-{}", number % 201));
            Ask { stream: number.is_multiple_of(2), session, ..ask }
        }
    }
}

/// Starts a replica again whenever it has died.
struct Undertaker {
    over: Arc<AtomicBool>,
    deaths: Arc<AtomicU32>,
    thread: std::thread::JoinHandle<()>,
}

impl Undertaker {
    fn of(replica: &Arc<Mutex<Server>>) -> Self {
        let (over, deaths) = (Arc::<AtomicBool>::default(), Arc::<AtomicU32>::default());
        let (replica, end, count) = (Arc::clone(replica), Arc::clone(&over), Arc::clone(&deaths));
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let mut replica = replica.lock().unwrap();
                if !replica.process.is_alive() {
                    count.fetch_add(1, Ordering::Relaxed);
                    // Long enough that some find nobody there.
                    std::thread::sleep(Duration::from_millis(100));
                    replica.start();
                }
                drop(replica);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { over, deaths, thread }
    }

    fn stop(self) -> u32 {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.deaths.load(Ordering::Relaxed)
    }
}

/// When all has gone quiet, nothing is held any more.
fn check_at_rest(port: u16) {
    let gauges = [
        "pointsman_plane_requests",
        "pointsman_reservations",
        "pointsman_front_requests_in_flight",
        "pointsman_in_flight_attempts",
    ];
    let held = |text: &str, name: &str| -> f64 { figures(text, name).values().sum() };
    until("nothing is held any more", 20, || {
        let text = get(port, "/metrics").unwrap().1;
        gauges.iter().all(|name| held(&text, name) == 0.0)
    });
}

/// The figures of one name, by their labels.
fn figures(metrics: &str, name: &str) -> BTreeMap<String, f64> {
    let lines = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = rest.rsplit_once(' ')?;
        (labels.is_empty() || labels.starts_with('{')).then_some((labels.to_owned(), value))
    });
    lines.map(|(labels, value)| (labels, value.parse().unwrap())).collect()
}

fn check_answers(answers: &[(Ask, Answer)], deaths: u32) {
    let mut statuses: BTreeMap<(u16, String), u32> = BTreeMap::new();
    for (ask, answer) in answers {
        let words = answer.error.clone().unwrap_or_default();
        *statuses.entry((answer.status, words)).or_default() += 1;
        assert!(!answer.is_silent(), "broken off without a word: {ask:?} {answer:?}");
        assert!(answer.broken.is_none(), "the gateway hung up: {ask:?} {answer:?}");
    }
    println!("{statuses:#?}");
    let count = |status: u16| -> u32 {
        statuses.iter().filter(|((s, _), _)| *s == status).map(|(_, count)| count).sum()
    };
    assert_eq!(answers.len(), REQUESTS);
    let known = [200, 402, 409, 429, 502, 503, 504].map(count);
    assert_eq!(known.iter().sum::<u32>() as usize, REQUESTS, "no other status");
    let whole = answers.iter().filter(|(_, answer)| answer.whole).count();
    assert!(whole > REQUESTS * 8 / 10, "{whole} whole answers");
    assert!(count(402) > 10 && count(429) > 10, "quotas and rates deny");
    assert!(answers.iter().filter(|(_, answer)| answer.left).count() > 100, "clients leave");
    assert!(answers.iter().any(|(_, answer)| answer.replica.as_deref() == Some("fresh")));
    assert!(deaths > 3, "the dying replica died {deaths} times");
}

fn check_metrics(metrics: &str) {
    let attempts = figures(metrics, "pointsman_attempts_total");
    let of = |outcome: &str| -> f64 {
        let label = format!("outcome=\"{outcome}\"");
        attempts.iter().filter(|(labels, _)| labels.contains(&label)).map(|(_, n)| n).sum()
    };
    println!("{attempts:#?}");
    assert!(of("completed") > REQUESTS as f64 * 0.8);
    assert!(figures(metrics, "pointsman_retries_total")[""] > 100.0);
    let opened = figures(metrics, "pointsman_breaker_transitions_total");
    let opened = opened.iter().filter(|(labels, _)| labels.contains("to=\"open\""));
    assert!(opened.map(|(_, n)| n).sum::<f64>() >= 1.0, "a breaker opens");
}

fn check_directory(world: &World, answers: &[(Ask, Answer)]) {
    let data = world.data();
    let verified = run("journal verify", &data);
    assert!(verified.status.success(), "{}", printed(&verified));
    println!("{}", printed(&verified));
    let told = Told::of(&data);
    let said = format!("{} records from the first step", told.records);
    assert!(printed(&verified).contains(&said), "{said}: {}", printed(&verified));
    check_told(&told, answers);
    let audited = audit(&data);
    println!("{}", audited.text);
    assert_eq!(audited.outstanding, 0, "{}", audited.text);
    let retried = answers.iter().find(|(_, answer)| answer.attempts == 2 && answer.whole);
    let request = retried.unwrap().1.request.as_ref().unwrap();
    let explained = run(&format!("explain {request} --data"), &data);
    println!("{}", printed(&explained));
    assert!(explained.status.success() && printed(&explained).contains("attempt 2 ->"));
    check_alterations(world, &data);
}

/// The journal and the clients tell the same story.
fn check_told(told: &Told, answers: &[(Ask, Answer)]) {
    println!(
        "{} records: {} retries, {} cancels, {} timeouts, {} trips, {} migrations, {} denials, {} configurations, {} refused",
        told.records,
        told.retries,
        told.cancels,
        told.timeouts,
        told.trips,
        told.migrations,
        told.denials,
        told.configurations,
        told.refused
    );
    // An answer takes at least arrival, acceptance and end.
    assert!(told.records > 3 * REQUESTS as u64 * 8 / 10, "{} records", told.records);
    assert!(
        told.retries > 100
            && told.timeouts > 3
            && told.trips > 0
            && told.cancels > 100
            && told.denials > 10
    );
    assert_eq!(told.configurations, 2, "the first configuration, and the changed one");
    for (ask, answer) in answers {
        let Some(request) = &answer.request else { continue };
        let charged = told.charged(request);
        match answer.used() {
            Some(used) => assert_eq!(charged, used, "{ask:?} {answer:?}"),
            None if answer.is_refused() => assert_eq!(charged, 0, "{ask:?} {answer:?}"),
            None => {
                // Broken off, or left: what arrived is charged, and no more than can have been on its way.
                let least = answer.prompt + answer.received;
                let most = answer.prompt + 3 * ask.tokens;
                assert!((least..=most).contains(&charged), "{charged}: {ask:?} {answer:?}");
            }
        }
    }
}

/// A journal with one altered byte does not verify, and the record that holds the byte is named.
fn check_alterations(world: &World, data: &Path) {
    let altered = world.path("altered");
    copy(data, &altered);
    let segment =
        std::fs::read_dir(altered.join("journal")).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&segment).unwrap();
    let frames = frames(&bytes);
    let victim = frames[frames.len() / 2];
    let middle = (victim.payload + victim.end) / 2;
    overwrite(&segment, middle, &[bytes[middle as usize] ^ 1]);
    expect_failure_at(&altered, victim.position);
    overwrite(&segment, middle, &[bytes[middle as usize]]);

    // A byte that was altered by somebody who knows checksums: one of the digest, which stands before the list of facts
    // and takes nine or ten bytes, of a record whose list is empty and so takes one.
    let forged = frames[frames.len() / 3..].iter().find(|frame| {
        let payload = &bytes[frame.payload as usize..frame.end as usize];
        decode(payload).unwrap().durables.is_empty()
    });
    let forged = forged.unwrap();
    let mut record = bytes[forged.offset as usize..forged.end as usize].to_vec();
    let digit = record.len() - 5;
    record[digit] ^= 1;
    let checked = [&record[..4], &record[8..]].concat();
    record.splice(4..8, crc32(&checked).to_le_bytes());
    overwrite(&segment, forged.offset, &record);
    expect_failure_at(&altered, forged.position);
}

fn expect_failure_at(data: &Path, position: u64) {
    let verified = run("journal verify", data);
    let said = printed(&verified);
    println!("{said}");
    assert!(!verified.status.success(), "{said}");
    assert!(said.contains(&format!("record {position}:")), "record {position} is altered; {said}");
}

/// CRC-32 of IEEE 802.3, bit by bit: apart from the library that wrote the checksum.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}
