//! Asks of one tenant that leave together, because some wait while another is on its way: nothing is overspent, nobody waits
//! without need, and what goes wrong with a call each of its asks is told.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

#[path = "redis/server.rs"]
#[allow(dead_code, reason = "shared with tests that do more to their servers")]
mod server;

use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use control::id::{AccountId, Minted, ReservationId};
use control::quota::{
    Ask, Cap, DenyReason, Draw, HoldId, LedgerConfig, Limits, OpId, OwnerId, Reply, StoreAnswer,
    StoreOp,
};
use control::units::{Amount, MicroUsd, Tokens};
use server::Server;
use tokio::task::JoinSet;
use transport::redis::{Settings, Store, StoreError, keys};

const TENANT: AccountId = AccountId(0xa11ce);

fn store(server: &Server, call_timeout: Duration) -> Arc<Store> {
    let settings = Settings {
        addresses: vec![("127.0.0.1".to_owned(), server.port)],
        dial_timeout: Duration::from_secs(5),
        call_timeout,
        ..Settings::default()
    };
    Arc::new(Store::new(settings, LedgerConfig::default(), u64::from(server.port)).unwrap())
}

/// Patient: the machine may be busy.
fn patient(server: &Server) -> Arc<Store> {
    store(server, Duration::from_secs(20))
}

fn hold(id: u64) -> HoldId {
    HoldId::request(OwnerId(1), ReservationId(Minted { incarnation: 1, counter: id }))
}

fn tokens(count: u64) -> Amount {
    Amount { tokens: Tokens(count), money: MicroUsd::ZERO }
}

fn op(tenant: AccountId, ask: Ask) -> StoreOp {
    StoreOp { op: OpId(1), owner: OwnerId(1), run: None, tenant: Some(tenant), ask }
}

/// Ten tokens of an account that has `limit` a day.
fn reserve_from(account: u64, id: u64, limit: u64) -> StoreOp {
    let day = Cap { tokens: Some(Tokens(limit)), money: None };
    let accounts = vec![(AccountId(account), Limits { day, ..Limits::default() })];
    let ttl = Duration::from_secs(600);
    op(TENANT, Ask::Reserve(Draw { hold: hold(id), accounts, amount: tokens(10), ttl }))
}

fn settle(id: u64, granted: &StoreAnswer) -> StoreOp {
    let Reply::Granted { pins, .. } = &granted.reply else { panic!("{granted:?}") };
    let (pins, actual, confirmed) = (pins.clone(), tokens(7), Some(granted.run));
    op(TENANT, Ask::Settle { hold: hold(id), pins, actual, estimated: false, confirmed })
}

/// Calls of scripts since it started.
fn calls(server: &Server) -> u64 {
    let count = |line: &str| {
        let said = line.strip_prefix("cmdstat_eval")?.split_once("calls=")?.1;
        said.split(',').next()?.parse::<u64>().ok()
    };
    server.ask("INFO commandstats").lines().filter_map(count).sum()
}

