//! The shared ledger when Redis restarts, fails over, hangs, is full, is somebody else's, or wants to know who asks.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

#[path = "redis/server.rs"]
#[allow(dead_code, reason = "shared with tests that need clusters")]
mod server;

use core::time::Duration;
use std::time::Instant;

use control::id::{AccountId, Minted, ReservationId};
use control::quota::{
    Ask, Cap, DenyReason, Draw, HoldId, LedgerConfig, Limits, OpId, OwnerId, Reply, RunId,
    StoreAnswer, StoreOp,
};
use control::units::{Amount, MicroUsd, Tokens};
use server::Server;
use transport::config::Secret;
use transport::redis::{Settings, Store, StoreError, Tls, keys};

const TENANT: AccountId = AccountId(0xa11ce);
const OTHER: AccountId = AccountId(0xb0b);

fn settings(server: &Server) -> Settings {
    Settings {
        addresses: vec![("127.0.0.1".to_owned(), server.port)],
        dial_timeout: Duration::from_secs(5),
        call_timeout: Duration::from_secs(5),
        ..Settings::default()
    }
}

fn store(settings: Settings) -> Store {
    Store::new(settings, LedgerConfig::default(), 7).unwrap()
}

fn hold(id: u64) -> HoldId {
    HoldId::request(OwnerId(1), ReservationId(Minted { incarnation: 1, counter: id }))
}

fn tokens(count: u64) -> Amount {
    Amount { tokens: Tokens(count), money: MicroUsd::ZERO }
}

fn op(tenant: AccountId, run: Option<RunId>, ask: Ask) -> StoreOp {
    StoreOp { op: OpId(1), owner: OwnerId(1), run, tenant: Some(tenant), ask }
}

fn reserve_of(tenant: AccountId, run: Option<RunId>, id: u64, count: u64) -> StoreOp {
    let day = Cap { tokens: Some(Tokens(1_000)), money: None };
    let accounts = vec![(tenant, Limits { day, ..Limits::default() })];
    let ttl = Duration::from_secs(60);
    op(tenant, run, Ask::Reserve(Draw { hold: hold(id), accounts, amount: tokens(count), ttl }))
}

fn reserve(run: Option<RunId>, id: u64, count: u64) -> StoreOp {
    reserve_of(TENANT, run, id, count)
}

fn settle(run: Option<RunId>, id: u64, count: u64, granted: &StoreAnswer) -> StoreOp {
    let Reply::Granted { pins, .. } = &granted.reply else { panic!("{granted:?}") };
    let (pins, actual, confirmed) = (pins.clone(), tokens(count), Some(granted.run));
    op(TENANT, run, Ask::Settle { hold: hold(id), pins, actual, estimated: false, confirmed })
}

async fn spent(store: &Store, tenant: AccountId) -> (u64, u64) {
    let balances = store.balances(tenant).await.unwrap();
    let sums = balances.first().map(|(_, sums)| *sums).unwrap_or_default();
    (sums.spent.tokens.0, sums.outstanding.tokens.0)
}

