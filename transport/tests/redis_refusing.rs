//! The shared ledger when Redis answers with an error: each is named for what it is, nothing is charged by it, and what was
//! asked is answered once the server does again.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

#[path = "redis/server.rs"]
#[allow(dead_code, reason = "shared with tests that need clusters")]
mod server;

use core::time::Duration;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use control::id::{AccountId, Minted, ReservationId};
use control::quota::{
    Ask, Cap, Draw, HoldId, LedgerConfig, Limits, OpId, OwnerId, Reply, RunId, StoreAnswer, StoreOp,
};
use control::units::{Amount, MicroUsd, Tokens};
use server::Server;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use transport::redis::{Settings, Store, StoreError, keys};

const TENANT: AccountId = AccountId(0xa11ce);

fn store(port: u16) -> Store {
    let settings = Settings {
        addresses: vec![("127.0.0.1".to_owned(), port)],
        dial_timeout: Duration::from_secs(5),
        call_timeout: Duration::from_secs(5),
        ..Settings::default()
    };
    Store::new(settings, LedgerConfig::default(), 7).unwrap()
}

fn hold(id: u64) -> HoldId {
    HoldId::request(OwnerId(1), ReservationId(Minted { incarnation: 1, counter: id }))
}

fn tokens(count: u64) -> Amount {
    Amount { tokens: Tokens(count), money: MicroUsd::ZERO }
}

fn op(run: Option<RunId>, ask: Ask) -> StoreOp {
    StoreOp { op: OpId(1), owner: OwnerId(1), run, tenant: Some(TENANT), ask }
}

fn reserve(run: Option<RunId>, id: u64) -> StoreOp {
    let day = Cap { tokens: Some(Tokens(1_000)), money: None };
    let accounts = vec![(TENANT, Limits { day, ..Limits::default() })];
    let ttl = Duration::from_secs(60);
    op(run, Ask::Reserve(Draw { hold: hold(id), accounts, amount: tokens(100), ttl }))
}

fn settle(id: u64, granted: &StoreAnswer) -> StoreOp {
    let Reply::Granted { pins, .. } = &granted.reply else { panic!("{granted:?}") };
    let (pins, actual, confirmed) = (pins.clone(), tokens(70), Some(granted.run));
    op(Some(granted.run), Ask::Settle { hold: hold(id), pins, actual, estimated: false, confirmed })
}

/// What is spent, and what is set aside.
async fn sums(store: &Store) -> (u64, u64) {
    let balances = store.balances(TENANT).await.unwrap();
    let sums = balances.first().map(|(_, sums)| *sums).unwrap_or_default();
    (sums.spent.tokens.0, sums.outstanding.tokens.0)
}

/// The error that scripts meet, where they meet one.
type Refusal = Arc<Mutex<Option<&'static str>>>;