async fn at_once(
    stores: &[Arc<Store>],
    ops: impl Iterator<Item = StoreOp>,
) -> Vec<Result<StoreAnswer, StoreError>> {
    let mut all = JoinSet::new();
    for (nth, op) in ops.enumerate() {
        let store = Arc::clone(&stores[nth % stores.len()]);
        all.spawn(async move { (nth, store.perform(&op).await) });
    }
    let mut answers = all.join_all().await;
    answers.sort_by_key(|(nth, _)| *nth);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_two_gateways_ask_at_once_leaves_in_batches_and_overspends_nothing() {
    let server = Server::start();
    let stores = [patient(&server), patient(&server)];
    // 77 of 400 fit.
    let answers = at_once(&stores, (0..400).map(|id| reserve_from(5, id, 770))).await;
    let (mut granted, mut refused) = (Vec::new(), 0);
    for (id, answer) in (0..).zip(answers) {
        let answer = answer.unwrap();
        match &answer.reply {
            Reply::Granted { hold: of, total, .. } => {
                assert_eq!((*of, *total), (hold(id), tokens(10)), "to whom it was given");
                granted.push((id, answer));
            }
            Reply::Denied(denied) => {
                assert!(matches!(denied.reason, DenyReason::Spent { .. }), "{denied:?}");
                refused += 1;
            }
            Reply::Done | Reply::OtherRun | Reply::Here => panic!("{answer:?}"),
        }
    }
    assert_eq!((granted.len(), refused), (77, 323));
    let made = calls(&server);
    assert!(made < 200, "400 asks were {made} calls");
    // All end, each twice and in the same batches: the second time changes nothing.
    let twice = granted.iter().chain(&granted).map(|(id, answer)| settle(*id, answer));
    for answer in at_once(&stores, twice).await {
        assert_eq!(answer.unwrap().reply, Reply::Done);
    }
    for (key, sums) in stores[0].balances(TENANT).await.unwrap() {
        assert_eq!(sums.spent, tokens(7 * 77), "{key:?}");
        assert_eq!((sums.outstanding, sums.held), (tokens(0), tokens(770)), "{key:?}");
        assert_eq!(sums.charged + sums.refunded, sums.held, "{key:?}");
    }
}

#[tokio::test]
async fn an_ask_alone_is_a_call_of_its_own_and_waits_for_nobody() {
    let server = Server::start();
    let store = patient(&server);
    store.perform(&reserve_from(5, 0, 1_000)).await.unwrap();
    let before = calls(&server);
    for id in 1..=20 {
        let granted = store.perform(&reserve_from(5, id, 1_000)).await.unwrap();
        assert!(matches!(granted.reply, Reply::Granted { .. }), "{granted:?}");
    }
    assert_eq!(calls(&server) - before, 20);
    // Asks of as many tenants do not wait for each other.
    let of = |tenant| StoreOp { tenant: Some(AccountId(tenant)), ..reserve_from(5, 1, 1_000) };
    for answer in at_once(&[Arc::clone(&store)], (100..120).map(of)).await {
        assert!(matches!(answer.unwrap().reply, Reply::Granted { .. }));
    }
    assert_eq!(calls(&server) - before, 40);
}

#[tokio::test]
async fn who_has_left_is_not_asked_for_and_the_others_are() {
    let server = Server::start();
    let store = patient(&server);
    store.perform(&reserve_from(5, 0, 1_000)).await.unwrap();
    let before = calls(&server);
    server.freeze();
    let asking = |id| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.perform(&reserve_from(5, id, 1_000)).await })
    };
    // The first is on its way, though nobody waits for it any more; the second waits in line, and leaves.
    let (first, second, third) = (asking(1), asking(2), asking(3));
    tokio::time::sleep(Duration::from_millis(200)).await;
    first.abort();
    second.abort();
    assert!(first.await.is_err() && second.await.is_err());
    server.thaw();
    let answer = third.await.unwrap().unwrap();
    assert!(matches!(answer.reply, Reply::Granted { .. }), "{answer:?}");
    assert_eq!(calls(&server) - before, 2);
    let sums = store.balances(TENANT).await.unwrap()[0].1;
    assert_eq!(sums.outstanding, tokens(30), "those of 0, 1 and 3");
}

#[tokio::test]
async fn a_silent_server_costs_each_ask_its_own_time_and_no_more() {
    let server = Server::start();
    let limit = Duration::from_millis(400);
    let store = store(&server, limit);
    store.perform(&reserve_from(5, 0, 1_000)).await.unwrap();
    server.freeze();
    let mut all = JoinSet::new();
    for id in 1..=40 {
        let store = Arc::clone(&store);
        all.spawn(async move {
            // They come one after the other while the first waits.
            tokio::time::sleep(Duration::from_millis(id * 5)).await;
            let began = Instant::now();
            let answer = store.perform(&reserve_from(5, id, 1_000)).await;
            (answer, began.elapsed())
        });
    }
    for (answer, took) in all.join_all().await {
        assert!(matches!(answer, Err(StoreError::Unanswered(_))), "{answer:?}");
        assert!(took < limit * 3, "{took:?}");
    }
    server.thaw();
    let started = Instant::now();
    while store.perform(&reserve_from(5, 99, 1_000)).await.is_err() {
        assert!(started.elapsed() < Duration::from_secs(20), "nobody is stuck in line");
    }
}