/// Asks until Redis is back, as an owner's timers do.
async fn again(store: &Store, op: &StoreOp) -> StoreAnswer {
    let started = Instant::now();
    loop {
        match store.perform(op).await {
            Ok(answer) => return answer,
            Err(why) => assert!(started.elapsed() < Duration::from_secs(20), "{why}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_restart_is_another_run_and_draws_are_turned_away_until_the_owner_knows() {
    let mut server = Server::start_with(&["appendonly yes", "appendfsync always"]);
    let store = store(settings(&server));
    let first = store.perform(&reserve(None, 1, 100)).await.unwrap();
    let same = store.perform(&reserve(Some(first.run), 2, 100)).await.unwrap();
    assert_eq!(same.run, first.run);
    server.kill();
    server.up();
    let turned = again(&store, &reserve(Some(first.run), 3, 100)).await;
    assert_eq!(turned.reply, Reply::OtherRun);
    assert_ne!(turned.run, first.run);
    let Reply::Granted { pins, total, .. } = first.reply.clone() else { panic!("{first:?}") };
    let ttl = Duration::from_secs(60);
    let asserted = op(TENANT, Some(first.run), Ask::Assert { hold: hold(1), pins, total, ttl });
    let asserted = store.perform(&asserted).await.unwrap();
    assert_eq!(asserted.run, turned.run, "assertions are never turned away");
    assert!(matches!(asserted.reply, Reply::Granted { .. }), "{asserted:?}");
    let drawn = store.perform(&reserve(Some(turned.run), 3, 100)).await.unwrap();
    assert!(matches!(drawn.reply, Reply::Granted { .. }), "{drawn:?}");
    let settled = store.perform(&settle(Some(turned.run), 1, 40, &first)).await.unwrap();
    assert_eq!(settled.reply, Reply::Done);
    assert_eq!(spent(&store, TENANT).await, (40, 200), "what was written before is kept");
}

#[tokio::test]
async fn a_failover_there_and_back_is_two_new_runs_though_the_process_is_the_same() {
    let primary = Server::start();
    let replica = primary.replica();
    let both = Settings {
        addresses: [&replica, &primary].map(|one| ("127.0.0.1".to_owned(), one.port)).to_vec(),
        ..settings(&primary)
    };
    let store = store(both);
    let first = store.perform(&reserve(None, 1, 100)).await.unwrap();
    assert_eq!(primary.ask("DBSIZE"), "4", "of two servers the primary was found");
    assert_eq!(primary.ask("WAIT 1 5000"), "1");
    replica.ask("REPLICAOF NO ONE");
    primary.ask(&format!("REPLICAOF 127.0.0.1 {}", replica.port));
    let second = again(&store, &reserve(Some(first.run), 2, 100)).await;
    assert_eq!(second.reply, Reply::OtherRun);
    // Back again, poorer by all that the replica did not have: same process, another reign.
    primary.ask("REPLICAOF NO ONE");
    replica.ask(&format!("REPLICAOF 127.0.0.1 {}", primary.port));
    let third = again(&store, &reserve(Some(second.run), 3, 100)).await;
    assert_eq!(third.reply, Reply::OtherRun);
    assert!(third.run != first.run && third.run != second.run);
    let drawn = store.perform(&reserve(Some(third.run), 3, 100)).await.unwrap();
    assert!(matches!(drawn.reply, Reply::Granted { .. }), "{drawn:?}");
}

#[tokio::test]
async fn two_tenants_have_one_run_and_a_flush_ends_it() {
    let server = Server::start();
    let store = store(settings(&server));
    let first = store.perform(&reserve(None, 1, 100)).await.unwrap();
    let other = store.perform(&reserve_of(OTHER, Some(first.run), 2, 100)).await.unwrap();
    assert_eq!(other.run, first.run, "a tenant that is new is no new run");
    server.ask("FLUSHALL");
    // Another process makes the books anew.
    let another = Store::new(settings(&server), LedgerConfig::default(), 8).unwrap();
    another.perform(&reserve(None, 3, 100)).await.unwrap();
    let turned = store.perform(&reserve(Some(first.run), 4, 100)).await.unwrap();
    assert_eq!(turned.reply, Reply::OtherRun);
    assert_ne!(turned.run, first.run);
    // What the store forgot is charged when it is settled, not taken for an echo.
    let settled = store.perform(&settle(Some(turned.run), 1, 60, &first)).await.unwrap();
    assert_eq!(settled.reply, Reply::Done);
    assert_eq!(spent(&store, TENANT).await, (60, 100));
}

#[tokio::test]
async fn a_server_that_hangs_costs_the_deadline_and_what_was_asked_meanwhile_counts_once() {
    let server = Server::start();
    let quick = Duration::from_millis(200);
    let store = store(Settings { call_timeout: quick, ..settings(&server) });
    let first = again(&store, &reserve(None, 1, 100)).await;
    server.freeze();
    for _ in 0..5 {
        let started = Instant::now();
        let why = store.perform(&reserve(Some(first.run), 2, 100)).await.unwrap_err();
        assert!(matches!(why, StoreError::Unanswered(_) | StoreError::Away(_)), "{why}");
        assert!(started.elapsed() < 5 * quick, "{:?}", started.elapsed());
    }
    server.thaw();
    let granted = again(&store, &reserve(Some(first.run), 2, 100)).await;
    assert!(matches!(granted.reply, Reply::Granted { .. }), "{granted:?}");
    assert_eq!(spent(&store, TENANT).await, (0, 200), "five asks of one id hold once");
}

#[tokio::test]
async fn a_server_that_is_gone_is_refused_at_once_and_found_when_it_is_back() {
    let mut server = Server::start();
    let store = store(settings(&server));
    let first = store.perform(&reserve(None, 1, 100)).await.unwrap();
    server.kill();
    assert!(store.perform(&reserve(Some(first.run), 2, 1)).await.is_err());
    let started = Instant::now();
    for _ in 0..200 {
        let why = store.perform(&reserve(Some(first.run), 2, 1)).await.unwrap_err();
        assert!(matches!(why, StoreError::Away(_)), "{why}");
    }
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    server.up();
    assert_eq!(again(&store, &reserve(Some(first.run), 2, 1)).await.reply, Reply::OtherRun);
}

#[tokio::test]
async fn more_asks_than_may_be_on_their_way_are_refused_and_not_queued() {
    let server = Server::start();
    let quick = Duration::from_millis(300);
    let store = store(Settings { in_flight_max: 2, call_timeout: quick, ..settings(&server) });
    again(&store, &reserve(None, 1, 1)).await;
    server.freeze();
    let ops = [2, 3, 4].map(|id| reserve(None, id, 1));
    let (one, two, three) =
        tokio::join!(store.perform(&ops[0]), store.perform(&ops[1]), store.perform(&ops[2]));
    server.thaw();
    assert!(matches!(one, Err(StoreError::Unanswered(300))), "{one:?}");
    assert!(matches!(two, Err(StoreError::Unanswered(300))), "{two:?}");
    assert_eq!(three, Err(StoreError::Busy(2)));
}

#[tokio::test]
async fn a_server_that_forgot_the_scripts_is_told_them_again() {
    let server = Server::start();
    let store = store(settings(&server));
    let first = store.perform(&reserve(None, 1, 100)).await.unwrap();
    server.ask("SCRIPT FLUSH");
    let second = store.perform(&reserve(Some(first.run), 2, 100)).await.unwrap();
    assert!(matches!(second.reply, Reply::Granted { .. }), "{second:?}");
}

#[tokio::test]
async fn no_key_lives_for_ever_and_every_one_bears_its_tenant() {
    let server = Server::start();
    let store = store(settings(&server));
    let granted = store.perform(&reserve(None, 1, 100)).await.unwrap();
    store.perform(&settle(None, 1, 10, &granted)).await.unwrap();
    store.perform(&reserve(None, 2, 100)).await.unwrap();
    store.perform(&op(TENANT, None, Ask::Refund { hold: hold(3) })).await.unwrap();
    let mut found = 0;
    for key in keys(TENANT) {
        assert!(key.starts_with("pointsman:ledger:2:{00000000000a11ce}:"), "{key}");
        let left: i64 = server.ask(&format!("PTTL {key}")).parse().unwrap();
        assert!(left == -2 || left > 40 * 86_400_000, "{key} lives {left} ms");
        found += usize::from(left > 0);
    }
    assert_eq!(server.ask("DBSIZE"), found.to_string(), "there is no other key");
}

#[tokio::test]
async fn a_full_server_says_so_and_still_takes_ends() {
    let server = Server::start();
    let store = store(settings(&server));
    let granted = store.perform(&reserve(None, 1, 100)).await.unwrap();
    server.ask("CONFIG SET maxmemory 1");
    let why = store.perform(&reserve(Some(granted.run), 2, 100)).await.unwrap_err();
    assert!(matches!(why, StoreError::Full(_)), "{why}");
    assert!(why.to_string().contains("maxmemory"), "{why}");
    let probe = StoreOp { tenant: None, ..op(TENANT, None, Ask::Probe) };
    let why = store.perform(&probe).await.unwrap_err();
    assert!(matches!(why, StoreError::Full(_)), "nobody shall take it for well: {why}");
    let settled = store.perform(&settle(Some(granted.run), 1, 70, &granted)).await.unwrap();
    assert_eq!(settled.reply, Reply::Done);
    server.ask("CONFIG SET maxmemory 0");
    assert_eq!(spent(&store, TENANT).await, (70, 0), "the refused one left nothing behind");
    assert_eq!(store.perform(&probe).await.unwrap().reply, Reply::Here);
}

#[tokio::test]
async fn a_server_that_evicts_is_told_from_one_that_does_not() {
    let server = Server::start();
    let store = store(settings(&server));
    assert_eq!(store.evicts().await, None);
    server.ask("CONFIG SET maxmemory-policy volatile-lru");
    assert_eq!(store.evicts().await.as_deref(), Some("volatile-lru"));
}

#[tokio::test]
async fn foreign_data_under_our_keys_is_named_and_left_alone() {
    let server = Server::start();
    let store = store(settings(&server));
    let [book, ..] = keys(TENANT);
    server.ask(&format!("SET {book} precious"));
    let why = store.perform(&reserve(None, 1, 100)).await.unwrap_err();
    assert!(matches!(why, StoreError::Foreign(_)), "{why}");
    assert_eq!(server.ask(&format!("GET {book}")), "precious");
}

#[tokio::test]
async fn a_user_who_may_not_is_told_what_it_needs() {
    let server = Server::start();
    server.ask("ACL SETUSER reader on >right ~* +ping +info");
    server.ask("ACL SETUSER gate on >right ~pointsman:* +@all");
    let as_user = |user: &str, password: &str| Settings {
        user: Some(user.to_owned()),
        password: Some(Secret::new(password.to_owned())),
        ..settings(&server)
    };
    let why = store(as_user("reader", "right")).perform(&reserve(None, 1, 1)).await.unwrap_err();
    assert!(matches!(why, StoreError::Forbidden(_)), "{why}");
    let why = store(as_user("gate", "wrong")).perform(&reserve(None, 1, 1)).await.unwrap_err();
    assert!(matches!(why, StoreError::Away(_)), "{why}");
    assert!(!why.to_string().contains("wrong"), "{why}");
    let granted = store(as_user("gate", "right")).perform(&reserve(None, 1, 1)).await.unwrap();
    assert!(matches!(granted.reply, Reply::Granted { .. }), "{granted:?}");
}

#[tokio::test]
async fn numbers_a_double_cannot_hold_are_refused_before_they_are_sent() {
    // Nobody listens there: what is refused here was never sent.
    let nowhere = Settings { addresses: vec![("127.0.0.1".to_owned(), 1)], ..Settings::default() };
    let store = store(nowhere);
    let day = Cap { tokens: Some(Tokens(1 << 53)), money: None };
    let accounts = vec![(TENANT, Limits { day, ..Limits::default() })];
    let (amount, ttl) = (tokens(1), Duration::from_secs(1));
    let ask = Ask::Reserve(Draw { hold: hold(1), accounts: accounts.clone(), amount, ttl });
    let why = store.perform(&op(TENANT, None, ask)).await.unwrap_err();
    assert_eq!(why, StoreError::TooLarge("a limit", 1 << 53));
    let ttl = Duration::from_secs(1 << 40);
    let accounts = vec![(TENANT, Limits::default())];
    let ask = Ask::Reserve(Draw { hold: hold(1), accounts, amount, ttl });
    let why = store.perform(&op(TENANT, None, ask)).await.unwrap_err();
    assert!(matches!(why, StoreError::TooLarge("a time to live", _)), "{why}");
}

#[tokio::test]
async fn two_gateways_that_draw_at_once_never_overspend_an_account() {
    let server = Server::start();
    let stores = [store(settings(&server)), store(settings(&server))];
    let draws = (0..200_u64).map(|id| {
        let store = &stores[usize::try_from(id % 2).unwrap()];
        async move { store.perform(&reserve(None, id, 9)).await.unwrap().reply }
    });
    let replies = futures_util::future::join_all(draws).await;
    let granted = replies.iter().filter(|reply| matches!(reply, Reply::Granted { .. })).count();
    assert_eq!(granted, 111, "1,000 tokens hold 111 times 9");
    let denied = replies.iter().filter(|reply| {
        matches!(reply, Reply::Denied(denied) if matches!(denied.reason, DenyReason::Spent { .. }))
    });
    assert_eq!(denied.count(), 89);
    assert_eq!(spent(&stores[0], TENANT).await, (0, 999));
}

#[tokio::test]
async fn a_connection_by_tls_trusts_the_given_authority_and_no_other() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let port = server::free_port();
    let (cert, key) = (cert.display(), key.display());
    let server = Server::start_with(&[
        &format!("tls-port {port}"),
        &format!("tls-cert-file \"{cert}\""),
        &format!("tls-key-file \"{key}\""),
        &format!("tls-ca-cert-file \"{cert}\""),
        "tls-auth-clients no",
    ]);
    let with = |roots: Option<String>| Settings {
        addresses: vec![("localhost".to_owned(), port)],
        tls: Some(Tls { roots: roots.map(String::into_bytes), identity: None }),
        ..settings(&server)
    };
    let granted = store(with(Some(made.cert.pem()))).perform(&reserve(None, 1, 1)).await.unwrap();
    assert!(matches!(granted.reply, Reply::Granted { .. }), "{granted:?}");
    let stranger = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let why = store(with(Some(stranger.cert.pem()))).perform(&reserve(None, 1, 1)).await;
    assert!(matches!(why, Err(StoreError::Away(_))), "{why:?}");
}

#[tokio::test]
async fn in_a_cluster_a_slot_that_moved_is_followed_and_a_node_that_restarts_is_another_run() {
    let mut servers = Server::cluster(3);
    let store = store(Settings {
        addresses: servers.iter().map(|one| ("127.0.0.1".to_owned(), one.port)).collect(),
        cluster: true,
        ..settings(&servers[0])
    });
    let owner = |servers: &[Server], tenant: AccountId| {
        let [book, ..] = keys(tenant);
        // Whoever does not own the slot refuses, and says where it is.
        let owns = |one: &Server| one.try_ask(&format!("EXISTS {book}")).is_ok();
        servers.iter().position(owns).unwrap()
    };
    let first = store.perform(&reserve_of(AccountId(1), None, 1, 10)).await.unwrap();
    let home = owner(&servers, AccountId(1));
    // Tenants of other nodes have replication ids of their own, and still there is one run.
    let elsewhere = (2..100).map(AccountId).find(|one| owner(&servers, *one) != home).unwrap();
    let other = store.perform(&reserve_of(elsewhere, Some(first.run), 2, 10)).await.unwrap();
    assert_eq!(other.run, first.run);
    assert!(matches!(other.reply, Reply::Granted { .. }), "{other:?}");

    // A slot changes hands behind the client's back.
    let moving = (100..200).map(AccountId).find(|one| owner(&servers, *one) != home).unwrap();
    let [book, ..] = keys(moving);
    let slot = servers[home].ask(&format!("CLUSTER KEYSLOT {book}"));
    let id = servers[home].ask("CLUSTER MYID");
    for index in [home, (home + 1) % 3, (home + 2) % 3] {
        servers[index].ask(&format!("CLUSTER SETSLOT {slot} NODE {id}"));
    }
    let moved = store.perform(&reserve_of(moving, Some(first.run), 3, 10)).await.unwrap();
    assert!(matches!(moved.reply, Reply::Granted { .. }), "{moved:?}");
    assert_eq!(owner(&servers, moving), home);

    servers[home].kill();
    servers[home].up();
    let turned = again(&store, &reserve_of(AccountId(1), Some(first.run), 4, 10)).await;
    assert_eq!(turned.reply, Reply::OtherRun);
    assert_ne!(turned.run, first.run);
    // The whole store has changed, so the others turn away whoever believes in the old run, too.
    let late = again(&store, &reserve_of(elsewhere, Some(first.run), 5, 10)).await;
    assert_eq!((late.reply, late.run), (Reply::OtherRun, turned.run));
    let drawn = again(&store, &reserve_of(elsewhere, Some(turned.run), 5, 10)).await;
    assert!(matches!(drawn.reply, Reply::Granted { .. }), "{drawn:?}");
}