/// A way to `server` on which scripts may be refused, and how many connections came over it.
async fn between(server: &Server) -> (u16, Refusal, Arc<AtomicUsize>) {
    let (refusal, lines) = (Refusal::default(), Arc::<AtomicUsize>::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, behind, refuses) =
        (listener.local_addr().unwrap().port(), server.port, Arc::clone(&refusal));
    let counted = Arc::clone(&lines);
    tokio::spawn(async move {
        while let Ok((caller, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(pass(caller, behind, Arc::clone(&refuses)));
        }
    });
    (port, refusal, lines)
}

async fn pass(caller: TcpStream, behind: u16, refuses: Refusal) {
    let server = TcpStream::connect(("127.0.0.1", behind)).await.unwrap();
    let (from_server, mut to_server) = server.into_split();
    let (from_caller, to_caller) = caller.into_split();
    let to_caller = Arc::new(tokio::sync::Mutex::new(to_caller));
    let answers = Arc::clone(&to_caller);
    let back = tokio::spawn(async move {
        let (mut from, mut bytes) = (from_server, vec![0; 65_536]);
        while let Ok(read @ 1..) = from.read(&mut bytes).await {
            answers.lock().await.write_all(&bytes[..read]).await.unwrap();
        }
    });
    let mut from_caller = BufReader::new(from_caller);
    while let Some((name, bytes)) = command(&mut from_caller).await {
        let refusal = *refuses.lock().unwrap();
        match refusal.filter(|_| name.starts_with("EVAL")) {
            None => to_server.write_all(&bytes).await.unwrap(),
            Some(error) => {
                let line = format!("-{error}\r\n");
                to_caller.lock().await.write_all(line.as_bytes()).await.unwrap();
            }
        }
    }
    back.abort();
}

/// The next command: its name, and its bytes.
async fn command(
    from: &mut BufReader<tokio::net::tcp::OwnedReadHalf>,
) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    from.read_until(b'\n', &mut bytes).await.ok().filter(|read| *read > 0)?;
    let number = |line: &[u8]| String::from_utf8_lossy(line)[1..].trim().parse::<usize>().unwrap();
    let (words, mut name) = (number(&bytes), String::new());
    for word in 0..words {
        let at = bytes.len();
        from.read_until(b'\n', &mut bytes).await.ok()?;
        let mut text = vec![0; number(&bytes[at..]) + 2];
        from.read_exact(&mut text).await.ok()?;
        if word == 0 {
            name = String::from_utf8_lossy(&text).trim().to_uppercase();
        }
        bytes.extend(text);
    }
    Some((name, bytes))
}

#[tokio::test]
async fn each_refusal_is_named_for_what_it_is_charges_nothing_and_passes() {
    let server = Server::start();
    let (port, refusal, _) = between(&server).await;
    let store = store(port);
    let granted = store.perform(&reserve(None, 1)).await.unwrap();
    for (error, kind, words) in [
        ("LOADING Redis is loading the dataset in memory", "not_serving", "does not serve writes"),
        ("READONLY You can't write against a read only replica.", "not_serving", "does not serve"),
        ("MOVED 3999 127.0.0.1:6381", "not_serving", "does not serve writes"),
        ("ASK 3999 127.0.0.1:6381", "not_serving", "does not serve writes"),
        ("CLUSTERDOWN The cluster is down", "not_serving", "does not serve writes"),
        ("MASTERDOWN Link with MASTER is down", "not_serving", "does not serve writes"),
        ("TRYAGAIN Multiple keys request during rehashing", "not_serving", "does not serve"),
        ("OOM command not allowed when used memory > 'maxmemory'.", "full", "raise maxmemory"),
        ("NOPERM this user has no permissions", "forbidden", "needs EVAL"),
        ("WRONGTYPE Operation against a key holding the wrong kind", "foreign", "of its own"),
        ("BUSY Redis is busy running a script.", "garbled", "BUSY"),
        ("MISCONF Redis is configured to save RDB snapshots", "garbled", "MISCONF"),
        ("ERR something nobody has heard of", "garbled", "no script of ours"),
        ("", "garbled", "no script of ours"),
    ] {
        *refusal.lock().unwrap() = Some(error);
        for asked in [reserve(Some(granted.run), 2), settle(1, &granted)] {
            let why = store.perform(&asked).await.unwrap_err();
            assert_eq!(why.name(), kind, "{error}: {why}");
            assert!(why.to_string().contains(words), "{error}: {why}");
        }
        *refusal.lock().unwrap() = None;
        assert_eq!(sums(&store).await, (0, 100), "after {error}");
    }
    assert_eq!(store.perform(&settle(1, &granted)).await.unwrap().reply, Reply::Done);
    assert_eq!(sums(&store).await, (70, 0));
}