#[tokio::test]
async fn a_server_that_dies_fails_all_who_wait_at_once() {
    let mut server = Server::start();
    let store = patient(&server);
    store.perform(&reserve_from(5, 0, 1_000)).await.unwrap();
    server.freeze();
    let asking: Vec<_> = (1..=40)
        .map(|id| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.perform(&reserve_from(5, id, 1_000)).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let began = Instant::now();
    server.kill();
    for asked in asking {
        let why = asked.await.unwrap().unwrap_err();
        assert!(matches!(why, StoreError::Broken(_) | StoreError::Away(_)), "{why}");
    }
    assert!(began.elapsed() < Duration::from_secs(15), "below the time of a call");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ask_that_harms_its_call_harms_nobody_else_in_it() {
    let server = Server::start();
    let store = patient(&server);
    store.perform(&reserve_from(6, 1_000, 1_000)).await.unwrap();
    let [book, ..] = keys(TENANT);
    server.ask(&format!("HSET {book} A{:016x} nonsense", 6));
    let of = |id: u64| reserve_from(if id % 8 == 7 { 6 } else { 5 }, id, 100_000);
    for (id, answer) in (0..).zip(at_once(&[store], (0..200).map(of)).await) {
        if id % 8 == 7 {
            let why = answer.unwrap_err();
            assert!(matches!(why, StoreError::Garbled(_) | StoreError::Foreign(_)), "{why}");
        } else {
            assert!(matches!(answer.unwrap().reply, Reply::Granted { .. }));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_refuses_the_draws_of_a_batch_and_takes_its_ends() {
    let server = Server::start();
    let store = patient(&server);
    let draws = (0..60).map(|id| reserve_from(5, id, 100_000));
    let granted: Vec<_> = at_once(&[Arc::clone(&store)], draws).await.into_iter().collect();
    server.ask("CONFIG SET maxmemory 1");
    let both = (0..60).zip(&granted).flat_map(|(id, granted)| {
        [settle(id, granted.as_ref().unwrap()), reserve_from(5, 1_000 + id, 100_000)]
    });
    for (nth, answer) in at_once(&[Arc::clone(&store)], both).await.into_iter().enumerate() {
        if nth % 2 == 0 {
            assert_eq!(answer.unwrap().reply, Reply::Done);
        } else {
            let why = answer.unwrap_err();
            assert!(matches!(why, StoreError::Full(_)), "{why}");
        }
    }
    let sums = store.balances(TENANT).await.unwrap()[0].1;
    assert_eq!((sums.spent, sums.outstanding), (tokens(420), tokens(0)));
}

#[tokio::test]
async fn more_asks_than_may_be_are_refused_and_their_places_come_back() {
    let server = Server::start();
    let settings = Settings {
        addresses: vec![("127.0.0.1".to_owned(), server.port)],
        call_timeout: Duration::from_secs(20),
        in_flight_max: 5,
        ..Settings::default()
    };
    let store = Arc::new(Store::new(settings, LedgerConfig::default(), 3).unwrap());
    let answers =
        at_once(&[Arc::clone(&store)], (0..20).map(|id| reserve_from(5, id, 1_000))).await;
    let is_busy = |answer: &&Result<_, _>| matches!(answer, Err(StoreError::Busy(5)));
    let busy = answers.iter().filter(is_busy).count();
    assert_eq!((busy, answers.iter().filter(|answer| answer.is_ok()).count()), (15, 5));
    for answer in at_once(&[store], (20..25).map(|id| reserve_from(5, id, 1_000))).await {
        assert!(matches!(answer.unwrap().reply, Reply::Granted { .. }));
    }
}
