//! SIGKILL under load: of the gateway, which must lose no charge and leak no reservation; of replicas, which must cost
//! nobody an answer that had not begun.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use support::client::{Answer, Ask};
use support::journal::{Told, audit};
use support::load::Load;
use support::{Server, World, free_port, get, until};

/// The plane learns of progress every so many tokens, or every 250 ms.
const MARK_TOKENS: u64 = 16;
/// What a replica writes in 250 ms at its pace of 5 ms a token is more than [`MARK_TOKENS`]: those count.
const PACE: &str = "--ttft 3ms --gap 5ms";
/// Marks are in memory until the journal's writer has had its turn. On a machine with other work that may take as long
/// as a replica needs for this many tokens.
const LAG_TOKENS: u64 = 16;
/// No piece counts for more.
const PIECE_TOKENS_MAX: u64 = 4;
const TOKENS: u64 = 60;
const KILLS: usize = 5;

fn configuration(world: &World, port: u16, replicas: &[Server]) -> String {
    let endpoints: Vec<_> = replicas.iter().map(Server::endpoint).collect();
    format!(
        "version: 1
server:
  http: {{addr: '127.0.0.1:{port}', drain_grace: 10s}}
  admin: {{addr: '127.0.0.1:0'}}
data: {{dir: '{data}'}}
models: {{demo: {{endpoints: [{endpoints}]}}}}
log: {{level: info, format: json}}
",
        data = world.data().display(),
        endpoints = endpoints.join(", "),
    )
}

fn ask(number: usize) -> Ask {
    let tokens = if number.is_multiple_of(3) { 8 } else { TOKENS };
    Ask { stream: !number.is_multiple_of(4), tokens, ..Ask::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_killed_five_times_under_load_charges_what_was_delivered_and_holds_nothing() {
    let world = World::new();
    let replicas = ["one", "two", "three"].map(|name| world.replica(name, PACE));
    let port = free_port();
    world.write_config(&configuration(&world, port, &replicas));
    let mut gateway = world.gateway(port);
    gateway.start();
    let load = Load::start(port, 24, usize::MAX, ask);
    for life in 1..=KILLS {
        load.more(60).await;
        load.pause(true);
        // Nobody new comes from here on; what runs is cut in the middle.
        gateway.process.kill();
        let stopped = audit(&world.data());
        println!("kill {life}: {} reservations were held", stopped.outstanding);
        assert!(stopped.outstanding > 0, "it was killed under load");
        gateway.start();
        let running = audit(&world.data());
        assert_eq!(running.outstanding, 0, "life {life}: {}", running.text);
        load.pause(false);
    }
    load.more(60).await;
    let answers = load.stop().await;
    until("all is quiet", 20, || {
        get(port, "/metrics").unwrap().1.contains("pointsman_reservations 0\n")
    });
    assert!(gateway.process.stop().success());
    let audited = audit(&world.data());
    assert_eq!(audited.outstanding, 0, "{}", audited.text);
    let told = Told::of(&world.data());
    assert_eq!(told.sum(), audited.charged, "each charge belongs to a request: {}", audited.text);
    check(&told, &answers);
}

/// Each request by itself, then all of them together.
fn check(told: &Told, answers: &[(Ask, Answer)]) {
    let (mut tally, mut least, mut most, mut cut, mut unnamed) = (0, 0, 0, 0, 0);
    let mut named = BTreeSet::new();
    for (ask, answer) in answers {
        assert!(!answer.is_silent(), "broken off without a word: {ask:?} {answer:?}");
        let charged = answer.request.as_ref().map(|request| told.charged(request));
        named.extend(answer.request.clone());
        if let Some(used) = answer.used() {
            assert_eq!(charged, Some(used), "an answer that came whole: {ask:?} {answer:?}");
            tally += used;
            continue;
        }
        assert!(answer.broken.is_some(), "only a killed gateway fails anybody: {ask:?} {answer:?}");
        cut += 1;
        let bound = bound(ask, answer);
        least += bound.0;
        most += bound.1;
        match charged {
            Some(charged) => {
                assert!((bound.0..=bound.1).contains(&charged), "{charged}: {ask:?} {answer:?}");
            }
            None => unnamed += 1,
        }
    }
    let strangers: Vec<_> =
        told.charged.iter().filter(|(request, _)| !named.contains(*request)).collect();
    let sum = told.sum();
    println!(
        "{} answers, {cut} cut ({unnamed} before their heads); tally {tally}, charged {sum}, bound {} to {}; \
         {} charged that no client can name",
        answers.len(),
        tally + least,
        tally + most,
        strangers.len()
    );
    assert!(strangers.len() <= unnamed, "{strangers:?}");
    assert!(cut >= KILLS, "the kills cut something");
    assert!((tally + least..=tally + most).contains(&sum));
}

/// What a request that was cut by the kill may be charged: at least the prompt and all up to the last mark that reached
/// the journal, at most what was on its way.
fn bound(ask: &Ask, answer: &Answer) -> (u64, u64) {
    let recorded = answer.received.saturating_sub(LAG_TOKENS);
    let marked = recorded.saturating_sub(MARK_TOKENS - 1 + PIECE_TOKENS_MAX);
    let least = if recorded > 0 { answer.prompt + marked } else { 0 };
    let most = if ask.stream { PIECE_TOKENS_MAX * ask.tokens } else { ask.tokens };
    (least, answer.prompt + most)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_killed_under_load_fail_no_request_that_had_not_begun_to_stream() {
    let world = World::new();
    let mut replicas = ["one", "two", "three"].map(|name| world.replica(name, PACE));
    let port = free_port();
    world.write_config(&configuration(&world, port, &replicas));
    let mut gateway = world.gateway(port);
    gateway.start();
    let load = Load::start(port, 24, usize::MAX, ask);
    for victim in &mut replicas {
        load.more(60).await;
        victim.process.kill();
        load.more(60).await;
        victim.start();
        // Until it is asked again: at most one of the three is away at a time.
        let began = Instant::now();
        while is_ejected(port, &victim.process.name) {
            assert!(began.elapsed() < Duration::from_secs(60), "it is asked again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let answers = load.stop().await;
    let (mut whole, mut cut, mut again) = (0, 0, 0);
    for (ask, answer) in &answers {
        assert!(!answer.is_silent(), "broken off without a word: {ask:?} {answer:?}");
        assert!(answer.broken.is_none(), "the gateway does not hang up: {ask:?} {answer:?}");
        assert!(!answer.is_refused(), "it had not begun to stream: {ask:?} {answer:?}");
        whole += usize::from(answer.whole);
        cut += usize::from(!answer.whole);
        again += usize::from(answer.attempts > 1);
    }
    println!(
        "{whole} whole, {again} of them by another attempt; {cut} cut after their first token"
    );
    assert!(cut > 0 && again > 0, "the kills met both kinds");
}

fn is_ejected(port: u16, name: &str) -> bool {
    let metrics = get(port, "/metrics").unwrap().1;
    metrics.contains(&format!("pointsman_breaker_open{{instance=\"{name}\"}} 1"))
}
