//! The simulated Redis against its specification, over TCP and through the product's client: the same random asks as the
//! product's scripts get on a real server (`transport/tests/redis_ledger.rs`), and the same answers.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

#[path = "../../transport/tests/redis/bench.rs"]
mod bench;
#[path = "../../transport/tests/redis/script.rs"]
#[allow(dead_code, reason = "shared with tests that ask more of it")]
mod script;

use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bench::{Bench, WORDS, scripts};
use control::id::AccountId;
use control::quota::{Ask, At, LedgerConfig, Reply};
use control::{Instant, Wall};
use sim::redis::{Server, Stance, converse};
use tokio::net::TcpListener;
use transport::redis::{Settings, Store, StoreError, Told};

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
    let of_several = bench.compare(scripts(10), 4).await;
    assert!(of_several > 800, "only {of_several} asks were made");
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
    // A new connection looks who is there first.
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
    let told = Told { at: Some(at), believed: None, confirmed: None, token: "t", bounds: &bounds };
    let draw = script::draw(script::request(1));
    store.run_script(TENANT, &Ask::Reserve(draw), &told).await
}

/// A server on a port of this machine.
async fn front() -> (Arc<Mutex<Server>>, Settings) {
    let server = Arc::new(Mutex::new(Server::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let behind = Arc::clone(&server);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let server = Arc::clone(&behind);
            tokio::spawn(converse(stream, move |command| {
                let at = At { now: Instant::ZERO, wall: Wall::from_millis(0) };
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
