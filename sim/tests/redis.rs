//! The simulated Redis against its specification, over TCP and through the product's client: the same random asks as the
//! product's scripts get on a real server (`transport/tests/redis_ledger.rs`), and the same answers.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

#[path = "../../transport/tests/redis/bench.rs"]
mod bench;
#[path = "../../transport/tests/redis/script.rs"]
#[allow(dead_code, reason = "shared with tests that ask more of it")]
mod script;
#[path = "../../transport/tests/redis/shared.rs"]
mod shared;

use std::future::ready;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bench::{Bench, WORDS, scripts};
use control::id::AccountId;
use control::quota::{Ask, At, LedgerConfig, Reply};
use control::rate::RateUnit;
use control::shared::{RateTake, RatesAnswer};
use control::{Instant, Wall};
use shared::{ANSWERS, Both, HOME_MICROS, Lapse};
use sim::redis::{Server, Stance, converse};
use tokio::net::TcpListener;
use transport::redis::{Settings, Store, StoreError, Together, Told, Wave};

#[tokio::test]
async fn the_simulated_server_answers_as_the_ledger_does() {
    let (_, settings) = front().await;
    let mut bench = Bench::new(settings);
    let compared = bench.compare(scripts(40), 1).await;
    println!("{compared} asks compared: {:?}", bench.heard);
    for word in WORDS {
        let heard = bench.heard.get(word).copied().unwrap_or_default();
        assert!(heard >= 10, "`{word}` was answered {heard} times: too seldom to compare anything");
    }
    let in_batches = bench.compare_batches(scripts(20)).await;
    assert!(in_batches > 2_000, "only {in_batches} asks were made in batches");
    let of_several = bench.compare(scripts(10), 4).await;
    assert!(of_several > 800, "only {of_several} asks were made");
}

#[tokio::test]
async fn the_simulated_server_shares_rates_keys_and_homes_as_the_pure_store_does() {
    let mut heard = std::collections::BTreeMap::new();
    for seed in 0..20 {
        let clock = Arc::<AtomicU64>::default();
        let (_, settings) = front_at(Arc::clone(&clock)).await;
        let mut both = Both::new(wave(settings), Waiting(clock));
        both.compare(seed, 400).await;
        for (answer, count) in &both.heard {
            *heard.entry(*answer).or_insert(0) += count;
        }
    }
    println!("8000 asks compared: {heard:?}");
    for answer in ANSWERS {
        let count = heard.get(answer).copied().unwrap_or(0);
        assert!(count >= 20, "`{answer}` was heard {count} times: too seldom to compare anything");
    }
}

#[tokio::test]
async fn a_failover_gives_back_what_was_taken_last_and_a_restart_without_data_all() {
    let (server, settings) = front().await;
    let wave = wave(settings);
    // Two fit, and nothing drains: the clock stands still.
    let take = RateTake { account: TENANT, unit: RateUnit::Rpm, limit: 2, drain: 30, burst: 60 };
    let taken = async || {
        let said = wave.take(TENANT, None, 1, &[take]).await.unwrap();
        matches!(said, RatesAnswer::Taken { .. })
    };
    assert_eq!([taken().await, taken().await, taken().await], [true, true, false]);
    // The refusal was a call as well.
    server.lock().unwrap().fail_over(2);
    assert_eq!([taken().await, taken().await], [true, false]);
    server.lock().unwrap().restart(true);
    assert!(!taken().await);
    server.lock().unwrap().restart(false);
    assert_eq!([taken().await, taken().await, taken().await], [true, true, false]);
}