#[tokio::test]
async fn a_redis_that_is_loading_is_not_dialled_again_for_each_question() {
    let server = Server::start();
    let (port, refusal, lines) = between(&server).await;
    let store = store(port);
    let granted = store.perform(&reserve(None, 1)).await.unwrap();
    let before = lines.load(Ordering::Relaxed);
    *refusal.lock().unwrap() = Some("LOADING Redis is loading the dataset in memory");
    for _ in 0..50 {
        assert_eq!(store.perform(&settle(1, &granted)).await.unwrap_err().name(), "not_serving");
    }
    *refusal.lock().unwrap() = None;
    assert_eq!(store.perform(&settle(1, &granted)).await.unwrap().reply, Reply::Done);
    assert_eq!(
        lines.load(Ordering::Relaxed),
        before,
        "it serves on the same connection once it has loaded"
    );
}

#[tokio::test]
async fn a_replica_alone_is_no_ledger_and_the_message_says_so() {
    let primary = Server::start();
    let replica = primary.replica();
    let why = store(replica.port).perform(&reserve(None, 1)).await.unwrap_err();
    assert!(matches!(&why, StoreError::Away(text) if text.contains("is a replica")), "{why}");
}

#[tokio::test]
async fn a_node_of_a_cluster_asked_as_if_it_stood_alone_says_that_it_does_not_serve() {
    let nodes = Server::cluster(3);
    let mut moved = 0;
    for node in &nodes {
        match store(node.port).perform(&reserve(None, 1)).await {
            Ok(answer) => assert!(matches!(answer.reply, Reply::Granted { .. }), "{answer:?}"),
            Err(why) => {
                moved += 1;
                assert!(matches!(&why, StoreError::NotServing(_)), "{why}");
                assert!(why.to_string().to_lowercase().contains("moved"), "{why}");
            }
        }
    }
    assert_eq!(moved, 2, "the slot is one node's");
}

#[tokio::test]
async fn whatever_lies_under_any_of_our_keys_is_an_error_and_stays_as_it_is() {
    let server = Server::start();
    for key in keys(TENANT) {
        server.ask("FLUSHALL");
        server.ask(&format!("SET {key} precious"));
        let asked = store(server.port);
        match asked.perform(&reserve(None, 1)).await {
            Err(why) => assert!(matches!(why, StoreError::Foreign(_)), "{key}: {why}"),
            // A list that only ends come to is not looked at by a beginning.
            Ok(granted) => {
                let ended = asked.perform(&settle(1, &granted)).await;
                assert!(matches!(ended, Err(StoreError::Foreign(_))), "{key}: {ended:?}");
            }
        }
        assert_eq!(server.ask(&format!("GET {key}")), "precious", "{key}");
    }
}

#[tokio::test]
async fn a_book_that_somebody_wrote_into_is_an_error_and_no_guess() {
    let server = Server::start();
    let [book, ..] = keys(TENANT);
    let store = store(server.port);
    let overwrite = "local field = redis.call('HKEYS', KEYS[1])[tonumber(ARGV[1])] \
                     redis.call('HSET', KEYS[1], field, 'nonsense') return field";
    let mut harmed = String::new();
    for nth in 1.. {
        server.ask("FLUSHALL");
        let granted = store.perform(&reserve(None, 1)).await.unwrap();
        if nth > server.ask(&format!("HLEN {book}")).parse().unwrap() {
            break;
        }
        let field = server.ask(&format!("EVAL \"{overwrite}\" 1 {book} {nth}"));
        for asked in [reserve(Some(granted.run), 2), settle(1, &granted)] {
            match store.perform(&asked).await {
                Err(StoreError::Garbled(why) | StoreError::Foreign(why)) => {
                    assert!(!why.is_empty(), "{field}");
                    harmed.push_str(&field[..1]);
                }
                Err(why) => panic!("{field}: {why}"),
                // It did not look at that.
                Ok(_) => {}
            }
        }
    }
    assert!(harmed.contains('B') && harmed.contains('H'), "balances and holds: {harmed}");
    let granted = store.perform(&reserve(None, 1)).await.unwrap();
    assert_eq!(store.perform(&settle(1, &granted)).await.unwrap().reply, Reply::Done);
    assert_eq!(sums(&store).await, (70, 0));
}