#[tokio::test]
async fn what_is_no_primary_is_told_as_the_client_knows_it() {
    let (server, settings) = front().await;
    let store = Store::new(settings, LedgerConfig::default(), 1).unwrap();
    assert!(matches!(ask(&store).await, Ok((_, Reply::Granted { .. }))));
    let stance = |stance| server.lock().unwrap().set_stance(stance);
    stance(Stance::Full);
    assert!(matches!(ask(&store).await, Err(StoreError::Full(_))));
    stance(Stance::Loading);
    assert!(matches!(ask(&store).await, Err(StoreError::NotServing(_))));
    stance(Stance::Replica);
    // Who was loading is asked on the connection that there is; a new one looks who is there first.
    assert!(matches!(ask(&store).await, Err(StoreError::NotServing(_))));
    assert!(matches!(ask(&store).await, Err(StoreError::Away(_))));
    stance(Stance::Primary);
    while ask(&store).await.is_err() {
        // Until the client dials again: it waits longer each time, a second at most.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_failover_and_a_restart_are_other_runs_and_forget_what_they_should() {
    let (server, settings) = front().await;
    let store = Store::new(settings, LedgerConfig::default(), 1).unwrap();
    let balance = async || store.balances(TENANT).await.unwrap()[0].1.outstanding.tokens.0;
    let (first, _) = ask(&store).await.unwrap();
    let (same, _) = ask(&store).await.unwrap();
    assert_eq!((same, balance().await), (first.clone(), 1), "the same hold");
    server.lock().unwrap().restart(true);
    let (second, _) = ask(&store).await.unwrap();
    assert_eq!((second == first, balance().await), (false, 1), "it kept its data");
    // Two calls wrote since the reservation: both repeated it.
    server.lock().unwrap().fail_over(2);
    assert_eq!(balance().await, 1);
    server.lock().unwrap().fail_over(1);
    assert!(store.balances(TENANT).await.unwrap().is_empty(), "the reservation is forgotten");
    let (third, reply) = ask(&store).await.unwrap();
    assert!(![first, second].contains(&third) && matches!(reply, Reply::Granted { .. }));
    server.lock().unwrap().restart(false);
    assert!(store.balances(TENANT).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_salt_is_the_first_ones() {
    let (_, settings) = front().await;
    let store = Store::new(settings, LedgerConfig::default(), 1).unwrap();
    assert_eq!(store.salt([1; 32]).await, Ok([1; 32]));
    assert_eq!(store.salt([2; 32]).await, Ok([1; 32]));
    assert_eq!(store.evicts().await, None);
}

const TENANT: AccountId = AccountId(7);

async fn ask(store: &Store) -> Result<(String, Reply), StoreError> {
    let bounds = LedgerConfig::default();
    let at = At { now: Instant::from_nanos(1_000_000), wall: Wall::from_millis(1_772_323_200_000) };
    let together = Together { at: Some(at), token: "t", bounds: &bounds };
    let told = Told { believed: None, confirmed: None };
    let ask = Ask::Reserve(script::draw(script::request(1)));
    let (run, replies) = store.run_script(TENANT, &[(&ask, told)], &together).await?;
    Ok((run, replies[0].clone()))
}

fn wave(settings: Settings) -> Wave {
    Wave::beside(&Store::new(settings, LedgerConfig::default(), 1).unwrap())
}

/// The simulated server's clock is the test's.
struct Waiting(Arc<AtomicU64>);

impl Lapse for Waiting {
    fn lapse(&mut self, _keys: &[String]) {
        self.0.fetch_add(HOME_MICROS, Ordering::Relaxed);
    }
}

/// A server on a port of this machine, whose clock stands still.
async fn front() -> (Arc<Mutex<Server>>, Settings) {
    front_at(Arc::default()).await
}

async fn front_at(clock: Arc<AtomicU64>) -> (Arc<Mutex<Server>>, Settings) {
    let server = Arc::new(Mutex::new(Server::default()));
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
    let settings = Settings {
        addresses: vec![("127.0.0.1".to_owned(), port)],
        // Patient: the machine may be busy, and this is no test of speed.
        dial_timeout: Duration::from_secs(10),
        call_timeout: Duration::from_secs(10),
        ..Settings::default()
    };
    (server, settings)
}
